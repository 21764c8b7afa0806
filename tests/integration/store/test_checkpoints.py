"""Checkpoints: recorded by their point's owner alone, found by the next attempt, and gone when the point is counted."""

from __future__ import annotations

import logging
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Connection, event, text
from sqlalchemy.exc import OperationalError

from hpsearch.artifacts.best_parameters import Artifacts, open_artifacts
from hpsearch.artifacts.store import FolderStore
from hpsearch.epoch_report import Diagnosis, EpochReport
from hpsearch.errors import StorageError
from hpsearch.store.checkpoints import Checkpoints, ResumeOutcome
from hpsearch.store.claims.claim import Claim, Outcome, Result
from hpsearch.store.claims.ledger import Ledger
from hpsearch.store.claims.requeue import MAX_CRASHES
from hpsearch.store.connection.database import Database
from hpsearch.store.rows.diagnoses import COLUMNS
from hpsearch.store.studies import StoredStudy
from tests.full_disk import files_no_larger_than

Epoch = Callable[..., EpochReport]
Workers = Callable[..., list[Ledger]]
Statements = Callable[[], AbstractContextManager[list[str]]]


@pytest.fixture(params=["folder", "bucket"])
def artifacts(request: pytest.FixtureRequest, tmp_path: Path) -> Artifacts:
    if request.param == "folder":
        return open_artifacts(tmp_path / "artifacts")
    return open_artifacts(f"s3://{request.getfixturevalue('bucket').name}/p")


@pytest.fixture
def folder(tmp_path: Path) -> Artifacts:
    """For what does not depend on the kind of store."""
    return open_artifacts(tmp_path / "artifacts")


@pytest.fixture
def workers(database: Database, new_study: Callable[..., StoredStudy]) -> Workers:
    """Makes a study and the ledgers of so many workers on it; their numbers are 1, 2, ..."""

    def make(number: int, points: int = 3) -> list[Ledger]:
        study = new_study(points)
        return [Ledger(database=database, study_id=study.study_id, owner=i + 1) for i in range(number)]

    return make


def files_of(artifacts: Artifacts) -> dict[str, bytes]:
    """All files in the store, by name."""
    store = artifacts.store
    if isinstance(store, FolderStore):
        return {path.name: path.read_bytes() for path in store.folder.iterdir()}
    import boto3

    bucket, _, prefix = artifacts.place.removeprefix("s3://").partition("/")
    objects = boto3.resource("s3").Bucket(bucket).objects.all()
    return {item.key.removeprefix(f"{prefix}/"): item.get()["Body"].read() for item in objects}


def rows_of(ledger: Ledger) -> list[tuple[int, int, int, str, int]]:
    """(point, trial id, epoch, artifact id, bytes) of all checkpoints of the study."""
    sql = """SELECT point, trial_id, epoch, artifact_id, num_bytes FROM hpsearch_checkpoints
        WHERE study_id = :study AND saved_at <= now() ORDER BY point"""
    with ledger.database.engine.begin() as connection:
        return [tuple(row) for row in connection.execute(text(sql), {"study": ledger.study_id})]


def report(ledger: Ledger, epoch: Epoch, trial_id: int, *numbers: int) -> None:
    for number in numbers:
        diagnosis = Diagnosis(
            nll=0.5 * number,
            gradient_norm=0.25,
            gradient_noise=None,
            penalty_norm=0.0,
            saturated=None,
            dead=0.75,
            update_ratios={"hidden.weight": 0.001, "output.weight": None},
        )
        ledger.record({trial_id: replace(epoch(number, loss=1 / (number + 1)), diagnosis=diagnosis)})


def diagnosed(ledger: Ledger, trial_id: int) -> list[Any]:
    """The diagnoses of a trial as they are stored."""
    sql = f"SELECT epoch, {', '.join(COLUMNS)} FROM hpsearch_diagnoses WHERE trial_id = :t ORDER BY epoch"
    with ledger.database.engine.begin() as connection:
        return [tuple(row) for row in connection.execute(text(sql), {"t": trial_id})]


def complete(ledger: Ledger, *trial_ids: int) -> None:
    ledger.finish([Result(trial_id=i, outcome=Outcome.COMPLETE, loss=0.25) for i in trial_ids])


