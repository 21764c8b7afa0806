"""The study file: what it may say, what it gets for bad input, and one text per meaning."""

from __future__ import annotations

import hashlib
import json
import tomllib
from pathlib import Path
from random import Random
from typing import Any

import optuna
import pytest
import tomli_w
from hypothesis import given, reject
from hypothesis import strategies as st

from hpsearch.errors import InputError
from hpsearch.search.samplers.build import build_sampler
from hpsearch.search.samplers.search_space import explore
from hpsearch.study.change import compare_definitions, describe_differences
from hpsearch.study.definition import StudyDefinition
from hpsearch.study.settings import (
    DataSettings,
    ModelSettings,
    PruningSettings,
    StoppingSettings,
    TrainingSettings,
)
from hpsearch.study.space import DRAWN
from hpsearch.study.study_file import load_definition, parse_definition

NOTES_GRID = """
name = "mlp-coarse"
[data]
dataset = "mnist"
[model]
family = "mlp"
hidden_units = 500
activation = "tanh"
[training]
batch_size = 20
max_epochs = 200
optimizer = "sgd"
schedule = "constant"
[search]
strategy = "grid"
learning_rate = { log10 = [-1, -4] }
lambda_1 = { log10 = [-2, -5], zero = true }
lambda_2 = { log10 = [-2, -6], zero = true }
[stopping]
rule = "geometric-patience"
[pruning]
pruner = "median"
"""


def parsed(text: str) -> StudyDefinition:
    return parse_definition(tomllib.loads(text), source="study.toml")


def refusal(text: str) -> InputError:
    with pytest.raises(InputError) as caught:
        parsed(text)
    assert "\n" not in str(caught.value)
    return caught.value


def study(search: str) -> str:
    return f'name = "a"\n[search]\n{search}\n'


def drawn(search: str) -> str:
    return study(f'strategy = "random"\nnum_points = 3\n{search}')


# What a file says


def test_grid_of_the_notes_has_every_combination_once() -> None:
    definition = parsed(NOTES_GRID)
    points = list(definition.points())
    assert definition.num_points == len(points) == 4 * 5 * 6
    assert len({tuple(point.items()) for point in points}) == len(points)
    assert points[0] == {"learning_rate": 0.1, "lambda_1": 0.0, "lambda_2": 0.0}
    assert points[-1] == {"learning_rate": 1e-4, "lambda_1": 1e-5, "lambda_2": 1e-6}
    assert definition.pruning.pruner == "median"


def test_file_with_a_name_only_is_a_study_of_one_point_with_the_defaults() -> None:
    definition = parsed('name = "a"')
    assert list(definition.points()) == [{}]
    assert definition.resolve({}).training == TrainingSettings()
    assert not definition.is_drawn


def test_searched_value_replaces_the_one_of_its_section() -> None:
    definition = parsed('name = "a"\n[training]\nlearning_rate = 0.5\n[search]\nlearning_rate = [0.1, 0.2]')
    assert [definition.resolve(p).training.learning_rate for p in definition.points()] == [0.1, 0.2]


def test_whole_numbers_stand_for_rates_too() -> None:
    values = parsed(study("learning_rate = [1, 0.5]")).search.dimensions[0].values
    assert values == (1.0, 0.5)
    assert all(isinstance(value, float) for value in values)


def test_words_and_truth_values_can_be_searched() -> None:
    definition = parsed(study('activation = ["tanh", "relu"]\nshuffle = [true, false]'))
    resolved = [definition.resolve(point) for point in definition.points()]
    assert [(s.model.activation, s.training.shuffle) for s in resolved] == [
        ("tanh", True),
        ("tanh", False),
        ("relu", True),
        ("relu", False),
    ]


def test_drawn_points_are_empty_until_a_worker_asks() -> None:
    definition = parsed(drawn("learning_rate = { low = 1e-4, high = 0.1, log = true }"))
    assert definition.is_drawn
    assert list(definition.points()) == [{}, {}, {}]


def test_seed_of_the_weights_can_be_searched_beside_the_seed_of_the_study() -> None:
    definition = parsed('name = "a"\nseed = 7\n[search]\nseed = [0, 1]')
    resolved = [definition.resolve(point) for point in definition.points()]
    assert [(s.seed, s.training_seed) for s in resolved] == [(7, 0), (7, 1)]


# A family of a user's own and its options

CUSTOM = 'name = "a"\n[model]\nfamily = "my.networks:Net"\noptions = { width = 8, act = "x", on = true, p = 0.5 }\n'


def test_options_are_a_table_in_the_file_and_hashable_inside() -> None:
    definition = parsed(CUSTOM)
    assert definition.model.family == "my.networks:Net"
    assert dict(definition.model.options) == {"width": 8, "act": "x", "on": True, "p": 0.5}
    assert hash(definition.model) == hash(parsed(CUSTOM).model)
    assert definition.document()["model"]["options"] == {"act": "x", "on": True, "p": 0.5, "width": 8}


def test_order_of_the_options_does_not_matter() -> None:
    other = parsed(CUSTOM.replace("width = 8, ", "").replace(" }", ", width = 8 }"))
    assert other.sha256 == parsed(CUSTOM).sha256
    assert describe_differences(parsed(CUSTOM), other) == []


@pytest.mark.parametrize("key", ["options.width", '"options.width"'])
def test_searched_option_replaces_its_own_value_only(key: str) -> None:
    definition = parsed(f"{CUSTOM}[search]\n{key} = [8, 16]")
    resolved = [dict(definition.resolve(point).model.options) for point in definition.points()]
    assert resolved == [{"width": width, "act": "x", "on": True, "p": 0.5} for width in (8, 16)]
    assert [list(point) for point in definition.points()] == [["options.width"]] * 2
    assert parse_definition(definition.document(), source="again") == definition
    assert StudyDefinition.from_canonical_json(definition.canonical_json()) == definition


