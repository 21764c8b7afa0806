"""A PostgreSQL session that holds the advisory lock on a GPU and shows other workers who holds it.

The server releases the lock with the session: when the worker leaves, when it is killed, and, if the network was cut,
as soon as keepalives stay unanswered. An advisory lock is visible within one database only.
"""

from __future__ import annotations

import contextlib
import hashlib
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Row, text
from sqlalchemy.exc import SQLAlchemyError

from hpsearch.store.claims.lease import LeaseWatch, select_leases
from hpsearch.store.connection.database import Database
from hpsearch.store.connection.lock_session import ADVISORY_LOCKS, LockSession

# Shown by pg_stat_activity as application_name: these words, the worker's name, and a token of this process.
SESSION_TITLE = "hpsearch gpu"
_MOST_NAME = 40  # the server cuts an application_name at 63 bytes

_TRY_LOCK = text("SELECT pg_try_advisory_lock(:key)")
_TRY_LOCK_SHARED = text("SELECT pg_try_advisory_lock_shared(:key)")
_UNLOCK_ALL = text("SELECT pg_advisory_unlock_all()")
_LOCKS = f"{ADVISORY_LOCKS} AND l.objsubid = 1 AND l.classid = CAST(:high AS oid) AND l.objid = CAST(:low AS oid)"
_HAS_LOCK = text(f"SELECT count(*) FROM {_LOCKS} AND l.pid = pg_backend_pid()")
_HOLDERS = text(f"""
    SELECT s.pid, s.application_name AS title
    FROM (SELECT l.pid FROM {_LOCKS}) held JOIN pg_stat_activity s USING (pid) ORDER BY s.backend_start
""")
# A restarted server has lost all locks, and a cut session has lost its own. A worker that trains on a GPU takes its
# lock again within seconds; until then, or until its lease is stale (lease.py), no other worker may take it.
_LEASES = select_leases("""
    hpsearch_points p JOIN trial_user_attributes a ON a.trial_id = p.trial_id AND a.key = 'device'
    WHERE p.owner IS NOT NULL AND strpos(a.value_json, :uuid) > 0
""")
_END_SESSION = text("SELECT pg_terminate_backend(:pid, 2000)")  # milliseconds until it is gone


@dataclass(frozen=True, kw_only=True)
class Holder:
    """A session that holds the lock on a GPU.

    Args:
        pid: process number of the session on the server.
        worker: name of the worker, or the session's application_name if it is not one of hpsearch.
        is_self: an earlier session of this process, which the server has not yet noticed to be gone.
    """

    pid: int
    worker: str
    is_self: bool


class GpuLockSession:
    """Takes and holds locks in one session, which is opened when it is needed. Not thread-safe.

    Args:
        worker: name of the worker, shown to others.
        clock: monotonic, in seconds; injected in tests.
    """

    def __init__(self, database: Database, worker: str = "", *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._watches: dict[str, LeaseWatch] = {}  # by the GPU's UUID
        self._title = f"{SESSION_TITLE} {worker[-_MOST_NAME:]} {secrets.token_hex(4)}"  # the name ends with the pid
        self._session = LockSession(database.engine, self._title)

    def try_lock(self, uuid: str, *, is_shared: bool = False) -> bool:
        """Take the lock on a GPU if it is free, or, with `is_shared`, if all of its holders share it."""
        return bool(self._session.ask(_TRY_LOCK_SHARED if is_shared else _TRY_LOCK, {"key": lock_key(uuid)})[0][0])

    def has_lock(self, uuid: str) -> bool:
        """Whether the current session holds the lock: the server releases the locks of a session that was cut."""
        return bool(self._session.ask(_HAS_LOCK, _halves(uuid))[0][0])

    def is_awaited(self, uuid: str) -> bool:
        """Whether a worker trains on the GPU although its session is not visible at the moment: it may come back.

        If it is asked repeatedly, it eventually returns False (after ABSENCE_SECONDS).
        """
        rows = self._session.ask(_LEASES, {"uuid": uuid})
        stale = self._watches.setdefault(uuid, LeaseWatch(self._clock)).look(rows)
        leases = [row for row in rows if row.owner is not None]
        return any(not row.is_present for row in leases if (row.owner, row.renewal) not in stale)

    def holders(self, uuid: str) -> list[Holder]:
        """Return the holders of the lock on a GPU, the oldest session first."""
        return [self._holder_from(row) for row in self._session.ask(_HOLDERS, _halves(uuid))]

    def end_session_of(self, holder: Holder) -> None:
        """End a session of the same database user; returns when it is gone, or after two seconds."""
        self._session.ask(_END_SESSION, {"pid": holder.pid})

    def close(self) -> None:
        """Release all locks and end the session."""
        if self._session.is_open:
            with contextlib.suppress(SQLAlchemyError):
                self._session.ask(_UNLOCK_ALL, {})  # at once: the server may take a moment to notice the end
        self._session.close()

    def _holder_from(self, row: Row[Any]) -> Holder:
        title: str = row.title
        worker = title.removeprefix(SESSION_TITLE).strip().rpartition(" ")[0] or title
        return Holder(pid=row.pid, worker=worker, is_self=title == self._title)


def lock_key(uuid: str) -> int:
    """Return the key of a GPU's advisory lock: 64 bits of the hash of its UUID."""
    digest = hashlib.sha256(f"{SESSION_TITLE} {uuid.lower()}".encode()).digest()
    return int.from_bytes(digest[:8], "big", signed=True)


def _halves(uuid: str) -> dict[str, int]:
    """Return the key as pg_locks shows it, in two unsigned halves."""
    key = lock_key(uuid) % 2**64
    return {"high": key >> 32, "low": key % 2**32}
