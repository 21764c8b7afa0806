"""The catalogue of data sets: load the training and validation data of a study, fetch and verify the files.

`registry.FORMS` lists the forms in which data sets come. Of the functions here only `fetch_dataset` and
`verify_dataset` open test files (t10k-*), and only to compute their checksums.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from hpsearch.data import published
from hpsearch.data.data_file import read_data_file
from hpsearch.data.forms.digits import DIGITS, BundledDigits
from hpsearch.data.lookup import DataLocations, download_published, find_file
from hpsearch.data.published import FILE_NAMES, PublishedSet, check_published
from hpsearch.data.registry import catalog_names, resolve_dataset, unknown_dataset
from hpsearch.data.splits import SelectionData
from hpsearch.errors import DataError
from hpsearch.study.settings import DataSettings


class FileState(Enum):
    VERIFIED = "verified"
    UNVERIFIED = "no published checksum"
    WRONG = "wrong"
    MISSING = "missing"


@dataclass(frozen=True, kw_only=True, slots=True)
class FileCheck:
    """The result of `verify_dataset` for one file.

    Args:
        path: None if the file is missing or comes with scikit-learn.
        sha256: SHA-256 of the unpacked content; None if it could not be read.
        problem: one line, if the state is WRONG or MISSING.
    """

    file_name: str
    path: Path | None
    state: FileState
    sha256: str | None = None
    problem: str | None = None

    @property
    def is_usable(self) -> bool:
        return self.state in (FileState.VERIFIED, FileState.UNVERIFIED)


def load_selection_data(settings: DataSettings, *, locations: DataLocations) -> SelectionData:
    """Load the training and validation parts of a data set. Test files are never opened.

    Raises:
        InputError: no such data set, or `train_samples` exceeds the number of training images.
        DataError: files are missing, damaged, or do not match their checksums.
    """
    return resolve_dataset(settings.dataset).load_selection(settings.train_samples, locations)


def fetch_dataset(name: str, locations: DataLocations) -> tuple[Path, ...]:
    """Verify all four files of a published set, and download the missing ones.

    Downloads go into the cache, where a wrong file is replaced. Repeated calls, and concurrent calls by several
    processes, are safe.

    Returns:
        The files' paths; empty for digits, which come with scikit-learn.
    Raises:
        InputError: the catalogue has no such set.
        DataError: a file cannot be downloaded, or a user's own file (in HPSEARCH_DATA) is wrong.
    """
    published = _find_published(name)
    if published is None:
        return ()
    return tuple(_fetch_file(published, file_name, locations) for file_name in FILE_NAMES)


def verify_dataset(name: str, locations: DataLocations) -> tuple[FileCheck, ...]:
    """Verify all four files of a published set in the folders that `load_selection_data` uses. Never downloads.

    Raises:
        InputError: the catalogue has no such set.
        DataError: HPSEARCH_DATA is not a folder.
    """
    published = _find_published(name)
    if published is None:
        (checksum,) = BundledDigits().load_selection(None, locations).checksums.values()
        return (FileCheck(file_name=DIGITS, path=None, state=FileState.UNVERIFIED, sha256=checksum),)
    return tuple(_verify_file(published, file_name, locations.folders(name)) for file_name in FILE_NAMES)


def _find_published(name: str) -> PublishedSet | None:
    """The published set of this name; None for digits."""
    if name not in catalog_names():  # a folder or a pickle has neither checksums nor mirrors
        raise unknown_dataset(name)
    return published.PUBLISHED_SETS.get(name)


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


def _verify_file(published: PublishedSet, file_name: str, folders: Iterable[Path]) -> FileCheck:
    folders = tuple(folders)
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
