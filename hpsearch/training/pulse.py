"""How far a device has come within an epoch, for a thread that watches the one that trains."""

from __future__ import annotations

from collections import deque
from typing import Protocol, final

import torch


class Mark(Protocol):
    """A place in the device's queue of work; `torch.cuda.Event`."""

    def query(self) -> bool:
        """Whether the device has come by it."""


@final
class Pulse:
    """Counts the stretches of work that a device has finished. One thread beats, another one counts.

    On a CPU work is done when its call returns. A GPU is given work ahead of time: a mark goes into its queue with each
    beat, and counts once the device has come by it. Nothing waits.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._marks: deque[Mark] = deque()
        self._num_done = 0

    def beat(self) -> None:
        """A minibatch, or another stretch of seconds at most, has been handed to the device; ignored in a capture."""
        if self._device.type != "cuda":
            self._num_done += 1
        elif not torch.cuda.is_current_stream_capturing():
            self._marks.append(torch.cuda.current_stream(self._device).record_event())

    def count(self) -> int:
        """How many stretches are finished."""
        while self._marks and self._marks[0].query():
            self._marks.popleft()
            self._num_done += 1
        return self._num_done
