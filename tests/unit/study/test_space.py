"""Dimensions: log grids, lists and ranges as points of a grid and as Optuna distributions."""

from __future__ import annotations

import itertools
import math
from typing import Any

import optuna
import pytest
from hypothesis import given
from hypothesis import strategies as st
from optuna.distributions import (
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
    check_distribution_compatibility,
)
from pydantic import ValidationError

from hpsearch.study.space import Choice, Dimension, LogGrid, Range, grid_points, without_zero_switches

NO_LIMIT = 10**9


def log_grid(
    first: float, last: float, *, per_decade: int = 1, zero: bool = False, is_integer: bool = False
) -> list[Any]:
    grid = LogGrid(log10=(first, last), per_decade=per_decade, zero=zero)
    return list(grid.listed(is_integer=is_integer, limit=NO_LIMIT))


# Log grids


def test_decade_grid_of_the_notes_has_exactly_the_powers_of_ten() -> None:
    assert log_grid(-1, -4) == [0.1, 0.01, 0.001, 0.0001]
    assert log_grid(-2, -6, zero=True) == [0.0, 1e-2, 1e-3, 1e-4, 1e-5, 1e-6]
    assert log_grid(-4, -1) == [0.0001, 0.001, 0.01, 0.1]
    assert log_grid(-2, -2) == [0.01]


def test_half_decades_have_twice_the_values() -> None:
    values = log_grid(-1, -2, per_decade=2)
    assert values == [0.1, 0.0316227766017, 0.01]


def test_ends_may_lie_between_decades_if_the_steps_reach_them() -> None:
    assert log_grid(-1.5, -2.5) == [0.0316227766017, 0.00316227766017]
    assert len(log_grid(-1, -2.5, per_decade=2)) == 4


def test_whole_numbers_are_rounded_and_stay_whole() -> None:
    values = log_grid(0, 3, per_decade=3, is_integer=True)
    assert values == [1, 2, 5, 10, 22, 46, 100, 215, 464, 1000]
    assert all(isinstance(value, int) for value in values)
    assert log_grid(0, 1, zero=True, is_integer=True) == [0, 1, 10]


def test_whole_numbers_of_fractions_are_refused() -> None:
    with pytest.raises(ValueError, match=r"exponents >= 0 for a whole number, got \[-1.0, 2.0\]"):
        log_grid(-1, 2, is_integer=True)


@given(
    first=st.integers(-300, 300),
    last=st.integers(-300, 300),
    per_decade=st.integers(1, 12),
    zero=st.booleans(),
)
def test_log_grid_is_evenly_spaced_and_includes_both_ends(first: int, last: int, per_decade: int, zero: bool) -> None:
    values = log_grid(first, last, per_decade=per_decade, zero=zero)
    if zero:
        assert values.pop(0) == 0.0
    assert len(values) == abs(last - first) * per_decade + 1
    assert (values[0], values[-1]) == (float(f"1e{first}"), float(f"1e{last}"))
    steps = [math.log10(b) - math.log10(a) for a, b in itertools.pairwise(values)]
    step = math.copysign(1 / per_decade, last - first)
    assert all(math.isclose(found, step, abs_tol=1e-9) for found in steps)


@given(log10=st.tuples(st.integers(-50, 50), st.integers(-50, 50)), per_decade=st.integers(1, 1000))
def test_limit_is_exact(log10: tuple[int, int], per_decade: int) -> None:
    grid = LogGrid(log10=log10, per_decade=per_decade, zero=True)
    number = abs(log10[1] - log10[0]) * per_decade + 2
    with pytest.raises(ValueError, match=f"has {number:,} values"):
        grid.listed(is_integer=False, limit=number - 1)
    if number < 5000:
        assert len(grid.listed(is_integer=False, limit=number)) == number


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"log10": (-1, -2.5)}, "not a whole number of steps of 1/1 decade"),
        ({"log10": (-1, -400)}, "exponents must be within -300 .. 300"),
        ({"log10": (-1, math.nan)}, "finite number"),
        ({"log10": (-1,)}, "Field required"),
        ({"log10": (-1, -2), "per_decade": 0}, "greater than or equal to 1"),
        ({"log10": (-1, -2), "per_decade": 1001}, "less than or equal to 1000"),
        ({"log10": (-1, -2), "per_decade": True}, "valid integer"),
    ],
)
def test_bad_log_grid_is_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        LogGrid(**arguments)


# Ranges and lists


def test_range_lists_its_ends() -> None:
    assert Range(low=0.5, high=0.9).listed(is_integer=False, limit=NO_LIMIT) == (0.5, 0.9)
    assert Range(low=10, high=20).listed(is_integer=True, limit=NO_LIMIT) == (10, 20)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"low": 0.2, "high": 0.1}, "low must be < high, got 0.2 and 0.1"),
        ({"low": 0.1, "high": 0.1}, "low must be < high"),
        ({"low": 0, "high": 0.1, "log": True}, "low must be > 0 with log = true, got 0"),
        ({"low": -math.inf, "high": 0.1}, "finite number"),
    ],
)
def test_bad_range_is_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        Range(**arguments)


