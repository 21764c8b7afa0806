"""Training and validation images keep the file's order: the last sixth is for validation."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpsearch.data.splits import scaled_split, selection_slices
from hpsearch.errors import DataError, InputError


def test_mnist_gets_50000_and_10000() -> None:
    assert selection_slices(60_000, None, source="mnist") == (slice(0, 50_000), slice(50_000, 60_000))


@given(num_images=st.integers(6, 10**7))
def test_the_parts_cover_all_images_once_and_validation_is_a_sixth(num_images: int) -> None:
    train, validation = selection_slices(num_images, None, source="mine")
    assert (train.start, train.stop, validation.stop) == (0, validation.start, num_images)
    assert validation.stop - validation.start == num_images // 6


@given(num_images=st.integers(6, 10**7), data=st.data())
def test_train_samples_keeps_the_first_and_leaves_validation_as_it_is(num_images: int, data: st.DataObject) -> None:
    whole, validation = selection_slices(num_images, None, source="mine")
    train_samples = data.draw(st.integers(1, whole.stop))
    assert selection_slices(num_images, train_samples, source="mine") == (
        slice(0, train_samples),
        validation,
    )


@pytest.mark.parametrize("train_samples", [0, 50_001, 60_000])
def test_train_samples_out_of_range_names_the_range(train_samples: int) -> None:
    with pytest.raises(InputError, match=rf"data\.train_samples must be in 1\.\.50000, got {train_samples}"):
        selection_slices(60_000, train_samples, source="mnist")


@pytest.mark.parametrize("num_images", [1, 5])
def test_too_few_images_for_two_parts_are_refused(num_images: int) -> None:
    with pytest.raises(DataError, match=f"mine: {num_images} training images are too few"):
        selection_slices(num_images, None, source="mine")


def test_grey_levels_become_float32_fractions_of_255() -> None:
    levels = np.arange(256, dtype=np.uint8).reshape(4, 8, 8)
    split = scaled_split(levels, np.array([0, 3, 9, 1], dtype=np.uint8))
    assert split.images.dtype == np.uint8
    assert split.labels.dtype == np.int64
    assert split.floats().dtype == np.float32
    assert split.floats().shape == (4, 64)
    np.testing.assert_array_equal(split.floats().reshape(-1), np.arange(256, dtype=np.float32) / np.float32(255))
    np.testing.assert_array_equal(split.floats(np.array([2, 0])), split.floats()[[2, 0]])
    np.testing.assert_array_equal(split.labels, [0, 3, 9, 1])
    assert len(split) == 4
