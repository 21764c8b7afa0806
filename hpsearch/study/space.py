"""The dimensions of a search space: the searched keys of `[search]`, as grids and as Optuna distributions.

    learning_rate = { log10 = [-1, -4] }              -> LogGrid: 0.1, 0.01, 0.001, 0.0001
    lambda_2 = { log10 = [-2, -6], zero = true }      -> LogGrid with 0 as the first value
    hidden_units = [50, 100, 500]                     -> Choice
    momentum = { low = 0.5, high = 0.99 }             -> Range (not for grids)
    kernels = [[10, 20], [20, 50]]                    -> Choice of "10x20", "20x50"

A point is a mapping from names to values. Strategies that draw get values from a `Suggester` (an optuna.Trial); the
others list their points.
Source: docs/sources.md, section 4 (log-spaced values, narrowed later).
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
    model_validator,
)

from hpsearch.study.registry import STRATEGIES
from hpsearch.study.settings import LongCount, Number, PointCount, PositiveNumber, Settings, named_in

ParameterValue = float | int | str | bool
Point = Mapping[str, ParameterValue]
# A sampler draws a point's parameters when it is claimed.
DRAWN: Final = tuple(name for name, strategy in STRATEGIES.items() if strategy.place)
KeptParameters = Literal["best", "all"]

# Turns -0.0 into 0.0: the values are equal, so the definitions' texts and hashes must be equal as well.
Exponent = Annotated[Number, AfterValidator(lambda exponent: exponent + 0.0)]

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution

ZERO_SUFFIX = "_is_zero"  # suffix of the switch for the zero of a log-spaced dimension, unless its values are a list
GROWTH_DECADES: Final = 3  # how far coarse-to-fine may go beyond each end of log-spaced values ...
INTEGER_GROWTH_DECADES: Final = 1  # ... and of sizes: a layer a thousand times as wide costs a thousand times as much


class Suggester(Protocol):
    """The part of optuna.Trial that a dimension needs."""

    def suggest_float(self, name: str, low: float, high: float, *, log: bool = ...) -> float: ...
    def suggest_int(self, name: str, low: int, high: int, *, log: bool = ...) -> int: ...
    def suggest_categorical(self, name: str, choices: Any) -> Any: ...


def rounded(value: float) -> float:
    """Round to 12 significant digits, so that the value does not depend on a machine's pow()."""
    return float(f"{value:.12g}")


class LogGrid(Settings):
    """Log-spaced values from 10^first to 10^last, both included, in the order given.

    Args:
        log10: the first and the last exponent.
        per_decade: number of values per decade; 1 gives the decades of docs/sources.md, section 4.
        zero: adds 0 as the first value, which no log-spaced grid reaches.
        zero_share: fraction of draws that are 0, for strategies that draw; None: half of them.
        integer: values are whole numbers; for programs, whose other settings do not tell.
    """

    JOINED_LATER = frozenset({"zero_share", "integer"})

    log10: Annotated[tuple[Exponent, Exponent], Field(strict=False)]
    per_decade: Annotated[int, Field(ge=1, le=1000)] = 1
    zero: bool = False
    zero_share: Annotated[Number, Field(gt=0, lt=1)] | None = None
    integer: bool = False

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
            ValueError: more values than `limit`, or negative exponents for an integer key.
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
        """The values as written; their section validates them later."""
        return self.values


class Range(Settings):
    """A continuous (or integer) interval including both ends; for strategies that draw or narrow, not for grids."""

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
        """Both ends.

        Raises:
            ValueError: the ends of an integer key are not whole numbers.
        """
        if not is_integer:
            return (self.low, self.high)
        if not (self.low.is_integer() and self.high.is_integer()):
            raise ValueError(f"must have whole numbers as low and high, got {self.low:g} and {self.high:g}")
        return (int(self.low), int(self.high))


