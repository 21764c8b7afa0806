"""Learning curves: one statement tells a pruner all that plain Optuna would."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import optuna
import pytest
from optuna.trial import FrozenTrial, TrialState

from hpsearch.epoch_report import EpochReport
from hpsearch.search.snapshot import StudySnapshot
from hpsearch.store.claims.claim import Outcome, Result
from hpsearch.store.claims.ledger import Ledger
from hpsearch.store.connection.database import Database
from hpsearch.store.rows.curves import CurveReader
from hpsearch.store.studies import StoredStudy

Epoch = Callable[..., EpochReport]


@pytest.fixture
def ledger(database: Database, new_study: Callable[..., StoredStudy]) -> Ledger:
    return Ledger(database=database, study_id=new_study(5).study_id, owner=1)


@pytest.fixture
def reader(ledger: Ledger) -> CurveReader:
    return CurveReader(ledger.database, ledger.study_id)


def as_optuna_reads(ledger: Ledger) -> list[FrozenTrial]:
    return [
        trial
        for trial in ledger.database.storage.get_all_trials(ledger.study_id)
        if trial.state is not TrialState.WAITING
    ]


def essence(trial: FrozenTrial) -> tuple[Any, ...]:
    rungs = {k: v for k, v in trial.system_attrs.items() if k.startswith("completed_rung_")}
    return (
        trial._trial_id,
        trial.number,
        trial.state,
        trial.value,
        trial.intermediate_values,
        rungs,
        trial.datetime_start,
        trial.datetime_complete,
    )


def test_reader_sees_what_optuna_sees(ledger: Ledger, reader: CurveReader, epoch: Epoch) -> None:
    assert reader.read() == []
    one, two, three, four = ledger.claim(4)
    values = {one.trial_id: 0.1 + 0.2, two.trial_id: 1.0, three.trial_id: 0.0, four.trial_id: 1e-17}
    for number in (1, 2):
        reports = {trial_id: epoch(number, value / number) for trial_id, value in values.items()}
        rungs = [(one.trial_id, f"completed_rung_{number}", 0.5), (two.trial_id, "unrelated", 1)]
        ledger.record(reports, rungs)
    ledger.finish([Result(trial_id=one.trial_id, outcome=Outcome.COMPLETE, loss=0.15)])
    ledger.finish([Result(trial_id=two.trial_id, outcome=Outcome.PRUNED, loss=None)])
    expected = as_optuna_reads(ledger)
    assert len(expected) == 4
    for _ in range(2):  # also when the finished ones are remembered
        found = reader.read()
        assert [essence(trial) for trial in found] == [essence(trial) for trial in expected]
        assert all(type(v) is float for trial in found for v in trial.intermediate_values.values())


def test_failed_attempts_do_not_compete(ledger: Ledger, reader: CurveReader, epoch: Epoch) -> None:
    one, two, three = ledger.claim(3)
    ledger.record({claim.trial_id: epoch() for claim in (one, two, three)}, [(three.trial_id, "completed_rung_0", 0.5)])
    ledger.finish([Result(trial_id=one.trial_id, outcome=Outcome.COMPLETE, loss=0.15)])
    ledger.finish([Result(trial_id=two.trial_id, outcome=Outcome.PRUNED, loss=None)])
    assert len(reader.read()) == 3
    ledger.release("stopped")
    assert [trial.state for trial in reader.read()] == [TrialState.COMPLETE, TrialState.PRUNED]


def test_a_trial_that_runs_again_after_a_crash_of_the_server_shows_once(
    ledger: Ledger, reader: CurveReader, epoch: Epoch, execute: Callable[..., Any]
) -> None:
    """Its end was acknowledged and lost: a reader that remembered it would show it twice, and end its worker."""
    one, two = ledger.claim(2)
    ledger.record({claim.trial_id: epoch() for claim in (one, two)})
    ledger.finish([Result(trial_id=claim.trial_id, outcome=Outcome.COMPLETE, loss=0.15) for claim in (one, two)])
    ledger.claim(1)
    assert len(reader.read()) == 3
    execute("UPDATE trials SET state = 'RUNNING', datetime_complete = NULL WHERE trial_id = :one", one=one.trial_id)
    execute("DELETE FROM trial_values WHERE trial_id = :one", one=one.trial_id)
    execute("UPDATE hpsearch_points SET is_counted = false, owner = 1 WHERE trial_id = :one", one=one.trial_id)
    assert [trial.state.name for trial in reader.read()] == ["RUNNING", "COMPLETE", "RUNNING"]


def test_reading_is_one_statement_that_leaves_out_what_is_known(
    ledger: Ledger,
    reader: CurveReader,
    epoch: Epoch,
    statements: Callable[[], AbstractContextManager[list[str]]],
) -> None:
    claims = ledger.claim(5)
    ledger.record({claim.trial_id: epoch() for claim in claims})
    ledger.finish([Result(trial_id=c.trial_id, outcome=Outcome.COMPLETE, loss=0.5) for c in claims[:3]])
    first = reader.read()
    with statements() as seen:
        second = reader.read()
    assert len(seen) == 1
    assert [trial.number for trial in second] == [0, 1, 2, 3, 4]
    assert [a is b for a, b in zip(first, second, strict=True)] == [True, True, True, False, False]


def test_other_studies_do_not_show(ledger: Ledger, reader: CurveReader, new_study: Callable[..., StoredStudy]) -> None:
    other = Ledger(database=ledger.database, study_id=new_study(2).study_id, owner=1)
    other.claim(2)
    assert reader.read() == []
    ledger.claim(1)
    assert [trial.number for trial in reader.read()] == [0]


@pytest.mark.parametrize(
    "pruner",
    [
        optuna.pruners.MedianPruner(n_startup_trials=2),
        optuna.pruners.SuccessiveHalvingPruner(min_resource=1, reduction_factor=2),
    ],
    ids=["median", "successive-halving"],
)
def test_pruner_decides_on_these_trials_as_optuna_does_on_its_own(
    ledger: Ledger, reader: CurveReader, epoch: Epoch, pruner: optuna.pruners.BasePruner
) -> None:
    claims = ledger.claim(5)
    for number in (1, 2, 3, 4):
        ledger.record({claim.trial_id: epoch(number, 0.1 * (i + 1)) for i, claim in enumerate(claims)})
    # The rungs at epochs 1 and 2 are behind all of them, the one at epoch 4 behind the first three.
    passed = [(i, rung) for i in range(5) for rung in range(3) if i < 3 or rung < 2]
    ledger.record({}, [(claims[i].trial_id, f"completed_rung_{rung}", 0.1 * (i + 1)) for i, rung in passed])
    ledger.finish([Result(trial_id=c.trial_id, outcome=Outcome.COMPLETE, loss=0.1) for c in claims[:3]])
    name = ledger.database.storage.get_study_name_from_id(ledger.study_id)
    snapshot = StudySnapshot(study_name=name, study_id=ledger.study_id, pruner=pruner)
    snapshot.replace_trials(reader.read())
    found = [snapshot.should_prune(claim.trial_id) for claim in claims[3:]]
    theirs = optuna.load_study(study_name=name, storage=ledger.database.storage, pruner=pruner)
    assert found == [optuna.Trial(theirs, claim.trial_id).should_prune() for claim in claims[3:]]
    assert found == [True, True]
