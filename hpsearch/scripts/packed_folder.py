"""An attempt's folder as one file, for the place that all workers share.

The file is a tar archive without compression. A script's state is mostly floating-point numbers, which gzip shrinks by
a tenth at best, for about ten seconds of a core per gigabyte, and that core belongs to the trials.
"""

from __future__ import annotations

import tarfile
from pathlib import Path
from typing import BinaryIO, Final

from hpsearch.errors import ArtifactError
from hpsearch.scripts.folder_files import files_in

FOLDER_LIMIT_BYTES: Final = 2 * 10**9


def pack(folder: Path, target: BinaryIO, limit_bytes: int = FOLDER_LIMIT_BYTES) -> int:
    """Write the folder's regular files and folders as an archive, while a script may still be writing them.

    Each file is packed with the length that it has when it is opened: what is appended later is left out, what is cut
    off becomes zeros. A script that replaces its files by renaming new ones is therefore always packed correctly.

    Args:
        limit_bytes: of all files together; holes count.
    Returns:
        The number of bytes of all files.
    Raises:
        ArtifactError: the folder is too large, which is found before anything is written unless it grows meanwhile, or
            it cannot be read, or the target not be written.
    """
    try:
        _check_size(
            folder, sum(status.st_size for _, file, status in files_in(folder) if file is not None), limit_bytes
        )
        num_bytes = 0
        with tarfile.open(fileobj=target, mode="w", format=tarfile.PAX_FORMAT) as archive:
            for path, file, status in files_in(folder):
                entry = tarfile.TarInfo(path.as_posix())
                entry.mtime = status.st_mtime
                if file is not None:
                    entry.size, entry.mode = status.st_size, status.st_mode & 0o777
                    num_bytes += entry.size
                    _check_size(folder, num_bytes, limit_bytes)
                    archive.addfile(entry, _PaddedFile(file))
                elif path.parts:
                    entry.type, entry.mode = tarfile.DIRTYPE, 0o700
                    archive.addfile(entry)
    except OSError as error:
        raise ArtifactError(f"cannot pack folder {folder}: {error.strerror or error}", hint=_DISK_HINT) from error
    return num_bytes


def unpack(file: BinaryIO, folder: Path, limit_bytes: int = FOLDER_LIMIT_BYTES) -> None:
    """Extract an archive of `pack` into an empty folder.

    The archive comes from a place that others can write to: nothing is written outside the folder, and only regular
    files and folders are made.

    Raises:
        ArtifactError: the archive is damaged, contains paths that lead out of the folder, or is larger than the limit;
            or the folder cannot be written (the cause is then an OSError). A part may have been extracted.
    """
    num_bytes = 0
    try:
        with tarfile.open(fileobj=file, mode="r:") as archive:
            for entry in archive:
                if entry.isreg() or entry.isdir():
                    num_bytes += entry.size
                    _check_size(folder, num_bytes, limit_bytes)
                    archive.extract(entry, folder, filter="data")
    except OSError as error:
        raise ArtifactError(f"cannot fill folder {folder}: {error.strerror or error}", hint=_DISK_HINT) from error
    except (tarfile.TarError, EOFError, ValueError) as error:
        raise ArtifactError(f"the stored archive for {folder} is damaged: {error}") from error


_DISK_HINT = "check that the disk is not full and the permissions of the folder"


class _PaddedFile:
    """A file that goes on with zeros after its end, because tarfile fails if a file has become shorter."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file

    def read(self, size: int = 0) -> bytes:
        content = self._file.read(size)
        return content + bytes(size - len(content))


def _check_size(folder: Path, num_bytes: int, limit_bytes: int) -> None:
    if num_bytes > limit_bytes:
        raise ArtifactError(
            f"folder {folder} has {num_bytes:,} bytes or more, and the limit is {limit_bytes:,}",
            hint="let the script keep only what it needs to go on, such as its last checkpoint, or raise "
            "command.folder_limit",
        )
