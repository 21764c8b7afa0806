"""Made-up error surfaces whose best point is known, and trials on them that are as noisy as real ones.

A surface gives the true error of a point. A trial of it is 10,000 validation images that are right or wrong: images
are easy or hard for all trials alike, so that two trials err on much the same images, as two real networks do, and a
paired test sees finer differences than the error rates alone. A seed moves a trial's true error a little.

Every surface is placed anew for each repetition, so that no strategy profits from how its grid happens to lie.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from hpsearch.search.narrowing.closed_round import KnownPoint
from hpsearch.search.significance import discordant, is_significant_gain
from hpsearch.study.space import Choice, Dimension, LogGrid, ParameterValue, Point

NUM_IMAGES = 10_000
SHARED_DIFFICULTY = 0.97  # correlation: of two trials that err on 2 %, each is right on a third of the other's errors
SEED_NOISE = 0.01  # relative, of the true error
SIGNIFICANCE_LEVEL = 0.05  # two-sided


@dataclass(frozen=True, kw_only=True)
class Surface:
    """One placing of a surface.

    Args:
        search_space: what a user would write: decades.
        error: the true error in (0, 1) of a point; None: it diverges.
        lowest: the true error at the best point there is, also beyond the user's grid.
        seed_noise: standard deviation, relative.
    """

    name: str
    search_space: Mapping[str, LogGrid | Choice]
    error: Callable[[Point], float | None]
    lowest: float
    seed_noise: float = SEED_NOISE

    def dimensions(self, *, per_decade: int = 1) -> tuple[Dimension, ...]:
        """The user's grid, or a finer one with the same ends."""
        return tuple(dimension_of(name, shape, per_decade) for name, shape in self.search_space.items())


def dimension_of(name: str, shape: LogGrid | Choice, per_decade: int = 1) -> Dimension:
    if isinstance(shape, Choice):
        return Dimension(name=name, values=shape.values)
    grid = LogGrid(log10=shape.log10, zero=shape.zero, per_decade=per_decade)
    values = grid.listed(is_integer=False, limit=1_000_000)
    return Dimension(name=name, values=values, is_log=True, has_zero=grid.zero, log_grid=grid)


@dataclass
class PlantedTrials:
    """The trials of one repetition: a point always gives the same trial, whoever asks for it."""

    surface: Surface
    repetition: int
    _difficulty: NDArray[np.float64] = field(init=False)

    def __post_init__(self) -> None:
        self._difficulty = np.random.default_rng(self.repetition).standard_normal(NUM_IMAGES)

    def run(self, point: Point) -> KnownPoint:
        """The trial of this point; its key is the packed bits of the images that it is right on."""
        true_error = self.surface.error(point)
        if true_error is None:
            return KnownPoint(point, None)
        generator = np.random.default_rng([self.repetition, zlib.crc32(repr(sorted(point.items())).encode())])
        error = true_error * math.exp(self.surface.seed_noise * generator.standard_normal())
        own = math.sqrt(1 - SHARED_DIFFICULTY**2) * generator.standard_normal(NUM_IMAGES)
        is_wrong = SHARED_DIFFICULTY * self._difficulty + own > NormalDist().inv_cdf(1 - min(error, 0.999))
        return KnownPoint(point, float(is_wrong.mean()), key=np.packbits(~is_wrong).tobytes())


def bits_differ(a: KnownPoint, b: KnownPoint) -> bool:
    """The exact McNemar test, two-sided, on the packed bits that the points have as keys."""
    assert isinstance(a.key, bytes)
    assert isinstance(b.key, bytes)
    gained, lost = discordant(a.key, b.key)
    return is_significant_gain(max(gained, lost), min(gained, lost), SIGNIFICANCE_LEVEL / 2)


def bowl(generator: np.random.Generator) -> Surface:
    """Best anywhere between two decades; steeper above the best learning rate, divergent 1.3 decades above it."""
    rate, weight = generator.uniform(-2.5, -1.5), generator.uniform(-4.5, -3.5)

    def error(point: Point) -> float | None:
        x, y = _log10(point["learning_rate"]) - rate, _log10(point["lambda_2"]) - weight
        if x > 1.3:
            return None
        return _error(0.02, (0.9 if x > 0 else 0.5) * x * x + _capped(0.2 * y * y, 0.5))

    return Surface(name="bowl", search_space=_SPACE, error=error, lowest=0.02)


