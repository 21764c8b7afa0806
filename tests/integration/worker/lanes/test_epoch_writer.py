"""Epochs written in the background: in order, one at a time, fenced, and never lost without a word."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from concurrent import futures
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy import Connection, create_engine, text

from hpsearch.artifacts.best_parameters import Artifacts, open_artifacts
from hpsearch.epoch_report import EpochReport
from hpsearch.errors import ArtifactError, StorageError
from hpsearch.signals import StopSignal, WorkerStopped
from hpsearch.store.claims import ledger_sql as ledger_statements
from hpsearch.store.claims.claim import Claim, Outcome, Result
from hpsearch.store.claims.ledger import Ledger
from hpsearch.store.claims.requeue import fail_and_requeue
from hpsearch.store.connection.database import Database
from hpsearch.store.rows.counts import PointCounts
from hpsearch.store.rows.trial_rows import lock_study
from hpsearch.store.studies import StoredStudy
from hpsearch.stored_json import ARTIFACT_RECORD_PREFIX
from hpsearch.worker.lanes import epoch_writer as module
from hpsearch.worker.lanes.epoch_writer import BestParameters, EpochEntry, EpochWriter, Written

Epoch = Callable[..., EpochReport]
Statements = Callable[[], AbstractContextManager[list[str]]]


@pytest.fixture(autouse=True)
def _patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """A busy machine is no slow database; tests of slow ones are impatient of their own accord."""
    monkeypatch.setattr(module, "SLOW_SECONDS", 60.0)


@pytest.fixture
def artifacts(tmp_path: Path) -> Artifacts:
    return open_artifacts(tmp_path / "artifacts")


@pytest.fixture
def ledger(database: Database, new_study: Callable[..., StoredStudy]) -> Ledger:
    return Ledger(database=database, study_id=new_study(6).study_id, owner=1)


@pytest.fixture
def stop() -> StopSignal:
    return StopSignal()


@pytest.fixture
def writer(ledger: Ledger, artifacts: Artifacts, stop: StopSignal) -> Iterator[EpochWriter]:
    with EpochWriter(ledger, artifacts, stop, "tester") as writer:
        yield writer


@contextmanager
def locked_points(database: Database) -> Iterator[Connection]:
    """A session that keeps all points' rows locked, so that nothing can be recorded; not for ever."""
    with database.engine.connect() as connection, connection.begin():
        connection.execute(text("SET LOCAL idle_in_transaction_session_timeout = '60s'"))
        connection.execute(text("SELECT point FROM hpsearch_points FOR UPDATE"))
        yield connection


Ending = tuple[Result, BestParameters | None]  # a trial's end, with its parameters if it is a candidate


def entry(claims: list[Claim], reports: dict[int, EpochReport] | None = None, *endings: Ending) -> EpochEntry:
    return EpochEntry(
        held=frozenset(claim.hold for claim in claims),
        reports=reports,
        results=[result for result, _ in endings],
        parameters={result.trial_id: best for result, best in endings if best is not None},
    )


def complete(claim: Claim, value: float = 0.25, *, is_candidate: bool = True) -> Ending:
    best = BestParameters(arrays={"w": np.full(2, value)}, metadata={"trial": str(claim.number)})
    result = Result(trial_id=claim.trial_id, outcome=Outcome.COMPLETE, loss=value, attributes={"epochs": 1})
    return result, best if is_candidate else None


def trials_of(ledger: Ledger) -> list[FrozenTrial]:
    return ledger.database.storage.get_all_trials(ledger.study_id)


def kept(ledger: Ledger) -> set[int]:
    """The numbers of the trials whose parameters are kept."""
    return {
        trial.number
        for trial in trials_of(ledger)
        if any(k.startswith(ARTIFACT_RECORD_PREFIX) for k in trial.system_attrs)
    }


def test_an_epoch_is_written_with_its_reports_and_ends(ledger: Ledger, writer: EpochWriter, epoch: Epoch) -> None:
    one, two, three = ledger.claim(3)
    reports = {one.trial_id: epoch(1, 0.25), two.trial_id: epoch(1, 0.5)}
    writer.hand_over(entry([one, two, three], reports, complete(one)))
    assert writer.collect() == Written(counted=frozenset({one.trial_id}), worst_kept=0.25)
    assert [trial.intermediate_values for trial in trials_of(ledger)[:3]] == [{1: 0.25}, {1: 0.5}, {}]
    assert ledger.counts() == PointCounts(waiting=3, running=2, complete=1)
    assert kept(ledger) == {one.number}


