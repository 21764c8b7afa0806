"""The known points of a coarse-to-fine search, and the points beside one of them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from hpsearch.search.narrowing.axes import Axis
from hpsearch.search.narrowing.closed_round import Differ, KnownPoint, NarrowingState, PointKey, rounded_key
from hpsearch.search.narrowing.grid import SearchGrid
from hpsearch.study.space import ParameterValue, Point


@dataclass
class Neighbourhood:
    """The known points as a table, best first, and the points beside them at the spacings of the axes' levels.

    Args:
        state: of the last round.
        known: in the order of their trials; of points with equal values the first is the best.
        differ: whether two points with values differ significantly; symmetric.
    """

    grid: SearchGrid
    state: NarrowingState
    known: list[KnownPoint]
    differ: Differ

    def __post_init__(self) -> None:
        self.table: dict[PointKey, KnownPoint] = {}
        for known in sorted(self.known, key=rank):  # stable: the first of equal points
            self.table.setdefault(rounded_key(known.point), known)
        lost = {rounded_key(point): point for point in (*self.state.missing, *self.state.given)}
        self.missing = {key: point for key, point in lost.items() if key not in self.table}
        self.levels = dict(self.state.levels)
        self.settled = set(self.state.settled)

    @property
    def best(self) -> KnownPoint:
        return next(iter(self.table.values()))

    def axes(self) -> list[Axis]:
        return self.axes_of(self.best)

    def axes_of(self, known: KnownPoint) -> list[Axis]:
        return [axis for axis in self.grid.axes if axis.name in known.point]

    def differs(self, point: Point, center: KnownPoint | None = None) -> bool:
        """Whether the point is known and differs significantly from the center, by default the best point."""
        known = self.table.get(rounded_key(point))
        return known is not None and (known.value is None or self.differ(center or self.best, known))

    def neighbours(
        self, center: KnownPoint, axes: Sequence[Axis], levels: Mapping[str, int] | None = None
    ) -> list[dict[str, ParameterValue]]:
        """The points one spacing from the center along each axis.

        If there is only one along an axis, the point two spacings from the center is included.
        """
        levels = self.levels if levels is None else levels
        found = []
        for axis in axes:
            level = levels.get(axis.name, 0)
            values = self._neighbour_values(center, axis, level)
            points = [point for value in values if (point := self.with_value(center, axis.name, value)) is not None]
            second = self._second_on_one_side(center, axis, level, points)
            found += points if second is None else [*points, second]
        return found

    def _second_on_one_side(
        self, center: KnownPoint, axis: Axis, level: int, neighbours: Sequence[Point]
    ) -> dict[str, ParameterValue] | None:
        """The point two spacings from the center, if there is exactly one neighbour that is not missing."""
        sides = [point for point in neighbours if rounded_key(point) not in self.missing]
        if len(sides) != 1:
            return None
        value, nearest = center.point[axis.name], sides[0][axis.name]
        assert isinstance(value, int | float)
        assert isinstance(nearest, int | float)
        if axis.is_log and min(value, nearest) <= 0:
            return None  # a logarithmic scale has no spacing at zero
        second = axis.neighbour(nearest, 1 if nearest > value else -1, level)
        return None if second is None else self.with_value(center, axis.name, second)

    def _neighbour_values(self, center: KnownPoint, axis: Axis, level: int) -> list[ParameterValue]:
        value = center.point[axis.name]
        assert isinstance(value, int | float)
        if axis.is_log and value <= 0:
            return [self._above_zero(center, axis)]
        below, above = (axis.neighbour(value, direction, level) for direction in (-1, 1))
        if axis.has_zero and value <= self._smallest_positive(axis):
            zero = self.with_value(center, axis.name, 0 if axis.is_integer else 0.0)
            if zero is not None and not self.differs(zero, center) and rounded_key(zero) not in self.missing:
                below = zero[axis.name]
        return [value for value in (below, above) if value is not None]

    def _above_zero(self, center: KnownPoint, axis: Axis) -> ParameterValue:
        """The positive neighbour of zero: the smallest positive value so far, or one below it.

        The latter if the smallest positive value is significantly worse than zero.
        """
        smallest = self._smallest_positive(axis)
        nearest = self.with_value(center, axis.name, smallest)
        grown = axis.neighbour(smallest, -1, 0)
        return grown if grown is not None and nearest is not None and self.differs(nearest, center) else smallest

    def _smallest_positive(self, axis: Axis) -> float:
        values = (*axis.listed, *self.tried_values(axis))
        return min(value for value in values if isinstance(value, int | float) and value > 0)

    def tried_values(self, axis: Axis) -> list[ParameterValue]:
        return [known.point[axis.name] for known in self.table.values() if axis.name in known.point]

    def with_value(self, center: KnownPoint, name: str, value: ParameterValue) -> dict[str, ParameterValue] | None:
        """The center with another value of one key; None if that is the same point, or cannot be tried."""
        like_it = (known.point for known in self.table.values() if known.point.get(name) == value)
        like = next(like_it, {})
        filled = {other: like.get(other, values[0]) for other, values in self.grid.listed.items()}
        point = self.grid.point({**filled, **center.point, name: value})
        return None if point is None or rounded_key(point) == rounded_key(center.point) else point

    def unknown(self, points: Iterable[dict[str, ParameterValue]]) -> list[dict[str, ParameterValue]]:
        unknown = {rounded_key(point): point for point in points}
        return [point for key, point in unknown.items() if key not in self.table and key not in self.missing]


def rank(known: KnownPoint) -> tuple[bool, float, float]:
    nll = math.inf if known.nll is None or math.isnan(known.nll) else known.nll
    return (True, 0.0, 0.0) if known.value is None else (False, known.value, nll)
