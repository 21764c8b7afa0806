"""Refuse a pooler between us and PostgreSQL that gives one server session to many clients in turn.

Workers hold locks in their sessions, and each session of ours begins with settings of its own. Behind pgbouncer with
`pool_mode = transaction`, locks stay on pooled sessions after their worker has died, and the settings reach others.
"""

from __future__ import annotations

from typing import Any

import sqlalchemy

from hpsearch.errors import StorageError
from hpsearch.store.connection.refusals import SHARED_SESSIONS

_STATE = sqlalchemy.text("SELECT pg_backend_pid(), current_setting('transaction_read_only')::bool")


def check_sessions(url: sqlalchemy.URL, engine_options: dict[str, Any], address: str) -> bool:
    """Connect and return whether the database is read-only.

    A pooler shows by the process number that it tells at the start: it is not the session's. Then two connections are
    used in turn. Behind a pool of transactions the second one gets the session that the first one has just left, or the
    first one gets another when it comes back.

    Raises:
        StorageError: sessions are shared between clients.
        DBAPIError: no connection.
    """
    how = {name: value for name, value in engine_options.items() if name in ("connect_args", "creator")}
    engine = sqlalchemy.create_engine(url, poolclass=sqlalchemy.NullPool, **how)
    with engine.connect() as first:
        told = first.connection.driver_connection.info.backend_pid  # type: ignore[union-attr]
        number, is_read_only = first.execute(_STATE).one()
        first.rollback()
        if told != number:
            with engine.connect() as second:
                other = second.execute(_STATE).one()[0]  # keeps its session until this transaction ends
                if other == number or first.execute(_STATE).one()[0] != number:
                    raise StorageError(f"the database at {address} {SHARED_SESSIONS.said}", hint=SHARED_SESSIONS.hint)
    return bool(is_read_only)
