"""Locks on files (flock), which the kernel releases when their holders end, however they end.

A lock belongs to the open file: a process that inherits the descriptor holds the lock, too. Python closes our
descriptors in programs that it starts, unless `pass_fds` names them. A child of a plain fork would keep them open as
long as it lives: for example, a child that a user's network forked and that outlives this process would count as a
client of the server. Forked children therefore close them.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
from pathlib import Path

import psutil

# File systems of a single machine: every process that could hold a lock there is visible to this one.
LOCAL_FILE_SYSTEMS = frozenset(
    {"apfs", "bcachefs", "btrfs", "ext2", "ext3", "ext4", "f2fs", "hfs", "overlay", "tmpfs", "xfs", "zfs"}
)
_open_descriptors: set[int] = set()


def open_lock_file(path: Path) -> int:
    """Open the file for `try_lock`, and create it if missing. `close_lock_file` closes and unlocks it."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
    _open_descriptors.add(descriptor)
    return descriptor


def close_lock_file(descriptor: int) -> None:
    """Close the descriptor; the file stays locked while another process has inherited it."""
    _open_descriptors.discard(descriptor)
    os.close(descriptor)


def lock_shared(descriptor: int) -> None:
    """Take a shared lock; waits for an exclusive holder."""
    fcntl.flock(descriptor, fcntl.LOCK_SH)


def try_lock(descriptor: int) -> bool:
    """Take the lock exclusively. Returns False at once if another holder has it.

    Raises:
        OSError: the file system has no locks.
    """
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def check_excludes(descriptor: int, path: Path) -> None:
    """Check that the lock that `descriptor` holds exclusively keeps others out.

    Raises:
        OSError: it does not.
    """
    other = open_lock_file(path)
    try:
        if try_lock(other):
            raise OSError(errno.ENOLCK, "this file system's locks (flock) exclude nobody")
    finally:
        close_lock_file(other)


def file_system_type(path: Path) -> str:
    """Return the type of the file system of an absolute path, as in `mount`; "unknown" if it cannot be determined."""
    try:
        mounts = {Path(mount.mountpoint): mount.fstype for mount in psutil.disk_partitions(all=True)}
    except OSError:
        return "unknown"
    return next((mounts[folder] for folder in (path, *path.parents) if folder in mounts), "unknown")


def _close_in_child() -> None:
    while _open_descriptors:
        with contextlib.suppress(OSError):
            os.close(_open_descriptors.pop())


os.register_at_fork(after_in_child=_close_in_child)
