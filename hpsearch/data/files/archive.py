"""Named files from an archive (tar or zip) or from the folder into which it was unpacked.

Of an archive only the files that are asked for are decoded: a test part in it stays unread. Nothing is written, and
names in the archive are never used as paths.
"""

from __future__ import annotations

import hashlib
import lzma
import tarfile
import zipfile
import zlib
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import IO

from hpsearch.data.files.data_file import (
    DOWNLOAD_AGAIN,
    MAX_UNPACKED_BYTES,
    DataFile,
    read_data_file,
    too_large,
    unpacked_file,
)
from hpsearch.data.files.lookup import find_file
from hpsearch.errors import DataError

_MAX_ENTRIES = 100_000  # of a tar; those before the files that are asked for are passed over


def read_members(place: Path, names: Collection[str], *, folder: str = "") -> dict[str, DataFile]:
    """Read the files with these names, wherever they lie in the archive, each gzipped or not.

    Args:
        place: an archive, or a folder.
        names: file names without folders and without ".gz".
        folder: name of a subfolder in which a folder's files may also lie.
    Returns:
        Name -> file, for those that are there.
    Raises:
        DataError: the archive or a file is unreadable, damaged, or larger than 1 GiB when unpacked.
    """
    if place.is_dir():
        paths = {name: find_file(name, *([place / folder] if folder else []), place) for name in names}
        return {name: read_data_file(path) for name, path in paths.items() if path is not None}
    with _archive_errors(place):
        if zipfile.is_zipfile(place):
            return dict(_zip_members(place, names))
        return dict(_tar_members(place, names))


def member_names(place: Path) -> frozenset[str]:
    """The names of all files of a zip or a folder, without ".gz".

    Raises:
        DataError: it cannot be read.
    """
    with _archive_errors(place):
        if place.is_dir():
            return frozenset(path.name.removesuffix(".gz") for path in place.iterdir())
        with zipfile.ZipFile(place) as archive:
            return frozenset(_member_name(entry) for entry in archive.namelist())


def md5_of(path: Path) -> str:
    """MD5 of a file as it lies on the disk. Raises DataError if it cannot be read."""
    with _archive_errors(path), path.open("rb") as stream:
        return hashlib.file_digest(stream, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


def _zip_members(place: Path, names: Collection[str]) -> Iterator[tuple[str, DataFile]]:
    with zipfile.ZipFile(place) as archive:
        for entry in archive.infolist():
            name = _member_name(entry.filename)
            if name in names and not entry.is_dir():
                with archive.open(entry) as stream:
                    yield name, _unpacked(stream, f"{place}, {name}")


def _tar_members(place: Path, names: Collection[str]) -> Iterator[tuple[str, DataFile]]:
    left = set(names)
    with tarfile.open(place, "r:*") as archive:
        for number, entry in enumerate(archive):
            name = _member_name(entry.name)
            if number > _MAX_ENTRIES:
                raise DataError(f"{place}: more than {_MAX_ENTRIES} files", hint=DOWNLOAD_AGAIN)
            if name in left and entry.isfile():
                stream = archive.extractfile(entry)
                assert stream is not None, "it is a file"
                yield name, _unpacked(stream, f"{place}, {name}")
                left.remove(name)
            if not left:
                return


def _unpacked(stream: IO[bytes], source: str) -> DataFile:
    content = stream.read(MAX_UNPACKED_BYTES + 1)
    if len(content) > MAX_UNPACKED_BYTES:
        raise too_large(source, MAX_UNPACKED_BYTES)
    return unpacked_file(content, source)


def _member_name(path: str) -> str:
    return PurePosixPath(path).name.removesuffix(".gz")


@contextmanager
def _archive_errors(place: Path) -> Iterator[None]:
    try:
        yield
    except DataError:
        raise
    # NotImplementedError: a compression that Python lacks; RuntimeError: an encrypted zip; ValueError: damaged numbers.
    except (
        tarfile.TarError,
        zipfile.BadZipFile,
        EOFError,
        zlib.error,
        lzma.LZMAError,
        NotImplementedError,
        RuntimeError,
        ValueError,
    ) as error:
        raise DataError(f"{place}: no archive, or a damaged one ({error})", hint=DOWNLOAD_AGAIN) from error
    except OSError as error:
        if error.errno is None:  # gzip's and bz2's own errors about content
            raise DataError(f"{place}: no archive, or a damaged one ({error})", hint=DOWNLOAD_AGAIN) from error
        raise DataError(
            f"{place}: cannot be read: {error.strerror or error}", hint="check the path and its permissions"
        ) from error
