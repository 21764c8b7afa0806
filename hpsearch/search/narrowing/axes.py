"""The axes of the coarse-to-fine search: each numeric dimension has a spacing that is halved repeatedly.

Each axis has its own scale: decades for log-spaced values, the value itself for a linear range. Its points lie on a
lattice; level 0 is the spacing in the study file, and each level halves it. A zero beside a logarithmic scale is not
on the lattice; `ladder` determines its neighbours.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Final, Literal, final

from hpsearch.study.space import Dimension, LogGrid, ParameterValue, rounded

DEFAULT_FINEST: Final = 1 / 16  # decades; 15 % between neighbours

_TIE: Final = 1e-6  # fraction of a spacing; larger than the rounding error of an index
_DISTINCT_DECADES: Final = 0.25  # a decade closer than this to the end of a range is not tried
_SHORT_DECADES: Final = 2.0  # a logarithmic range shorter than this starts with its middle, not with its decades


@final
@dataclass(frozen=True, kw_only=True)
class Axis:
    """One searched number.

    Args:
        listed: the values of the first round, in the user's order.
        origin: a lattice point, on the axis's scale.
        unit, density: neighbours at level k are unit / (density * 2**k) apart.
        smallest, largest: limits of the search, inclusive; for a range its ends.
        has_zero: whether 0 is searched below all positive values.
        finest: no spacing is halved below this value.
    """

    name: str
    listed: tuple[ParameterValue, ...]
    is_log: bool
    is_integer: bool
    has_zero: bool
    origin: float
    unit: float
    density: int
    smallest: float
    largest: float
    finest: float

    def spacing(self, level: int) -> float:
        """The distance between neighbours, on the axis's scale."""
        return self.unit / (self.density * 2.0**level)

    def can_halve(self, level: int) -> bool:
        return self.spacing(level + 1) > self.finest * (1 - 1e-9)

    def allowed(self, level: int) -> int:
        """The level, limited to the finest level that is allowed."""
        while level > 0 and not self.can_halve(level - 1):
            level -= 1
        return level

    def neighbour(self, value: float, direction: Literal[-1, 1], level: int) -> ParameterValue | None:
        """The lattice point nearest to one spacing from `value`; None if there is none in this direction.

        If two are equally near, the one closer to `value` is taken: at half a spacing, not at one and a half.

        Args:
            value: positive on a logarithmic scale. It need not be on the lattice (the end of a range, a user's point).
        """
        here = self._place(value)
        index = round((here - self.origin) / self.spacing(level) + direction * (1 - _TIE))
        # index / density instead of index * spacing: twice 1/3 decade is then the same number at every level.
        place = self.origin + index * self.unit / (self.density * 2.0**level)
        found = self.at(place)
        if self.is_integer and found == value:  # the spacing is below one whole number
            found = round(min(max(value + direction, self.smallest), self.largest))
        is_beyond = (found - value) * direction > 0 and canonical(found) != canonical(value)
        return found if is_beyond else None

    def _place(self, value: float) -> float:
        return math.log10(value) if self.is_log else float(value)

    def at(self, place: float) -> float | int:
        """The value at a position on the scale, limited to the ends of the axis."""
        number = min(max(rounded(10.0**place if self.is_log else place), self.smallest), self.largest)
        return round(number) if self.is_integer else number


def axis_of(dimension: Dimension, finest: float = DEFAULT_FINEST) -> Axis | None:
    """The axis of a log-spaced grid or a range; None for a list, whose values have no scale.

    Args:
        finest: smallest spacing, in decades; for a linear range in units of half its length.
    """
    if dimension.log_grid is not None:
        return _grid_axis(dimension, dimension.log_grid, finest)
    return _range_axis(dimension, finest) if dimension.is_continuous else None


def canonical(value: ParameterValue) -> ParameterValue:
    """The form in which values are compared: floats are rounded."""
    return rounded(value) if isinstance(value, float) else value


def _grid_axis(dimension: Dimension, grid: LogGrid, finest: float) -> Axis:
    low, high = sorted(grid.log10)
    smallest = rounded(10.0 ** (low - dimension.growth_decades))
    return Axis(
        name=dimension.name,
        listed=dimension.values,
        is_log=True,
        is_integer=dimension.is_integer,
        has_zero=dimension.has_zero,
        origin=grid.log10[0],
        unit=1.0,
        density=grid.per_decade,
        smallest=max(1.0, smallest) if dimension.is_integer else smallest,
        largest=rounded(10.0 ** (high + dimension.growth_decades)),
        finest=finest,
    )


def _range_axis(dimension: Dimension, finest: float) -> Axis:
    """The axis of a range; the search never leaves the range.

    The first round has both ends and the middle, or on a long logarithmic scale both ends and the decades.
    """
    smallest, largest = sorted(float(value) for value in dimension.values)
    low, high = (math.log10(smallest), math.log10(largest)) if dimension.is_log else (smallest, largest)
    is_long = dimension.is_log and high - low >= _SHORT_DECADES
    axis = Axis(
        name=dimension.name,
        listed=(),
        is_log=dimension.is_log,
        is_integer=dimension.is_integer,
        has_zero=False,
        origin=0.0 if is_long else low,
        unit=1.0 if is_long else high - low,
        density=1 if is_long else 2,
        smallest=smallest,
        largest=largest,
        finest=finest if dimension.is_log else finest * (high - low) / 2,
    )
    inside = [low + (high - low) / 2]
    if is_long:
        inside = [float(n) for n in range(math.ceil(low + _DISTINCT_DECADES), math.floor(high - _DISTINCT_DECADES) + 1)]
    return replace(axis, listed=tuple(dict.fromkeys(axis.at(place) for place in (low, *inside, high))))
