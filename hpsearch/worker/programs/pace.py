"""How many points a worker claims ahead: while programs take less than a second, a free slot should not wait for one.

A point that is claimed and not started keeps other workers from it, so there are none ahead unless the programs are
short, and then only as many as are started within a fraction of a second.
"""

from __future__ import annotations

_AHEAD_SECONDS = 0.5  # until the last point that is claimed ahead is started
_LONGEST_SECONDS = 2.0  # of programs for which points are claimed ahead
_WEIGHT = 0.2  # of the newest duration in the average


class Pace:
    """The usual duration of one worker's programs."""

    def __init__(self, num_slots: int) -> None:
        self._num_slots = num_slots
        self._seconds: float | None = None

    def note(self, seconds: float) -> None:
        """Take in the duration of a program that has ended by itself."""
        self._seconds = seconds if self._seconds is None else self._seconds + _WEIGHT * (seconds - self._seconds)

    @property
    def num_ahead(self) -> int:
        """How many points should be claimed beyond those that run."""
        if self._seconds is None or self._seconds > _LONGEST_SECONDS:
            return 0
        return min(self._num_slots, round(self._num_slots * _AHEAD_SECONDS / max(self._seconds, 1e-3)))