def curve(ledger: Ledger, trial_id: int) -> tuple[dict[int, float], list[Any]]:
    """What Optuna shows of a trial, and our own details of its epochs."""
    sql = "SELECT epoch, train_nll, validation_nll, learning_rate, seconds FROM hpsearch_epochs WHERE trial_id = :t"
    with ledger.database.engine.begin() as connection:
        epochs = [tuple(row) for row in connection.execute(text(sql + " ORDER BY epoch"), {"t": trial_id})]
    return ledger.database.storage.get_trial(trial_id).intermediate_values, epochs


# Saving


def test_a_checkpoint_is_found_by_the_next_attempt_on_any_worker(workers: Workers, artifacts: Artifacts) -> None:
    first, second = workers(2)
    (old,) = first.claim(1)
    assert Checkpoints(first, artifacts).save({old.trial_id: (7, b"seven")}) == {old.trial_id}
    first.release("stopped")
    new = next(claim for claim in second.claim(9) if claim.point == old.point)
    reader = Checkpoints(second, artifacts)
    found = reader.find([new.trial_id])
    assert list(found) == [new.trial_id]
    stored = found[new.trial_id]
    assert (stored.epoch, stored.num_bytes) == (7, 5)
    assert (stored.source_trial_id, stored.source_number) == (old.trial_id, old.number)
    assert reader.load(stored) == b"seven"


def test_trials_without_a_checkpoint_have_none_to_be_found(workers: Workers, folder: Artifacts) -> None:
    (ledger,) = workers(1)
    one, two = ledger.claim(2)
    checkpoints = Checkpoints(ledger, folder)
    checkpoints.save({one.trial_id: (1, b"x")})
    assert list(checkpoints.find([one.trial_id, two.trial_id, 12345])) == [one.trial_id]
    assert checkpoints.find([]) == {}


def test_a_newer_checkpoint_takes_the_place_and_the_file_of_the_older(workers: Workers, artifacts: Artifacts) -> None:
    (ledger,) = workers(1)
    one, two = ledger.claim(2)
    checkpoints = Checkpoints(ledger, artifacts)
    checkpoints.save({one.trial_id: (1, b"1"), two.trial_id: (1, b"other")})
    checkpoints.save({one.trial_id: (2, b"22")})
    (row, other) = rows_of(ledger)
    assert row[:3] == (one.point, one.trial_id, 2)
    assert row[3].startswith("checkpoint-")
    assert files_of(artifacts) == {row[3]: b"22", other[3]: b"other"}


def test_within_an_attempt_an_older_epoch_never_replaces_a_newer_one(workers: Workers, folder: Artifacts) -> None:
    (ledger,) = workers(1)
    (claim,) = ledger.claim(1)
    checkpoints = Checkpoints(ledger, folder)
    checkpoints.save({claim.trial_id: (5, b"five")})
    assert checkpoints.save({claim.trial_id: (4, b"four")}) == set()
    assert [row[2] for row in rows_of(ledger)] == [5]
    assert list(files_of(folder).values()) == [b"five"]


def test_an_attempt_that_began_anew_replaces_what_it_could_not_use(workers: Workers, folder: Artifacts) -> None:
    """Else a damaged checkpoint would stand in the way of all later ones until its epoch is passed again."""
    first, second = workers(2, points=1)
    (old,) = first.claim(1)
    Checkpoints(first, folder).save({old.trial_id: (9, b"nine")})
    first.release("stopped")
    (new,) = second.claim(1)
    assert Checkpoints(second, folder).save({new.trial_id: (1, b"one")}) == {new.trial_id}
    assert [row[1:3] for row in rows_of(second)] == [(new.trial_id, 1)]
    assert list(files_of(folder).values()) == [b"one"]


def test_saving_takes_two_statements_however_many_trials_there_are(
    workers: Workers, folder: Artifacts, statements: Statements
) -> None:
    (ledger,) = workers(1, points=20)
    claims = ledger.claim(20)
    checkpoints = Checkpoints(ledger, folder)
    for epoch in (1, 2):
        with statements() as seen:
            saved = checkpoints.save({claim.trial_id: (epoch, b"x") for claim in claims})
        assert len(saved) == 20
        assert len(seen) == 2
    assert len(files_of(folder)) == 20


