"""A search space mapped to the unit cube, for samplers that work with coordinates in [0, 1].

Logarithmic parameters are uniform in their logarithm; each value of a discrete parameter has an interval of the axis.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, final

import numpy as np
from numpy.typing import NDArray
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

NumberDistribution = FloatDistribution | IntDistribution


@final
class UnitCube:
    """The axes of a search space, sorted by the parameters' names."""

    def __init__(self, space: Mapping[str, BaseDistribution]) -> None:
        self._axes = {name: _axis(space[name]) for name in sorted(space)}

    @property
    def num_dimensions(self) -> int:
        return len(self._axes)

    def values(self, coordinates: NDArray[np.float64]) -> dict[str, Any]:
        """The parameters at these coordinates, [num_dimensions] in [0, 1]."""
        pairs = zip(self._axes.items(), coordinates.tolist(), strict=True)
        return {name: axis.value(coordinate) for (name, axis), coordinate in pairs}

    def coordinates(self, values: Mapping[str, Any]) -> NDArray[np.float64]:
        """The coordinates of these parameters, [num_dimensions]; a discrete value is in the middle of its interval."""
        return np.array([axis.coordinate(values[name]) for name, axis in self._axes.items()])


@dataclass(frozen=True, kw_only=True)
class _Choices:
    distribution: CategoricalDistribution

    def value(self, coordinate: float) -> Any:
        choices = self.distribution.choices
        return choices[min(int(coordinate * len(choices)), len(choices) - 1)]

    def coordinate(self, value: Any) -> float:
        return (self.distribution.to_internal_repr(value) + 0.5) / len(self.distribution.choices)


@dataclass(frozen=True, kw_only=True)
class _Numbers:
    """An axis of numbers. For a discrete parameter the axis extends half a step beyond its lowest and highest value."""

    distribution: NumberDistribution

    def value(self, coordinate: float) -> float | int:
        first, last = self._ends
        number = first + coordinate * (last - first)
        number = math.exp(number) if self.distribution.log else number
        low, high, step = self.distribution.low, self.distribution.high, self.distribution.step
        if step is not None:
            number = low + step * round((number - low) / step)
        number = min(max(number, low), high)  # exp(log(high)) can slightly exceed high
        return round(number) if isinstance(self.distribution, IntDistribution) else float(number)

    def coordinate(self, value: float) -> float:
        first, last = self._ends
        number = math.log(value) if self.distribution.log else float(value)
        return (number - first) / (last - first) if last > first else 0.5

    @property
    def _ends(self) -> tuple[float, float]:
        margin = (self.distribution.step or 0) / 2
        low, high = self.distribution.low - margin, self.distribution.high + margin
        return (math.log(low), math.log(high)) if self.distribution.log else (low, high)


def _axis(distribution: BaseDistribution) -> _Choices | _Numbers:
    if isinstance(distribution, CategoricalDistribution):
        return _Choices(distribution=distribution)
    assert isinstance(distribution, NumberDistribution), "Optuna has no further kind"
    return _Numbers(distribution=distribution)
