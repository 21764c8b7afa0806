"""Tables: CSV, TSV, Parquet, Feather and Arrow files, and folders of Hugging Face's `datasets`.

pyarrow is loaded only when a table is read.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Self, final

from hpsearch.data.files.path_marks import file_marks
from hpsearch.data.forms.form import SPLIT_KEYS, DataForm, DataRequest, OpeningPermit
from hpsearch.data.splits import SelectionData, Split
from hpsearch.data.tables import hugging_face
from hpsearch.errors import InputError
from hpsearch.study.settings import DataSettings

TABLE_KEYS: Final = SPLIT_KEYS | {"target", "features", "exclude", "group", "task"}
_ENDINGS: Final = (".csv", ".tsv", ".csv.gz", ".tsv.gz", ".parquet", ".feather", ".arrow")
_SPREADSHEETS: Final = (".xlsx", ".xlsm", ".xls", ".ods")


@dataclass(frozen=True, slots=True)
class TableForm(DataForm):
    """Rows of which hpsearch draws the parts, and whose columns it prepares."""

    def load_selection(self, request: DataRequest) -> SelectionData:
        from hpsearch.data.tables.loading import load_table  # here: pyarrow is large

        parts = self._parts(request.settings)
        return load_table(parts, request.settings, cache=request.locations.cache, stored=request.stored)

    def read_test_part(self, permit: OpeningPermit, request: DataRequest) -> tuple[Split, dict[str, str]]:
        from hpsearch.data.tables.loading import read_table_test

        return read_table_test(self._parts(request.settings), request.settings, request.stored)

    def test_file_marks(self, settings: DataSettings) -> set[str]:
        return file_marks(self._parts(settings).test)

    @abstractmethod
    def _parts(self, settings: DataSettings) -> Any:
        """The `TableParts` of the data set. No file is opened."""


@final
@dataclass(frozen=True, slots=True)
class TableFile(TableForm):
    """One file of rows, of which the first line or the schema names the columns."""

    path_description = "the path of a table (.csv, .tsv, .parquet, .feather)"
    endings = _ENDINGS
    keys = TABLE_KEYS | {"separator", "decimal", "encoding", "missing", "image_size"}

    path: Path

    @classmethod
    def at(cls, path: Path) -> Self | None:
        name = path.name.lower()
        if path.is_file() and name.endswith(_SPREADSHEETS):
            raise InputError(
                f"data.dataset: {path.name} is a spreadsheet, which hpsearch does not read",
                hint="save its sheet as CSV: File, Save as, CSV UTF-8",
            )
        return cls(path) if path.is_file() and name.endswith(_ENDINGS) else None

    def _parts(self, settings: DataSettings) -> Any:
        from hpsearch.data.tables.source import file_parts

        return file_parts(self.path, settings)


@final
@dataclass(frozen=True, slots=True)
class SavedFolder(TableForm):
    """A folder that Hugging Face's `datasets` saved, or of Parquet files as on its hub."""

    path_description = "a folder of Hugging Face's datasets (save_to_disk, or Parquet files)"
    looked_for = "dataset_dict.json, state.json or *.parquet of Hugging Face's datasets"
    keys = TABLE_KEYS | {"image_size"}

    path: Path

    @classmethod
    def at(cls, path: Path) -> Self | None:
        return cls(path) if path.is_dir() and hugging_face.is_saved_folder(path) else None

    def _parts(self, settings: DataSettings) -> Any:
        from hpsearch.data.tables.source import TableParts, read_files

        parts = hugging_face.find_parts(self.path)
        hugging_face.refuse_second_part(self.path, parts, settings)
        return TableParts(
            name=self.path.resolve().name,
            main=parts[hugging_face.WHOLE],
            validation=parts.get("validation", ()),
            test=() if settings.test == 0 else parts.get("test", ()),
            root=self.path,
            read=read_files,
            lines=tuple(f"part {name!r} is left out" for name in hugging_face.other_splits(self.path)),
        )
