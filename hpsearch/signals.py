"""How a worker is asked to stop: by SIGTERM, SIGINT, or the end of the process that started it.

After the first signal, the epoch in progress may finish if that takes only seconds, so that its trials can be
checkpointed in their current state; otherwise it is interrupted (the trials resume from their last checkpoint
elsewhere). A second signal ends the process immediately. STOP_SECONDS is what a stop may take; the share of each
step is listed below it.
"""

from __future__ import annotations

import contextlib
import ctypes
import math
import os
import queue
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType

from hpsearch.logs import get_logger

_log = get_logger("signals")
_PR_SET_PDEATHSIG = 1  # linux/prctl.h

# Docker and our supervisor send SIGKILL ten seconds after SIGTERM. A worker spends them in this order:
# `interruptible` here, EpochWriter.flush, Checkpointer, and Worker._leave.
STOP_SECONDS = 10.0
EPOCH_GRACE_SECONDS = 3.0  # the epoch in progress ends, if it can by then
FLUSH_SECONDS = 3.0  # epochs and endings that are outstanding are written
LAST_CHECKPOINT_SECONDS = 3.0  # the lanes are checkpointed
RELEASE_SECONDS = 1.0  # the trials are given back


class WorkerStopped(BaseException):
    """Raised inside an interruptible section when the worker was asked to stop. Not an error."""


class SignalSafeEvent(threading.Event):
    """An event that a signal handler may set while its own thread waits for it.

    threading.Event holds a lock during some instructions of `wait`; a handler that runs there and calls `set` would
    wait for that lock for ever. SimpleQueue.put is documented to be reentrant.
    """

    def __init__(self) -> None:
        super().__init__()
        self._told: queue.SimpleQueue[None] = queue.SimpleQueue()
        self._is_set = False

    def set(self) -> None:
        self._is_set = True
        self._told.put(None)

    def is_set(self) -> bool:
        return self._is_set

    def clear(self) -> None:
        raise NotImplementedError("a request to stop is not taken back")

    def wait(self, timeout: float | None = None) -> bool:
        """Wait for at most `timeout` seconds, and return whether the event is set."""
        if not self._is_set:
            with contextlib.suppress(queue.Empty):
                self._told.get(timeout=None if timeout is None else max(0.0, timeout))
                self._told.put(None)  # for other waiting threads
        return self._is_set


def on_end(handler: Callable[[int, FrameType | None], object]) -> None:
    """Install a handler for SIGTERM and SIGHUP; signals that nohup ignores stay ignored. Main thread only."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, handler)


class StopSignal:
    """Remembers that this process was asked to stop.

    Args:
        parent_pid: also stop when this is no longer the parent process (a local worker's supervisor died).
    """

    def __init__(self, *, parent_pid: int | None = None) -> None:
        self._event = SignalSafeEvent()
        self._is_signalled = False  # counts signals only, not `set` or the parent's end
        self._parent_pid = parent_pid
        self._is_interruptible = False
        self._is_alarm_set = False
        self._ends_at = 0.0  # when the interruptible section should be over, in time.monotonic()

    def install(self) -> StopSignal:
        """Handle SIGTERM, SIGINT, and SIGHUP unless nohup ignores it. Main thread only."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._handle)
        if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
            signal.signal(signal.SIGHUP, self._handle)
        signal.signal(signal.SIGALRM, self._interrupt)
        return self

    @property
    def event(self) -> threading.Event:
        """Set once this process was asked to stop; for code that waits for something else as well."""
        return self._event

    def set(self) -> None:
        self._event.set()

    def is_set(self) -> bool:
        """Whether a stop was requested, or the parent process has ended."""
        if self._parent_pid is not None and os.getppid() != self._parent_pid:
            self._event.set()
        return self._event.is_set()

    def wait(self, seconds: float) -> bool:
        """Sleep until `seconds` have passed or a stop was requested; return whether one was requested."""
        return self._event.wait(seconds) or self.is_set()

    @contextlib.contextmanager
    def interruptible(self, expected_seconds: float | None = None) -> Iterator[None]:
        """Inside the context, a signal raises WorkerStopped. For computation only: database work is not interrupted.

        Args:
            expected_seconds: how long the section should take; if it would end within EPOCH_GRACE_SECONDS, it may
                finish. None: the signal interrupts it at once.
        """
        self._ends_at = math.inf if expected_seconds is None else time.monotonic() + expected_seconds
        self._is_interruptible = True
        try:
            if self.is_set():
                raise WorkerStopped
            yield
        finally:
            self._is_interruptible = False
            if self._is_alarm_set:  # an alarm after Python has removed its handlers would kill the process at its end
                signal.setitimer(signal.ITIMER_REAL, 0.0)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self._is_signalled:
            if number == signal.SIGHUP:
                return  # a closed terminal may send several, and systemd sends one after its SIGTERM
            os._exit(128 + number)  # second signal: no clean-up, the leases expire
        self._is_signalled = True
        self._event.set()
        if not self._is_interruptible:
            return
        if self._ends_at - time.monotonic() > EPOCH_GRACE_SECONDS:
            raise WorkerStopped
        self._is_alarm_set = True
        signal.setitimer(signal.ITIMER_REAL, EPOCH_GRACE_SECONDS)

    def _interrupt(self, number: int, frame: FrameType | None) -> None:
        """Handle the alarm at the end of the grace period: interrupt the section if it is still running."""
        if self._is_interruptible:
            raise WorkerStopped


def end_with_parent(parent_pid: int) -> None:
    """Request SIGTERM at the end of the thread that started this process; exit now if the parent is already gone.

    A supervisor or Ray actor that is killed with SIGKILL cannot end its worker, which would keep its GPU until its next
    check between two epochs. Linux only: on other systems, only that check applies (StopSignal).
    """
    if sys.platform == "linux" and ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM) != 0:
        _log.warning("cannot request a signal for the end of the parent: %s", os.strerror(ctypes.get_errno()))
    if os.getppid() != parent_pid:  # it ended before the request
        raise SystemExit(0)
