"""What may be drawn, found by asking for it."""

from __future__ import annotations

from typing import Any

from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from hpsearch.search.samplers import explore
from hpsearch.study.space import Suggester
from hpsearch.study.study_file import parse_definition

SWITCH = CategoricalDistribution((False, True))


def definition_of(**search: Any) -> Any:
    return parse_definition({"name": "s", "search": {"strategy": "qmc", "num_points": 8, **search}}, source="test")


def test_a_zero_beside_a_logarithmic_scale_makes_the_value_conditional() -> None:
    definition = definition_of(
        learning_rate={"log10": [-1, -3]}, lambda_2={"log10": [-2, -4], "zero": True}, hidden_units=[50, 100]
    )
    space = explore(definition.draw)
    assert space.always == {
        "learning_rate": FloatDistribution(1e-3, 1e-1, log=True),
        "lambda_2_is_zero": SWITCH,
        "hidden_units": CategoricalDistribution((50, 100)),
    }
    assert space.sometimes == {"lambda_2": FloatDistribution(1e-4, 1e-2, log=True)}
    assert space.all == {**space.always, **space.sometimes}


def test_keys_that_belong_to_an_optimizer_or_schedule_are_conditional() -> None:
    definition = definition_of(
        momentum={"low": 0.5, "high": 0.99},
        optimizer=["sgd", "momentum"],
        learning_rate={"log10": [-1, -3]},
        schedule=["constant", "inverse-time"],
        schedule_decay={"log10": [-3, -5]},
    )
    space = explore(definition.draw)
    assert set(space.always) == {"optimizer", "schedule", "learning_rate"}
    assert space.sometimes == {
        "momentum": FloatDistribution(0.5, 0.99),
        "schedule_decay": FloatDistribution(1e-5, 1e-3, log=True),
    }


def test_a_parameter_may_depend_on_a_conditional_one() -> None:
    def suggest(trial: Suggester) -> None:
        if trial.suggest_categorical("family", ["logistic", "mlp"]) == "mlp" and (
            trial.suggest_categorical("depth", ["one", "two"]) == "two"
        ):
            trial.suggest_int("second", 10, 20)

    space = explore(suggest)
    assert set(space.always) == {"family"}
    assert space.sometimes["second"] == IntDistribution(10, 20)


def test_nothing_suggested_is_an_empty_space() -> None:
    assert explore(lambda trial: None).all == {}