def test_nothing_is_outstanding_at_first_and_after_it_was_collected(writer: EpochWriter, ledger: Ledger) -> None:
    assert writer.collect() == Written()
    (claim,) = ledger.claim(1)
    writer.hand_over(entry([claim], {}))
    writer.collect()
    assert writer.collect() == writer.flush() == Written()


def test_epochs_queue_up_and_are_written_in_order(
    ledger: Ledger, writer: EpochWriter, database: Database, epoch: Epoch, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "SLOW_SECONDS", 0.01)
    claim, other = ledger.claim(2)
    with locked_points(database):
        for number in (1, 2, 3):
            writer.hand_over(entry([claim, other], {claim.trial_id: epoch(number, 1 / number)}))
            assert writer.collect() == Written()
        writer.hand_over(entry([claim, other], None, complete(claim, 0.125)))
        assert (writer.num_buffered, writer.is_behind, writer.is_outstanding) == (3, True, True)
    assert writer.drain() == Written(counted=frozenset({claim.trial_id}), worst_kept=0.125)
    assert (writer.num_buffered, writer.is_behind, writer.is_outstanding) == (0, False, False)
    assert trials_of(ledger)[0].intermediate_values == {1: 1.0, 2: 0.5, 3: pytest.approx(1 / 3)}


