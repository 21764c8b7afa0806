"""A client-side time limit for every answer of PostgreSQL.

A stopped server process, or a network that was cut silently, leaves a client waiting. TCP's own limits do not detect a
stopped process (the kernel still acknowledges), and the server's `statement_timeout` detects neither. psycopg2 lets a
callback do the waiting for all connections of the process; the callback in this module raises an error after the limit,
and psycopg2 then closes the connection.

A process with such a callback can no longer use `copy_expert` or asynchronous connections. Therefore only the command
line sets it, in hpsearch's own processes (workers included), and never the Python API in a user's program: there, only
TCP and `statement_timeout` detect a server that hangs.
"""

from __future__ import annotations

import select
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psycopg2
from psycopg2 import extensions

# As long as connections allow data to stay unacknowledged (tcp_user_timeout): both mean a connection without a server.
ANSWER_SECONDS = 20.0
_DEFAULT_CONNECT_SECONDS = 5.0
_EVENTS = {extensions.POLL_READ: select.POLLIN, extensions.POLL_WRITE: select.POLLOUT}
_LOOK_SECONDS = 0.5  # between two checks of whether the answer is still wanted
_ABANDONED_SECONDS = 1.0
_CONNECTED = (extensions.STATUS_READY, extensions.STATUS_BEGIN, extensions.STATUS_PREPARED)


class _Limit(threading.local):
    seconds: float = ANSWER_SECONDS
    abandoned: threading.Event | None = None


_limit = _Limit()


def limit_answers() -> None:
    """Set the wait callback in this process: from now on, statements fail if no answer arrives within the limit.

    Without this call, `answer_limit` has no effect. Safe to call again.
    """
    extensions.set_wait_callback(_wait)


@contextmanager
def answer_limit(seconds: float, abandoned: threading.Event | None = None) -> Iterator[None]:
    """Set the limit for answers inside the context, in this thread.

    Args:
        abandoned: once it is set, answers are awaited for one second at most.
    """
    before = _limit.seconds, _limit.abandoned
    _limit.seconds, _limit.abandoned = seconds, abandoned
    try:
        yield
    finally:
        _limit.seconds, _limit.abandoned = before


def _wait(connection: Any) -> None:
    """Wait until the connection is ready; each sign of life from the server starts the limit again."""
    while (state := connection.poll()) != extensions.POLL_OK:
        seconds, during = _limit.seconds, " in the middle of a statement"
        if connection.status not in _CONNECTED:
            seconds, during = min(seconds, _connect_seconds(connection)), ""
        if state not in _EVENTS:
            raise psycopg2.OperationalError(f"the connection is in an unknown state: {state}")
        if not _is_ready(connection.fileno(), _EVENTS[state], seconds):
            raise psycopg2.OperationalError(f"the server has not answered for {seconds:g} s{during}")


def _is_ready(descriptor: int, events: int, seconds: float) -> bool:
    """Wait until the socket can be read or written; return False if it cannot within `seconds`."""
    poll = select.poll()  # select() is limited to 1,024 descriptors
    poll.register(descriptor, events)
    deadline, is_abandoned = time.monotonic() + seconds, False
    while True:
        if not is_abandoned and _limit.abandoned is not None and _limit.abandoned.is_set():
            deadline, is_abandoned = min(deadline, time.monotonic() + _ABANDONED_SECONDS), True
        remaining = max(0.0, deadline - time.monotonic())
        if poll.poll(1000 * min(remaining, _LOOK_SECONDS)):
            return True
        if time.monotonic() >= deadline:
            return False


def _connect_seconds(connection: Any) -> float:
    """Return the connection's connect_timeout in seconds; libpq leaves enforcing it to the wait callback."""
    named = extensions.parse_dsn(connection.dsn).get("connect_timeout", "")
    return float(named) if named.isdecimal() and int(named) > 0 else _DEFAULT_CONNECT_SECONDS
