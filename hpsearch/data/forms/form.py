"""What every form of data can do: recognise a data set, load the parts for selection, and read the test part."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Self, final

from hpsearch.data.lookup import DataLocations
from hpsearch.data.splits import SelectionData, Split


@final
@dataclass(frozen=True, slots=True)
class OpeningPermit:
    """Permits reading test images. Only `test_split` creates one, when the intent to open the test set is on record."""


class DataForm(ABC):
    """One data set.

    Args:
        path_description: the form in hints about a dataset's path; empty if its data sets have names.
        endings: of the file names of this form.
    """

    path_description: ClassVar[str] = ""
    endings: ClassVar[tuple[str, ...]] = ()

    @classmethod
    def named(cls) -> Mapping[str, Self]:
        """The data sets of this form that are referred to by name."""
        return {}

    @classmethod
    def at(cls, path: Path) -> Self | None:
        """The data set at an existing path; None if it has another form."""
        return None

    @abstractmethod
    def load_selection(self, train_samples: int | None, locations: DataLocations) -> SelectionData:
        """Load the training and validation parts. Test files are never opened.

        Raises:
            InputError: `train_samples` exceeds the number of training images.
            DataError: files are missing, damaged, or do not match their checksums; or they are published test files.
        """

    @abstractmethod
    def read_test_part(self, permit: OpeningPermit, locations: DataLocations) -> tuple[Split, dict[str, str]]:
        """Read the test images, with their checksums as in `HeldOutSplit`. Raises DataError as `load_selection`."""

    def test_file_marks(self) -> set[str]:
        """Marks that identify test files of their own (`test_file_marks`), without opening them."""
        return set()
