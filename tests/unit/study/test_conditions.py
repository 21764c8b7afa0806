"""Keys that matter only beside others: searched in vain they are refused, set in vain they are told of."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import pytest

from hpsearch.errors import InputError
from hpsearch.study.definition import StudyDefinition
from hpsearch.study.study_file import load_definition, parse_definition

STUDIES = Path(__file__).parents[3] / "studies"


def parsed(text: str) -> StudyDefinition:
    return parse_definition(tomllib.loads(f'name = "a"\n{text}'), source="study.toml")


def refusal(text: str) -> InputError:
    with pytest.raises(InputError) as caught:
        parsed(text)
    return caught.value


@pytest.mark.parametrize(
    ("text", "said", "hint"),
    [
        (
            "[search]\nmomentum = [0.5, 0.9]",
            "search.momentum has no effect: training.optimizer is sgd",
            "it belongs to training.optimizer = momentum",
        ),
        (
            '[search]\noptimizer = ["sgd", "adam"]\nmomentum = [0.5]',
            "search.momentum has no effect: training.optimizer is sgd or adam",
            "it belongs to training.optimizer = momentum",
        ),
        (
            '[model]\nfamily = "logistic"\n[search]\nhidden_units = [50, 100]',
            "search.hidden_units has no effect: model.family is logistic",
            "it belongs to model.family = mlp or cnn",
        ),
        (
            '[search]\nstrategy = "random"\nnum_points = 3\nschedule_decay = { low = 0.1, high = 0.2 }',
            "search.schedule_decay has no effect: training.schedule is constant",
            "it belongs to training.schedule = inverse-time",
        ),
        (
            "[search]\noptions.width = [3]",
            "search.options.width has no effect: model.family is mlp",
            "it belongs to model.family = package.module:factory",
        ),
        (
            '[model]\nfamily = "my.networks:build"\n[search]\nhidden_units = [50, 100]',
            "search.hidden_units has no effect: model.family is my.networks:build",
            "it belongs to model.family = mlp or cnn",
        ),
    ],
)
def test_searched_key_without_effect_is_refused(text: str, said: str, hint: str) -> None:
    error = refusal(text)
    assert str(error) == f"study.toml: {said}"
    assert error.hint == hint


def test_grid_has_conditional_parameters_only_where_they_have_an_effect() -> None:
    definition = parsed(
        '[search]\nmomentum = [0.5, 0.9, 0.99]\noptimizer = ["sgd", "momentum"]\nlearning_rate = [0.1, 0.2]'
    )
    points = list(definition.points())
    assert definition.num_points == len(points) == 2 * (1 + 3)
    assert len({frozenset(point.items()) for point in points}) == len(points)
    assert all(("momentum" in point) == (point["optimizer"] == "momentum") for point in points)


def test_grid_over_several_owners_counts_each_point_once() -> None:
    definition = parsed(
        '[search]\nfamily = ["logistic", "mlp", "my.networks:build"]\n'
        "hidden_units = [50, 100]\noptions.width = [3, 4]\n"
        'schedule = ["constant", "inverse-time", "step"]\nschedule_decay = [0.1, 0.2]\nschedule_every = [5, 10, 20]'
    )
    points = list(definition.points())
    assert definition.num_points == len(points) == (1 + 2 + 2) * (1 + 2 + 3)
    assert len({frozenset(point.items()) for point in points}) == len(points)


def test_huge_conditional_grid_is_counted_without_a_look_at_each_point() -> None:
    values = ", ".join(str(value) for value in range(1, 1001))
    error = refusal(
        f'[search]\noptimizer = ["sgd", "momentum"]\nmomentum = [0.1, 0.2]\nseed = [{values}]\n'
        f"batch_size = [{values}]\nhidden_units = [{values}]"
    )
    assert "3,000,000,000 points" in str(error)


class _Recorder:
    """Draws the last of what is offered, and remembers what was asked for."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def suggest_float(self, name: str, low: float, high: float, *, log: bool = False) -> float:
        self.asked.append(name)
        return high

    def suggest_int(self, name: str, low: int, high: int, *, log: bool = False) -> int:
        self.asked.append(name)
        return high

    def suggest_categorical(self, name: str, choices: Any) -> Any:
        self.asked.append(name)
        return choices[-1]


