"""Our samplers in other people's hands: a plain Optuna study, several threads or processes at once."""

from __future__ import annotations

import inspect
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator

import numpy as np
import optuna
import pytest
from optuna.samplers import BaseSampler
from optuna.trial import FrozenTrial, TrialState
from scipy.stats import qmc

from hpsearch.search.samplers import CmaSampler, PrunedAwareGPSampler, SobolSampler

SAMPLERS: dict[str, Callable[[], BaseSampler]] = {
    "SobolSampler": lambda: SobolSampler(seed=3),
    "CmaSampler": lambda: CmaSampler(seed=3),
    "PrunedAwareGPSampler": lambda: PrunedAwareGPSampler(seed=3, num_startup_trials=4),
}


def objective(trial: optuna.Trial) -> float:
    """Every fifth trial is pruned, every seventh fails, and some have a parameter more than the others."""
    x = trial.suggest_float("x", 1e-4, 1.0, log=True)
    n = trial.suggest_int("n", 1, 20)
    if trial.suggest_categorical("kind", ["a", "b"]) == "b":
        trial.suggest_float("more", 0.0, 1.0)
    loss = (x - 0.1) ** 2 + abs(n - 7) / 20
    trial.report(loss, step=1)
    if trial.number % 5 == 4:
        raise optuna.TrialPruned
    if trial.number % 7 == 6:
        raise ValueError("as it happens")
    return loss


PROCESS = f"""
import sys
import warnings

import optuna

warnings.simplefilter("error")
from hpsearch.search.samplers import CmaSampler, PrunedAwareGPSampler, SobolSampler

{inspect.getsource(objective)}

for sampler, number in eval(sys.argv[2]).items():
    study = optuna.load_study(study_name=sampler, storage=sys.argv[1], sampler=eval(sampler))
    study.optimize(objective, n_trials=number, catch=ValueError)
"""


@pytest.fixture(autouse=True)
def _quiet_optuna() -> Iterator[None]:
    level = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.CRITICAL)
    yield
    optuna.logging.set_verbosity(level)


def check_finished(trials: list[FrozenTrial], number: int) -> None:
    assert sorted(trial.number for trial in trials) == list(range(number))
    expected = Counter(
        TrialState.PRUNED if i % 5 == 4 else TrialState.FAIL if i % 7 == 6 else TrialState.COMPLETE
        for i in range(number)
    )
    assert Counter(trial.state for trial in trials) == expected
    for trial in trials:
        assert 1e-4 <= trial.params["x"] <= 1.0
        assert trial.params["n"] in range(1, 21)
        assert (trial.params["kind"] == "b") == ("more" in trial.params)


@pytest.mark.parametrize("name", SAMPLERS)
def test_threads_share_a_study_in_memory(name: str) -> None:
    study = optuna.create_study(sampler=SAMPLERS[name]())
    study.optimize(objective, n_trials=32, n_jobs=4, catch=ValueError)
    check_finished(study.trials, 32)
    if name != "PrunedAwareGPSampler":  # which proposes the end of a range more than once, if it is the best
        assert len({trial.params["x"] for trial in study.trials}) == 32


@pytest.mark.slow
def test_processes_share_a_study_in_postgresql(database_url: str) -> None:
    """The same two processes for all samplers: to start one takes seconds."""
    numbers = {"SobolSampler(seed=3)": 12, "CmaSampler()": 12, "PrunedAwareGPSampler(num_startup_trials=4)": 5}
    studies = {sampler: optuna.create_study(study_name=sampler, storage=database_url) for sampler in numbers}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", PROCESS, database_url, repr(numbers)], stderr=subprocess.PIPE, text=True
        )
        for _ in range(2)
    ]
    for process in processes:
        _, errors = process.communicate(timeout=240)
        assert process.returncode == 0, errors
    for sampler, number in numbers.items():
        check_finished(studies[sampler].trials, 2 * number)
    samples = qmc.Sobol(3, scramble=True, seed=np.random.default_rng(3)).random(32)[:24]
    expected = {number: 10 ** (-4 + 4 * sample[2]) for number, sample in enumerate(samples)}
    drawn = studies["SobolSampler(seed=3)"].trials
    on_sequence = [trial for trial in drawn if trial.params["x"] == pytest.approx(expected[trial.number])]
    assert len(on_sequence) >= 20, "all but those that began before any had finished"
    notes = [trial.system_attrs["hpsearch:draw:cma"] for trial in studies["CmaSampler()"].trials[4:]]
    assert {note["generation"] for note in notes} >= {0, 1}


def test_a_study_in_postgresql_goes_on_where_it_was_interrupted(database_url: str) -> None:
    """What is drawn is a function of the trials and the seed: reading them back loses nothing."""
    interrupted = optuna.create_study(study_name="shared", storage=database_url, sampler=CmaSampler(seed=1))
    interrupted.optimize(objective, n_trials=13, catch=ValueError)
    again = optuna.load_study(study_name="shared", storage=database_url, sampler=CmaSampler(seed=1))
    again.optimize(objective, n_trials=12, catch=ValueError)
    whole = optuna.create_study(sampler=CmaSampler(seed=1))
    whole.optimize(objective, n_trials=25, catch=ValueError)
    assert [trial.params for trial in again.trials] == [trial.params for trial in whole.trials]
    assert again.trials[-1].system_attrs["hpsearch:draw:cma"]["generation"] == 3
