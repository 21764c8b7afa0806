"""Optuna's Gaussian process, which sees pruned trials here."""

from __future__ import annotations

from typing import Any

import optuna
import pytest
from optuna.distributions import BaseDistribution, FloatDistribution
from optuna.trial import TrialState

from hpsearch.search.samplers import PrunedAwareGPSampler

SPACE: dict[str, BaseDistribution] = {"x": FloatDistribution(0.0, 1.0)}


def study_with(trials: list[tuple[float, float | None, TrialState]], direction: str = "minimize") -> optuna.Study:
    study = optuna.create_study(study_name="s", direction=direction)
    for x, value, state in trials:
        study.add_trial(
            optuna.create_trial(
                params={"x": x}, distributions=SPACE, state=state, value=value if state.is_finished() else None
            )
        )
    return study


def draw(study: optuna.Study, **options: Any) -> float:
    study.sampler = PrunedAwareGPSampler(**{"seed": 1, "search_space": SPACE, "num_startup_trials": 4, **options})
    x: float = study.ask(SPACE).params["x"]
    return x


COMPLETE, PRUNED = TrialState.COMPLETE, TrialState.PRUNED
FALLING = [(0.1 * i, 1.0 - 0.1 * i, COMPLETE) for i in range(6)]  # the larger x, the better, as far as is known


def test_a_pruned_trial_counts_with_its_last_value() -> None:
    counted = study_with([*FALLING, (0.7, 3.0, COMPLETE), (0.9, 5.0, COMPLETE)])
    pruned = study_with([*FALLING, (0.7, 3.0, PRUNED), (0.9, 5.0, PRUNED)])
    assert draw(pruned) == draw(counted) < 0.7
    assert draw(study_with(FALLING)) > 0.7


@pytest.mark.parametrize(("direction", "sign"), [("minimize", 1), ("maximize", -1)])
def test_one_that_diverged_counts_as_the_worst(direction: str, sign: int) -> None:
    falling = [(x, sign * value, state) for x, value, state in FALLING if value is not None]
    diverged = study_with([*falling, (0.8, None, PRUNED)], direction)
    worst = study_with([*falling, (0.8, sign * 1.0, COMPLETE)], direction)
    assert draw(diverged) == draw(worst)


def test_pruned_trials_end_the_random_start() -> None:
    study = study_with([(0.2 * i, None, PRUNED) for i in range(4)])
    draw(study)
    assert "gp:relative_params:0" in study.trials[-1].system_attrs


def test_what_is_running_is_kept_away_from() -> None:
    alone = draw(study_with(FALLING))
    assert draw(study_with([*FALLING, (alone, None, TrialState.RUNNING)])) != pytest.approx(alone, abs=0.01)


def test_trials_without_all_parameters_are_left_out() -> None:
    study = study_with(FALLING)
    study.add_trial(optuna.create_trial(value=0.0))
    assert draw(study) == draw(study_with(FALLING))


def test_the_search_space_may_be_inferred() -> None:
    assert draw(study_with(FALLING), search_space=None) == draw(study_with(FALLING))


def test_several_objectives_are_refused() -> None:
    study = optuna.create_study(directions=["minimize", "minimize"], sampler=PrunedAwareGPSampler(search_space=SPACE))
    with pytest.raises(ValueError, match="PrunedAwareGPSampler cannot be used"):
        study.ask(SPACE)
