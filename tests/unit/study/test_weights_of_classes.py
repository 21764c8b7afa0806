"""The key `class_weights`: what it takes, how a search names it, and that older studies do not have it."""

from __future__ import annotations

from typing import Any

import pytest

from hpsearch.errors import InputError
from hpsearch.study.change import compare_definitions
from hpsearch.study.definition import StudyDefinition
from hpsearch.study.study_file import parse_definition


def definition(training: dict[str, Any] | None = None, **search: Any) -> StudyDefinition:
    document = {"name": "a", "training": training or {}, "search": search or {"learning_rate": [0.1]}}
    return parse_definition(document, source="study.toml")


@pytest.mark.parametrize("weights", ["balanced", [1, 2.5, 8]])
def test_weights_are_stored_and_written_back(weights: Any) -> None:
    given = definition({"class_weights": weights})
    assert StudyDefinition.from_canonical_json(given.canonical_json()) == given
    assert parse_definition(given.document(), source="again") == given
    assert given.sha256 != definition().sha256


def test_a_study_without_weights_has_the_text_that_it_had_before_the_key() -> None:
    assert "class_weights" not in definition({"class_weights": "none"}).canonical_json()
    assert definition({"class_weights": "none"}) == definition()


@pytest.mark.parametrize("weights", ["balansed", [], [1, -1], [1, 0], [1, "a"], [1, True], [float("nan")], 3, {"a": 1}])
def test_other_weights_are_refused_with_those_that_are_possible(weights: Any) -> None:
    rule = r'training.class_weights must be "none", "balanced" or a list of one positive number for each class, got'
    with pytest.raises(InputError, match=rule):
        definition({"class_weights": weights})


def test_a_search_tries_both() -> None:
    searched = definition(class_weights=["none", "balanced"], learning_rate=[0.1])
    assert [searched.resolve(point).training.class_weights for point in searched.points()] == ["none", "balanced"]
    assert parse_definition(searched.document(), source="again") == searched


def test_a_listed_point_without_the_key_has_the_studys_weights() -> None:
    listed = definition(strategy="listed", points=[{"class_weights": "balanced"}, {"learning_rate": 0.1}])
    assert listed.left_to_study({"learning_rate": 0.1}) == {"class_weights": "none"}


def test_a_study_with_other_weights_is_another_study() -> None:
    plain, weighed = definition(), definition({"class_weights": "balanced"})
    for stored, given in ((plain, weighed), (weighed, plain)):
        assert "training.class_weights" in " ".join(compare_definitions(stored, given).refused)
