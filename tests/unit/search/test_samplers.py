"""The samplers: the same history gives the same suggestion, whoever asks."""

from __future__ import annotations

from collections.abc import Iterator

import optuna
import pytest
from hypothesis import given
from hypothesis import strategies as st
from optuna.distributions import BaseDistribution, FloatDistribution
from optuna.storages import InMemoryStorage
from optuna.trial import TrialState, create_trial

from hpsearch.errors import InputError
from hpsearch.search.samplers import build_sampler, trial_seed

SPACE: dict[str, BaseDistribution] = {
    "learning_rate": FloatDistribution(1e-4, 1e-1, log=True),
    "lambda_2": FloatDistribution(0.0, 0.01),
}


@pytest.fixture(autouse=True, scope="module")
def _quiet_optuna() -> Iterator[None]:
    level = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    yield
    optuna.logging.set_verbosity(level)


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


def suggest(study: optuna.Study, strategy: str, *, study_seed: int = 1) -> dict[str, float]:
    number = len(study.get_trials(deepcopy=False))
    study.sampler = build_sampler(strategy, study_seed=study_seed, trial_number=number)
    return study.ask(SPACE).params


@pytest.mark.parametrize("strategy", ["random", "tpe"])
@pytest.mark.parametrize("num_finished", [0, 5, 25])
def test_the_same_history_gives_the_same_suggestion(strategy: str, num_finished: int) -> None:
    assert suggest(make_study(num_finished), strategy) == suggest(make_study(num_finished), strategy)


@pytest.mark.parametrize("strategy", ["random", "tpe"])
@pytest.mark.parametrize("num_finished", [0, 25])
def test_trials_and_studies_draw_differently(strategy: str, num_finished: int) -> None:
    study = make_study(num_finished)
    draws = [suggest(study, strategy)["learning_rate"] for _ in range(5)]
    draws += [suggest(make_study(num_finished), strategy, study_seed=seed)["learning_rate"] for seed in (2, 3)]
    assert len(set(draws)) == 7


def test_tpe_learns_from_the_history_and_random_does_not() -> None:
    assert suggest(make_study(5), "random") == suggest_after(make_study(0), 5, "random")
    assert suggest(make_study(5), "tpe") == suggest_after(make_study(0), 5, "tpe"), "ten random trials first"
    assert suggest(make_study(25), "tpe") != suggest_after(make_study(0), 25, "tpe")


def suggest_after(study: optuna.Study, number: int, strategy: str) -> dict[str, float]:
    """What trial `number` would get in a study without any history."""
    for _ in range(number):
        study.add_trial(create_trial(state=TrialState.FAIL))
    return suggest(study, strategy)


def test_tpe_draws_jointly_and_keeps_away_from_what_is_running() -> None:
    assert suggest(make_study(25), "tpe") != suggest(make_study(24, num_running=1), "tpe")
    study = make_study(25)
    suggest(study, "tpe")
    attrs = study.get_trials(deepcopy=False)[25].system_attrs
    assert set(attrs) == {"tpe:relative_params:0"}, "constant liar: other workers can read the draw"


def test_an_unknown_sampler_is_refused_with_the_choices() -> None:
    with pytest.raises(InputError, match=r"^unknown sampler 'grip'$") as caught:
        build_sampler("grip", study_seed=0, trial_number=0)
    assert caught.value.hint == "choose one of: random, tpe"


def test_the_seeds_are_the_same_everywhere_and_always() -> None:
    assert [trial_seed(0, 0), trial_seed(0, 1), trial_seed(1, 0)] == [3757552657, 673228719, 1641411168]


@pytest.mark.parametrize("strategy", ["random", "tpe"])
@given(study_seed=st.integers(0, 2**63 - 1), trial_number=st.integers(0, 10**6))
def test_every_study_seed_and_trial_number_makes_a_sampler(strategy: str, study_seed: int, trial_number: int) -> None:
    assert 0 <= trial_seed(study_seed, trial_number) < 2**32
    build_sampler(strategy, study_seed=study_seed, trial_number=trial_number)


def test_neighbouring_trials_and_studies_share_no_seed() -> None:
    seeds = {trial_seed(study, trial) for study in range(30) for trial in range(100)}
    # A seed with a high word must not be taken for another seed's trial number.
    seeds |= {trial_seed(study + (7 << 32), trial) for study in range(30) for trial in range(100)}
    assert len(seeds) == 6000