def test_option_that_only_the_search_names_is_an_option() -> None:
    definition = parsed(f"{CUSTOM}[search]\noptions.depth = [1]")
    assert dict(definition.resolve({"options.depth": 1}).model.options)["depth"] == 1


def test_own_value_of_an_option_says_whether_it_is_a_whole_number() -> None:
    text = f'{CUSTOM}[search]\nstrategy = "tpe"\nnum_points = 2\n'
    whole = parsed(f"{text}options.width = {{ log10 = [0, 2] }}").search.dimensions[0]
    assert (whole.is_integer, whole.values) == (True, (1, 10, 100))
    real = parsed(f"{text}options.p = {{ low = 0, high = 1 }}").search.dimensions[0]
    assert (real.is_integer, real.values) == (False, (0.0, 1.0))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('name = "a"\n[model]\noptions = 5', "model.options must be a table of plain values, got 5"),
        (
            'name = "a"\n[model]\noptions = { width = [1] }',
            "model.options must hold strings, truth values and finite numbers, got width = [1]",
        ),
        (
            'name = "a"\n[model]\noptions = { width = inf }',
            "model.options must hold strings, truth values and finite numbers, got width = inf",
        ),
        (
            'name = "a"\n[model]\noptions = { num_classes = 3 }',
            "model.options must have names of Python arguments other than image_shape and num_classes, "
            "got 'num_classes'",
        ),
        (
            'name = "a"\n[model]\noptions = { my-width = 3 }',
            "model.options must have names of Python arguments other than image_shape and num_classes, got 'my-width'",
        ),
        (
            f"{CUSTOM}[search]\noptions.width = [[1]]",
            "search.options must hold strings, truth values and finite numbers, got width = [1]",
        ),
        (f"{CUSTOM}[search]\noptions.width = [1, 1]", "search.options.width has the value 1 twice"),
        (f"{CUSTOM}[search]\noptions = [1]", "search.options: this key cannot be searched"),
        (
            f'{CUSTOM}[search]\noptions.width = [1]\n"options.width" = [2]',
            "[search] sets an option twice",
        ),
    ],
)
def test_bad_option_is_named_with_its_value(text: str, message: str) -> None:
    assert str(refusal(text)) == f"study.toml: {message}"


# Zero beside a logarithmic scale


def test_resolve_reads_the_zero_switch() -> None:
    definition = parsed(drawn("lambda_1 = { log10 = [-2, -5], zero = true }"))
    assert definition.resolve({"lambda_1_is_zero": True}).training.lambda_1 == 0.0
    switched = definition.resolve({"lambda_1_is_zero": False, "lambda_1": 1e-3})
    assert switched.training.lambda_1 == 1e-3


def test_resolve_reads_the_zero_switch_of_a_whole_number() -> None:
    definition = parsed(drawn("seed = { log10 = [0, 3], zero = true }"))
    assert definition.resolve({"seed_is_zero": True}).training.seed == 0


# Bad input


@pytest.mark.parametrize(
    ("text", "message", "hint"),
    [
        (
            'name = "a"\n[training]\nlearnig_rate = 0.1',
            "unknown key training.learnig_rate",
            '"learning_rate"',
        ),
        ('name = "a"\nstoping = 1', "unknown key stoping", '"stopping"'),
        ('name = "a"\nlearning_rate = 0.1', "unknown key learning_rate", '"training.learning_rate"'),
        ('name = "a"\n[model]\nbatch_size = 5', "unknown key model.batch_size", '"training.batch_size"'),
        (study("learning_rat = [0.1]"), "search.learning_rat: no such key to search", '"learning_rate"'),
        (study("options = [1]"), "search.options: this key cannot be searched", "options.NAME"),
        (study("dimensions = [1]"), "search.dimensions: no such key to search", "known: strategy"),
        (
            study("learning_rate = { log10 = [-1, -4], per_decad = 2 }"),
            "unknown key search.learning_rate.per_decad",
            '"per_decade"',
        ),
    ],
)
def test_unknown_key_is_named_with_what_may_be_meant(text: str, message: str, hint: str) -> None:
    error = refusal(text)
    assert str(error) == f"study.toml: {message}"
    assert error.hint is not None
    assert hint in error.hint


@pytest.mark.parametrize("value", ["-1", "0", "nan", "inf", '"0.1"', "[0.1]", "1979-05-27"])
def test_learning_rate_must_be_a_positive_number(value: str) -> None:
    error = refusal(f'name = "a"\n[training]\nlearning_rate = {value}')
    assert str(error).startswith("study.toml: training.learning_rate must be finite and > 0, got ")
    assert error.hint in ("the default is 0.01", "write it without quotes")


