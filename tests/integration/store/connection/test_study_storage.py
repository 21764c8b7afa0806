"""Studies are deleted while workers are at work on them."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import optuna
import pytest
from optuna.storages import BaseStorage
from optuna.testing.pytest_storages import StorageTestCase
from sqlalchemy import event, text

from hpsearch.errors import StorageError
from hpsearch.store.claims.ledger import Ledger
from hpsearch.store.connection.database import Database
from hpsearch.store.studies import StoredStudy

REPORT = text("INSERT INTO trial_intermediate_values VALUES (DEFAULT, :trial, 1, 0.5, 'FINITE')")
RENEW = text("UPDATE hpsearch_points SET renewed_at = now() WHERE trial_id = :trial")
TRAP = """
    CREATE SEQUENCE deletions;
    CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
        IF nextval('deletions') <= {number} THEN RAISE EXCEPTION 'refused' USING ERRCODE = '{code}'; END IF;
        RETURN OLD;
    END $$;
    CREATE TRIGGER trap BEFORE DELETE ON studies FOR EACH ROW EXECUTE FUNCTION refuse()
"""


@pytest.fixture
def study(new_study: Callable[..., StoredStudy]) -> StoredStudy:
    return new_study(2)


@pytest.fixture
def claimed(database: Database, study: StoredStudy) -> list[int]:
    """The ids of its trials, which are in training."""
    return [claim.trial_id for claim in Ledger(database=database, study_id=study.study_id).claim(2)]


@contextmanager
def deletion_of(study: StoredStudy, database: Database) -> Iterator[Future[None]]:
    """Deletes the study in a thread, and has waited for a lock when this begins."""
    with ThreadPoolExecutor(1) as pool:
        deletion = pool.submit(optuna.delete_study, study_name=study.name, storage=database.storage)
        wait_for_locks(database, 1)
        yield deletion


def wait_for_locks(database: Database, number: int) -> None:
    """Until so many sessions of this database wait for a lock."""
    sql = text("SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'")
    pause = threading.Event()
    for _ in range(1000):
        with database.engine.connect() as connection:
            if connection.execute(sql).scalar_one() == number:
                return
        pause.wait(0.01)
    pytest.fail(f"{number} should wait")


def num_rows(execute: Any) -> list[int]:
    tables = ("studies", "trials", "trial_intermediate_values", "hpsearch_points")
    return [execute(f"SELECT count(*) FROM {table}")[0][0] for table in tables]


def test_study_is_deleted_though_a_worker_writes_meanwhile(
    database: Database, study: StoredStudy, claimed: list[int], execute: Any
) -> None:
    with database.engine.connect() as worker:
        worker.execute(REPORT, {"trial": claimed[0]})  # nobody else sees this row yet
        with deletion_of(study, database) as deletion:
            worker.commit()
            deletion.result(60)
    assert num_rows(execute) == [0, 0, 0, 0]


def test_deletion_that_ends_in_a_deadlock_is_tried_again(
    database: Database, study: StoredStudy, claimed: list[int], execute: Any
) -> None:
    event.listen(
        database.storage.engine, "connect", lambda c, _: c.cursor().execute("SET SESSION deadlock_timeout = '10 ms'")
    )
    with database.engine.connect() as other, database.engine.connect() as worker:
        worker.execute(text("SET LOCAL deadlock_timeout = '60 s'"))  # it is the deletion that gives in
        other.execute(REPORT, {"trial": claimed[0]})
        worker.execute(REPORT, {"trial": claimed[1]})
        with deletion_of(study, database) as deletion, ThreadPoolExecutor(1) as pool:
            renewal = pool.submit(worker.execute, RENEW, {"trial": claimed[1]})
            wait_for_locks(database, 2)  # each for the other: as soon as the deletion has the first trial
            other.commit()
            renewal.result(60)
            worker.commit()
            deletion.result(60)
    assert num_rows(execute) == [0, 0, 0, 0]


@pytest.mark.parametrize("code", ["23503", "40P01"], ids=["foreign key", "deadlock"])
def test_deletion_is_tried_again_so_many_times(
    database: Database, study: StoredStudy, claimed: list[int], execute: Any, code: str
) -> None:
    execute(TRAP.format(number=5 + 4, code=code))
    with pytest.raises(StorageError, match=rf"study number {study.study_id} could not be deleted in 5 tries") as caught:
        optuna.delete_study(study_name=study.name, storage=database.storage)
    assert caught.value.hint == "stop its workers first"
    assert num_rows(execute) == [1, 2, 0, 2]
    optuna.delete_study(study_name=study.name, storage=database.storage)
    assert num_rows(execute) == [0, 0, 0, 0]


def test_what_is_no_conflict_is_told_at_once(database: Database, study: StoredStudy, execute: Any) -> None:
    execute(TRAP.format(number=1, code="53100"))
    with pytest.raises(optuna.exceptions.StorageInternalError):
        optuna.delete_study(study_name=study.name, storage=database.storage)
    with pytest.raises(KeyError):
        database.storage.delete_study(study.study_id + 1)


class TestOptunasOwnCases(StorageTestCase):
    """The test cases that Optuna ships for other people's storages."""

    @pytest.fixture
    def storage(self, database: Database) -> BaseStorage:
        return database.storage
