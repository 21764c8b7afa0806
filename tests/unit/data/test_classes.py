"""A data set has the classes that its labels name, the same in training and validation, or is refused by name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from hpsearch.data.catalog import load_selection_data
from hpsearch.data.classes import count_classes
from hpsearch.data.files.lookup import DataLocations
from hpsearch.data.splits import SelectionData
from hpsearch.errors import DataError
from hpsearch.study.settings import DataSettings

Load = Callable[..., SelectionData]


@pytest.fixture
def load(tmp_path: Path, idx: Callable[[np.ndarray], bytes]) -> Load:
    """Load a folder of IDX files with these labels, and images of noise."""

    def load(labels: np.ndarray, **settings: int) -> SelectionData:
        images = np.random.default_rng(0).integers(0, 256, (len(labels), 4, 4)).astype(np.uint8)
        (tmp_path / "train-images-idx3-ubyte").write_bytes(idx(images))
        (tmp_path / "train-labels-idx1-ubyte").write_bytes(idx(labels.astype(np.uint8)))
        locations = DataLocations(local=None, cache=tmp_path / "cache", allow_download=False)
        return load_selection_data(DataSettings(dataset=str(tmp_path), **settings), locations=locations)

    return load


@pytest.mark.parametrize("num_classes", [2, 3, 10, 47])
def test_a_network_has_as_many_outputs_as_there_are_classes(num_classes: int, load: Load) -> None:
    labels = np.arange(600) % num_classes
    assert load(labels).num_classes == num_classes
    assert load(labels, train_samples=1).num_classes == num_classes


def test_labels_with_many_gaps_name_the_highest_and_its_place(load: Load) -> None:
    labels = np.arange(600) % 10
    labels[7] = 255
    with pytest.raises(DataError, match=r"labels go up to 255 \(label 7\), but only 11 of these 256 classes occur"):
        load(labels)


@pytest.mark.parametrize(
    ("labels", "what"),
    [
        (np.arange(600) // 60, "no training image has class 9, which validation images have"),
        (np.arange(600) // 200, "no validation image has classes 0, 1, which training images have"),
        (np.zeros(600), "all images have class 0"),
    ],
)
def test_images_sorted_by_class_are_refused(labels: np.ndarray, what: str, load: Load) -> None:
    with pytest.raises(DataError, match=what):
        load(labels)


def test_a_class_that_is_missing_by_chance_is_none_that_is_missing_by_order() -> None:
    train = np.arange(1000) % 10
    assert count_classes(train, np.arange(8), "data") == 10
    assert count_classes(train, np.arange(100) % 9, "data") == 10  # a chance of 10/11 to the power of 100, about 7e-5
    with pytest.raises(DataError, match="no validation image has class 9"):
        count_classes(train, np.arange(200) % 9, "data")
    assert count_classes(np.arange(60) % 9, np.array([9, *range(9)]), "data") == 10
    with pytest.raises(DataError, match="no training image has class 9"):
        count_classes(np.arange(600) % 9, np.array([9] * 20 + [*range(9)]), "data")
