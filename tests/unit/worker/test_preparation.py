"""What a definition cannot know by itself is checked before anything is created: networks on the data's images."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from torch import nn

from hpsearch.data.splits import SelectionData, Split
from hpsearch.errors import InputError
from hpsearch.study.corners import shape_points
from hpsearch.study.study_file import parse_definition
from hpsearch.worker.preparation import check_networks, check_points

BUILT: list[int] = []


class Grouped(nn.Sequential):
    """A module that not every width suits."""

    def __init__(self, *, image_shape: tuple[int, int], num_classes: int, width: int) -> None:
        BUILT.append(width)
        num_pixels = image_shape[0] * image_shape[1]
        super().__init__(
            nn.Flatten(), nn.Linear(num_pixels, width), nn.GroupNorm(4, width), nn.Linear(width, num_classes)
        )


@pytest.fixture
def data() -> SelectionData:
    images = Split(images=np.zeros((40, 64), np.float32), labels=np.zeros(40, np.int64))
    return SelectionData(
        name="zeros", train=images, validation=images, example_shape=(8, 8), num_classes=10, checksums={}
    )


def definition(**search: Any) -> Any:
    document = {
        "name": "a",
        "model": {"family": f"{__name__}:Grouped", "options": {"width": 8}},
        "search": {"learning_rate": [0.1, 0.01], **search},
    }
    return parse_definition(document, source="study.toml")


def test_every_searched_option_is_tried_and_rates_are_not(data: SelectionData) -> None:
    BUILT.clear()
    check_points(definition(options={"width": [8, 16]}, batch_size=[10, 20]), data)
    calls_per_network = BUILT.count(8)
    assert sorted(set(BUILT)) == [8, 16]
    assert len(BUILT) == 2 * calls_per_network  # each network once, whatever the batch size and the rate


def test_points_of_a_list_are_tried_themselves(data: SelectionData) -> None:
    points = [{"learning_rate": 0.1, "batch_size": 10}, {"learning_rate": 0.2, "batch_size": 41}]
    document = {"name": "a", "search": {"strategy": "listed", "points": points}}
    with pytest.raises(InputError, match=r"batch_size must be in 1..40 \(the training images\), got 41"):
        check_points(parse_definition(document, source="study.toml"), data)


def test_every_searched_number_of_feature_maps_is_tried(data: SelectionData) -> None:
    """Images of 8x8 are too small for LeNet, whatever its feature maps; the mlp beside it does not mind."""
    search = {"family": ["mlp", "cnn"], "kernels": [[2, 3], [4, 5]], "batch_size": [10]}
    wanted = parse_definition({"name": "a", "search": search}, source="study.toml")
    corners = [dict(point) for point in shape_points(wanted)]
    assert corners == [
        {"family": "mlp", "batch_size": 10},
        {"family": "cnn", "kernels": "2x3", "batch_size": 10},
        {"family": "cnn", "kernels": "4x5", "batch_size": 10},
    ]
    with pytest.raises(InputError, match=r"model\.family cnn needs images of at least 16x16 pixels"):
        check_points(wanted, data)


def test_option_that_the_module_does_not_take_is_refused(data: SelectionData) -> None:
    with pytest.raises(InputError, match=r"Grouped\(image_shape=\(8, 8\), num_classes=10, width=6\) failed"):
        check_points(definition(options={"width": [8, 6]}), data)


def test_ends_of_an_interval_are_tried(data: SelectionData) -> None:
    interval = definition(options={"width": {"low": 8, "high": 17}}, strategy="random", num_points=3)
    with pytest.raises(InputError, match=r"width=17\) failed"):
        check_networks(interval, data)


def test_images_too_small_for_a_searched_family_are_told(data: SelectionData) -> None:
    with pytest.raises(InputError, match="at least 16x16 pixels"):
        check_points(parse_definition({"name": "a", "search": {"family": ["mlp", "cnn"]}}, source="s"), data)


def test_batch_larger_than_the_training_set_is_told(data: SelectionData) -> None:
    with pytest.raises(InputError, match=r"batch_size must be in 1\.\.40"):
        check_points(definition(batch_size=[20, 41]), data)


def test_class_weights_that_do_not_suit_the_data_are_refused(data: SelectionData) -> None:
    document: dict[str, Any] = {
        "name": "a",
        "training": {"class_weights": [1.0, 2.0]},
        "search": {"learning_rate": [0.1]},
    }
    with pytest.raises(InputError, match="class_weights has 2 weights, but there are 10 classes"):
        check_points(parse_definition(document, source="s"), data)
    searched: dict[str, Any] = {"name": "a", "search": {"class_weights": ["none", "balanced"]}}
    check_points(parse_definition(searched, source="s"), data)
    targets = replace(data.train, labels=np.arange(40, dtype=np.float32))
    numbers = replace(data, num_classes=0, validation=targets)
    with pytest.raises(InputError, match="weighs classes, but the target is a number"):
        check_points(parse_definition({**searched, "metric": "rmse"}, source="s"), numbers)
