"""Data sets in four IDX files: published sets, which can be downloaded, and folders and archives of a user."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Self, final

from hpsearch.data.classes import count_classes
from hpsearch.data.files import published
from hpsearch.data.files.archive import member_names, read_members
from hpsearch.data.files.data_file import DataFile, read_data_file
from hpsearch.data.files.file_check import FileCheck
from hpsearch.data.files.idx_layout import EMNIST_LAYOUTS, LAYOUTS, MNIST_LAYOUT, IdxLayout, layouts_in
from hpsearch.data.files.lookup import DataLocations, fetch_published, find_file, obtain_file, verify_published
from hpsearch.data.files.path_marks import file_marks
from hpsearch.data.files.published_archive import EMNIST, fetch_archive, obtain_members, verify_archive
from hpsearch.data.forms.form import DataForm, DataRequest, OpeningPermit
from hpsearch.data.splits import SelectionData, Split, record_of_names, scaled_split, selection_slices
from hpsearch.errors import DataError
from hpsearch.study.settings import DataSettings

_EMNIST_NAMES = {"emnist-balanced": "balanced", "emnist-letters": "letters"}  # of the catalogue -> of EMNIST


@dataclass(frozen=True, slots=True)
class _IdxFiles(DataForm):
    @property
    @abstractmethod
    def _name(self) -> str:
        """The data set's name for people."""

    @abstractmethod
    def _layout(self) -> IdxLayout:
        """The names and the form of the files. Raises DataError if they cannot be told."""

    @abstractmethod
    def _read(self, file_names: tuple[str, str], locations: DataLocations) -> tuple[DataFile, DataFile]:
        """Read and verify an image file and its label file."""

    def read_training_files(self, file_names: tuple[str, str], locations: DataLocations) -> tuple[DataFile, DataFile]:
        """Read the training images and labels. Raises DataError for any other file."""
        for file_name in file_names:
            if file_name not in self._layout().training_files:
                raise DataError(
                    f"{file_name} is not a training file", hint="only `hpsearch test STUDY` reads the test files"
                )
        return self._read(file_names, locations)

    def load_selection(self, request: DataRequest) -> SelectionData:
        layout = self._layout()
        images_file, labels_file = self.read_training_files(layout.training_files, request.locations)
        images, labels = layout.parse(images_file, labels_file)
        published.refuse_test_images(images, images_file.source)
        train, validation = selection_slices(len(images), request.settings.train_samples, source=images_file.source)
        all_train = labels[: validation.start]  # before `train_samples` limits them
        num_classes = count_classes(all_train, labels[validation], labels_file.source)
        _, rows, columns = images.shape
        return SelectionData(
            name=self._name,
            train=scaled_split(images[train], labels[train]),
            validation=scaled_split(images[validation], labels[validation]),
            example_shape=(rows, columns),
            num_classes=len(layout.class_names) or num_classes,
            class_names=layout.class_names,
            checksums={layout.train_images: images_file.sha256, layout.train_labels: labels_file.sha256},
            record=record_of_names("IDX files", layout.class_names, (rows, columns)),
        )

    def read_test_part(self, permit: OpeningPermit, request: DataRequest) -> tuple[Split, dict[str, str]]:
        layout = self._layout()
        images_file, labels_file = self._read(layout.test_files, request.locations)
        checksums = {layout.test_images: images_file.sha256, layout.test_labels: labels_file.sha256}
        return scaled_split(*layout.parse(images_file, labels_file)), checksums


@final
@dataclass(frozen=True, slots=True)
class PublishedData(_IdxFiles):
    """A published set of four files: verified, and downloaded if necessary."""

    published_set: published.PublishedSet

    @classmethod
    def named(cls) -> Mapping[str, Self]:
        return {name: cls(entry) for name, entry in published.PUBLISHED_SETS.items()}

    @property
    def _name(self) -> str:
        return self.published_set.name

    def _layout(self) -> IdxLayout:
        return self.published_set.layout

    def _read(self, file_names: tuple[str, str], locations: DataLocations) -> tuple[DataFile, DataFile]:
        images, labels = (obtain_file(self.published_set, name, locations) for name in file_names)
        return images, labels

    def fetch(self, locations: DataLocations) -> tuple[Path, ...]:
        return fetch_published(self.published_set, locations)

    def verify(self, request: DataRequest) -> tuple[FileCheck, ...]:
        return verify_published(self.published_set, request.locations)

    def test_file_marks(self, settings: DataSettings) -> set[str]:
        checksums = self.published_set.files[self.published_set.layout.test_images]
        return {f"md5:{checksums.packed_md5}", *({f"sha256:{checksums.sha256}"} if checksums.sha256 else ())}


