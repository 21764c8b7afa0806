"""Opening the study database: from anywhere, all at once, and with an error that says what is wrong."""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import optuna
import pytest
import sqlalchemy
from optuna.storages import RDBStorage
from sqlalchemy import URL, Connection, create_engine, make_url, text

from hpsearch.errors import InputError, StorageError
from hpsearch.postgres.embedded import EmbeddedPostgres
from hpsearch.store.connection import database as database_module
from hpsearch.store.connection import tables
from hpsearch.store.connection.address import describe_address, parse_url
from hpsearch.store.connection.database import Database, open_database
from hpsearch.store.studies import StoredStudy

PASSWORD = "pa@ss: w/o{rd}%41?#&='\"\\ü"

# Imports once, then forks eight processes that wait for each other and open the database.
OPEN_AT_ONCE = """
import multiprocessing, sys
from hpsearch.store.connection.database import open_database

def open_it(barrier, url):
    barrier.wait(240)
    open_database(url).close()

context = multiprocessing.get_context("fork")
barrier = context.Barrier(8)
processes = [context.Process(target=open_it, args=(barrier, sys.argv[1])) for _ in range(8)]
for process in processes:
    process.start()
for process in processes:
    process.join()
print([process.exitcode for process in processes])
"""


def table_names(url: str) -> list[str]:
    engine = create_engine(url)
    names = sorted(sqlalchemy.inspect(engine).get_table_names())
    engine.dispose()
    return names


# The schema


def test_eight_processes_open_an_empty_database_at_once(database_url: str) -> None:
    result = subprocess.run(
        [sys.executable, "-c", OPEN_AT_ONCE, database_url], capture_output=True, text=True, timeout=240
    )
    assert result.stdout.strip() == str([0] * 8), result.stderr
    names = table_names(database_url)
    assert {"studies", "trials", *tables.metadata.tables} <= set(names)
    assert len(names) == len(set(names))


def test_opening_again_changes_nothing(database_url: str) -> None:
    open_database(database_url).close()
    before = table_names(database_url)
    open_database(database_url).close()
    assert table_names(database_url) == before


def test_database_that_plain_optuna_made_is_used_as_it_is(database_url: str) -> None:
    optuna.create_study(study_name="theirs", storage=database_url)
    opened = open_database(database_url)
    assert opened.load_study("theirs").study_name == "theirs"
    assert "hpsearch_points" in table_names(database_url)
    opened.close()


def test_sessions_run_in_utc_whatever_server_and_environment_say(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PGTZ", "America/Lima")
    name = make_url(database_url).database
    engine = create_engine(database_url)
    with engine.begin() as connection:
        connection.execute(text(f"ALTER DATABASE {name} SET timezone TO 'Asia/Tokyo'"))
    engine.dispose()
    opened = open_database(database_url)
    assert opened.transaction(lambda c: c.execute(text("SHOW timezone")).scalar_one()) == "UTC"
    with opened.storage.engine.connect() as connection:
        assert connection.execute(text("SHOW timezone")).scalar_one() == "UTC"
    opened.close()


@pytest.mark.parametrize(("error", "num_lines"), [(KeyboardInterrupt, 0), (RuntimeError, 1)])
def test_an_interruption_while_a_connection_is_given_back_logs_no_traceback(
    error: type[BaseException], num_lines: int, tables_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    def interrupt(*_: object) -> None:
        raise error

    database = open_database(tables_url)
    sqlalchemy.event.listen(database.engine.pool, "reset", interrupt)
    with pytest.raises(error) if num_lines == 0 else contextlib.nullcontext():
        database.transaction(lambda connection: connection.execute(text("SELECT 1")).all())
    sqlalchemy.event.remove(database.engine.pool, "reset", interrupt)
    database.close()
    assert [record.message for record in caplog.records] == ["Exception during reset or similar"] * num_lines


def test_options_of_the_url_are_kept(database_url: str) -> None:
    url = make_url(database_url).update_query_dict({"options": "-c lock_timeout=1234", "application_name": "mine"})
    opened = open_database(url.render_as_string(hide_password=False))
    ask = opened.transaction
    assert ask(lambda c: c.execute(text("SHOW lock_timeout")).scalar_one()) == "1234ms"
    assert ask(lambda c: c.execute(text("SHOW application_name")).scalar_one()) == "mine"
    assert ask(lambda c: c.execute(text("SHOW timezone")).scalar_one()) == "UTC"
    opened.close()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("PGHOSTADDR", "127.0.0.1"),
        ("PGOPTIONS", "-c default_transaction_read_only=on"),
        ("PGTARGETSESSIONATTRS", "standby"),
        ("PGCLIENTENCODING", "SQL_ASCII"),
    ],
)
def test_variables_of_libpq_change_neither_where_a_url_leads_nor_the_session(
    name: str, value: str, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, value)
    database = open_database(database_url, wait_seconds=0)
    with database.engine.begin() as connection:
        connection.execute(text("CREATE TABLE accents AS SELECT 'é' AS accent"))
        assert connection.execute(text("SELECT accent FROM accents")).scalar() == "é"
    database.close()


