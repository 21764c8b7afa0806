"""What every form of data can do: recognise a data set, load the parts for selection, and read the test part.

A new form is a module beside this one with a subclass of `DataForm`, and an entry in `FORMS` in data/registry.py.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Final, Self, final

from hpsearch.data.files.file_check import FileCheck, FileState
from hpsearch.data.files.lookup import DataLocations
from hpsearch.data.splits import SelectionData, Split
from hpsearch.study.settings import DataSettings

# Keys of [data] that every form takes. A form names the others that it takes in `DataForm.keys`.
COMMON_KEYS: Final[frozenset[str]] = frozenset({"dataset", "train_samples", "max_resident_bytes"})
# Of forms whose split hpsearch draws.
SPLIT_KEYS: Final[frozenset[str]] = frozenset({"validation", "test", "split_seed"})


@final
@dataclass(frozen=True, slots=True)
class OpeningPermit:
    """Permits reading test images. Only `test_split` creates one, when the intent to open the test set is on record."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DataRequest:
    """What to load.

    Args:
        settings: the section [data] of the study.
        stored: `SelectionData.record` of the study, whose split and preparation are applied again; None: they are made
            anew, for a new study.
    """

    settings: DataSettings
    locations: DataLocations
    stored: Mapping[str, Any] | None = None


class DataForm(ABC):
    """One data set.

    Args:
        keys: of [data] that this form takes besides COMMON_KEYS.
        path_description: the form in hints about a dataset's path; empty if its data sets have names.
        looked_for: what makes a folder one of this form, for the error about other folders; empty: no folder is one.
        endings: of the file names of this form.
    """

    path_description: ClassVar[str] = ""
    looked_for: ClassVar[str] = ""
    endings: ClassVar[tuple[str, ...]] = ()
    keys: ClassVar[frozenset[str]] = frozenset()

    @classmethod
    def named(cls) -> Mapping[str, Self]:
        """The data sets of this form that are referred to by name."""
        return {}

    @classmethod
    def called(cls, dataset: str) -> Self | None:
        """The data set of this form that `dataset` refers to by neither a listed name nor a path; None if none."""
        return None

    @classmethod
    def at(cls, path: Path) -> Self | None:
        """The data set at an existing path; None if it has another form."""
        return None

    @abstractmethod
    def load_selection(self, request: DataRequest) -> SelectionData:
        """Load the training and validation parts. Test files are never opened.

        Raises:
            InputError: `train_samples` exceeds the number of training images.
            DataError: files are missing, damaged, or do not match their checksums; or they are published test files.
        """

    @abstractmethod
    def read_test_part(self, permit: OpeningPermit, request: DataRequest) -> tuple[Split, dict[str, str]]:
        """Read the test images, with their checksums as in `HeldOutSplit`. Raises DataError as `load_selection`."""

    def fetch(self, locations: DataLocations) -> tuple[Path, ...]:
        """Find or download all files of a named data set: their paths. Raises DataError as `fetch_dataset`."""
        return ()

    def verify(self, request: DataRequest) -> tuple[FileCheck, ...]:
        """Verify all files of a named data set; what comes with a package has a checksum, but none is published."""
        checksums = self.load_selection(request).checksums
        return tuple(
            FileCheck(file_name=name, path=None, state=FileState.UNVERIFIED, sha256=sha256)
            for name, sha256 in checksums.items()
        )

    def test_file_marks(self, settings: DataSettings) -> set[str]:
        """Marks that identify test files of their own (`data.test_file_marks`), without opening them.

        Args:
            settings: the section [data] of the study; `data.test` may name a file or a folder.
        Raises:
            DataError: test files are missing.
        """
        return set()
