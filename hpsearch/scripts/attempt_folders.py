"""The folders in which scripts work: one per attempt, begun with the files of the point's last attempt.

    ROOT/STUDY/point-000012/attempt-2     the script's own: what it saves there is what the next attempt begins with
    ROOT/STUDY/point-000012/control-2     hpsearch's: pipe, verdict, parameters.json, temporary files

A script that saves its state in its folder goes on after a kill, on this machine or, through the place that all workers
share (stored_folders.py), on another. Each attempt writes only to its own folder, so that the last one may still be
dying while the next one begins.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import final

from hpsearch.atomic_file import TEMPORARY_PREFIX, replacement_of
from hpsearch.errors import ArtifactError, InputError
from hpsearch.logs import get_logger
from hpsearch.scripts.folder_files import copy_folder, discard_folder, remove_folder, sync_folder, temporary_name
from hpsearch.scripts.stored_folders import StoredFolders, is_local_failure
from hpsearch.study.command_line import Value

_log = get_logger("folders")

_STUDY_KEY = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_POINT = re.compile(r"point-(\d{6,18})")
_ATTEMPT = re.compile(r"attempt-([1-9]\d{0,8})")


@dataclass(frozen=True, kw_only=True)
class AttemptFolder:
    """The two folders of one attempt, and the paths in the second one; of these only `temporary` exists.

    Args:
        folder: the script's own.
        control: hpsearch's own, empty when the attempt begins.
    """

    folder: Path
    control: Path

    @property
    def reports(self) -> Path:
        """The pipe for the script's reports."""
        return self.control / "reports"

    @property
    def verdict(self) -> Path:
        """The file that says whether the script should stop."""
        return self.control / "verdict"

    @property
    def parameters(self) -> Path:
        """The JSON file with the point."""
        return self.control / "parameters.json"

    @property
    def temporary(self) -> Path:
        """The script's TMPDIR. It is not taken over by the next attempt."""
        return self.control / "tmp"

    def write_parameters(self, values: Mapping[str, Value]) -> Path:
        """Write the point as a JSON object and return its path. Raises ArtifactError."""
        try:
            with replacement_of(self.parameters, is_synced=False) as file:
                file.write(json.dumps(values, indent=2).encode() + b"\n")
        except OSError as error:
            raise _cannot_write(self.parameters, error) from error
        return self.parameters