class Dimension(Settings):
    """One searched key: its name, its values, and its scale.

    Args:
        values: the grid's values in order; for a Range its two ends.
        is_integer: whether the key takes whole numbers.
        is_continuous: values are drawn anywhere between the smallest and the largest, not from the list.
        is_log: distances are measured on a logarithmic scale.
        has_zero: 0 is among the values, in addition to a logarithmic scale.
        log_grid: the grid from which the values were listed, as in the study file; None for a list or a range.
    """

    name: str
    values: tuple[ParameterValue, ...]
    is_integer: bool = False
    is_continuous: bool = False
    is_log: bool = False
    has_zero: bool = False
    log_grid: LogGrid | None = None

    @classmethod
    def of(
        cls, shape: LogGrid | Range | Choice, *, name: str, values: tuple[ParameterValue, ...], is_integer: bool
    ) -> Dimension:
        """The dimension of these values, which `shape` has listed."""
        grid = shape if isinstance(shape, LogGrid) else None
        return cls(
            name=name,
            values=values,
            is_integer=is_integer,
            is_continuous=isinstance(shape, Range),
            is_log=grid is not None or (isinstance(shape, Range) and shape.log),
            has_zero=grid is not None and grid.zero,
            log_grid=grid,
        )

    @property
    def _bounds(self) -> tuple[float, float]:
        numbers = [float(v) for v in self.values if not (self.has_zero and v == 0)]
        return min(numbers), max(numbers)

    @property
    def growth_decades(self) -> int:
        """How many decades coarse-to-fine may go beyond each end of log-spaced values."""
        return INTEGER_GROWTH_DECADES if self.is_integer else GROWTH_DECADES

    def grid_distribution(self) -> BaseDistribution:
        """The Optuna distribution of a grid's values, also used by the dashboard.

        Log-spaced grids have a logarithmic axis. With a zero this is not possible, and the values are categories.
        """
        from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

        if not (self.is_log or self.is_continuous) or self.has_zero:
            return CategoricalDistribution(self.values)
        low, high = self._bounds
        if self.is_integer:
            return IntDistribution(round(low), round(high), log=self.is_log)
        return FloatDistribution(low, high, log=self.is_log)

    def narrowed_distributions(self) -> dict[str, BaseDistribution]:
        """The Optuna distributions of coarse-to-fine's values: the same in all rounds, as Optuna's importances require.

        Log-spaced values may grow beyond their ends; a zero has a separate switch.
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
        """Draw a value for `trial`. A dimension with a zero has two Optuna parameters, the switch and the value."""
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
        """Draw the switch: one of two choices, or a uniform number that is >= 0 with probability `zero_share`."""
        name, share = self.name + ZERO_SUFFIX, self.log_grid.zero_share if self.log_grid else None
        if share is None:
            return bool(trial.suggest_categorical(name, [False, True]))
        return is_zero_drawn(trial.suggest_float(name, share - 1, share))


def is_zero_drawn(switch: ParameterValue) -> bool:
    """Whether a `_is_zero` parameter means that the value is 0."""
    return switch if isinstance(switch, bool) else not isinstance(switch, str) and switch >= 0


Pairs = tuple[tuple[str, Any], ...]


def _parse_point(table: object) -> object:
    """A listed point as pairs sorted by name: hashable, and equal for equivalent points."""
    if isinstance(table, tuple):
        return table  # parsed already
    if not isinstance(table, Mapping) or not table:
        raise ValueError(f"must be a table of names and values such as {{ learning_rate = 0.1 }}, got {table!r:.60}")
    return tuple(sorted(table.items()))


ListedPoint = Annotated[Pairs, BeforeValidator(_parse_point), PlainSerializer(dict, return_type=dict[str, Any])]


class SearchSettings(Settings):
    """[search]: the strategy, and one dimension per searched key.

    Args:
        num_points: number of points for a strategy that draws; a grid's number follows from its values.
        max_points: a study with more points is refused, since it is most likely a mistake.
        points: `listed`: the points themselves; `dimensions` then follow from them.
        budget_points, budget_epochs, budget_hours: `coarse-to-fine`: no further round is opened once the study has
            this many points, has trained this many trial-epochs, or has used this many hours of training, summed over
            all workers' lanes.
        finest_per_decade: `coarse-to-fine`: maximum number of log-spaced values per decade.
    """

    strategy: Annotated[str, named_in(STRATEGIES)] = "grid"
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


def point_key(values: Point) -> frozenset[tuple[str, ParameterValue]]:
    """Return a point's identity: 0 and 0.0 are the same value, and the order of names does not matter."""
    return frozenset(values.items())


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
            point[name.removesuffix(ZERO_SUFFIX)] = 0  # an int: settings accept it for integers and floats
    return point


def with_zero_switches(
    parameters: Mapping[str, ParameterValue], dimensions: tuple[Dimension, ...]
) -> dict[str, ParameterValue]:
    """A point as Optuna parameters for `Dimension.narrowed_distributions`; the inverse of `without_zero_switches`."""
    has_switch = {d.name for d in dimensions if d.is_log and d.has_zero and not d.is_continuous}
    switched: dict[str, ParameterValue] = {}
    for name, value in parameters.items():
        if name in has_switch:
            switched[name + ZERO_SUFFIX] = value == 0
        if name not in has_switch or value != 0:
            switched[name] = value
    return switched
