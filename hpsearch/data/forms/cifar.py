"""CIFAR-10 and CIFAR-100 in the python form that their authors publish: pickled dictionaries in a tar.

Each dictionary has `data`, [N, 3072] uint8: the red, green and blue planes of 32 x 32 pixels, row by row; and `labels`
(CIFAR-10) or `fine_labels` (CIFAR-100). The batches are in random order, so the last sixth of the training images
is for validation, as in MNIST. The test batch is read by the vault alone: in the tar it is passed over.
Source: https://www.cs.toronto.edu/~kriz/cifar.html
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final, Self, final

import numpy as np
from numpy.typing import NDArray

from hpsearch.data.classes import check_label_range, count_classes
from hpsearch.data.files.archive import read_members
from hpsearch.data.files.data_file import DOWNLOAD_AGAIN, DataFile
from hpsearch.data.files.file_check import FileCheck
from hpsearch.data.files.lookup import DataLocations, find_file
from hpsearch.data.files.published_archive import (
    CIFAR10,
    CIFAR100,
    PublishedArchive,
    fetch_archive,
    obtain_members,
    verify_archive,
)
from hpsearch.data.files.restricted_pickle import DICTIONARIES, ArrayRecord, RefusedPickleError, unpickle_arrays
from hpsearch.data.forms.form import DataForm, DataRequest, OpeningPermit
from hpsearch.data.splits import SelectionData, Split, record_of_names, scaled_split, selection_slices
from hpsearch.errors import DataError
from hpsearch.study.settings import DataSettings

IMAGE_SHAPE: Final = (3, 32, 32)
_NUM_PIXELS = 3 * 32 * 32


@dataclass(frozen=True, kw_only=True, slots=True)
class _Kind:
    """The files of one of the two sets, and the keys in them."""

    training_files: tuple[str, ...]
    test_file: str
    names_file: str
    labels_key: str
    names_key: str
    num_classes: int


_CIFAR10 = _Kind(
    training_files=tuple(f"data_batch_{number}" for number in range(1, 6)),
    test_file="test_batch",
    names_file="batches.meta",
    labels_key="labels",
    names_key="label_names",
    num_classes=10,
)
_CIFAR100 = _Kind(
    training_files=("train",),
    test_file="test",
    names_file="meta",
    labels_key="fine_labels",
    names_key="fine_label_names",
    num_classes=100,
)
_KINDS = (_CIFAR10, _CIFAR100)
_NAMED: Mapping[str, tuple[_Kind, PublishedArchive]] = MappingProxyType(
    {"cifar10": (_CIFAR10, CIFAR10), "cifar100": (_CIFAR100, CIFAR100)}
)


@dataclass(frozen=True, slots=True)
class _Cifar(DataForm):
    @property
    @abstractmethod
    def _name(self) -> str:
        """The data set's name for people."""

    @abstractmethod
    def _read(self, is_test: bool, locations: DataLocations) -> tuple[_Kind, dict[str, DataFile], Path]:
        """The batches of one part, and the file with the names of classes if there is one; and where they are."""

    def load_selection(self, request: DataRequest) -> SelectionData:
        kind, files, place = self._read(False, request.locations)
        batches = [files[name] for name in kind.training_files]
        images, labels = _parse_batches(batches, kind)
        train, validation = selection_slices(len(images), request.settings.train_samples, source=str(place))
        count_classes(labels[: validation.start], labels[validation], str(place))
        class_names = _class_names(files.get(kind.names_file), kind)
        return SelectionData(
            name=self._name,
            train=scaled_split(images[train], labels[train]),
            validation=scaled_split(images[validation], labels[validation]),
            example_shape=IMAGE_SHAPE,
            num_classes=kind.num_classes,
            class_names=class_names,
            checksums={name: files[name].sha256 for name in kind.training_files},
            record=record_of_names("CIFAR", class_names, IMAGE_SHAPE),
        )

    def read_test_part(self, permit: OpeningPermit, request: DataRequest) -> tuple[Split, dict[str, str]]:
        kind, files, _ = self._read(True, request.locations)
        images, labels = _parse_batches([files[kind.test_file]], kind)
        return scaled_split(images, labels), {kind.test_file: files[kind.test_file].sha256}


@final
@dataclass(frozen=True, slots=True)
class PublishedCifar(_Cifar):
    """A published set: verified, and downloaded if necessary."""

    name: str

    @classmethod
    def named(cls) -> Mapping[str, Self]:
        return {name: cls(name) for name in _NAMED}

    @property
    def _name(self) -> str:
        return self.name

    def _read(self, is_test: bool, locations: DataLocations) -> tuple[_Kind, dict[str, DataFile], Path]:
        kind, archive = _NAMED[self.name]
        names = (kind.test_file,) if is_test else (*kind.training_files, kind.names_file)
        return kind, *obtain_members(archive, names, locations)

    def fetch(self, locations: DataLocations) -> tuple[Path, ...]:
        kind, archive = _NAMED[self.name]
        return fetch_archive(archive, kind.training_files[0], locations)

    def verify(self, request: DataRequest) -> tuple[FileCheck, ...]:
        kind, archive = _NAMED[self.name]
        return verify_archive(archive, kind.training_files[0], request.locations)

    def test_file_marks(self, settings: DataSettings) -> set[str]:
        kind, archive = _NAMED[self.name]
        return {f"md5:{archive.member_md5[kind.test_file]}"}


