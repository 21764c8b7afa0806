"""The vault's reader gives the test part of every kind of data set, and no image that was selected on."""

from __future__ import annotations

import gzip
import pickle
from pathlib import Path

import numpy as np
import pytest
from sklearn.datasets import load_digits

from hpsearch.data.catalog import load_selection_data
from hpsearch.data.files.lookup import DataLocations
from hpsearch.data.files.published import TEST_IMAGES, TEST_LABELS
from hpsearch.data.test_split import load_test_split
from hpsearch.errors import DataError, InputError
from hpsearch.study.settings import DataSettings


@pytest.mark.parametrize("is_folder", [True, False])
def test_the_test_files_are_read(locations: DataLocations, synthetic_set, publish, is_folder: bool) -> None:
    publish(synthetic_set.publish("mnist"))
    folder = synthetic_set.write(locations.cache / "mnist")
    dataset = str(folder) if is_folder else "mnist"
    split = load_test_split(DataSettings(dataset=dataset, train_samples=1), locations, lambda: True)
    pixels = synthetic_set.arrays[TEST_IMAGES].reshape(10, 20).astype(np.float32) / np.float32(255)
    np.testing.assert_array_equal(split.floats(), pixels)
    np.testing.assert_array_equal(split.labels, synthetic_set.arrays[TEST_LABELS])


def test_wrong_test_files_are_refused(locations: DataLocations, synthetic_set, other_set, publish) -> None:
    publish(synthetic_set.publish("mnist"))
    other_set.write(locations.cache / "mnist")
    with pytest.raises(DataError, match="wrong SHA-256"):
        load_test_split(DataSettings(dataset="mnist"), locations, lambda: True)


def test_the_digits_that_are_left_over_are_the_last_256(locations: DataLocations) -> None:
    settings = DataSettings(dataset="digits")
    split = load_test_split(settings, locations, lambda: True)
    selection = load_selection_data(settings, locations=locations)
    _, labels = load_digits(return_X_y=True)
    assert len(split) == 256
    np.testing.assert_array_equal(
        np.concatenate([selection.train.labels, selection.validation.labels, split.labels]), labels
    )
    known = {image.tobytes() for part in (selection.train, selection.validation) for image in part.images}
    assert not known & {image.tobytes() for image in split.images}


def test_the_third_pair_of_a_pickle_is_read(tmp_path: Path, locations: DataLocations) -> None:
    pairs = [
        (np.full((3, 784), level, dtype=np.float32), np.arange(3) + place) for place, level in enumerate((0, 0.5, 1))
    ]
    path = tmp_path / "mnist.pkl.gz"
    path.write_bytes(gzip.compress(pickle.dumps(tuple(pairs), 2)))
    split = load_test_split(DataSettings(dataset=str(path)), locations, lambda: True)
    np.testing.assert_array_equal(split.images, pairs[2][0])
    np.testing.assert_array_equal(split.labels, pairs[2][1])


def test_an_unknown_name_is_refused(locations: DataLocations) -> None:
    with pytest.raises(InputError, match="unknown data set"):
        load_test_split(DataSettings(dataset="mnst"), locations, lambda: True)
