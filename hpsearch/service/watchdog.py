"""Notices a device that hangs: a living process is no proof that its trials get on.

The worker notes each step that it gets on by; the thread that renews its leases asks how long that has been quiet. It
counts its own turns, not the clock: a process that was stopped (SIGSTOP, a suspended machine) has not been quiet.
"""

from __future__ import annotations

import time
from collections.abc import Callable

DEFAULT_STALL_SECONDS = 600.0
_LONGEST_EPOCHS = 10.0  # an epoch may take so many times as long as the longest before it
# Share of a core that a computation on the CPU uses at least; a deadlock uses none.
_LEAST_CORE_SHARE = 0.05


class Watchdog:
    """Says whether a worker has stalled.

    Args:
        stall_seconds: without a sign of progress for so long, the device hangs.
        is_cpu: processor time counts as progress; beside a GPU it doesn't, for waiting for one may use it, too.
        on_computing: called when only processor time shows that a long epoch goes on.
    """

    def __init__(
        self,
        stall_seconds: float = DEFAULT_STALL_SECONDS,
        *,
        is_cpu: bool,
        on_computing: Callable[[], object] = lambda: None,
    ) -> None:
        self.stall_seconds = stall_seconds
        self._is_cpu = is_cpu
        self._on_computing = on_computing
        self._quiet_seconds = 0.0
        self._longest_epoch = 0.0
        self._processor_seconds = time.process_time()

    def note_progress(self, epoch_seconds: float = 0.0) -> None:
        """Something was trained, written, or waited for on purpose. Cheap; from any thread."""
        self._quiet_seconds = 0.0
        self._longest_epoch = max(self._longest_epoch, epoch_seconds)

    @property
    def quiet_seconds(self) -> float:
        return self._quiet_seconds

    @property
    def limit_seconds(self) -> float:
        return max(self.stall_seconds, _LONGEST_EPOCHS * self._longest_epoch)

    def turn(self, seconds: float) -> bool:
        """Another `seconds` have passed, as far as this process has lived through them; whether it has stalled."""
        processor_seconds = time.process_time()
        used, self._processor_seconds = processor_seconds - self._processor_seconds, processor_seconds
        if self._is_cpu and used > _LEAST_CORE_SHARE * seconds:
            self._quiet_seconds = 0.0
            self._on_computing()
        else:
            self._quiet_seconds += seconds
        return self._quiet_seconds > self.limit_seconds
