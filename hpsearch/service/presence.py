"""A worker's sign of life: a number of its own, a database session that stays open, and leases renewed in time.

The session holds the advisory lock (PRESENCE_NAMESPACE, owner). When the worker dies, the server notices the closed
connection and drops the lock, and others need not wait for the leases to run out. A thread renews the leases at a
third of their length, because one epoch of many lanes may take longer than a lease.
"""

from __future__ import annotations

import contextlib
import secrets
import threading
from dataclasses import replace
from types import TracebackType

from sqlalchemy import Connection, text
from sqlalchemy.exc import SQLAlchemyError

from hpsearch.errors import HpsearchError
from hpsearch.logs import get_logger
from hpsearch.service.ledger import PRESENCE_NAMESPACE, Ledger

_log = get_logger("presence")
_TRY_LOCK = text("SELECT pg_try_advisory_lock(:namespace, :owner)")
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
        self._close()

    def _take_number(self) -> int:
        """Draw numbers until one is free: the lock proves that no living worker has it."""
        while True:
            owner = 1 + secrets.randbelow(2**31 - 1)
            if self._lock(owner):
                return owner

    def _lock(self, owner: int) -> bool:
        if self._connection is None or self._connection.closed:
            connection = self._database.engine.connect()
            self._connection = connection.execution_options(isolation_level="AUTOCOMMIT")
        values = {"namespace": PRESENCE_NAMESPACE, "owner": owner}
        return bool(self._connection.execute(_TRY_LOCK, values).scalar_one())

    def _renew_until_stopped(self) -> None:
        while not self._stopped.wait(self.ledger.lease_seconds / 3):
            try:
                self._keep_lock()
                self.ledger.renew()
            except (HpsearchError, SQLAlchemyError) as error:
                # The worker's own writes find out about a lasting outage and end it; here the next turn tries again.
                _log.warning("could not renew the leases: %s", str(error).splitlines()[0])
                self._close()

    def _keep_lock(self) -> None:
        """Take the lock again if the session was cut; the server forgets a lock together with its session."""
        values = {"namespace": PRESENCE_NAMESPACE, "owner": self.ledger.owner}
        if self._connection is not None and not self._connection.closed:
            if self._connection.execute(_HAS_LOCK, values).scalar_one() > 0:
                return
            self._close()
        if not self._lock(self.ledger.owner):
            _log.warning("this worker's old session is still open on the server")

    def _close(self) -> None:
        if self._connection is not None:
            with contextlib.suppress(SQLAlchemyError):
                self._connection.invalidate()  # do not return a session that holds a lock to the pool
                self._connection.close()
            self._connection = None
