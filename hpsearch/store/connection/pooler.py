"""Refuses a connection pooler that assigns one server session to several clients in turn.

Workers hold locks in their sessions, and hpsearch configures each session when it starts. Behind pgbouncer with
`pool_mode = transaction`, locks stay on pooled sessions after their worker has died, and the settings reach other
clients.
"""

from __future__ import annotations

from typing import Any

import sqlalchemy

from hpsearch.errors import StorageError
from hpsearch.store.connection.address import describe_address
from hpsearch.store.connection.refusals import SHARED_SESSIONS

_STATE = sqlalchemy.text("SELECT pg_backend_pid(), current_setting('transaction_read_only')::bool")


def check_sessions(url: sqlalchemy.URL, engine_options: dict[str, Any]) -> bool:
    """Connect and return whether the database is read-only.

    A pooler can be detected by the process number that it sends at the start of a session: it differs from the number
    of the server process. In that case two connections are used in turn. Behind a transaction pool, the second one gets
    the session that the first one has just released, or the first one gets another session afterwards.

    Args:
        engine_options: of `create_engine`; only `connect_args` and `creator` are used.
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
                    message = f"the database at {describe_address(url)} {SHARED_SESSIONS.said}"
                    raise StorageError(message, hint=SHARED_SESSIONS.hint)
    return bool(is_read_only)
