"""Arrays in one file, .npz or .safetensors, under the names of Keras: x_train, y_train, x_test, y_test.

`arrays` has the rules for their shapes and types. Each array is read by itself: x_test and y_test stay packed until the
vault reads them. Without them, test rows are drawn from x_train. Nothing that a pickle would have to make is ever read.
"""

from __future__ import annotations

import logging
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Final, Self, final

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from hpsearch.data.array_split import ArraySplit, checksums_of, own_test_part, selection_of
from hpsearch.data.arrays import NAMES, Examples, examples_of
from hpsearch.data.files.path_marks import file_marks
from hpsearch.data.forms.form import SPLIT_KEYS, DataForm, DataRequest, OpeningPermit
from hpsearch.data.prepared import open_prepared, source_key
from hpsearch.data.splits import SPLIT, SelectionData, Split
from hpsearch.errors import DataError, InputError
from hpsearch.study.settings import DataSettings

_FORM: Final = "array file"  # in the record
_HINT: Final = f"expected {', '.join(NAMES)}; only those of train are needed"
_logger = logging.getLogger(__name__)


@final
@dataclass(frozen=True, slots=True)
class ArrayFile(DataForm):
    """An .npz or .safetensors file. docs/data-images.md describes it."""

    path_description = "the path of an .npz or .safetensors file"
    endings = (".npz", ".safetensors")
    keys: ClassVar[frozenset[str]] = SPLIT_KEYS | {"task"}

    path: Path

    @classmethod
    def at(cls, path: Path) -> Self | None:
        return cls(path) if path.name.endswith(cls.endings) and path.is_file() else None

    def load_selection(self, request: DataRequest) -> SelectionData:
        """Load the training and validation examples, mapped from the cache.

        Raises:
            InputError: a key does not fit the file, or `train_samples` exceeds the number of training examples.
            DataError: arrays are missing, damaged, or of a kind that is not read.
        """
        settings = request.settings
        options = {
            "form": _FORM,
            "validation": settings.validation,
            "test": settings.test,
            "seed": settings.split_seed,
            "task": settings.task,
        }

        def build(folder: Path) -> Mapping[str, Any]:
            with _opened(self.path) as arrays:
                drawn = arrays.draw(settings)
                arrays.tell_ignored()
            for part, split in drawn.parts().items():
                np.save(folder / f"{part}_images.npy", split.images)
                np.save(folder / f"{part}_labels.npy", split.labels)
            return drawn.record(settings, form=_FORM, has_test=arrays.has("test"))

        prepared = open_prepared(request.locations.cache, source_key([self.path], options), build)
        record = prepared.record
        parts = {
            part: Split(images=prepared.arrays[f"{part}_images"], labels=np.asarray(prepared.arrays[f"{part}_labels"]))
            for part in ("train", "validation")
        }
        checksums = {name.replace("_", " "): sha256 for name, sha256 in prepared.checksums.items()}
        return selection_of(
            parts,
            record,
            settings,
            name=self.path.name,
            source=str(self.path),
            checksums={SPLIT: record["split"]["sha256"], **checksums},
        )

    def read_test_part(self, permit: OpeningPermit, request: DataRequest) -> tuple[Split, dict[str, str]]:
        """Read x_test and y_test, or the rows of x_train that the stored split names.

        Raises:
            InputError: the data has no test part.
            DataError: as `load_selection`; or the rows are not those of the stored split.
        """
        settings = request.settings
        if settings.test == 0:
            raise InputError(
                f"{self.path}: data.test is 0: there is no test part",
                hint="a study with a test part needs another name",
            )
        record = request.stored or self.load_selection(request).record
        with _opened(self.path) as arrays:
            if arrays.has("test"):
                test = own_test_part(arrays.read("test"), record, str(self.path))
            else:
                drawn = arrays.draw(settings)
                if record["split"]["sha256"] != drawn.rows.sha256:
                    raise DataError(
                        f"{self.path}: the rows are not those that the study has split",
                        hint="restore the file to what it was when the study was created",
                    )
                test = drawn.drawn_test_part()
        return test, checksums_of(test, "test")

    def test_file_marks(self, settings: DataSettings) -> set[str]:
        return file_marks([self.path])


@dataclass(frozen=True, kw_only=True, slots=True)
class _Arrays:
    """The open file.

    Args:
        names: of its arrays.
        get: reads one of them.
    """

    path: Path
    names: frozenset[str]
    get: Callable[[str], NDArray[Any]]

    def has(self, part: str) -> bool:
        """Whether the file has this part. Raises DataError if it has only one of the two arrays."""
        pair = {f"x_{part}", f"y_{part}"}
        if len(pair & self.names) == 1:
            raise DataError(f"{self.path}: has no {(pair - self.names).pop()}", hint=_HINT)
        return pair <= self.names

    def read(self, part: str) -> Examples:
        """The examples of a part. Raises DataError if they are damaged or of a kind that is not read."""
        x, y = (self._array(f"{letter}_{part}") for letter in "xy")
        return examples_of(x, y, str(self.path), part)

    def draw(self, settings: DataSettings) -> ArraySplit:
        """All parts but x_test and y_test.

        Raises:
            InputError, DataError: as `ArrayFile.load_selection`.
        """
        if not self.has("train"):
            found = ", ".join(sorted(self.names)[:10]) or "nothing"
            raise DataError(f"{self.path}: no x_train and y_train, found {found}", hint=_HINT)
        validation = self.read("validation") if self.has("validation") else None
        return ArraySplit.draw(
            self.read("train"), validation, settings, has_test=self.has("test"), source=str(self.path)
        )

    def tell_ignored(self) -> None:
        """Warn of arrays with other names."""
        if others := sorted(self.names - set(NAMES)):
            _logger.warning("%s: ignored %s: %s", self.path, ", ".join(others), _HINT)

    def _array(self, name: str) -> NDArray[Any]:
        try:
            return self.get(name)
        except (ValueError, TypeError, KeyError, EOFError, OSError, zipfile.BadZipFile, zlib.error) as error:
            if "allow_pickle" in str(error):
                raise DataError(
                    f"{self.path}, {name}: refused: an array of Python objects would have to be unpickled",
                    hint="save an array of numbers, all rows of one length",
                ) from error
            raise _damaged(f"{self.path}, {name}", error) from error
        except SafetensorError as error:
            raise _damaged(f"{self.path}, {name}", error) from error
        except MemoryError as error:
            raise DataError(f"{self.path}, {name}: more than fits into memory", hint="save fewer rows") from error


@contextmanager
def _opened(path: Path) -> Iterator[_Arrays]:
    with ExitStack() as stack:
        try:
            if path.suffix == ".npz":
                archive = np.load(stack.enter_context(path.open("rb")), allow_pickle=False)
                if not isinstance(archive, np.lib.npyio.NpzFile):
                    raise ValueError("it is no archive of arrays")
                stack.enter_context(archive)
                arrays = _Arrays(path=path, names=frozenset(archive.files), get=archive.__getitem__)
            else:
                tensors = stack.enter_context(safe_open(path, framework="np"))
                arrays = _Arrays(path=path, names=frozenset(tensors.keys()), get=tensors.get_tensor)
        except (ValueError, EOFError, OSError, zipfile.BadZipFile, SafetensorError) as error:
            raise _damaged(str(path), error) from error
        yield arrays


def _damaged(source: str, error: Exception) -> DataError:
    return DataError(f"{source}: cannot be read: {str(error) or type(error).__name__}", hint="save the file again")
