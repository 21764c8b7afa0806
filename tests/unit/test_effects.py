"""Keys that matter only beside others: searched in vain they are refused, set in vain they are told of."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import get_args

import pytest

from hpsearch.effects import EFFECTS
from hpsearch.errors import InputError
from hpsearch.settings import BUILT_IN_FAMILIES, CUSTOM_FAMILY
from hpsearch.study import StudyDefinition, load_definition, parse_definition

STUDIES = Path(__file__).parents[2] / "studies"


def parsed(text: str) -> StudyDefinition:
    return parse_definition(tomllib.loads(f'name = "a"\n{text}'), source="study.toml")


def refusal(text: str) -> InputError:
    with pytest.raises(InputError) as caught:
        parsed(text)
    return caught.value


@pytest.mark.parametrize("key", EFFECTS)
def test_table_names_keys_and_values_that_exist(key: str) -> None:
    owner, values = EFFECTS[key]
    fields = StudyDefinition.model_fields
    section, _, name = key.partition(".")
    owner_section, _, owner_name = owner.partition(".")
    assert name in fields[section].annotation.model_fields  # type: ignore[union-attr]
    choices = get_args(fields[owner_section].annotation.model_fields[owner_name].annotation)  # type: ignore[union-attr]
    assert set(values) < set(choices or [*BUILT_IN_FAMILIES, CUSTOM_FAMILY])


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
        (
            '[search]\nfamily = ["mlp", "my.networks:build"]\noptions.width = [3, 4]',
            "search.options.width has no effect where search.family is mlp: "
            "the grid would train each such point 2 times",
            "run two studies: one that searches options.width with model.family = package.module:factory, "
            "and one without options.width for mlp",
        ),
    ],
)
def test_searched_key_without_effect_is_refused(text: str, said: str, hint: str) -> None:
    error = refusal(text)
    assert str(error) == f"study.toml: {said}"
    assert error.hint == hint


def test_grid_that_would_train_points_twice_is_refused_with_the_way_out() -> None:
    error = refusal('[search]\noptimizer = ["sgd", "momentum"]\nmomentum = [0.5, 0.9, 0.99]')
    assert str(error) == (
        "study.toml: search.momentum has no effect where search.optimizer is sgd: "
        "the grid would train each such point 3 times"
    )
    assert error.hint == (
        "run two studies: one that searches momentum with training.optimizer = momentum, "
        "and one without momentum for sgd"
    )


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