@pytest.mark.parametrize(("revision", "hint"), [("v3.0.0.d", "optuna storage upgrade"), ("v9.9.9.a", "newer Optuna")])
def test_optuna_schema_of_another_version_is_refused_with_both(tables_url: str, revision: str, hint: str) -> None:
    engine = create_engine(tables_url)
    with engine.begin() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = :r"), {"r": revision})
    engine.dispose()
    with pytest.raises(StorageError) as caught:
        open_database(tables_url)
    assert revision in str(caught.value)
    assert f"Optuna {optuna.__version__} has {tables.OPTUNA_REVISION}" in str(caught.value)
    assert caught.value.hint is not None
    assert hint in caught.value.hint


@pytest.mark.parametrize(
    ("sql", "stored"), [("UPDATE hpsearch_schema SET version = 8", 8), ("DROP TABLE hpsearch_schema", 0)]
)
def test_own_schema_of_another_version_is_refused_with_both(tables_url: str, sql: str, stored: int) -> None:
    engine = create_engine(tables_url)
    with engine.begin() as connection:
        connection.execute(text(sql))
    engine.dispose()
    with pytest.raises(
        StorageError, match=f"schema version {stored}, this hpsearch has {tables.SCHEMA_VERSION}"
    ) as caught:
        open_database(tables_url)
    assert caught.value.hint is not None


def test_optuna_with_another_schema_than_we_write_is_refused(tables_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(RDBStorage, "get_head_version", lambda _: "v6.0.0.a")
    database = open_database(tables_url)  # its tables are those that we write
    with pytest.raises(StorageError, match=r"has schema revision v6\.0\.0\.a, this hpsearch writes v3"):
        _ = database.storage
    database.close()


# Addresses


@pytest.mark.parametrize(
    "text",
    [
        "sqlite:///x.db",
        "mysql://u:secret@h/d",
        "postgresql+asyncpg://u:secret@h/d",
        "not a url",
        "://u:secret@h",
    ],
)
def test_other_databases_and_no_urls_are_bad_input(text: str) -> None:
    with pytest.raises(InputError) as caught:
        parse_url(text)
    assert "secret" not in str(caught.value)
    assert caught.value.hint is not None
    assert caught.value.hint.startswith("postgresql://")


@pytest.mark.parametrize(
    ("text", "password", "host"),
    [
        ("postgresql://u:secret@h:1/d", "secret", "h"),
        ("postgres://u:s%40c%3A%2F%25@h/d", "s@c:/%", "h"),
        ("postgresql://u:se@cr@et@h:1/d", "se@cr@et", "h"),
        ("postgresql://u:s:/{}%c@h/d", "s:/{}%c", "h"),
        ("postgresql+psycopg2://u:s@[::1]:5/d", "s", "::1"),
        ("postgresql://h/d", None, "h"),
    ],
)
def test_password_ends_at_the_last_at_sign(text: str, password: str | None, host: str) -> None:
    url = parse_url(text)
    assert (url.password, url.host, url.database) == (password, host, "d")
    assert url.drivername == "postgresql+psycopg2"
    assert parse_url(url.render_as_string(hide_password=False)) == url


@pytest.mark.parametrize("password", ["sec@r/et", "sec@r:et", "sec@r?et=1"])
def test_password_whose_end_cannot_be_told_is_refused_and_not_shown(password: str) -> None:
    with pytest.raises(InputError) as caught:
        parse_url(f"postgresql://u:{password}@h:5432/d")
    assert str(caught.value) == "the storage URL cannot be read"


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("postgresql://u:secret@h/d", "h:5432/d"),
        ("postgresql://u:secret@h:7/d", "h:7/d"),
        ("postgresql://u:secret@/d?host=/run/pg&port=6", "/run/pg:6/d"),
        ("postgresql:///d", "local socket:5432/d"),
        ("postgresql://h", "h:5432/"),
    ],
)
def test_address_shows_neither_user_nor_password(text: str, address: str) -> None:
    assert describe_address(parse_url(text)) == address


