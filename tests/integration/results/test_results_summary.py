"""A summary tells what the database has, in the order and by the rules that people are promised."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import optuna
import pytest
from optuna.trial import TrialState

from hpsearch.errors import InputError, StudyNotFoundError
from hpsearch.results.summary import EpochRecord, read_summary
from hpsearch.service.database import Database


def test_trials_stand_best_first_and_ties_break_on_the_nll(learning_rates: Any) -> None:
    for errors, nlls in (([0.2], [0.5]), ([0.1], [0.4]), ([0.1], [0.3])):
        learning_rates.complete(learning_rates.claim(), errors, nlls)
    learning_rates.prune(learning_rates.claim(), [0.05])
    summary = read_summary(learning_rates.database, "made-up")
    assert [trial.number for trial in summary.trials] == [2, 1, 0, 3]
    assert summary.best is summary.trials[0]
    assert summary.best.best_validation_nll == 0.3
    assert summary.best.parameters == {"learning_rate": 0.001}


def test_points_are_counted_as_the_ledger_counts_them(learning_rates: Any) -> None:
    """One point of each state, and a replaced attempt, which is none."""
    learning_rates.claim()
    learning_rates.ledger.release("its worker was stopped")  # point 0 waits again, as trial 4
    learning_rates.complete(learning_rates.claim(), [0.3, 0.2])
    learning_rates.prune(learning_rates.claim(), [0.9])
    learning_rates.train(learning_rates.claim(), [0.8, 0.7, 0.6])
    summary = read_summary(learning_rates.database, "made-up")
    assert summary.points == learning_rates.ledger.counts()
    assert (summary.points.complete, summary.points.pruned, summary.points.running) == (1, 1, 1)
    assert summary.points.total == 4
    assert summary.num_epochs == 2 + 1 + 3
    assert [(trial.number, trial.point) for trial in summary.failed_attempts] == [(0, 0)]
    assert summary.failed_attempts[0].attributes["fail_reason"] == "its worker was stopped"
    assert summary.as_json()["finished"] is False


def test_a_running_trial_tells_its_worker_and_device(learning_rates: Any) -> None:
    where = {"worker": "node7:4711", "device": "cuda:0 (NVIDIA Fake, GPU-1)"}
    learning_rates.ledger.claim(2, attributes=where)
    summary = read_summary(learning_rates.database, "made-up")
    assert [(trial.number, dict(trial.attributes).items() >= where.items()) for trial in summary.running] == [
        (0, True),
        (1, True),
    ]


def test_a_point_that_always_fails_is_given_up_and_counted_as_failed(make_study: Callable[..., Any]) -> None:
    study = make_study({"hidden_units": [50]})
    for _ in range(3):
        study.claim()
        study.ledger.release("its worker failed", is_crash=True)
    summary = read_summary(study.database, "made-up")
    assert summary.points == study.ledger.counts()
    assert summary.points.failed == summary.points.total == 1
    assert len(summary.failed_attempts) == 3
    assert [trial.is_current for trial in summary.failed_attempts] == [False, False, True]


def test_curves_are_read_when_asked_for(learning_rates: Any) -> None:
    learning_rates.complete(learning_rates.claim(), [0.3, 0.2], [0.9, 0.6])
    assert read_summary(learning_rates.database, "made-up").trials[0].curve == ()
    trial = read_summary(learning_rates.database, "made-up", with_curves=True).require_best()
    first = EpochRecord(epoch=1, zero_one=0.3, train_nll=0.9 * 0.9, validation_nll=0.9, learning_rate=0.1, seconds=1.0)
    second = EpochRecord(
        epoch=2, zero_one=0.2, train_nll=0.9 * 0.6, validation_nll=0.6, learning_rate=0.05, seconds=1.0
    )
    assert trial.curve == (first, second)


@pytest.mark.parametrize("strategy", ["grid", "tpe"])
def test_trials_are_those_that_plain_optuna_reads(make_study: Callable[..., Any], strategy: str) -> None:
    search: dict[str, Any] = {
        "strategy": strategy,
        "learning_rate": {"log10": [-1, -2]},
        "lambda_2": {"log10": [-3, -4], "zero": True},
        "hidden_units": [50, 100],
        "shuffle": [True, False],
    }
    study = make_study({**search, "num_points": 6} if strategy == "tpe" else search)
    study.complete(study.claim(), [0.3, 0.2])
    study.prune(study.claim(), [0.9])
    study.prune(study.claim(), [])
    study.claim()
    study.ledger.release("its worker was stopped")
    study.train(study.claim(), [0.4])
    trials = read_summary(study.database, "made-up", with_curves=True).trials
    ours = sorted((trial.frozen() for trial in trials), key=lambda trial: trial.number)
    assert ours == optuna.load_study(study_name="made-up", storage=study.database.storage).trials
    assert {trial.state for trial in ours} == set(TrialState)
    by_number = {trial.number: trial for trial in trials}
    assert set(by_number[0].point_parameters) == {"learning_rate", "lambda_2", "hidden_units", "shuffle"}


def test_reading_takes_as_many_statements_however_many_trials_there_are(
    make_study: Callable[..., Any], database: Database, statements: Callable[[], Any]
) -> None:
    small = make_study({"hidden_units": [50, 100]}, name="small")
    large = make_study({"hidden_units": [50, 100], "batch_size": [10, 20, 30, 40]}, name="large")
    for study, num_points in ((small, 2), (large, 8)):
        for _ in range(num_points):
            study.complete(study.claim(), [0.3, 0.2])
    for name in ("small", "large"):
        with statements() as seen:
            read_summary(database, name)
        assert len(seen) == 5
        with statements() as seen:
            read_summary(database, name, with_curves=True)
        assert len(seen) == 6


def test_an_unknown_study_is_named_with_those_that_are_there(learning_rates: Any) -> None:
    with pytest.raises(StudyNotFoundError, match="no study 'other'") as caught:
        read_summary(learning_rates.database, "other")
    assert caught.value.hint == "there are: made-up"


def test_a_study_of_plain_optuna_is_refused(database: Database) -> None:
    optuna.create_study(study_name="foreign", storage=database.storage)
    with pytest.raises(InputError, match="hpsearch did not create it"):
        read_summary(database, "foreign")
