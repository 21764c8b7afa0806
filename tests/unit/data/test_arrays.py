"""A user's arrays are images or rows of numbers with classes or targets, or an error that says what is wrong."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch

from hpsearch.data.arrays import examples_of
from hpsearch.errors import DataError

GREY = np.arange(3 * 4 * 5, dtype=np.uint8).reshape(3, 4, 5)
COLOUR = np.arange(3 * 4 * 5 * 3, dtype=np.uint8).reshape(3, 4, 5, 3)
CLASSES = [0, 1, 2]


@pytest.mark.parametrize(
    ("x", "shape", "dtype"),
    [
        (GREY, (4, 5), np.uint8),
        (GREY[..., None], (4, 5), np.uint8),
        (GREY[:, None], (4, 5), np.uint8),
        (GREY.astype(np.int64), (4, 5), np.uint8),
        (COLOUR, (3, 4, 5), np.uint8),
        (GREY / 60, (4, 5), np.float32),
        (COLOUR.astype(np.float16) / 255, (3, 4, 5), np.float32),
    ],
)
def test_images_are_flattened_channel_by_channel(x: np.ndarray, shape: tuple[int, ...], dtype: type) -> None:
    found = examples_of(x, CLASSES, "mine", "train")
    assert (found.example_shape, found.images.dtype) == (shape, dtype)
    in_order = x.reshape(3, 4, 5, -1).transpose(0, 3, 1, 2).reshape(3, -1)
    np.testing.assert_allclose(found.images, in_order, rtol=1e-6)


def test_channels_may_come_first() -> None:
    first, last = (examples_of(x, CLASSES, "mine", "train") for x in (COLOUR.transpose(0, 3, 1, 2), COLOUR))
    assert first.example_shape == last.example_shape == (3, 4, 5)
    np.testing.assert_array_equal(first.images, last.images)


def test_images_of_truth_values_are_levels() -> None:
    found = examples_of(GREY > 7, CLASSES, "mine", "train")
    assert found.images.dtype == np.uint8
    np.testing.assert_array_equal(found.images, (GREY > 7).reshape(3, -1) * 255)


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.uint8, np.int64, bool])
def test_rows_of_numbers_stay_as_they_are(dtype: type) -> None:
    found = examples_of(np.array([[0, 1], [1, 0], [1, 1]], dtype=dtype), CLASSES, "mine", "train")
    assert (found.example_shape, found.images.dtype) == ((2,), np.float32)
    assert found.images.tolist() == [[0, 1], [1, 0], [1, 1]]


@pytest.mark.parametrize(
    ("y", "dtype", "expected"),
    [
        (np.array([2, 0, 1], dtype=np.uint8), np.int64, [2, 0, 1]),
        ([True, False, True], np.int64, [1, 0, 1]),
        (np.array([[2], [0], [1]]), np.int64, [2, 0, 1]),
        (np.array([2.5, 0, 1]), np.float32, [2.5, 0, 1]),
        (torch.tensor([2, 0, 1]), np.int64, [2, 0, 1]),
    ],
)
def test_whole_numbers_are_classes_and_floats_are_targets(y: object, dtype: type, expected: list[float]) -> None:
    found = examples_of(GREY, y, "mine", "train")
    assert (found.labels.dtype, found.labels.tolist()) == (dtype, expected)
    assert found.has_whole_labels == (dtype is np.int64)
    assert len(found) == 3


@pytest.mark.parametrize(
    ("x", "y", "message", "hint"),
    [
        (GREY, [0, 1], "x_train has 3 examples, but y_train has 2 targets", "first axis"),
        (np.zeros((0, 4, 5), np.uint8), [], "x_train is empty", "nothing to train on"),
        (3.0, CLASSES, "x_train is empty: shape []", "nothing to train on"),
        (np.zeros(3), CLASSES, "x_train has the shape [3]", "expected [N, rows, columns]"),
        (np.zeros((3, 4, 5, 2), np.uint8), CLASSES, "[3, 4, 5, 2]: no axis has 1 or 3 channels", "grey images as"),
        (np.zeros((3, 3, 4, 3), np.uint8), CLASSES, "[3, 3, 4, 3]: either axis may be", "grey images as"),
        (np.zeros((3, 1, 2, 3, 1)), CLASSES, "x_train has the shape [3, 1, 2, 3, 1]", "[N, features]"),
        (GREY.astype(np.int64) * 5, CLASSES, "x_train: expected levels in 0..255, found 0 .. 295", "floats in [0, 1]"),
        (GREY.astype(np.int8) - 1, CLASSES, "x_train: expected levels in 0..255, found -1 .. 58", "floats in [0, 1]"),
        (GREY.astype(np.float32), CLASSES, "x_train: expected pixels in [0, 1], found 0 .. 59", "divide them by 255"),
        (GREY / -60.0, CLASSES, "expected pixels in [0, 1], found -0.983333 .. -0", "divide them by 255"),
        (np.array([["a"]] * 3), CLASSES, "x_train has the type <U1, expected numbers", "not text or objects"),
        ([[1], [2, 3]], CLASSES, "x_train is no array", "array of numbers"),
        (np.array([[1, 2], [np.nan, 3], [np.inf, 1e39]]), CLASSES, "3 values in 2 rows are NaN, infinite", "missing"),
        (np.full((3, 4, 5), np.inf), CLASSES, "x_train: 60 values in 3 rows are NaN, infinite", "missing values"),
        (GREY, [0.0, np.nan, 1.0], "y_train: 1 values in 1 rows are NaN", "leave these rows out"),
        (GREY, [0.0, np.nan, 1.0], "beyond 3e38; the first is nan at [1]", None),
        (GREY, np.eye(3), "y_train has the shape [3, 3], expected [N]", "y.argmax(axis=1)"),
        (GREY, np.zeros((3, 1, 1)), "y_train has the shape [3, 1, 1], expected [N]", "one number per example"),
        (GREY, ["a", "b", "c"], "y_train has the type <U1, expected numbers", "np.unique(y, return_inverse=True)"),
        (GREY, np.array([0, 1, 2**63], dtype=np.uint64), "y_train: 9223372036854775808 is no class", "from 0"),
    ],
)
def test_what_is_wrong_is_named(x: object, y: object, message: str, hint: str | None) -> None:
    with pytest.raises(DataError, match=re.escape(message)) as caught:
        examples_of(x, y, "mine", "train")
    assert str(caught.value).startswith("mine, ")
    if hint is not None:
        assert hint in str(caught.value.hint)
