"""A table of pyarrow, one column at a time: what kind of values it has, and the values as numpy arrays."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from enum import StrEnum
from functools import cached_property
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from hpsearch.data.tables.columns import CategoryColumn, Column, Kind, NumberColumn, listed_rows
from hpsearch.errors import DataError, HpsearchError


class Stored(StrEnum):
    """What a column of a file holds."""

    NUMBER = "numbers"
    BOOLEAN = "truth values"
    TEXT = "text"
    EMPTY = "no value"
    TIME = "dates or times"
    IMAGE = "images"
    OTHER = "values of another type"


_KIND_OF: Final = {Stored.NUMBER: Kind.NUMBER, Stored.BOOLEAN: Kind.BOOLEAN, Stored.TEXT: Kind.CATEGORY}
_TEXT_SHARE: Final = 0.9  # a column of text with at least this share of numbers has marks that are not known as missing


@dataclass(frozen=True, kw_only=True)
class ArrowTable:
    """All rows of a file, or of the files of one part.

    Args:
        source: name of the file or folder in messages.
        known_target: the column that the data set is known to be for; None: it is not known.
    """

    source: str
    known_target: str | None = None
    table: pa.Table = field(repr=False)

    def __post_init__(self) -> None:
        names = list(self.table.column_names)
        duplicate = next((name for name in names if names.count(name) > 1), None)
        if duplicate is not None:
            raise DataError(
                f"{self.source}: {names.count(duplicate)} columns are headed {duplicate!r}",
                hint="give each column a heading of its own",
            )
        if self.table.num_rows == 0:
            raise DataError(f"{self.source}: a table without rows", hint="expected one heading line and rows of values")

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self.table.column_names)

    @property
    def num_rows(self) -> int:
        return int(self.table.num_rows)

    @cached_property
    def class_labels(self) -> Mapping[str, tuple[str, ...]]:
        """The names of the classes of each ClassLabel column of Hugging Face's `datasets`."""
        metadata = (self.table.schema.metadata or {}).get(b"huggingface", b"{}")
        found: dict[str, tuple[str, ...]] = {}
        with suppress(ValueError, KeyError, TypeError, AttributeError):
            for name, feature in json.loads(metadata)["info"]["features"].items():
                if isinstance(feature, dict) and feature.get("_type") == "ClassLabel":
                    found[name] = tuple(map(str, feature["names"]))
        return {name: names for name, names in found.items() if name in self.names}

    @property
    def target(self) -> str | None:
        """The known target, or the only ClassLabel column."""
        return self.known_target or (next(iter(self.class_labels)) if len(self.class_labels) == 1 else None)

    def stored(self, name: str) -> Stored:
        """What a column holds."""
        if name in self.class_labels:
            return Stored.TEXT
        return _stored(self.table.schema.field(name).type)

    def kind(self, name: str) -> Kind | None:
        """The kind of a column as a feature; None: it cannot be one."""
        return _KIND_OF.get(self.stored(name))

    def describe_columns(self) -> str:
        """The columns with what they hold, for messages."""
        shown = [f"{name} ({self.stored(name).value})" for name in self.names[:20]]
        return ", ".join(shown) + (f" and {len(self.names) - 20} more" if len(self.names) > 20 else "")

    def require(self, names: Sequence[str], key: str, error: type[HpsearchError]) -> None:
        """Raise `error` if a column is not there."""
        absent = [name for name in names if name not in self.names]
        if absent:
            raise error(
                f"{self.source} has no column {', '.join(map(repr, absent[:5]))}, which {key} names",
                hint=f"its columns: {self.describe_columns()}",
            )

    def column(self, name: str, kind: Kind | None = None) -> Column:
        """All values of a column.

        Args:
            kind: the kind that is expected; None: its own.
        Raises:
            DataError: the values are of another kind.
        """
        stored, array = self.stored(name), self.table.column(name)
        kind = kind or _KIND_OF.get(stored)
        if stored is Stored.EMPTY and kind is not None:
            return _empty(kind, len(array))
        if name in self.class_labels and kind is Kind.CATEGORY:
            return self._class_labels(name)
        if kind is Kind.CATEGORY and (stored is Stored.TEXT or pa.types.is_integer(array.type)):
            return _category(array if stored is Stored.TEXT else array.cast(pa.string()))
        if kind is not None and stored is _STORED_OF[kind]:
            return _number(array, kind, self.source, name)
        expected = "numbers, truth values or text" if kind is None else _STORED_OF[kind].value
        raise DataError(
            f"{self.source}: column {name!r} holds {stored.value}, expected {expected}",
            hint="correct the column, or leave it out: data.exclude",
        )

    def _class_labels(self, name: str) -> CategoryColumn:
        names = self.class_labels[name]
        values = self.table.column(name).cast(pa.float64()).to_numpy(zero_copy_only=False)
        is_missing = np.isnan(values) | (values < 0)  # -1 stands for "no label" there
        wrong = ~is_missing & (values >= len(names))
        if wrong.any():
            raise DataError(f"{self.source}: column {name!r} has labels above {len(names) - 1} in {listed_rows(wrong)}")
        as_names = np.array(names, dtype=object)[np.where(is_missing, 0, values).astype(np.int64)]
        return CategoryColumn.of(as_names, is_missing)


