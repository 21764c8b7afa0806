"""[objective] in a study file: what it needs, what it refuses, and that it is stored as it is."""

from __future__ import annotations

import tomllib
from typing import Any

import pytest

from hpsearch.errors import InputError
from hpsearch.study.definition import StudyDefinition
from hpsearch.study.study_file import parse_definition

FILE = """
name = "mine"
[objective]
function = "package.module:objective"
direction = "maximize"
env = { DATA = "/data", SEED = "{seed}" }
[search]
strategy = "{strategy}"
num_points = 20
[pruning]
pruner = "median"
"""


def parsed(strategy: str = "tpe", **more: Any) -> StudyDefinition:
    document = tomllib.loads(FILE.replace("{strategy}", strategy))
    for place, value in more.items():
        section, _, key = place.partition("__")
        document.setdefault(section, {})
        document = document | ({section: document[section] | {key: value}} if key else {section: value})
    return parse_definition(document, source="mine.toml")


@pytest.mark.parametrize("strategy", ["random", "qmc", "tpe", "gp", "cmaes"])
def test_an_objective_needs_a_strategy_that_draws_and_no_dimensions(strategy: str) -> None:
    definition = parsed(strategy)
    assert definition.objective is not None
    assert definition.objective.function == "package.module:objective"
    assert (definition.num_points, definition.is_drawn, definition.search.dimensions) == (20, True, ())
    assert definition.judged_by.direction == "maximize"
    assert StudyDefinition.from_canonical_json(definition.canonical_json()) == definition
    assert parse_definition(definition.document(), source="again") == definition


def test_listed_points_may_have_parameters_of_any_name_and_differ_in_them() -> None:
    points = [{"kind of layer": "a", "lr": 0.1}, {"kind of layer": "b", "parameters": 3, "seed": 5}]
    document = {"name": "a", "objective": {"function": "m:f"}, "search": {"strategy": "listed", "points": points}}
    definition = parse_definition(document, source="mine.toml")
    assert list(definition.points()) == points
    assert StudyDefinition.from_canonical_json(definition.canonical_json()) == definition
    assert parse_definition(definition.document(), source="again") == definition


@pytest.mark.parametrize("strategy", ["grid", "coarse-to-fine"])
def test_a_strategy_that_needs_dimensions_is_refused(strategy: str) -> None:
    with pytest.raises(InputError, match="needs the dimensions, which an objective names only when it is called"):
        parse_definition(
            {"name": "a", "objective": {"function": "m:f"}, "search": {"strategy": strategy}}, source="mine.toml"
        )


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"search__num_points": None}, "search.num_points"),
        ({"search__learning_rate": [0.1, 0.2]}, "the space of an objective stands in its own suggest_"),
        ({"search__parameters": {"x": {"low": 0, "high": 1}}}, "the space of an objective stands in its own suggest_"),
        ({"objective__function": "module"}, "package.module:function"),
        ({"objective__function": "../module:f"}, "package.module:function"),
        ({"objective__run": ["true"]}, "objective.run"),
        ({"objective__pattern": "(x)"}, "objective.pattern"),
        ({"objective__env": {"A": "{width}"}}, "objective.env.A '{width}': unknown placeholder {width}"),
        ({"model": {"family": "mlp"}}, r"model cannot be combined with \[objective\]"),
        ({"command": {"run": ["true"]}}, "exclude each other"),
        ({"stopping__rule": "geometric-patience"}, "counts minibatches"),
        ({"pruning__pruner": "hyperband"}, "set objective.max_steps"),
    ],
)
def test_what_does_not_fit_is_refused(more: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        parsed(**more)


def test_another_function_is_another_program() -> None:
    one, other = parsed(), parsed(objective__function="package.module:other")
    assert one.objective is not None
    assert other.objective is not None
    assert one.consent != other.consent
    assert one.value_sha256 != other.value_sha256
