"""Rows in memory become the same columns as rows of a file; what is missing or of a wrong kind is named."""

from __future__ import annotations

from collections.abc import Callable
from decimal import Decimal
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from hpsearch.data.tables.columns import CategoryColumn, Kind, NumberColumn
from hpsearch.data.tables.frame import columns_of
from hpsearch.errors import InputError

KINDS = {"age": Kind.NUMBER, "city": Kind.CATEGORY, "member": Kind.BOOLEAN}
ROWS: dict[str, list[Any]] = {
    "extra": [0, 0, 0],
    "member": [True, None, False],
    "city": ["Bonn", None, "Aachen"],
    "age": [30.5, None, 7],
}


@pytest.mark.parametrize(
    "make",
    [
        dict,
        lambda rows: [dict(zip(rows, values, strict=True)) for values in zip(*rows.values(), strict=True)],
        pd.DataFrame,
        lambda rows: pd.DataFrame(rows).convert_dtypes(),
        lambda rows: pd.DataFrame({**rows, "city": pd.Categorical(rows["city"])}),
        pa.table,
        lambda rows: pa.table({**rows, "city": pa.array(rows["city"]).dictionary_encode()}),
    ],
    ids=["dict", "list of dicts", "pandas", "pandas with NA", "pandas categories", "pyarrow", "pyarrow dictionary"],
)
def test_all_tables_give_the_same_columns(make: Callable[[dict[str, list[Any]]], Any]) -> None:
    columns = columns_of(make(ROWS), KINDS)
    assert list(columns) == list(KINDS)
    age, city, member = columns["age"], columns["city"], columns["member"]
    assert isinstance(age, NumberColumn)
    assert isinstance(city, CategoryColumn)
    assert isinstance(member, NumberColumn)
    np.testing.assert_array_equal(age.values, [30.5, np.nan, 7])
    np.testing.assert_array_equal(member.values, [1, np.nan, 0])
    assert [None if code < 0 else city.names[code] for code in city.codes] == ROWS["city"]


def test_arrays_and_other_numbers_are_taken() -> None:
    columns = columns_of({"age": np.array([1, 2], dtype=np.int8)}, {"age": Kind.NUMBER})
    np.testing.assert_array_equal(columns["age"].values, [1, 2])
    columns = columns_of({"age": [Decimal("1.5"), np.float32(2)]}, {"age": Kind.NUMBER})
    np.testing.assert_array_equal(columns["age"].values, [1.5, 2])


def test_whole_numbers_are_names_of_categories_that_look_like_them() -> None:
    city = columns_of({"city": [3, 4.0, "x"]}, {"city": Kind.CATEGORY})["city"]
    assert isinstance(city, CategoryColumn)
    assert [city.names[code] for code in city.codes] == ["3", "4", "x"]


@pytest.mark.parametrize(
    ("frame", "message"),
    [
        ({"age": [1]}, r"the table has no column 'city', 'member'"),
        (pd.DataFrame({"age": [1]}), r"the table has no column 'city', 'member'"),
        (pa.table({"age": [1]}), r"the table has no column 'city', 'member'"),
        ([{**dict.fromkeys(KINDS)}, {"age": 1, "city": "x"}], r"row 2 has no column 'member'"),
        ({**ROWS, "age": [1, "old", "young"]}, r"'age' must hold numbers, as in training, got 'old' \(2 rows: 2, 3\)"),
        ({**ROWS, "city": [1.5, "a", None]}, r"'city' must hold text, as in training, got 1.5 \(1 row: 1\)"),
        ({**ROWS, "city": [True, "a", None]}, r"'city' must hold text, as in training, got True"),
        ({**ROWS, "member": [0, 1, 2]}, r"'member' must hold truth values, as in training, got 2 \(1 row: 3\)"),
        ({**ROWS, "age": [1.0, float("inf"), 2.0]}, r"'age' has infinite values in 1 row: 2"),
        ({**ROWS, "age": [1.0]}, r"columns of different lengths: age 1, city 3, member 3"),
        ({**ROWS, "age": np.ones((3, 1))}, r"column 'age' has 2 dimensions"),
        (np.ones((3, 3)), r"must be a table, got ndarray"),
        ([1, 2], r"must be a table, got list"),
    ],
)
def test_what_does_not_fit_is_named(frame: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        columns_of(frame, KINDS)


def test_dates_are_no_numbers() -> None:
    with pytest.raises(InputError, match="'age' must hold numbers"):
        columns_of(pd.DataFrame({"age": pd.to_datetime(["2026-01-01"])}), {"age": Kind.NUMBER})


@pytest.mark.parametrize("make", [dict, pd.DataFrame])
def test_columns_that_are_numbered_are_found_by_their_text(make: Callable[[Any], Any]) -> None:
    column = columns_of(make({0: [1.0], 1: [2.0]}), {"1": Kind.NUMBER})["1"]
    assert isinstance(column, NumberColumn)
    np.testing.assert_array_equal(column.values, [2.0])


def test_no_rows_are_no_error() -> None:
    assert [len(column) for column in columns_of(pd.DataFrame(columns=list(KINDS)), KINDS).values()] == [0, 0, 0]
