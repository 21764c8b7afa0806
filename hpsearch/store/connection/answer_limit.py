"""A time limit on the client's side for every answer of PostgreSQL.

A server process that was stopped, or a network that was cut without a word, leaves a client waiting: TCP's own limits
do not see the first (the kernel still acknowledges), and the server's `statement_timeout` sees neither. psycopg2 lets a
callback do the waiting, for all connections of the process; ours gives up, and psycopg2 closes the connection then.

A process with such a callback can no longer use `copy_expert` or asynchronous connections. So only the command line
sets it, in processes that are hpsearch's own (workers are started by it), never the Python API in somebody's program:
there a hung server is noticed by TCP and by `statement_timeout` alone.
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

# As long as our connections let unacknowledged data be (tcp_user_timeout): both are a connection without a server.
ANSWER_SECONDS = 20.0
_DEFAULT_CONNECT_SECONDS = 5.0
_EVENTS = {extensions.POLL_READ: select.POLLIN, extensions.POLL_WRITE: select.POLLOUT}
_LOOK_SECONDS = 0.5  # between two looks at whether anybody still wants the answer
_ABANDONED_SECONDS = 1.0
_CONNECTED = (extensions.STATUS_READY, extensions.STATUS_BEGIN, extensions.STATUS_PREPARED)


class _Limit(threading.local):
    seconds: float = ANSWER_SECONDS
    abandoned: threading.Event | None = None


_limit = _Limit()


def limit_answers() -> None:
    """Give up on answers that do not come, in this process, from now on. Safe to call again.

    Without it, `answer_limit` has no effect.
    """
    extensions.set_wait_callback(_wait)


@contextmanager
def answer_limit(seconds: float, abandoned: threading.Event | None = None) -> Iterator[None]:
    """Inside, and in this thread, wait so long for an answer.

    Args:
        abandoned: once it is set, no longer than a second.
    """
    before = _limit.seconds, _limit.abandoned
    _limit.seconds, _limit.abandoned = seconds, abandoned
    try:
        yield
    finally:
        _limit.seconds, _limit.abandoned = before


def _wait(connection: Any) -> None:
    """Wait until the connection is ready; each sign of life of the server begins the limit anew."""
    while (state := connection.poll()) != extensions.POLL_OK:
        seconds, during = _limit.seconds, " in the middle of a statement"
        if connection.status not in _CONNECTED:
            seconds, during = min(seconds, _connect_seconds(connection)), ""
        if state not in _EVENTS:
            raise psycopg2.OperationalError(f"the connection is in a state that we do not know: {state}")
        if not _is_ready(connection.fileno(), _EVENTS[state], seconds):
            raise psycopg2.OperationalError(f"the server has not answered for {seconds:g} s{during}")


def _is_ready(descriptor: int, events: int, seconds: float) -> bool:
    """Whether the socket can be read or written, after so long at most."""
    poll = select.poll()  # select() knows 1,024 descriptors only
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
    """libpq leaves its connect_timeout to whoever does the waiting."""
    named = extensions.parse_dsn(connection.dsn).get("connect_timeout", "")
    return float(named) if named.isdecimal() and int(named) > 0 else _DEFAULT_CONNECT_SECONDS
