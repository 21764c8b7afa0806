"""The first grid of a coarse-to-fine search: its dimensions' listed values, and the axes of those with a scale."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence

from hpsearch.search.narrowing.axes import DEFAULT_FINEST, Axis, axis_of
from hpsearch.search.narrowing.closed_round import rounded_key
from hpsearch.study.space import Dimension, ParameterValue, Point


class SearchGrid:
    """The grid of one search space.

    Args:
        dimensions: a log-spaced grid can grow beyond its ends by `Dimension.growth_decades`; a range never does; the
            values of a list are compared, but not narrowed.
        reduce: removes the keys that have no effect given the others (momentum with plain SGD), so that equivalent
            points are equal.
        is_admissible: False for points that cannot be tried; they are left out.
        finest: smallest spacing after halving, in decades; for a linear range in units of half its length.
    """

    def __init__(
        self,
        dimensions: Sequence[Dimension],
        *,
        reduce: Callable[[Point], Point] = dict,
        is_admissible: Callable[[Point], bool] = lambda point: True,
        finest: float = DEFAULT_FINEST,
    ) -> None:
        self.dimensions = tuple(dimensions)
        axes = [axis_of(dimension, finest) for dimension in dimensions]
        self.axes: tuple[Axis, ...] = tuple(axis for axis in axes if axis is not None)
        self.listed: dict[str, tuple[ParameterValue, ...]] = {
            dimension.name: dimension.values if axis is None else axis.listed
            for dimension, axis in zip(dimensions, axes, strict=True)
        }
        self._reduce = reduce
        self._is_admissible = is_admissible

    def point(self, values: Mapping[str, ParameterValue]) -> dict[str, ParameterValue] | None:
        """These values without the keys that have no effect; None if the point cannot be tried."""
        point = self.reduced(values)
        return point if self._is_admissible(point) else None

    def reduced(self, values: Mapping[str, ParameterValue]) -> dict[str, ParameterValue]:
        """These values without the keys that have no effect."""
        return dict(self._reduce(values))

    def points(self) -> Iterator[dict[str, ParameterValue]]:
        """The distinct points of the product of all listed values."""
        seen = set()
        for values in itertools.product(*self.listed.values()):
            point = self.point(dict(zip(self.listed, values, strict=True)))
            if point is not None and (key := rounded_key(point)) not in seen:
                seen.add(key)
                yield point
