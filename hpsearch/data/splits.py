"""The training and validation data of a study: images, labels, and the split between the two parts.

Every loader of `catalog` returns a `SelectionData`, from which `resident` starts. It never contains test images.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from hpsearch.errors import DataError, InputError

_VALIDATION_SHARE = 6  # one image in six: 10,000 of MNIST's 60,000


@dataclass(frozen=True, kw_only=True, slots=True)
class Split:
    """Images with their labels.

    Args:
        images: [N, pixels] float32 in [0, 1] (0 black, 1 white), in row-major order.
        labels: [N] int64.
    """

    images: NDArray[np.float32] = field(repr=False)
    labels: NDArray[np.int64] = field(repr=False)

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True, kw_only=True, slots=True)
class SelectionData:
    """The training and validation parts of a data set: all data on which hyper-parameters may be selected.

    Args:
        name: name in the catalogue, or name of the folder or file.
        image_shape: (rows, columns); their product is the number of pixels.
        checksums: file name -> SHA-256 of its unpacked content, for the files that were read.
    """

    name: str
    train: Split
    validation: Split
    image_shape: tuple[int, int]
    num_classes: int
    checksums: dict[str, str]


def scaled_split(images: NDArray[np.uint8], labels: NDArray[np.uint8]) -> Split:
    """Convert grey levels [N, rows, columns] 0..255 to [N, rows * columns] float32 = level / 255.

    Source: docs/sources.md, section 1.
    """
    pixels = images.reshape(len(images), -1).astype(np.float32)
    pixels /= np.float32(255)  # in place: a second copy of MNIST would be 188 MB
    return Split(images=pixels, labels=labels.astype(np.int64))


def selection_slices(num_images: int, train_samples: int | None, *, source: str) -> tuple[slice, slice]:
    """The slices of training and validation images, in file order: the last sixth is for validation.

    MNIST's 60,000 images give 50,000 and 10,000. Source: docs/sources.md, section 1.

    Args:
        train_samples: number of training images to keep, from the first; None keeps all.
        source: name of the data in error messages.
    Raises:
        DataError: too few images for two parts.
        InputError: `train_samples` exceeds the number of training images, or is below 1.
    """
    num_validation = num_images // _VALIDATION_SHARE
    if num_validation == 0:
        raise DataError(
            f"{source}: {num_images} training images are too few, expected at least {_VALIDATION_SHARE}",
            hint="the last sixth is set aside for validation",
        )
    num_train = num_images - num_validation
    return slice(0, limit_train_samples(num_train, train_samples)), slice(num_train, num_images)


def limit_train_samples(num_available: int, train_samples: int | None) -> int:
    """The number of training images to use.

    Raises:
        InputError: `train_samples` exceeds the available number, or is below 1.
    """
    if train_samples is None:
        return num_available
    if not 1 <= train_samples <= num_available:
        raise InputError(
            f"data.train_samples must be in 1..{num_available}, got {train_samples}",
            hint="leave train_samples out to train on all images",
        )
    return train_samples
