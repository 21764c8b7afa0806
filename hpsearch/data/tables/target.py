"""The target of a table: which column, which task, and the labels that a network is trained on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal, Self

import numpy as np
from numpy.typing import NDArray

from hpsearch.data.classes import MAX_CLASSES
from hpsearch.data.tables.arrow_table import ArrowTable
from hpsearch.data.tables.columns import (
    NUM_SHOWN,
    CategoryColumn,
    Column,
    Kind,
    NumberColumn,
    listed_rows,
    refuse_infinite,
)
from hpsearch.errors import DataError, InputError
from hpsearch.study.settings import DataSettings

MOST_WHOLE_CLASSES: Final = 20  # distinct whole numbers that are taken for classes
Task = Literal["classification", "regression"]
ClassValue = str | int | bool


@dataclass(frozen=True, kw_only=True, slots=True)
class Target:
    """What a network predicts.

    Args:
        classes: the classes' values in the order of their labels; empty in regression.
        mean, deviation: of the training rows, in the target's unit; 0 and 1 in classification.
    """

    name: str
    kind: Kind
    classes: tuple[ClassValue, ...] = ()
    mean: float = 0.0
    deviation: float = 1.0

    @property
    def task(self) -> Task:
        return "classification" if self.classes else "regression"

    @property
    def class_names(self) -> tuple[str, ...]:
        return tuple(class_name(value) for value in self.classes)

    def labels(self, column: Column, source: str) -> NDArray[Any]:
        """[N] int64 places in `classes`, or [N] float32 standardised values.

        Raises:
            DataError: a value is missing or infinite, or of a class that training does not have.
        """
        _refuse_missing(column, self.name, source)
        if not isinstance(column, CategoryColumn):
            _refuse_infinite(column, self.name, source)
        if not self.classes:
            assert not isinstance(column, CategoryColumn)
            return ((column.values - self.mean) / self.deviation).astype(np.float32)
        if not isinstance(column, CategoryColumn):
            is_fraction = column.values != np.floor(column.values)
            if is_fraction.any():
                raise DataError(
                    f"{source}: the target {self.name!r} has fractions in {listed_rows(is_fraction)}",
                    hint="correct or remove these rows: the classes of training are whole numbers",
                )
        places, values = _numbered(column)
        place_of = {class_name(value): place for place, value in enumerate(self.classes)}
        known = np.array([place_of.get(class_name(value), -1) for value in values], dtype=np.int64)
        unknown = [class_name(value) for value, place in zip(values, known.tolist(), strict=True) if place < 0]
        if unknown:
            raise DataError(
                f"{source}: column {self.name!r} has {_listed(unknown)}, which training does not have",
                hint="remove these rows, or add such rows to the training data",
            )
        labels: NDArray[np.int64] = known[places]
        return labels

    def as_json(self) -> dict[str, Any]:
        """`SelectionData.record["target"]`."""
        about: dict[str, Any] = {"name": self.name, "task": self.task, "kind": self.kind.value}
        if self.classes:
            return {**about, "classes": list(self.classes)}
        return {**about, "mean": self.mean, "deviation": self.deviation}

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> Self:
        return cls(
            name=document["name"],
            kind=Kind(document["kind"]),
            classes=tuple(document.get("classes", ())),
            mean=document.get("mean", 0.0),
            deviation=document.get("deviation", 1.0),
        )


def find_target(table: ArrowTable, settings: DataSettings) -> str:
    """The target's column: data.target, or the target that the data set names itself.

    Raises:
        InputError: it is not named, or there is no such column.
    """
    if settings.target is None:
        if table.target is not None:
            return table.target
        raise InputError(
            f"data.target is missing: it names the column of {table.source} that is to be predicted",
            hint=f"its columns: {table.describe_columns()}",
        )
    if settings.target not in table.names:
        raise InputError(
            f"data.target: {table.source} has no column {settings.target!r}",
            hint=f"its columns: {table.describe_columns()}",
        )
    return settings.target


def choose_task(column: Column, name: str, settings: DataSettings, source: str) -> Task:
    """What kind of task a target's values are for, unless data.task says it.

    Args:
        column: the targets of all rows: the split is drawn with them.
    Raises:
        DataError: a value is missing or infinite, or the values do not fit data.task.
    """
    _refuse_missing(column, name, source)
    if column.kind is not Kind.NUMBER:
        if settings.task == "regression":
            what = "text" if column.kind is Kind.CATEGORY else "truth values"
            raise DataError(
                f"{source}: data.task is regression, but column {name!r} holds {what}",
                hint="choose a target of numbers, or leave data.task out",
            )
        return "classification"
    assert not isinstance(column, CategoryColumn)
    _refuse_infinite(column, name, source)
    num_distinct = len(np.unique(column.values))
    if settings.task == "classification" and not column.is_whole:
        raise DataError(
            f"{source}: data.task is classification, but column {name!r} holds fractions",
            hint="leave data.task out: these numbers are for regression",
        )
    is_few = column.is_whole and num_distinct <= MOST_WHOLE_CLASSES
    return settings.task or ("classification" if is_few else "regression")


def class_codes(column: Column) -> NDArray[np.int64]:
    """[N] numbers of the values, by which a split is stratified."""
    return _numbered(column)[0]


def fit_target(name: str, task: Task, train: Column, others: Column, source: str) -> Target:
    """The target of a new study.

    Args:
        train: the targets of the training rows.
        others: those of all other rows whose targets are known: none may have a class that training lacks.
    Raises:
        DataError: classes are missing from training, there is only one or too many, or all numbers are the same.
    """
    kind = train.kind
    if task == "regression":
        assert not isinstance(train, CategoryColumn)
        deviation = float(train.values.std())
        if deviation == 0 or train.values.min() == train.values.max():  # rounding: the deviation of 1000 x 0.1 is not 0
            raise DataError(
                f"{source}: the target {name!r} is {train.values[0]:g} in every training row",
                hint="there is nothing to learn: choose another target",
            )
        return Target(name=name, kind=kind, mean=float(train.values.mean()), deviation=deviation)
    places, values = _numbered(train)
    classes = [values[place] for place in np.unique(places).tolist()]
    known = {class_name(value) for value in classes}
    _, all_values = _numbered(others)
    absent = [class_name(value) for value in all_values if class_name(value) not in known]
    if absent:
        raise DataError(
            f"{source}: no training row has {_listed(absent)} of the target {name!r}, which other rows have",
            hint="classes of a single row or a single group cannot be split: remove these rows, or set data.split_seed",
        )
    if len(classes) < 2:
        raise DataError(f"{source}: all rows have {_listed(sorted(known))}", hint="there is nothing to classify")
    if len(classes) > MAX_CLASSES:
        raise DataError(
            f"{source}: the target {name!r} has {len(classes):,} classes, expected at most {MAX_CLASSES}",
            hint="choose another target",
        )
    return Target(name=name, kind=kind, classes=tuple(classes))


def class_name(value: ClassValue) -> str:
    """A class's value as text: true, 3, or the text itself."""
    return str(value).lower() if isinstance(value, bool) else str(value)


