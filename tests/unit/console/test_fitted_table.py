"""Tables of a terminal: values are never cut, whatever its width."""

from __future__ import annotations

import io

import pytest
from rich.console import Console, Group
from rich.live import Live

from hpsearch.console.fitted_table import FittedTable
from hpsearch.results.view_tables import Column, ViewTable

COLUMNS = [
    Column("trial", ["0", "1"], leaves=2),
    Column("validation error", ["10.94 %", "8.59 %"]),
    Column("learning_rate", ["0.0003162", "[red]"]),
    Column("ended", ["max-epochs", "no-improvement"], is_text=True, leaves=1),
]


def shown(columns: list[Column], width: int, *, is_terminal: bool = True) -> str:
    console = Console(file=io.StringIO(), width=width, force_terminal=is_terminal, color_system=None)
    console.print(Group(FittedTable(ViewTable(columns=columns, best_row=0))), crop=False)
    return str(console.file.getvalue())  # type: ignore[attr-defined]


@pytest.mark.parametrize("is_terminal", [True, False])
def test_with_room_every_column_is_there_under_an_unfolded_heading(is_terminal: bool) -> None:
    text = shown(COLUMNS, 80, is_terminal=is_terminal)
    assert "trial   validation error   learning_rate   ended" in text
    assert "no space" not in text


def test_headings_are_folded_before_a_column_is_left_out() -> None:
    text = shown(COLUMNS, 56)
    assert "validation error" not in text
    assert all(part in text for part in ("validation", "error", "no-improvement", "0.0003162", "[red]"))
    assert "no space" not in text


def test_columns_leave_in_their_order_and_are_named() -> None:
    assert shown(COLUMNS, 40).endswith("no space for: ended\n")
    text = shown(COLUMNS, 30)
    assert " ".join(text.split()).endswith("no space for: trial, ended")
    assert all(part in text for part in ("10.94 %", "8.59 %", "learning_rate", "0.0003162", "[red]"))


def test_what_cannot_leave_is_folded_rather_than_cut() -> None:
    folded = shown(COLUMNS, 12)
    assert max(map(len, folded.splitlines())) == 12
    assert "0.0003162" in folded.replace("\n", "")
    assert "…" not in folded


def test_a_live_view_cuts_nothing_either() -> None:
    console = Console(file=io.StringIO(), width=20, force_terminal=True, color_system=None)
    with Live(FittedTable(ViewTable(columns=COLUMNS[1:3])), console=console, auto_refresh=False):
        pass
    assert "0.0003162" in str(console.file.getvalue()).replace("\n", "")  # type: ignore[attr-defined]


def test_into_a_pipe_goes_everything_however_wide() -> None:
    many = [Column(f"parameter_{number}", ["0.0003162"], leaves=number) for number in range(1, 31)]
    header = shown(many, 160, is_terminal=False).splitlines()[1]
    assert header.split() == [column.heading for column in many]


def test_a_table_without_rows_has_its_headings() -> None:
    empty = [Column("study", []), Column("points", [])]
    assert "study   points" in shown(empty, 80)