def test_bad_value_is_shown_as_it_was_written() -> None:
    error = refusal('name = "a"\n[training]\nlearning_rate = -1')
    assert str(error) == "study.toml: training.learning_rate must be finite and > 0, got -1"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("batch_size = 0", "batch_size must be a whole number >= 1, got 0"),
        ("batch_size = 20.0", "batch_size must be a whole number >= 1, got 20.0"),
        ("max_epochs = 0", "max_epochs must be a whole number >= 1, got 0"),
        ("max_epochs = true", "max_epochs must be a number, got true"),
        ("learning_rate = true", "learning_rate must be a number, got true"),
        ("lambda_1 = -0.1", "lambda_1 must be finite and >= 0, got -0.1"),
        ("momentum = 1", "momentum must be finite and >= 0 and < 1, got 1"),
        ("shuffle = 1", "shuffle must be true or false, got 1"),
        ("schedule_factor = 1.5", "schedule_factor must be finite and > 0 and < 1, got 1.5"),
        ("seed = -1", "seed must be a whole number >= 0 and < 9,223,372,036,854,775,808, got -1"),
    ],
)
def test_training_value_out_of_range_gets_the_allowed_range(line: str, message: str) -> None:
    assert str(refusal(f'name = "a"\n[training]\n{line}')) == f"study.toml: training.{message}"


@pytest.mark.parametrize(
    ("section", "line", "choices"),
    [
        ("model", 'family = "mpl"', "logistic, mlp, cnn, package.module:factory"),
        ("model", 'family = "my-networks.py:build"', "logistic, mlp, cnn, package.module:factory"),
        ("model", 'family = "networks"', "logistic, mlp, cnn, package.module:factory"),
        ("model", 'activation = "tahn"', "tanh, sigmoid, relu"),
        ("training", 'optimizer = "agd"', "sgd, momentum, adam"),
        ("training", 'schedule = "constnat"', "constant, inverse-time, halving, step, plateau, exponential"),
        ("search", 'strategy = "gird"', "grid, listed, coarse-to-fine, random, qmc, tpe, gp, cmaes"),
        ("stopping", 'rule = "patience"', "geometric-patience, significance, no-improvement-in-n, none"),
        ("pruning", 'pruner = "medain"', "none, median, percentile, successive-halving, hyperband"),
    ],
)
def test_unknown_choice_gets_the_choices(section: str, line: str, choices: str) -> None:
    error = refusal(f'name = "a"\n[{section}]\n{line}')
    key, _, value = line.partition(" = ")
    shown = value.replace('"', "'")
    assert str(error) == f"study.toml: {section}.{key} must be one of {choices}, got {shown}"
    assert error.hint is not None


@pytest.mark.parametrize("name", ["../..", "", "a/b", "a b", ".hidden", "x" * 101, "a\\u0000", "<script>", "ä"])
def test_bad_study_name_gets_the_rule(name: str) -> None:
    error = refusal(f'name = "{name}"')
    assert str(error).startswith(
        "study.toml: name must be 1 to 100 letters (a-z, A-Z), digits, '.', '_' or '-', and begin with a letter"
    )
    assert len(str(error)) < 200


def test_missing_name_and_wrong_section_are_named() -> None:
    assert str(refusal("")) == "study.toml: name is missing"
    assert refusal("").hint == "add name = ..."
    assert str(refusal('name = "a"\ntraining = 5')) == "study.toml: training must be a section, got 5"
    assert str(refusal('name = "a"\nsearch = 5')) == "study.toml: search must be a section, got 5"


def test_first_of_many_errors_tells_how_many_are_left() -> None:
    error = refusal('name = "a"\n[training]\nlearning_rate = -1\nbatch_size = 0\nmax_epochs = 0')
    assert error.hint is not None
    assert error.hint.endswith("and 2 more in the same file")


@pytest.mark.parametrize(
    ("search", "message"),
    [
        ("learning_rate = []", "search.learning_rate has no values"),
        ("learning_rate = { values = [] }", "search.learning_rate has no values"),
        ("learning_rate = [0.1, 0.10]", "search.learning_rate has the value 0.1 twice"),
        ("learning_rate = [1, 1.0]", "search.learning_rate has the value 1.0 twice"),
        ('activation = ["tanh", "tanh"]', "search.activation has the value 'tanh' twice"),
        ("hidden_units = { log10 = [0, 1], per_decade = 9 }", "search.hidden_units has the value 1 twice"),
        ("learning_rate = [0.1, -1]", "search.learning_rate must be finite and > 0, got -1"),
        ("learning_rate = [[0.1]]", "search.learning_rate must be finite and > 0, got [0.1]"),
        ("hidden_units = [50, 60.5]", "search.hidden_units must be a whole number >= 1, got 60.5"),
        ("learning_rate = 0.1", "search.learning_rate must be a list of values or a table, got 0.1"),
        ("learning_rate = {}", "search.learning_rate must be a list of values or a table, got {}"),
        (
            "learning_rate = { log = [-1, -4] }",
            "search.learning_rate must be a list of values or a table, got {'log': [-1, -4]}",
        ),
        ("learning_rate = { values = 5 }", "search.learning_rate.values must be a list of values, got 5"),
        ('activation = { values = "tanh" }', "search.activation.values must be a list of values, got 'tanh'"),
        (
            "learning_rate = { log10 = [-1, -4], zero = true }",
            "search.learning_rate must be finite and > 0, got 0.0",
        ),
        (
            "learning_rate = { low = 0.1, high = 0.2 }",
            "search.learning_rate is a range, which a grid cannot list: give values or log10, "
            "or take strategy coarse-to-fine or random",
        ),
        (
            "num_points = 3",
            "search.num_points belongs to strategy random, qmc, tpe, gp, cmaes, not to grid; a grid has all its points",
        ),
        ('strategy = "tpe"', "search.num_points is missing: strategy tpe draws that many"),
        ('strategy = "tpe"\nnum_points = 3', "search has no dimension for strategy tpe to draw from"),
        (
            'strategy = "random"\nnum_points = 3\nhidden_units = { low = 10.5, high = 20 }',
            "search.hidden_units must have whole numbers as low and high, got 10.5 and 20",
        ),
    ],
)
def test_bad_dimension_is_named_with_its_value(search: str, message: str) -> None:
    assert str(refusal(study(search))) == f"study.toml: {message}"


