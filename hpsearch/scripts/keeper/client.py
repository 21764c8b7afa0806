"""The worker's side of the keeper: starts the keeper process, sends it requests, and gives its events to the worker.

A thread reads the keeper's events. If the keeper dies, the same thread ends what it left, reports the trials that were
running as killed, and starts a new keeper.
"""

from __future__ import annotations

import collections
import contextlib
import marshal
import os
import queue
import secrets
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from hpsearch.scripts.keeper.dead_keeper import KEEPER_TOKEN, Leftovers
from hpsearch.scripts.keeper.processes import set_subreaper
from hpsearch.scripts.keeper.protocol import MESSAGE_BYTES, Message, decode, encode

DEFAULT_GRACE_SECONDS: Final = 5.0
_EXIT_SECONDS = 10.0  # that the keeper and its guardians may take beyond the grace of the scripts
_RELAUNCH_SECONDS = 1.0  # between two attempts to start a keeper, if the first one fails
_SHORTEST_LIFE_SECONDS = 0.5  # of a keeper that did not fail at once
# `-I -S`: neither the user's folder nor site-packages' start-up files. The package itself comes last in the path.
_PROGRAM: Final = "import sys; sys.path.append(sys.argv[1]); from hpsearch.scripts.keeper.service import main; main()"
_ROOT: Final = str(Path(__file__).parents[3])


@dataclass(frozen=True, kw_only=True)
class StartRequest:
    """One script to start.

    Args:
        key: names the script in events and in `Keeper.end`; not that of a script that is still running.
        argv: a program without a slash is searched on the PATH of `environment`.
        environment: the whole environment of the script; the keeper's token is added to it.
        folder: the current folder of the script.
        output: descriptor for its standard output and standard error. `Keeper.start` duplicates it; the caller closes
            its own.
        extra: descriptor that the script inherits as number 3. None: it inherits only 0, 1 and 2.
        grace_seconds: between SIGTERM and SIGKILL, unless `Keeper.end` gives another time.
    """

    key: int
    argv: Sequence[str]
    environment: Mapping[str, str]
    folder: str
    output: int
    extra: int | None = None
    grace_seconds: float = DEFAULT_GRACE_SECONDS


@dataclass(frozen=True, kw_only=True)
class Started:
    """The program of the script was executed."""

    key: int
    pid: int  # of its main process, which leads a session and a process group of its own


@dataclass(frozen=True, kw_only=True)
class NotStarted:
    """The program of the script could not be executed; there is no process of it."""

    key: int
    error_number: int  # an errno
    message: str


@dataclass(frozen=True, kw_only=True)
class Ended:
    """The main process has exited, and no descendant of it is left.

    The signal is SIGKILL for a script whose guardian or keeper was killed; this may come without `Started`. If these
    were asked to end, and not by this worker, an exit code counts as SIGTERM: the script has exited because of that.
    """

    key: int
    exit_code: int | None  # None: ended by a signal
    signal: int | None


@dataclass(frozen=True, kw_only=True)
class KeeperLost:
    """The keeper process died. `Ended` follows for each script that was running; a new keeper is started."""


Event = Started | NotStarted | Ended | KeeperLost


