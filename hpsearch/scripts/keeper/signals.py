"""How the keeper and the guardians take the signals that are sent to them."""

from __future__ import annotations

import contextlib
import os
import signal

from hpsearch.scripts.keeper.protocol import MESSAGE_BYTES


class Signals:
    """Makes SIGCHLD and SIGTERM visible to poll. SIGINT and SIGHUP are ignored."""

    def __init__(self) -> None:
        self.is_asked_to_end = False
        self.descriptor, writer = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda number, frame: None)  # a handler, so that it is written to the pipe
        signal.signal(signal.SIGTERM, self._ask)
        for number in (signal.SIGINT, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)

    def clear(self) -> None:
        with contextlib.suppress(BlockingIOError):
            os.read(self.descriptor, MESSAGE_BYTES)

    def _ask(self, number: int, frame: object) -> None:
        self.is_asked_to_end = True