def test_too_large_grid_gets_its_size_the_limit_and_the_flag() -> None:
    search = "learning_rate = { log10 = [0, -200] }\nlambda_1 = { log10 = [0, -200] }"
    assert str(refusal(study(search))) == (
        "study.toml: the grid has 40,401 points, more than the limit of 10,000: "
        "raise it with --set search.max_points=40401"
    )
    assert parsed(study(search + "\nmax_points = 40401")).num_points == 40_401


def test_too_long_dimension_is_refused_before_it_is_listed() -> None:
    error = refusal(study("learning_rate = { log10 = [-300, 300], per_decade = 1000 }"))
    assert "has 600,001 values, more than the limit of 10,000 points" in str(error)
    assert "--set search.max_points=600001" in str(error)


def test_limit_holds_for_drawn_points_too() -> None:
    error = refusal(study('strategy = "tpe"\nnum_points = 300000\nlearning_rate = [0.1]'))
    assert "the search has 300,000 points, more than the limit of 10,000" in str(error)


@pytest.mark.parametrize(
    ("values", "hint"),
    [
        ("{ log10 = [0, 1], per_decade = 9 }", "lower per_decade or widen log10"),
        ("[50, 50]", "each point is counted once"),
    ],
)
def test_value_that_stands_twice_gets_the_way_out(values: str, hint: str) -> None:
    assert refusal(study(f"hidden_units = {values}")).hint == hint


# Any document: InputError or a definition, nothing else

_SECTION_KEYS = {
    "data": list(DataSettings.model_fields),
    "model": list(ModelSettings.model_fields),
    "training": list(TrainingSettings.model_fields),
    "stopping": list(StoppingSettings.model_fields),
    "pruning": list(PruningSettings.model_fields),
    "search": ["strategy", "num_points", "max_points", *TrainingSettings.model_fields],
}
_SCALARS = st.one_of(
    st.integers(-(10**3), 10**3),
    st.sampled_from([2**63, 10**30, -(10**400), 10**400]),
    st.floats(),
    st.booleans(),
    st.text(max_size=4),
    st.sampled_from(["tanh", "grid", "tpe", "mlp", "median", "sgd", 1, 3, 0.1, 0]),
)
_SHAPES = st.dictionaries(
    st.sampled_from(["log10", "zero", "per_decade", "low", "high", "log", "values", "x"]),
    _SCALARS | st.lists(_SCALARS, max_size=3),
    max_size=3,
)
_DOCUMENTS = st.fixed_dictionaries(
    {"name": st.just("a") | _SCALARS},
    optional={
        section: st.dictionaries(st.sampled_from(keys), _SCALARS | st.lists(_SCALARS, max_size=3) | _SHAPES, max_size=3)
        | _SCALARS
        for section, keys in _SECTION_KEYS.items()
    },
)


@given(_DOCUMENTS)
def test_any_document_is_a_definition_or_one_line_that_says_why_not(document: dict[str, Any]) -> None:
    try:
        definition = parse_definition(document, source="study.toml")
    except InputError as error:
        outcome = str(error)
    else:
        assert StudyDefinition.from_canonical_json(definition.canonical_json()) == definition
        outcome = "study.toml: fine"
    assert outcome.startswith("study.toml: ")
    assert "\n" not in outcome


# --set


@pytest.fixture
def study_file(tmp_path: Path) -> Path:
    file = tmp_path / "study.toml"
    file.write_text(NOTES_GRID)
    return file


@pytest.mark.parametrize(
    ("override", "section", "key", "value"),
    [
        ("training.max_epochs=3", "training", "max_epochs", 3),
        (" training.max_epochs = 3 ", "training", "max_epochs", 3),
        ("data.dataset=digits", "data", "dataset", "digits"),
        ('data.dataset="digits"', "data", "dataset", "digits"),
        ("data.dataset=../my=files/x", "data", "dataset", "../my=files/x"),
        ("data.dataset=2024-01-01", "data", "dataset", "2024-01-01"),
        ("training.shuffle=true", "training", "shuffle", True),
        ("model.kernels=[6, 16]", "model", "kernels", (6, 16)),
        ("model.options.width=5", "model", "options", (("width", 5),)),
    ],
)
def test_override_replaces_one_value(study_file: Path, override: str, section: str, key: str, value: object) -> None:
    definition = load_definition(study_file, [override])
    assert getattr(getattr(definition, section), key) == value
    assert len(describe_differences(load_definition(study_file), definition)) == 1


def test_override_reaches_into_tables_and_replaces_the_name(study_file: Path) -> None:
    definition = load_definition(study_file, ["name=other", "search.learning_rate.log10=[-1, -2]"])
    assert definition.name == "other"
    assert definition.search.dimensions[0].values == (0.1, 0.01)


@pytest.mark.parametrize("name", ["5", "1e3", "true", "0x10"])
def test_override_of_the_name_is_a_word_even_if_toml_knows_it_otherwise(study_file: Path, name: str) -> None:
    assert load_definition(study_file, [f"name={name}"]).name == name
    assert load_definition(study_file, [f'name="{name}"']).name == name


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("training.max_epochs", "--set training.max_epochs: must be KEY=VALUE"),
        ("=3", "--set =3: must be KEY=VALUE"),
        ("training..max_epochs=3", "--set training..max_epochs=3: must be KEY=VALUE"),
        ("name.first=3", "--set name.first=3: name is a value, not a section"),
    ],
)
def test_malformed_override_is_named(study_file: Path, override: str, message: str) -> None:
    with pytest.raises(InputError) as caught:
        load_definition(study_file, [override])
    assert str(caught.value) == message