# Refusals


@pytest.fixture(scope="module")
def strict_server(open_folder: Path) -> Iterator[EmbeddedPostgres]:
    """A server that asks the users "alice" and "bob" for a password."""
    with EmbeddedPostgres.start(open_folder / "strict") as server:
        rules = server.folder / "data" / "pg_hba.conf"
        rules.write_text("local all alice,bob scram-sha-256\n" + rules.read_text())
        engine = create_engine(server.url, isolation_level="AUTOCOMMIT")
        with engine.connect() as connection:
            literal = PASSWORD.replace("'", "''")
            connection.exec_driver_sql(f"CREATE ROLE alice LOGIN PASSWORD '{literal}'".replace("%", "%%"))
            connection.exec_driver_sql("CREATE ROLE bob LOGIN PASSWORD 'bobs'")
            connection.exec_driver_sql("CREATE ROLE carol")
            connection.exec_driver_sql("CREATE DATABASE alices OWNER alice")
            connection.exec_driver_sql("SELECT pg_reload_conf()")
        engine.dispose()
        yield server


def url_of(server: EmbeddedPostgres, user: str, password: str | None, database: str = "alices") -> str:
    url = make_url(server.url)
    return (
        URL.create("postgresql", username=user, password=password, database=database, query=url.query)
    ).render_as_string(hide_password=False)


def test_password_of_special_characters_works_for_us_and_for_optuna(strict_server: EmbeddedPostgres) -> None:
    opened = open_database(url_of(strict_server, "alice", PASSWORD))
    study = optuna.create_study(study_name="a", storage=opened.storage)
    study.optimize(lambda trial: trial.suggest_float("x", 0, 1), n_trials=1)
    assert len(opened.load_study("a").trials) == 1
    # What a worker is handed in its environment opens the same database.
    again = open_database(opened.url.render_as_string(hide_password=False))
    assert again.load_study("a").best_trial.number == 0
    again.close()
    opened.close()


