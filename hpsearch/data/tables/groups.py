"""Groups of rows (data.group): the units of tests, and what parts with files of their own may not share.

The split keeps a group in one part only within one file.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

import numpy as np
from numpy.typing import NDArray

from hpsearch.data.tables.arrow_table import ArrowTable
from hpsearch.data.tables.columns import NUM_SHOWN, CategoryColumn, Column, listed_rows
from hpsearch.errors import DataError, InputError

MOST_UNITS: Final = 10_000  # a trial keeps one number for each


def group_column(table: ArrowTable, group: str) -> Column:
    """The column of the groups.

    Raises:
        InputError: there is no such column.
        DataError: a value is missing.
    """
    table.require([group], "data.group", InputError)
    column = table.column(group)
    if column.is_missing.any():
        raise DataError(
            f"{table.source}: the group {group!r} is missing in {listed_rows(column.is_missing)}",
            hint="give each row a value, or leave data.group out",
        )
    return column


def units_of(table: ArrowTable, group: str, rows: NDArray[np.int64] | None = None) -> NDArray[np.int64]:
    """The number of each row's group, from 0, as `Split.groups`.

    More than `MOST_UNITS` groups share numbers: what is made of whole groups is as independent as they are.

    Args:
        rows: those that are numbered; None: all.
    Raises:
        InputError, DataError: as `group_column`.
    """
    column = group_column(table, group)
    values = column.codes if isinstance(column, CategoryColumn) else column.values
    numbers = np.unique(values if rows is None else values[rows], return_inverse=True)[1]
    return numbers.astype(np.int64) % MOST_UNITS


def refuse_shared_groups(group: str, table: ArrowTable, others: Iterable[ArrowTable]) -> None:
    """Raise DataError if a group of the table has rows in one of the other tables, too; or as `group_column`."""
    own = _names(group_column(table, group))
    for other in others:
        shared = sorted(own & _names(group_column(other, group)))
        if shared:
            shown = ", ".join(map(repr, shared[:NUM_SHOWN]))
            more = f" and {len(shared) - NUM_SHOWN:,} more" if len(shared) > NUM_SHOWN else ""
            raise DataError(
                f"{table.source}: {len(shared):,} of its values of {group!r} (data.group) "
                f"{'is' if len(shared) == 1 else 'are'} in {other.source}, too: {shown}{more}",
                hint="move all rows of a group into one file",
            )


def _names(column: Column) -> set[str]:
    """The distinct values as text: a file may have numbers where another one has text, too."""
    if isinstance(column, CategoryColumn):
        return {column.names[code] for code in np.unique(column.codes).tolist()}
    values: NDArray[np.float64] = np.unique(column.values)
    return {str(int(value)) if value.is_integer() else str(value) for value in values.tolist()}