def edge(generator: np.random.Generator) -> Surface:
    """Best up to 1.5 decades above the largest learning rate that the user wrote; no weight decay is best."""
    rate = generator.uniform(-1, 0.5)

    def error(point: Point) -> float | None:
        x, weight = _log10(point["learning_rate"]) - rate, _number(point["lambda_2"])
        return _error(0.02, 0.5 * x * x + 60 * math.sqrt(weight) * 0.1)

    return Surface(
        name="edge",
        search_space={**_SPACE, "learning_rate": LogGrid(log10=(-1, -4))},
        error=error,
        lowest=0.02,
    )


def valley(generator: np.random.Generator) -> Surface:
    """Rosenbrock's: a narrow curved valley, along which the error falls slowly."""
    rate, weight = generator.uniform(-2.5, -1.5), generator.uniform(-4.5, -3.5)

    def error(point: Point) -> float | None:
        x, y = _log10(point["learning_rate"]) - rate, _log10(point["lambda_2"]) - weight
        return _error(0.02, _capped(0.8 * (y - x - 0.4 * x * x) ** 2, 2.0) + 0.12 * x * x)

    return Surface(name="valley", search_space=_SPACE, error=error, lowest=0.02)


def plateau(generator: np.random.Generator) -> Surface:
    """Two decades of learning rates and of lambdas are equally good, and seeds differ much."""
    rate, weight = generator.uniform(-2.5, -1.5), generator.uniform(-4.5, -3.5)

    def error(point: Point) -> float | None:
        x, y = _log10(point["learning_rate"]) - rate, _log10(point["lambda_2"]) - weight
        return _error(0.02, 0.7 * max(0.0, abs(x) - 1) ** 2 + _capped(0.4 * max(0.0, abs(y) - 1) ** 2, 0.5))

    return Surface(name="noisy plateau", search_space=_SPACE, error=error, lowest=0.02, seed_noise=0.03)


def without_influence(generator: np.random.Generator) -> Surface:
    """A bowl over the learning rate; lambda does nothing."""
    rate = generator.uniform(-2.5, -1.5)

    def error(point: Point) -> float | None:
        return _error(0.02, 0.6 * (_log10(point["learning_rate"]) - rate) ** 2)

    return Surface(name="no influence", search_space=_SPACE, error=error, lowest=0.02)


def categorical(generator: np.random.Generator) -> Surface:
    """Three activations, each with a best learning rate of its own; the best two are a twentieth apart."""
    return _activations("categorical", generator, steepness=0.7)


def narrow_choices(generator: np.random.Generator) -> Surface:
    """The same with narrow optima: half a decade beside it the best activation is worse by two thirds."""
    return _activations("narrow choices", generator, steepness=2.0)


def _activations(name: str, generator: np.random.Generator, *, steepness: float) -> Surface:
    rates = dict(zip(_FLOORS, generator.uniform(-3, -1, size=3), strict=True))

    def error(point: Point) -> float | None:
        activation = str(point["activation"])
        x = _log10(point["learning_rate"]) - rates[activation]
        return _error(_FLOORS[activation], steepness * x * x)

    space: dict[str, LogGrid | Choice] = {
        "activation": Choice(values=tuple(_FLOORS)),
        "learning_rate": LogGrid(log10=(0, -4)),
    }
    return Surface(name=name, search_space=space, error=error, lowest=min(_FLOORS.values()))


SURFACES: tuple[Callable[[np.random.Generator], Surface], ...] = (
    bowl,
    edge,
    valley,
    plateau,
    without_influence,
    categorical,
    narrow_choices,
)

_FLOORS = {"tanh": 0.02, "relu": 0.019, "sigmoid": 0.024}
_SPACE: Mapping[str, LogGrid | Choice] = {
    "learning_rate": LogGrid(log10=(0, -4)),
    "lambda_2": LogGrid(log10=(-2, -6), zero=True),
}
_ZERO_EXPONENT = -12.0  # where 0 stands on a logarithmic scale of a surface


def _number(value: ParameterValue) -> float:
    assert isinstance(value, int | float)
    return float(value)


def _log10(value: ParameterValue) -> float:
    number = _number(value)
    return math.log10(number) if number > 0 else _ZERO_EXPONENT


def _capped(height: float, cap: float) -> float:
    """Levels off smoothly: too little weight decay costs no more than none at all."""
    return cap * (1 - math.exp(-height / cap))


def _error(floor: float, height: float) -> float:
    """Multiplies with the height, and levels off at chance."""
    return min(0.9, floor * math.exp(height))
