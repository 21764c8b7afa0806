"""The processes of the machine: their parents and children, who adopts them, and how they are killed and reaped."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
from collections.abc import Iterator
from typing import NamedTuple

_PR_SET_PDEATHSIG = 1  # linux/prctl.h
_PR_SET_CHILD_SUBREAPER = 36
_PR_GET_CHILD_SUBREAPER = 37

_HAS_CHILDREN_FILES = os.path.exists("/proc/thread-self/children")  # noqa: PTH110  # CONFIG_PROC_CHILDREN

_libc = ctypes.CDLL(None, use_errno=True)


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


def set_parent_death_signal(number: int) -> None:
    """Have this process receive a signal when its parent dies."""
    _libc.prctl(_PR_SET_PDEATHSIG, number, 0, 0, 0)


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


def signal_descendant(pid: int, *numbers: int) -> None:
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


def kill_child(pid: int) -> None:
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


def reap(*, except_for: int) -> list[int]:
    """Reap the children that have exited; returns the others.

    A child that exits after the list was read leaves its own children to this process, so each reaped child asks for
    another look.
    """
    while True:
        children = [pid for pid in read_children() if pid != except_for]
        left = [pid for pid in children if os.waitpid(pid, os.WNOHANG)[0] == 0]
        if left == children:
            return left


def _descends_from_here(pid: int) -> bool:
    own = os.getpid()
    while (process := read_process(pid)) is not None:
        if process.parent == own:
            return True
        pid = process.parent
    return False
