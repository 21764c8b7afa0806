"""One column of a table in the form that preparation works on: numbers, or categories as numbers of their names."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from hpsearch.errors import DataError

MISSING: Final = -1  # the code of a missing category
LARGEST_NUMBER: Final = 1e30  # its square is far from the largest float64, and itself from the largest float32
NUM_SHOWN: Final = 5  # rows or values that an error names


class Kind(StrEnum):
    """What a feature's values are."""

    NUMBER = "number"
    BOOLEAN = "boolean"
    CATEGORY = "category"


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class NumberColumn:
    """Numbers or truth values.

    Args:
        values: [N] float64; NaN: missing. Truth values are 0 and 1.
        is_whole: the column has a type of whole numbers, or its numbers are all whole.
    """

    kind: Kind = Kind.NUMBER
    values: NDArray[np.float64] = field(repr=False)
    is_whole: bool = False

    def __len__(self) -> int:
        return len(self.values)

    @property
    def is_missing(self) -> NDArray[np.bool_]:
        return np.isnan(self.values)

    def rows(self, rows: NDArray[np.int64] | slice) -> NumberColumn:
        return NumberColumn(kind=self.kind, values=self.values[rows], is_whole=self.is_whole)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class CategoryColumn:
    """Text.

    Args:
        names: the distinct values, sorted.
        codes: [N] int32, places in `names`; MISSING: missing.
    """

    names: tuple[str, ...] = field(repr=False)
    codes: NDArray[np.int32] = field(repr=False)

    @property
    def kind(self) -> Kind:
        return Kind.CATEGORY

    def __len__(self) -> int:
        return len(self.codes)

    @property
    def is_missing(self) -> NDArray[np.bool_]:
        missing: NDArray[np.bool_] = self.codes == MISSING
        return missing

    def rows(self, rows: NDArray[np.int64] | slice) -> CategoryColumn:
        return CategoryColumn(names=self.names, codes=self.codes[rows])

    @classmethod
    def of(cls, values: NDArray[Any], is_missing: NDArray[np.bool_]) -> CategoryColumn:
        """Number the distinct texts of [N] objects; where `is_missing` the object does not matter."""
        known = values[~is_missing].astype(str)
        names, inverse = np.unique(known, return_inverse=True)
        codes = np.full(len(values), MISSING, dtype=np.int32)
        codes[~is_missing] = inverse
        return cls(names=tuple(names.tolist()), codes=codes)


Column = NumberColumn | CategoryColumn
Columns = Mapping[str, Column]


def refuse_infinite(
    column: NumberColumn,
    name: str,
    source: str,
    hint: str = "correct or remove these rows, or leave the column out: data.exclude",
) -> None:
    """Raise DataError if a number is infinite, or too large to be standardised."""
    infinite = np.abs(column.values) > LARGEST_NUMBER
    if infinite.any():
        what = "infinite values" if np.isinf(column.values).any() else f"values above {LARGEST_NUMBER:g}"
        raise DataError(
            f"{source}: column {name!r} has {what} in {listed_rows(infinite)}",
            hint=hint,
        )


def listed_rows(is_wrong: NDArray[np.bool_]) -> str:
    """`3 rows: 1, 5, 17`; rows are counted from 1, without a heading."""
    rows = np.flatnonzero(is_wrong)
    shown = ", ".join(str(row + 1) for row in rows[:NUM_SHOWN])
    more = f" and {len(rows) - NUM_SHOWN:,} more" if len(rows) > NUM_SHOWN else ""
    return f"{len(rows):,} row{'' if len(rows) == 1 else 's'}: {shown}{more}"
