"""A worker's presence: a number of its own, a database session that stays open, leases renewed in time.

The session holds the advisory lock (PRESENCE_NAMESPACE, owner). When the worker dies, the server notices the
closed connection and drops the lock, and others need not wait for the leases to run out. A thread renews the
leases at a third of their length, because one epoch of many lanes may take longer than a lease, and has a look at the
others' leases. It does so for a worker that gets on: where a watchdog says that it hangs, the points are given back and
the process ends.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from types import TracebackType

from sqlalchemy import Connection, TextClause, text
from sqlalchemy.exc import SQLAlchemyError

from hpsearch.logs import get_logger
from hpsearch.store.claims.holdings import Holdings
from hpsearch.store.claims.lease_watch import LeaseWatch
from hpsearch.store.claims.ledger import PRESENCE_NAMESPACE, Ledger
from hpsearch.store.connection.answer_limit import answer_limit
from hpsearch.wording import first_line
from hpsearch.worker.health.watchdog import Watchdog

_log = get_logger("presence")
_TRY_LOCK = text("SELECT pg_try_advisory_lock(:namespace, :owner)")
_UNLOCK = text("SELECT pg_advisory_unlock(:namespace, :owner)")
_HAS_LOCK = text("""
    SELECT count(*) FROM pg_locks
    WHERE locktype = 'advisory' AND pid = pg_backend_pid() AND classid = CAST(:namespace AS oid)
      AND objid = CAST(:owner AS oid) AND objsubid = 2
""")


STALLED_EXIT_CODE = 1  # whoever watches over the worker starts it again
_LOCK_ANSWER_SECONDS = 5.0  # of a session that may hang while the others do not
_UNLOCK_SECONDS = 1.0  # at the end; a session that hangs is cut instead
_GOODBYE_SECONDS = 10.0  # what a stalled worker's last statement may take


def leave_at_once() -> None:
    """End the process without asking the thread that hangs."""
    os._exit(STALLED_EXIT_CODE)


class Presence:
    """Context manager: while it is open, this worker lives. `ledger` acts in its name.

    Args:
        watchdog: None for a worker whose device is not watched.
        keep: called by the thread with each renewal; must not raise (what else a worker holds in the database).
        leave: ends the process of a worker that has stalled; injected in tests.
    """

    def __init__(
        self,
        ledger: Ledger,
        *,
        watchdog: Watchdog | None = None,
        keep: Sequence[Callable[[], object]] = (),
        leave: Callable[[], None] = leave_at_once,
    ) -> None:
        self._database = ledger.database
        self._watchdog = watchdog
        self._keep = keep
        self._leave = leave
        self._renewed_at = time.monotonic()
        self._connection: Connection | None = None
        self._stopped = threading.Event()
        self._is_given_up = False  # the thread did not end in time
        self._thread = threading.Thread(target=self._live, name="lease renewal", daemon=True)
        self.ledger = replace(ledger, owner=self._take_number(), holdings=Holdings(), lease_watch=LeaseWatch())

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
        self._thread.join(timeout=_UNLOCK_SECONDS)
        self._is_given_up = self._thread.is_alive()
        if not self._is_given_up:  # else it hangs in the session, which is cut then
            with contextlib.suppress(SQLAlchemyError), answer_limit(_UNLOCK_SECONDS):
                self._ask(_UNLOCK, self.ledger.owner)
        self._close()

    def renew(self) -> None:
        """Renew the leases, and take the lock again if its session was cut.

        Raises:
            StorageError: the database has been away for too long.
        """
        self._renew_with(self.ledger)

    def _renew_with(self, ledger: Ledger) -> None:
        ledger.renew()  # first: what its session does may take a while
        self._renewed_at = time.monotonic()
        ledger.watch_leases()
        with answer_limit(_LOCK_ANSWER_SECONDS):
            try:
                self._keep_lock()
            except SQLAlchemyError as error:
                _log.info("lost the session that shows this worker's presence: %s", first_line(error))
                with contextlib.suppress(SQLAlchemyError):
                    self._keep_lock()  # in a new session, at once: without one, others take this worker for dead

    def _live(self) -> None:
        try:
            self._renew_until_stopped()
        finally:
            if self._is_given_up:  # it may have opened a session after the last one was cut
                self._close()

    def _renew_until_stopped(self) -> None:
        interval = self.ledger.lease_seconds / 3
        # Not more patient than a turn is long: the next turn tries again, and knows what time it is.
        brief = replace(self.ledger, database=replace(self._database, patience_seconds=interval / 2))
        was_told = False
        while not self._stopped.wait(interval):
            if self._watchdog is not None and self._watchdog.turn(interval):
                self._leave_stalled(self._watchdog)
                return
            try:
                self._renew_with(brief)
                was_told = False
            except Exception as error:
                # Whatever it was: the worker's own writes find out about a lasting outage and end it, while the
                # end of this thread would silently cost all leases.
                _log.warning("could not renew the leases: %s", first_line(error))
                if not was_told and time.monotonic() - self._renewed_at > self.ledger.lease_seconds:
                    was_told = True
                    _log.warning(
                        "cut off from the database for longer than a lease: what others have taken over meanwhile "
                        "is theirs; nothing of it will be written here"
                    )
            for keep in self._keep:
                keep()

    def _leave_stalled(self, watchdog: Watchdog) -> None:
        """The thread that trains cannot be reached: give its points back in its place, and end the process."""
        seconds = watchdog.quiet_seconds
        what = f"no progress for {seconds:.0f} s (--stall-seconds): its device or its network hangs"
        _log.error("%s; this worker gives its trials back and ends", what)
        brief = replace(self.ledger, database=replace(self._database, patience_seconds=_GOODBYE_SECONDS))
        try:
            brief.release(what, is_crash=True)
        except Exception as error:
            _log.error("could not give the trials back, their leases will run out: %s", first_line(error))
        finally:
            self._leave()

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
