"""Find data files on this machine, or download them.

A file of a published set is searched for in HPSEARCH_DATA/<set>/, HPSEARCH_DATA/ and the cache, in this order, and
otherwise downloaded into the cache. The first file found is verified. A wrong file is an error; no other place is
tried instead.
"""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass, field
from pathlib import Path

import platformdirs

from hpsearch import environment
from hpsearch.data.files.data_file import DataFile, read_data_file
from hpsearch.data.files.download import DownloadProgress, MirrorsFailedError, download_file
from hpsearch.data.files.file_check import FileCheck, FileState
from hpsearch.data.files.named_path import local_folder
from hpsearch.data.files.published import PublishedSet, check_published
from hpsearch.errors import DataError


@dataclass(frozen=True, kw_only=True, slots=True)
class DataLocations:
    """Folders that may contain data files.

    Args:
        local: the user's own folder (HPSEARCH_DATA); never written.
        cache: folder for downloads, with a subfolder per data set.
        allow_download: False: the network is not used.
        progress: called during downloads, and while data is decoded for the first time.
    """

    local: Path | None
    cache: Path
    allow_download: bool = True
    progress: DownloadProgress | None = field(default=None, compare=False, repr=False)

    @classmethod
    def from_environment(cls, progress: DownloadProgress | None = None) -> DataLocations:
        """HPSEARCH_DATA, and the user's cache folder (XDG_CACHE_HOME on Linux).

        Raises:
            DataError: the user has no home folder, and no environment variable names one.
        """
        return cls(local=local_folder(), cache=_cache() / "data", progress=progress)

    def folders(self, name: str) -> tuple[Path, ...]:
        """The folders to search for files of the published set `name`, in order.

        Raises:
            DataError: HPSEARCH_DATA is not a folder.
        """
        if self.local is None:
            return (self.cache_folder(name),)
        if not self.local.is_dir():
            raise DataError(
                f"{environment.DATA} is {self.local}, which is not a folder",
                hint=f"correct or unset {environment.DATA}",
            )
        return (self.local / name, self.local, self.cache_folder(name))

    def cache_folder(self, name: str) -> Path:
        return self.cache / name


def find_file(file_name: str, *folders: Path) -> Path | None:
    """The first file of this name in the folders, gzipped (with ".gz") or not; None if no folder has it.

    Raises:
        DataError: a folder cannot be searched.
    """
    for folder in folders:
        for candidate in (folder / f"{file_name}.gz", folder / file_name):
            try:
                candidate.stat()
            except (FileNotFoundError, NotADirectoryError):
                continue
            except OSError as error:  # an inaccessible file is not a missing file
                raise DataError(
                    f"{candidate}: cannot be accessed: {error.strerror}", hint="check the path and its permissions"
                ) from error
            return candidate
    return None


def obtain_file(published: PublishedSet, file_name: str, locations: DataLocations) -> DataFile:
    """Find or download one file of a published set, and verify it.

    Raises:
        DataError: the file is missing and cannot be downloaded, is unreadable, or does not match its checksum.
    """
    path = find_file(file_name, *locations.folders(published.name))
    if path is None:
        path = download_published(published, file_name, locations)
    file = read_data_file(path)
    check_published(file, published, file_name)
    return file


def download_published(published: PublishedSet, file_name: str, locations: DataLocations) -> Path:
    """Download one file of a published set into the cache and verify it. Replaces an existing file.

    Raises:
        DataError: downloading is not allowed, no mirror has the correct file, or the cache cannot be written.
    """
    missing = f"{published.name}: no {file_name} (looked in {', '.join(map(str, locations.folders(published.name)))})"
    hint = (
        f"run where there is a network: hpsearch data fetch {published.name}; "
        f"or set {environment.DATA} to a folder that holds {file_name}.gz"
    )
    if not locations.allow_download:
        raise DataError(f"{missing}; downloading is switched off", hint=hint)

    def verify(path: Path, address: str) -> None:
        check_published(read_data_file(path, source=address), published, file_name)

    folder = locations.cache_folder(published.name)
    try:
        return download_file(f"{file_name}.gz", published.mirrors, folder, verify=verify, progress=locations.progress)
    except MirrorsFailedError as error:
        raise DataError(f"{missing}; {error}", hint=hint) from error


def fetch_published(published: PublishedSet, locations: DataLocations) -> tuple[Path, ...]:
    """Verify all files of a published set, and download the missing ones.

    A wrong file in the cache is replaced; the user's own is an error.

    Raises:
        DataError: as `obtain_file`.
    """
    return tuple(_fetch_file(published, file_name, locations) for file_name in published.layout.files)


def verify_published(published: PublishedSet, locations: DataLocations) -> tuple[FileCheck, ...]:
    """Verify all files of a published set. Never downloads. Raises DataError if HPSEARCH_DATA is not a folder."""
    folders = locations.folders(published.name)
    return tuple(_verify_file(published, file_name, folders) for file_name in published.layout.files)


def _fetch_file(published: PublishedSet, file_name: str, locations: DataLocations) -> Path:
    folders = locations.folders(published.name)
    path = find_file(file_name, *folders)
    if path is not None:
        try:
            check_published(read_data_file(path), published, file_name)
        except DataError:
            if path.parent != locations.cache_folder(published.name):
                raise  # the user's own file is never replaced
        else:
            return path
    return download_published(published, file_name, locations)


def _verify_file(published: PublishedSet, file_name: str, folders: tuple[Path, ...]) -> FileCheck:
    path = find_file(file_name, *folders)
    if path is None:
        problem = f"not in {', '.join(map(str, folders))}"
        return FileCheck(file_name=file_name, path=None, state=FileState.MISSING, problem=problem)
    sha256 = None
    try:
        file = read_data_file(path)
        sha256 = file.sha256
        is_verified = check_published(file, published, file_name)
    except DataError as error:
        return FileCheck(file_name=file_name, path=path, state=FileState.WRONG, sha256=sha256, problem=str(error))
    state = FileState.VERIFIED if is_verified else FileState.UNVERIFIED
    return FileCheck(file_name=file_name, path=path, state=state, sha256=sha256)


def _cache() -> Path:
    """The user's cache folder; a folder in HPSEARCH_HOME if the user has no home folder.

    Raises:
        DataError: the user has no home folder, and HPSEARCH_HOME is not set.
    """
    with contextlib.suppress(RuntimeError):  # without a home folder; older versions return a path with ~
        cache = platformdirs.user_cache_path("hpsearch", appauthor=False)
        if cache.is_absolute():
            return cache
    home = os.environ.get(environment.HOME)
    if not home:
        raise DataError(
            f"this user (id {os.geteuid()}) has no home folder for downloaded data",
            hint="set XDG_CACHE_HOME or HPSEARCH_HOME to a folder that this user may write to",
        )
    return Path(home).absolute() / "cache"