def test_bad_value_of_an_override_is_not_blamed_on_the_file_alone(study_file: Path) -> None:
    with pytest.raises(InputError) as caught:
        load_definition(study_file, ["training.max_epochs=0"])
    assert str(caught.value).startswith(f"{study_file} with --set: training.max_epochs must be")


def test_line_break_in_an_override_smuggles_no_second_key(study_file: Path) -> None:
    with pytest.raises(InputError, match=r"training\.max_epochs must be a whole number"):
        load_definition(study_file, ["training.max_epochs=3\nbatch_size=1"])


# Files


def test_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such study file") as caught:
        load_definition(tmp_path / "none.toml")
    assert caught.value.hint is not None


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"name = ", "not valid TOML"),
        (b"name = '\xff'", "byte 8 is not UTF-8"),
        (b"a = 1\na = 2", "not valid TOML"),
    ],
)
def test_file_that_is_no_toml_is_named(tmp_path: Path, content: bytes, reason: str) -> None:
    file = tmp_path / "study.toml"
    file.write_bytes(content)
    with pytest.raises(InputError) as caught:
        load_definition(file)
    assert str(caught.value).startswith(f"{file}: {reason}")
    assert caught.value.hint is not None


def test_folder_in_place_of_a_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        load_definition(tmp_path)
    assert str(caught.value) == f"{tmp_path}: cannot be read: Is a directory"
    assert caught.value.hint == "name a TOML file that you may read"


# One text per meaning

_TEXTS = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=20)
_NUMBERS = st.floats(1e-300, 1e9, allow_nan=False)


