"""The dimensions of a search space: what `[search]` says about a key, as a grid and as Optuna distributions.

    learning_rate = { log10 = [-1, -4] }              -> LogGrid: 0.1, 0.01, 0.001, 0.0001
    lambda_2 = { log10 = [-2, -6], zero = true }      -> LogGrid with 0 in front
    hidden_units = [50, 100, 500]                     -> Choice
    momentum = { low = 0.5, high = 0.99 }             -> Range (not for grids)
    kernels = [[10, 20], [20, 50]]                    -> Choice of "10x20", "20x50"

A point is a mapping from names to values. Strategies that draw ask a `Suggester` (an optuna.Trial); the others list
their points.
Source: REFERENCE section 4 (log-spaced values, narrowed later).
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal, Protocol

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    PlainSerializer,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)

from hpsearch.study.settings import LongCount, Number, PointCount, PositiveNumber, Settings

ParameterValue = float | int | str | bool
Point = Mapping[str, ParameterValue]
Strategy = Literal["grid", "listed", "coarse-to-fine", "random", "qmc", "tpe", "gp", "cmaes"]
DRAWN: Final = ("random", "qmc", "tpe", "gp", "cmaes")  # a sampler gives a point its parameters when it is claimed
KeptParameters = Literal["best", "all"]

# -0.0 equals 0.0, and so must the two definitions' texts and hashes.
Exponent = Annotated[Number, AfterValidator(lambda exponent: exponent + 0.0)]

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution

ZERO_SUFFIX = "_is_zero"  # the switch beside a log-spaced dimension with zero, where that is no list of values
GROWTH_DECADES: Final = 3  # how far coarse-to-fine may look beyond each end of log-spaced values ...
INTEGER_GROWTH_DECADES: Final = 1  # ... and of sizes: a layer a thousand times as wide costs a thousand times as much


class Suggester(Protocol):
    """The part of optuna.Trial that a dimension needs."""

    def suggest_float(self, name: str, low: float, high: float, *, log: bool = ...) -> float: ...
    def suggest_int(self, name: str, low: int, high: int, *, log: bool = ...) -> int: ...
    def suggest_categorical(self, name: str, choices: Any) -> Any: ...


def rounded(value: float) -> float:
    """12 significant digits: the same value on every machine, whatever its pow() rounds to."""
    return float(f"{value:.12g}")


class LogGrid(Settings):
    """Log-spaced values from 10^first to 10^last, both included, in the order given.

    Args:
        log10: the first and the last exponent.
        per_decade: values per decade; 1 is the decade grid of the notes.
        zero: puts 0 in front, which no log-spaced grid reaches.
        zero_share: the part of the draws that is 0, for strategies that draw; None: half of them.
    """

    log10: Annotated[tuple[Exponent, Exponent], Field(strict=False)]
    per_decade: Annotated[int, Field(ge=1, le=1000)] = 1
    zero: bool = False
    zero_share: Annotated[Number, Field(gt=0, lt=1)] | None = None

    @model_serializer(mode="wrap")
    def _without_share(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave out what is not set: a definition without it has the text and the hash that it had before the key."""
        fields: dict[str, Any] = handler(self)
        return {key: value for key, value in fields.items() if key != "zero_share" or value is not None}

    @model_validator(mode="after")
    def _check_exponents(self) -> LogGrid:
        if max(abs(exponent) for exponent in self.log10) > 300:
            raise ValueError(f"exponents must be within -300 .. 300, got {list(self.log10)}")
        if self.zero_share is not None and not self.zero:
            raise ValueError("zero_share is of the zero that zero = true adds")
        if abs(self._steps - round(self._steps)) > 1e-9:
            raise ValueError(f"log10 = {list(self.log10)} is not a whole number of steps of 1/{self.per_decade} decade")
        return self

    @property
    def _steps(self) -> float:
        return abs(self.log10[1] - self.log10[0]) * self.per_decade

    def listed(self, *, is_integer: bool, limit: int) -> tuple[ParameterValue, ...]:
        """The grid's values in order; rounded to whole numbers for integer keys.

        Raises:
            ValueError: more values than `limit`, or fractions for an integer key.
        """
        first, last = self.log10
        num_steps = round(self._steps)
        if num_steps + 1 + self.zero > limit:
            raise ValueError(
                f"has {num_steps + 1 + self.zero:,} values, more than the limit of {limit:,} points: "
                f"raise it with --set search.max_points={num_steps + 1 + self.zero}"
            )
        if is_integer and min(first, last) < 0:
            raise ValueError(f"must have exponents >= 0 for a whole number, got {[first, last]}")
        sign = 1 if last >= first else -1
        exponents = [first + sign * step / self.per_decade for step in range(num_steps + 1)]
        values: list[ParameterValue] = [rounded(10.0**exponent) for exponent in exponents]
        if self.zero:
            values.insert(0, 0.0)
        return tuple(round(float(value)) for value in values) if is_integer else tuple(values)


