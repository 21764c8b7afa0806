"""Which leases are stale, as one observer sees it: by its own monotonic clock, and by nobody else's.

An observer looks at the leases again and again. What a lease bears as the time of its renewal is compared with what it
bore before, for equality only: the database's clock may jump, and differs from machine to machine after a failover.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from datetime import datetime

Lease = tuple[int, str]  # (owner, its last renewal, as the database writes it)


class LeaseWatch:
    """What one observer has seen of leases so far. Safe for any number of threads.

    Args:
        clock: in seconds, monotonic; injected in tests.
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
        """Take note of all leases that there are just now; returns the stale ones.

        A lease is stale that was seen unchanged for `lease_seconds`, or for `absence_seconds` without its owner's
        session. The count starts anew when the server has started anew, for nobody could renew while it was away, and
        after a gap of more than `lease_seconds` between two looks: the observer was stopped, or the server hung for
        all.

        Args:
            is_present: whether a lease's owner has the session that shows its presence.
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