@st.composite
def definitions(draw: st.DrawFn) -> StudyDefinition:
    """Valid definitions of all kinds."""
    strategy = draw(st.sampled_from(["grid", "listed", "coarse-to-fine", "random", "qmc", "tpe", "gp", "cmaes"]))
    search: dict[str, Any] = {"max_points": 10**6, "strategy": strategy}
    if strategy == "coarse-to-fine":
        search |= draw(st.fixed_dictionaries({"lambda_2": st.just([0.0])}, optional={"budget_hours": _NUMBERS}))
    if strategy in DRAWN:
        search["num_points"] = draw(st.integers(1, 99))
        low, high = sorted(draw(st.lists(_NUMBERS, min_size=2, max_size=2, unique=True)))
        search["schedule_decay"] = {"low": low, "high": high, "log": draw(st.booleans())}
        first = draw(st.integers(1, 10**6))
        last = draw(st.integers(first + 1, 10**7))
        search["batch_size"] = {"low": first, "high": last, "log": draw(st.booleans())}
    shapes = {
        "learning_rate": st.lists(_NUMBERS, min_size=1, max_size=4, unique=True),
        "lambda_1": st.fixed_dictionaries(
            {
                "log10": st.lists(st.integers(-9, 2) | st.just(-0.0), min_size=2, max_size=2),
                "zero": st.booleans(),
            },
            optional={"per_decade": st.integers(1, 9)},
        ).map(lambda table: {**table, "zero_share": 0.25} if table["zero"] and strategy in DRAWN else table),
        "hidden_units": st.lists(st.integers(1, 10**5), min_size=1, max_size=4, unique=True)
        | st.lists(st.integers(0, 5), min_size=2, max_size=2).map(lambda ends: {"log10": ends}),
        "activation": st.sampled_from([["tanh"], ["relu", "sigmoid"]]),
        "shuffle": st.sampled_from([[True], [False, True]]),
        "seed": st.lists(st.integers(0, 2**63 - 1), min_size=1, max_size=3, unique=True),
    }
    search |= draw(st.fixed_dictionaries({}, optional=shapes)) if strategy != "listed" else {}
    if strategy == "listed":
        keys = {
            "learning_rate": _NUMBERS,
            "seed": st.integers(0, 2**63 - 1),
            "kernels": st.sampled_from([[4, 8], [20, 50]]),
            "options.width": st.integers(1, 99),
            "options.kind": st.sampled_from(["a", "b"]),
        }
        points = st.lists(st.fixed_dictionaries({"momentum": st.just(0.5)}, optional=keys), min_size=1, max_size=4)
        search["points"] = draw(points)
    search = dict(draw(st.permutations(list(search.items()))))
    document = {
        "name": draw(st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", fullmatch=True)),
        "seed": draw(st.integers(0, 2**63 - 1)),
        "data": {"dataset": draw(_TEXTS)},
        "model": {"kernels": draw(st.tuples(st.integers(1, 99), st.integers(1, 99)).map(list))},
        "training": {"learning_rate": draw(_NUMBERS), "schedule": "inverse-time", "optimizer": "momentum"},
        "search": search,
    }
    family = draw(st.sampled_from(["cnn", "mlp", "package.module:factory"]))
    if family == "package.module:factory":
        value = _TEXTS | st.integers(-(10**9), 10**9) | st.floats(-1e9, 1e9) | st.booleans()
        document["model"] = {"options": draw(st.dictionaries(st.sampled_from(["a", "b", "c_d"]), value))}
        if strategy != "listed":
            search |= draw(
                st.fixed_dictionaries(
                    {}, optional={"options.e": st.lists(value, min_size=1, max_size=3, unique_by=repr)}
                )
            )
    document["model"] |= {"family": family}
    try:
        return parse_definition(document, source="study.toml")
    except InputError:
        reject()  # two points or values that are equal, a dimension without an effect


@given(definitions())
def test_canonical_json_reads_back_as_the_same_definition(definition: StudyDefinition) -> None:
    again = StudyDefinition.from_canonical_json(definition.canonical_json())
    assert again == definition
    assert again.canonical_json() == definition.canonical_json()
    assert again.sha256 == definition.sha256
    assert describe_differences(definition, again) == []
    for old, new in zip(definition.search.dimensions, again.search.dimensions, strict=True):
        assert [type(value) for value in old.values] == [type(value) for value in new.values]


@given(definitions())
def test_document_is_a_study_file_again_that_says_the_same(definition: StudyDefinition) -> None:
    document = definition.document()
    again = parse_definition(document, source="again.toml")
    assert again == definition
    assert again.sha256 == definition.sha256
    assert again.document() == document
    # Through TOML's text, too: it puts tables last, and a dataset's name may hold what its writer escapes.
    through_text = parse_definition(tomllib.loads(tomli_w.dumps(document)), source="again.toml")
    assert through_text == definition
    assert through_text.sha256 == definition.sha256
    assert through_text.document() == document


@pytest.mark.parametrize(
    ("strategy", "dimension"),
    [
        ('"grid"', "learning_rate = { log10 = [-1, -4] }"),
        ('"grid"', "lambda_1 = { log10 = [-1.5, -2], per_decade = 2, zero = true }"),
        ('"grid"', "hidden_units = { log10 = [0, 2], per_decade = 2 }"),
        ('"grid"', 'activation = ["tanh", "relu"]'),
        ('"grid"', "shuffle = [true, false]"),
        ('"tpe"\nnum_points = 3', "learning_rate = { low = 0.001, high = 0.1, log = true }"),
        ('"tpe"\nnum_points = 3', "lambda_1 = { low = 0.0, high = 0.1 }"),
        ('"tpe"\nnum_points = 3', "hidden_units = { low = 10, high = 500, log = true }"),
        ('"tpe"\nnum_points = 3', "lambda_2 = { log10 = [-1, -4], zero = true }"),
    ],
)
def test_document_has_each_kind_of_dimension_as_a_user_writes_it(strategy: str, dimension: str) -> None:
    definition = parsed(study(f"strategy = {strategy}\n{dimension}"))
    name, _, _ = dimension.partition(" = ")
    document = definition.document()
    assert document["search"][name] == tomllib.loads(dimension)[name]
    assert parse_definition(document, source="again.toml") == definition


def test_document_gives_no_warning_of_the_defaults_and_keeps_what_was_set(
    caplog: pytest.LogCaptureFixture,
) -> None:
    text = 'name = "a"\n[training]\nbeta_1 = 0.5'
    document = parsed(text).document()
    assert document["training"]["beta_1"] == 0.5
    assert "momentum" not in document["training"]
    assert "kernels" not in document["model"]
    caplog.clear()
    parse_definition(parsed('name = "a"').document(), source="again.toml")
    assert caplog.messages == []


@given(definitions(), definitions())
def test_differences_are_empty_exactly_if_the_hashes_are_equal(one: StudyDefinition, other: StudyDefinition) -> None:
    assert (describe_differences(one, other) == []) == (one.sha256 == other.told_like(one).sha256)


@given(definitions(), st.randoms(use_true_random=False))
def test_order_of_keys_and_dimensions_is_not_part_of_a_definition(definition: StudyDefinition, random: Random) -> None:
    def shuffled(table: dict[str, Any]) -> dict[str, Any]:
        items = [(key, shuffled(value) if isinstance(value, dict) else value) for key, value in table.items()]
        return dict(random.sample(items, len(items)))

    other = parse_definition(shuffled(definition.document()), source="other.toml")
    assert compare_definitions(definition, other).is_none
    assert other.told_like(definition).sha256 == definition.sha256


def test_defaults_written_out_and_another_order_of_the_keys_are_the_same_definition() -> None:
    brief = parsed('name = "a"\n[search]\nlearning_rate = { log10 = [-1, -2] }')
    long = parsed(
        """
        seed = 0
        name = "a"
        [search]
        learning_rate = { zero = false, per_decade = 1, log10 = [-1.0, -2.0] }
        strategy = "grid"
        [training]
        max_epochs = 200
        learning_rate = 0.01
        """
    )
    assert brief.canonical_json() == long.canonical_json()
    assert brief.sha256 == long.sha256 == hashlib.sha256(brief.canonical_json().encode()).hexdigest()


def test_hash_changes_with_any_value() -> None:
    hashes = {
        parsed(text).sha256
        for text in (
            'name = "a"',
            'name = "b"',
            'name = "a"\nseed = 1',
            'name = "a"\n[training]\nmax_epochs = 3',
            study("learning_rate = [0.1]"),
            study("learning_rate = [0.2]"),
            study("learning_rate = { log10 = [-1, -1] }"),  # the same value, but on another scale
        )
    }
    assert len(hashes) == 7


def test_canonical_text_has_every_default_and_sorted_keys() -> None:
    document = json.loads(parsed(NOTES_GRID).canonical_json())
    assert document["training"]["max_epochs"] == 200
    assert document["training"]["beta_2"] == 0.999
    assert list(document) == sorted(document)


def test_differences_name_each_field_once_with_both_values() -> None:
    one = parsed('name = "a"\n[search]\nlearning_rate = [0.1]\nlambda_1 = [0.0, 0.5]')
    other = parsed('name = "a"\n[training]\nmax_epochs = 3\n[search]\nlearning_rate = [0.1, 0.2]')
    assert describe_differences(one, other) == [
        "search.lambda_1: [0.0, 0.5] in the study, absent given",
        "search.learning_rate: [0.1] in the study, [0.1, 0.2] given",
        "training.max_epochs: 200 in the study, 3 given",
    ]


def test_differences_show_dimensions_as_they_are_written() -> None:
    one = parsed(study("lambda_1 = { log10 = [-1, -4.5], per_decade = 2 }"))
    other = parsed(study("lambda_1 = { log10 = [-1, -4], zero = true }"))
    assert describe_differences(one, other) == [
        "search.lambda_1: { log10 = [-1, -4.5], per_decade = 2 } in the study, { log10 = [-1, -4], zero = true } given"
    ]


# Points of a list


def listed(points: str) -> str:
    return study(f'strategy = "listed"\npoints = [{points}]')


def test_listed_points_are_the_study_s_points_in_order_as_their_sections_read_them() -> None:
    text = listed('{ learning_rate = 1, seed = 3 }, { kernels = [4, 8], family = "cnn" }')
    definition = parsed(text)
    assert list(definition.points()) == [
        {"learning_rate": 1.0, "seed": 3},
        {"family": "cnn", "kernels": "4x8"},
    ]
    assert definition.num_points == 2
    assert set(definition.distributions()) == {"learning_rate", "seed", "kernels", "family"}
    assert parse_definition(definition.document(), source="again") == definition


def test_listed_point_leaves_to_the_study_what_it_does_not_name_and_has_an_effect() -> None:
    definition = parsed(
        listed(
            '{ optimizer = "momentum", momentum = 0.5 }, { optimizer = "momentum" }, { hidden_units = 9, seed = 4 }, '
            '{ family = "cnn", kernels = [4, 8] }, { family = "cnn" }'
        )
    )
    left = [definition.left_to_study(point) for point in definition.points()]
    assert left[0] == {"hidden_units": 500, "seed": 0, "family": "mlp"}
    assert left[1] == {"momentum": 0.9, **left[0]}
    assert left[2] == {"optimizer": "sgd", "family": "mlp"}
    assert left[4] == {"optimizer": "sgd", "hidden_units": 500, "seed": 0, "kernels": "20x50"}


def test_points_of_other_strategies_leave_nothing_to_the_study() -> None:
    assert parsed(study("learning_rate = [0.1]")).left_to_study({}) == {}


def test_listed_point_loses_what_has_no_effect_in_it() -> None:
    definition = parsed(listed('{ optimizer = "sgd", momentum = 0.5 }, { optimizer = "momentum", momentum = 0.5 }'))
    assert list(definition.points()) == [{"optimizer": "sgd"}, {"optimizer": "momentum", "momentum": 0.5}]


def test_points_that_say_the_same_in_other_words_are_refused() -> None:
    assert "point 2 is equivalent to point 1" in str(refusal(listed("{ seed = 0 }, { learning_rate = 0.01 }")))


def test_budget_below_the_first_grid_is_told_of(caplog: pytest.LogCaptureFixture) -> None:
    text = 'strategy = "coarse-to-fine"\nlearning_rate = { log10 = [-1, -4] }\nbudget_points = '
    parsed(study(text + "4"))
    assert caplog.messages == []
    parsed(study(text + "3"))
    assert caplog.messages == [
        "study.toml: search.budget_points = 3 is less than the 4 points of the grid that the search begins with: "
        "only a part of them will be trained"
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (study('strategy = "listed"'), "search.points is missing"),
        (listed("{ learning_rate = 0.1 }, { learning_rate = 0.1 }"), "point 2 is equivalent to point 1"),
        (listed("{ learning_rat = 0.1 }"), "search.points: search.learning_rat: no such key"),
        (listed("{ learning_rate = -1 }"), "search.learning_rate must be finite and > 0, got -1"),
        (listed("{ learning_rate = [0.1] }"), "point 1: learning_rate must be a plain value"),
        (listed("{ learning_rate = [0.1, 0.2] }"), "point 1: learning_rate must be a plain value"),
        (listed("3"), "must be a table of names and values"),
        (
            listed("{ seed = 1 }, { seed = 2 }, { seed = 3 }") + "max_points = 2\n",
            "search.points has 3 points, more than",
        ),
        (
            listed("{ seed = 1 }") + "learning_rate = [0.1]\n",
            "search.learning_rate cannot be combined with strategy listed",
        ),
        (study("points = [{ seed = 1 }]"), "search.points belongs to strategy listed, not to grid"),
        (study("budget_hours = 1.0"), "search.budget_hours belongs to strategy coarse-to-fine, not to grid"),
        (study('strategy = "coarse-to-fine"'), "search has no dimension for strategy coarse-to-fine to look at"),
        (study('strategy = "coarse-to-fine"\nlearning_rate = [0.1]\nnum_points = 3'), "search.num_points belongs to"),
        (
            study('strategy = "coarse-to-fine"\nlearning_rate = [0.1]\nbudget_points = 0'),
            "search.budget_points must be",
        ),
    ],
)
def test_bad_list_or_budget_is_refused(text: str, message: str) -> None:
    assert message in str(refusal(text))