class Keeper:
    """A running keeper process.

    Start it before the worker loads anything heavy. `start` and `end` may be called by any thread, `poll` by one.

    Args:
        is_own_child: whether the worker itself has started this child. After the death of a keeper, children for which
            it returns False are ended, too. None: only children that carry the keeper's mark are ended, see Leftovers.
    """

    def __init__(self, *, is_own_child: Callable[[int], bool] | None = None) -> None:
        self._is_own_child = is_own_child
        self._token = secrets.token_hex(16)
        self._was_subreaper = set_subreaper(True)
        self._lock = threading.Lock()  # of all below
        self._is_up = False
        self._is_closing = False
        self._closing = threading.Event()  # the same, for a thread that waits
        self._running: dict[int, float] = {}  # grace seconds by key
        self._pids: dict[int, int] = {}  # of main processes, by key
        self._waiting: collections.deque[_Request] = collections.deque()  # until a new keeper is up
        self._events: queue.SimpleQueue[Event] = queue.SimpleQueue()
        self._event_descriptor = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._longest_grace = DEFAULT_GRACE_SECONDS
        self._launch()
        self._thread = threading.Thread(target=self._serve, name="keeper", daemon=True)
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def pid(self) -> int:
        """Of the current keeper process."""
        return self._process.pid

    def start(self, request: StartRequest) -> None:
        """Ask for a script to be started; `Started` or `NotStarted` tells how that went.

        Raises:
            ValueError: the request cannot be a program's: no arguments, a null byte, "=" in a variable's name.
        """
        body = os.memfd_create("start", os.MFD_CLOEXEC)
        try:
            os.pwrite(body, _encode_script(request, self._token), 0)
            descriptors = [body, request.output, *([] if request.extra is None else [request.extra])]
            data = encode(Message.START, request.key, float(request.grace_seconds), len(descriptors))
            with self._lock:
                self._longest_grace = max(self._longest_grace, request.grace_seconds)
                self._send(_Request(request.key, data, descriptors, request.grace_seconds))
        finally:
            os.close(body)

    def end(self, key: int, grace_seconds: float | None = None) -> None:
        """Ask for the end of a script: SIGTERM to all its processes, and SIGKILL after the grace.

        A second call may only shorten the grace. Does nothing for a script that has ended.

        Args:
            grace_seconds: None: that of its start request.
        """
        grace_seconds = None if grace_seconds is None else float(grace_seconds)
        with self._lock:
            self._longest_grace = max(self._longest_grace, grace_seconds or 0.0)
            self._send(_Request(key, encode(Message.END, key, grace_seconds), []))

    def fileno(self) -> int:
        """A descriptor that is readable while `poll` has events."""
        return self._event_descriptor

    def poll(self, timeout: float | None = 0.0) -> list[Event]:
        """Wait up to `timeout` seconds for an event (None: without limit), and return all that are there."""
        select.select([self._event_descriptor], [], [], timeout)
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self._event_descriptor)
        found: list[Event] = []
        with contextlib.suppress(queue.Empty):
            while True:
                found.append(self._events.get_nowait())
        return found

    def close(self) -> None:
        """End all scripts and the keeper. Takes up to the longest grace; calling it twice is safe."""
        with self._lock:
            if self._is_closing:
                return
            self._is_closing = True
            self._closing.set()
            with contextlib.suppress(OSError):
                self._socket.shutdown(socket.SHUT_WR)  # the keeper reads an end of file; its events still arrive
        self._thread.join(self._longest_grace + _EXIT_SECONDS)
        if self._thread.is_alive():
            self._process.kill()
            self._thread.join(self._longest_grace + 2 * _EXIT_SECONDS)
        for request in self._waiting:
            request.close()
        os.close(self._event_descriptor)
        set_subreaper(self._was_subreaper)

    def _launch(self) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        # Not the worker's environment: scripts can read that of their guardian.
        environment = {name: os.environ[name] for name in ("LD_LIBRARY_PATH",) if name in os.environ}
        with theirs:
            try:
                self._process = subprocess.Popen(
                    [sys.executable, "-I", "-S", "-c", _PROGRAM, _ROOT, str(theirs.fileno())],
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    env={**environment, KEEPER_TOKEN: self._token},
                    pass_fds=[theirs.fileno()],
                    start_new_session=True,  # Ctrl-C in a terminal does not reach it
                )
            except BaseException:
                ours.close()
                raise
        self._socket = ours
        self._launched_at = time.monotonic()
        self._is_up = True

    def _send(self, request: _Request) -> None:
        """Send a request, or keep it for the next keeper. Under the lock."""
        if self._is_closing:
            return
        try:
            if not self._is_up:
                raise BrokenPipeError
            socket.send_fds(self._socket, [request.data], request.descriptors)
        except (BrokenPipeError, ConnectionError):
            self._waiting.append(request.duplicate())
            return
        if request.grace_seconds is not None:
            self._running[request.key] = request.grace_seconds

    def _serve(self) -> None:
        """Read events until the keeper is closed; replace a keeper that dies. The body of the thread."""
        while True:
            self._read_events()
            with self._lock:
                self._is_up = False
                lost, sessions = self._running, set(self._pids.values())
                self._running, self._pids = {}, {}
                is_lost = not self._is_closing
            if is_lost:
                self._put(KeeperLost())
            # Not reaped yet: its guardians are recognised by the number of its session.
            os.waitid(os.P_PID, self._process.pid, os.WEXITED | os.WNOWAIT)
            guardian_seconds = max(lost.values(), default=0.0) + _EXIT_SECONDS
            Leftovers(self._process.pid, sessions, self._token, self._is_own_child).end(guardian_seconds)
            self._process.wait()
            self._socket.close()
            for key in lost:
                self._put(Ended(key=key, exit_code=None, signal=signal.SIGKILL.value))
            if is_lost and time.monotonic() - self._launched_at < _SHORTEST_LIFE_SECONDS:
                self._closing.wait(_RELAUNCH_SECONDS)  # the next one may fail at once, too
            if not self._relaunch():
                return

    def _relaunch(self) -> bool:
        """Start a new keeper and send what waits for it. False: the keeper was closed."""
        while True:
            with self._lock:
                if self._is_closing:
                    return False
                with contextlib.suppress(OSError):  # no memory or no process number: try again
                    self._launch()
                    waiting, self._waiting = self._waiting, collections.deque()
                    for request in waiting:
                        self._send(request)
                        request.close()
                    return True
            self._closing.wait(_RELAUNCH_SECONDS)

    def _read_events(self) -> None:
        with contextlib.suppress(ConnectionError):
            while data := self._socket.recv(MESSAGE_BYTES):
                self._put(self._take(*decode(data)))

    def _take(self, message: Message, values: tuple[Any, ...]) -> Event:
        with self._lock:
            if message is Message.STARTED:
                event = Started(key=values[0], pid=values[1])
                self._pids[event.key] = event.pid
                return event
            self._running.pop(values[0], None)
            self._pids.pop(values[0], None)
        if message is Message.NOT_STARTED:
            return NotStarted(key=values[0], error_number=values[1], message=values[2])
        return Ended(key=values[0], exit_code=values[1], signal=values[2])

    def _put(self, event: Event) -> None:
        self._events.put(event)
        os.eventfd_write(self._event_descriptor, 1)


