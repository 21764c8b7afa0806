"""Attempts' folders in the place that all workers share, so that the next attempt may begin on another machine.

There is one archive per point and attempt, under a name that says both: no database lists them. An attempt writes only
its own archive, as it writes only its own folder. A crash at the wrong moment leaves an orphaned archive, never a point
that cannot be trained.
"""

from __future__ import annotations

import contextlib
import errno
import shutil
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import final

from hpsearch.artifacts.store import ArtifactStore
from hpsearch.errors import ArtifactError
from hpsearch.scripts.packed_folder import FOLDER_LIMIT_BYTES, pack, unpack

STORED_FOLDER_PREFIX = "trial-folder-"
_HERE = frozenset(
    {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS}
)  # errors of this machine's disk, not of the store


@final
class StoredFolders:
    """The archives of one study. Thread-safe, for different points.

    Args:
        store: which all workers of the study share.
        study_key: different for all studies whose workers share the store, whatever database they are in.
        limit_bytes: of one folder.
    """

    def __init__(self, store: ArtifactStore, study_key: str, *, limit_bytes: int = FOLDER_LIMIT_BYTES) -> None:
        self._store = store
        self._study_key = study_key
        self._limit_bytes = limit_bytes
        self._has_replaced: set[tuple[int, int]] = set()  # attempts whose predecessors' archives are removed

    def put(self, point: int, attempt: int, folder: Path, temporary: Path) -> None:
        """Store the folder's content, and remove the archives of the point's earlier attempts. May be repeated.

        Args:
            temporary: folder on this machine that has room for the archive.
        Raises:
            ArtifactError: the folder is too large, or the store refuses; the archives before it are untouched.
        """
        try:
            with tempfile.TemporaryFile(dir=temporary) as archive:
                pack(folder, archive, self._limit_bytes)
                archive.seek(0)
                self._store.write(self._name(point, attempt), archive)
        except OSError as error:
            raise ArtifactError(
                f"cannot store folder {folder} in {self._store.place}: {error.strerror or error}",
                hint="free disk space, or name another place with --artifacts; earlier archives are intact",
            ) from error
        if (point, attempt) not in self._has_replaced:
            self.remove(point, range(1, attempt))
            self._has_replaced.add((point, attempt))

    def get(self, point: int, attempt: int, folder: Path, temporary: Path) -> bool:
        """Extract what an attempt has stored into an empty folder, and return whether it has stored anything.

        Raises:
            ArtifactError: the archive cannot be read or is damaged, or this machine's disk is full, which
                `is_local_failure` says. A part may have been extracted.
        """
        name = self._name(point, attempt)
        try:
            with tempfile.TemporaryFile(dir=temporary) as archive:
                with self._store.open_reader(name) as stored:
                    shutil.copyfileobj(stored, archive, 2**20)
                archive.seek(0)
                unpack(archive, folder, self._limit_bytes)
        except FileNotFoundError:
            return False
        except ArtifactError:
            raise
        # A bucket's stream raises errors of botocore and urllib3 too, which this module does not know.
        except Exception as error:
            reason = getattr(error, "strerror", None) or error
            raise ArtifactError(f"cannot read {name} in {self._store.place}: {reason}") from error
        return True

    def remove(self, point: int, attempts: Iterable[int]) -> None:
        """Remove the archives of these attempts, if the store can do that now."""
        for attempt in attempts:
            with contextlib.suppress(OSError):
                self._store.remove(self._name(point, attempt))

    def _name(self, point: int, attempt: int) -> str:
        return f"{STORED_FOLDER_PREFIX}{self._study_key}-point-{point:06d}-attempt-{attempt}.tar"


def is_local_failure(error: ArtifactError) -> bool:
    """Whether this machine's disk has failed, so that beginning without the stored state would fail as well."""
    return isinstance(error.__cause__, OSError) and error.__cause__.errno in _HERE