# Kernels, coarse to fine


def test_kernels_are_searched_as_texts_and_resolved_as_pairs() -> None:
    definition = parsed('name = "a"\n[model]\nfamily = "cnn"\n[search]\nkernels = [[4, 8], "20x50"]')
    points = list(definition.points())
    assert points == [{"kernels": "4x8"}, {"kernels": "20x50"}]
    assert [definition.resolve(point).model.kernels for point in points] == [(4, 8), (20, 50)]
    assert StudyDefinition.from_canonical_json(definition.canonical_json()) == definition


@pytest.mark.parametrize("kernels", ["[4, 8]", "[[4]]", '["4"]', "[[4, 0]]", "[[4, 8], [4, 8]]"])
def test_kernels_that_are_no_pairs_or_stand_twice_are_refused(kernels: str) -> None:
    assert "kernels" in str(refusal(f'name = "a"\n[model]\nfamily = "cnn"\n[search]\nkernels = {kernels}'))


def test_coarse_to_fine_has_the_same_distributions_for_all_rounds_with_room_to_grow() -> None:
    text = (
        'strategy = "coarse-to-fine"\nlearning_rate = { log10 = [-1, -3] }\n'
        "lambda_2 = { log10 = [-2, -4], zero = true }"
    )
    definition = parsed(
        study(
            text + "\nhidden_units = { log10 = [1, 2] }\nmomentum = { low = 0.1, high = 0.9 }\n"
            'optimizer = ["momentum"]\nbudget_epochs = 7'
        )
    )
    distributions = definition.distributions()
    point = {"learning_rate": 100.0, "lambda_2": 0.0, "hidden_units": 1, "momentum": 0.9, "optimizer": "momentum"}
    parameters = definition.parameters(point)
    assert parameters == {
        "learning_rate": 100.0,
        "lambda_2_is_zero": True,
        "hidden_units": 1,
        "momentum": 0.9,
        "optimizer": "momentum",
    }
    assert definition.parameters({"lambda_2": 0.5}) == {"lambda_2_is_zero": False, "lambda_2": 0.5}
    for name, value in {**parameters, "lambda_2": 0.5}.items():
        assert distributions[name]._contains(distributions[name].to_internal_repr(value)), name
    assert not distributions["learning_rate"]._contains(101.0)
    assert parse_definition(definition.document(), source="again") == definition
    assert definition.resolve(parameters).training.lambda_2 == 0.0
    assert not definition.is_admissible({"momentum": 1.0})
    assert definition.reduce({"optimizer": "sgd", "momentum": 0.3}) == {"optimizer": "sgd"}