def test_training_goes_on_while_the_database_does_not_answer_and_that_is_said_once(
    ledger: Ledger,
    writer: EpochWriter,
    database: Database,
    epoch: Epoch,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("INFO", "hpsearch")
    monkeypatch.setattr(module, "SLOW_SECONDS", 0.01)
    (claim,) = ledger.claim(1)
    with locked_points(database):
        for number in (1, 2, 3):
            writer.hand_over(entry([claim], {claim.trial_id: epoch(number)}))
            writer.collect()
    writer.drain()
    assert caplog.messages == [
        "tester: the database or the artifact store does not answer: training continues, reports are kept in memory",
        "tester: all outstanding epochs are written",
    ]


def test_training_waits_when_too_many_reports_are_kept(
    ledger: Ledger, writer: EpochWriter, database: Database, epoch: Epoch, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "SLOW_SECONDS", 0.01)
    monkeypatch.setattr(module, "MAX_BUFFERED_REPORTS", 1)
    (claim,) = ledger.claim(1)
    with futures.ThreadPoolExecutor() as pool:
        with locked_points(database):
            for number in (1, 2):
                writer.hand_over(entry([claim], {claim.trial_id: epoch(number)}))
            collected = pool.submit(writer.collect)
            with pytest.raises(futures.TimeoutError):
                collected.result(timeout=0.3)
        assert collected.result(timeout=240) == Written()
    assert writer.num_buffered <= 1


def test_a_stopped_worker_does_not_wait_for_room(
    ledger: Ledger,
    writer: EpochWriter,
    database: Database,
    stop: StopSignal,
    epoch: Epoch,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "SLOW_SECONDS", 0.01)
    monkeypatch.setattr(module, "MAX_BUFFERED_REPORTS", 0)
    (claim,) = ledger.claim(1)
    stop.set()
    with locked_points(database):
        writer.hand_over(entry([claim], {claim.trial_id: epoch(1)}))
        assert writer.collect() == Written()


def test_what_became_of_two_entries_is_told_together() -> None:
    first = Written(lost=frozenset({(1, 7)}), counted=frozenset({2}), worst_kept=0.5)
    assert first.followed_by(Written(lost=frozenset({(3, 7)}), counted=frozenset({4}))) == Written(
        lost=frozenset({(1, 7), (3, 7)}), counted=frozenset({2, 4}), worst_kept=0.5
    )
    assert first.followed_by(Written(worst_kept=0.25)).worst_kept == 0.25


def test_the_hand_over_does_not_wait_for_the_database(
    ledger: Ledger, writer: EpochWriter, database: Database, epoch: Epoch, execute: Any
) -> None:
    (claim,) = ledger.claim(1)
    with locked_points(database):
        writer.hand_over(entry([claim], {claim.trial_id: epoch(1)}, complete(claim)))
        assert [thread.name for thread in writer._thread._threads] == ["epoch writer_0"]
        assert execute("SELECT count(*) FROM hpsearch_epochs") == [(0,)]
    assert writer.collect().counted == {claim.trial_id}


def test_reports_come_before_ends(ledger: Ledger, writer: EpochWriter, epoch: Epoch, statements: Statements) -> None:
    claims = ledger.claim(2)
    with statements() as seen:
        writer.hand_over(entry(claims, {c.trial_id: epoch(1) for c in claims}, complete(claims[0])))
        writer.collect()
    assert ["INSERT INTO hpsearch_epochs" in sql for sql in seen] == [True] + [False] * (len(seen) - 1)
    assert any("is_counted = true" in sql for sql in seen)


@pytest.mark.parametrize("num_lanes", [1, 8, 64])
def test_an_epoch_takes_the_same_number_of_statements_for_any_number_of_lanes(
    database: Database,
    artifacts: Artifacts,
    stop: StopSignal,
    new_study: Callable[..., StoredStudy],
    epoch: Epoch,
    statements: Statements,
    num_lanes: int,
) -> None:
    ledger = Ledger(database=database, study_id=new_study(num_lanes + 2).study_id, owner=1)
    claims = ledger.claim(num_lanes + 2)
    with EpochWriter(ledger, artifacts, stop, "tester") as writer, statements() as seen:
        writer.hand_over(entry(claims, {c.trial_id: epoch(1) for c in claims}))
        writer.collect()
        assert len(seen) == 1
        ends = [complete(claim, 0.1 + 0.001 * claim.number) for claim in claims]
        writer.hand_over(entry(claims, {c.trial_id: epoch(2) for c in claims}, *ends))
        assert len(writer.collect().counted) == num_lanes + 2
    # Recorded; the best value looked up; the file of the best one recorded; the best one counted with its attributes,
    # and then all others.
    assert len(seen) == 1 + 1 + 1 + 1 + 2 + 2
    assert kept(ledger) == {claims[0].number}


# Which parameters are kept


def test_the_best_of_an_epoch_are_kept_and_nothing_that_is_worse(ledger: Ledger, writer: EpochWriter) -> None:
    claims = ledger.claim(6)
    values = [0.5, 0.25, 0.75, 0.25, 0.125]
    endings = [complete(claim, value) for claim, value in zip(claims, values, strict=False)]
    writer.hand_over(entry(claims, None, *endings[:4]))
    written = writer.collect()
    assert len(written.counted) == 4
    assert written.worst_kept == 0.25
    assert kept(ledger) == {claims[1].number, claims[3].number}  # equals: their NLL decides between them
    writer.hand_over(entry(claims[4:], None, endings[4], complete(claims[5], 0.5)))
    assert writer.collect().worst_kept == 0.125
    assert kept(ledger) == {claims[1].number, claims[3].number, claims[4].number}


def test_as_many_of_the_best_are_kept_as_asked_for(ledger: Ledger, artifacts: Artifacts, stop: StopSignal) -> None:
    """Whoever is better already counts, and so does whoever ends in the same epoch and is better."""
    claims = ledger.claim(6)
    with EpochWriter(ledger, artifacts, stop, "tester", num_kept=3) as writer:
        writer.hand_over(entry(claims, None, complete(claims[0], 0.5), complete(claims[1], 0.25)))
        assert writer.collect().worst_kept is None  # there is room for a third
        values = [0.75, 0.125, 0.375, 0.625]
        endings = [complete(claim, value) for claim, value in zip(claims[2:], values, strict=True)]
        writer.hand_over(entry(claims[2:], None, *endings))
        assert writer.collect().worst_kept == 0.375
    assert kept(ledger) == {claims[n].number for n in (0, 1, 3, 4)}
    assert ledger.best_losses(3) == [0.125, 0.25, 0.375]


def test_a_trial_that_is_no_candidate_is_counted_without_its_parameters(ledger: Ledger, writer: EpochWriter) -> None:
    claims = ledger.claim(2)
    pruned = Result(trial_id=claims[1].trial_id, outcome=Outcome.PRUNED, loss=None)
    writer.hand_over(entry(claims, None, complete(claims[0], is_candidate=False), (pruned, None)))
    written = writer.collect()
    assert (len(written.counted), written.worst_kept) == (2, None)
    assert kept(ledger) == set()


def test_the_next_best_is_kept_where_the_best_was_lost(ledger: Ledger, writer: EpochWriter, execute: Any) -> None:
    claims = ledger.claim(2)
    execute("UPDATE hpsearch_points SET owner = 9 WHERE trial_id = :id", id=claims[0].trial_id)
    writer.hand_over(entry(claims, None, complete(claims[0], 0.1), complete(claims[1], 0.2)))
    written = writer.collect()
    assert (written.lost, written.counted) == ({claims[0].hold}, {claims[1].trial_id})
    assert written.worst_kept == 0.2
    assert claims[1].number in kept(ledger)


@pytest.mark.parametrize("has_restarted", [True, False])
def test_a_best_trial_without_parameters_is_given_back_if_a_better_one_may_have_been_lost(
    ledger: Ledger, writer: EpochWriter, has_restarted: bool
) -> None:
    """It was taken for no candidate: what was better then is no longer there."""
    best, worse = ledger.claim(2)
    ledger.renew()
    before = ledger.holdings.num_restarts
    if has_restarted:
        ledger.holdings.note_server(datetime(2020, 1, 1, tzinfo=UTC))
    first = entry([best, worse], None, complete(best, 0.2))
    second = entry([worse], None, complete(worse, 0.1, is_candidate=False))
    for each in (first, second):
        writer.hand_over(replace(each, num_restarts=before))
    written = writer.drain()
    assert written.counted == ({best.trial_id} if has_restarted else {best.trial_id, worse.trial_id})
    ledger.renew()
    assert ledger.counts() == PointCounts(waiting=5 if has_restarted else 4, complete=len(written.counted))


# Fences


def take_away(connection: Connection, ledger: Ledger) -> None:
    """What another worker does that finds these leases stale."""
    lock_study(connection, ledger.study_id)
    rows = connection.execute(ledger_statements.HELD_FOR_UPDATE, ledger.values).all()
    fail_and_requeue(connection, ledger.study_id, rows, "taken", is_crash=True)


def test_a_worker_that_loses_its_leases_while_its_write_is_outstanding_writes_nothing(
    ledger: Ledger, writer: EpochWriter, database: Database, epoch: Epoch, execute: Any
) -> None:
    claims = ledger.claim(2)
    with locked_points(database) as connection:
        writer.hand_over(entry(claims, {c.trial_id: epoch(1) for c in claims}, complete(claims[0])))
        take_away(connection, ledger)
    assert writer.collect() == Written(lost=frozenset(c.hold for c in claims))
    assert execute("SELECT count(*) FROM hpsearch_epochs") == [(0,)]
    assert [trial.intermediate_values for trial in trials_of(ledger)] == [{}] * 8
    assert ledger.counts() == PointCounts(waiting=6)
    assert kept(ledger) == set()


def test_a_trial_that_finished_elsewhere_keeps_no_parameters_of_ours(
    ledger: Ledger, writer: EpochWriter, artifacts: Artifacts
) -> None:
    """Its lease may still bear our name: plain Optuna was told of it."""
    (claim,) = ledger.claim(1)
    ledger.database.storage.set_trial_state_values(claim.trial_id, TrialState.FAIL)
    writer.hand_over(entry([claim], None, complete(claim)))
    assert writer.collect() == Written(lost=frozenset({claim.hold}))
    assert list(Path(artifacts.place).iterdir()) == []


# Errors and stopping


def test_an_error_of_the_thread_reaches_the_worker_when_it_collects(
    ledger: Ledger, writer: EpochWriter, artifacts: Artifacts, epoch: Epoch
) -> None:
    claims = ledger.claim(2)
    shutil.rmtree(Path(artifacts.place))
    writer.hand_over(entry(claims, {c.trial_id: epoch(1) for c in claims}, complete(claims[0])))
    with pytest.raises(ArtifactError, match="cannot write the best parameters"):
        writer.collect()
    assert ledger.counts() == PointCounts(waiting=4, running=2)  # recorded, but not ended without its parameters
    Path(artifacts.place).mkdir()
    writer.hand_over(entry(claims, {c.trial_id: epoch(2) for c in claims}, complete(claims[0])))  # the thread lives on
    assert writer.collect().counted == {claims[0].trial_id}


def test_nothing_is_written_after_an_epoch_that_was_not(
    ledger: Ledger, writer: EpochWriter, epoch: Epoch, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or a trial would be complete without one of its epochs."""
    (claim,) = ledger.claim(1)
    real = Ledger.record
    errors = iter([StorageError("away for too long")])

    def record(self: Ledger, *arguments: Any, **options: Any) -> set[int]:
        for error in errors:
            raise error
        return real(self, *arguments, **options)

    monkeypatch.setattr(Ledger, "record", record)
    writer.hand_over(entry([claim], {claim.trial_id: epoch(1)}))
    writer.hand_over(entry([claim], {claim.trial_id: epoch(2)}, complete(claim)))
    with pytest.raises(StorageError, match="for too long"):
        writer.drain()
    assert (writer.is_outstanding, ledger.counts().running) == (False, 1)
    assert trials_of(ledger)[0].intermediate_values == {}


def test_a_single_slow_moment_ends(
    ledger: Ledger, writer: EpochWriter, database: Database, epoch: Epoch, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An epoch that is shorter than its writing is held back by a database that answers."""
    monkeypatch.setattr(module, "SLOW_SECONDS", 0.05)
    (claim,) = ledger.claim(1)
    with locked_points(database):
        for number in (1, 2, 3):
            writer.hand_over(entry([claim], {claim.trial_id: epoch(number)}))
            writer.collect()
        assert writer.is_behind
    monkeypatch.setattr(module, "SLOW_SECONDS", 30.0)
    futures.wait([writer._queue[0][0]])
    writer.hand_over(entry([claim], {claim.trial_id: epoch(4)}))
    writer.collect()
    assert not writer.is_behind


@contextmanager
def away(url: str) -> Iterator[None]:
    """A database that admits nobody for a while."""
    name = url.rpartition("/")[2].partition("?")[0]
    engine = create_engine(url.replace(f"/{name}", "/postgres", 1), isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.execute(text(f"ALTER DATABASE {name} ALLOW_CONNECTIONS false"))
        connection.execute(
            text("SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity WHERE datname = :name"), {"name": name}
        )
        try:
            yield
        finally:
            connection.execute(text(f"ALTER DATABASE {name} ALLOW_CONNECTIONS true"))
    engine.dispose()


def test_a_database_that_stays_away_is_told_when_the_worker_collects(
    tables_url: str, ledger: Ledger, artifacts: Artifacts, stop: StopSignal, epoch: Epoch
) -> None:
    (claim,) = ledger.claim(1)
    impatient = replace(ledger, database=replace(ledger.database, outage_seconds=0.2))
    with EpochWriter(impatient, artifacts, stop, "tester") as writer:
        with away(tables_url):
            writer.hand_over(entry([claim], {claim.trial_id: epoch(1)}))
            with pytest.raises(StorageError, match="is away"):
                writer.collect()
        writer.hand_over(entry([claim], {claim.trial_id: epoch(1)}))
        assert writer.collect() == Written()


def test_an_outage_passes_unnoticed_by_the_worker_that_trains(
    tables_url: str, ledger: Ledger, writer: EpochWriter, epoch: Epoch
) -> None:
    (claim,) = ledger.claim(1)
    with away(tables_url):
        writer.hand_over(entry([claim], {claim.trial_id: epoch(1)}, complete(claim)))
    assert writer.collect().counted == {claim.trial_id}


def test_a_worker_that_is_asked_to_stop_does_not_wait_for_a_slow_database(
    ledger: Ledger, writer: EpochWriter, database: Database, stop: StopSignal, epoch: Epoch
) -> None:
    (claim,) = ledger.claim(1)
    with locked_points(database):
        writer.hand_over(entry([claim], {claim.trial_id: epoch(1)}, complete(claim)))
        stop.set()
        with pytest.raises(WorkerStopped):
            writer.drain()
    assert writer.flush().counted == {claim.trial_id}  # what was outstanding is not lost


def test_the_last_flush_waits_but_not_for_ever(
    ledger: Ledger,
    database: Database,
    artifacts: Artifacts,
    stop: StopSignal,
    epoch: Epoch,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(module, "FLUSH_SECONDS", 0.05)
    (claim,) = ledger.claim(1)
    with locked_points(database):
        with EpochWriter(ledger, artifacts, stop, "tester") as writer:
            writer.hand_over(entry([claim], {claim.trial_id: epoch(1)}))
            assert writer.flush() == Written()
        assert caplog.messages == ["tester: the database does not answer: the last epochs may not be recorded"]
    writer._thread.shutdown(wait=True)
    assert trials_of(ledger)[0].intermediate_values == {1: 0.5}


def test_the_thread_ends_with_its_writer(ledger: Ledger, artifacts: Artifacts, stop: StopSignal) -> None:
    (claim,) = ledger.claim(1)
    with EpochWriter(ledger, artifacts, stop, "tester") as writer:
        writer.hand_over(entry([claim], {}))
        writer.collect()
    assert [thread.is_alive() for thread in writer._thread._threads] == [False]
    with pytest.raises(RuntimeError):
        writer.hand_over(entry([claim], {}))
