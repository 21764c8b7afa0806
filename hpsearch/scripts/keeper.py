"""The keeper: a small program that starts the scripts of one worker and ends everything that descends from them.

The worker starts this file before it loads anything heavy, as `python -I -S keeper.py FD`, with one end of a
SOCK_SEQPACKET pair; hpsearch.scripts.keeper_client holds the other end. The file imports nothing of hpsearch.

    worker --- keeper --- guardian --- script --- its descendants
                     \\--- guardian --- script --- ...

Each script has a guardian, a fork of the keeper that is a child subreaper (PR_SET_CHILD_SUBREAPER in prctl(2)):
whatever descends from the script becomes a child of its guardian when its own parent exits, even after setsid, nohup
or a double fork. A guardian ends its processes when the script's main process exits, when the keeper asks for it, and
when the keeper is gone, which it sees as the end of file on its channel. There is no race in that: only the keeper
holds the other end. The keeper ends everything when its worker is gone. Each level above is a subreaper, too, and
kills what a killed level below has left.

Signals go only to children that have not been reaped, to the process groups of such children, and through pidfds, so
a process id that was reused is never hit.
"""

from __future__ import annotations

import collections
import contextlib
import ctypes
import enum
import errno
import fcntl
import gc
import marshal
import os
import select
import signal
import socket
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple, NoReturn

MESSAGE_BYTES = 65_536  # no message is longer; a start request keeps its long part in a memory file
MAX_DESCRIPTORS = 3  # of one start request: the memory file, the output, the extra one
_PR_SET_PDEATHSIG = 1  # linux/prctl.h
_PR_SET_CHILD_SUBREAPER = 36
_PR_GET_CHILD_SUBREAPER = 37
_FIRST_PRIVATE_DESCRIPTOR = 10  # above every number that a script inherits
_FAST_ROUNDS = 20  # of killing children before the next look at the whole of /proc
_RETRY_SECONDS = (0.002, 0.5)  # between rounds of killing, if no child exits: the first pause and the longest one

_HAS_CHILDREN_FILES = os.path.exists("/proc/thread-self/children")  # noqa: PTH110  # CONFIG_PROC_CHILDREN

_libc = ctypes.CDLL(None, use_errno=True)


class Message(enum.Enum):
    """What a message is about; its other values follow in this order."""

    START = 1  # key, grace seconds; the descriptors come with it
    END = 2  # key, grace seconds; None: those of the start request
    STARTED = 3  # key, pid
    NOT_STARTED = 4  # key, errno, text
    ENDED = 5  # key, exit code or None, signal or None
    CUT_OFF = 6  # key: the keeper itself ends


def encode(message: Message, *values: Any) -> bytes:
    """One message. marshal has no import cost, and both ends run the same interpreter."""
    return marshal.dumps((message.value, *values))


def decode(data: bytes) -> tuple[Message, tuple[Any, ...]]:
    number, *values = marshal.loads(data)
    return Message(number), tuple(values)


class Process(NamedTuple):
    """One process of the machine, possibly a zombie."""

    pid: int
    parent: int
    session: int


def set_subreaper(is_subreaper: bool) -> bool:
    """Make this process the parent of its orphaned descendants, or not; returns what it was before."""
    was = ctypes.c_int()
    _libc.prctl(_PR_GET_CHILD_SUBREAPER, ctypes.byref(was), 0, 0, 0)
    if _libc.prctl(_PR_SET_CHILD_SUBREAPER, int(is_subreaper), 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "cannot become a child subreaper")
    return bool(was.value)