class Choice(Settings):
    """A list of values."""

    values: Annotated[tuple[Any, ...], Field(strict=False)]

    def listed(self, *, is_integer: bool, limit: int) -> tuple[Any, ...]:
        """The values as they stand; the section that they belong to judges them."""
        return self.values


class Range(Settings):
    """A continuous (or integer) interval, both ends included; for strategies that draw or narrow, not for grids."""

    low: Number
    high: Number
    log: bool = False

    @model_validator(mode="after")
    def _check_order(self) -> Range:
        if not self.low < self.high:
            raise ValueError(f"low must be < high, got {self.low:g} and {self.high:g}")
        if self.log and self.low <= 0:
            raise ValueError(f"low must be > 0 with log = true, got {self.low:g}")
        return self

    def listed(self, *, is_integer: bool, limit: int) -> tuple[ParameterValue, ...]:
        """Both ends. Raises ValueError if they are no whole numbers and the key takes only such."""
        if not is_integer:
            return (self.low, self.high)
        if not (self.low.is_integer() and self.high.is_integer()):
            raise ValueError(f"must have whole numbers as low and high, got {self.low:g} and {self.high:g}")
        return (int(self.low), int(self.high))


class Dimension(Settings):
    """One searched key: its name, its values where they are a list, and whether it holds whole numbers.

    Args:
        values: the grid's values in order; for a Range its two ends.
        is_continuous: draw anywhere between smallest and largest value, rather than from the list.
        is_log: distances are measured on a logarithmic scale.
        has_zero: 0 stands beside a logarithmic scale (and is among the values).
        log_grid: what the values were listed from, if not from a list or a range: a user writes this.
    """

    name: str
    values: tuple[ParameterValue, ...]
    is_integer: bool = False
    is_continuous: bool = False
    is_log: bool = False
    has_zero: bool = False
    log_grid: LogGrid | None = None

    @property
    def _bounds(self) -> tuple[float, float]:
        numbers = [float(v) for v in self.values if not (self.has_zero and v == 0)]
        return min(numbers), max(numbers)

    @property
    def growth_decades(self) -> int:
        """How far coarse-to-fine may look beyond each end of log-spaced values."""
        return INTEGER_GROWTH_DECADES if self.is_integer else GROWTH_DECADES

    def grid_distribution(self) -> BaseDistribution:
        """What Optuna and the dashboard are told about a grid's values.

        Log-spaced grids show as a logarithmic axis. With zero there is no such axis: values are categories.
        """
        from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

        if not (self.is_log or self.is_continuous) or self.has_zero:
            return CategoricalDistribution(self.values)
        low, high = self._bounds
        if self.is_integer:
            return IntDistribution(round(low), round(high), log=self.is_log)
        return FloatDistribution(low, high, log=self.is_log)

    def narrowed_distributions(self) -> dict[str, BaseDistribution]:
        """What Optuna is told about coarse-to-fine's values: the same for all rounds, as its importances want it.

        Log-spaced values may grow beyond their ends; a zero beside them is a switch of its own.
        """
        if not self.is_log or self.is_continuous:
            return {self.name: self.grid_distribution()}

        from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

        low, high = self._bounds
        low, high = rounded(low / 10**self.growth_decades), rounded(high * 10**self.growth_decades)
        value: BaseDistribution = FloatDistribution(low, high, log=True)
        if self.is_integer:
            value = IntDistribution(max(1, round(low)), round(high), log=True)
        switch = {self.name + ZERO_SUFFIX: CategoricalDistribution((False, True))} if self.has_zero else {}
        return {**switch, self.name: value}

    def suggest(self, trial: Suggester) -> ParameterValue:
        """Draw a value for `trial`; a dimension with zero takes two parameters, the switch and the value."""
        if not (self.is_log or self.is_continuous):
            value: ParameterValue = trial.suggest_categorical(self.name, list(self.values))
            return value
        if self.has_zero and self._draws_zero(trial):
            return 0 if self.is_integer else 0.0
        low, high = self._bounds
        if self.is_integer:
            return trial.suggest_int(self.name, round(low), round(high), log=self.is_log)
        return trial.suggest_float(self.name, low, high, log=self.is_log)

    def _draws_zero(self, trial: Suggester) -> bool:
        """Ask the switch: two choices, or a number that is not negative in `zero_share` of an even spread."""
        name, share = self.name + ZERO_SUFFIX, self.log_grid.zero_share if self.log_grid else None
        if share is None:
            return bool(trial.suggest_categorical(name, [False, True]))
        return is_zero_drawn(trial.suggest_float(name, share - 1, share))


