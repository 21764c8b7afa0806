"""A database session that stays open, because advisory locks last as long as the session that has taken them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import Connection, Engine, Row, TextClause, text
from sqlalchemy.exc import SQLAlchemyError

# The advisory locks of this database; a condition on `l` may follow.
ADVISORY_LOCKS = """pg_locks l
    WHERE l.locktype = 'advisory' AND l.granted
      AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())"""

_SET_TITLE = text("SELECT set_config('application_name', :title, false)")


class LockSession:
    """Runs statements in one session, which is opened when it is needed. Not thread-safe.

    Args:
        title: the session's application_name in pg_stat_activity; None: that of hpsearch's other sessions.
    """

    def __init__(self, engine: Engine, title: str | None = None) -> None:
        self._engine = engine
        self._title = title
        self._connection: Connection | None = None

    @property
    def is_open(self) -> bool:
        return self._connection is not None

    def ask(self, question: TextClause, values: Mapping[str, Any]) -> Sequence[Row[Any]]:
        """Run a statement. A session that fails is closed, and the next call opens another one."""
        try:
            if self._connection is None:
                self._connection = self._engine.connect().execution_options(isolation_level="AUTOCOMMIT")
                self._connection.detach()  # never returns to the pool with its locks and its title
                if self._title is not None:
                    self._connection.execute(_SET_TITLE, {"title": self._title})
            return self._connection.execute(question, values).all()
        except SQLAlchemyError:
            self.close()
            raise

    def close(self) -> None:
        """End the session, even if another thread hangs in it. The server then releases its locks."""
        connection, self._connection = self._connection, None
        if connection is not None and not connection.invalidated:
            # Connection.close would run a statement first, and this thread might have to wait for the answer.
            session = connection.connection.dbapi_connection
            assert session is not None
            session.close()
