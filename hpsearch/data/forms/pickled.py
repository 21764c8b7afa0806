"""mnist.pkl.gz: a gzipped pickle of three (images, labels) pairs: train, valid, test.

One file has all three pairs, so reading the first two also loads the test pair into memory. It stays a record of
undecoded bytes (`restricted_pickle`) and is dropped; its arrays are built only when the test part is read.
Source: docs/sources.md, section 1.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self, final

import numpy as np
from numpy.typing import NDArray

from hpsearch.data.classes import check_label_range, count_classes
from hpsearch.data.files.data_file import DOWNLOAD_AGAIN, DataFile, read_data_file
from hpsearch.data.files.published import refuse_test_images
from hpsearch.data.files.restricted_pickle import ArrayRecord, RefusedPickleError, unpickle_arrays
from hpsearch.data.forms.form import DataForm, DataRequest, OpeningPermit
from hpsearch.data.splits import SelectionData, Split, limit_train_samples
from hpsearch.errors import DataError

IMAGE_SHAPE = (28, 28)
NUM_CLASSES = 10
_NUM_PIXELS = IMAGE_SHAPE[0] * IMAGE_SHAPE[1]

Pair = tuple[ArrayRecord, ArrayRecord]


@final
@dataclass(frozen=True, slots=True)
class PickledFile(DataForm):
    """An mnist.pkl.gz file, or its unpacked form."""

    path_description = "the path of an mnist.pkl.gz"
    endings = (".pkl.gz", ".pkl")

    path: Path

    @classmethod
    def at(cls, path: Path) -> Self | None:
        return cls(path) if path.name.endswith(cls.endings) else None

    def load_selection(self, request: DataRequest) -> SelectionData:
        """Read the training and validation pairs; the test pair is dropped without decoding it."""
        file = read_data_file(self.path)
        train_pair, validation_pair, _ = _read_pairs(file)
        train = _build_split(train_pair, f"{file.source}, train")
        validation = _build_split(validation_pair, f"{file.source}, valid")
        for split, part in ((train, "train"), (validation, "valid")):
            refuse_test_images(split.images, f"{file.source}, {part}")
        num_train = limit_train_samples(len(train), request.settings.train_samples)
        return SelectionData(
            name=self.path.name,
            train=Split(images=train.images[:num_train], labels=train.labels[:num_train]),
            validation=validation,
            example_shape=IMAGE_SHAPE,
            num_classes=count_classes(train.labels, validation.labels, file.source),
            checksums=self._checksums(file),
        )

    def read_test_part(self, permit: OpeningPermit, request: DataRequest) -> tuple[Split, dict[str, str]]:
        file = read_data_file(self.path)
        return _build_split(_read_pairs(file)[2], f"{file.source}, test"), self._checksums(file)

    def _checksums(self, file: DataFile) -> dict[str, str]:
        return {self.path.name.removesuffix(".gz"): file.sha256}


def _read_pairs(file: DataFile) -> tuple[Pair, Pair, Pair]:
    """Unpickle three pairs of array records: train, valid, test. No array is built.

    Raises:
        DataError: the pickle is damaged, contains anything but arrays, or does not have three pairs.
    """
    try:
        parts = unpickle_arrays(file.content)
    except RefusedPickleError as error:
        raise DataError(
            f"{file.source}: refused to unpickle {error}; none of its code was run",
            hint="only numpy arrays are admitted: get the file from a source that you trust",
        ) from error
    if not (isinstance(parts, tuple | list) and len(parts) == 3 and all(_is_pair(part) for part in parts)):
        raise DataError(
            f"{file.source}: expected three (images, labels) pairs of arrays: train, valid, test", hint=DOWNLOAD_AGAIN
        )
    train, validation, test = ((images, labels) for images, labels in parts)
    return train, validation, test


def _build_split(pair: Pair, source: str) -> Split:
    """Build and check the arrays of one pair: images [N, 784] in [0, 1], labels [N] in 0..9.

    Args:
        source: name of the pair in error messages.
    Raises:
        DataError: shapes, types or values are wrong.
    """
    try:
        images, labels = pair[0].build(), pair[1].build()
    except RefusedPickleError as error:
        raise DataError(f"{source}: refused {error}", hint=DOWNLOAD_AGAIN) from error
    _check_images(images, source)
    _check_labels(labels, len(images), source)
    return Split(images=images.astype(np.float32), labels=labels.astype(np.int64))


def _check_images(images: NDArray[Any], source: str) -> None:
    if images.dtype.kind != "f" or images.ndim != 2 or images.shape[1] != _NUM_PIXELS:
        raise DataError(
            f"{source}: expected images of shape [N, {_NUM_PIXELS}] and a float type, "
            f"found {list(images.shape)} of {images.dtype}",
            hint=DOWNLOAD_AGAIN,
        )
    lowest, highest = images.min(), images.max()
    if not (lowest >= 0 and highest <= 1):  # also false for NaN
        raise DataError(
            f"{source}: expected pixels in [0, 1], found {lowest} .. {highest}",
            hint="divide grey levels by 255 before they are pickled",
        )


def _check_labels(labels: NDArray[Any], num_images: int, source: str) -> None:
    if labels.dtype.kind not in "iu" or labels.ndim != 1:
        raise DataError(
            f"{source}: expected labels of shape [N] and an integer type, found {list(labels.shape)} of {labels.dtype}",
            hint=DOWNLOAD_AGAIN,
        )
    if len(labels) != num_images:
        raise DataError(f"{source}: {num_images} images, but {len(labels)} labels", hint=DOWNLOAD_AGAIN)
    check_label_range(labels, source, NUM_CLASSES)


def _is_pair(value: object) -> bool:
    return (
        isinstance(value, tuple | list) and len(value) == 2 and all(isinstance(array, ArrayRecord) for array in value)
    )