def is_zero_drawn(switch: ParameterValue) -> bool:
    """Whether a `_is_zero` parameter says that the value is 0."""
    return switch if isinstance(switch, bool) else not isinstance(switch, str) and switch >= 0


Pairs = tuple[tuple[str, Any], ...]


def _parse_point(table: object) -> object:
    """A point of a list, as pairs in the order of their names: hashable, and equal to those that say the same."""
    if isinstance(table, tuple):
        return table  # read before
    if not isinstance(table, Mapping) or not table:
        raise ValueError(f"must be a table of names and values such as {{ learning_rate = 0.1 }}, got {table!r:.60}")
    return tuple(sorted(table.items()))


ListedPoint = Annotated[Pairs, BeforeValidator(_parse_point), PlainSerializer(dict, return_type=dict[str, Any])]


class SearchSettings(Settings):
    """[search]: the strategy, and one dimension per searched key.

    Args:
        num_points: how many points a strategy that draws is given; a grid's number follows from its values.
        max_points: a study of more points than this is refused: most likely a slip.
        points: `listed`: the points themselves; `dimensions` then follow from them.
        budget_points, budget_epochs, budget_hours: `coarse-to-fine`: no further round once so many points are there,
            so many trial-epochs are trained, or they took so many hours of training, summed over all workers' lanes.
        finest_per_decade: `coarse-to-fine`: log-spaced values come no closer than this.
    """

    strategy: Strategy = "grid"
    num_points: PointCount | None = None
    max_points: PointCount = 10_000
    points: Annotated[tuple[ListedPoint, ...], Field(strict=False)] = ()
    budget_points: PointCount | None = None
    budget_epochs: LongCount | None = None
    budget_hours: PositiveNumber | None = None
    finest_per_decade: Annotated[int, Field(ge=1, le=1000)] = 16
    dimensions: tuple[Dimension, ...] = ()

    @property
    def is_drawn(self) -> bool:
        return self.strategy in DRAWN


def grid_points(dimensions: tuple[Dimension, ...]) -> Iterator[dict[str, ParameterValue]]:
    """The product of all dimensions' values; the last dimension varies fastest."""
    names = [dimension.name for dimension in dimensions]
    for values in itertools.product(*(dimension.values for dimension in dimensions)):
        yield dict(zip(names, values, strict=True))


def without_zero_switches(parameters: Mapping[str, ParameterValue]) -> dict[str, ParameterValue]:
    """A trial's Optuna parameters as a point: `lambda_1_is_zero = True` becomes `lambda_1 = 0`."""
    point: dict[str, ParameterValue] = {}
    for name, value in parameters.items():
        if not name.endswith(ZERO_SUFFIX):
            point[name] = value
        elif is_zero_drawn(value):
            point[name.removesuffix(ZERO_SUFFIX)] = 0  # the whole number: settings read it as either kind
    return point


def with_zero_switches(
    parameters: Mapping[str, ParameterValue], dimensions: tuple[Dimension, ...]
) -> dict[str, ParameterValue]:
    """A point as Optuna parameters of `Dimension.narrowed_distributions`: the inverse of `without_zero_switches`."""
    has_switch = {d.name for d in dimensions if d.is_log and d.has_zero and not d.is_continuous}
    switched: dict[str, ParameterValue] = {}
    for name, value in parameters.items():
        if name in has_switch:
            switched[name + ZERO_SUFFIX] = value == 0
        if name not in has_switch or value != 0:
            switched[name] = value
    return switched
