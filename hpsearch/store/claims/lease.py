"""Leases: how long one lasts, how it is read, and which leases are stale.

An observer reads the leases repeatedly and decides by its own monotonic clock alone. The renewal time in a lease is
compared with the time that was read before, for equality only: the database's clock may jump, and differs from machine
to machine after a failover.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import Row, TextClause, text

from hpsearch.store.connection.lock_session import ADVISORY_LOCKS

LEASE_SECONDS = 30.0
ABSENCE_SECONDS = 15.0  # a lease that was not renewed for this long and whose owner's session is gone is stale, too
PRESENCE_NAMESPACE = 0x6870  # "hp": a live worker's session holds the advisory lock (namespace, owner)

Lease = tuple[int, str]  # (owner, its last renewal, as the database writes it)

RENEWAL = "coalesce(CAST(p.renewed_at AS text), '')"

# The locks of all live workers, whose numbers are `l.objid`.
PRESENCE_LOCKS = f"{ADVISORY_LOCKS} AND l.objsubid = 2 AND l.classid = CAST({PRESENCE_NAMESPACE} AS oid)"
# Whether the worker that holds the point has the session that shows its presence.
_IS_PRESENT = f"coalesce(p.owner IN (SELECT CAST(l.objid AS bigint) FROM {PRESENCE_LOCKS}), false)"


def select_leases(points: str) -> TextClause:
    """Return the statement whose rows `LeaseWatch.look` takes.

    It has one row at least, because each row carries the start time of the server. A point without an owner gives a row
    with an empty renewal.

    Args:
        points: which points, as what follows FROM; hpsearch_points is named p.
    """
    return text(f"""
        WITH leases AS (SELECT DISTINCT p.owner, {RENEWAL} AS renewal FROM {points})
        SELECT server.started_at, p.owner, p.renewal, {_IS_PRESENT} AS is_present
        FROM (SELECT pg_postmaster_start_time() AS started_at) server LEFT JOIN leases p ON true
    """)


class LeaseWatch:
    """What one observer has seen of leases so far. Thread-safe.

    Args:
        clock: monotonic, in seconds; injected in tests.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._server_started_at: datetime | None = None
        self._looked_at: float | None = None
        self._unchanged_since: dict[Lease, float] = {}
        self._absent_since: dict[Lease, float] = {}

    def look(
        self,
        rows: Sequence[Row[Any]],
        *,
        lease_seconds: float = LEASE_SECONDS,
        absence_seconds: float = ABSENCE_SECONDS,
    ) -> set[Lease]:
        """Record all current leases and return the stale ones.

        A lease is stale if it was seen unchanged for `lease_seconds`, or unchanged for `absence_seconds` while its
        owner's session was missing. Counting starts again after a restart of the server, because no worker could renew
        while the server was down, and after a gap of more than `lease_seconds` between two calls: either the observer
        was stopped, or the server hung for all workers.

        Args:
            rows: of `select_leases`.
        """
        is_present = {(row.owner, row.renewal): row.is_present for row in rows if row.owner is not None}
        server_started_at = rows[0].started_at
        with self._lock:
            now = self._clock()
            was_blind = self._looked_at is None or now - self._looked_at > lease_seconds
            if was_blind or server_started_at != self._server_started_at:
                self._unchanged_since, self._absent_since = {}, {}
            self._looked_at, self._server_started_at = now, server_started_at
            self._unchanged_since = {lease: self._unchanged_since.get(lease, now) for lease in is_present}
            absent = [lease for lease, is_here in is_present.items() if not is_here]
            self._absent_since = {lease: self._absent_since.get(lease, now) for lease in absent}
            return {lease for lease, since in self._unchanged_since.items() if now - since >= lease_seconds} | {
                lease for lease, since in self._absent_since.items() if now - since >= absence_seconds
            }
