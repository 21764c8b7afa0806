"""A table that never truncates a value: on a narrow terminal it folds headings, then omits columns and lists them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from rich import box
from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderResult
from rich.measure import Measurement
from rich.segment import Segment
from rich.table import Table
from rich.text import Text

from hpsearch.results.view_tables import Column, ViewTable
from hpsearch.safe_text import for_terminal

_NO_LIMIT = 100_000  # characters


class FittedTable:
    """A table with as many columns as the terminal has room for; with all columns in a pipe or a file.

    If the columns that are never omitted do not fit, their lines are folded, as a terminal folds long lines. Print the
    table with `crop=False`, for output to a pipe.
    """

    def __init__(self, table: ViewTable) -> None:
        self._columns = [
            replace(column, heading=_in_one_line(column.heading), cells=tuple(map(_in_one_line, column.cells)))
            for column in table.columns
            if not column.is_detail
        ]
        self._best_row = table.best_row

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        room = options.max_width if console.is_terminal else _NO_LIMIT
        for shown, is_folded in self._from_best_to_least():
            table = self._table(shown, is_folded=is_folded)
            width = Measurement.get(console, options.update(max_width=_NO_LIMIT), table).maximum
            if width <= room:
                break
        for line in console.render_lines(table, options.update(max_width=width)):
            for part in Segment.divide(line, [*range(room, width, room), width]):
                yield from (*part, Segment.line())
        left_out = [column.heading for column in self._columns if column not in shown]
        if left_out:
            yield Text(f"no space for: {', '.join(left_out)}")

    def _from_best_to_least(self) -> Iterator[tuple[list[Column], bool]]:
        """The sets of columns to try in order, each with whether its headings are folded."""
        shown = list(self._columns)
        yield shown, False
        yield shown, True
        leaving = [column for column in self._columns if column.leaves is not None]
        for column in sorted(leaving, key=lambda column: column.leaves or 0):
            shown = [other for other in shown if other is not column]
            yield shown, True

    def _table(self, columns: Sequence[Column], *, is_folded: bool) -> Table:
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=is_folded)
        for column in columns:
            parts = column.heading.split(" ") if is_folded else [column.heading]
            width = max(map(cell_len, [*parts, *column.cells]))
            table.add_column(Text(column.heading), justify="left" if column.is_text else "right", width=width)
        for row, cells in enumerate(zip(*(column.cells for column in columns), strict=True)):
            table.add_row(*map(Text, cells), style="bold" if row == self._best_row else None)
        return table


def _in_one_line(cell: str) -> str:
    return for_terminal(cell).replace("\n", "\\n").replace("\t", "\\t")
