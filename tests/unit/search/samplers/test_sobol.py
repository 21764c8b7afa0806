"""Sobol points: evenly spread, and each trial's own."""

from __future__ import annotations

import numpy as np
import optuna
import pytest
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution
from optuna.trial import TrialState
from scipy.stats import qmc

from hpsearch.search.samplers import SearchSpace, SobolSampler, build_sampler

CUBE: dict[str, BaseDistribution] = {name: FloatDistribution(0.0, 1.0) for name in "abc"}


def objective(trial: optuna.Trial) -> float:
    return sum(trial.suggest_float(name, 0.0, 1.0) for name in "abc")


def drawn(study: optuna.Study) -> list[tuple[float, ...]]:
    return [tuple(trial.params[name] for name in "abc") for trial in study.get_trials(deepcopy=False)]


def test_trial_n_gets_point_n_of_the_sequence() -> None:
    study = optuna.create_study(sampler=SobolSampler(seed=4, search_space=CUBE))
    study.optimize(objective, n_trials=16)
    expected = qmc.Sobol(3, scramble=True, seed=np.random.default_rng(4)).random(16)
    np.testing.assert_array_equal(drawn(study), expected)


def test_each_half_and_quarter_of_each_axis_has_its_share() -> None:
    """What random points do not do: 64 points, 16 in each quarter."""
    study = optuna.create_study(sampler=SobolSampler(seed=1, search_space=CUBE))
    study.optimize(objective, n_trials=64)
    for axis in np.array(drawn(study)).T:
        assert np.histogram(axis, bins=[0, 0.25, 0.5, 0.75, 1])[0].tolist() == [16] * 4


def test_threads_draw_no_point_twice_and_lose_none() -> None:
    study = optuna.create_study(sampler=SobolSampler(seed=1, search_space=CUBE))
    study.optimize(objective, n_trials=64, n_jobs=8)
    alone = optuna.create_study(sampler=SobolSampler(seed=1, search_space=CUBE))
    alone.optimize(objective, n_trials=64)
    assert sorted(drawn(study)) == sorted(drawn(alone))
    assert len(set(drawn(study))) == 64


def test_a_study_that_is_resumed_by_another_process_goes_on_with_the_sequence() -> None:
    storage = optuna.storages.InMemoryStorage()
    study = optuna.create_study(study_name="s", storage=storage, sampler=SobolSampler(seed=2, search_space=CUBE))
    study.optimize(objective, n_trials=5)
    again = optuna.load_study(study_name="s", storage=storage, sampler=SobolSampler(seed=2, search_space=CUBE))
    again.optimize(objective, n_trials=3)
    whole = optuna.create_study(sampler=SobolSampler(seed=2, search_space=CUBE))
    whole.optimize(objective, n_trials=8)
    assert drawn(again) == drawn(whole)


def test_without_a_seed_the_studys_name_decides() -> None:
    studies = [
        optuna.create_study(study_name=name, sampler=SobolSampler(search_space=CUBE))
        for name in ("mine", "mine", "yours")
    ]
    for study in studies:
        study.optimize(objective, n_trials=2)
    first, second, third = (drawn(study) for study in studies)
    assert first == second != third


def test_without_a_search_space_it_is_that_of_the_finished_trials() -> None:
    study = optuna.create_study(sampler=SobolSampler(seed=5))
    study.optimize(objective, n_trials=8)
    expected = qmc.Sobol(3, scramble=True, seed=np.random.default_rng(5)).random(8)
    np.testing.assert_array_equal(drawn(study)[1:], expected[1:])
    assert drawn(study)[0] != tuple(expected[0]), "the first is random"


def test_pruned_trials_tell_the_search_space_too() -> None:
    study = optuna.create_study(sampler=SobolSampler(seed=5))
    study.tell(study.ask(CUBE), state=TrialState.PRUNED)
    assert SobolSampler().infer_relative_search_space(study, study.trials[0]) == CUBE


def test_a_conditional_parameter_has_its_own_coordinate() -> None:
    """The trials with it see it as evenly spread as the others."""
    space = SearchSpace(always={"switch": CategoricalDistribution((False, True))}, sometimes=dict(CUBE))
    study = optuna.create_study()
    for number in range(64):
        study.sampler = build_sampler("qmc", study_seed=1, trial_number=number, point=number, space=space)
        trial = study.ask()
        if trial.suggest_categorical("switch", [False, True]):
            trial.suggest_float("a", 0.0, 1.0)
        study.tell(trial, 0.0)
    values = [trial.params["a"] for trial in study.trials if "a" in trial.params]
    assert len(values) == 32
    assert np.histogram(values, bins=[0, 0.25, 0.5, 0.75, 1])[0].tolist() == [8] * 4


def test_a_point_keeps_its_sample_whatever_its_trials_number_is() -> None:
    first, again = optuna.create_study(), optuna.create_study()
    again.ask()
    samples = []
    for study in (first, again):
        study.sampler = build_sampler(
            "qmc", study_seed=1, trial_number=len(study.trials), point=7, space=SearchSpace(always=CUBE)
        )
        samples.append(study.ask(CUBE).params)
    assert samples[0] == samples[1]


@pytest.mark.parametrize("number", [0, 1, 2, 3, 1000, 2**20 - 1])
def test_no_number_makes_it_warn_or_fail(number: int) -> None:
    study = optuna.create_study(sampler=SobolSampler(seed=1, search_space=CUBE, index=number))
    assert study.ask(CUBE).params.keys() == CUBE.keys()


def test_what_has_one_value_only_is_no_dimension() -> None:
    space = {**CUBE, "d": FloatDistribution(1.0, 1.0)}
    study = optuna.create_study(sampler=SobolSampler(seed=4, search_space=space))
    params = study.ask(space).params
    assert params.pop("d") == 1.0
    assert params == optuna.create_study(sampler=SobolSampler(seed=4, search_space=CUBE)).ask(CUBE).params
