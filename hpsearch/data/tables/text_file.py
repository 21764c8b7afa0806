"""Read CSV and TSV files: find out how the file is written, and say where it is broken."""

from __future__ import annotations

import codecs
import csv
import io
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pyarrow as pa
import pyarrow.csv as pacsv

from hpsearch.data.tables.columns import Kind
from hpsearch.errors import DataError, InputError
from hpsearch.study.settings import DataSettings

MISSING_MARKS: Final = ("", "NA", "N/A", "n/a", "#N/A", "NaN", "nan", "NULL", "null", "None")
_SEPARATORS: Final = (",", ";", "\t", "|")
_SAMPLE_BYTES: Final = 2**16
_MOST_DISTINCT: Final = 1000  # texts of a column that is read as categories; others are numbered later
_FORCED: Final = {Kind.NUMBER: pa.float64(), Kind.BOOLEAN: pa.bool_(), Kind.CATEGORY: pa.string()}
_BROKEN_COLUMN = re.compile(r"In CSV column #(\d+): (?:Row #(\d+): )?CSV conversion error to [^:]*: (.*)", re.DOTALL)


@dataclass(frozen=True, kw_only=True)
class _Style:
    separator: str
    decimal: str
    encoding: str
    missing: tuple[str, ...]
    names: tuple[str, ...]


def read_text_table(path: Path, settings: DataSettings, kinds: Mapping[str, Kind] | None) -> pa.Table:
    """All rows of the file.

    Args:
        kinds: of columns whose types are known already; the others are found out.
    Raises:
        InputError: data.encoding is not the name of an encoding, or data.separator cannot separate.
        DataError: the file is empty, damaged or broken, or not written in this encoding.
    """
    try:
        return _read_table(path, settings, kinds)
    except OSError as error:  # such as a gzip file that ends too early
        raise DataError(f"{path}: cannot be read: {error.strerror or error}", hint="replace the file") from error


def _read_table(path: Path, settings: DataSettings, kinds: Mapping[str, Kind] | None) -> pa.Table:
    style = _find_style(path, settings)
    forced = {name: _FORCED[kind] for name, kind in (kinds or {}).items()}
    convert = pacsv.ConvertOptions(
        column_types=forced,
        null_values=list(style.missing),
        strings_can_be_null=True,
        auto_dict_encode=True,
        auto_dict_max_cardinality=_MOST_DISTINCT,
        decimal_point=style.decimal,
    )
    parse = pacsv.ParseOptions(delimiter=style.separator, newlines_in_values=_has_quotes(path))
    try:
        table = _read(path, style, parse, convert, use_threads=True)
    except pa.ArrowInvalid:
        try:  # once more in one thread, which knows the numbers of rows
            table = _read(path, style, parse, convert, use_threads=False)
        except pa.ArrowInvalid as error:
            raise _broken(path, style, str(error)) from error
    except UnicodeDecodeError as error:
        raise _wrong_encoding(path, style.encoding, f"byte {error.start:,} of a block: {error.reason}") from error
    for place, name in enumerate(table.column_names):  # by place: headings may be duplicates
        _refuse_undecodable(path, style.encoding, name, table.column(place), table.schema.field(place).type)
    return table


def _read(
    path: Path, style: _Style, parse: pacsv.ParseOptions, convert: pacsv.ConvertOptions, *, use_threads: bool
) -> pa.Table:
    options = pacsv.ReadOptions(encoding=style.encoding, use_threads=use_threads, block_size=2**22)
    with _open(path) as stream:
        return pacsv.read_csv(stream, read_options=options, parse_options=parse, convert_options=convert)


def _open(path: Path) -> pa.NativeFile:
    try:
        return pa.input_stream(str(path), compression="gzip" if path.suffix == ".gz" else None)
    except OSError as error:
        hint = "check the path and its permissions"
        raise DataError(f"{path}: cannot be read: {error.strerror or error}", hint=hint) from error


