"""Prepared data: training and validation arrays that were decoded once, kept in the cache and memory-mapped afterwards.

Test rows are never part of it: the vault reads the source itself.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import shutil
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
from numpy.lib.format import read_array_header_1_0, read_array_header_2_0, read_magic
from numpy.typing import NDArray

from hpsearch.errors import DataError

FORMAT: Final = 1  # part of the key: an older version's folders are not read
RECORD: Final = "record.json"  # in a prepared folder; the last file that is written
_BLOCK_BYTES = 2**24
WRITING: Final = ".writing-"  # begins the name of a folder that is being written
_ABANDONED_SECONDS = 24 * 3600.0  # without a change: its process was killed
_MOST_BUILDS = 3  # if other processes remove what was written, on a file system without locks


@dataclass(frozen=True, kw_only=True, slots=True)
class Prepared:
    """Arrays of a source, and what was written down when they were made.

    Args:
        arrays: memory-mapped, by name; what is written to them stays in this process. They are writable because torch
            would copy others.
        record: the JSON document that `build` returned.
        checksums: SHA-256 of each array's type, shape and content.
    """

    arrays: Mapping[str, NDArray[Any]] = field(repr=False)
    record: Mapping[str, Any]
    checksums: Mapping[str, str]


def source_key(paths: Iterable[Path], options: Mapping[str, Any]) -> dict[str, Any]:
    """What identifies a source without reading it: names, sizes and times of change of its files, and the options.

    Raises:
        DataError: a file is gone or cannot be accessed.
    """
    files = []
    for path in paths:
        try:
            found = path.stat()
        except OSError as error:
            hint = "check the path and its permissions"
            raise DataError(f"{path}: cannot be read: {error.strerror}", hint=hint) from error
        files.append([str(path.absolute()), found.st_size, found.st_mtime_ns])
    return {"files": files, "options": dict(options)}


def folder_of(cache: Path) -> Path:
    """The folder of the prepared folders."""
    return cache / "prepared"


def lock_of(folder: Path) -> Path:
    """The file that a process locks while it makes this folder."""
    return folder.with_suffix(".lock")


def open_prepared(cache: Path, key: Mapping[str, Any], build: Callable[[Path], Mapping[str, Any]]) -> Prepared:
    """Open the arrays of a source, or make them first. Processes that ask at once make them once.

    A folder that is damaged is made again.

    Args:
        cache: `DataLocations.cache`.
        key: `source_key`, or another JSON document that changes with the source.
        build: writes arrays into the folder as NAME.npy, and returns a JSON document.
    Raises:
        DataError: the cache cannot be written; or as `build` raises.
    """
    text = json.dumps({"format": FORMAT, **key}, sort_keys=True, separators=(",", ":"))
    folder = folder_of(cache) / hashlib.sha256(text.encode()).hexdigest()[:32]
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        if (found := _opened(folder)) is not None:
            return found
        with _locked(lock_of(folder)):
            _remove_abandoned(folder.parent)
            for _ in range(_MOST_BUILDS):
                if (found := _opened(folder)) is not None:
                    return found
                _make(folder, build, _source_of(key))
            found = _opened(folder)
    except OSError as error:
        raise DataError(
            f"prepared data cannot be kept in {folder.parent}: {error.strerror or error}",
            hint="make room there, or set XDG_CACHE_HOME to a folder on another disk",
        ) from error
    if found is None:
        raise DataError(
            f"{folder}: the prepared data cannot be read after it was written {_MOST_BUILDS} times",
            hint="see whether the disk is damaged, or set XDG_CACHE_HOME to a folder on another disk",
        )
    return found


def checksum_of(array: NDArray[Any]) -> str:
    """SHA-256 of an array's type, shape and content."""
    digest = hashlib.sha256(f"{array.dtype.str} {list(array.shape)}".encode())
    flat = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
    for start in range(0, len(flat), _BLOCK_BYTES):
        digest.update(flat[start : start + _BLOCK_BYTES].data)
    return digest.hexdigest()


def _source_of(key: Mapping[str, Any]) -> dict[str, Any]:
    """What people are told of a folder's source: its file, or the folder of its files, and their number."""
    paths = [str(file[0]) for file in key.get("files", ())]
    return {"path": os.path.commonpath(paths), "num_files": len(paths)} if paths else {}


def _make(folder: Path, build: Callable[[Path], Mapping[str, Any]], source: Mapping[str, Any]) -> None:
    temporary = folder.with_name(f"{WRITING}{uuid.uuid4().hex}")
    temporary.mkdir()
    try:
        record = build(temporary)
        checksums = {path.stem: checksum_of(np.load(path, mmap_mode="r")) for path in sorted(temporary.glob("*.npy"))}
        (temporary / RECORD).write_text(
            json.dumps({"record": dict(record), "checksums": checksums, "source": dict(source)})
        )
        shutil.rmtree(folder, ignore_errors=True)
        try:
            temporary.rename(folder)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):  # another process was faster: all write the same
                raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _remove_abandoned(prepared: Path) -> None:
    """Remove what killed processes have left half written."""
    for temporary in prepared.glob(f"{WRITING}*"):
        with suppress(OSError):  # another process removes or finishes it
            changed = max(path.stat().st_mtime for path in (temporary, *temporary.iterdir()))
            if time.time() - changed > _ABANDONED_SECONDS:
                shutil.rmtree(temporary, ignore_errors=True)


def _opened(folder: Path) -> Prepared | None:
    """The folder's content; None if it is missing or damaged."""
    with suppress(OSError, ValueError, KeyError, TypeError):
        document = json.loads((folder / RECORD).read_text())
        arrays = {name: _mapped(folder / f"{name}.npy") for name in document["checksums"]}
        if all(checksum_of(array) == document["checksums"][name] for name, array in arrays.items()):
            with suppress(OSError):  # of another user
                os.utime(folder / RECORD)  # tells when it was last used
            return Prepared(arrays=arrays, record=document["record"], checksums=document["checksums"])
    return None


def _mapped(path: Path) -> NDArray[Any]:
    """Map an array, and lock its file for as long as the map lasts, which has a descriptor of the same open file.

    `prepared_cache` removes no file with such a lock. It is not waited for: a file that is removed can still be read.
    """
    with path.open("rb") as file:
        with suppress(OSError):  # a file system without locks
            fcntl.flock(file.fileno(), fcntl.LOCK_SH | fcntl.LOCK_NB)
        read_header = {(1, 0): read_array_header_1_0, (2, 0): read_array_header_2_0}[read_magic(file)]
        shape, is_fortran, dtype = read_header(file)
        order: Literal["C", "F"] = "F" if is_fortran else "C"
        return np.memmap(file, dtype=dtype, mode="c", offset=file.tell(), shape=shape, order=order)


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        with suppress(OSError):  # a file system without locks: the last folder that is written wins, all are alike
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
