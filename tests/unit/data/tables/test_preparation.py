"""A preparation is fitted on training rows, stored as JSON, and gives the same inputs when it is read back."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.preprocessing import OneHotEncoder, StandardScaler

from hpsearch.data.tables.columns import MISSING, CategoryColumn, Kind, NumberColumn
from hpsearch.data.tables.fitting import FEWEST_ROWS, fit_preparation
from hpsearch.data.tables.preparation import Preparation
from hpsearch.errors import StorageError


def numbers(*values: float | None, kind: Kind = Kind.NUMBER) -> NumberColumn:
    return NumberColumn(kind=kind, values=np.array([np.nan if v is None else v for v in values], dtype=np.float64))


def texts(*values: str | None) -> CategoryColumn:
    return CategoryColumn.of(
        np.array([v or "" for v in values], dtype=object), np.array([v is None for v in values], dtype=bool)
    )


def test_numbers_are_standardised_as_by_scikit_learn() -> None:
    values = np.random.default_rng(0).normal(50, 7, 100)
    inputs = fit_preparation({"x": numbers(*values)}).apply({"x": numbers(*values)})
    np.testing.assert_allclose(inputs, StandardScaler().fit_transform(values[:, None]), rtol=1e-6, atol=1e-6)


def test_a_missing_number_is_the_median_of_training_and_has_an_indicator() -> None:
    preparation = fit_preparation({"x": numbers(1, 2, None, 9)})
    assert preparation.inputs == ("x", "x is missing")
    inputs = preparation.apply({"x": numbers(None, 2, 9)})
    np.testing.assert_array_equal(inputs[:, 1], [1, 0, 0])
    assert inputs[0, 0] == inputs[1, 0]


def test_without_missing_values_in_training_there_is_no_indicator_but_still_a_value() -> None:
    preparation = fit_preparation({"x": numbers(1, 2, 9)})
    assert preparation.inputs == ("x",)
    inputs = preparation.apply({"x": numbers(None, 2)})
    assert inputs[0, 0] == inputs[1, 0]


def test_truth_values_are_0_and_1_and_the_more_frequent_one_where_they_are_missing() -> None:
    column = numbers(1, 1, 0, None, kind=Kind.BOOLEAN)
    inputs = fit_preparation({"x": column}).apply({"x": column})
    np.testing.assert_array_equal(inputs, [[1, 0], [1, 0], [0, 0], [1, 1]])


def test_rare_and_unseen_categories_share_one_input() -> None:
    train = texts(*["a"] * FEWEST_ROWS, *["b"] * (FEWEST_ROWS + 1), *["c"] * (FEWEST_ROWS - 1), "d")
    preparation = fit_preparation({"x": train})
    assert preparation.inputs == ("x = a", "x = b", "x = other")
    inputs = preparation.apply({"x": texts("a", "b", "c", "d", "never seen", None)})
    np.testing.assert_array_equal(inputs, [[1, 0, 0], [0, 1, 0], [0, 0, 1], [0, 0, 1], [0, 0, 1], [0, 1, 0]])


def test_without_rare_categories_an_unseen_one_has_no_input() -> None:
    preparation = fit_preparation({"x": texts(*["a", "b"] * FEWEST_ROWS)})
    assert preparation.inputs == ("x = a", "x = b")
    np.testing.assert_array_equal(preparation.apply({"x": texts("b", "new")}), [[0, 1], [0, 0]])


@given(st.lists(st.sampled_from([None, "a", "b", "c", "d"]), min_size=30, max_size=80).filter(lambda v: any(v)))
def test_categories_are_those_of_scikit_learn(values: list[str | None]) -> None:
    known = [value for value in values if value is not None]
    fill = max(sorted(set(known)), key=known.count)
    encoder = OneHotEncoder(min_frequency=FEWEST_ROWS, handle_unknown="infrequent_if_exist", sparse_output=False)
    expected = encoder.fit_transform([[fill if value is None else value] for value in values])
    inputs = fit_preparation({"x": texts(*values)}).apply({"x": texts(*values)})
    np.testing.assert_array_equal(inputs[:, : expected.shape[1]], expected)
    if None in values:
        np.testing.assert_array_equal(inputs[:, -1], [value is None for value in values])


def test_a_preparation_goes_through_json_unchanged() -> None:
    columns = {
        "x": numbers(0.1, None, 1 / 3, 7),
        "y": numbers(1, 0, None, 1, kind=Kind.BOOLEAN),
        "z": texts("ä", "b", None, "b"),
    }
    preparation = fit_preparation(columns)
    again = Preparation.from_json(json.loads(json.dumps(preparation.as_json())))
    assert again == preparation
    np.testing.assert_array_equal(again.apply(columns), preparation.apply(columns))


@pytest.mark.parametrize("document", [{}, {"format": 99, "features": []}, {"format": 1, "features": [{"kind": "x"}]}])
def test_a_damaged_preparation_is_refused(document: dict[str, object]) -> None:
    with pytest.raises(StorageError, match="stored preparation"):
        Preparation.from_json(document)


def test_the_codes_of_texts_are_in_the_order_of_names() -> None:
    column = texts("b", None, "a", "b")
    assert column.names == ("a", "b")
    np.testing.assert_array_equal(column.codes, [1, MISSING, 0, 1])
