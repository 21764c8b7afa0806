"""Many rows in one statement: they are sent as one list per column, and `unnest` makes a table of them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any


def unnest(alias: str, columns: str) -> str:
    """Return the SQL of a table of rows that are sent as parameters, each named like its column.

    Args:
        columns: names and types, as in CREATE TABLE: "trial_id int, epoch int".
    """
    pairs = [column.split() for column in columns.split(", ")]
    lists = ", ".join(f"CAST(:{name} AS {kind}[])" for name, kind in pairs)
    return f"unnest({lists}) AS {alias}({', '.join(name for name, _ in pairs)})"


def as_columns(names: str, rows: Iterable[Sequence[Any]]) -> dict[str, list[Any]]:
    """Return the parameters of `unnest` for these rows.

    Args:
        names: of the values of a row, in order, separated by blanks.
    """
    listed = list(rows)
    return {name: [row[place] for row in listed] for place, name in enumerate(names.split())}
