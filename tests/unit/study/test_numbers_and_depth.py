"""Every number has bounds, and nothing is nested without end: one line says so, and what is accepted can be trained."""

from __future__ import annotations

import contextlib
import json
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import optuna
import pytest
from hypothesis import given, reject, settings
from hypothesis import strategies as st

from hpsearch.cli.main import run_command_line
from hpsearch.errors import InputError, StorageError
from hpsearch.search.pruners import build_pruner
from hpsearch.search.samplers.build import build_sampler
from hpsearch.search.stopping import stopping_rule
from hpsearch.store.rows.distributions import parse_stored_distribution
from hpsearch.store.rows.points import narrowing_of
from hpsearch.stored_json import parse_stored
from hpsearch.study.definition import StudyDefinition
from hpsearch.study.space import DRAWN
from hpsearch.study.study_file import load_definition, parse_definition
from hpsearch.worker.objective import Objective

OUT_OF_BOUNDS = [
    ("seed = 1" + "0" * 4301, "a number of more than 4,300 digits"),
    ("seed = 0x1" + "0" * 4301, "seed: whole numbers have at most 64 bits"),
    ("x = " + "[" * 1200, "nested too deeply: 16 levels at most"),
    ("x = " + "{a=" * 600, "nested too deeply"),
    ("x = " + "[" * 40 + "]" * 40, "nested too deeply"),
    ("[" + "a." * 2000 + "a]", "nested too deeply"),
    ("[stopping]\npatience = 1" + "0" * 400, "stopping.patience: whole numbers have at most 64 bits"),
    ("[stopping]\npatience = 1000000000000001", "patience must be at most 1,000,000,000,000,000, got"),
    ("[stopping]\npatience_increase = 1e10", "must be at most 1,000,000,000, got 10,000,000,000.0"),
    ("[model]\nhidden_units = 1000000000000000000", "hidden_units must be at most 100,000, got 1,000,000,000"),
    ("[model]\nkernels = [1, 1001]", "kernels.1 must be at most 1,000, got 1,001"),
    ("[search]\nlearning_rate = [1e308]", "search.learning_rate must be at most 1,000,000,000, got"),
    ("[search]\nlearning_rate = { log10 = [300, 299] }", "search.learning_rate must be at most 1,000,000,000, got"),
    (
        "[search]\nhidden_units = { low = 1, high = 1e18 }\nstrategy = 'random'\nnum_points = 1",
        "must be at most 100,000",
    ),
    ("[search]\nmax_points = 1000001", "max_points must be at most 1,000,000, got 1,000,001"),
    ("[search]\nstrategy = 'random'\nnum_points = 1000000000", "num_points must be at most 1,000,000"),
    ("[training]\nmax_epochs = 2147483648", "max_epochs must be at most 1,000,000,000, got 2,147,483,648"),
    ("[pruning]\nwarmup_epochs = 9999999999", "warmup_epochs must be at most 1,000,000,000"),
    ('[model]\nfamily = "a:b"\noptions = { x = "\\u0000" }', "text must be Unicode without NUL"),
]


@pytest.mark.parametrize(("text", "message"), OUT_OF_BOUNDS, ids=[message[:30] for _, message in OUT_OF_BOUNDS])
def test_what_passes_a_bound_is_told_the_bound_in_one_line(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "study.toml"
    path.write_text(f'name = "a"\n{text}\n')
    with pytest.raises(InputError) as caught:
        load_definition(path)
    assert message in str(caught.value)
    assert len(str(caught.value)) < 300
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "override",
    [
        "x=" + "[" * 1200,
        "x=" + "{a=" * 600,
        "seed=1" + "0" * 4301,
        "a." * 2000 + "a=1",
        "stopping.patience=1" + "0" * 400,
    ],
    ids=["lists", "tables", "digits", "keys", "number"],
)
def test_an_override_is_bounded_alike(override: str, tmp_path: Path) -> None:
    path = tmp_path / "study.toml"
    path.write_text('name = "a"')
    with pytest.raises(InputError) as caught:
        load_definition(path, [override])
    assert len(str(caught.value)) < 300


def test_a_definition_from_python_is_bounded_alike() -> None:
    deep: Any = 1
    for _ in range(5000):
        deep = [deep]
    for bad in ({"x": deep}, {"seed": 10**5000}, {"data": {"dataset": "\ud800"}}):
        with pytest.raises(InputError):
            parse_definition({"name": "a", **bad}, source="the definition")


@pytest.mark.parametrize("text", ["[" * 100_000, '{"a":' * 100_000, "1" + "0" * 5000, "nothing"])
def test_json_of_the_database_is_bounded_alike(text: str) -> None:
    with pytest.raises(StorageError, match="cannot be read"):
        parse_stored(text, "a value", "a table")
    with pytest.raises(StorageError, match="cannot be read"):
        parse_stored_distribution(text, "a parameter")