@final
class AttemptFolders:
    """The folders of one study on this machine. Workers may share them: an attempt belongs to one worker.

    Args:
        root: of the folders of all studies.
        study_key: different for all studies whose folders are below this root, whatever database they are in.
        stored: where folders are exchanged with other machines; None: nowhere.
    Raises:
        InputError: the key is no plain name.
    """

    def __init__(self, root: Path, study_key: str, *, stored: StoredFolders | None = None) -> None:
        if not _STUDY_KEY.fullmatch(study_key):
            raise InputError(f"{study_key!r} cannot be the name of a study's folder", hint="use A-Z a-z 0-9 . _ -")
        self._study = root.absolute() / study_key
        self._stored = stored
        self._removed: set[int] = set()  # points whose stored folders were removed

    def of(self, point: int, attempt: int) -> AttemptFolder:
        """Return the folders of an attempt, whether they exist or not."""
        if point < 0 or attempt < 1:
            raise InputError(f"there is no attempt {attempt} at point {point}")
        place = self._study / f"point-{point:06d}"
        return AttemptFolder(folder=place / f"attempt-{attempt}", control=place / f"control-{attempt}")

    def begin(self, point: int, attempt: int) -> AttemptFolder:
        """Make the folders of an attempt, with the files of the last attempt that left any here or in the store.

        A crash leaves no part of the script's folder. If the folder is there already, it stays as it is. Folders of
        attempts before the one that was copied are removed, so that a point that is often interrupted has two.

        Raises:
            ArtifactError: the folders cannot be made. Stored files that cannot be read are no error: it is logged, and
                the attempt begins with older ones.
        """
        found = self.of(point, attempt)
        place = found.folder.parent
        try:
            self._study.parent.mkdir(parents=True, exist_ok=True)
            for folder in (self._study, place):
                _make_own_folder(folder)
            if not found.folder.exists():
                self._fill(found.folder, point, attempt)
            remove_folder(found.control)
            found.control.mkdir(mode=0o700)
            found.temporary.mkdir(mode=0o700)
        except OSError as error:
            raise _cannot_write(found.folder, error) from error
        return found

    def upload(self, point: int, attempt: int) -> None:
        """Store the attempt's folder for other machines, if there is a store.

        Call it at most every checkpoint_seconds and at the attempt's end; in the background, because it may take
        minutes. May be called while the script runs.

        Raises:
            ArtifactError: the folder is too large or the store refuses; what was stored before stays.
        """
        if self._stored is not None:
            found = self.of(point, attempt)
            self._stored.put(point, attempt, found.folder, found.control.parent)

    def remove_earlier(self, point: int, attempt: int) -> None:
        """Remove all of a point but the script's folder of this attempt, which was counted; the attempt has ended."""
        kept = self.of(point, attempt).folder
        for entry in _entries(kept.parent):
            if entry != kept:
                remove_folder(entry)
        if self._stored is not None:
            self._stored.remove(point, range(1, attempt))

    def remove_others(self, counted: Mapping[int, int], keep: Collection[int]) -> None:
        """Remove the folders of counted points, here and in the store, but not of those in `keep`.

        Any number of workers may call this, with all counted points or only with those that are news to them; the
        store is asked once for each point.

        Args:
            counted: point -> number of its counted attempt.
            keep: points whose folders stay, such as the best one.
        """
        for folder in _entries(self._study):
            match = _POINT.fullmatch(folder.name)
            if folder.name.startswith(TEMPORARY_PREFIX):
                discard_folder(folder)  # left by a crash, or being removed by another worker
            elif match and int(match[1]) in counted and int(match[1]) not in keep:
                remove_folder(folder)
        if self._stored is not None:
            for point in counted.keys() - set(keep) - self._removed:
                self._stored.remove(point, range(1, counted[point] + 1))
                self._removed.add(point)

    def remove_points(self, points: Collection[int]) -> None:
        """Remove all folders of these points on this machine."""
        for folder in _entries(self._study):
            match = _POINT.fullmatch(folder.name)
            if match and int(match[1]) in points:
                remove_folder(folder)

    def remove(self, point: int, attempt: int) -> None:
        """Remove all folders of a point up to this attempt, here and in the store: the next one begins empty."""
        remove_folder(self.of(point, attempt).folder.parent)
        if self._stored is not None:
            self._stored.remove(point, range(1, attempt + 1))

    def _fill(self, target: Path, point: int, attempt: int) -> None:
        """Make the script's folder under a temporary name, and give it its own when it is complete."""
        earlier = [number for number in _attempts_in(target.parent) if number < attempt]
        newest = max(earlier, default=0)
        new = target.with_name(temporary_name())
        try:
            new.mkdir(mode=0o700)
            if not self._fetch(new, point, range(attempt - 1, newest, -1)) and newest:
                copy_folder(self.of(point, newest).folder, new)
            sync_folder(new)
            new.rename(target)
        except BaseException:
            discard_folder(new)
            raise
        for number in earlier:
            if number < newest:
                remove_folder(self.of(point, number).folder)
                remove_folder(self.of(point, number).control)

    def _fetch(self, new: Path, point: int, attempts: Iterable[int]) -> bool:
        """Extract the first of these attempts that is in the store and readable; return whether there was one."""
        if self._stored is None:
            return False
        for attempt in attempts:
            try:
                if self._stored.get(point, attempt, new, new.parent):
                    return True
            except ArtifactError as error:
                if is_local_failure(error):
                    raise
                _log.warning("point %d begins without the files of attempt %d: %s", point, attempt, error)
                discard_folder(new)  # a part may have been extracted
                new.mkdir(mode=0o700)
        return False


def _make_own_folder(folder: Path) -> None:
    folder.mkdir(mode=0o700, exist_ok=True)
    if folder.is_symlink():  # it would lead out of the root
        raise NotADirectoryError(0, f"{folder} is a link")


def _entries(folder: Path) -> list[Path]:
    """Return what is in a folder; nothing if the folder does not exist."""
    try:
        return sorted(folder.iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return []


def _attempts_in(place: Path) -> Iterator[int]:
    matches = (_ATTEMPT.fullmatch(entry.name) for entry in _entries(place) if not entry.is_symlink())
    return (int(match[1]) for match in matches if match)


def _cannot_write(path: Path, error: OSError) -> ArtifactError:
    return ArtifactError(
        f"cannot write {path}: {error.strerror or error}",
        hint="free disk space, or set HPSEARCH_HOME to another folder",
    )
