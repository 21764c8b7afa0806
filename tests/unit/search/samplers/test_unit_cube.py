"""The unit cube: every coordinate is a value, and every value has its coordinate."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)

from hpsearch.search.samplers.unit_cube import UnitCube

DISTRIBUTIONS: list[BaseDistribution] = [
    FloatDistribution(-1.0, 2.0),
    FloatDistribution(1e-6, 0.3, log=True),
    FloatDistribution(0.0, 1.0, step=0.25),
    FloatDistribution(0.5, 0.5),
    IntDistribution(3, 9),
    IntDistribution(0, 98, step=7),
    IntDistribution(1, 4096, log=True),
    IntDistribution(5, 5),
    CategoricalDistribution(("tanh", "relu", None, 4)),
]


@pytest.mark.parametrize("distribution", DISTRIBUTIONS, ids=str)
@given(coordinate=st.floats(0.0, 1.0))
def test_every_coordinate_is_a_value_of_the_parameter(distribution: BaseDistribution, coordinate: float) -> None:
    cube = UnitCube({"x": distribution})
    (value,) = cube.values(np.array([coordinate])).values()
    assert distribution._contains(distribution.to_internal_repr(value))
    assert type(value) is {FloatDistribution: float, IntDistribution: int}.get(type(distribution), type(value))
    again = cube.values(cube.coordinates({"x": value}))["x"]
    assert again == value or math.isclose(again, value, rel_tol=1e-12)


@pytest.mark.parametrize(
    ("distribution", "expected"),
    [
        (FloatDistribution(-1.0, 1.0), [-1.0, -0.5, 0.0, 0.5, 1.0]),
        (FloatDistribution(0.01, 100.0, log=True), [0.01, 0.1, 1.0, 10.0, 100.0]),
        (IntDistribution(10, 14), [10, 11, 12, 13, 14]),
        (IntDistribution(1, 10000, log=True), [1, 6, 71, 841, 10000]),  # from 0.5 to 10000.5
        (CategoricalDistribution(("a", "b")), ["a", "a", "b", "b", "b"]),
    ],
    ids=str,
)
def test_values_are_spread_evenly_over_the_axis(distribution: BaseDistribution, expected: list[object]) -> None:
    cube = UnitCube({"x": distribution})
    values = [cube.values(np.array([coordinate]))["x"] for coordinate in (0, 0.25, 0.5, 0.75, 1)]
    assert values == pytest.approx(expected) if not isinstance(values[0], str) else values == expected


@pytest.mark.parametrize("distribution", [IntDistribution(1, 4), CategoricalDistribution((1, 2, 3, 4))], ids=str)
def test_discrete_values_have_equal_shares(distribution: BaseDistribution) -> None:
    cube = UnitCube({"x": distribution})
    values = [cube.values(np.array([(i + 0.5) / 400]))["x"] for i in range(400)]
    assert [values.count(value) for value in (1, 2, 3, 4)] == [100] * 4


def test_axes_are_in_the_order_of_the_names() -> None:
    space = {"b": FloatDistribution(0.0, 10.0), "a": FloatDistribution(0.0, 1.0)}
    assert UnitCube(space).values(np.array([0.25, 0.5])) == {"a": 0.25, "b": 5.0}
    np.testing.assert_array_equal(UnitCube(space).coordinates({"b": 5.0, "a": 0.25}), [0.25, 0.5])