def test_saving_nothing_asks_nobody(workers: Workers, folder: Artifacts, statements: Statements) -> None:
    (ledger,) = workers(1)
    with statements() as seen:
        assert Checkpoints(ledger, folder).save({}) == set()
    assert seen == []


# The fence


def test_worker_whose_lease_went_to_another_records_nothing_and_removes_its_file(
    workers: Workers, artifacts: Artifacts
) -> None:
    first, second = workers(2, points=2)
    lost, kept = first.claim(2)
    checkpoints = Checkpoints(first, artifacts)
    checkpoints.save({lost.trial_id: (3, b"three")})
    take_away(first, lost)
    assert [claim.point for claim in second.claim(1)] == [lost.point]
    before = rows_of(first)
    assert checkpoints.save({lost.trial_id: (4, b"four"), kept.trial_id: (4, b"kept")}) == {kept.trial_id}
    assert [row for row in rows_of(first) if row[0] == lost.point] == before
    assert sorted(files_of(artifacts).values()) == [b"kept", b"three"]


def take_away(ledger: Ledger, claim: Claim) -> None:
    """What befalls a worker that was away: another one requeues its point."""
    with ledger.database.engine.begin() as connection:
        connection.execute(
            text("UPDATE hpsearch_points SET owner = NULL WHERE trial_id = :trial"), {"trial": claim.trial_id}
        )
    assert replace(ledger, owner=99).reap() == 1


@pytest.mark.parametrize("loss", ["released", "counted", "study deleted", "another owner"])
def test_trial_that_is_not_this_workers_any_more_is_not_recorded(
    workers: Workers, folder: Artifacts, loss: str, execute: Callable[..., Any]
) -> None:
    (ledger,) = workers(1)
    (claim,) = ledger.claim(1)
    match loss:
        case "released":
            ledger.release("stopped")
        case "counted":
            complete(ledger, claim.trial_id)
        case "study deleted":
            ledger.database.storage.delete_study(ledger.study_id)
        case "another owner":
            execute("UPDATE hpsearch_points SET owner = 99 WHERE trial_id = :trial", trial=claim.trial_id)
    assert Checkpoints(ledger, folder).save({claim.trial_id: (1, b"x")}) == set()
    assert rows_of(ledger) == []
    assert files_of(folder) == {}


def test_requeue_that_is_under_way_is_waited_for_and_wins(workers: Workers, folder: Artifacts) -> None:
    """The statement's own view of the tables is older than the requeue: only the lock shows it."""
    (ledger,) = workers(1, points=1)
    (claim,) = ledger.claim(1)
    checkpoints = Checkpoints(ledger, folder)
    saved: list[set[int]] = []
    thread = threading.Thread(target=lambda: saved.append(checkpoints.save({claim.trial_id: (1, b"x")})))
    with ledger.database.engine.begin() as connection:
        connection.execute(text("SELECT 1 FROM hpsearch_points WHERE trial_id = :t FOR UPDATE"), {"t": claim.trial_id})
        new_id = another_trial(connection, ledger.study_id)
        thread.start()
        wait_until_blocked(ledger)
        connection.execute(
            text("UPDATE hpsearch_points SET trial_id = :new, owner = NULL WHERE trial_id = :t"),
            {"t": claim.trial_id, "new": new_id},
        )
    thread.join(240)
    assert saved == [set()]
    assert rows_of(ledger) == []
    assert files_of(folder) == {}


def test_report_that_is_under_way_is_not_waited_for(workers: Workers, folder: Artifacts) -> None:
    """A worker records epochs and renews its leases all the time, in another order: that must not end in a deadlock."""
    (ledger,) = workers(1, points=1)
    (claim,) = ledger.claim(1)
    with ledger.database.engine.begin() as connection:
        connection.execute(text("SET LOCAL lock_timeout = '5 s'"))
        connection.execute(text("UPDATE hpsearch_points SET renewed_at = now() WHERE owner = 1"))
        assert Checkpoints(ledger, folder).save({claim.trial_id: (1, b"x")}) == {claim.trial_id}


def another_trial(connection: Connection, study_id: int) -> int:
    sql = "INSERT INTO trials (study_id, number, state) VALUES (:study, 99, 'WAITING') RETURNING trial_id"
    number: int = connection.execute(text(sql), {"study": study_id}).scalar_one()
    return number


