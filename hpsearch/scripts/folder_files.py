"""The files of an attempt's folder: walked, copied and removed while a script may still be writing there.

Only regular files and folders count. Links are not followed and not copied: one that points out of the folder would
bring files into it that the script never wrote. Pipes, sockets and devices are not even opened.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import stat
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from hpsearch.atomic_file import TEMPORARY_PREFIX
from hpsearch.logs import get_logger

_log = get_logger("folders")

# A file that is gone or has become something else since its folder was listed, as it may while a script runs.
_GONE = frozenset({errno.ENOENT, errno.ELOOP, errno.ENXIO, errno.ENOTDIR})


def files_in(folder: Path) -> Iterator[tuple[Path, BinaryIO | None, os.stat_result]]:
    """Yield each folder, before its content, and each regular file: its relative path, the open file, its status.

    The file is None for a folder, and is closed when the next one is yielded. Status and content are of the same file,
    even if the script replaces it by another one meanwhile. A file without permission to read is left out, with a
    warning.

    Raises:
        OSError: `folder` is no folder, or the disk fails.
    """
    for root, _, names, descriptor in os.fwalk(folder, onerror=_warn_if_refused):
        place = Path(root).relative_to(folder)
        yield place, None, os.fstat(descriptor)
        for name in sorted(names):
            with _opened(name, descriptor, folder / place / name) as file:
                if file is not None:
                    yield place / name, file, os.fstat(file.fileno())


def copy_folder(source: Path, target: Path) -> None:
    """Copy the content of a folder into an empty one, with the files' permissions and times; holes stay holes.

    Raises:
        OSError: the source cannot be read or the target not written.
    """
    for path, file, status in files_in(source):
        if file is not None:
            _copy_file(file, target / path, status)
        elif path.parts:
            (target / path).mkdir(mode=0o700)


def sync_folder(folder: Path) -> None:
    """Write all files to the disk, so that after a power failure the folder's new name does not stand for empty files.

    Raises:
        OSError: the disk fails or is full.
    """
    for _, file, _ in files_in(folder):
        if file is not None:
            os.fsync(file.fileno())


def remove_folder(folder: Path) -> None:
    """Remove a folder, first from its name and then from the disk. Does nothing if there is none.

    A crash in between leaves a folder under a temporary name. What cannot be removed is logged.
    """
    doomed = folder.with_name(temporary_name())
    try:
        folder.rename(doomed)
    except FileNotFoundError:
        return
    except OSError as error:
        _log.warning("cannot remove %s: %s", folder, error.strerror)
        return
    discard_folder(doomed)


def discard_folder(folder: Path) -> None:
    """Remove a folder that has a temporary name already, or what is in its place. What cannot be removed is logged."""
    if folder.is_symlink() or not folder.is_dir():
        with contextlib.suppress(OSError):
            folder.unlink()
    else:
        shutil.rmtree(folder, ignore_errors=True)
        if folder.exists():
            _make_writable(folder)
            shutil.rmtree(folder, ignore_errors=True)
    if os.path.lexists(folder):
        _log.warning("cannot remove all of %s", folder)


def temporary_name() -> str:
    """Return a new name for a file or folder that is not complete yet, or about to be removed."""
    return f"{TEMPORARY_PREFIX}{uuid.uuid4().hex}"


@contextlib.contextmanager
def _opened(name: str, folder: int, path: Path) -> Iterator[BinaryIO | None]:
    """Open a regular file of the folder with this descriptor; None: it is something else, gone or unreadable."""
    try:
        # Before the open: one of a pipe would release a script that waits for its reader.
        is_file = stat.S_ISREG(os.stat(name, dir_fd=folder, follow_symlinks=False).st_mode)
        found = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=folder) if is_file else None
    except OSError as error:
        if error.errno not in _GONE:
            _warn_if_refused(error, path)
        found = None
    if found is None:
        yield None
        return
    with os.fdopen(found, "rb") as file:
        yield file if stat.S_ISREG(os.fstat(found).st_mode) else None


def _warn_if_refused(error: OSError, path: Path | None = None) -> None:
    """Log a missing permission; other errors of the disk end the walk."""
    if error.errno in _GONE:
        return
    if not isinstance(error, PermissionError):
        raise error
    _log.warning("%s is left out: %s", path or error.filename, error.strerror)


def _copy_file(source: BinaryIO, target: Path, status: os.stat_result) -> None:
    descriptor = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL, stat.S_IMODE(status.st_mode) & 0o777 | 0o600)
    try:
        _copy_data(source.fileno(), descriptor, status.st_size)
        os.utime(descriptor, ns=(status.st_atime_ns, status.st_mtime_ns))  # the newest checkpoint is found by its time
    finally:
        os.close(descriptor)


def _copy_data(source: int, target: int, size: int) -> None:
    """Copy `size` bytes without the holes; a file that has become shorter ends with a hole."""
    position = 0
    while position < size:
        try:
            start = os.lseek(source, position, os.SEEK_DATA)
        except OSError as error:
            if error.errno != errno.ENXIO:
                raise
            break  # only a hole is left
        end = min(os.lseek(source, start, os.SEEK_HOLE), size)
        os.lseek(target, start, os.SEEK_SET)
        while start < end and (num_sent := os.sendfile(target, source, start, end - start)):
            start += num_sent
        if start < end:
            break  # shortened meanwhile
        position = max(end, start)
    os.ftruncate(target, size)


def _make_writable(folder: Path) -> None:
    """Give the owner all rights to a folder and its folders, so that their content can be removed."""
    with contextlib.suppress(OSError):
        folder.chmod(0o700)
    for root, names, _ in os.walk(folder):  # lists a folder after its parent was yielded
        for inner in (Path(root) / name for name in names):
            if not inner.is_symlink():
                with contextlib.suppress(OSError):
                    inner.chmod(0o700)
