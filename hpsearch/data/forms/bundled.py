"""Data sets that come with scikit-learn, read from its files without importing it: small tables, and digits of 8x8.

Their names begin with "sklearn:". Parts are drawn as for any table; `sklearn:digits` are the images of `digits` before
they are enlarged, split in another way.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self, final

import numpy as np
from numpy.typing import NDArray

from hpsearch.data.forms.digits import read_bundled_digits
from hpsearch.data.forms.form import SPLIT_KEYS, DataForm, DataRequest, OpeningPermit
from hpsearch.data.forms.table_file import TABLE_KEYS, TableForm
from hpsearch.data.split_rows import SplitRows, draw_split
from hpsearch.data.splits import SelectionData, Split, limit_train_samples
from hpsearch.data.tables.bundled_files import BUNDLED
from hpsearch.errors import DataError, InputError
from hpsearch.study.settings import DataSettings

PREFIX = "sklearn:"
_MAX_LEVEL = 16  # grey levels of the digits are 0..16
_SIDE = 8


@final
@dataclass(frozen=True, slots=True)
class BundledTable(TableForm):
    """A table of scikit-learn: breast_cancer, wine, iris or diabetes. Its target is known."""

    keys = TABLE_KEYS

    name: str

    @classmethod
    def named(cls) -> Mapping[str, Self]:
        return {f"{PREFIX}{name}": cls(name) for name in BUNDLED}

    def _parts(self, settings: DataSettings) -> Any:
        from hpsearch.data.tables.source import TableParts

        _refuse_files(settings)
        bundled = BUNDLED[self.name]
        return TableParts(
            name=f"{PREFIX}{self.name}", main=bundled.paths, root=bundled.paths[0].parent, read=bundled.read
        )


@final
@dataclass(frozen=True, slots=True)
class SmallDigits(DataForm):
    """The 1,797 digits of scikit-learn in their own 8x8 pixels."""

    keys = SPLIT_KEYS

    @classmethod
    def named(cls) -> Mapping[str, Self]:
        return {f"{PREFIX}digits": cls()}

    def load_selection(self, request: DataRequest) -> SelectionData:
        images, labels = read_bundled_digits()
        rows = _drawn(request, labels)
        selection = np.concatenate([rows.train, rows.validation])
        num_train = limit_train_samples(len(rows.train), request.settings.train_samples)
        return SelectionData(
            name=f"{PREFIX}digits",
            train=_digits(images, labels, rows.train[:num_train]),
            validation=_digits(images, labels, rows.validation),
            example_shape=(_SIDE, _SIDE),
            num_classes=10,
            checksums={f"{PREFIX}digits": _sha256(images, labels, selection)},
            record={"form": "bundled digits", "split": rows.as_json(), "has_test": len(rows.test) > 0},
        )

    def read_test_part(self, permit: OpeningPermit, request: DataRequest) -> tuple[Split, dict[str, str]]:
        images, labels = read_bundled_digits()
        rows = _drawn(request, labels).test
        if not len(rows):
            raise DataError("the study has no test images (data.test = 0)", hint="there is nothing to test on")
        return _digits(images, labels, rows), {f"{PREFIX}digits": _sha256(images, labels, rows)}


def _drawn(request: DataRequest, labels: NDArray[np.uint8]) -> SplitRows:
    settings, source = request.settings, f"{PREFIX}digits"
    _refuse_files(settings)
    assert not isinstance(settings.validation, str)
    assert not isinstance(settings.test, str)
    rows = draw_split(
        len(labels),
        validation=settings.validation,
        test=settings.test,
        seed=settings.split_seed,
        source=source,
        classes=labels.astype(np.int64),
    )
    if request.stored is not None and rows.sha256 != request.stored["split"]["sha256"]:
        raise DataError(f"{source}: the split cannot be drawn again", hint="use the versions that created the study")
    return rows


def _digits(images: NDArray[np.uint8], labels: NDArray[np.uint8], rows: NDArray[np.int64]) -> Split:
    pixels = images[rows].reshape(len(rows), -1).astype(np.float32) / np.float32(_MAX_LEVEL)
    return Split(images=pixels, labels=labels[rows].astype(np.int64))


def _sha256(images: NDArray[np.uint8], labels: NDArray[np.uint8], rows: NDArray[np.int64]) -> str:
    """SHA-256 of the grey levels, followed by the labels, in the order of the rows."""
    return hashlib.sha256(images[rows].tobytes() + labels[rows].tobytes()).hexdigest()


def _refuse_files(settings: DataSettings) -> None:
    for part in ("validation", "test"):
        if isinstance(value := getattr(settings, part), str):
            raise InputError(f"data.{part}: expected a fraction or a number of rows, got {value!r}")