def _find_style(path: Path, settings: DataSettings) -> _Style:
    encoding = settings.encoding or "utf8"
    try:
        "a".encode(encoding)  # codecs.lookup knows base64, too, which is none of text
    except (LookupError, ValueError) as error:
        raise InputError(
            f"data.encoding: {encoding!r} is not the name of an encoding", hint="for example latin-1, cp1252 or utf-16"
        ) from error
    if settings.separator is not None and (not settings.separator.isascii() or settings.separator in '"\r\n'):
        raise InputError(
            f"data.separator: {settings.separator!r} cannot separate columns: expected an ASCII character",
            hint="replace it in the file, for example by a semicolon",
        )
    with _open(path) as stream:
        sample = stream.read(_SAMPLE_BYTES)
    if not sample.strip():
        raise DataError(f"{path}: an empty file", hint="expected one heading line and rows of values")
    decoder = codecs.getincrementaldecoder(encoding)(errors="replace")
    text = decoder.decode(sample).removeprefix("\ufeff")
    heading = text.splitlines()[0]
    separator = settings.separator or _find_separator(path, heading)
    # Lines may end with CR alone, which csv takes for a mistake; newline=None replaces it.
    lines = list(csv.reader(io.StringIO(text, newline=None), delimiter=separator))[1:-1]
    return _Style(
        separator=separator,
        decimal=settings.decimal or _find_decimal(lines, separator),
        encoding=encoding,
        missing=MISSING_MARKS if settings.missing is None else tuple(settings.missing),
        names=tuple(next(csv.reader([heading], delimiter=separator))),
    )


def _find_separator(path: Path, heading: str) -> str:
    if ".tsv" in path.suffixes:
        return "\t"
    outside = re.sub(r'"[^"]*"', "", heading)
    return max(_SEPARATORS, key=lambda separator: (outside.count(separator), -_SEPARATORS.index(separator)))


def _find_decimal(lines: list[list[str]], separator: str) -> str:
    """A comma, if it does not separate columns, and numbers are written with one and none with a point."""
    if separator == ",":
        return "."
    values = [value.strip() for line in lines for value in line]
    with_comma = any(re.fullmatch(r"[+-]?\d+,\d+", value) for value in values)
    with_point = any(re.fullmatch(r"[+-]?\d+\.\d+", value) for value in values)
    return "," if with_comma and not with_point else "."


def _has_quotes(path: Path) -> bool:
    """Whether values may contain line breaks, which makes reading slower: there is a quotation mark somewhere."""
    with _open(path) as stream:
        while block := stream.read(2**24):
            if b'"' in block:
                return True
    return False


def _broken(path: Path, style: _Style, message: str) -> DataError:
    if (found := _BROKEN_COLUMN.search(message)) is not None:
        column, row, rest = int(found[1]), found[2], found[3]
        name = style.names[column] if column < len(style.names) else str(column)
        where = f" in row {int(row) - 1}" if row else ""
        if "UTF8" in rest:
            return _wrong_encoding(path, style.encoding, f"column {name!r}{where}")
        return DataError(
            f"{path}: column {name!r}{where}: {rest}",
            hint="correct the value, or name it in data.missing if it stands for a missing one",
        )
    if (row := re.search(r"Row #(\d+): (.*)", message, re.DOTALL)) is not None:
        return DataError(
            f"{path}: row {int(row[1]) - 1} is broken: {row[2]:.200}",
            hint=f"correct the row; columns are separated by {style.separator!r} (data.separator)",
        )
    return DataError(f"{path}: cannot be read as a table: {message:.300}", hint="expected a heading line and rows")


def _refuse_undecodable(path: Path, encoding: str, name: str, column: pa.ChunkedArray, kind: pa.DataType) -> None:
    """Columns in which bytes are no UTF-8 are read as bytes. Raise DataError for the first such row."""
    is_coded = pa.types.is_dictionary(kind)
    if not pa.types.is_binary(kind.value_type if is_coded else kind):
        return
    for row, value in enumerate(column):
        content = value.as_py()
        try:
            (content or b"").decode("utf-8")
        except UnicodeDecodeError as error:
            raise _wrong_encoding(path, encoding, f"column {name!r} in row {row + 1}: {content[:40]!r}") from error


def _wrong_encoding(path: Path, encoding: str, where: str) -> DataError:
    return DataError(
        f"{path}: not written in {'UTF-8' if encoding == 'utf8' else encoding}: {where}",
        hint='name its encoding: data.encoding = "latin-1" or "cp1252" for many older files',
    )
