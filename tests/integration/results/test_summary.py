"""A summary tells what the database has, in the order and by the rules that people are promised."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import optuna
import pytest
from optuna.trial import TrialState
from rich.console import Console

from hpsearch.console.tables import status_view
from hpsearch.errors import InputError, StorageError, StudyNotFoundError
from hpsearch.results.data_frame import trials_frame
from hpsearch.results.status import read_status
from hpsearch.results.summary import read_summary
from hpsearch.results.trial_summary import EpochRecord
from hpsearch.store.connection.database import Database
from hpsearch.store.progress import read_progress
from hpsearch.store.rows.points import read_points


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
        study.ledger.release("its worker failed: ValueError: boom (mine.py:10)", is_crash=True)
    summary = read_summary(study.database, "made-up")
    assert summary.points == study.ledger.counts()
    assert summary.points.failed == summary.points.total == 1
    assert len(summary.failed_attempts) == 3
    assert [trial.is_current for trial in summary.failed_attempts] == [False, False, True]
    reasons = {reason: len(failures) for reason, failures in summary.reasons_of_given_up.items()}
    assert reasons == {"its worker failed: ValueError: boom (mine.py:10)": 1}
    console = Console(width=100, record=True, file=io.StringIO())
    console.print(status_view(read_status(study.database, "made-up")))
    assert "given up, 1 point: its worker failed: ValueError: boom (mine.py:10)" in console.export_text()


def test_curves_are_read_when_asked_for(learning_rates: Any) -> None:
    learning_rates.complete(learning_rates.claim(), [0.3, 0.2], [0.9, 0.6])
    assert read_summary(learning_rates.database, "made-up").trials[0].curve == ()
    trial = read_summary(learning_rates.database, "made-up", with_curves=True).require_best()
    first = EpochRecord(epoch=1, value=0.3, train_nll=0.9 * 0.9, validation_nll=0.9, learning_rate=0.1, seconds=1.0)
    second = EpochRecord(epoch=2, value=0.2, train_nll=0.9 * 0.6, validation_nll=0.6, learning_rate=0.05, seconds=1.0)
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


def test_damaged_trials_are_told_with_table_study_and_key(learning_rates: Any, execute: Callable[..., Any]) -> None:
    learning_rates.complete(learning_rates.claim(), [0.2])
    database = learning_rates.database
    execute("UPDATE trial_user_attributes SET value_json = '{' WHERE key = 'best_validation_nll'")
    with pytest.raises(StorageError, match=r"trial 0 of study 'made-up' cannot .*trial_user_attributes, key best_"):
        read_summary(database, "made-up")
    with pytest.raises(StorageError, match=r"trial id \d+ cannot be read \(table trial_user_attributes, key best_"):
        database.transaction(lambda connection: read_points(connection, learning_rates.study.study_id))
    execute("UPDATE trial_user_attributes SET key = 'resumed_at_epoch' WHERE key = 'best_validation_nll'")
    with pytest.raises(StorageError, match="has a value that cannot be read: invalid input syntax for type integer"):
        read_progress(database, learning_rates.study.study_id)
    execute("DELETE FROM trial_user_attributes")
    execute("UPDATE trial_params SET distribution_json = '{}'")
    with pytest.raises(StorageError, match=r"a parameter of study 'made-up' cannot be read \(table trial_params"):
        read_summary(database, "made-up")
    with pytest.raises(StorageError, match=r"parameter learning_rate of trial 1 cannot be read \(table trial_params"):
        learning_rates.claim()


def test_listed_points_are_told_with_the_values_that_they_leave_to_the_study(make_study: Callable[..., Any]) -> None:
    points = [{"learning_rate": 0.1}, {"hidden_units": 50}]
    study = make_study({"strategy": "listed", "points": points})
    for error in (0.2, 0.3):
        study.complete(study.claim(), [error])
    status = read_status(study.database, "made-up")
    assert status.as_json()["best"]["params"] == {"learning_rate": 0.1, "hidden_units": 500}
    console = Console(width=160)
    with console.capture() as capture:
        console.print(status_view(status))
    rows = capture.get().rstrip().splitlines()[-2:]
    assert [row.split()[-3:-1] for row in rows] == [
        ["0.1", "500"],
        ["0.01", "50"],
    ]
    assert list(trials_frame(status.summary)["hidden_units"]) == [500, 50]
    assert [trial.named_parameters for trial in status.summary.trials] == points


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


def test_epochs_of_networks_without_losses_are_damaged(learning_rates: Any, execute: Callable[..., Any]) -> None:
    learning_rates.complete(learning_rates.claim(), [0.2])
    execute("UPDATE hpsearch_epochs SET train_nll = NULL, validation_nll = NULL, learning_rate = NULL")
    with pytest.raises(StorageError, match="epoch 1 of trial 0"):
        read_summary(learning_rates.database, "made-up", with_curves=True)