@final
@dataclass(frozen=True, slots=True)
class CifarFiles(_Cifar):
    """An archive in this form, or the folder into which it was unpacked."""

    path_description = "the path of a cifar-10-python.tar.gz"
    looked_for = "the batches of CIFAR (data_batch_1, or train)"
    endings = (".tar.gz", ".tgz", ".tar")

    path: Path

    @classmethod
    def at(cls, path: Path) -> Self | None:
        if path.is_dir():
            # `train` alone is also the name of a folder of images.
            starts = (find_file(kind.training_files[0], path) for kind in _KINDS)
            return cls(path) if any(start is not None and start.is_file() for start in starts) else None
        return cls(path) if path.name.endswith(cls.endings) else None

    @property
    def _name(self) -> str:
        return self.path.resolve().name

    def _read(self, is_test: bool, locations: DataLocations) -> tuple[_Kind, dict[str, DataFile], Path]:
        wanted = {kind: (kind.test_file,) if is_test else kind.training_files for kind in _KINDS}
        names = [name for kind in _KINDS for name in (*wanted[kind], kind.names_file)]
        files = read_members(self.path, names)
        for kind in _KINDS:
            if all(name in files for name in wanted[kind]):
                return kind, files, self.path
        expected = " or ".join(wanted[kind][0] for kind in _KINDS)
        missing = [name for kind in _KINDS if wanted[kind][0] in files for name in wanted[kind] if name not in files]
        raise DataError(
            f"{self.path}: no {missing[0] if missing else expected} in it",
            hint="expected the files of cifar-10-python.tar.gz or cifar-100-python.tar.gz",
        )


def _parse_batches(files: Sequence[DataFile], kind: _Kind) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Images [N, 3, 32, 32] and labels [N] of some batches, in their order.

    Raises:
        DataError: a batch is damaged, contains anything but arrays, numbers and text, or has other shapes.
    """
    pairs = [_parse_batch(file, kind) for file in files]
    images = np.concatenate([images for images, _ in pairs]).reshape(-1, *IMAGE_SHAPE)
    return images, np.concatenate([labels for _, labels in pairs])


def _parse_batch(file: DataFile, kind: _Kind) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    document = _unpickled(file)
    try:
        record = document.get("data")
        images = record.build() if isinstance(record, ArrayRecord) else None
    except RefusedPickleError as error:
        raise DataError(f"{file.source}: refused {error}", hint=DOWNLOAD_AGAIN) from error
    if images is None or images.dtype != np.uint8 or images.ndim != 2 or images.shape[1] != _NUM_PIXELS:
        found = "none" if images is None else f"{list(images.shape)} of {images.dtype}"
        raise DataError(
            f"{file.source}: expected `data` of shape [N, {_NUM_PIXELS}] and type uint8, found {found}",
            hint=DOWNLOAD_AGAIN,
        )
    labels = document.get(kind.labels_key)
    if not isinstance(labels, list) or not all(type(label) is int for label in labels):
        raise DataError(f"{file.source}: expected `{kind.labels_key}`, a list of whole numbers", hint=DOWNLOAD_AGAIN)
    if len(labels) != len(images):
        raise DataError(f"{file.source}: {len(images)} images, but {len(labels)} labels", hint=DOWNLOAD_AGAIN)
    if any(abs(label) >= 2**31 for label in labels):
        raise DataError(f"{file.source}: a label beyond 32 bits", hint=DOWNLOAD_AGAIN)
    numbers = np.array(labels, dtype=np.int64)
    check_label_range(numbers, file.source, kind.num_classes)
    return images, numbers.astype(np.uint8)


def _class_names(file: DataFile | None, kind: _Kind) -> tuple[str, ...]:
    """The names of the classes; empty if the file with the names is missing."""
    if file is None:
        return ()
    names = _unpickled(file).get(kind.names_key)
    texts = [_text(name) for name in names] if isinstance(names, list) else []
    if len(texts) != kind.num_classes or not all(isinstance(name, str) for name in texts):
        raise DataError(
            f"{file.source}: expected `{kind.names_key}`, {kind.num_classes} names of classes", hint=DOWNLOAD_AGAIN
        )
    return tuple(map(str, texts))


def _unpickled(file: DataFile) -> dict[object, Any]:
    """The dictionary with text as keys: Python 2 wrote text, and Python 3 keeps it as bytes if asked."""
    try:
        document = unpickle_arrays(file.content, DICTIONARIES)
    except RefusedPickleError as error:
        raise DataError(
            f"{file.source}: refused to unpickle {error}; none of its code was run",
            hint="only numpy arrays, numbers and text are admitted: get the file from a source that you trust",
        ) from error
    if not isinstance(document, dict):
        raise DataError(f"{file.source}: expected a dictionary", hint=DOWNLOAD_AGAIN)
    return {_text(key): value for key, value in document.items()}


def _text(value: object) -> object:
    return value.decode("latin-1") if isinstance(value, bytes) else value
