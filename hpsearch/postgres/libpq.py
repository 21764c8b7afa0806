"""libpq's environment variables (PGHOSTADDR, PGSERVICE, PGOPTIONS, ...) and their effect on hpsearch's connections.

Connections to the embedded server ignore all of them. Not every variable can be overridden by an argument (PGSERVICE
cannot), and libpq adds new ones with each version, so all of them are removed from the environment while libpq reads
it. For a server that the user names, the variables may supply what the URL does not contain and what does no harm:
user, password, certificates and the requirements on them. They change neither where the connection goes nor how its
session behaves.
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
    """Connect with psycopg2, using nothing but the arguments."""
    with _without_variables():
        connection: psycopg2.extensions.connection = psycopg2.connect(**arguments)
    return connection


def keep_from_children(connection: psycopg2.extensions.connection) -> None:
    """Close the connection's socket in children of a plain fork: a child that outlives us would keep the session alive.

    The session would keep its locks: the lock on a GPU, and the lock that shows that the worker is alive.
    """
    _connections.add(connection)


def _close_in_child() -> None:
    for connection in list(_connections):
        with contextlib.suppress(psycopg2.Error, OSError):  # already closed
            os.close(connection.fileno())  # nothing is sent; psycopg2 ignores connections of another process
    _connections.clear()


os.register_at_fork(after_in_child=_close_in_child)


def session_arguments(url: sqlalchemy.URL) -> dict[str, str]:
    """Return arguments for a server that a user names; they override variables that would do harm.

    The same key in the URL's query takes precedence.
    """
    arguments = {"options": "", "target_session_attrs": "any", "client_encoding": "UTF8"}
    if url.host or "host" in url.query:
        arguments["hostaddr"] = ""
    return arguments


@contextmanager
def _without_variables() -> Iterator[None]:
    """Remove libpq's variables from the environment, for all threads, while the context is open."""
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
