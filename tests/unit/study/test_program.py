"""Study files whose trials are programs: what they may say, and one line for what they may not."""

from __future__ import annotations

import tomllib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpsearch.errors import InputError
from hpsearch.study.definition import StudyDefinition
from hpsearch.study.program import parse_free_dimension
from hpsearch.study.study_file import parse_definition

COMMAND = """
name = "mine"
[command]
run = ["{python}", "train.py", "--lr={learning_rate}", "--width={width}", "--seed={seed}"]
metric = "validation_error"
[search]
strategy = "grid"
[search.parameters]
learning_rate = { log10 = [-1, -4] }
width = [64, 128, 256]
"""
OBJECTIVE = """
name = "mine"
[objective]
function = "package.module:objective"
[search]
strategy = "tpe"
num_points = 20
"""


def parsed(text: str, **changes: Any) -> StudyDefinition:
    """The definition of a TOML document in which `section__key` is set to a value; None removes it."""
    document: dict[str, Any] = tomllib.loads(text)
    for path, value in changes.items():
        *sections, key = path.split("__")
        place = document
        for section in sections:
            place = place.setdefault(section, {})
        place.pop(key, None)
        if value is not None:
            place[key] = value
    return parse_definition(document, source="mine.toml")


def test_dimensions_have_any_name_and_the_values_that_are_written() -> None:
    definition = parsed(COMMAND)
    assert list(definition.points())[:4] == [
        {"learning_rate": 0.1, "width": 64},
        {"learning_rate": 0.1, "width": 128},
        {"learning_rate": 0.1, "width": 256},
        {"learning_rate": 0.01, "width": 64},
    ]
    assert definition.num_points == 12


@pytest.mark.parametrize(
    ("spec", "values", "is_integer"),
    [
        ([1, 2], (1, 2), True),
        ([1, 2.5], (1.0, 2.5), False),
        (["a", "b"], ("a", "b"), False),
        ([True, False], (True, False), False),
        ({"log10": [0, 2]}, (1.0, 10.0, 100.0), False),
        ({"log10": [0, 2], "integer": True}, (1, 10, 100), True),
        ({"log10": [-2, -1], "zero": True}, (0.0, 0.01, 0.1), False),
        ({"low": 1, "high": 9}, (1, 9), True),
        ({"low": 1.0, "high": 9.0}, (1.0, 9.0), False),
    ],
)
def test_whole_numbers_stay_whole(spec: Any, values: tuple[Any, ...], is_integer: bool) -> None:
    strategy = "random" if isinstance(spec, dict) and "low" in spec else "grid"
    points = 4 if strategy == "random" else None
    definition = parsed(COMMAND, search__parameters__width=spec, search__strategy=strategy, search__num_points=points)
    dimension = definition.search.dimensions[-1]
    assert (dimension.values, dimension.is_integer) == (values, is_integer)
    assert [type(value) for value in dimension.values] == [type(value) for value in values]


def test_dimensions_may_stand_in_search_itself_and_clash_with_its_keys_below_parameters() -> None:
    definition = parsed(
        COMMAND,
        command__run=["train", "{points}", "{learning_rate}", "{momentum}"],
        search__parameters={"points": [1, 2], "momentum": [0.5]},
        search__learning_rate=[0.1],
    )
    assert [dimension.name for dimension in definition.search.dimensions] == ["learning_rate", "points", "momentum"]
    assert [dict(point) for point in definition.points()] == [
        {"learning_rate": 0.1, "points": 1, "momentum": 0.5},
        {"learning_rate": 0.1, "points": 2, "momentum": 0.5},
    ]


@pytest.mark.parametrize("text", [COMMAND, OBJECTIVE])
def test_a_definition_is_read_back_from_its_stored_and_its_written_form(text: str) -> None:
    definition = parsed(text)
    assert StudyDefinition.from_canonical_json(definition.canonical_json()) == definition
    assert parse_definition(definition.document(), source="again") == definition
    assert not definition.document().keys() & {"model", "training", "data", "metric"}


def test_a_study_of_own_networks_has_the_text_that_it_had() -> None:
    text = parse_definition({"name": "a"}, source="a.toml").canonical_json()
    assert "command" not in text
    assert "objective" not in text
    assert "integer" not in text.replace("is_integer", "")


def test_the_rule_is_none_unless_it_is_named() -> None:
    assert parsed(COMMAND).stopping.rule == "none"
    assert parsed(COMMAND, stopping__n=3, stopping__rule="no-improvement-in-n").stopping.n == 3