def wait_until_blocked(ledger: Ledger) -> None:
    """Until a session of this database waits for a lock."""
    sql = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
    pause = threading.Event()
    for _ in range(1000):
        with ledger.database.engine.begin() as connection:
            if connection.execute(text(sql)).scalar_one():
                return
        pause.wait(0.01)
    pytest.fail("nothing waits")


# An answer that was lost


@contextmanager
def commits_that_fail(database: Database, number: int, *, is_done: bool) -> Iterator[None]:
    """The next so many commits break the connection, after they have taken place or before."""
    left = [number]

    def commit(connection: Connection) -> None:
        if left[0] > 0:
            left[0] -= 1
            raw = connection.connection.driver_connection
            assert raw is not None
            if is_done:
                raw.commit()
            raise OperationalError("COMMIT", {}, Exception("server closed the connection"), connection_invalidated=True)

    event.listen(database.engine, "commit", commit)
    try:
        yield
    finally:
        event.remove(database.engine, "commit", commit)


@pytest.mark.parametrize("is_done", [True, False])
def test_save_whose_commit_was_not_answered_is_made_again(workers: Workers, folder: Artifacts, is_done: bool) -> None:
    (ledger,) = workers(1, points=1)
    (claim,) = ledger.claim(1)
    checkpoints = Checkpoints(ledger, folder)
    checkpoints.save({claim.trial_id: (1, b"one")})
    with commits_that_fail(ledger.database, 1, is_done=is_done):
        assert checkpoints.save({claim.trial_id: (2, b"two")}) == {claim.trial_id}
    assert [row[2] for row in rows_of(ledger)] == [2]
    assert list(files_of(folder).values()) == [b"two"]  # and the replaced one is gone


@pytest.mark.parametrize("is_done", [True, False])
def test_save_that_the_database_did_not_take_in_time_is_put_right_by_the_next(
    workers: Workers, folder: Artifacts, is_done: bool
) -> None:
    (ledger,) = workers(1, points=1)
    (claim,) = ledger.claim(1)
    impatient = replace(ledger, database=replace(ledger.database, outage_seconds=0.0))
    checkpoints = Checkpoints(impatient, folder)
    checkpoints.save({claim.trial_id: (1, b"one")})
    with commits_that_fail(ledger.database, 2, is_done=is_done):
        for _ in range(2):
            with pytest.raises(StorageError):
                checkpoints.save({claim.trial_id: (2, b"two")})
    assert sorted(files_of(folder).values()) == [b"one", b"two"]  # the second call did not even write
    recorded = rows_of(ledger)[0][3]
    assert folder.store.read(recorded) == (b"two" if is_done else b"one")
    assert checkpoints.save({claim.trial_id: (3, b"three")}) == {claim.trial_id}
    assert list(files_of(folder).values()) == [b"three"]


def test_file_in_doubt_that_another_worker_goes_on_from_is_not_removed(workers: Workers, folder: Artifacts) -> None:
    first, second = workers(2, points=2)
    lost, kept = first.claim(2)
    impatient = replace(first, database=replace(first.database, outage_seconds=0.0))
    checkpoints = Checkpoints(impatient, folder)
    with commits_that_fail(first.database, 1, is_done=True), pytest.raises(StorageError):
        checkpoints.save({lost.trial_id: (1, b"one")})
    take_away(first, lost)
    (new,) = second.claim(1)
    assert checkpoints.save({kept.trial_id: (1, b"kept")}) == {kept.trial_id}
    reader = Checkpoints(second, folder)
    assert reader.load(reader.find([new.trial_id])[new.trial_id]) == b"one"


# Files that cannot be written or read