def test_points_of_a_list_may_have_schedules_of_their_own_and_no_point_two_ends() -> None:
    text = listed('{ schedule = "step", schedule_target = 0.001 }, { schedule = "step", schedule_factor = 0.9 }')
    target, factor = (parsed(text).resolve(point).training for point in parsed(text).points())
    assert (target.schedule_target, target.schedule_factor) == (0.001, None)
    assert (factor.schedule_target, factor.schedule_factor) == (None, 0.9)
    both = '{ schedule = "step" }, { schedule = "step", schedule_target = 0.001, schedule_factor = 0.9 }'
    assert "search.points: point 2: training.schedule_target stands in place of" in str(refusal(listed(both)))
    beside_the_study_s = (
        listed("{ schedule_target = 0.001 }") + '\n[training]\nschedule = "step"\nschedule_factor = 0.5'
    )
    assert "point 1: training.schedule_target stands in place of" in str(refusal(beside_the_study_s))


# The share of zeros


SHARED = 'strategy = "random"\nnum_points = 9\nlambda_2 = { log10 = [-2, -4], zero = true, zero_share = 0.1 }'


@pytest.mark.parametrize(("share", "expected"), [("", 0.5), (", zero_share = 0.1", 0.1), (", zero_share = 0.9", 0.9)])
@pytest.mark.parametrize("strategy", ["random", "qmc"])
def test_share_of_zeros_is_half_of_the_draws_or_what_is_asked_for(strategy: str, share: str, expected: float) -> None:
    text = SHARED.replace(", zero_share = 0.1", share).replace("random", strategy)
    definition = parsed(study(text))
    space = explore(definition.draw)
    assert set(space.always) == {"lambda_2_is_zero"}
    assert set(space.sometimes) == {"lambda_2"}
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    drawn = []
    for number in range(300):
        sampler = build_sampler(strategy, study_seed=3, trial_number=number, point=number, space=space)
        trial = optuna.create_study(sampler=sampler).ask()
        point = definition.draw(trial)
        assert definition.resolve(trial.params).training.lambda_2 == point["lambda_2"]
        drawn.append(point["lambda_2"] == 0)
    assert sum(drawn) / 300 == pytest.approx(expected, abs=0.07)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (SHARED.replace("zero = true, ", ""), "zero_share is of the zero that zero = true adds"),
        (SHARED.replace("0.1", "1.5"), "zero_share must be finite and > 0 and < 1, got 1.5"),
        (SHARED.partition("\n")[2].partition("\n")[2], "zero_share belongs to strategies that draw"),
    ],
)
def test_share_of_zeros_that_means_nothing_is_refused(text: str, message: str) -> None:
    assert message in str(refusal(study(text)))


def test_a_definition_without_the_share_has_the_text_that_it_had_before() -> None:
    assert "zero_share" not in parsed(study(SHARED.replace(", zero_share = 0.1", ""))).canonical_json()
    assert parsed(study(SHARED)).document()["search"]["lambda_2"]["zero_share"] == 0.1


# Where the data is


def test_a_relative_path_that_an_older_hpsearch_stored_is_the_absolute_one_of_today() -> None:
    old, new = (parsed(f'name = "a"\n[data]\ndataset = "{path}"') for path in ("sets/mine", "/home/me/sets/mine"))
    assert compare_definitions(old, new).is_none
    assert new.told_like(old).sha256 == old.sha256
    for other in ("/home/me/mine", "/home/me/sets/mine/x", "other/sets/mine"):
        assert not compare_definitions(old, parsed(f'name = "a"\n[data]\ndataset = "{other}"')).is_none
