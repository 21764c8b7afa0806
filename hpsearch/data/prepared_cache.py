"""The folders of prepared data in the cache: what they are of, and how they are removed while no process uses them.

Nothing is lost with them: they are made again from their source.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from hpsearch.data.prepared import RECORD, WRITING, folder_of
from hpsearch.errors import DataError
from hpsearch.wording import format_time


@dataclass(frozen=True, kw_only=True)
class CacheEntry:
    """One folder of prepared data.

    Args:
        source: the file that it was made of, or the folder that holds all of its files; None: an older version did not
            write that down.
        num_files: of the source; 0 if it is not known.
        used_at: when it was last opened, UTC.
        is_open: whether a process on this machine has its arrays in memory now.
    """

    folder: Path
    source: str | None
    num_files: int
    num_bytes: int
    used_at: datetime
    is_open: bool

    def as_json(self) -> dict[str, Any]:
        """The entry in `data cache --json`. These keys are stable; new keys may be added."""
        return {
            "folder": str(self.folder),
            "source": self.source,
            "num_files": self.num_files,
            "num_bytes": self.num_bytes,
            "used_at": format_time(self.used_at),
            "is_open": self.is_open,
        }


def cache_entries(cache: Path) -> list[CacheEntry]:
    """All folders of prepared data, the one that was used last first.

    Args:
        cache: `DataLocations.cache`.
    Raises:
        DataError: the cache cannot be read.
    """
    try:
        folders = [path for path in folder_of(cache).iterdir() if path.is_dir() and not path.name.startswith(WRITING)]
    except FileNotFoundError:
        return []
    except OSError as error:
        raise DataError(
            f"{folder_of(cache)}: cannot be read: {error.strerror or error}", hint="see who owns this folder"
        ) from error
    entries = [entry for folder in folders if (entry := _entry_of(folder)) is not None]
    return sorted(entries, key=lambda entry: entry.used_at, reverse=True)


def remove_unused(entries: list[CacheEntry]) -> list[CacheEntry]:
    """Remove those that no process has open, and return them. A process that opens one meanwhile makes it again.

    Raises:
        DataError: a folder cannot be removed.
    """
    removed = []
    for entry in entries:
        with _kept_from_others(entry.folder) as is_free:
            if not is_free:
                continue
            try:
                shutil.rmtree(entry.folder)
            except FileNotFoundError:
                continue  # another process was faster
            except OSError as error:
                raise DataError(
                    f"{entry.folder}: cannot be removed: {error.strerror or error}", hint="see who owns this folder"
                ) from error
            # Its lock file stays: another process may hold it, and a third one would lock a new file beside that.
            removed.append(entry)
    return removed


def _entry_of(folder: Path) -> CacheEntry | None:
    """None if another process removes the folder meanwhile."""
    with suppress(OSError):
        document: Any = {}
        with suppress(OSError, ValueError):
            document = json.loads((folder / RECORD).read_text())
        source = document.get("source") if isinstance(document, dict) else None
        path, number = (source.get("path"), source.get("num_files")) if isinstance(source, dict) else (None, 0)
        used = (folder / RECORD if (folder / RECORD).exists() else folder).stat().st_mtime
        with _kept_from_others(folder) as is_free:
            return CacheEntry(
                folder=folder,
                source=path if isinstance(path, str) else None,
                num_files=number if isinstance(number, int) else 0,
                num_bytes=sum(file.stat().st_size for file in folder.iterdir()),
                used_at=datetime.fromtimestamp(used, UTC),
                is_open=not is_free,
            )
    return None


@contextmanager
def _kept_from_others(folder: Path) -> Iterator[bool]:
    """Hold the locks of the arrays. Yields False if a process has one of them open, or locks cannot be had."""
    with ExitStack() as stack:
        try:
            for path in sorted(folder.glob("*.npy")):
                descriptor = os.open(path, os.O_RDONLY)
                stack.callback(os.close, descriptor)
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            is_free = True
        except OSError:
            is_free = False
        yield is_free
