"""The guardian of one script: the process that starts it and ends everything that descends from it."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import sys
import time
from collections.abc import Sequence
from typing import Any, NoReturn

from hpsearch.scripts.keeper.processes import (
    kill_child,
    read_children,
    read_descendants,
    reap,
    set_parent_death_signal,
    set_subreaper,
    signal_descendant,
)
from hpsearch.scripts.keeper.protocol import MESSAGE_BYTES, Message, decode, encode
from hpsearch.scripts.keeper.script_start import read_body, start_script
from hpsearch.scripts.keeper.signals import Signals

_FAST_ROUNDS = 20  # of killing children before the next look at the whole of /proc
_RETRY_SECONDS = (0.002, 0.5)  # between rounds of killing, if no child exits: the first pause and the longest one


def guard(key: int, channel: int, grace_seconds: float, descriptors: Sequence[int]) -> NoReturn:
    """What a guardian does after the fork."""
    try:
        keep = {0, 1, 2, channel, *descriptors}
        for name in os.listdir("/proc/self/fd"):  # noqa: PTH208
            if int(name) not in keep:
                with contextlib.suppress(OSError):  # the list's own descriptor is closed already
                    os.close(int(name))
        body, output, *extra = descriptors
        Guardian(key, channel, grace_seconds).run(body, output, extra[0] if extra else None)
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        os._exit(0)


class Guardian:
    """The process between the keeper and one script. It exits when nothing is left of the script.

    Args:
        channel: to the keeper, non-blocking.
        grace_seconds: between SIGTERM and SIGKILL, unless the keeper asks for another time.
    """

    def __init__(self, key: int, channel: int, grace_seconds: float) -> None:
        self._key = key
        self._channel = channel
        self._grace_seconds = grace_seconds
        self._signals = Signals()
        self._poll = select.poll()
        self._poll.register(channel, select.POLLIN)
        self._poll.register(self._signals.descriptor, select.POLLIN)
        self._kills_at: float | None = None  # time.monotonic(); None: nothing is being ended
        self._pause = _RETRY_SECONDS[0]
        self._is_cut_off = False  # ended without its worker's request: what it does after the signal is no result

    def run(self, body: int, output: int, extra: int | None) -> None:
        """Start the script that the memory file `body` describes, and stay until all of it is gone."""
        set_subreaper(True)
        set_parent_death_signal(signal.SIGCONT)  # a stopped guardian would not see the end of file
        try:
            main = start_script(read_body(body), output, extra)
        except OSError as error:
            self._send(Message.NOT_STARTED, error.errno or 0, error.strerror or str(error))
            return
        for descriptor in (body, output, extra):
            if descriptor is not None:
                os.close(descriptor)  # whoever reads the output sees its end when the script's processes are gone
        self._send(Message.STARTED, main)
        while (result := self._take_result(main)) is None:
            self._poll.poll(self._timeout())
            self._signals.clear()
            self._read_channel(main)
            if self._signals.is_asked_to_end:
                self._cut_off(main)
        code = os.waitstatus_to_exitcode(result)
        if self._is_cut_off and code >= 0:
            code = -signal.SIGTERM
        self._send(Message.ENDED, *((None, int(-code)) if code < 0 else (code, None)))

    def _take_result(self, main: int) -> int | None:
        """Reap, and kill if it is time to; returns the status of the main process once nothing else is left."""
        # First the main process, then the list: its children are ours before its exit can be seen.
        has_exited = os.waitid(os.P_PID, main, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
        others = reap(except_for=main)
        if has_exited and others:
            self._end(None)
        if self._kills_at is not None and time.monotonic() >= self._kills_at:
            others = self._kill(main)
            has_exited = os.waitid(os.P_PID, main, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
            others = others or reap(except_for=main)
        if has_exited and not others:
            return os.waitpid(main, 0)[1]
        return None

    def _kill(self, main: int) -> list[int]:
        """One round of SIGKILL to everything; returns the children that are left besides the main process.

        The main process is not reaped: as a zombie it protects the number of its process group.
        """
        others: list[int] = []
        for _ in range(_FAST_ROUNDS):
            for pid in read_children():
                kill_child(pid)
            if not (others := reap(except_for=main)):
                return others
        for pid in read_descendants():
            signal_descendant(pid, signal.SIGKILL)
        return others

    def _timeout(self) -> float | None:
        """Milliseconds that poll may wait."""
        if self._kills_at is None:
            return None
        if (seconds := self._kills_at - time.monotonic()) > 0:
            return seconds * 1000
        self._pause = min(2 * self._pause, _RETRY_SECONDS[1])
        return self._pause * 1000

    def _cut_off(self, main: int) -> None:
        """End the script because this process or the keeper ends."""
        if self._kills_at is None and os.waitid(os.P_PID, main, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
            self._is_cut_off = True
        self._end(None)

    def _read_channel(self, main: int) -> None:
        try:
            data = os.read(self._channel, MESSAGE_BYTES)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._poll_no_more()
        message, values = decode(data) if data else (Message.CUT_OFF, ())
        if message is Message.CUT_OFF:
            self._cut_off(main)
        else:
            self._end(values[1])

    def _poll_no_more(self) -> None:
        """The keeper is gone: its end of file would wake up poll again and again."""
        with contextlib.suppress(KeyError):
            self._poll.unregister(self._channel)

    def _end(self, grace_seconds: float | None) -> None:
        """Send SIGTERM to all, once. A second call may only bring SIGKILL forward."""
        if grace_seconds is None:
            grace_seconds = self._grace_seconds
            if self._kills_at is not None:
                return
        kills_at = time.monotonic() + grace_seconds
        if self._kills_at is None and grace_seconds > 0:
            for pid in read_descendants():
                signal_descendant(pid, signal.SIGTERM, signal.SIGCONT)  # a stopped process gets its grace, too
        self._kills_at = kills_at if self._kills_at is None else min(self._kills_at, kills_at)

    def _send(self, message: Message, *values: Any) -> None:
        with contextlib.suppress(OSError):  # the keeper is gone
            os.write(self._channel, encode(message, self._key, *values))
