"""What is said of stored JSON that somebody has damaged."""

from __future__ import annotations

import pytest
from optuna.distributions import FloatDistribution, distribution_to_json

from hpsearch.errors import StorageError
from hpsearch.store.rows.distributions import parse_stored_distribution
from hpsearch.stored_json import parse_stored, parse_stored_object


def test_whole_json_is_read() -> None:
    assert parse_stored("[1, 2]", "x", "table t") == [1, 2]
    assert parse_stored_object('{"a": 1}', "x", "table t", ["a"]) == {"a": 1}
    rate = FloatDistribution(0.1, 0.2)
    assert parse_stored_distribution(distribution_to_json(rate), "x") == rate


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ('{"a": ', "Expecting value: line 1 column 7 (char 6)"),
        ("", "Expecting value: line 1 column 1 (char 0)"),
        ("[1]", "it is a list, not an object"),
        ('{"b": 1}', "a is missing"),
    ],
)
def test_damaged_object_is_one_line_with_its_place_and_a_hint(text: str, reason: str) -> None:
    with pytest.raises(StorageError) as caught:
        parse_stored_object(text, "study 'small'", "table t, column c", ["a"])
    assert str(caught.value) == f"study 'small' cannot be read (table t, column c): {reason}"
    assert "restore it from a backup" in str(caught.value.hint)
    assert caught.value.exit_code == 3


@pytest.mark.parametrize("text", ["{", "{}", "[]", '{"name": "NoDistribution", "attributes": {}}', "5"])
def test_damaged_distribution_is_one_line_with_its_place(text: str) -> None:
    with pytest.raises(
        StorageError, match=r"a parameter of study 'a' cannot be read \(table trial_params, column dist"
    ):
        parse_stored_distribution(text, "a parameter of study 'a'")
