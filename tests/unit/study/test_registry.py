"""The tables of named choices: each line has an implementation and keys that exist, and each owner uses its table."""

from __future__ import annotations

from typing import Any

import pytest

from hpsearch.errors import InputError
from hpsearch.study.definition import StudyDefinition
from hpsearch.study.registry import ACTIVATIONS, OWNERS, STRATEGIES, Named
from hpsearch.study.study_file import parse_definition

TABLES = {**OWNERS, "model.activation": ACTIVATIONS, "search.strategy": STRATEGIES}
LINES = [(owner, name) for owner, table in TABLES.items() for name in table]


def section(owner: str) -> Any:
    """The settings class of the owner's section."""
    return StudyDefinition.model_fields[owner.partition(".")[0]].annotation


def line(owner: str, name: str) -> Named:
    return TABLES[owner][name]


@pytest.mark.parametrize(("owner", "name"), LINES)
def test_every_line_names_an_implementation_and_keys_of_its_section(owner: str, name: str) -> None:
    named = line(owner, name)
    assert not named.place or callable(named.implementation)
    assert set(named.keys) <= section(owner).model_fields.keys()


@pytest.mark.parametrize(("owner", "name"), LINES)
def test_every_name_is_accepted_and_a_misspelt_one_gets_a_hint(owner: str, name: str) -> None:
    key = owner.partition(".")[2]
    assert getattr(section(owner).model_validate({key: name}), key) == name
    with pytest.raises(InputError) as caught:
        parse_definition({"name": "a", owner.partition(".")[0]: {key: f"{name}?"}}, source="study.toml")
    assert str(caught.value).startswith(f"study.toml: {owner} must be one of {', '.join(TABLES[owner])}, got ")
    assert caught.value.hint is not None
    assert name in caught.value.hint


@pytest.mark.parametrize("owner", TABLES)
def test_no_two_lines_have_one_implementation(owner: str) -> None:
    places = [named.place for named in TABLES[owner].values() if named.place]
    assert len(places) == len(set(places))
