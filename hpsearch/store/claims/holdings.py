"""What a worker believes it holds, to be compared with the database.

The two differ when the database has lost acknowledged commits (asynchronous commit and a crash, a failover, a restored
backup), and when other workers have taken a trial over. A hold names the claim as well as the trial: after a loss, the
same trial may be claimed again, even by the same worker, and its id may be given to a trial of another point.
"""

from __future__ import annotations

import threading
from collections.abc import Collection, Iterable
from datetime import datetime

Hold = tuple[int, int]  # (trial id, token of the claim that returned it)


class Holdings:
    """The holds of one worker. Thread-safe.

    A claim is expected from before its statement is sent until its result is recorded here, so that a renewal in
    another thread does not treat newly claimed points as surplus. A hold stays until the database knows that it has
    ended, or is owed to it.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._holds: set[Hold] = set()
        self._owed: dict[Hold, str] = {}  # holds that the database may still have, and why they ended
        self._expected: set[int] = set()  # tokens of claims whose answer has not arrived yet
        self._server_started_at: datetime | None = None
        self._num_restarts = 0

    @property
    def num_restarts(self) -> int:
        """How many restarts of the server were seen. Each restart may have lost commits."""
        return self._num_restarts

    def note_server(self, started_at: datetime) -> None:
        """Compare the server's start time with the one seen before.

        For equality only: the time comes from another machine's clock.
        """
        with self._lock:
            if self._server_started_at not in (None, started_at):
                self._num_restarts += 1
            self._server_started_at = started_at

    def expect(self, token: int) -> None:
        """Register a claim that is about to be sent."""
        with self._lock:
            self._expected.add(token)

    def take(self, token: int, trial_ids: Iterable[int]) -> None:
        """Record the result of a claim. Holds on the same trials by earlier claims are removed."""
        with self._lock:
            taken = set(trial_ids)
            self._holds = {hold for hold in self._holds if hold[0] not in taken} | {(i, token) for i in taken}
            self._expected.discard(token)

    def drop(self, holds: Collection[Hold]) -> None:
        """Remove holds that have ended or belong to another worker."""
        with self._lock:
            self._holds.difference_update(holds)
            for hold in holds:
                self._owed.pop(hold, None)

    def owe(self, holds: Collection[Hold], reason: str) -> None:
        """Remove holds that the database may still have: it is away. They are then surplus in its next answer.

        Args:
            reason: why their points are given back then.
        """
        with self._lock:
            self._holds.difference_update(holds)
            self._owed.update(dict.fromkeys(holds, reason))

    def reason_for(self, hold: Hold) -> str | None:
        """Return why a surplus hold is given back, or None if that was not recorded."""
        with self._lock:
            return self._owed.get(hold)

    def clear(self) -> None:
        """Remove all holds. Claims that were sent and not answered stay expected."""
        with self._lock:
            self._holds.clear()
            self._owed.clear()

    def now(self) -> frozenset[Hold]:
        """Return all holds."""
        with self._lock:
            return frozenset(self._holds)

    def surplus(self, stored: Iterable[Hold]) -> frozenset[Hold]:
        """Return the holds that the database has in this worker's name and the worker does not know.

        Args:
            stored: the result of a statement that has finished. Claims made in the meantime are already known here.
        """
        with self._lock:
            return frozenset(hold for hold in stored if hold not in self._holds and hold[1] not in self._expected)
