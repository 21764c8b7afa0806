"""How many programs a worker runs at once, and how many points it claims ahead.

A point that is claimed and not started keeps other workers from it, so there are none ahead unless the programs take
less than two seconds, and then only as many as are started within a fraction of a second.
"""

from __future__ import annotations

from hpsearch.cgroups import usable_processors
from hpsearch.study.program import ProgramSettings

_AHEAD_SECONDS = 0.5  # until the last point that is claimed ahead is started
_LONGEST_SECONDS = 2.0  # of programs for which points are claimed ahead
_WEIGHT = 0.2  # of the newest duration in the average


def num_slots(program: ProgramSettings, lanes: int | None, *, has_gpus: bool, num_workers: int) -> int:
    """Return how many programs a worker of this machine runs at once.

    Args:
        lanes: the value of `--lanes`, which decides; None: `per_gpu` on GPUs, otherwise one per `cpus` processors.
        has_gpus: whether the worker has GPUs.
        num_workers: number of workers on this machine, which share its processors.
    """
    if lanes is not None:
        return lanes
    return program.per_gpu if has_gpus else max(1, usable_processors() // num_workers // program.cpus)


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
