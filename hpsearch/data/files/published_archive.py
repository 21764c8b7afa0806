"""Data sets that are published as one archive: where it is found or downloaded, and checks against the checksums.

An archive is searched for in HPSEARCH_DATA/<set>/, HPSEARCH_DATA/ and the cache; the files that it contains may lie
there unpacked instead. Checksums as in torchvision 0.29 (torchvision/datasets/cifar.py and mnist.py).
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from hpsearch import environment
from hpsearch.data.files.archive import md5_of, read_members
from hpsearch.data.files.data_file import DataFile
from hpsearch.data.files.download import MirrorsFailedError, download_file
from hpsearch.data.files.file_check import FileCheck, FileState
from hpsearch.data.files.lookup import DataLocations, find_file
from hpsearch.errors import DataError

_logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class PublishedArchive:
    """One archive.

    Args:
        name: of the folder for downloads, and in HPSEARCH_DATA.
        mirrors: addresses of folders, ending in "/", in the order to try them.
        md5: of the archive.
        folder: name of the folder into which it unpacks.
        member_md5: MD5 of the unpacked files in it, as far as they are published.
    """

    name: str
    file_name: str
    mirrors: tuple[str, ...]
    md5: str
    folder: str
    member_md5: Mapping[str, str] = field(default_factory=dict)


CIFAR10: PublishedArchive = PublishedArchive(
    name="cifar10",
    file_name="cifar-10-python.tar.gz",
    mirrors=("https://www.cs.toronto.edu/~kriz/",),
    md5="c58f30108f718f92721af3b95e74349a",
    folder="cifar-10-batches-py",
    member_md5={
        "data_batch_1": "c99cafc152244af753f735de768cd75f",
        "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
        "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
        "data_batch_4": "634d18415352ddfa80567beed471001a",
        "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
        "test_batch": "40351d587109b95175f43aff81a1287e",
        "batches.meta": "5ff9c542aee3614f3951f8cda6e48888",
    },
)
CIFAR100: PublishedArchive = PublishedArchive(
    name="cifar100",
    file_name="cifar-100-python.tar.gz",
    mirrors=("https://www.cs.toronto.edu/~kriz/",),
    md5="eb9058c3a382ffc7106e4002c42a8d85",
    folder="cifar-100-python",
    member_md5={
        "train": "16019d7e3df5f24257cddd939b257f8d",
        "test": "f0ef6b0ae62326f3e7ffdfab6717acfc",
        "meta": "7973b15100ade9c7d40fb424638fde48",
    },
)
EMNIST: PublishedArchive = PublishedArchive(
    name="emnist",
    file_name="gzip.zip",
    mirrors=("https://biometrics.nist.gov/cs_links/EMNIST/",),
    md5="58c8d27c78d21e728a6bc7b3cc06412e",
    folder="gzip",
)


def obtain_members(
    archive: PublishedArchive, names: Sequence[str], locations: DataLocations
) -> tuple[dict[str, DataFile], Path]:
    """Find or download the archive, and read and verify some of its files. No other file in it is decoded.

    Args:
        names: the files; the first of them tells whether a folder has them unpacked.
    Returns:
        Name -> file, and the archive or folder.
    Raises:
        DataError: it is missing and cannot be downloaded, is unreadable, lacks a file, or does not match its checksums.
    """
    place = find_archive(archive, names[0], locations) or download_archive(archive, locations)
    if not archive.member_md5:  # then only the whole archive can be verified
        _check_archive(archive, place)
    files = read_members(place, names, folder=archive.folder)
    if missing := [name for name in names if name not in files]:
        raise DataError(
            f"{place}: no {missing[0]} in it", hint=f"delete it, then run: hpsearch data fetch {archive.name}"
        )
    for name, file in files.items():
        _check_member(archive, name, file)
    return files, place


def find_archive(archive: PublishedArchive, first_name: str, locations: DataLocations) -> Path | None:
    """The archive, or the folder with its unpacked files, of which one is `first_name`; None if there is neither.

    Raises:
        DataError: HPSEARCH_DATA is not a folder, or a folder cannot be searched.
    """
    for folder in locations.folders(archive.name):
        if (packed := find_file(archive.file_name, folder)) is not None:
            return packed
        if find_file(first_name, folder / archive.folder, folder) is not None:
            return folder
    return None


def download_archive(archive: PublishedArchive, locations: DataLocations) -> Path:
    """Download the archive into the cache and verify it. Replaces an existing file.

    Raises:
        DataError: downloading is not allowed, no mirror has the correct file, or the cache cannot be written.
    """
    folders = ", ".join(map(str, locations.folders(archive.name)))
    missing = f"{archive.name}: no {archive.file_name} (looked in {folders})"
    hint = (
        f"run where there is a network: hpsearch data fetch {archive.name}; "
        f"or set {environment.DATA} to a folder that holds {archive.file_name}"
    )
    if not locations.allow_download:
        raise DataError(f"{missing}; downloading is switched off", hint=hint)

    def verify(path: Path, address: str) -> None:
        _check_archive(archive, path, source=address)

    folder = locations.cache_folder(archive.name)
    try:
        return download_file(archive.file_name, archive.mirrors, folder, verify=verify, progress=locations.progress)
    except MirrorsFailedError as error:
        raise DataError(f"{missing}; {error}", hint=hint) from error


def fetch_archive(archive: PublishedArchive, first_name: str, locations: DataLocations) -> tuple[Path, ...]:
    """Verify the archive or its unpacked files, or download it.

    A wrong archive in the cache is replaced; the user's own is an error.

    Raises:
        DataError: as `obtain_members`.
    """
    place = find_archive(archive, first_name, locations)
    if place is None:
        return (download_archive(archive, locations),)
    try:
        _check_place(archive, place)
    except DataError:
        if place.parent != locations.cache_folder(archive.name):
            raise
        return (download_archive(archive, locations),)
    return (place,)


def verify_archive(archive: PublishedArchive, first_name: str, locations: DataLocations) -> tuple[FileCheck, ...]:
    """Verify the archive, or its unpacked files. Never downloads. Raises DataError if HPSEARCH_DATA is no folder."""
    place = find_archive(archive, first_name, locations)
    if place is None:
        problem = f"not in {', '.join(map(str, locations.folders(archive.name)))}"
        return (FileCheck(file_name=archive.file_name, path=None, state=FileState.MISSING, problem=problem),)
    name = archive.file_name if place.is_file() else archive.folder
    try:
        state = FileState.VERIFIED if _check_place(archive, place) else FileState.UNVERIFIED
    except DataError as error:
        return (FileCheck(file_name=name, path=place, state=FileState.WRONG, problem=str(error)),)
    return (FileCheck(file_name=name, path=place, state=state),)


def _check_place(archive: PublishedArchive, place: Path) -> bool:
    """Compare an archive, or all unpacked files, with the checksums; False if there is none to compare with."""
    if place.is_file():
        return _check_archive(archive, place)
    files = read_members(place, archive.member_md5, folder=archive.folder)
    if missing := [name for name in archive.member_md5 if name not in files]:
        raise DataError(f"{place}: no {missing[0]} in it", hint=f"unpack {archive.file_name} again")
    for name, file in files.items():
        _check_member(archive, name, file)
    return bool(files)


def _check_archive(archive: PublishedArchive, place: Path, source: str | None = None) -> bool:
    if place.is_dir():
        _logger.warning("%s: not verified: no checksums of the unpacked files of %s are published", place, archive.name)
        return False
    found = md5_of(place)
    if found != archive.md5:
        raise DataError(
            f"{source or place}: wrong MD5 for {archive.name}'s {archive.file_name}: expected {archive.md5}, "
            f"found {found}",
            hint=f"delete the file, then run: hpsearch data fetch {archive.name}",
        )
    return True


def _check_member(archive: PublishedArchive, name: str, file: DataFile) -> None:
    expected = archive.member_md5.get(name)
    if expected is None:
        return
    found = hashlib.md5(file.content, usedforsecurity=False).hexdigest()
    if found != expected:
        raise DataError(
            f"{file.source}: wrong MD5 for {archive.name}'s {name}: expected {expected}, found {found}",
            hint=f"delete the file, then run: hpsearch data fetch {archive.name}",
        )