def test_disk_that_is_full_costs_a_line_in_the_log_and_no_checkpoint_that_was_there(
    workers: Workers, folder: Artifacts, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    (ledger,) = workers(1)
    small, large = ledger.claim(2)
    checkpoints = Checkpoints(ledger, folder)
    checkpoints.save({small.trial_id: (1, b"small"), large.trial_id: (1, b"large")})
    for epoch in (2, 3):
        with files_no_larger_than(100):
            items = {small.trial_id: (epoch, b"small again"), large.trial_id: (epoch, b"large" * 1000)}
            assert checkpoints.save(items) == {small.trial_id}
    assert [row[2] for row in rows_of(ledger)] == [3, 1]
    assert sorted(files_of(folder).values()) == [b"large", b"small again"]
    assert checkpoints.save({large.trial_id: (4, b"large" * 1000)}) == {large.trial_id}
    assert [record.getMessage() for record in caplog.records] == [
        f"cannot write a checkpoint into {folder.place}: File too large. Training continues; earlier checkpoints stay "
        "valid",
        f"checkpoints can be written into {folder.place} again",
    ]


def test_folder_that_is_gone_ends_nobody(workers: Workers, folder: Artifacts) -> None:
    (ledger,) = workers(1)
    (claim,) = ledger.claim(1)
    checkpoints = Checkpoints(ledger, folder)
    checkpoints.save({claim.trial_id: (1, b"x")})
    shutil.rmtree(folder.place)
    assert checkpoints.save({claim.trial_id: (2, b"y")}) == set()
    assert [row[2] for row in rows_of(ledger)] == [1]
    Path(folder.place).mkdir()
    assert checkpoints.save({claim.trial_id: (3, b"z")}) == {claim.trial_id}  # the replaced file is not missed


def test_file_that_cannot_be_removed_is_told_to_whoever_debugs(
    workers: Workers, folder: Artifacts, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    (ledger,) = workers(1)
    (claim,) = ledger.claim(1)
    checkpoints = Checkpoints(ledger, folder)
    checkpoints.save({claim.trial_id: (1, b"x")})
    (name,) = files_of(folder)
    (Path(folder.place) / name).unlink()
    (Path(folder.place) / name).mkdir()  # what cannot be removed as a file, even by root
    assert checkpoints.save({claim.trial_id: (2, b"y")}) == {claim.trial_id}
    (record,) = [record for record in caplog.records if "cannot remove" in record.getMessage()]
    assert record.levelno == logging.DEBUG
    assert name in record.getMessage()


@pytest.mark.parametrize("damage", ["missing", "short", "unreadable"])
def test_checkpoint_that_cannot_be_read_is_none_with_a_line_that_says_why(
    workers: Workers, folder: Artifacts, caplog: pytest.LogCaptureFixture, damage: str
) -> None:
    (ledger,) = workers(1)
    (claim,) = ledger.claim(1)
    checkpoints = Checkpoints(ledger, folder)
    checkpoints.save({claim.trial_id: (1, b"content")})
    stored = checkpoints.find([claim.trial_id])[claim.trial_id]
    path = Path(folder.place) / stored.artifact_id
    path.unlink()
    if damage == "short":
        path.write_bytes(b"cont")
    elif damage == "unreadable":
        path.mkdir()
    assert checkpoints.load(stored) is None
    said = {
        "missing": f"is not in {folder.place}: do all workers share that place?",
        "short": "has 4 bytes, not 7",
        "unreadable": "cannot be read (Is a directory)",
    }
    (record,) = caplog.records
    assert f"the checkpoint of trial {claim.number} (epoch 1, {stored.artifact_id})" in record.getMessage()
    assert said[damage] in record.getMessage()


def test_bucket_that_lost_a_checkpoint_is_named(
    workers: Workers, bucket: Any, caplog: pytest.LogCaptureFixture
) -> None:
    (ledger,) = workers(1)
    (claim,) = ledger.claim(1)
    artifacts = open_artifacts(f"s3://{bucket.name}/p")
    checkpoints = Checkpoints(ledger, artifacts)
    checkpoints.save({claim.trial_id: (1, b"content")})
    bucket.objects.delete()
    assert checkpoints.load(checkpoints.find([claim.trial_id])[claim.trial_id]) is None
    assert f"is not in s3://{bucket.name}/p" in caplog.text


# Killed on the way

# Saves epoch 2 over epoch 1 as worker 1 and is killed: argv = URL, study, trial, folder, moment.
KILLED_WHILE_SAVING = """
import os, signal, sys
from hpsearch.artifacts import store as artifact_store
from hpsearch.artifacts.best_parameters import open_artifacts
from hpsearch.store.checkpoints import Checkpoints
from hpsearch.store.connection.database import open_database
from hpsearch.store.claims.ledger import Ledger

url, study, trial, folder, moment = sys.argv[1:]

def die(*_):
    os.kill(os.getpid(), signal.SIGKILL)

artifacts = open_artifacts(folder)
checkpoints = Checkpoints(Ledger(database=open_database(url), study_id=int(study), owner=1), artifacts)
if moment == "before the rename":
    artifact_store.os.fsync = die
elif moment == "before the record":
    checkpoints._record = die
else:
    checkpoints._remove = die
checkpoints.save({int(trial): (2, b"second" * 100)})
"""


@pytest.mark.parametrize(
    ("moment", "found", "num_files"),
    [
        ("before the rename", b"first", 2),  # one of them is a part, under no name that anybody asks for
        ("before the record", b"first", 2),
        ("before the removal", b"second" * 100, 2),
    ],
)
def test_worker_killed_while_saving_leaves_the_old_checkpoint_or_the_new_one(
    tables_url: str, workers: Workers, folder: Artifacts, moment: str, found: bytes, num_files: int
) -> None:
    first, second = workers(2, points=1)
    (claim,) = first.claim(1)
    Checkpoints(first, folder).save({claim.trial_id: (1, b"first")})
    arguments = [tables_url, str(first.study_id), str(claim.trial_id), folder.place, moment]
    result = subprocess.run([sys.executable, "-c", KILLED_WHILE_SAVING, *arguments], timeout=240)
    assert result.returncode == -signal.SIGKILL
    assert len(files_of(folder)) == num_files
    take_away(first, claim)
    (new,) = second.claim(1)
    reader = Checkpoints(second, folder)
    stored = reader.find([new.trial_id])[new.trial_id]
    assert reader.load(stored) == found
    assert stored.epoch == (1 if found == b"first" else 2)


# Resuming


def test_resumed_trial_has_the_curve_of_the_attempt_before_up_to_the_checkpoint(
    workers: Workers, folder: Artifacts, epoch: Epoch
) -> None:
    first, second = workers(2, points=1)
    (old,) = first.claim(1)
    report(first, epoch, old.trial_id, 1, 2, 3, 4)
    Checkpoints(first, folder).save({old.trial_id: (3, b"x")})
    first.release("stopped")
    (new,) = second.claim(1)
    checkpoints = Checkpoints(second, folder)
    stored = checkpoints.find([new.trial_id])[new.trial_id]
    for _ in range(2):  # the second time, as after a lost answer
        assert checkpoints.resume(new.trial_id, stored) is ResumeOutcome.RESUMED
    values, epochs = curve(second, new.trial_id)
    assert values == {1: 1 / 2, 2: 1 / 3, 3: 1 / 4}
    assert epochs == curve(first, old.trial_id)[1][:3]
    assert diagnosed(second, new.trial_id) == diagnosed(first, old.trial_id)[:3] != []
    attributes = second.database.storage.get_trial(new.trial_id).user_attrs
    assert (attributes["resumed_from_trial"], attributes["resumed_at_epoch"]) == (old.number, 3)
    report(second, epoch, new.trial_id, 4)
    assert list(curve(second, new.trial_id)[0]) == [1, 2, 3, 4]


def test_third_attempt_gets_the_whole_curve_from_the_second(workers: Workers, folder: Artifacts, epoch: Epoch) -> None:
    ledgers = workers(3, points=1)
    numbers = []
    for ledger, new_epochs in zip(ledgers, [(1, 2), (3, 4), (5,)], strict=True):
        (claim,) = ledger.claim(1)
        numbers.append(claim.number)
        checkpoints = Checkpoints(ledger, folder)
        for trial_id, stored in checkpoints.find([claim.trial_id]).items():
            assert checkpoints.resume(trial_id, stored) is ResumeOutcome.RESUMED
        report(ledger, epoch, claim.trial_id, *new_epochs)
        checkpoints.save({claim.trial_id: (new_epochs[-1], b"x")})
        if ledger is not ledgers[-1]:
            ledger.release("stopped")
    assert curve(ledgers[2], claim.trial_id)[0] == {number: 1 / (number + 1) for number in range(1, 6)}
    attributes = ledgers[2].database.storage.get_trial(claim.trial_id).user_attrs
    assert (attributes["resumed_from_trial"], attributes["resumed_at_epoch"]) == (numbers[1], 4)


@pytest.mark.parametrize("missing", [(1, 2, 3), (2, 3), (2,)])
def test_trial_whose_earlier_curve_has_a_gap_must_begin_anew(
    workers: Workers, folder: Artifacts, epoch: Epoch, missing: tuple[int, ...], execute: Callable[..., Any]
) -> None:
    first, second = workers(2, points=1)
    (old,) = first.claim(1)
    report(first, epoch, old.trial_id, 1, 2, 3)
    execute("DELETE FROM hpsearch_epochs WHERE epoch = ANY(:missing)", missing=list(missing))
    Checkpoints(first, folder).save({old.trial_id: (3, b"x")})
    first.release("stopped")
    (new,) = second.claim(1)
    checkpoints = Checkpoints(second, folder)
    stored = checkpoints.find([new.trial_id])[new.trial_id]
    assert checkpoints.resume(new.trial_id, stored) is ResumeOutcome.INCOMPLETE
    assert curve(second, new.trial_id) == ({}, [])
    assert "resumed_from_trial" not in second.database.storage.get_trial(new.trial_id).user_attrs


@pytest.mark.parametrize("loss", ["released", "counted", "another owner"])
def test_resume_of_a_trial_that_was_lost_writes_nothing(
    workers: Workers, folder: Artifacts, epoch: Epoch, loss: str, execute: Callable[..., Any]
) -> None:
    first, second = workers(2, points=1)
    (old,) = first.claim(1)
    report(first, epoch, old.trial_id, 1)
    Checkpoints(first, folder).save({old.trial_id: (1, b"x")})
    first.release("stopped")
    (new,) = second.claim(1)
    checkpoints = Checkpoints(second, folder)
    stored = checkpoints.find([new.trial_id])[new.trial_id]
    match loss:
        case "released":
            second.release("stopped")
        case "counted":
            complete(second, new.trial_id)
        case "another owner":
            execute("UPDATE hpsearch_points SET owner = 99 WHERE trial_id = :trial", trial=new.trial_id)
    assert checkpoints.resume(new.trial_id, stored) is ResumeOutcome.LOST
    assert checkpoints.resume(old.trial_id, stored) is ResumeOutcome.LOST
    assert curve(second, new.trial_id) == ({}, [])


def test_to_find_and_to_resume_is_one_statement_each(
    workers: Workers, folder: Artifacts, epoch: Epoch, statements: Statements
) -> None:
    first, second = workers(2, points=5)
    claims = first.claim(5)
    for claim in claims:
        report(first, epoch, claim.trial_id, 1, 2)
    Checkpoints(first, folder).save({claim.trial_id: (2, b"x") for claim in claims})
    first.release("stopped")
    again = second.claim(5)
    checkpoints = Checkpoints(second, folder)
    with statements() as seen:
        found = checkpoints.find([claim.trial_id for claim in again])
    assert (len(found), len(seen)) == (5, 1)
    with statements() as seen:
        checkpoints.resume(again[0].trial_id, found[again[0].trial_id])
    assert len(seen) == 1


def test_brief_checkpoints_do_not_wait_for_a_database_that_is_away(workers: Workers, folder: Artifacts) -> None:
    (ledger,) = workers(1)
    (claim,) = ledger.claim(1)
    patient = Checkpoints(ledger, folder)
    patient.save({claim.trial_id: (1, b"x")})
    with commits_that_fail(ledger.database, 1, is_done=False), pytest.raises(StorageError):
        patient.brief().find([claim.trial_id])
    with commits_that_fail(ledger.database, 1, is_done=False):
        assert list(patient.find([claim.trial_id])) == [claim.trial_id]


# What nobody needs any more


def test_counted_trials_leave_neither_row_nor_file(
    workers: Workers, artifacts: Artifacts, statements: Statements
) -> None:
    (ledger,) = workers(1)
    one, two, three = ledger.claim(3)
    checkpoints = Checkpoints(ledger, artifacts)
    checkpoints.save({claim.trial_id: (1, f"{claim.point}".encode()) for claim in (one, two, three)})
    complete(ledger, one.trial_id, two.trial_id)
    with statements() as seen:
        assert checkpoints.discard([one.trial_id, two.trial_id]) == 2
    assert len(seen) == 2
    assert [row[0] for row in rows_of(ledger)] == [three.point]
    assert list(files_of(artifacts).values()) == [b"2"]
    with statements() as seen:
        assert checkpoints.discard([one.trial_id]) == 0
    assert len(seen) == 1


def test_discard_spares_what_may_still_be_resumed(workers: Workers, folder: Artifacts) -> None:
    """Whatever is asked: a running trial, one that waits for its next attempt, and other studies."""
    first, second = workers(2, points=2)
    (other,) = workers(1, points=1)
    running, waiting = first.claim(1)[0], second.claim(1)[0]
    (elsewhere,) = other.claim(1)
    Checkpoints(first, folder).save({running.trial_id: (1, b"running")})
    Checkpoints(second, folder).save({waiting.trial_id: (1, b"waiting")})
    Checkpoints(other, folder).save({elsewhere.trial_id: (1, b"elsewhere")})
    second.release("stopped")
    complete(other, elsewhere.trial_id)
    checkpoints = Checkpoints(first, folder)
    assert checkpoints.discard() == 0
    assert checkpoints.discard([running.trial_id, waiting.trial_id, elsewhere.trial_id]) == 0
    assert sorted(files_of(folder).values()) == [b"elsewhere", b"running", b"waiting"]


def test_any_worker_removes_what_a_killed_one_left_of_counted_points(workers: Workers, folder: Artifacts) -> None:
    first, second = workers(2, points=2)
    (claim,) = first.claim(1)
    Checkpoints(first, folder).save({claim.trial_id: (1, b"x")})
    complete(first, claim.trial_id)
    assert Checkpoints(second, folder).discard() == 1
    assert (rows_of(first), files_of(folder)) == ([], {})


def test_point_that_is_given_up_leaves_nothing(workers: Workers, folder: Artifacts) -> None:
    (ledger,) = workers(1, points=1)
    checkpoints = Checkpoints(ledger, folder)
    for _ in range(MAX_CRASHES):
        (claim,) = ledger.claim(1)
        checkpoints.save({claim.trial_id: (1, b"x")})
        assert checkpoints.discard() == 0
        ledger.release("crashed", is_crash=True)
    assert ledger.counts().failed == 1
    assert checkpoints.discard() == 1
    assert (rows_of(ledger), files_of(folder)) == ([], {})


def test_save_under_way_while_its_trial_is_counted_is_discarded_with_it(
    workers: Workers, folder: Artifacts, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its statement saw the point uncounted. Counting waits for it, or the row would appear after the discard."""
    (ledger,) = workers(1, points=1)
    (claim,) = ledger.claim(1)
    checkpoints = Checkpoints(ledger, folder)
    is_saving, may_commit = threading.Event(), threading.Event()
    real = Database.transaction

    def transaction(database: Database, work: Callable[[Connection], Any], operation: Any = "other") -> Any:
        def held_up(connection: Connection) -> Any:
            result = work(connection)
            if threading.current_thread() is thread:
                is_saving.set()
                assert may_commit.wait(240)
            return result

        return real(database, held_up, operation)

    monkeypatch.setattr(Database, "transaction", transaction)
    thread = threading.Thread(target=checkpoints.save, args=({claim.trial_id: (1, b"x")},))
    thread.start()
    assert is_saving.wait(240)
    counting = threading.Thread(target=complete, args=(ledger, claim.trial_id))
    counting.start()
    counting.join(0.3)
    assert counting.is_alive()
    may_commit.set()
    thread.join(240)
    counting.join(240)
    assert rows_of(ledger) != []
    checkpoints.discard([claim.trial_id])
    assert (rows_of(ledger), files_of(folder)) == ([], {})


def test_deleting_a_study_in_optuna_deletes_its_checkpoints_rows(workers: Workers, folder: Artifacts) -> None:
    (ledger,) = workers(1)
    (claim,) = ledger.claim(1)
    Checkpoints(ledger, folder).save({claim.trial_id: (1, b"x")})
    assert len(rows_of(ledger)) == 1
    ledger.database.storage.delete_study(ledger.study_id)
    assert rows_of(ledger) == []


def test_discard_whose_answer_was_lost_is_made_again(workers: Workers, folder: Artifacts) -> None:
    (ledger,) = workers(1)
    (claim,) = ledger.claim(1)
    checkpoints = Checkpoints(ledger, folder)
    checkpoints.save({claim.trial_id: (1, b"x")})
    complete(ledger, claim.trial_id)
    with commits_that_fail(ledger.database, 2, is_done=True):
        assert checkpoints.discard([claim.trial_id]) == 1
    assert (rows_of(ledger), files_of(folder)) == ([], {})
