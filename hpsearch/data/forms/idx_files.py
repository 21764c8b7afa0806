"""Data sets in the four IDX files of MNIST: published sets, which can be downloaded, and folders of a user."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Self, final

from hpsearch.data import published
from hpsearch.data.classes import count_classes
from hpsearch.data.data_file import DataFile, read_data_file
from hpsearch.data.forms.form import DataForm, OpeningPermit
from hpsearch.data.idx import parse_pair
from hpsearch.data.lookup import DataLocations, find_file, obtain_file
from hpsearch.data.published import FILE_NAMES, TEST_IMAGES, TEST_LABELS, TRAIN_IMAGES, TRAIN_LABELS
from hpsearch.data.splits import SelectionData, Split, scaled_split, selection_slices
from hpsearch.errors import DataError


@dataclass(frozen=True, slots=True)
class _IdxFiles(DataForm):
    @property
    @abstractmethod
    def _name(self) -> str:
        """The data set's name for people."""

    @abstractmethod
    def _read(self, file_name: str, locations: DataLocations) -> DataFile:
        """Read and verify one of the four files."""

    def read_training_file(self, file_name: str, locations: DataLocations) -> DataFile:
        if file_name not in published.TRAINING_FILE_NAMES:
            raise DataError(
                f"{file_name} is not a training file", hint="only `hpsearch test STUDY` reads the test files"
            )
        return self._read(file_name, locations)

    def load_selection(self, train_samples: int | None, locations: DataLocations) -> SelectionData:
        images_file = self.read_training_file(TRAIN_IMAGES, locations)
        labels_file = self.read_training_file(TRAIN_LABELS, locations)
        images, labels = parse_pair(images_file, labels_file)
        published.refuse_test_images(images, images_file.source)
        train, validation = selection_slices(len(images), train_samples, source=images_file.source)
        all_train = labels[: validation.start]  # before `train_samples` limits them
        num_classes = count_classes(all_train, labels[validation], labels_file.source)
        _, rows, columns = images.shape
        return SelectionData(
            name=self._name,
            train=scaled_split(images[train], labels[train]),
            validation=scaled_split(images[validation], labels[validation]),
            image_shape=(rows, columns),
            num_classes=num_classes,
            checksums={TRAIN_IMAGES: images_file.sha256, TRAIN_LABELS: labels_file.sha256},
        )

    def read_test_part(self, permit: OpeningPermit, locations: DataLocations) -> tuple[Split, dict[str, str]]:
        images_file, labels_file = self._read(TEST_IMAGES, locations), self._read(TEST_LABELS, locations)
        checksums = {TEST_IMAGES: images_file.sha256, TEST_LABELS: labels_file.sha256}
        return scaled_split(*parse_pair(images_file, labels_file)), checksums


@final
@dataclass(frozen=True, slots=True)
class PublishedData(_IdxFiles):
    """A published set: verified, and downloaded if necessary."""

    published_set: published.PublishedSet

    @classmethod
    def named(cls) -> Mapping[str, Self]:
        return {name: cls(entry) for name, entry in published.PUBLISHED_SETS.items()}

    @property
    def _name(self) -> str:
        return self.published_set.name

    def _read(self, file_name: str, locations: DataLocations) -> DataFile:
        return obtain_file(self.published_set, file_name, locations)

    def test_file_marks(self) -> set[str]:
        checksums = self.published_set.files[TEST_IMAGES]
        return {f"md5:{checksums.packed_md5}", *({f"sha256:{checksums.sha256}"} if checksums.sha256 else ())}


@final
@dataclass(frozen=True, slots=True)
class IdxFolder(_IdxFiles):
    """A folder with the IDX files under their four standard names, gzipped or not."""

    path_description = "a folder of IDX files"

    path: Path

    @classmethod
    def at(cls, path: Path) -> Self | None:
        return cls(path) if path.is_dir() else None

    @property
    def _name(self) -> str:
        return self.path.resolve().name

    def read_training_file(self, file_name: str, locations: DataLocations) -> DataFile:
        file = _IdxFiles.read_training_file(self, file_name, locations)
        published.refuse_test_file(file)
        return file

    def _read(self, file_name: str, locations: DataLocations) -> DataFile:
        return read_data_file(self._find(file_name))

    def test_file_marks(self) -> set[str]:
        paths = [self._find(file_name).resolve() for file_name in (TEST_IMAGES, TEST_LABELS)]
        return {f"file:{path}:{path.stat().st_size}:{path.stat().st_mtime_ns}" for path in paths}

    def _find(self, file_name: str) -> Path:
        path = find_file(file_name, self.path)
        if path is None:
            raise DataError(
                f"{self.path}: no {file_name}.gz or {file_name} in this folder",
                hint=f"a folder of IDX files has the files {', '.join(FILE_NAMES)}, each with or without .gz",
            )
        return path
