"""A server that is stopped, and one that never finishes a handshake, do not make a client wait for ever."""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import psycopg2
import pytest
from psycopg2 import extensions
from sqlalchemy import Connection, text

from hpsearch.store.connection import answer_limit as module
from hpsearch.store.connection.answer_limit import answer_limit
from hpsearch.store.connection.database import Database, DatabaseAwayError


@contextmanager
def stopped(pid: int) -> Iterator[None]:
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


def test_a_server_process_that_was_stopped_costs_the_limit_and_the_connection(database: Database) -> None:
    with database.engine.connect() as connection:
        pid = connection.execute(text("SELECT pg_backend_pid()")).scalar_one()
        raw = connection.connection.driver_connection
        with (
            stopped(pid),
            answer_limit(0.2),
            pytest.raises(Exception, match=r"the server has not answered for 0\.2 s") as caught,
        ):
            connection.execute(text("SELECT 1"))
        assert raw is not None
        assert raw.closed
        assert getattr(caught.value, "connection_invalidated", False)


def test_a_transaction_goes_on_in_a_new_connection(database: Database) -> None:
    pids: list[int] = []

    def work(connection: Connection) -> int:
        pid: int = connection.execute(text("SELECT pg_backend_pid()")).scalar_one()
        pids.append(pid)
        if len(pids) == 1:
            os.kill(pid, signal.SIGSTOP)
            with answer_limit(0.2):  # not for the whole transaction: a healthy answer may take that long, too
                connection.execute(text("SELECT 1"))
        return int(connection.execute(text("SELECT 42")).scalar_one())

    try:
        assert database.transaction(work) == 42
    finally:
        os.kill(pids[0], signal.SIGCONT)
    assert len(set(pids)) == 2


def test_a_transaction_gives_each_answer_the_time_that_its_database_says(database: Database) -> None:
    limits: list[float] = []
    replace(database, answer_seconds=7.5).transaction(lambda _: limits.append(module._limit.seconds))
    assert limits == [7.5]


def test_a_brief_caller_is_told_at_once(database: Database) -> None:
    brief = replace(database.brief(), answer_seconds=60.0)
    attempts: list[int] = []

    def work(connection: Connection) -> None:
        attempts.append(connection.execute(text("SELECT pg_backend_pid()")).scalar_one())
        with stopped(attempts[-1]), answer_limit(0.2):
            connection.execute(text("SELECT 1"))

    with pytest.raises(DatabaseAwayError, match="has not answered a statement in time"):
        brief.transaction(work)
    assert len(attempts) == 1


def test_nobody_waits_for_a_database_once_it_is_abandoned(database: Database) -> None:
    attempts: list[None] = []

    def failing(connection: Connection) -> None:
        database.abandoned.set()
        attempts.append(None)
        pid = connection.execute(text("SELECT pg_backend_pid()")).scalar_one()
        with stopped(pid):
            connection.execute(text("SELECT 1"))

    with pytest.raises(DatabaseAwayError):
        replace(database, answer_seconds=0.2, outage_seconds=3600.0).transaction(failing)
    assert len(attempts) == 1


def test_the_limit_holds_for_its_thread_and_block_only(database: Database) -> None:
    with answer_limit(0.1):
        with answer_limit(7.0):
            assert module._limit.seconds == 7.0
        assert module._limit.seconds == 0.1
    assert module._limit.seconds == module.ANSWER_SECONDS
    with database.engine.connect() as connection, answer_limit(0.05), pytest.raises(Exception, match="not answered"):
        connection.execute(text("SELECT pg_sleep(60)"))


def test_a_slow_answer_within_the_limit_is_waited_for(database: Database) -> None:
    with answer_limit(60.0), database.engine.connect() as connection:
        assert connection.execute(text("SELECT 1 FROM pg_sleep(0.2)")).scalar_one() == 1


def test_a_server_that_accepts_and_says_nothing_is_given_up(database: Database) -> None:
    """libpq's own connect_timeout does not hold where a callback does the waiting."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        with pytest.raises(psycopg2.OperationalError, match="has not answered for 1 s"):
            psycopg2.connect(host="127.0.0.1", port=port, dbname="d", user="u", connect_timeout=1)


def test_a_state_that_psycopg2_does_not_document_is_an_error() -> None:
    class Strange:
        status = extensions.STATUS_READY

        def poll(self) -> int:
            return 99

        def fileno(self) -> int:
            return 0

    with pytest.raises(psycopg2.OperationalError, match="unknown state: 99"):
        module._wait(Strange())


def test_more_descriptors_than_select_knows_are_no_obstacle(database: Database) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < 2048:
        pytest.skip("this machine allows fewer descriptors")
    database.engine.dispose()  # what was opened before has a low number
    with contextlib.ExitStack() as stack:
        stack.callback(resource.setrlimit, resource.RLIMIT_NOFILE, (soft, hard))
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 2048), hard))
        for _ in range(1100):
            stack.enter_context(Path(os.devnull).open())
        with database.engine.connect() as connection:
            assert connection.connection.driver_connection is not None
            assert connection.connection.driver_connection.fileno() > 1024
            assert connection.execute(text("SELECT 1")).scalar_one() == 1


def test_an_answer_that_nobody_wants_any_more_is_given_up_soon(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_ABANDONED_SECONDS", 0.05)
    with database.engine.connect() as connection, answer_limit(3600.0, database.abandoned):
        threading.Timer(0.1, database.abandoned.set).start()
        with pytest.raises(Exception, match="has not answered"):
            connection.execute(text("SELECT pg_sleep(60)"))


def test_a_server_that_has_become_read_only_is_waited_for(database: Database, execute: Any) -> None:
    """As in a fail-over: the statement may succeed on the next connection."""
    attempts: list[int] = []

    def work(connection: Connection) -> None:
        attempts.append(1)
        if len(attempts) == 1:
            connection.execute(text("SET TRANSACTION READ ONLY"))
        connection.execute(text("CREATE TEMPORARY TABLE IF NOT EXISTS t (i int)"))
        connection.execute(text("INSERT INTO hpsearch_schema VALUES (99)"))
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        database.transaction(work)
    assert len(attempts) == 2