@pytest.mark.parametrize(
    ("user", "password", "database", "reason"),
    [
        ("alice", "wr0ng-p{a}ss", "alices", "refuses the password of user alice"),
        ("alice", None, "alices", "refuses the password of user alice"),
        ("nobody", "wr0ng-p{a}ss", "alices", "does not know user nobody"),
        ("alice", PASSWORD, "missing", "has no database missing for user alice"),
        ("bob", "bobs", "alices", "denies user bob a permission"),
        ("carol", "wr0ng-p{a}ss", "alices", "does not allow user carol to connect"),
    ],
)
def test_refusal_names_user_and_reason_at_once_and_never_the_password(
    strict_server: EmbeddedPostgres,
    user: str,
    password: str | None,
    database: str,
    reason: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    no_second_try = SimpleNamespace(monotonic=lambda: 0.0, sleep=lambda _: pytest.fail("it tries again"))
    monkeypatch.setattr(database_module, "time", no_second_try)
    with pytest.raises(StorageError) as caught:
        open_database(url_of(strict_server, user, password, database))
    message = f"{caught.value} {caught.value.hint}"
    assert reason in message
    assert f"/strict:5432/{database}" in message
    assert "\n" not in message
    assert password is None or password not in message


def closed_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def test_unreachable_database_gets_address_seconds_and_attempts(monkeypatch: pytest.MonkeyPatch) -> None:
    naps: list[float] = []
    moments = itertools.count(step=4.0)
    clock = SimpleNamespace(monotonic=lambda: next(moments), sleep=naps.append)
    monkeypatch.setattr(database_module, "time", clock)
    port = closed_port()
    with pytest.raises(StorageError) as caught:
        open_database(f"postgresql://u:secret@127.0.0.1:{port}/d", wait_seconds=10)
    assert str(caught.value).startswith(f"the database at 127.0.0.1:{port}/d does not answer (3 attempts in 12 s): ")
    assert "\n" not in str(caught.value)
    assert "secret" not in f"{caught.value} {caught.value.hint}"
    assert naps == [0.2, 0.4]


def test_server_that_comes_up_while_we_wait_is_joined(tables_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    real = sqlalchemy.Engine.connect
    refusals = iter([True, True])

    def connect(engine: sqlalchemy.Engine) -> Connection:
        if next(refusals, False):
            raise sqlalchemy.exc.OperationalError("SELECT 1", {}, Exception("Connection refused"))
        return real(engine)

    monkeypatch.setattr(sqlalchemy.Engine, "connect", connect)
    clock = SimpleNamespace(monotonic=lambda: 0.0, sleep=lambda _: None)
    monkeypatch.setattr(database_module, "time", clock)
    open_database(tables_url).close()
    assert next(refusals, None) is None


# Transactions


@pytest.fixture
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tenacity.nap.time", SimpleNamespace(sleep=lambda _: None))


def fail_with(state: str, times: int) -> tuple[Callable[[Connection], str], list[int]]:
    """Work that raises this SQLSTATE so many times before it succeeds, and its calls."""
    calls: list[int] = []

    def work(connection: Connection) -> str:
        calls.append(len(calls))
        if len(calls) <= times:
            connection.execute(text(f"DO $$ BEGIN RAISE 'on purpose' USING ERRCODE = '{state}'; END $$"))
        return "done"

    return work, calls


@pytest.mark.usefixtures("no_waiting")
@pytest.mark.parametrize("state", ["40P01", "40001", "57P01", "57P03", "08006", "53300", "55P03"])
def test_transient_errors_are_tried_again(database: Database, state: str) -> None:
    work, calls = fail_with(state, times=3)
    assert database.transaction(work) == "done"
    assert len(calls) == 4


@pytest.mark.usefixtures("no_waiting")
@pytest.mark.parametrize("state", ["53100", "53200", "57014", "42501"])
def test_database_that_cannot_do_it_says_so_at_once(database: Database, state: str) -> None:
    work, calls = fail_with(state, times=1)
    with pytest.raises(StorageError, match="on purpose") as caught:
        database.transaction(work)
    assert len(calls) == 1
    assert database.address in str(caught.value)


@pytest.mark.usefixtures("no_waiting")
def test_bug_of_ours_keeps_its_traceback(database: Database) -> None:
    with pytest.raises(sqlalchemy.exc.ProgrammingError) as caught:
        database.transaction(lambda c: c.execute(text("SELECT * FROM nowhere")))
    assert caught.value.__cause__ is caught.value.orig  # not itself: whoever follows the causes comes to an end
    with pytest.raises(ZeroDivisionError):
        database.transaction(lambda _: 1 / 0)


@pytest.mark.usefixtures("no_waiting")
def test_failed_transaction_leaves_nothing(database: Database) -> None:
    def work(connection: Connection) -> None:
        connection.execute(text("CREATE TABLE half (x int)"))
        raise KeyError

    with pytest.raises(KeyError):
        database.transaction(work)
    assert not database.transaction(lambda c: sqlalchemy.inspect(c).has_table("half"))


@pytest.mark.usefixtures("no_waiting")
def test_killed_connections_go_unnoticed(database: Database) -> None:
    """Those that idle in the pool, and one in the middle of a transaction."""
    kill_others = text(
        "SELECT pg_terminate_backend(pid, 60000) FROM pg_stat_activity "  # returns once it is gone
        "WHERE datname = current_database() AND pid <> pg_backend_pid()"
    )
    barrier = threading.Barrier(3)

    def occupy(_: int) -> None:
        database.transaction(lambda c: (c.execute(text("SELECT 1")), barrier.wait(240)))

    with ThreadPoolExecutor(3) as pool:  # three connections in the pool
        list(pool.map(occupy, range(3)))
    database.transaction(lambda c: c.execute(kill_others))
    runs: list[int] = []

    def work(connection: Connection) -> int:
        runs.append(connection.execute(text("SELECT pg_backend_pid()")).scalar_one())
        if len(runs) == 1:
            admin = create_engine(database.url)
            with admin.connect() as killer:
                killer.execute(kill_others)
            admin.dispose()
        return int(connection.execute(text("SELECT 1")).scalar_one())

    assert database.transaction(work) == 1
    assert len(set(runs)) == 2


def test_a_process_that_was_stopped_in_a_transaction_loses_its_locks_and_begins_anew(
    database: Database, new_study: Callable[..., StoredStudy], tables_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    new_study(1)
    monkeypatch.setattr(database_module, "_IDLE_SECONDS", 0.2)
    stopped = open_database(tables_url)
    attempts: list[None] = []
    lock = text("SELECT 1 FROM hpsearch_points FOR UPDATE")

    def work(connection: Connection) -> int:
        attempts.append(None)
        connection.execute(lock)
        if len(attempts) == 1:  # until somebody else can have the row
            database.transaction(lambda other: other.execute(lock))
        return int(connection.execute(text("SELECT 42")).scalar_one())

    assert stopped.transaction(work) == 42
    assert len(attempts) == 2
    stopped.close()


@pytest.fixture
def own_server(open_folder: Path, request: pytest.FixtureRequest) -> Iterator[EmbeddedPostgres]:
    """A server that the test may stop."""
    with EmbeddedPostgres.start(open_folder / f"own-{request.node.name[:20]}") as server:
        yield server


def test_server_that_is_restarted_goes_unnoticed_and_one_that_stays_away_does_not(
    own_server: EmbeddedPostgres,
) -> None:
    opened = open_database(own_server.url, outage_seconds=30)
    opened.transaction(lambda c: c.execute(text("SELECT 1")))
    own_server.stop()
    impatient = replace(opened, outage_seconds=0.3)
    with pytest.raises(StorageError, match=r"is away") as caught:
        impatient.transaction(lambda c: c.execute(text("SELECT 1")))
    assert caught.value.hint is not None
    answers: list[Any] = []
    waiter = threading.Thread(
        target=lambda: answers.append(opened.transaction(lambda c: c.execute(text("SELECT 42")).scalar_one()))
    )
    waiter.start()
    with EmbeddedPostgres.start(own_server.folder):
        waiter.join(240)
        assert answers == [42]
        opened.close()


# Opens the database, forks a child that lives on (a user's network may do so), and prints its number.
FORKING = """
import os, sys, time
from hpsearch.store.connection.database import open_database
database = open_database(sys.argv[1])
held = database.engine.connect()
child = os.fork()
if child == 0:
    os.closerange(0, 3)
    time.sleep(600)
print(child, flush=True)
sys.stdin.read()
"""


def test_a_child_that_a_killed_process_forked_keeps_no_session_alive(database: Database) -> None:
    url = database.url.render_as_string(hide_password=False)
    database.engine.dispose()
    count = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
    command = [sys.executable, "-c", FORKING, url]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        child = int(process.stdout.readline())
        try:
            assert database.transaction(lambda c: c.execute(text(count)).scalar_one()) > 0
            process.kill()
            process.wait()
            deadline = time.monotonic() + 30
            while database.transaction(lambda c: c.execute(text(count)).scalar_one()):
                assert time.monotonic() < deadline, "the session of the killed process is there"
                time.sleep(0.05)
        finally:
            os.kill(child, signal.SIGKILL)