@final
@dataclass(frozen=True, slots=True)
class Emnist(_IdxFiles):
    """A part of EMNIST, which is published as one archive."""

    name: str

    @classmethod
    def named(cls) -> Mapping[str, Self]:
        return {name: cls(name) for name in _EMNIST_NAMES}

    @property
    def _name(self) -> str:
        return self.name

    def _layout(self) -> IdxLayout:
        return EMNIST_LAYOUTS[_EMNIST_NAMES[self.name]]

    def _read(self, file_names: tuple[str, str], locations: DataLocations) -> tuple[DataFile, DataFile]:
        files, _ = obtain_members(EMNIST, file_names, locations)
        return files[file_names[0]], files[file_names[1]]

    def fetch(self, locations: DataLocations) -> tuple[Path, ...]:
        return fetch_archive(EMNIST, self._layout().train_images, locations)

    def verify(self, request: DataRequest) -> tuple[FileCheck, ...]:
        return verify_archive(EMNIST, self._layout().train_images, request.locations)

    def test_file_marks(self, settings: DataSettings) -> set[str]:
        return {f"md5:{EMNIST.md5}:{self._layout().test_images}"}


@dataclass(frozen=True, slots=True)
class _OwnIdxFiles(_IdxFiles):
    """A folder or an archive of a user."""

    path: Path

    @property
    def _name(self) -> str:
        return self.path.resolve().name

    def _layout(self) -> IdxLayout:
        found = layouts_in(member_names(self.path))
        if len(found) > 1:
            names = ", ".join(layout.train_images for layout in found)
            raise DataError(
                f"{self.path}: several data sets in one place: {names}",
                hint="put the four files of one of them into a folder of their own, or name a set of the catalogue",
            )
        return found[0] if found else MNIST_LAYOUT

    def read_training_files(self, file_names: tuple[str, str], locations: DataLocations) -> tuple[DataFile, DataFile]:
        files = _IdxFiles.read_training_files(self, file_names, locations)
        for file in files:
            published.refuse_test_file(file)
        return files

    def _missing(self, file_name: str) -> DataError:
        what = "folder" if self.path.is_dir() else "archive"
        return DataError(
            f"{self.path}: no {file_name}.gz or {file_name} in this {what}",
            hint=f"a {what} of IDX files has the files {', '.join(self._layout().files)}, each with or without .gz",
        )


@final
@dataclass(frozen=True, slots=True)
class IdxFolder(_OwnIdxFiles):
    """A folder with the IDX files of MNIST, EMNIST or QMNIST under their published names, gzipped or not."""

    path_description = "a folder of IDX files"
    looked_for = f"IDX files ({', '.join(MNIST_LAYOUT.files)}, or those of EMNIST or QMNIST, each with or without .gz)"

    @classmethod
    def at(cls, path: Path) -> Self | None:
        names = {name for layout in LAYOUTS for name in layout.files}
        return cls(path) if path.is_dir() and names & member_names(path) else None

    def _read(self, file_names: tuple[str, str], locations: DataLocations) -> tuple[DataFile, DataFile]:
        images, labels = (read_data_file(self._find(name)) for name in file_names)
        return images, labels

    def test_file_marks(self, settings: DataSettings) -> set[str]:
        return file_marks(self._find(file_name) for file_name in self._layout().test_files)

    def _find(self, file_name: str) -> Path:
        path = find_file(file_name, self.path)
        if path is None:
            raise self._missing(file_name)
        return path


@final
@dataclass(frozen=True, slots=True)
class IdxArchive(_OwnIdxFiles):
    """A zip with such files."""

    path_description = "a zip of IDX files"
    endings = (".zip",)

    @classmethod
    def at(cls, path: Path) -> Self | None:
        return cls(path) if path.is_file() and path.name.endswith(cls.endings) else None

    def _read(self, file_names: tuple[str, str], locations: DataLocations) -> tuple[DataFile, DataFile]:
        files = read_members(self.path, file_names)
        for name in file_names:
            if name not in files:
                raise self._missing(name)
        return files[file_names[0]], files[file_names[1]]
