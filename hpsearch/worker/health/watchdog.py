"""Detects a device or a network that hangs: a live process does not prove that its trials make progress.

Progress is finished work: a minibatch (`training.pulse`), or work beside training that the worker reports. Processor
time does not count, because an endless loop uses it, too. The thread that renews the leases checks how long there was
no progress. It counts its own turns instead of reading the clock: time during which the process was stopped (SIGSTOP, a
suspended machine) does not count as time without progress.
"""

from __future__ import annotations

from collections.abc import Callable

from hpsearch.worker.options import DEFAULT_STALL_SECONDS


class Watchdog:
    """Decides whether a worker has stalled.

    Args:
        stall_seconds: after this time without progress, the device or the network counts as hung.
        pulse: returns how many minibatches the device has finished; called at each turn, in the thread that calls
            `turn`.
        on_progress: called at a turn when only the pulse shows that a long epoch continues.
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
        """Report that something was trained, written, or deliberately waited for.

        Cheap; may be called from any thread.
        """
        self._quiet_seconds = 0.0

    @property
    def quiet_seconds(self) -> float:
        """Seconds without progress, as counted by `turn`."""
        return self._quiet_seconds

    def turn(self, seconds: float) -> bool:
        """Add the seconds of a turn in which this process was running, and return whether the worker has stalled."""
        before = self._num_done
        try:
            num_done = self._pulse()
        except Exception:  # a failed device cannot be asked: no progress, but this thread must not end
            num_done = before
        self._num_done = num_done
        if num_done != before:
            self._quiet_seconds = 0.0
            self._on_progress()
        else:
            self._quiet_seconds += seconds
        return self._quiet_seconds > self.stall_seconds
