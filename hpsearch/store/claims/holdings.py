"""What a worker believes it holds, to be compared with what the database says.

The two differ when the database has lost commits that it had acknowledged (asynchronous commit and a crash, a failover,
a restored backup), and when others have taken a trial over. A hold names the claim beside the trial: after a loss the
same trial may be claimed again, by the same worker too, and even its id may be given to a trial of another point.
"""

from __future__ import annotations

import threading
from collections.abc import Collection, Iterable
from datetime import datetime

Hold = tuple[int, int]  # (trial id, token of the claim that brought it)


class Holdings:
    """The holds of one worker. Safe for any number of threads.

    A claim counts from before its statement is sent until what it has brought is here, so that a renewal in another
    thread does not take for surplus what has just been claimed. A hold stays until the database has been told of its
    end.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._holds: set[Hold] = set()
        self._expected: set[int] = set()  # tokens of claims whose answer is not here yet
        self._server_started_at: datetime | None = None
        self._num_restarts = 0

    @property
    def num_restarts(self) -> int:
        """How often the server was seen to have started anew: each time, commits may have been lost."""
        return self._num_restarts

    def note_server(self, started_at: datetime) -> None:
        """Compare the server's start with the one seen before. For equality only: it is another machine's clock."""
        with self._lock:
            if self._server_started_at not in (None, started_at):
                self._num_restarts += 1
            self._server_started_at = started_at

    def expect(self, token: int) -> None:
        """A claim is about to be made."""
        with self._lock:
            self._expected.add(token)

    def take(self, token: int, trial_ids: Iterable[int]) -> None:
        """A claim was answered. A hold on the same trial by an earlier claim is void."""
        with self._lock:
            taken = set(trial_ids)
            self._holds = {hold for hold in self._holds if hold[0] not in taken} | {(i, token) for i in taken}
            self._expected.discard(token)

    def drop(self, holds: Collection[Hold]) -> None:
        """These have ended, or are somebody else's."""
        with self._lock:
            self._holds.difference_update(holds)

    def clear(self) -> None:
        """Nothing is held any more. A claim under way stays one."""
        with self._lock:
            self._holds.clear()

    def now(self) -> frozenset[Hold]:
        """All holds."""
        with self._lock:
            return frozenset(self._holds)

    def surplus(self, stored: Iterable[Hold]) -> frozenset[Hold]:
        """Those that the database has in this worker's name and that the worker knows nothing of.

        Args:
            stored: what a statement has answered that is over. What was claimed meanwhile is known here already.
        """
        with self._lock:
            return frozenset(hold for hold in stored if hold not in self._holds and hold[1] not in self._expected)
