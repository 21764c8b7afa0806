"""Decides which leases are stale, as one observer sees it, by the observer's own monotonic clock alone.

An observer reads the leases repeatedly. The renewal time in a lease is compared with the time that was read before, for
equality only: the database's clock may jump, and differs from machine to machine after a failover.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from datetime import datetime

Lease = tuple[int, str]  # (owner, its last renewal, as the database writes it)


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
        is_present: Mapping[Lease, bool],
        server_started_at: datetime,
        *,
        lease_seconds: float,
        absence_seconds: float,
    ) -> set[Lease]:
        """Record all current leases and return the stale ones.

        A lease is stale if it was seen unchanged for `lease_seconds`, or unchanged for `absence_seconds` while its
        owner's session was missing. Counting starts again after a restart of the server, because no worker could renew
        while the server was down, and after a gap of more than `lease_seconds` between two calls: either the observer
        was stopped, or the server hung for all workers.

        Args:
            is_present: lease -> whether its owner has the session that shows its presence.
            server_started_at: start time of the server, compared for equality only.
        """
        with self._lock:
            now = self._clock()
            was_blind = self._looked_at is None or now - self._looked_at > lease_seconds
            if was_blind or server_started_at != self._server_started_at:
                self._unchanged_since, self._absent_since = {}, {}
            self._looked_at, self._server_started_at = now, server_started_at
            self._unchanged_since = {lease: self._unchanged_since.get(lease, now) for lease in is_present}
            self._absent_since = {
                lease: self._absent_since.get(lease, now) for lease, is_here in is_present.items() if not is_here
            }
            return {
                lease
                for lease, since in self._unchanged_since.items()
                if now - since >= lease_seconds
                or (lease in self._absent_since and now - self._absent_since[lease] >= absence_seconds)
            }
