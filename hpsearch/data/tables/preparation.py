"""The preparation of a table's features, as it is stored with a study: applied with numpy alone.

`fitting` makes it from training rows. Workers, the vault and `predict` read it from JSON and apply it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final, Self

import numpy as np
from numpy.typing import NDArray

from hpsearch.data.tables.columns import MISSING, CategoryColumn, Column, Columns, Kind, NumberColumn
from hpsearch.errors import StorageError

FORMAT: Final = 1
OTHER: Final = "other"  # the input of rare and unseen categories


@dataclass(frozen=True, kw_only=True, slots=True)
class PreparedNumber:
    """A number: missing values are filled, then (value - mean) / scale.

    Args:
        fill: the median of the training rows.
        has_indicator: a second input is 1 where the value is missing.
    """

    name: str
    fill: float
    mean: float
    scale: float
    has_indicator: bool
    kind: Kind = Kind.NUMBER

    @property
    def inputs(self) -> tuple[str, ...]:
        return (self.name, *_indicator(self.name, self.has_indicator))

    def write(self, column: Column, inputs: NDArray[np.float32]) -> None:
        assert isinstance(column, NumberColumn)
        is_missing = column.is_missing
        inputs[:, 0] = (np.where(is_missing, self.fill, column.values) - self.mean) / self.scale
        if self.has_indicator:
            inputs[:, 1] = is_missing


@dataclass(frozen=True, kw_only=True, slots=True)
class PreparedBoolean:
    """A truth value: 0 or 1.

    Args:
        fill: the more frequent value of the training rows.
    """

    name: str
    fill: float
    has_indicator: bool
    kind: Kind = Kind.BOOLEAN

    @property
    def inputs(self) -> tuple[str, ...]:
        return (self.name, *_indicator(self.name, self.has_indicator))

    def write(self, column: Column, inputs: NDArray[np.float32]) -> None:
        assert isinstance(column, NumberColumn)
        is_missing = column.is_missing
        inputs[:, 0] = np.where(is_missing, self.fill, column.values)
        if self.has_indicator:
            inputs[:, 1] = is_missing


@dataclass(frozen=True, kw_only=True, slots=True)
class PreparedCategory:
    """A category: one input of 0 or 1 for each of `categories`.

    Args:
        fill: the most frequent category of the training rows.
        has_other: one more input is 1 for rare and unseen categories. Without it, all inputs of an unseen one are 0.
    """

    name: str
    categories: tuple[str, ...]
    fill: str
    has_other: bool
    has_indicator: bool
    kind: Kind = Kind.CATEGORY

    @property
    def inputs(self) -> tuple[str, ...]:
        named = (*self.categories, *((OTHER,) if self.has_other else ()))
        return (*(f"{self.name} = {value}" for value in named), *_indicator(self.name, self.has_indicator))

    def write(self, column: Column, inputs: NDArray[np.float32]) -> None:
        assert isinstance(column, CategoryColumn)
        inputs[:] = 0
        place_of = {name: place for place, name in enumerate(self.categories)}
        unknown = len(self.categories) if self.has_other else -1
        # The last one is for missing values, whose code is -1.
        places = np.array([place_of.get(name, unknown) for name in (*column.names, self.fill)], dtype=np.int64)
        place = places[column.codes]
        rows = np.flatnonzero(place >= 0)
        inputs[rows, place[rows]] = 1
        if self.has_indicator:
            inputs[:, -1] = column.codes == MISSING


PreparedFeature = PreparedNumber | PreparedBoolean | PreparedCategory
_CLASSES: Final[Mapping[str, type[PreparedFeature]]] = {
    Kind.NUMBER: PreparedNumber,
    Kind.BOOLEAN: PreparedBoolean,
    Kind.CATEGORY: PreparedCategory,
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Preparation:
    """How the columns of a table become inputs, in the order of the features."""

    features: tuple[PreparedFeature, ...]

    @property
    def inputs(self) -> tuple[str, ...]:
        """The name of each input: a column, `Sex = female`, `Cabin = other`, or `Age is missing`."""
        return tuple(name for feature in self.features for name in feature.inputs)

    @property
    def kinds(self) -> dict[str, Kind]:
        return {feature.name: feature.kind for feature in self.features}

    def apply(self, columns: Columns) -> NDArray[np.float32]:
        """The inputs of rows, [N, inputs].

        Args:
            columns: every feature, each in its kind.
        """
        num_rows = len(columns[self.features[0].name])
        inputs = np.empty((num_rows, len(self.inputs)), dtype=np.float32)
        start = 0
        for feature in self.features:
            stop = start + len(feature.inputs)
            feature.write(columns[feature.name], inputs[:, start:stop])
            start = stop
        return inputs

    def as_json(self) -> dict[str, Any]:
        return {"format": FORMAT, "features": [asdict(feature) for feature in self.features]}

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> Self:
        """Raises StorageError if it is damaged, or of a newer version."""
        try:
            if document["format"] != FORMAT:
                raise ValueError(f"its format is {document['format']}, this version knows {FORMAT}")
            return cls(features=tuple(_feature(entry) for entry in document["features"]))
        except (KeyError, TypeError, ValueError) as error:
            raise StorageError(
                f"the stored preparation of the data cannot be read: {error!r:.200}",
                hint="use the version of hpsearch that created the study",
            ) from error


def input_names(record: Mapping[str, Any]) -> tuple[str, ...]:
    """The name of each input of a table, from `SelectionData.record`; empty for images."""
    document = record.get("preparation") or {}
    return Preparation.from_json(document).inputs if "features" in document else ()


def _feature(entry: Mapping[str, Any]) -> PreparedFeature:
    values = dict(entry)
    made_of: type[PreparedFeature] = _CLASSES[values.pop("kind")]
    if made_of is PreparedCategory:
        values["categories"] = tuple(values["categories"])
    return made_of(**values)


def _indicator(name: str, has_indicator: bool) -> Sequence[str]:
    return (f"{name} is missing",) if has_indicator else ()
