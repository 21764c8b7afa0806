"""Pydantic's errors in our words, for fields of every kind that a study file has."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import pytest
from pydantic import Field, ValidationError

from hpsearch.study.messages import describe_first_error, shown, suggest_names
from hpsearch.study.settings import Count, Number, Settings, UnitFraction


class Inner(Settings):
    rate: UnitFraction = 0.5
    pair: Annotated[tuple[Count, Count], Field(strict=False)] = (1, 2)


class Outer(Settings):
    size: Count
    kind: Literal["plain", "fancy"] = "plain"
    text: str | None = None
    is_on: bool = False
    level: Annotated[Number, Field(ge=0, le=100)] | None = None
    numbers: Annotated[tuple[int, ...], Field(strict=False)] = ()
    inner: Inner = Inner()


def described(values: Any, section: str = "") -> tuple[str, str | None]:
    with pytest.raises(ValidationError) as caught:
        Outer.model_validate(values)
    return describe_first_error(caught.value, Outer, section)


@pytest.mark.parametrize(
    ("values", "message", "hint"),
    [
        ({}, "size is missing", "add size = ..."),
        ({"size": 0}, "size must be a whole number >= 1, got 0", None),
        ({"size": "5"}, "size must be a whole number >= 1, got '5'", "write it without quotes"),
        (
            {"size": 1, "kind": "fncy"},
            "kind must be one of plain, fancy, got 'fncy'",
            'did you mean "fancy"?',
        ),
        ({"size": 1, "kind": 7}, "kind must be one of plain, fancy, got 7", "the default is 'plain'"),
        ({"size": 1, "text": 7}, "text must be a string, got 7", None),
        ({"size": 1, "is_on": "true"}, "is_on must be true or false, got 'true'", "write it without quotes"),
        ({"size": 1, "is_on": 1}, "is_on must be true or false, got 1", "the default is false"),
        ({"size": 1, "level": 101}, "level must be finite and >= 0 and <= 100, got 101", None),
        ({"size": 1, "level": True}, "level must be a number, got true", None),
        ({"size": 1, "numbers": 3}, "numbers must be a list of values, got 3", "the default is []"),
        ({"size": 1, "inner": 3}, "inner must be a section, got 3", "write [inner]"),
        ({"size": 1, "inner": {"rate": 1}}, "inner.rate must be finite and >= 0 and < 1, got 1", "0.5"),
        ({"size": 1, "inner": {"pair": [1]}}, "inner.pair must be a list of 2 values, got [1]", "[1, 2]"),
        (
            {"size": 1, "inner": {"pair": [1, 2, 3]}},
            "inner.pair must be a list of 2 values, got [1, 2, 3]",
            "",
        ),
        ({"size": 1, "inner": {"pair": 1}}, "inner.pair must be a list of 2 values, got 1", ""),
        ({"size": 1, "inner": {"pair": [1, 0]}}, "inner.pair.1 must be a whole number >= 1, got 0", ""),
        ({"size": 1, "siz": 2}, "unknown key siz", 'did you mean "size"?'),
        ({"size": 1, "rate": 2}, "unknown key rate", 'did you mean "inner.rate"?'),
        ({"size": 1, "inner": {"rat": 2}}, "unknown key inner.rat", 'did you mean "rate"?'),
        ({"size": 1, "inner": {"zzz": 2}}, "unknown key inner.zzz", "known: rate, pair"),
    ],
)
def test_message_names_key_rule_and_value(values: Any, message: str, hint: str | None) -> None:
    found, found_hint = described(values)
    assert found == message
    if hint is None:
        assert found_hint is None
    else:
        assert found_hint is not None
        assert hint in found_hint


def test_keys_bear_the_prefix_that_the_user_wrote() -> None:
    assert described({"size": 0}, section="search.x")[0].startswith("search.x.size must be")


def test_number_of_further_errors_is_told() -> None:
    message, hint = described({"size": 0, "kind": "x", "is_on": 1})
    assert message.startswith("size must be")
    assert hint == "and 2 more in the same file"
    assert described({"kind": "fncy", "zzz": 1, "size": 1})[1] == 'did you mean "fancy"?; and 1 more in the same file'


def test_long_values_are_cut_and_stay_on_one_line() -> None:
    assert len(shown("x" * 500)) == 60
    assert shown("a\nb\0") == r"'a\nb\x00'"
    assert shown(True) == "true"


def test_names_are_suggested_if_one_is_near_else_listed() -> None:
    assert suggest_names("learnig_rate", ["learning_rate", "seed"]) == 'did you mean "learning_rate"?'
    assert suggest_names("q", ["learning_rate", "seed"]) == "known: learning_rate, seed"
