"""The keeper process itself: its loop between the worker and the guardians. `main` is all that it runs."""

from __future__ import annotations

import collections
import contextlib
import errno
import gc
import os
import select
import signal
import socket
import sys
from collections.abc import Sequence
from typing import Any

from hpsearch.scripts.keeper.guardian import guard
from hpsearch.scripts.keeper.processes import kill_child, read_children, set_subreaper
from hpsearch.scripts.keeper.protocol import MAX_DESCRIPTORS, MESSAGE_BYTES, Message, decode, encode
from hpsearch.scripts.keeper.signals import Signals


def main() -> None:
    """Serve the worker at the other end of the descriptor in the last argument."""
    worker = socket.socket(fileno=int(sys.argv[-1]))
    worker.setblocking(False)
    set_subreaper(True)
    process = KeeperProcess(worker)
    gc.freeze()  # forks share the pages of what exists by now
    process.run()


class KeeperProcess:
    """The keeper's own loop. It reads no output and waits for no script, so no script can block it."""

    def __init__(self, worker: socket.socket) -> None:
        self._worker = worker
        self._trials: dict[int, _Trial] = {}  # by the id of the guardian
        self._channels: dict[int, _Trial] = {}  # by descriptor
        self._lost: list[int] = []  # keys whose guardian was killed and whose processes may still be there
        self._unsent: collections.deque[bytes] = collections.deque()
        self._is_ending = False
        self._signals = Signals()
        self._poll = select.poll()
        self._poll.register(self._signals.descriptor, select.POLLIN)
        self._poll.register(worker, select.POLLIN)
        self._worker_pidfd = -1
        with contextlib.suppress(OSError):
            # Children that the worker forked without execve hold its end of the socket, too.
            self._worker_pidfd = os.pidfd_open(os.getppid())
            self._poll.register(self._worker_pidfd, select.POLLIN)

    def run(self) -> None:
        """Serve until the worker is gone or SIGTERM comes, and everything has ended."""
        while not self._is_ending or self._trials or self._lost:
            ready = [descriptor for descriptor, _ in self._poll.poll(self._timeout())]
            self._signals.clear()
            for descriptor in ready:
                if descriptor in self._channels:
                    self._read_guardian(self._channels[descriptor])
            if self._worker.fileno() in ready and not self._is_ending:
                self._read_worker()
            if self._signals.is_asked_to_end or self._worker_pidfd in ready:
                self._end_all()
            self._reap()
            self._kill_strangers()
            self._flush()
        self._worker.settimeout(1.0)
        with contextlib.suppress(OSError):
            while self._unsent:
                self._worker.send(self._unsent.popleft())

    def _timeout(self) -> float | None:
        """Milliseconds that poll may wait."""
        if self._lost:
            return 10
        return 50 if self._unsent else None

    def _read_worker(self) -> None:
        """Take one message; poll reports the next one again."""
        try:
            data, ancillary, _, _ = self._worker.recvmsg(
                MESSAGE_BYTES,
                socket.CMSG_SPACE(4 * MAX_DESCRIPTORS),
                socket.MSG_CMSG_CLOEXEC,
            )
        except BlockingIOError:
            return
        except OSError:
            data, ancillary = b"", []
        descriptors = _read_descriptors(ancillary)
        if not data:
            self._end_all()
            return
        message, values = decode(data)
        if message is Message.START:
            self._start(descriptors, *values)
        else:
            for trial in self._trials.values():
                if trial.key == values[0]:
                    self._end(trial, Message.END, values[1])

    def _start(self, descriptors: Sequence[int], key: int, grace_seconds: float, num_descriptors: int) -> None:
        try:
            if len(descriptors) != num_descriptors:  # the kernel drops those that exceed the limit
                raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
            self._fork_guardian(key, grace_seconds, descriptors)
        except OSError as error:
            self._tell(encode(Message.NOT_STARTED, key, error.errno, error.strerror))
        finally:
            for descriptor in descriptors:
                os.close(descriptor)

    def _fork_guardian(self, key: int, grace_seconds: float, descriptors: Sequence[int]) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with ours, theirs:
            ours.setblocking(False)
            theirs.setblocking(False)
            pid = os.fork()
            if pid == 0:
                guard(key, theirs.fileno(), grace_seconds, descriptors)
            trial = _Trial(key, pid, ours.detach())
        self._trials[pid] = self._channels[trial.channel] = trial
        self._poll.register(trial.channel, select.POLLIN)

    def _end(self, trial: _Trial, message: Message, *values: Any) -> None:
        with contextlib.suppress(OSError):  # it has just exited
            os.write(trial.channel, encode(message, trial.key, *values))
        os.kill(trial.guardian, signal.SIGCONT)  # not reaped: it is ours

    def _end_all(self) -> None:
        if self._is_ending:
            return
        self._is_ending = True
        # Both would wake up poll again and again.
        self._poll.unregister(self._worker)
        if self._worker_pidfd >= 0:
            self._poll.unregister(self._worker_pidfd)
        for trial in self._trials.values():
            self._end(trial, Message.CUT_OFF)

    def _read_guardian(self, trial: _Trial) -> None:
        with contextlib.suppress(OSError):
            while data := os.read(trial.channel, MESSAGE_BYTES):
                if decode(data)[0] is Message.STARTED:
                    self._tell(data)
                else:
                    trial.last_message = data
            # End of file; its exit is reported by SIGCHLD.
            if self._channels.pop(trial.channel, None) is not None:
                self._poll.unregister(trial.channel)

    def _reap(self) -> None:
        with contextlib.suppress(ChildProcessError):
            while (pid := os.waitpid(-1, os.WNOHANG)[0]) != 0:
                if pid in self._trials:
                    self._close_trial(self._trials.pop(pid))

    def _close_trial(self, trial: _Trial) -> None:
        """Report the end of a trial whose guardian was reaped."""
        self._read_guardian(trial)
        os.close(trial.channel)
        if trial.last_message is not None:
            self._tell(trial.last_message)
        else:  # it was killed
            self._lost.append(trial.key)

    def _kill_strangers(self) -> None:
        """Kill what killed guardians have left: all children that are no guardians."""
        if not self._lost:
            return
        if strangers := [pid for pid in read_children() if pid not in self._trials]:
            for pid in strangers:
                kill_child(pid)
            return
        for key in self._lost:
            self._tell(encode(Message.ENDED, key, None, signal.SIGKILL.value))
        self._lost.clear()

    def _tell(self, data: bytes) -> None:
        self._unsent.append(data)

    def _flush(self) -> None:
        """Send what the worker can take now."""
        while self._unsent:
            try:
                self._worker.send(self._unsent[0])
            except BlockingIOError:
                return
            except OSError:  # the worker is gone
                self._unsent.clear()
                return
            self._unsent.popleft()


class _Trial:
    """A script as the keeper sees it: its guardian, and the last message of that."""

    def __init__(self, key: int, guardian: int, channel: int) -> None:
        self.key = key
        self.guardian = guardian
        self.channel = channel
        self.last_message: bytes | None = None


def _read_descriptors(ancillary: Sequence[tuple[int, int, bytes]]) -> list[int]:
    found: list[int] = []
    for level, kind, data in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            found += memoryview(data[: len(data) // 4 * 4]).cast("i")
    return found
