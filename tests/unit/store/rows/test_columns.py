"""Rows as parameters of one statement."""

from __future__ import annotations

from hpsearch.store.rows.columns import as_columns, unnest


def test_rows_are_sent_as_one_list_per_column() -> None:
    assert as_columns("trial_id key", [(1, "a"), (2, "b")]) == {"trial_id": [1, 2], "key": ["a", "b"]}


def test_without_rows_every_column_is_empty() -> None:
    assert as_columns("trial_id key", []) == {"trial_id": [], "key": []}


def test_the_table_has_the_columns_that_are_sent() -> None:
    table = unnest("r", "trial_id int, key text")
    assert table == "unnest(CAST(:trial_id AS int[]), CAST(:key AS text[])) AS r(trial_id, key)"