class _Request:
    """A message to the keeper with its descriptors.

    Args:
        grace_seconds: of a request to start; None: a request to end.
    """

    def __init__(self, key: int, data: bytes, descriptors: Sequence[int], grace_seconds: float | None = None) -> None:
        self.key = key
        self.data = data
        self.descriptors = descriptors
        self.grace_seconds = grace_seconds

    def duplicate(self) -> _Request:
        """The same with descriptors of its own, which `close` closes."""
        return _Request(self.key, self.data, [os.dup(one) for one in self.descriptors], self.grace_seconds)

    def close(self) -> None:
        for descriptor in self.descriptors:
            os.close(descriptor)


def _encode_script(request: StartRequest, token: str) -> bytes:
    environment = {
        os.fsencode(name): os.fsencode(value) for name, value in {**request.environment, KEEPER_TOKEN: token}.items()
    }
    arguments = tuple(os.fsencode(argument) for argument in request.argv)
    folder = os.fsencode(request.folder)
    if not arguments or not arguments[0]:
        raise ValueError("a script needs a program")
    if any(b"\0" in text for text in (*arguments, *environment, *environment.values(), folder)):
        raise ValueError("a null byte in an argument, a variable or the folder of a script")
    if any(b"=" in name or not name for name in environment):
        raise ValueError("the name of a variable is empty or contains '='")
    return marshal.dumps((arguments, environment, folder))
