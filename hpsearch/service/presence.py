"""A worker's sign of life: a number of its own, a database session that stays open, leases renewed in time.

The session holds the advisory lock (PRESENCE_NAMESPACE, owner). When the worker dies, the server notices the
closed connection and drops the lock, and others need not wait for the leases to run out. A thread renews the
leases at a third of their length, because one epoch of many lanes may take longer than a lease.
"""

from __future__ import annotations

import contextlib
import secrets
import threading
from dataclasses import replace
from types import TracebackType

from sqlalchemy import Connection, TextClause, text
from sqlalchemy.exc import SQLAlchemyError

from hpsearch.logs import get_logger
from hpsearch.service.ledger import PRESENCE_NAMESPACE, Ledger

_log = get_logger("presence")
_TRY_LOCK = text("SELECT pg_try_advisory_lock(:namespace, :owner)")
_UNLOCK = text("SELECT pg_advisory_unlock(:namespace, :owner)")
_HAS_LOCK = text("""
    SELECT count(*) FROM pg_locks
    WHERE locktype = 'advisory' AND pid = pg_backend_pid() AND classid = CAST(:namespace AS oid)
      AND objid = CAST(:owner AS oid) AND objsubid = 2
""")


class Presence:
    """Context manager: while it is open, this worker lives. `ledger` acts in its name."""

    def __init__(self, ledger: Ledger) -> None:
        self._database = ledger.database
        self._connection: Connection | None = None
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._renew_until_stopped, name="lease renewal", daemon=True)
        self.ledger = replace(ledger, owner=self._take_number())

    def __enter__(self) -> Presence:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stopped.set()
        self._thread.join(timeout=5.0)
        if not self._thread.is_alive():  # else it hangs in the session, which is cut then
            with contextlib.suppress(SQLAlchemyError):
                self._ask(_UNLOCK, self.ledger.owner)
        self._close()

    def renew(self) -> None:
        """Take the lock again if its session was cut, and renew the leases in the same turn.

        Raises:
            StorageError: the database has been away for too long.
        """
        try:
            self._keep_lock()
        except SQLAlchemyError as error:
            _log.info("lost the session that shows this worker's presence: %s", _first_line(error))
            with contextlib.suppress(SQLAlchemyError):
                self._keep_lock()  # in a new session, at once: without one, others take this worker for dead
        self.ledger.renew()

    def _renew_until_stopped(self) -> None:
        while not self._stopped.wait(self.ledger.lease_seconds / 3):
            try:
                self.renew()
            except Exception as error:
                # Whatever it was: the worker's own writes find out about a lasting outage and end it, while the
                # end of this thread would silently cost all leases.
                _log.warning("could not renew the leases: %s", _first_line(error))

    def _take_number(self) -> int:
        """Draw numbers until one is free: the lock proves that no living worker has it.

        Raises:
            StorageError: the database did not come back in time.
        """
        owner = 0
        while owner == 0:
            # Inside `transaction` for its patience only: the lock belongs to the session of `_ask`.
            owner = self._database.transaction(self._try_number)
        return owner

    def _try_number(self, _: Connection) -> int:
        number = 1 + secrets.randbelow(2**31 - 1)
        return number if self._ask(_TRY_LOCK, number) else 0

    def _keep_lock(self) -> None:
        """Lock again unless this session holds the lock: the server forgets the locks of a cut session."""
        owner = self.ledger.owner
        if not self._ask(_HAS_LOCK, owner) and not self._ask(_TRY_LOCK, owner):
            _log.warning("this worker's old session is still open on the server")

    def _ask(self, question: TextClause, owner: int) -> bool:
        """Ask in this worker's own session; one that fails is closed, and the next question opens another."""
        try:
            if self._connection is None:
                connection = self._database.engine.connect()
                self._connection = connection.execution_options(isolation_level="AUTOCOMMIT")
            values = {"namespace": PRESENCE_NAMESPACE, "owner": owner}
            return bool(self._connection.execute(question, values).scalar_one())
        except SQLAlchemyError:
            self._close()
            raise

    def _close(self) -> None:
        if self._connection is not None:
            connection, self._connection = self._connection, None
            with contextlib.suppress(SQLAlchemyError):
                connection.invalidate()  # do not return a session that holds a lock to the pool
                connection.close()


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]
