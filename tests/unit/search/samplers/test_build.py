"""The samplers of the strategies: the same history gives the same suggestion, whoever asks."""

from __future__ import annotations

import json
import math
from typing import Any

import optuna
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from optuna.distributions import (
    BaseDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.storages import InMemoryStorage
from optuna.trial import TrialState, create_trial

from hpsearch.errors import InputError
from hpsearch.search.samplers import SearchSpace, build_sampler, explore, trial_seed
from hpsearch.study.space import Suggester

STRATEGIES = ["random", "qmc", "tpe", "gp", "cmaes"]
LEARNING = ["tpe", "gp", "cmaes"]
SPACE: dict[str, BaseDistribution] = {
    "learning_rate": FloatDistribution(1e-4, 1e-1, log=True),
    "lambda_2": FloatDistribution(0.0, 0.01),
}


def make_study(num_finished: int, num_running: int = 0) -> optuna.Study:
    """A study whose best learning rates are near 0.01; the running trials sit there too."""
    study = optuna.create_study(study_name="study", storage=InMemoryStorage())
    for i in range(num_finished):
        rate = 10 ** (-1 - 3 * (i * 7 % num_finished) / num_finished)
        params = {"learning_rate": rate, "lambda_2": 0.01 * i / num_finished}
        value = abs(rate - 0.01)
        study.add_trial(create_trial(value=value, params=params, distributions=SPACE))
    for _ in range(num_running):
        params = {"learning_rate": 0.01, "lambda_2": 0.005}
        study.add_trial(create_trial(state=TrialState.RUNNING, params=params, distributions=SPACE))
    return study


def suggest(
    study: optuna.Study, strategy: str, *, study_seed: int = 1, space: SearchSpace | None = None
) -> dict[str, float]:
    number = len(study.get_trials(deepcopy=False))
    study.sampler = build_sampler(strategy, study_seed=study_seed, trial_number=number, space=space)
    return study.ask(SPACE).params


def suggest_after(study: optuna.Study, number: int, strategy: str) -> dict[str, float]:
    """What trial `number` would get in a study without any history."""
    for _ in range(number):
        study.add_trial(create_trial(state=TrialState.FAIL))
    return suggest(study, strategy)


@pytest.mark.parametrize("space", [None, SearchSpace(always=SPACE)], ids=["inferred", "given"])
@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("num_finished", [0, 5, 25])
def test_the_same_history_gives_the_same_suggestion(
    strategy: str, num_finished: int, space: SearchSpace | None
) -> None:
    first, second = (suggest(make_study(num_finished), strategy, space=space) for _ in range(2))
    assert first == second


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("num_finished", [0, 25])
def test_trials_and_studies_draw_differently(strategy: str, num_finished: int) -> None:
    study, space = make_study(num_finished), SearchSpace(always=SPACE)
    draws = [suggest(study, strategy, space=space)["lambda_2"] for _ in range(5)]
    draws += [suggest(make_study(num_finished), strategy, study_seed=i, space=space)["lambda_2"] for i in (2, 3)]
    # A process that is sure of the end of a range proposes just that, whatever the seed.
    assert len(set(draws)) == 7 or (strategy == "gp" and num_finished)


def test_tpe_learns_from_the_history_and_random_does_not() -> None:
    assert suggest(make_study(5), "random") == suggest_after(make_study(0), 5, "random")
    assert suggest(make_study(5), "tpe") == suggest_after(make_study(0), 5, "tpe"), "ten random trials first"
    assert suggest(make_study(25), "tpe") != suggest_after(make_study(0), 25, "tpe")


@pytest.mark.parametrize("strategy", ["tpe", "gp"])
def test_what_is_running_changes_what_is_drawn(strategy: str) -> None:
    assert suggest(make_study(25), strategy) != suggest(make_study(24, num_running=1), strategy)
    study = make_study(25)
    suggest(study, strategy)
    attrs = study.get_trials(deepcopy=False)[25].system_attrs
    assert set(attrs) == {f"{strategy}:relative_params:0"}, "other workers can read the draw"


@pytest.mark.parametrize("strategy", LEARNING)
def test_models_find_the_region_of_the_best(strategy: str) -> None:
    """On a bowl in log rate and lambda, the last ten of 60 trials are nearer to its bottom than the first ten."""
    study = optuna.create_study()
    distances = []
    for number in range(60):
        study.sampler = build_sampler(strategy, study_seed=3, trial_number=number, space=SearchSpace(always=SPACE))
        trial = study.ask(SPACE)
        rate, penalty = (math.log10(trial.params["learning_rate"]) + 2.2) / 3, trial.params["lambda_2"] * 100 - 0.7
        distances.append(rate**2 + penalty**2)
        study.tell(trial, distances[-1])
    assert sum(distances[-10:]) < 0.25 * sum(distances[:10])


def conditional(trial: Suggester) -> dict[str, Any]:
    point: dict[str, Any] = {"optimizer": trial.suggest_categorical("optimizer", ["sgd", "momentum"])}
    point["rate"] = trial.suggest_float("rate", 1e-3, 1.0, log=True)
    point["units"] = trial.suggest_int("units", 4, 64, log=True)
    if point["optimizer"] == "momentum":
        point["momentum"] = trial.suggest_float("momentum", 0.5, 0.99)
    return point


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_conditional_parameters_stand_only_where_they_belong(strategy: str, caplog: pytest.LogCaptureFixture) -> None:
    """Through the random start and well beyond, without a warning."""
    study, space = optuna.create_study(), explore(conditional)
    optuna.logging.enable_propagation()
    try:
        for number in range(25):
            study.sampler = build_sampler(strategy, study_seed=1, trial_number=number, space=space)
            trial = study.ask()
            point = conditional(trial)
            study.tell(trial, abs(math.log10(point["rate"]) + 2) + (point["optimizer"] == "sgd"))
    finally:
        optuna.logging.disable_propagation()
    assert not caplog.records
    with_momentum = [trial for trial in study.trials if "momentum" in trial.params]
    assert 0 < len(with_momentum) < 25
    for trial in study.trials:
        assert (trial.params["optimizer"] == "momentum") == ("momentum" in trial.params)
        assert 1e-3 <= trial.params["rate"] <= 1
        assert trial.params["units"] in range(4, 65)
    if strategy == "tpe":
        noted = json.loads(study.trials[-1].system_attrs["tpe:relative_params:0"])
        assert noted.keys() >= {"optimizer", "rate", "units", "momentum"}, "the conditional group is drawn jointly, too"


def test_an_unknown_sampler_is_refused_with_the_choices() -> None:
    with pytest.raises(InputError, match=r"^unknown sampler 'grip'") as caught:
        build_sampler("grip", study_seed=0, trial_number=0)
    assert caught.value.hint == "choose one of: random, qmc, tpe, gp, cmaes"


def test_the_seeds_are_the_same_everywhere_and_always() -> None:
    assert [trial_seed(0, 0), trial_seed(0, 1), trial_seed(1, 0)] == [3757552657, 673228719, 1641411168]


@pytest.mark.parametrize("strategy", STRATEGIES)
@given(study_seed=st.integers(0, 2**63 - 1), trial_number=st.integers(0, 10**6))
@settings(max_examples=20)
def test_every_study_seed_and_trial_number_draws(strategy: str, study_seed: int, trial_number: int) -> None:
    assert 0 <= trial_seed(study_seed, trial_number) < 2**32
    study = optuna.create_study()
    space: dict[str, BaseDistribution] = {"n": IntDistribution(1, 5), "x": FloatDistribution(0.0, 1.0)}
    study.sampler = build_sampler(
        strategy, study_seed=study_seed, trial_number=trial_number, space=SearchSpace(always=space)
    )
    assert study.ask(space).params.keys() == space.keys()


def test_neighbouring_trials_and_studies_share_no_seed() -> None:
    seeds = {trial_seed(study, trial) for study in range(30) for trial in range(100)}
    # A seed with a high word must not be taken for another seed's trial number.
    seeds |= {trial_seed(study + (7 << 32), trial) for study in range(30) for trial in range(100)}
    assert len(seeds) == 6000
