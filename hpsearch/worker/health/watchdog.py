"""Notices a device or a network that hangs: a living process is no proof that its trials make progress.

Progress is work that is done: a minibatch (`training.pulse`), or what the worker reports beside training. Processor
time is none, for a loop without end uses it, too. The thread that renews the leases asks how long there was no
progress. It counts its own turns, not the clock: a process that was stopped (SIGSTOP, a suspended machine) has not
been quiet.
"""

from __future__ import annotations

from collections.abc import Callable

from hpsearch.worker.options import DEFAULT_STALL_SECONDS


class Watchdog:
    """Says whether a worker has stalled.

    Args:
        stall_seconds: without a sign of progress for so long, the device or the network hangs.
        pulse: how many minibatches the device has finished; asked at each turn, from the thread that takes it.
        on_progress: called at a turn when only the pulse shows that a long epoch goes on.
    """

    def __init__(
        self,
        stall_seconds: float = DEFAULT_STALL_SECONDS,
        *,
        pulse: Callable[[], int] = lambda: 0,
        on_progress: Callable[[], object] = lambda: None,
    ) -> None:
        self.stall_seconds = stall_seconds
        self._pulse = pulse
        self._on_progress = on_progress
        self._quiet_seconds = 0.0
        self._num_done = pulse()

    def note_progress(self) -> None:
        """Something was trained, written, or waited for on purpose. Cheap; from any thread."""
        self._quiet_seconds = 0.0

    @property
    def quiet_seconds(self) -> float:
        return self._quiet_seconds

    def turn(self, seconds: float) -> bool:
        """Another `seconds` have passed, as far as this process has lived through them; whether it has stalled."""
        before = self._num_done
        try:
            num_done = self._pulse()
        except Exception:  # a device that has failed cannot be asked: that is no progress, and no end of this thread
            num_done = before
        self._num_done = num_done
        if num_done != before:
            self._quiet_seconds = 0.0
            self._on_progress()
        else:
            self._quiet_seconds += seconds
        return self._quiet_seconds > self.stall_seconds
