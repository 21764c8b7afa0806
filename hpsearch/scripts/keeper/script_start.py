"""Start a script: the steps between the fork of a guardian and the program of the script."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import marshal
import os
import signal
from collections.abc import Mapping
from typing import NamedTuple, NoReturn

from hpsearch.scripts.keeper.processes import set_parent_death_signal

_FIRST_PRIVATE_DESCRIPTOR = 10  # above every number that a script inherits


class Script(NamedTuple):
    """The long part of a start request. The fields of os.execve, as bytes."""

    arguments: tuple[bytes, ...]
    environment: Mapping[bytes, bytes]
    folder: bytes


def read_body(descriptor: int) -> Script:
    return Script(*marshal.loads(os.pread(descriptor, os.fstat(descriptor).st_size, 0)))


def start_script(script: Script, output: int, extra: int | None) -> int:
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


def _become_script(script: Script, output: int, extra: int | None, writer: int, guardian: int) -> NoReturn:
    """Everything between fork and execve. All other descriptors close by themselves."""
    try:
        os.setsid()
        signal.set_wakeup_fd(-1)
        for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
            signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        set_parent_death_signal(signal.SIGKILL)
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


def _execute(script: Script) -> NoReturn:
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
