"""Progress of a device within an epoch, for a thread that watches the training thread."""

from __future__ import annotations

from collections import deque
from typing import Protocol, final

import torch


class Mark(Protocol):
    """A position in the device's queue of work; `torch.cuda.Event` implements it."""

    def query(self) -> bool:
        """Whether the device has reached it."""


@final
class Pulse:
    """Counts the stretches of work that a device has finished. One thread calls `beat`, another one `count`.

    On a CPU work is finished when its call returns. Work for a GPU is queued ahead of time: each beat puts a mark into
    the queue, which counts once the device has reached it. Neither method waits for the device.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._marks: deque[Mark] = deque()
        self._num_done = 0

    def beat(self) -> None:
        """Record that a minibatch, or other work of at most a few seconds, was given to the device.

        Calls during a graph capture are ignored.
        """
        if self._device.type != "cuda":
            self._num_done += 1
        elif not torch.cuda.is_current_stream_capturing():
            self._marks.append(torch.cuda.current_stream(self._device).record_event())

    def count(self) -> int:
        """The number of finished stretches."""
        while self._marks and self._marks[0].query():
            self._marks.popleft()
            self._num_done += 1
        return self._num_done
