"""The bundled digits come in three parts in file order, enlarged exactly."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from sklearn.datasets import load_digits

from hpsearch.data.files.lookup import DataLocations
from hpsearch.data.forms.digits import BundledDigits, digits_split, read_bundled_digits
from hpsearch.data.forms.form import DataRequest
from hpsearch.data.splits import SelectionData
from hpsearch.errors import InputError
from hpsearch.study.settings import DataSettings


def load(train_samples: int | None) -> SelectionData:
    settings, locations = DataSettings(train_samples=train_samples), DataLocations(local=None, cache=Path("not used"))
    return BundledDigits().load_selection(DataRequest(settings=settings, locations=locations))


def test_parts_have_the_proportions_of_mnist_and_leave_the_last_images_out() -> None:
    data = load(None)
    assert (len(data.train), len(data.validation)) == (1285, 256)  # and 256 for testing: 5 : 1 : 1 of 1797
    assert data.example_shape == (28, 28)
    assert data.num_classes == 10
    _, labels = load_digits(return_X_y=True)
    np.testing.assert_array_equal(data.train.labels, labels[:1285])
    np.testing.assert_array_equal(data.validation.labels, labels[1285:1541])


def test_pixels_are_float32_in_the_unit_interval_and_use_all_of_it() -> None:
    data = load(None)
    for split in (data.train, data.validation):
        assert split.images.dtype == np.float32
        assert split.images.shape == (len(split), 784)
        assert split.images.min() == 0
        assert split.images.max() == 1
        assert split.labels.dtype == np.int64


def test_enlarging_keeps_a_uniform_image_uniform() -> None:
    for level in (0, 5, 16):
        images = np.full((1, 8, 8), level, dtype=np.uint8)
        np.testing.assert_array_equal(digits_split(images, np.zeros(1, dtype=np.uint8)).images, np.float32(level / 16))


def test_enlarging_is_bilinear_between_pixel_centres() -> None:
    """A ramp along one axis stays the same straight line, clipped at the outermost centres."""
    ramp = np.tile(2 * np.arange(8, dtype=np.uint8), (8, 1))
    images = np.stack([ramp, ramp.T])
    enlarged = digits_split(images, np.zeros(2, dtype=np.uint8)).images.reshape(2, 28, 28)
    centres = np.clip((np.arange(28) + 0.5) * 8 / 28 - 0.5, 0, 7)
    line = 2 * centres / 16
    np.testing.assert_allclose(enlarged[0], np.tile(line, (28, 1)), atol=1e-7)
    np.testing.assert_array_equal(enlarged[1], enlarged[0].T)


def test_the_checksum_depends_on_the_parts_that_are_used_only(monkeypatch: pytest.MonkeyPatch) -> None:
    images, labels = read_bundled_digits()
    (checksum,) = load(None).checksums.values()
    assert load(100).checksums == {"digits": checksum}
    for index, is_same in ((0, False), (1540, False), (1541, True)):
        changed = images.copy()
        changed[index, 4, 4] ^= 1
        monkeypatch.setattr("hpsearch.data.forms.digits.read_bundled_digits", lambda c=changed: (c, labels))
        assert (load(None).checksums == {"digits": checksum}) is is_same


def test_train_samples_keeps_the_first_images() -> None:
    whole, part = load(None), load(100)
    np.testing.assert_array_equal(part.train.images, whole.train.images[:100])
    np.testing.assert_array_equal(part.validation.images, whole.validation.images)
    with pytest.raises(InputError, match=r"must be in 1\.\.1285, got 1286"):
        load(1286)


def test_the_bundled_file_is_what_scikit_learn_loads() -> None:
    images, labels = read_bundled_digits()
    theirs, their_labels = load_digits(return_X_y=True)
    np.testing.assert_array_equal(images.reshape(-1, 64), theirs)
    np.testing.assert_array_equal(labels, their_labels)
    assert (images.dtype, labels.dtype) == (np.uint8, np.uint8)
