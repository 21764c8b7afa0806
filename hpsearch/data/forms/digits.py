"""The digits data set: 1,797 handwritten digits that come with scikit-learn. Needs neither a network nor a file.

The images have 8x8 pixels and are enlarged to MNIST's 28x28. The parts are in file order, 5 : 1 : 1 as in MNIST: the
last seventh is the test part, and the last sixth of the rest is for validation.
"""

from __future__ import annotations

import hashlib
import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Self, final

import numpy as np
from numpy.typing import NDArray

from hpsearch.data.forms.form import DataForm, DataRequest, OpeningPermit
from hpsearch.data.splits import SelectionData, Split, selection_slices

DIGITS = "digits"
IMAGE_SHAPE = (28, 28)
NUM_CLASSES = 10
_FILE = "data/digits.csv.gz"  # in sklearn/datasets
_BUNDLED_SIZE = 8
_MAX_LEVEL = 16  # grey levels are 0..16
_TEST_SHARE = 7


@final
@dataclass(frozen=True, slots=True)
class BundledDigits(DataForm):
    """The digits that come with scikit-learn: 1,285 training, 256 validation and 256 test images.

    The checksums are the SHA-256 of the bundled grey levels, followed by the labels, one byte each: of training and
    validation images together, and of the test images.
    """

    @classmethod
    def named(cls) -> Mapping[str, Self]:
        return {DIGITS: cls()}

    def load_selection(self, request: DataRequest) -> SelectionData:
        images, labels = read_bundled_digits()
        num_selection = len(images) - len(images) // _TEST_SHARE
        images, labels = images[:num_selection], labels[:num_selection]
        train, validation = selection_slices(num_selection, request.settings.train_samples, source=DIGITS)
        return SelectionData(
            name=DIGITS,
            train=digits_split(images[train], labels[train]),
            validation=digits_split(images[validation], labels[validation]),
            example_shape=IMAGE_SHAPE,
            num_classes=NUM_CLASSES,
            checksums=_checksums(images, labels),
        )

    def read_test_part(self, permit: OpeningPermit, request: DataRequest) -> tuple[Split, dict[str, str]]:
        images, labels = read_bundled_digits()
        first = len(images) - len(images) // _TEST_SHARE
        return digits_split(images[first:], labels[first:]), _checksums(images[first:], labels[first:])


def _checksums(images: NDArray[np.uint8], labels: NDArray[np.uint8]) -> dict[str, str]:
    return {DIGITS: hashlib.sha256(images.tobytes() + labels.tobytes()).hexdigest()}


def read_bundled_digits() -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """All images [1797, 8, 8], grey levels 0..16, and labels [1797], in file order."""
    # The file that `sklearn.datasets.load_digits` reads: importing scikit-learn would take two seconds.
    package = importlib.util.find_spec("sklearn")
    assert package is not None, "a dependency"
    table = np.loadtxt(Path(package.origin or "").with_name("datasets") / _FILE, delimiter=",", dtype=np.uint8)
    return table[:, :-1].reshape(-1, _BUNDLED_SIZE, _BUNDLED_SIZE), table[:, -1]


def digits_split(images: NDArray[np.uint8], labels: NDArray[np.uint8]) -> Split:
    """Enlarge [N, 8, 8] to [N, 784] and scale to [0, 1].

    Uses bilinear interpolation between pixel centres (edges repeated), in integers up to the final division, so that
    the result is the same bit for bit on every machine.
    """
    weights = _interpolation_weights(_BUNDLED_SIZE, IMAGE_SHAPE[0])  # [28, 8], each row sums to 2 * 28
    enlarged = np.einsum("yr,nrc,xc->nyx", weights, images.astype(np.int64), weights, optimize=True)
    whole = _MAX_LEVEL * int(weights[0].sum()) ** 2
    pixels = (enlarged.reshape(len(images), -1) / whole).astype(np.float32)
    return Split(images=pixels, labels=labels.astype(np.int64))


def _interpolation_weights(source_size: int, target_size: int) -> NDArray[np.int64]:
    """Weights of the source pixels, [target_size, source_size], in units of 1 / (2 * target_size)."""
    # The centre of target pixel i is at (i + 1/2) * source/target - 1/2 source pixels. Multiplied by twice
    # `target_size` this is an integer.
    centres = (2 * np.arange(target_size) + 1) * source_size - target_size
    left, remainder = np.divmod(centres, 2 * target_size)
    weights = np.zeros((target_size, source_size), dtype=np.int64)
    rows = np.arange(target_size)
    np.add.at(weights, (rows, np.clip(left, 0, source_size - 1)), 2 * target_size - remainder)
    np.add.at(weights, (rows, np.clip(left + 1, 0, source_size - 1)), remainder)
    return weights
