"""Our tables' versions: an older database is upgraded as it is opened, by any number of processes at once."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import sqlalchemy
from sqlalchemy import create_engine, text

from hpsearch.errors import StorageError
from hpsearch.store.claims.claim import Outcome, Result
from hpsearch.store.claims.ledger import Ledger
from hpsearch.store.connection import schema as schema_module
from hpsearch.store.connection import tables
from hpsearch.store.connection.database import Database, open_database
from hpsearch.store.rows.counts import PointCounts
from hpsearch.store.studies import StoredStudy

# What versions 2 and 4 have added.
BACK_TO_VERSION_1 = (
    "DROP TABLE hpsearch_checkpoints, hpsearch_correctness, hpsearch_rounds, hpsearch_vault, hpsearch_vault_intents",
    "UPDATE hpsearch_schema SET version = 1",
)
BACK_TO_VERSION_3 = ("DROP TABLE hpsearch_vault_intents", "UPDATE hpsearch_schema SET version = 3")
OLDER = pytest.mark.parametrize("back", [BACK_TO_VERSION_1, BACK_TO_VERSION_3], ids=["version 1", "version 3"])

OPEN_AT_ONCE = """
import multiprocessing, sys
from hpsearch.store.connection.database import open_database

def open_it(barrier, url):
    barrier.wait(240)
    open_database(url).close()

context = multiprocessing.get_context("fork")
barrier = context.Barrier(6)
processes = [context.Process(target=open_it, args=(barrier, sys.argv[1])) for _ in range(6)]
for process in processes:
    process.start()
for process in processes:
    process.join()
print([process.exitcode for process in processes])
"""


def run_sql(url: str, *sql: str) -> None:
    engine = create_engine(url)
    with engine.begin() as connection:
        for statement in sql:
            connection.execute(text(statement))
    engine.dispose()


def versions_and_tables(url: str) -> tuple[list[int], set[str]]:
    engine = create_engine(url)
    with engine.connect() as connection:
        versions = list(connection.execute(text("SELECT version FROM hpsearch_schema")).scalars())
        names = {name for name in sqlalchemy.inspect(connection).get_table_names() if name.startswith("hpsearch_")}
    engine.dispose()
    return versions, names


@OLDER
def test_older_database_is_upgraded_with_its_studies_untouched(
    tables_url: str, database: Database, new_study: Callable[..., StoredStudy], back: tuple[str, ...]
) -> None:
    study = new_study(3)
    run_sql(tables_url, *back)
    opened = open_database(tables_url)
    ledger = Ledger(database=opened, study_id=study.study_id, owner=1)
    assert ledger.counts() == PointCounts(waiting=3)
    assert [claim.point for claim in ledger.claim(1)] == [0]
    opened.close()
    assert versions_and_tables(tables_url) == ([tables.SCHEMA_VERSION], set(tables.metadata.tables))


@OLDER
def test_an_upgraded_database_has_the_same_tables_as_a_new_one(
    tables_url: str, database: Database, back: tuple[str, ...]
) -> None:
    new = describe_columns(database)
    run_sql(tables_url, *back)
    opened = open_database(tables_url)
    assert describe_columns(opened) == new
    opened.close()


def test_a_worker_of_version_3_goes_on_beside_the_upgrade(
    tables_url: str, database: Database, new_study: Callable[..., StoredStudy]
) -> None:
    """It has opened the database before, holds a point, and never looks at the version again."""
    study = new_study(2)
    run_sql(tables_url, *BACK_TO_VERSION_3)
    older = Ledger(database=database, study_id=study.study_id, owner=1)
    (held,) = older.claim(1)
    opened = open_database(tables_url)
    older.finish([Result(trial_id=held.trial_id, outcome=Outcome.COMPLETE, loss=0.5)])
    assert [claim.point for claim in older.claim(2)] == [1]
    assert Ledger(database=opened, study_id=study.study_id, owner=2).counts().complete == 1
    opened.close()


def describe_columns(database: Database) -> Any:
    """Columns, keys and references of all our tables."""
    inspector = sqlalchemy.inspect(database.engine)
    return {
        name: (
            [(column["name"], str(column["type"]), column["nullable"]) for column in inspector.get_columns(name)],
            inspector.get_pk_constraint(name),
            sorted(inspector.get_foreign_keys(name), key=str),
            sorted(inspector.get_unique_constraints(name), key=str),
        )
        for name in tables.metadata.tables
    }


def test_processes_that_upgrade_at_once_wait_for_each_other(tables_url: str) -> None:
    run_sql(tables_url, *BACK_TO_VERSION_1)
    result = subprocess.run(
        [sys.executable, "-c", OPEN_AT_ONCE, tables_url], capture_output=True, text=True, timeout=240
    )
    assert result.stdout.strip() == str([0] * 6), result.stderr
    assert versions_and_tables(tables_url) == ([tables.SCHEMA_VERSION], set(tables.metadata.tables))


def test_a_newer_database_is_refused_and_left_as_it_is(tables_url: str) -> None:
    newer = tables.SCHEMA_VERSION + 1
    run_sql(tables_url, "DROP TABLE hpsearch_checkpoints", f"UPDATE hpsearch_schema SET version = {newer}")
    with pytest.raises(StorageError, match=f"schema version {newer}, this hpsearch has {tables.SCHEMA_VERSION}"):
        open_database(tables_url)
    versions, names = versions_and_tables(tables_url)
    assert versions == [newer]
    assert "hpsearch_checkpoints" not in names


def test_a_process_that_keeps_an_empty_database_locked_is_told_of(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(schema_module, "_LOCK_SECONDS", 0.1)
    engine = create_engine(database_url)
    with engine.connect() as connection:
        connection.execute(text("SELECT pg_advisory_lock(:key)"), {"key": schema_module._SCHEMA_LOCK})
        with pytest.raises(StorageError, match="another process has been creating the tables") as caught:
            open_database(database_url)
        connection.execute(text("SELECT pg_advisory_unlock(:key)"), {"key": schema_module._SCHEMA_LOCK})
    engine.dispose()
    assert caught.value.hint is not None
    open_database(database_url).close()
