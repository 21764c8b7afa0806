"""Columns of a table that a caller has in memory: a pandas.DataFrame, a pyarrow.Table, a dict of columns, or rows.

Neither pandas nor pyarrow is imported: whoever passes such a table has it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import isnan
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from hpsearch.data.tables.columns import (
    NUM_SHOWN,
    CategoryColumn,
    Column,
    Columns,
    Kind,
    NumberColumn,
    listed_rows,
    refuse_infinite,
)
from hpsearch.errors import DataError, InputError

SOURCE: Final = "the rows to predict"
_EXPECTED: Final = {
    Kind.NUMBER: "numbers",
    Kind.BOOLEAN: "truth values",
    Kind.CATEGORY: "text",
}


def columns_of(frame: Any, kinds: Mapping[str, Kind]) -> Columns:
    """The features of a table, each in its kind. Other columns are ignored, and so is the order of columns.

    Args:
        frame: a pandas.DataFrame, a pyarrow.Table, a mapping of names to columns, or a sequence of mappings, one a row.
            None, NaN and pandas.NA stand for missing values.
        kinds: of the features, by name.
    Raises:
        InputError: columns are missing, of a wrong kind, of different lengths, or have infinite numbers.
    """
    arrays = _arrays(frame, kinds)
    lengths = {name: len(array) for name, array in arrays.items()}
    if len(set(lengths.values())) > 1:
        told = ", ".join(f"{name} {length}" for name, length in list(lengths.items())[:NUM_SHOWN])
        raise InputError(f"{SOURCE} have columns of different lengths: {told}", hint="give each column one value a row")
    return {name: _column(name, arrays[name], kind) for name, kind in kinds.items()}


def _arrays(frame: Any, names: Mapping[str, Kind]) -> dict[str, NDArray[Any]]:
    module = type(frame).__module__.partition(".")[0]
    if module == "pandas" and hasattr(frame, "columns"):
        labels = {str(label): label for label in frame.columns}
        _require(names, list(labels))
        return {name: _pandas_array(frame[labels[name]]) for name in names}
    if module == "pyarrow" and hasattr(frame, "column_names"):
        _require(names, frame.column_names)
        return {name: _as_array(frame.column(name).to_pylist()) for name in names}
    if isinstance(frame, Mapping):
        labels = {str(label): label for label in frame}
        _require(names, list(labels))
        return {name: _as_array(frame[labels[name]]) for name in names}
    if isinstance(frame, Sequence) and all(isinstance(row, Mapping) for row in frame):
        return _rows_as_arrays(frame, names)
    raise InputError(
        f"rows to predict must be a table, got {type(frame).__name__}",
        hint="a pandas.DataFrame, a pyarrow.Table, a dict of columns, or a list of dicts",
    )


def _rows_as_arrays(rows: Sequence[Mapping[str, Any]], names: Mapping[str, Kind]) -> dict[str, NDArray[Any]]:
    for place, row in enumerate(rows):
        _require(names, list(map(str, row)), f"row {place + 1}")
    return {name: _as_array([row[name] for row in rows]) for name in names}


def _require(names: Mapping[str, Kind], found: Sequence[str], where: str = "the table") -> None:
    known = set(found)
    missing = [name for name in names if name not in known]
    if missing:
        shown = ", ".join(map(repr, missing[:NUM_SHOWN]))
        more = f" and {len(missing) - NUM_SHOWN} more" if len(missing) > NUM_SHOWN else ""
        raise InputError(
            f"{where} has no column {shown}{more}",
            hint=f"the model was trained on: {', '.join(names)}; a value that is not known is None",
        )


def _pandas_array(series: Any) -> NDArray[Any]:
    array = series.to_numpy()
    return array if array.dtype.kind in "fiub" else np.asarray(series.astype(object).to_numpy(), dtype=object)


def _as_array(values: Any) -> NDArray[Any]:
    if isinstance(values, np.ndarray):
        return values
    array = np.empty(len(values), dtype=object)
    array[:] = list(values)
    return array


def _column(name: str, array: NDArray[Any], kind: Kind) -> Column:
    if array.ndim != 1:
        raise InputError(f"column {name!r} has {array.ndim} dimensions", hint="give each column one value a row")
    if kind is Kind.CATEGORY:
        return _category(name, array)
    values = _numbers(name, array, kind)
    column = NumberColumn(kind=kind, values=values)
    if kind is Kind.BOOLEAN:
        _refuse(name, array, kind, ~np.isnan(values) & (values != 0) & (values != 1))
    try:
        refuse_infinite(column, name, SOURCE)
    except DataError as error:
        raise InputError(str(error), hint="correct these values; None stands for one that is not known") from error
    return column


def _numbers(name: str, array: NDArray[Any], kind: Kind) -> NDArray[np.float64]:
    if array.dtype.kind in "fiub":
        return array.astype(np.float64)
    is_missing = _missing(array)
    is_number = np.array([_is_number(value) for value in array], dtype=bool)
    _refuse(name, array, kind, ~is_missing & ~is_number)
    return np.array([np.nan if gone else float(value) for value, gone in zip(array, is_missing, strict=True)])


def _category(name: str, array: NDArray[Any]) -> CategoryColumn:
    is_missing = _missing(array)
    texts = [None if gone else _text(value) for value, gone in zip(array.tolist(), is_missing, strict=True)]
    _refuse(name, array, Kind.CATEGORY, ~is_missing & np.array([text is None for text in texts], dtype=bool))
    return CategoryColumn.of(np.array([text or "" for text in texts], dtype=object), is_missing)


def _refuse(name: str, array: NDArray[Any], kind: Kind, is_wrong: NDArray[np.bool_]) -> None:
    if is_wrong.any():
        wrong = array.tolist()[int(np.flatnonzero(is_wrong)[0])]
        found = f"{wrong!r:.60} ({listed_rows(is_wrong)})"
        raise InputError(
            f"column {name!r} must hold {_EXPECTED[kind]}, as in training, got {found}",
            hint="give values of this kind; None stands for one that is not known",
        )


def _missing(array: NDArray[Any]) -> NDArray[np.bool_]:
    return np.array([_is_missing(value) for value in array.tolist()], dtype=bool)


def _is_missing(value: object) -> bool:
    # pandas.NA compares as neither equal nor different, and cannot be imported here.
    return value is None or type(value).__name__ in ("NAType", "NaTType") or (isinstance(value, float) and isnan(value))


def _is_number(value: object) -> bool:
    return hasattr(value, "__float__") and not isinstance(value, str | bytes)


def _text(value: object) -> str | None:
    """A category; None: it is none. Whole numbers are those of a column that looks like numbers where it was read."""
    if isinstance(value, str):
        return value
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return str(int(value)) if float(value).is_integer() else None
