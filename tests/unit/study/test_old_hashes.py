"""Studies that an older hpsearch stored are the same studies: by their hashes, and by the files that they came from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from hpsearch.study.change import compare_definitions
from hpsearch.study.definition import StudyDefinition
from hpsearch.study.study_file import parse_definition

# A line each: the hash of the definition, that of what its values depend on, and the study file, as commit 6355741
# has it: all files of studies/ and examples/, and random ones of all strategies.
_LINES = (Path(__file__).parent / "hashes_of_6355741.jsonl").read_text().splitlines()


@pytest.mark.parametrize("line", _LINES, ids=lambda line: json.loads(line)[0][:8])
def test_hashes_are_those_of_an_older_hpsearch(line: str) -> None:
    sha256, value_sha256, document = json.loads(line)
    definition = parse_definition(document, source="old.toml")
    assert (definition.sha256, definition.value_sha256) == (sha256, value_sha256)
    # Read from the database, and from a file whose keys stand in another order.
    stored = StudyDefinition.from_canonical_json(definition.canonical_json())
    assert stored.sha256 == sha256
    other = parse_definition(_reversed(document), source="other.toml")
    assert compare_definitions(stored, other).is_none
    assert other.told_like(stored).sha256 == sha256


def test_a_key_that_joined_later_is_stored_only_when_it_is_used() -> None:
    document = json.loads(_LINES[0])[2]
    used = parse_definition({**document, "keep_every": 5}, source="new.toml")
    assert StudyDefinition.from_canonical_json(used.canonical_json()) == used
    assert "keep_every" in used.canonical_json()
    assert "keep_every" not in used.model_copy(update={"keep_every": None}).canonical_json()


def _reversed(table: dict[str, Any]) -> dict[str, Any]:
    return {key: _reversed(value) if isinstance(value, dict) else value for key, value in reversed(table.items())}
