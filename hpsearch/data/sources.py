"""Resolve the `dataset` key of a study file: a published set, the bundled digits, a folder, or a pickle.

`catalog` and `held_out` read the data from the source that `resolve_dataset` returns.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from pathlib import Path

from hpsearch.data import published
from hpsearch.data.data_file import DataFile, read_data_file
from hpsearch.data.digits import DIGITS
from hpsearch.data.download import DownloadProgress
from hpsearch.data.lookup import DataLocations, find_file, obtain_file
from hpsearch.data.published import FILE_NAMES, TRAINING_FILE_NAMES, PublishedSet, refuse_test_file
from hpsearch.errors import DataError, InputError
from hpsearch.study.definition import StudyDefinition
from hpsearch.wording import did_you_mean

_PICKLE_ENDINGS = (".pkl.gz", ".pkl")
_OTHER_CHOICES = "a folder of IDX files, or the path of an mnist.pkl.gz"


@dataclass(frozen=True, slots=True)
class BundledDigits:
    """The digits that come with scikit-learn."""


@dataclass(frozen=True, slots=True)
class IdxFolder:
    """A folder with the IDX files under their four standard names, gzipped or not."""

    path: Path


@dataclass(frozen=True, slots=True)
class PickledFile:
    """An mnist.pkl.gz file, or its unpacked form."""

    path: Path


def catalog_names() -> tuple[str, ...]:
    """The data sets that are referred to by name."""
    return (*published.PUBLISHED_SETS, DIGITS)


def with_absolute_dataset(definition: StudyDefinition) -> StudyDefinition:
    """Return the definition with an absolute path to existing data, because workers may start in another folder."""
    dataset = definition.data.dataset
    if dataset in catalog_names() or not dataset.strip():
        return definition
    with contextlib.suppress(OSError, RuntimeError, ValueError):  # resolve_dataset reports these errors
        path = Path(dataset).expanduser()
        if path.exists():
            data = definition.data.model_copy(update={"dataset": str(path.absolute())})
            return definition.model_copy(update={"data": data})
    return definition


def resolve_dataset(dataset: str) -> PublishedSet | BundledDigits | IdxFolder | PickledFile:
    """Resolve `dataset`: a name in the catalogue, otherwise a path (relative to the working directory).

    Raises:
        InputError: neither a name in the catalogue nor a path, or a file of another kind.
        DataError: the path does not exist, or may not be accessed.
    """
    if dataset in published.PUBLISHED_SETS:
        return published.PUBLISHED_SETS[dataset]
    if dataset == DIGITS:
        return BundledDigits()
    if not dataset.strip():  # Path("") would be the working directory
        raise unknown_dataset(dataset)
    try:
        path = Path(dataset).expanduser()
        is_folder, is_there = path.is_dir(), path.exists()
    except PermissionError as error:
        raise DataError(
            f"data.dataset: {dataset!r} cannot be looked at: {error.strerror}",
            hint="check the path and its permissions",
        ) from error
    except (OSError, RuntimeError) as error:  # too long for a path, or "~" of an unknown user
        raise unknown_dataset(dataset) from error
    if is_folder:
        return IdxFolder(path)
    if is_there:
        return _resolve_existing_file(dataset, path)
    if "/" in dataset or dataset.endswith(_PICKLE_ENDINGS):
        raise DataError(
            f"data.dataset: no file or folder {dataset!r}",
            hint=f"expected {_list_names()}, {_OTHER_CHOICES}",
        )
    raise unknown_dataset(dataset)


def unknown_dataset(dataset: str) -> InputError:
    """The error for a name that is not in the catalogue."""
    meant = did_you_mean(dataset.lower(), catalog_names())
    return InputError(
        f"data.dataset: unknown data set {dataset!r}",
        hint=f"{f'{meant} ' if meant else ''}expected {_list_names()}, {_OTHER_CHOICES}",
    )


def read_training_file(
    source: PublishedSet | IdxFolder,
    file_name: str,
    locations: DataLocations,
    *,
    progress: DownloadProgress | None = None,
) -> DataFile:
    """Read a training file of a published set (verified, downloaded if necessary) or of a user's own folder.

    Raises:
        DataError: the file is missing, unreadable, does not match its checksum, or is a published test file under
            another name.
    """
    if file_name not in TRAINING_FILE_NAMES:
        raise DataError(f"{file_name} is no training file", hint="test files are read by hpsearch test STUDY only")
    if isinstance(source, PublishedSet):
        return obtain_file(source, file_name, locations, progress=progress)
    file = read_data_file(find_in_folder(source, file_name))
    refuse_test_file(file)
    return file


def find_in_folder(source: IdxFolder, file_name: str) -> Path:
    """The path of one of the four files. Raises DataError if it is missing."""
    path = find_file(file_name, source.path)
    if path is None:
        raise DataError(
            f"{source.path}: no {file_name}.gz or {file_name} in this folder",
            hint=f"a folder of IDX files holds {', '.join(FILE_NAMES)}, each with .gz or without",
        )
    return path


def _resolve_existing_file(dataset: str, path: Path) -> PickledFile:
    if not path.name.endswith(_PICKLE_ENDINGS):
        raise InputError(
            f"data.dataset: {dataset!r} is a file of an unknown kind, expected a name that ends in .pkl.gz",
            hint="for IDX files name the folder that holds them",
        )
    return PickledFile(path)


def _list_names() -> str:
    return ", ".join(catalog_names())
