"""How a worker is asked to stop: SIGTERM, SIGINT, or the end of the process that started it.

The first signal ends the epoch in progress at once (the trial is given back and begins anew elsewhere); a
second one ends the process without further ado.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from types import FrameType


class WorkerStopped(BaseException):
    """Raised inside an interruptible section when the worker was asked to stop. Not an error."""


class StopSignal:
    """Remembers that this process was asked to stop.

    Args:
        parent_pid: stop as well when this process is no longer our parent (a local worker's supervisor died).
    """

    def __init__(self, *, parent_pid: int | None = None) -> None:
        self._event = threading.Event()
        self._parent_pid = parent_pid
        self._is_interruptible = False

    def install(self) -> StopSignal:
        """Handle SIGTERM and SIGINT from now on; only the main thread can."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._handle)
        return self

    def set(self) -> None:
        self._event.set()

    def is_set(self) -> bool:
        if self._parent_pid is not None and os.getppid() != self._parent_pid:
            self._event.set()
        return self._event.is_set()

    def wait(self, seconds: float) -> bool:
        """Sleep, but not past a request to stop."""
        return self._event.wait(seconds) or self.is_set()

    @contextlib.contextmanager
    def interruptible(self) -> Iterator[None]:
        """Inside, a signal raises WorkerStopped at once. For arithmetic only: database work is not cut."""
        self._is_interruptible = True
        try:
            if self.is_set():
                raise WorkerStopped
            yield
        finally:
            self._is_interruptible = False

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self._event.is_set():
            os._exit(128 + number)  # asked twice: no clean-up, the leases run out
        self._event.set()
        if self._is_interruptible:
            raise WorkerStopped
