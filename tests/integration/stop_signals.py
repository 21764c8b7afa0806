"""Stop signals that interrupt a worker at a chosen moment."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

from hpsearch.signals import StopSignal


class BeforeEpoch(StopSignal):
    """Does something right before the worker's epoch of this number (from 1): stops the worker, if not told what."""

    def __init__(self, epoch: int, action: Callable[[], Any] | None = None) -> None:
        super().__init__()
        self._epochs_to_go = epoch
        self._action = action or self.set

    @contextlib.contextmanager
    def interruptible(self, expected_seconds: float | None = None) -> Iterator[None]:
        self._epochs_to_go -= 1
        if self._epochs_to_go == 0:
            self._action()
        with super().interruptible(expected_seconds):
            yield