@pytest.mark.parametrize(
    "arguments",
    [
        ["worker", "a", "--checkpoint-seconds=nan"],
        ["worker", "a", "--stall-seconds=1e400"],
        ["worker", "a", "--lanes", "9" * 5000],
        ["worker", "a", "--metrics", "9" * 5000],
        ["worker", "a", "--device", "cuda:" + "9" * 5000],
        ["confirm", "a", "--top", "1" + "0" * 30],
        ["confirm", "a", "--seeds", "1" + "0" * 30],
        ["health", "--life-sign=x", "--max-age=nan"],
    ],
    ids=lambda arguments: " ".join(arguments)[:30],
)
def test_a_number_on_the_command_line_is_bounded_alike(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_command_line(arguments) == 2
    told = capsys.readouterr().err
    assert next(word for word in reversed(arguments) if word.startswith("--")).partition("=")[0].strip("-") in told
    assert len(told) < 500


def test_a_file_may_begin_with_a_byte_order_mark(tmp_path: Path) -> None:
    path = tmp_path / "study.toml"
    path.write_bytes(b'\xef\xbb\xbfname = "a"\n')
    assert load_definition(path).name == "a"


# What is accepted can be trained.

# The smallest and the largest that a key takes, and what lies in between; what refuses all else is tested above.
_POSITIVE = st.sampled_from([5e-324, 1e-300, 1e-45, 1e-38, 1e-8, 0.1, 1.0, 1e3, 1e9])
_NOT_NEGATIVE = st.just(0.0) | _POSITIVE
_FRACTION = st.sampled_from([0.0, 5e-324, 1e-8, 0.5, 0.9999999999999999])
_OPEN_FRACTION = st.sampled_from([5e-324, 1e-8, 0.5, 0.9999999999999999])
_ABOVE_ONE = st.sampled_from([1.0000000000000002, 2.0, 1e9])
_WHOLE = st.sampled_from([1, 2, 3, 50, 10**9])
_LONG = st.sampled_from([1, 2, 3, 10**9, 10**15])
_POINTS = st.sampled_from([1, 2, 1000, 10**6])
_UNITS = st.sampled_from([1, 2, 100, 1000])  # the widest has a test of its own
_SEEDS = st.sampled_from([0, 1, 2**31, 2**53 + 1, 2**63 - 1])

_TRAINING = st.fixed_dictionaries(
    {},
    optional={
        **dict.fromkeys(["learning_rate", "epsilon", "schedule_decay"], _POSITIVE),
        **dict.fromkeys(["lambda_1", "lambda_2"], _NOT_NEGATIVE),
        **dict.fromkeys(["momentum", "beta_1", "beta_2"], _FRACTION),
        **dict.fromkeys(["max_epochs", "schedule_every", "schedule_patience"], _WHOLE),
        "schedule_factor": _OPEN_FRACTION,
        "schedule_stop_ratio": _ABOVE_ONE,
        "seed": _SEEDS,
        "batch_size": st.sampled_from([1, 40]),
        "optimizer": st.sampled_from(["sgd", "momentum", "adam"]),
        "schedule": st.sampled_from(["constant", "inverse-time", "halving", "step", "plateau", "exponential"]),
        "shuffle": st.booleans(),
        "precision": st.sampled_from(["float32", "tf32", "bfloat16"]),
    },
)
_STOPPING = st.fixed_dictionaries(
    {"rule": st.sampled_from(["geometric-patience", "significance", "no-improvement-in-n", "none"])},
    optional={
        "patience": _LONG,
        "patience_increase": st.just(1.0) | _ABOVE_ONE,
        "improvement_threshold": _OPEN_FRACTION,
        "significance_level": _OPEN_FRACTION,
        "n": _WHOLE,
    },
)
_PRUNING = st.fixed_dictionaries(
    {"pruner": st.sampled_from(["none", "median", "percentile", "successive-halving", "hyperband"])},
    optional={
        **dict.fromkeys(["warmup_epochs", "startup_trials", "min_epochs"], _WHOLE),
        "reduction_factor": st.sampled_from([2, 3, 10**9]),
        "percentile": st.sampled_from([0.0, 5e-324, 25, 100.0]),
    },
)


def _dimension(values: st.SearchStrategy[Any], exponents: list[int], is_grid: bool) -> st.SearchStrategy[Any]:
    ends = st.lists(st.sampled_from(exponents), min_size=2, max_size=2)
    listed = st.lists(values, min_size=1, max_size=3, unique=True)
    logarithmic = st.fixed_dictionaries({"log10": ends}, optional={"per_decade": st.sampled_from([1, 2])})
    two = st.lists(values, min_size=2, max_size=2, unique=True).map(sorted)
    ranges = st.builds(
        lambda pair, log: {"low": pair[0], "high": pair[1], "log": log and pair[0] > 0}, two, st.booleans()
    )
    return listed | logarithmic if is_grid else listed | logarithmic | ranges


@st.composite
def _searches(draw: st.DrawFn) -> dict[str, Any]:
    strategy = draw(st.sampled_from(["grid", "coarse-to-fine", *DRAWN]))
    is_grid = strategy == "grid"
    exponents = [-300, -45, -8, -1, 0, 9]
    dimensions = {
        **dict.fromkeys(["learning_rate", "schedule_decay", "epsilon"], _dimension(_POSITIVE, exponents, is_grid)),
        "lambda_2": _dimension(_NOT_NEGATIVE, exponents, is_grid),
        "hidden_units": _dimension(_UNITS, [0, 1, 3], is_grid),
        "seed": _dimension(_SEEDS, [0, 9, 18], is_grid),
    }
    names = draw(st.lists(st.sampled_from(sorted(dimensions)), min_size=1, max_size=2, unique=True))
    search = {"strategy": strategy, "max_points": 10**6, **{name: draw(dimensions[name]) for name in names}}
    if strategy in DRAWN:
        search["num_points"] = draw(_POINTS)
    if strategy == "coarse-to-fine":
        bounds = {"budget_points": _POINTS, "budget_epochs": _LONG, "budget_hours": _POSITIVE}
        search |= draw(st.fixed_dictionaries({}, optional=bounds))
    return search


class _OneEpoch(optuna.pruners.BasePruner):
    def prune(self, study: optuna.Study, trial: optuna.trial.FrozenTrial) -> bool:
        return True


@pytest.fixture(scope="module")
def _quiet() -> Iterator[None]:
    logging.disable(logging.WARNING)
    optuna.logging.disable_default_handler()
    yield
    logging.disable(logging.NOTSET)


def train_first_epoch(definition: StudyDefinition) -> None:
    """Build all that a study builds, draw or take its first point, and train that for an epoch."""
    with contextlib.suppress(InputError):  # a first rung behind the last epoch
        build_pruner(definition.pruning, definition.training.max_epochs)
    stopping_rule(definition.stopping, num_minibatches=3)
    strategy = definition.search.strategy
    sampler = build_sampler(strategy, study_seed=definition.seed, trial_number=0) if strategy in DRAWN else None
    study = optuna.create_study(sampler=sampler, pruner=_OneEpoch())
    if sampler is None:
        is_narrowed = strategy == "coarse-to-fine"
        points = narrowing_of(definition).first_round(room=1).points if is_narrowed else definition.points()
        point = next(iter(points))
        for name, value in definition.parameters(point).items():
            definition.distributions()[name].to_internal_repr(value)
        study.enqueue_trial(definition.parameters(point))
    study.optimize(Objective(definition), n_trials=1)


@pytest.mark.usefixtures("_quiet")
@settings(max_examples=25)
@given(_TRAINING, _STOPPING, _PRUNING, _searches(), st.sampled_from(["logistic", "mlp", "mlp"]), _UNITS)
def test_what_is_accepted_trains_its_first_epoch(
    training: dict[str, Any],
    stopping: dict[str, Any],
    pruning: dict[str, Any],
    search: dict[str, Any],
    family: str,
    units: int,
) -> None:
    document = {
        "name": "a",
        "data": {"dataset": "digits", "train_samples": 40},
        "model": {"family": family, "hidden_units": units},
        "training": {"batch_size": 20, **training},
        "stopping": stopping,
        "pruning": pruning,
        "search": search,
    }
    try:
        definition = parse_definition(json.loads(json.dumps(document)), source="study.toml")
        Objective(definition)
    except InputError:
        reject()  # a dimension that has no effect, values that meet when they are rounded, too many points
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        warnings.simplefilter("ignore", UserWarning)  # Optuna: a range's step
        train_first_epoch(definition)


@pytest.mark.slow
@pytest.mark.usefixtures("_quiet")
def test_the_widest_layer_trains_its_first_epoch() -> None:
    document = {
        "name": "a",
        "data": {"dataset": "digits", "train_samples": 40},
        "model": {"hidden_units": 100_000},
        "training": {"batch_size": 40},
        "search": {"learning_rate": [0.1]},
    }
    train_first_epoch(parse_definition(document, source="study.toml"))


def test_a_study_that_was_stored_beyond_a_bound_stays_readable() -> None:
    """An earlier version accepted it."""
    stored = json.loads(parse_definition({"name": "a"}, source="test").canonical_json())
    stored["search"]["max_points"] = 10**7
    stored["model"]["hidden_units"] = 200_000
    stored["training"]["max_epochs"] = 10**10
    definition = StudyDefinition.from_canonical_json(json.dumps(stored))
    assert (definition.search.max_points, definition.model.hidden_units) == (10**7, 200_000)
