"""The training and validation data of a study: images, labels, and the split between the two parts.

Every loader of `catalog` returns a `SelectionData`, from which `resident` starts. It never contains test images.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from hpsearch.data.classes import class_name
from hpsearch.data.example_shape import ExampleShape
from hpsearch.errors import DataError, InputError

LARGEST_LEVEL = 255  # of a uint8 image: white
# Names of checksums (`SelectionData.checksums`) that are not of examples, so that two data sets may share them.
SPLIT: Final = "split"  # of the row numbers of a split: depends on the number of rows and a seed
SOURCE_PREFIX: Final = "source "  # of a file with a user's loaders, followed by its name
_VALIDATION_SHARE = 6  # one image in six: 10,000 of MNIST's 60,000


@dataclass(frozen=True, kw_only=True, slots=True)
class Split:
    """Images with their labels.

    Args:
        images: [N, inputs], in row-major order: float32 as networks take them (pixels in [0, 1], 0 black, 1 white), or
            uint8 levels, which stand for level / 255. Read with `floats`, but to store or compare them.
        labels: [N] int64; or, in regression, the standardised target values, float32.
        groups: [N] int64, from 0: rows with the same number are not independent of each other (`data.group`); None:
            all rows are. Only of the parts that are evaluated.
    """

    images: NDArray[np.float32] | NDArray[np.uint8] = field(repr=False)
    labels: NDArray[Any] = field(repr=False)
    groups: NDArray[np.int64] | None = field(default=None, repr=False)

    def floats(self, rows: slice | NDArray[np.integer] = slice(None)) -> NDArray[np.float32]:
        """Some of the images, or all, as networks take them: [rows, inputs] float32.

        Images that are float32 already are not copied for a slice.
        """
        return as_floats(self.images[rows])

    def class_counts(self, num_classes: int) -> tuple[int, ...]:
        """The number of examples of each class; empty in regression (0 classes)."""
        return tuple(np.bincount(self.labels, minlength=num_classes).tolist()) if num_classes else ()

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True, kw_only=True, slots=True)
class SelectionData:
    """The training and validation parts of a data set: all data on which hyper-parameters may be selected.

    Args:
        name: name in the catalogue, or name of the folder or file.
        num_classes: 0 in regression.
        checksums: file name -> SHA-256 of its unpacked content, for the files that were read; and, for data whose split
            hpsearch draws, SHA-256 of the split and of the prepared arrays. All are part of a study's identity.
        class_names: names of the classes, in the order of their numbers; empty: the numbers are the names.
        record: how the data was split and prepared, a JSON document that is stored with the study; empty if there is
            nothing to tell.
    """

    name: str
    train: Split
    validation: Split
    example_shape: ExampleShape
    num_classes: int
    checksums: dict[str, str]
    class_names: tuple[str, ...] = ()
    record: Mapping[str, Any] = field(default_factory=dict)

    def class_name(self, label: int) -> str:
        """The name of a class; its number if it has no other name."""
        return class_name(label, self.class_names)

    @property
    def num_outputs(self) -> int:
        """The number of a network's outputs: one per class, a single one in regression."""
        return self.num_classes or 1

    @property
    def target_deviation(self) -> float:
        """The standard deviation by which the target was divided, in its own unit; 1 in classification."""
        return float(self.record.get("target", {}).get("deviation", 1.0))


def record_of_names(form: str, class_names: Sequence[str], example_shape: ExampleShape) -> dict[str, Any]:
    """`SelectionData.record` of published images, so that predictions and exports name the classes; empty: no names."""
    return {"form": form, "classes": list(class_names), "shape": list(example_shape)} if class_names else {}


def as_floats(images: NDArray[np.float32] | NDArray[np.uint8]) -> NDArray[np.float32]:
    """Images as networks take them: uint8 levels become level / 255, and others stay what they are.

    Source: docs/sources.md, section 1.
    """
    if images.dtype != np.uint8:
        return np.asarray(images, dtype=np.float32)
    pixels = images.astype(np.float32)
    pixels /= np.float32(LARGEST_LEVEL)  # in place: a second copy of MNIST would be 188 MB
    return pixels


def scaled_split(images: NDArray[np.uint8], labels: NDArray[np.uint8]) -> Split:
    """Grey levels [N, rows, columns] 0..255, each of which stands for level / 255, as [N, rows * columns] uint8."""
    return Split(images=images.reshape(len(images), -1), labels=labels.astype(np.int64))


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


def is_of_examples(checksum: str) -> bool:
    """Whether data sets with the same checksum of this name have the same examples."""
    return "labels" not in checksum and checksum != SPLIT and not checksum.startswith(SOURCE_PREFIX)
