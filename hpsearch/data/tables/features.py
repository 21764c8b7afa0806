"""Which columns of a table are features: those that are named, or all that can be ones, without a few that say nothing.

Only training rows are looked at.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from hpsearch.data.tables.arrow_table import ArrowTable, Stored, is_number_with_marks, numeric_texts
from hpsearch.data.tables.columns import NUM_SHOWN, CategoryColumn, Column, Kind, refuse_infinite
from hpsearch.errors import DataError, InputError
from hpsearch.study.settings import DataSettings

MOST_TEXTS: Final = 100
LARGEST_DISTINCT_SHARE: Final = 0.5  # of the rows
_EXCLUDE_HINT: Final = "leave it out: data.exclude = [{names}]"


@dataclass(frozen=True, kw_only=True)
class ChosenFeatures:
    """The features' columns, all rows, in the order of the file; and why other columns are left out, by name."""

    columns: dict[str, Column]
    left_out: dict[str, str]


def choose_features(
    table: ArrowTable, settings: DataSettings, *, target: str, train_rows: NDArray[np.int64]
) -> ChosenFeatures:
    """Choose the features of a new study.

    Raises:
        InputError: a column that is named is not there, or is the target; or no feature is left.
        DataError: dates, values of other types, infinite numbers, or text among numbers.
    """
    check_named(table, settings, target)
    named = settings.features
    candidates = [name for name in table.names if _is_candidate(name, settings, target)]
    _refuse_unusable(table, candidates)
    columns: dict[str, Column] = {}
    left_out: dict[str, str] = {}
    for name in candidates:
        kind = table.kind(name)
        column = None if kind is None else table.column(name)
        train = None if column is None else column.rows(train_rows)
        reason = "no training row has a value" if train is None or train.is_missing.all() else None
        if reason is None and train is not None and named is None:
            reason = _says_nothing(train, table.num_rows)
            if isinstance(train, CategoryColumn):
                _refuse_marks(train, name, table.source)
        if reason is not None or column is None:
            left_out[name] = reason or ""
            continue
        if not isinstance(column, CategoryColumn):
            refuse_infinite(column, name, table.source)
        columns[name] = column
    if named is not None and left_out:
        name, reason = next(iter(left_out.items()))
        raise InputError(f"data.features names {name!r} of {table.source}, but {reason}", hint="leave it out")
    if not columns:
        told = "; ".join(f"{name}: {reason}" for name, reason in left_out.items())
        raise InputError(
            f"{table.source}: no column is left as a feature{f' ({told})' if told else ''}",
            hint=f"name some in data.features; its columns: {table.describe_columns()}",
        )
    return ChosenFeatures(columns=columns, left_out=left_out)


def check_named(table: ArrowTable, settings: DataSettings, target: str) -> None:
    """Raise InputError if data.features, data.exclude or data.group name columns that are not there or do not fit."""
    keys = {"data.features": settings.features or (), "data.exclude": settings.exclude or ()}
    if settings.group is not None:
        keys["data.group"] = (settings.group,)
    for key, names in keys.items():
        table.require(names, key, InputError)
    if target in (settings.features or ()):
        raise InputError(f"data.features names the target {target!r}", hint="leave it out of data.features")
    both = sorted(set(settings.features or ()) & set(settings.exclude or ()))
    if both:
        raise InputError(f"data.features and data.exclude both name {both[0]!r}", hint="leave one of them out")


def _is_candidate(name: str, settings: DataSettings, target: str) -> bool:
    if settings.features is not None:
        return name in settings.features
    return name not in {target, settings.group, *(settings.exclude or ())}


def _refuse_unusable(table: ArrowTable, candidates: Collection[str]) -> None:
    """Raise DataError for columns of dates, pictures and other types: they are prepared or left out by the user."""
    unusable = [n for n in candidates if table.kind(n) is None and table.stored(n) is not Stored.EMPTY]
    if not unusable:
        return
    shown = ", ".join(f"{name!r} ({table.stored(name).value})" for name in unusable[:NUM_SHOWN])
    more = f" and {len(unusable) - NUM_SHOWN} more" if len(unusable) > NUM_SHOWN else ""
    names = ", ".join(f'"{name}"' for name in unusable[:NUM_SHOWN])
    raise DataError(
        f"{table.source}: {len(unusable)} column{'' if len(unusable) == 1 else 's'} cannot be features: {shown}{more}",
        hint=f"turn them into numbers, such as a year or days since a date, or {_EXCLUDE_HINT.format(names=names)}",
    )


def _says_nothing(train: Column, num_rows: int) -> str | None:
    """Why a column is left out unless data.features names it; None: it is a feature."""
    known = ~train.is_missing
    if isinstance(train, CategoryColumn):
        num_distinct = len(np.unique(train.codes[known]))
        if num_distinct > MOST_TEXTS:
            return f"{num_distinct:,} different texts"
        if num_distinct > max(2, LARGEST_DISTINCT_SHARE * known.sum()):
            return f"{num_distinct:,} different texts in {known.sum():,} rows"
        return None
    if train.kind is Kind.NUMBER and train.is_whole and known.all():
        values = train.values
        is_within = values.min() >= 0 and values.max() <= num_rows
        if is_within and len(values) > 2 and len(np.unique(values)) == len(values):
            return "it counts the rows"
    return None


def _refuse_marks(train: CategoryColumn, name: str, source: str) -> None:
    """Raise DataError for numbers among which a few texts are, which are probably marks of missing values."""
    if not is_number_with_marks(train):
        return
    share, others = numeric_texts(train)
    shown = ", ".join(map(repr, others[:NUM_SHOWN]))
    more = f" and {len(others) - NUM_SHOWN} more" if len(others) > NUM_SHOWN else ""
    raise DataError(
        f"{source}: column {name!r} is text, but {100 * share:.3g} % of its values are numbers; the others are "
        f"{shown}{more}",
        hint=f'name what stands for a missing value, data.missing = ["", {", ".join(map(repr, others[:2]))}]; or '
        f"name the column in data.features or data.exclude",
    )
