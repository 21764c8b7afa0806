"""libpq's environment variables (PGHOSTADDR, PGSERVICE, PGOPTIONS, ...) and what our connections make of them.

The embedded server is ours: none of them has a part in a connection to it. Not all can be overridden by an argument
(PGSERVICE cannot), and libpq learns new ones with each version, so the whole set is out of its sight while it reads
them. To a server that a user names they may add what the URL does not say and what harms nothing: user, password,
certificates and the demands on them. They neither change where the connection goes nor how its session behaves.
"""

from __future__ import annotations

import contextlib
import os
import threading
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psycopg2
import psycopg2.extensions
import sqlalchemy

_lock = threading.Lock()
_connections: weakref.WeakSet[psycopg2.extensions.connection] = weakref.WeakSet()
_hidden: dict[str, str] = {}
_num_inside = 0


def connect_without_variables(**arguments: Any) -> psycopg2.extensions.connection:
    """psycopg2.connect of nothing but its arguments."""
    with _without_variables():
        connection: psycopg2.extensions.connection = psycopg2.connect(**arguments)
    return connection


def keep_from_children(connection: psycopg2.extensions.connection) -> None:
    """Close the connection's socket in children of a plain fork: one that outlives us would keep our session alive.

    With the session it would keep our locks: that of a GPU, and the one that says that we live.
    """
    _connections.add(connection)


def _close_in_child() -> None:
    for connection in list(_connections):
        with contextlib.suppress(psycopg2.Error, OSError):  # closed already
            os.close(connection.fileno())  # nothing is sent; psycopg2 leaves connections of another process alone
    _connections.clear()


os.register_at_fork(after_in_child=_close_in_child)


def session_arguments(url: sqlalchemy.URL) -> dict[str, str]:
    """Arguments for a server that a user names: they stand for the variables that would do harm.

    The same key in the URL's query comes first.
    """
    arguments = {"options": "", "target_session_attrs": "any", "client_encoding": "UTF8"}
    if url.host or "host" in url.query:
        arguments["hostaddr"] = ""
    return arguments


@contextmanager
def _without_variables() -> Iterator[None]:
    """Inside, in all threads, the environment has no variable of libpq's."""
    global _num_inside
    with _lock:
        _num_inside += 1
        for name in [name for name in os.environ if name.startswith("PG")]:
            _hidden[name] = os.environ.pop(name)
    try:
        yield
    finally:
        with _lock:
            _num_inside -= 1
            if _num_inside == 0:
                os.environ.update(_hidden)
                _hidden.clear()
