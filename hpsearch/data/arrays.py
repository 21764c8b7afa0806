"""The rules for a user's own arrays of examples and targets, from whatever form of data they come.

x uint8, or whole numbers in 0..255      images of levels: [N, rows, columns], [N, rows, columns, 1 or 3] or
                                         [N, 1 or 3, rows, columns]
x truth values of these shapes           images in black and white, kept as the levels 0 and 255
x float of these shapes                  images in [0, 1]
x any number [N, features]               rows of a table, used as they are
y whole numbers or truth values [N, 1?]  classes from 0
y float [N] or [N, 1]                    targets of a regression
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from hpsearch.data.example_shape import ExampleShape
from hpsearch.data.splits import LARGEST_LEVEL
from hpsearch.errors import DataError

PARTS: Final = ("train", "validation", "test")
NAMES: Final = tuple(f"{letter}_{part}" for part in PARTS for letter in "xy")  # those of Keras
_CHANNELS: Final = (1, 3)
_SHAPES: Final = "[N, rows, columns], [N, rows, columns, 1 or 3], [N, 1 or 3, rows, columns] or [N, features]"

Inputs = NDArray[np.uint8] | NDArray[np.float32]
Labels = NDArray[np.int64] | NDArray[np.float32]


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Examples:
    """Checked arrays.

    Args:
        images: [N, inputs]: uint8 levels of images, or float32: images in [0, 1], or rows of a table; colour images
            channel by channel.
        labels: [N]: int64 whole numbers, or float32 targets.
    """

    images: Inputs = field(repr=False)
    labels: Labels = field(repr=False)
    example_shape: ExampleShape

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def has_whole_labels(self) -> bool:
        return self.labels.dtype.kind == "i"


def examples_of(x: object, y: object, source: str, part: str) -> Examples:
    """Check the arrays of a part, and bring them into the form of `Examples`.

    Args:
        x, y: arrays as above, or what numpy can make arrays of (lists, tensors on the CPU).
        source: name of the data in error messages, where the arrays are x_PART and y_PART.
        part: one of `PARTS`.
    Raises:
        DataError: a shape, a type or a value is not as above, or the lengths differ.
    """
    x_name, y_name = (f"{source}, {letter}_{part}" for letter in "xy")
    images, shape = _images_of(_array(x, x_name), x_name)
    labels = _labels_of(_array(y, y_name), y_name)
    if len(images) != len(labels):
        raise DataError(
            f"{x_name} has {len(images):,} examples, but y_{part} has {len(labels):,} targets",
            hint="the first axis of both counts the examples",
        )
    return Examples(images=images, labels=labels, example_shape=shape)


def _array(value: object, name: str) -> NDArray[Any]:
    try:
        array = np.asarray(value)
    except Exception as error:  # ragged lists, tensors on a GPU, or whatever an object's own conversion raises
        raise DataError(f"{name} is no array: {str(error)[:80]}", hint="it must be an array of numbers") from error
    if array.dtype.kind not in "buif":
        raise DataError(
            f"{name} has the type {array.dtype}, expected numbers",
            hint="arrays hold numbers, not text or objects; number classes by np.unique(y, return_inverse=True)[1]",
        )
    if array.ndim == 0 or array.size == 0:
        raise DataError(f"{name} is empty: shape {list(array.shape)}", hint="there is nothing to train on")
    return array


def _images_of(array: NDArray[Any], name: str) -> tuple[Inputs, ExampleShape]:
    """[N, inputs], and the shape of one example."""
    if array.ndim == 2:
        return _finite(array, name), (array.shape[1],)
    if array.ndim not in (3, 4):
        raise DataError(f"{name} has the shape {list(array.shape)}", hint=f"expected {_SHAPES}")
    images = _channels_first(array, name)
    shape: ExampleShape = images.shape[-2:] if images.ndim == 3 or images.shape[1] == 1 else images.shape[1:]
    # Pixels are converted after the channels were moved: most conversions copy anyway.
    return _levels_or_floats(np.ascontiguousarray(images).reshape(len(images), -1), name), shape


def _channels_first(images: NDArray[Any], name: str) -> NDArray[Any]:
    """[N, rows, columns], or [N, channels, rows, columns]."""
    if images.ndim == 3:
        return images
    is_first, is_last = images.shape[1] in _CHANNELS, images.shape[3] in _CHANNELS
    if is_first == is_last:
        why = "either axis may be the channels" if is_first else "no axis has 1 or 3 channels"
        raise DataError(
            f"{name} has the shape {list(images.shape)}: {why}",
            hint="give grey images as [N, rows, columns], others as [N, rows, columns, 3] or [N, 3, rows, columns]",
        )
    return images if is_first else np.moveaxis(images, 3, 1)


def _levels_or_floats(pixels: NDArray[Any], name: str) -> Inputs:
    """[N, inputs]: uint8 levels, or float32 in [0, 1]."""
    if pixels.dtype == np.uint8:
        return pixels
    if pixels.dtype == np.bool_:
        return pixels.astype(np.uint8) * np.uint8(LARGEST_LEVEL)
    if pixels.dtype.kind == "f":
        floats = _finite(pixels, name)
        lowest, highest = floats.min(), floats.max()
        if lowest < 0 or highest > 1:
            raise DataError(
                f"{name}: expected pixels in [0, 1], found {lowest:g} .. {highest:g}",
                hint="give levels 0..255 as uint8, or divide them by 255",
            )
        return floats
    lowest, highest = pixels.min(), pixels.max()
    if lowest < 0 or highest > LARGEST_LEVEL:
        raise DataError(
            f"{name}: expected levels in 0..{LARGEST_LEVEL}, found {lowest} .. {highest}",
            hint="give floats in [0, 1] instead",
        )
    return pixels.astype(np.uint8)


def _labels_of(array: NDArray[Any], name: str) -> Labels:
    if array.ndim == 2 and array.shape[1] == 1:
        array = array[:, 0]
    if array.ndim != 1:
        raise DataError(
            f"{name} has the shape {list(array.shape)}, expected [N]",
            hint="for one-hot rows write y.argmax(axis=1)" if array.ndim == 2 else "one number per example",
        )
    if array.dtype.kind == "f":
        return _finite(array, name)
    if array.dtype.kind == "u" and array.max() >= 2**63:
        raise DataError(f"{name}: {array.max()} is no class: it has more than 63 bits", hint="number classes from 0")
    return array.astype(np.int64)


def _finite(array: NDArray[Any], name: str) -> NDArray[np.float32]:
    """As float32. Raises DataError if a value is missing, infinite or beyond float32."""
    with np.errstate(over="ignore"):
        values = np.ascontiguousarray(array, dtype=np.float32)
    wrong = ~np.isfinite(values)
    if wrong.any():
        place = tuple(int(axis[0]) for axis in np.nonzero(wrong))
        num_rows = int(wrong.reshape(len(wrong), -1).any(axis=1).sum())
        raise DataError(
            f"{name}: {int(wrong.sum()):,} values in {num_rows:,} rows are NaN, infinite or beyond 3e38; the first is "
            f"{array[place]} at {list(place)}",
            hint="fill in missing values, or leave these rows out",
        )
    return values