@given(value=st.floats(allow_nan=False, allow_infinity=False))
def test_a_metric_to_be_maximised_may_have_any_value(value: float) -> None:
    metric = parsed(COMMAND, command__direction="maximize").judged_by
    assert metric.value_of(metric.loss_of(value)) == value
    assert metric.loss_of(value) == -value


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"objective__function": "a:b"}, r"\[command\] and \[objective\] exclude each other"),
        ({"model__family": "mlp"}, r"model cannot be combined with \[command\]: the program brings its own model"),
        ({"data__dataset": "mnist"}, r"data cannot be combined with \[command\]"),
        ({"training__batch_size": 3}, r"training cannot be combined with \[command\]"),
        ({"metric": "nll"}, r"metric cannot be combined with \[command\]"),
        ({"keep_every": 2}, r"keep_every cannot be combined with \[command\]"),
        ({"command__runs": ["a"]}, "unknown key command.runs"),
        ({"command__run": []}, "command.run"),
        ({"command__run": None}, "command.run is missing"),
        ({"command__metric": "<b>"}, "command.metric must be 1 to 60 letters"),
        ({"command__direction": "up"}, "command.direction must be one of minimize, maximize"),
        ({"command__pattern": "("}, "command.pattern must be a regular expression"),
        ({"command__pattern": "x"}, "command.pattern must have a group"),
        ({"command__pattern": r"step (?P<step>\d+)"}, "command.pattern must have a group with the value"),
        (
            {"command__pattern": r"epoch (\d+) err=(.*)"},
            r"command.pattern must name the group of the value, \(\?P<value>",
        ),
        (
            {"command__pattern": r"(?P<vale>.*)"},
            "command.pattern must name its groups step and value if at all, got 'vale'",
        ),
        ({"command__pattern": "(x)" * 400}, "command.pattern must have at most 1000 characters, got 1200"),
        ({"command__pattern": "val=("}, "command.pattern must be a regular expression"),
        ({"command__cwd": "/tmp"}, "command.cwd must be relative"),
        ({"command__files": ["../a"]}, r"command.files.0 must be relative"),
        ({"command__env": {"A B": "x"}}, "command.env must hold names of variables"),
        ({"command__env": {"HPSEARCH_HOME": "x"}}, "command.env must not set variables of hpsearch"),
        ({"command__timeout_minutes": 0}, "command.timeout_minutes must be finite and > 0"),
        ({"command__max_attempts": 0}, "command.max_attempts must be a whole number >= 1"),
        ({"command__run": ["a", "{widht}", "{learning_rate}", "{width}"]}, r"unknown placeholder \{widht\}"),
        ({"command__run": ["a", "{learning_rate}"]}, "dimension 'width' is used nowhere"),
        ({"command__run": ["a", "{", "{width}{learning_rate}"]}, "a lone {"),
        ({"search__parameters": 3}, "search.parameters must be a table"),
        ({"search__width": [1]}, "gives width twice"),
        ({"search__parameters__folder": [1, 2]}, "hpsearch itself gives programs a value of this name"),
        ({"search__parameters__a b": [1]}, "a name must be 1 to 64 letters"),
        ({"search__parameters__a_is_zero": [1]}, "not end in _is_zero"),
        ({"search__parameters__width": [1, 1.0]}, "has the value 1.0 twice"),
        ({"search__parameters__width": []}, "has no values"),
        ({"search__parameters__width": [[1]]}, "must hold texts, truth values or numbers"),
        ({"search__parameters__width": [float("nan")]}, "must hold texts, truth values or numbers"),
        ({"search__parameters__width": 3}, "must be a list of values or a table"),
        ({"search__parameters__width": {"low": 1, "high": 3}}, "is a range, which a grid cannot list"),
        ({"search__budget_epochs": 3, "search__strategy": "coarse-to-fine"}, "search.budget_epochs counts epochs"),
        ({"stopping__rule": "geometric-patience"}, "counts minibatches"),
        ({"pruning__pruner": "hyperband"}, "set command.max_steps"),
        ({"search__strategy": "listed"}, "cannot be combined with strategy listed"),
        ({"search__strategy": "listed", "search__parameters": None}, "search.points is missing"),
        (
            {"search__strategy": "listed", "search__parameters": None, "search__points": [{"width": 1}, {"seed": 1}]},
            "point 2 lacks width",
        ),
        (
            {
                "search__strategy": "listed",
                "search__parameters": None,
                "search__points": [{"width": 1}, {"width": 1, "seed": 0}],
            },
            "point 2 is equivalent to point 1",
        ),
    ],
)
def test_what_a_command_cannot_have_is_refused_in_one_line(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        parsed(COMMAND, **changes)
    assert str(caught.value).startswith("mine.toml")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"objective__function": "objective"}, 'objective.function must be "package.module:function"'),
        ({"objective__run": ["a"]}, "unknown key objective.run"),
        ({"search__strategy": "grid", "search__num_points": None}, "needs the dimensions"),
        ({"search__learning_rate": [0.1]}, "stands in its own suggest_"),
        ({"search__num_points": None}, "search.num_points is missing"),
    ],
)
def test_what_an_objective_cannot_have_is_refused_in_one_line(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        parsed(OBJECTIVE, **changes)


@pytest.mark.parametrize(
    "changes",
    [
        {"command__run": ["rm", "{width}{learning_rate}"]},
        {"command__env": {"PATH": "/tmp"}},
        {"search__parameters__width": ["a", "b"]},  # a text may stand where a program's name is
    ],
)
def test_consent_to_one_program_is_none_to_another(changes: dict[str, Any]) -> None:
    assert parsed(COMMAND).consent != parsed(COMMAND, **changes).consent


def test_consent_holds_for_a_study_that_is_widened_by_numbers() -> None:
    assert parsed(COMMAND).consent == parsed(COMMAND, search__parameters__width=[64, 128, 256, 512]).consent


@pytest.mark.parametrize("values", [["abc"], [0.5], [True, 1]])
def test_a_seed_is_a_whole_number(values: list[Any]) -> None:
    with pytest.raises(InputError, match=r"search\.seed must hold whole numbers"):
        parse_free_dimension("seed", values, 10, "test")