@pytest.mark.parametrize(
    ("optimizers", "asked"),
    [
        ('["sgd", "momentum"]', ["optimizer", "momentum", "learning_rate"]),
        ('["momentum", "sgd"]', ["optimizer", "learning_rate"]),
    ],
)
def test_drawn_point_is_asked_for_its_owners_first_and_for_nothing_without_effect(
    optimizers: str, asked: list[str]
) -> None:
    definition = parsed(
        '[search]\nstrategy = "random"\nnum_points = 3\nmomentum = { low = 0.5, high = 0.9 }\n'
        f"optimizer = {optimizers}\nlearning_rate = {{ log10 = [-3, -1] }}"
    )
    trial = _Recorder()
    assert set(definition.draw(trial)) == set(asked)
    assert trial.asked == asked


@pytest.mark.parametrize(
    "search",
    [
        'optimizer = ["sgd", "momentum"]\nmomentum = [0.5]',  # one value makes no duplicates
        'optimizer = ["momentum"]\nmomentum = [0.5, 0.9]',  # what is searched counts, not the section's sgd
        'family = ["mlp", "cnn"]\nhidden_units = [50, 100]',
        'family = ["my.networks:build", "your.networks:build"]\noptions.width = [3, 4]',
        'strategy = "tpe"\nnum_points = 3\noptimizer = ["sgd", "momentum"]\nmomentum = [0.5, 0.9]',
    ],
)
def test_searched_key_with_an_effect_is_accepted(search: str, caplog: pytest.LogCaptureFixture) -> None:
    assert parsed(f"[search]\n{search}").search.dimensions
    assert caplog.messages == []


def test_set_key_without_effect_is_told_of_once_and_accepted(caplog: pytest.LogCaptureFixture) -> None:
    definition = parsed("[training]\nmomentum = 0.9\n[stopping]\nn = 3\npatience = 100")
    assert definition.stopping.n == 3
    assert caplog.messages == [
        "study.toml: training.momentum has no effect: training.optimizer is sgd",
        "study.toml: stopping.n has no effect: stopping.rule is geometric-patience",
    ]


def test_keys_of_the_built_in_families_are_told_of_beside_a_custom_one(caplog: pytest.LogCaptureFixture) -> None:
    parsed('[model]\nfamily = "my.networks:build"\nhidden_units = 3\noptions = { width = 3 }')
    parsed("[model]\noptions = { width = 3 }")
    assert caplog.messages == [
        "study.toml: model.hidden_units has no effect: model.family is my.networks:build",
        "study.toml: model.options has no effect: model.family is mlp",
    ]


def test_default_without_effect_is_not_told_of(caplog: pytest.LogCaptureFixture) -> None:
    parsed("")
    assert caplog.messages == []


def test_shipped_study_of_another_family_still_runs(caplog: pytest.LogCaptureFixture) -> None:
    path = STUDIES / "quickstart.toml"
    assert load_definition(path, ["model.family=logistic"]).model.family == "logistic"
    assert [message.partition(": ")[2] for message in caplog.messages] == [
        "model.hidden_units has no effect: model.family is logistic",
        "model.activation has no effect: model.family is logistic",
    ]


@pytest.mark.parametrize(
    "text",
    [
        '[training]\nschedule = "step"\nschedule_target = 0.01\nschedule_factor = 0.5',
        '[training]\nschedule = "step"\nschedule_target = 0.01\n[search]\nschedule_factor = [0.5, 0.1]',
        '[training]\nschedule = "step"\n[search]\nschedule_target = [0.01]\nschedule_factor = [0.5, 0.1]',
    ],
)
def test_target_and_factor_exclude_each_other(text: str) -> None:
    assert str(refusal(text)) == (
        "study.toml: training.schedule_target stands in place of training.schedule_factor: give one of them"
    )


def test_set_keys_of_a_program_without_effect_are_told_of(caplog: pytest.LogCaptureFixture) -> None:
    document = {
        "name": "mine",
        "command": {"run": ["train", "{rule}"], "gpus": 0, "per_gpu": 2},
        "search": {"rule": ["no-improvement-in-n", "none"]},
        "stopping": {"n": 3},
        "pruning": {"startup_trials": 3},
    }
    parse_definition(document, source="study.toml")
    assert caplog.messages == [
        "study.toml: stopping.n has no effect: stopping.rule is none",
        "study.toml: pruning.startup_trials has no effect: pruning.pruner is none",
        "study.toml: command.per_gpu has no effect: command.gpus is 0",
    ]
    caplog.clear()
    document["stopping"] = {"rule": "no-improvement-in-n", "n": 3}
    document["pruning"] = {"pruner": "median", "startup_trials": 3}
    document["command"] = {"run": ["train", "{rule}"], "gpus": 1, "per_gpu": 2}
    parse_definition(document, source="study.toml")
    assert caplog.messages == []
