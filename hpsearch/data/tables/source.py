"""Where the rows of a table come from: the files of each part, and how they are read."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet

from hpsearch.data.tables.arrow_table import ArrowTable
from hpsearch.data.tables.columns import Kind
from hpsearch.data.tables.text_file import read_text_table
from hpsearch.errors import DataError, InputError
from hpsearch.study.settings import DataSettings

TEXT_ENDINGS: Final = (".csv", ".tsv", ".csv.gz", ".tsv.gz")
BINARY_ENDINGS: Final = (".parquet", ".feather", ".arrow")
TEXT_KEYS: Final = ("separator", "decimal", "encoding", "missing")
_BLOCK_BYTES: Final = 2**24

Kinds = Mapping[str, Kind]
Read = Callable[[tuple[Path, ...], DataSettings, Kinds | None], ArrowTable]


@dataclass(frozen=True, kw_only=True)
class TableParts:
    """The files of each part of a data set.

    Args:
        name: of the data set for people.
        main: its rows are for training, and for each part that has no files of its own.
        validation, test: files of a part of its own; empty: its rows are drawn from `main`.
        root: folder from which files are named in checksums.
        read: reads the files of one part.
        lines: what people are told about the choice of files.
    """

    name: str
    main: tuple[Path, ...]
    validation: tuple[Path, ...] = ()
    test: tuple[Path, ...] = ()
    root: Path
    read: Read = field(repr=False)
    lines: tuple[str, ...] = ()

    def sha256(self, paths: tuple[Path, ...]) -> dict[str, str]:
        """SHA-256 of each file's content, by its name in `root`."""
        return {self.name_of(path): _sha256(path) for path in paths}

    def name_of(self, path: Path) -> str:
        return path.relative_to(self.root).as_posix() if path.is_relative_to(self.root) else str(path)


def file_parts(path: Path, settings: DataSettings) -> TableParts:
    """The parts of one file, with the files that data.validation and data.test name.

    Raises:
        InputError: a key has no effect on a file of this kind, or two parts are the same file.
        DataError: a part's file is not there.
    """
    if not path.name.lower().endswith(TEXT_ENDINGS):
        for key in TEXT_KEYS:
            if getattr(settings, key) is not None:
                raise InputError(
                    f"data.{key} has no effect on {path.name}", hint=f"leave it out: {key} is for text files"
                )
    validation, test = (_beside(path, part, getattr(settings, part)) for part in ("validation", "test"))
    if validation and test and validation[0].samefile(test[0]):
        raise InputError(
            f"data.validation and data.test: {settings.validation!r} and {settings.test!r} are the same file",
            hint="name another file, a fraction, or a number of rows for one of them",
        )
    return TableParts(
        name=path.name,
        main=(path,),
        validation=validation,
        test=test,
        root=path.parent,
        read=read_files,
    )


def read_files(paths: tuple[Path, ...], settings: DataSettings, kinds: Kinds | None) -> ArrowTable:
    """All rows of the files, which have the same columns.

    Raises:
        DataError: a file is broken, or the files have different columns.
    """
    tables = [_read_file(path, settings, kinds) for path in paths]
    source = str(paths[0]) if len(paths) == 1 else str(paths[0].parent)
    try:
        table = tables[0] if len(tables) == 1 else pa.concat_tables(tables, promote_options="permissive")
    except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
        hint = "see that they belong together"
        raise DataError(f"{source}: its files have different columns: {error}", hint=hint) from error
    return ArrowTable(source=source, table=table)


def _read_file(path: Path, settings: DataSettings, kinds: Kinds | None) -> pa.Table:
    name = path.name.lower()
    if name.endswith(TEXT_ENDINGS):
        return read_text_table(path, settings, kinds)
    try:
        if path.stat().st_size == 0:
            raise DataError(f"{path}: an empty file", hint="replace the file")
        if name.endswith(".parquet"):
            with pa.parquet.ParquetFile(path) as file:
                return file.read()
        if name.endswith(".feather"):
            return pa.feather.read_table(path, memory_map=False)
        with pa.OSFile(str(path)) as stream:
            return _read_arrow(stream)
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}", hint="replace the file") from error
    except pa.ArrowException as error:
        raise DataError(f"{path}: damaged, or not what its name says: {error}", hint="replace the file") from error


def _read_arrow(stream: pa.NativeFile) -> pa.Table:
    """A stream, as Hugging Face's `datasets` writes, or a file of Arrow."""
    try:
        return pa.ipc.open_stream(stream).read_all()
    except pa.ArrowInvalid:
        stream.seek(0)
        return pa.ipc.open_file(stream).read_all()


def _beside(path: Path, part: str, value: object) -> tuple[Path, ...]:
    """The file of a part: an absolute path, or one relative to the data set's folder."""
    if not isinstance(value, str):
        return ()
    found = path.parent / Path(value).expanduser()
    if not found.is_file():
        raise DataError(f"data.{part}: no file {found}", hint=f"a path is relative to the folder of {path.name}")
    if not found.name.lower().endswith((*TEXT_ENDINGS, *BINARY_ENDINGS)):
        raise InputError(f"data.{part}: {value!r} is not a table", hint=f"expected a name that ends in {path.suffix}")
    if found.samefile(path):
        raise InputError(
            f"data.{part}: {value!r} is the data set itself", hint="name another file, a fraction, or a number of rows"
        )
    return (found,)


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    try:
        with path.open("rb") as stream:
            while block := stream.read(_BLOCK_BYTES):
                digest.update(block)
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}", hint="check the path") from error
    return digest.hexdigest()
