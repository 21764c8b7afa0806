"""A worker's presence: a unique number, a database session that stays open, and leases renewed in time.

The session holds the advisory lock (PRESENCE_NAMESPACE, owner). When the worker dies, the server notices the closed
connection and releases the lock, so that other workers need not wait for the leases to expire. A thread renews the
leases at a third of their length, because one epoch of many lanes may take longer than a lease, and observes the leases
of other workers. It does so only while the worker makes progress: if the watchdog finds that the worker hangs, the
thread gives its points back and ends the process.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import threading
import time
from collections.abc import Callable
from dataclasses import replace

from sqlalchemy import TextClause, text
from sqlalchemy.exc import SQLAlchemyError

from hpsearch.logs import get_logger
from hpsearch.store.claims.holdings import Holdings
from hpsearch.store.claims.lease import PRESENCE_LOCKS, PRESENCE_NAMESPACE, LeaseWatch
from hpsearch.store.claims.ledger import Ledger
from hpsearch.store.connection.answer_limit import answer_limit
from hpsearch.store.connection.lock_session import LockSession
from hpsearch.wording import first_line
from hpsearch.worker.health.watchdog import Watchdog

_log = get_logger("presence")
_TRY_LOCK = text("SELECT pg_try_advisory_lock(:namespace, :owner)")
_UNLOCK = text("SELECT pg_advisory_unlock(:namespace, :owner)")
_HAS_LOCK = text(
    f"SELECT count(*) FROM {PRESENCE_LOCKS} AND l.pid = pg_backend_pid() AND l.objid = CAST(:owner AS oid)"
)


_LOCK_ANSWER_SECONDS = 5.0  # for a session that may hang while others do not
_UNLOCK_SECONDS = 1.0  # at the end; a session that hangs is cut instead
_GOODBYE_SECONDS = 10.0  # the longest that a stalled worker's last statement may take


class Presence:
    """Context manager: while it is open, this worker counts as alive. `ledger` acts in its name.

    Args:
        watchdog: says whether the worker has stalled.
        keep: called by the thread with each renewal, for what else the worker holds in the database; must not raise.
    Raises:
        StorageError: the database did not come back in time.
    """

    def __init__(
        self,
        ledger: Ledger,
        *,
        watchdog: Watchdog | None = None,
        keep: Callable[[], object] = lambda: None,
    ) -> None:
        self._database = ledger.database
        self._watchdog = watchdog or Watchdog()
        self._keep = keep
        self._renewed_at = time.monotonic()
        self._session = LockSession(ledger.database.engine)
        self._stopped = threading.Event()
        self._is_given_up = False  # the thread did not end in time
        self._thread = threading.Thread(target=self._live, name="lease renewal", daemon=True)
        self.ledger = replace(ledger, owner=self._take_number(), holdings=Holdings(), lease_watch=LeaseWatch())

    def __enter__(self) -> Presence:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        self._thread.join(timeout=_UNLOCK_SECONDS)
        self._is_given_up = self._thread.is_alive()
        if not self._is_given_up:  # otherwise it hangs in the session, which is then cut
            with contextlib.suppress(SQLAlchemyError), answer_limit(_UNLOCK_SECONDS):
                self._ask(_UNLOCK, self.ledger.owner)
        self._session.close()

    @property
    def seconds_since_renewal(self) -> float:
        """Seconds since the leases were last renewed, or since the start."""
        return time.monotonic() - self._renewed_at

    def renew(self, ledger: Ledger) -> None:
        """Renew the leases, and take the lock again if its session was cut.

        Args:
            ledger: in the worker's name.
        Raises:
            StorageError: the database was away for longer than the ledger waits.
        """
        ledger.renew()  # first, because the lock's session may take a while
        self._renewed_at = time.monotonic()
        ledger.watch_leases()
        with answer_limit(_LOCK_ANSWER_SECONDS):
            try:
                self._keep_lock()
            except SQLAlchemyError as error:
                _log.info("lost the database session that holds this worker's lock: %s", first_line(error))
                with contextlib.suppress(SQLAlchemyError):
                    self._keep_lock()  # in a new session, at once: without one, others consider this worker dead

    def _live(self) -> None:
        try:
            self._renew_until_stopped()
        finally:
            if self._is_given_up:  # it may have opened a session after the previous one was cut
                self._session.close()

    def _renew_until_stopped(self) -> None:
        interval = self.ledger.lease_seconds / 3
        # No more patient than half a turn: the next turn tries again with a fresh view of the time.
        brief = replace(self.ledger, database=replace(self._database, patience_seconds=interval / 2))
        was_told = False
        while not self._stopped.wait(interval):
            if self._watchdog.turn(interval):
                self._leave_stalled()
                return
            try:
                self.renew(brief)
                was_told = False
            except Exception as error:
                # Any error is caught here: a lasting outage makes the worker's own writes fail and end it, while the
                # end of this thread would silently lose all leases.
                _log.warning("could not renew the leases: %s", first_line(error))
                if not was_told and time.monotonic() - self._renewed_at > self.ledger.lease_seconds:
                    was_told = True
                    _log.warning(
                        "cut off from the database for longer than a lease: other workers may have taken over "
                        "trials of this one, of which it will write nothing more"
                    )
            self._keep()

    def _leave_stalled(self) -> None:
        """Give the points back on behalf of the training thread, which does not respond, and end the process."""
        seconds = self._watchdog.quiet_seconds
        what = f"no progress for {seconds:.0f} s (--stall-seconds): its device or its network hangs"
        _log.error("%s; this worker gives its trials back and ends", what)
        brief = replace(self.ledger, database=replace(self._database, patience_seconds=_GOODBYE_SECONDS))
        try:
            brief.release(what, is_crash=True)
        except Exception as error:
            _log.error("could not give the trials back; their leases will expire: %s", first_line(error))
        finally:
            os._exit(1)  # does not wait for the thread that hangs; whoever started the worker restarts it

    def _take_number(self) -> int:
        """Draw numbers until one is free: the lock proves that no live worker has it.

        Raises:
            StorageError: the database did not come back in time.
        """
        owner = 0
        while owner == 0:
            owner = self._database.patiently(self._try_number)
        return owner

    def _try_number(self) -> int:
        number = 1 + secrets.randbelow(2**31 - 1)
        return number if self._ask(_TRY_LOCK, number) else 0

    def _keep_lock(self) -> None:
        """Take the lock again unless this session holds it: the server drops the locks of a cut session."""
        owner = self.ledger.owner
        if not self._ask(_HAS_LOCK, owner) and not self._ask(_TRY_LOCK, owner):
            _log.warning("this worker's old session is still open on the server")

    def _ask(self, question: TextClause, owner: int) -> bool:
        return bool(self._session.ask(question, {"namespace": PRESENCE_NAMESPACE, "owner": owner})[0][0])