def read_process(pid: int) -> Process | None:
    """None: there is no such process."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:  # noqa: PTH123  # pathlib takes 10 ms to import
            data = file.read()
    except (FileNotFoundError, ProcessLookupError):
        return None
    fields = data[data.rindex(b")") + 2 :].split()  # the name before it may contain anything
    return Process(pid, int(fields[1]), int(fields[3]))


def read_processes() -> Iterator[Process]:
    """All processes. The children of the caller are complete: they stay, as zombies, until the caller reaps them."""
    for name in os.listdir("/proc"):  # noqa: PTH208
        if name.isdecimal() and (process := read_process(int(name))) is not None:
            yield process


def read_children(parent: int | None = None) -> list[int]:
    """The children of a process, this one by default; zombies included.

    Complete for the caller: its children stay until it reaps them. Those of other processes come and go meanwhile.
    """
    parent = os.getpid() if parent is None else parent
    found: list[int] = []
    try:
        for thread in os.listdir(f"/proc/{parent}/task"):  # noqa: PTH208
            with open(f"/proc/{parent}/task/{thread}/children", "rb") as file:  # noqa: PTH123
                found += map(int, file.read().split())
    except ProcessLookupError:
        return found
    except FileNotFoundError:
        if read_process(parent) is None or _HAS_CHILDREN_FILES:
            return found
        return [process.pid for process in read_processes() if process.parent == parent]
    return found


def read_descendants() -> list[int]:
    """All that descends from this process, parents first."""
    found = read_children()
    for pid in found:  # grows meanwhile
        found += read_children(pid)
    return found


def _descends_from_here(pid: int) -> bool:
    own = os.getpid()
    while (process := read_process(pid)) is not None:
        if process.parent == own:
            return True
        pid = process.parent
    return False


def _signal_descendant(pid: int, *numbers: int) -> None:
    """Send signals to a process if it still descends from this one."""
    with contextlib.suppress(OSError):  # it is gone, belongs to another user, or the kernel has no pidfds
        descriptor = os.pidfd_open(pid)
        try:
            # The look comes after the descriptor: if the id was reused in between, the descriptor is that of a
            # dead process, and no signal arrives.
            if _descends_from_here(pid):
                for number in numbers:
                    signal.pidfd_send_signal(descriptor, number)
        finally:
            os.close(descriptor)


def _kill_child(pid: int) -> None:
    """SIGKILL to a child that was not reaped, and to its process group.

    The kernel kills a group atomically, which ends processes that fork and exit faster than they can be listed. The
    child keeps the number of its group from being reused, even as a zombie.
    """
    with contextlib.suppress(OSError):
        group = os.getpgid(pid)
        if group != os.getpgrp():
            os.killpg(group, signal.SIGKILL)
    with contextlib.suppress(OSError):
        os.kill(pid, signal.SIGKILL)


class _Signals:
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
        self._signals = _Signals()
        self._poll = select.poll()
        self._poll.register(channel, select.POLLIN)
        self._poll.register(self._signals.descriptor, select.POLLIN)
        self._kills_at: float | None = None  # time.monotonic(); None: nothing is being ended
        self._pause = _RETRY_SECONDS[0]
        self._is_cut_off = False  # ended without its worker's request: what it does after the signal is no result

    def run(self, body: int, output: int, extra: int | None) -> None:
        """Start the script that the memory file `body` describes, and stay until all of it is gone."""
        set_subreaper(True)
        _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGCONT, 0, 0, 0)  # a stopped guardian would not see the end of file
        try:
            main = _start_script(_read_body(body), output, extra)
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
        others = _reap(except_for=main)
        if has_exited and others:
            self._end(None)
        if self._kills_at is not None and time.monotonic() >= self._kills_at:
            others = self._kill(main)
            has_exited = os.waitid(os.P_PID, main, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
            others = others or _reap(except_for=main)
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
                _kill_child(pid)
            if not (others := _reap(except_for=main)):
                return others
        for pid in read_descendants():
            _signal_descendant(pid, signal.SIGKILL)
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
                _signal_descendant(pid, signal.SIGTERM, signal.SIGCONT)  # a stopped process gets its grace, too
        self._kills_at = kills_at if self._kills_at is None else min(self._kills_at, kills_at)

    def _send(self, message: Message, *values: Any) -> None:
        with contextlib.suppress(OSError):  # the keeper is gone
            os.write(self._channel, encode(message, self._key, *values))


def _reap(*, except_for: int) -> list[int]:
    """Reap the children that have exited; returns the others.

    A child that exits after the list was read leaves its own children to this process, so each reaped child asks for
    another look.
    """
    while True:
        children = [pid for pid in read_children() if pid != except_for]
        left = [pid for pid in children if os.waitpid(pid, os.WNOHANG)[0] == 0]
        if left == children:
            return left


class _Script(NamedTuple):
    """The long part of a start request. The fields of os.execve, as bytes."""

    arguments: tuple[bytes, ...]
    environment: Mapping[bytes, bytes]
    folder: bytes


def _read_body(descriptor: int) -> _Script:
    return _Script(*marshal.loads(os.pread(descriptor, os.fstat(descriptor).st_size, 0)))


def _start_script(script: _Script, output: int, extra: int | None) -> int:
    """Fork, and wait until the script's program has been executed.

    Returns:
        The id of its main process, which leads a session.
    Raises:
        OSError: the fork failed, or the child could not change its folder or execute the program.
    """
    reader, low_writer = os.pipe2(os.O_CLOEXEC)
    writer = fcntl.fcntl(low_writer, fcntl.F_DUPFD_CLOEXEC, _FIRST_PRIVATE_DESCRIPTOR)
    os.close(low_writer)
    guardian = os.getpid()
    pid = os.fork()
    if pid == 0:
        _become_script(script, output, extra, writer, guardian)
    os.close(writer)
    with open(reader, "rb") as file:  # noqa: PTH123
        report = file.read()  # empty when the program is executed, which closes the pipe
    if report:
        os.waitpid(pid, 0)
        number, text = marshal.loads(report)
        raise OSError(number, text)
    return pid


def _become_script(script: _Script, output: int, extra: int | None, writer: int, guardian: int) -> NoReturn:
    """Everything between fork and execve. All other descriptors close by themselves."""
    try:
        os.setsid()
        signal.set_wakeup_fd(-1)
        for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
            signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != guardian:  # it was killed before that request
            os._exit(255)
        os.dup2(os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC), 0)
        os.dup2(output, 1)
        os.dup2(output, 2)
        if extra is not None:
            os.dup2(extra, 3)
            os.set_inheritable(3, True)  # dup2 of 3 to 3 changes nothing
        _enter(script.folder)
        _execute(script)
    except OSError as error:
        os.write(writer, marshal.dumps((error.errno, error.strerror)))
    except BaseException as error:
        os.write(writer, marshal.dumps((errno.EINVAL, repr(error))))
    finally:
        os._exit(255)


def _enter(folder: bytes) -> None:
    try:
        os.chdir(folder)
    except OSError as error:
        raise OSError(error.errno, f"{error.strerror}: folder {os.fsdecode(folder)!r}") from None


def _execute(script: _Script) -> NoReturn:
    """Execute the program; like subprocess, a name without a slash is searched on the PATH of the script."""
    program = script.arguments[0]
    candidates = [program]
    if b"/" not in program:
        path = script.environment.get(b"PATH", os.fsencode(os.defpath))
        candidates = [os.path.join(folder, program) for folder in path.split(b":")]  # noqa: PTH118
    number, text = errno.ENOENT, f"{os.strerror(errno.ENOENT)}: {os.fsdecode(program)!r}"
    for candidate in candidates:
        try:
            os.execve(candidate, script.arguments, script.environment)
        except OSError as error:
            has_file = os.path.exists(candidate)  # noqa: PTH110
            if has_file or len(candidates) == 1 or error.errno not in (errno.ENOENT, errno.ENOTDIR):
                number = error.errno or errno.EINVAL
                text = f"{error.strerror}: {_describe(candidate, number)}"
    raise OSError(number, text)


def _describe(program: bytes, number: int) -> str:
    """The program, or the interpreter in its first line where that is what is missing."""
    name = repr(os.fsdecode(program))
    if number not in (errno.ENOENT, errno.ENOTDIR, errno.EACCES):
        return name
    with contextlib.suppress(OSError), open(program, "rb") as file:  # noqa: PTH123
        line = file.read(256).partition(b"\n")[0]
        if line.startswith(b"#!") and os.access(program, os.X_OK):
            return f"{os.fsdecode(line[2:].lstrip())!r}, the interpreter in the first line of {name}"
    return name


class _Trial:
    """A script as the keeper sees it: its guardian, and the last message of that."""

    def __init__(self, key: int, guardian: int, channel: int) -> None:
        self.key = key
        self.guardian = guardian
        self.channel = channel
        self.last_message: bytes | None = None


class KeeperProcess:
    """The keeper's own loop. It reads no output and waits for no script, so no script can block it."""

    def __init__(self, worker: socket.socket) -> None:
        self._worker = worker
        self._trials: dict[int, _Trial] = {}  # by the id of the guardian
        self._channels: dict[int, _Trial] = {}  # by descriptor
        self._lost: list[int] = []  # keys whose guardian was killed and whose processes may still be there
        self._unsent: collections.deque[bytes] = collections.deque()
        self._is_ending = False
        self._signals = _Signals()
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
                _guard(key, theirs.fileno(), grace_seconds, descriptors)
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
                _kill_child(pid)
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


def _read_descriptors(ancillary: Sequence[tuple[int, int, bytes]]) -> list[int]:
    found: list[int] = []
    for level, kind, data in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            found += memoryview(data[: len(data) // 4 * 4]).cast("i")
    return found


def _guard(key: int, channel: int, grace_seconds: float, descriptors: Sequence[int]) -> NoReturn:
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


def main() -> None:
    """Serve the worker at the other end of the descriptor in the first argument."""
    worker = socket.socket(fileno=int(sys.argv[1]))
    worker.setblocking(False)
    set_subreaper(True)
    process = KeeperProcess(worker)
    gc.freeze()  # forks share the pages of what exists by now
    process.run()


if __name__ == "__main__":
    main()
