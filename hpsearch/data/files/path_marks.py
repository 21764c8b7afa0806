"""Marks of a user's own test files and folders, by which an earlier opening is recognised.

Nothing is opened or listed.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from hpsearch.errors import DataError


def file_marks(paths: Iterable[Path]) -> set[str]:
    """Absolute path, size and time of change of each file. Raises DataError if one is gone or cannot be accessed."""
    found = [(path.resolve(), _stat(path)) for path in paths]
    return {f"file:{path}:{stat.st_size}:{stat.st_mtime_ns}" for path, stat in found}


def folder_marks(path: Path) -> set[str]:
    """Absolute path and time of change of a folder; its size says nothing. Raises DataError as `file_marks`."""
    return {f"folder:{path.resolve()}:{_stat(path).st_mtime_ns}"}


def _stat(path: Path) -> os.stat_result:
    try:
        return path.stat()
    except OSError as error:
        raise DataError(
            f"{path}: the test part cannot be found: {error.strerror}", hint="check the path and its permissions"
        ) from error