def test_range_of_whole_numbers_is_not_rounded_in_silence() -> None:
    with pytest.raises(ValueError, match=r"must have whole numbers as low and high, got 10\.5 and 20"):
        Range(low=10.5, high=20).listed(is_integer=True, limit=NO_LIMIT)


def test_choice_keeps_values_of_any_kind_as_they_are() -> None:
    assert Choice(values=(1, 2.0, "a", True)).listed(is_integer=False, limit=1) == (1, 2.0, "a", True)


# Points


def test_last_dimension_varies_fastest() -> None:
    dimensions = (Dimension(name="a", values=(1, 2)), Dimension(name="b", values=("x", "y")))
    assert list(grid_points(dimensions)) == [
        {"a": 1, "b": "x"},
        {"a": 1, "b": "y"},
        {"a": 2, "b": "x"},
        {"a": 2, "b": "y"},
    ]


def test_grid_without_dimensions_has_one_point() -> None:
    assert list(grid_points(())) == [{}]


# Distributions

LOG = Dimension(name="learning_rate", values=(0.1, 0.01, 0.001), is_log=True)
LOG_WITH_ZERO = Dimension(name="lambda_1", values=(0.0, 0.1, 0.01), is_log=True, has_zero=True)
WHOLE_LOG = Dimension(name="hidden_units", values=(1, 10, 100), is_integer=True, is_log=True)
WHOLE_LOG_WITH_ZERO = Dimension(name="seed", values=(0, 1, 10), is_integer=True, is_log=True, has_zero=True)
WORDS = Dimension(name="activation", values=("tanh", "relu"))
NUMBERS = Dimension(name="batch_size", values=(20, 500), is_integer=True)
INTERVAL = Dimension(name="momentum", values=(0.5, 0.99), is_continuous=True)
WHOLE_INTERVAL = Dimension(name="hidden_units", values=(50, 500), is_integer=True, is_continuous=True)


@pytest.mark.parametrize(
    ("dimension", "distribution"),
    [
        (LOG, FloatDistribution(0.001, 0.1, log=True)),
        (LOG_WITH_ZERO, CategoricalDistribution((0.0, 0.1, 0.01))),
        (WHOLE_LOG, IntDistribution(1, 100, log=True)),
        (WHOLE_LOG_WITH_ZERO, CategoricalDistribution((0, 1, 10))),
        (WORDS, CategoricalDistribution(("tanh", "relu"))),
        (NUMBERS, CategoricalDistribution((20, 500))),
    ],
)
def test_grid_tells_optuna_its_scale(dimension: Dimension, distribution: Any) -> None:
    assert dimension.grid_distribution() == distribution
    for value in dimension.values:
        again = distribution.to_external_repr(distribution.to_internal_repr(value))
        assert again == value
        assert type(again) is type(value)


@pytest.mark.parametrize(
    "dimension",
    [LOG, LOG_WITH_ZERO, WHOLE_LOG, WHOLE_LOG_WITH_ZERO, WORDS, NUMBERS, INTERVAL, WHOLE_INTERVAL],
    ids=lambda dimension: dimension.name,
)
def test_drawn_values_lie_in_the_dimension_and_are_of_its_kind(dimension: Dimension) -> None:
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=1))
    drawn = []
    distributions: dict[str, Any] = {}
    for _ in range(50):
        trial = study.ask()
        drawn.append(dimension.suggest(trial))
        assert without_zero_switches(trial.params)[dimension.name] == drawn[-1]
        for name, distribution in trial.distributions.items():
            check_distribution_compatibility(distributions.setdefault(name, distribution), distribution)
    kind = type(dimension.values[0])
    assert all(type(value) is kind for value in drawn)
    if dimension.has_zero:
        assert 0 in drawn
    if dimension.is_log or dimension.is_continuous:
        low, high = dimension._bounds
        assert all(low <= value <= high for value in drawn if value != 0 or not dimension.has_zero)
        assert len(set(drawn)) > len(dimension.values)  # anywhere between, not from the list
    else:
        assert set(drawn) == set(dimension.values)


def test_dimension_of_one_value_can_be_drawn() -> None:
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=1))
    one = Dimension(name="learning_rate", values=(0.1,), is_log=True)
    assert one.suggest(study.ask()) == 0.1
    assert one.grid_distribution() == FloatDistribution(0.1, 0.1, log=True)


def test_zero_switch_becomes_the_value_zero() -> None:
    assert without_zero_switches({"a": 0.5, "b_is_zero": True, "c_is_zero": False, "c": 2}) == {
        "a": 0.5,
        "b": 0,
        "c": 2,
    }