_STORED_OF: Final = {kind: stored for stored, kind in _KIND_OF.items()}


def numeric_texts(column: CategoryColumn) -> tuple[float, list[str]]:
    """The share of a text column's values that are numbers, and the first of the distinct values that are none."""
    counts = np.bincount(column.codes[column.codes >= 0], minlength=len(column.names))
    is_number = np.array([_is_number(name) for name in column.names], dtype=bool)
    others = [name for name, known in zip(column.names, is_number.tolist(), strict=True) if not known]
    return float(counts[is_number].sum() / max(1, counts.sum())), others


def is_number_with_marks(column: CategoryColumn) -> bool:
    """Whether nearly all of a text column's values are numbers, and a few are not."""
    share, others = numeric_texts(column)
    return bool(others) and share >= _TEXT_SHARE


def _stored(kind: pa.DataType) -> Stored:
    if pa.types.is_dictionary(kind):
        return _stored(kind.value_type)
    if pa.types.is_struct(kind) and {kind.field(place).name for place in range(kind.num_fields)} == {"bytes", "path"}:
        return Stored.IMAGE
    tests = (
        (Stored.BOOLEAN, pa.types.is_boolean),
        (Stored.NUMBER, pa.types.is_integer),
        (Stored.NUMBER, pa.types.is_floating),
        (Stored.NUMBER, pa.types.is_decimal),
        (Stored.TEXT, pa.types.is_string),
        (Stored.TEXT, pa.types.is_large_string),
        (Stored.TEXT, pa.types.is_string_view),
        (Stored.EMPTY, pa.types.is_null),
        (Stored.TIME, pa.types.is_temporal),
    )
    return next((stored for stored, test in tests if test(kind)), Stored.OTHER)


def _empty(kind: Kind, num_rows: int) -> Column:
    if kind is Kind.CATEGORY:
        return CategoryColumn(names=(), codes=np.full(num_rows, -1, dtype=np.int32))
    return NumberColumn(kind=kind, values=np.full(num_rows, np.nan))


def _number(array: pa.ChunkedArray, kind: Kind, source: str, name: str) -> NumberColumn:
    is_integer = pa.types.is_integer(array.type)
    try:
        values = array.cast(pa.float64(), safe=False).to_numpy(zero_copy_only=False)
    except pa.ArrowInvalid as error:
        raise DataError(f"{source}: column {name!r} cannot be read as numbers: {error}") from error
    values = np.asarray(values, dtype=np.float64)
    if is_integer:
        is_whole = True
    else:
        known = values[~np.isnan(values)]
        is_whole = kind is Kind.NUMBER and bool(len(known)) and bool((known == np.floor(known)).all())
    return NumberColumn(kind=kind, values=values, is_whole=is_whole)


def _category(array: pa.ChunkedArray) -> CategoryColumn:
    encoded = array if pa.types.is_dictionary(array.type) else pc.dictionary_encode(array)
    whole = pa.chunked_array([encoded]) if isinstance(encoded, pa.DictionaryArray) else encoded
    whole = whole.unify_dictionaries().combine_chunks()
    if isinstance(whole, pa.ChunkedArray):
        whole = whole.chunk(0)
    texts = whole.dictionary.to_pylist()
    codes: NDArray[Any] = whole.indices.fill_null(-1).to_numpy(zero_copy_only=False)
    # Sorted by name, without names that no row has or that are themselves missing.
    used = np.zeros(len(texts), dtype=bool)
    used[codes[codes >= 0]] = True
    names = sorted({text for text, is_used in zip(texts, used.tolist(), strict=True) if is_used and text is not None})
    place_of = {text: place for place, text in enumerate(names)}
    places = np.array([*(place_of.get(text, -1) for text in texts), -1], dtype=np.int32)
    return CategoryColumn(names=tuple(names), codes=places[codes])


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