def _numbered(column: Column) -> tuple[NDArray[np.int64], list[ClassValue]]:
    """[N] places in the sorted distinct values, and these; no value is missing."""
    if isinstance(column, CategoryColumn):
        used, places = np.unique(column.codes, return_inverse=True)
        return places.astype(np.int64), [column.names[code] for code in used.tolist()]
    distinct, places = np.unique(column.values, return_inverse=True)
    make: type[bool] | type[int] = bool if column.kind is Kind.BOOLEAN else int
    return places.astype(np.int64), [make(value) for value in distinct.tolist()]


def _refuse_missing(column: Column, name: str, source: str) -> None:
    is_missing = column.is_missing
    if is_missing.any():
        raise DataError(
            f"{source}: the target {name!r} is missing in {listed_rows(is_missing)}",
            hint="remove these rows, or give them a value",
        )


def _refuse_infinite(column: NumberColumn, name: str, source: str) -> None:
    refuse_infinite(column, name, source, hint="correct or remove these rows")


def _listed(names: list[str]) -> str:
    shown = ", ".join(map(repr, names[:NUM_SHOWN]))
    more = f" and {len(names) - NUM_SHOWN:,} more" if len(names) > NUM_SHOWN else ""
    return f"class{'es' if len(names) > 1 else ''} {shown}{more}"
