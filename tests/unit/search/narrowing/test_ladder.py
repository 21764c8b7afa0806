"""Coarse to fine: what it asks for, in which order, and that it ends at the best."""

from __future__ import annotations

import itertools
import json
import math
import zlib
from collections.abc import Callable, Iterable, Mapping

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hpsearch.search.narrowing.axes import axis_of
from hpsearch.search.narrowing.closed_round import Differ, Finished, FinishReason, KnownPoint, NarrowingState, Round
from hpsearch.search.narrowing.ladder import Narrowing
from hpsearch.study.space import Dimension, LogGrid, ParameterValue, Point, rounded

Error = Callable[[Point], float | None]


def log_grid(
    name: str, first: float, last: float, *, zero: bool = False, per_decade: int = 1, is_integer: bool = False
) -> Dimension:
    grid = LogGrid(log10=(first, last), zero=zero, per_decade=per_decade)
    values = grid.listed(is_integer=is_integer, limit=10_000)
    return Dimension(name=name, values=values, is_integer=is_integer, is_log=True, has_zero=zero, log_grid=grid)


def bounded(name: str, low: float, high: float, *, log: bool = False, is_integer: bool = False) -> Dimension:
    ends: tuple[ParameterValue, ...] = (int(low), int(high)) if is_integer else (low, high)
    return Dimension(name=name, values=ends, is_integer=is_integer, is_continuous=True, is_log=log)


def choice(name: str, *values: ParameterValue) -> Dimension:
    return Dimension(name=name, values=values)


def always(a: KnownPoint, b: KnownPoint) -> bool:
    return True


def never(a: KnownPoint, b: KnownPoint) -> bool:
    return False


def beyond(distance: float) -> Differ:
    def differ(a: KnownPoint, b: KnownPoint) -> bool:
        return abs((a.value or 0) - (b.value or 0)) > distance

    return differ


class Run:
    """A whole search on a surface without noise."""

    def __init__(
        self, narrowing: Narrowing, error: Error, differ: Differ = always, *, known: Iterable[KnownPoint] = ()
    ) -> None:
        self.known = list(known)
        self.rounds: list[Round] = []
        step: Round | Finished = narrowing.first_round()
        while isinstance(step, Round):
            assert len(self.rounds) < 1000, "it does not end"
            self.rounds.append(step)
            self.known += [KnownPoint(point, error(point)) for point in step.points]
            step = narrowing.next_round(step.state, self.known, differ)
        self.finished = step

    @property
    def best(self) -> Point:
        return min((known for known in self.known if known.value is not None), key=lambda known: known.value or 0).point

    @property
    def reasons(self) -> list[str]:
        return [one.reason for one in self.rounds]

    def tried(self, name: str) -> set[ParameterValue]:
        return {known.point[name] for known in self.known if name in known.point}


def log_distance(point: Point, **optimum: float) -> float:
    """In squared decades from the optimum."""
    return sum((math.log10(float(point[name])) - math.log10(value)) ** 2 for name, value in optimum.items())


RATES = log_grid("learning_rate", -1, -4)


def test_the_first_round_is_the_grid_as_the_user_wrote_it() -> None:
    first = Narrowing([log_grid("learning_rate", -1, -2), log_grid("lambda_2", -3, -4, zero=True)]).first_round()
    assert first.points == (
        {"learning_rate": 0.1, "lambda_2": 0.0},
        {"learning_rate": 0.1, "lambda_2": 0.001},
        {"learning_rate": 0.1, "lambda_2": 0.0001},
        {"learning_rate": 0.01, "lambda_2": 0.0},
        {"learning_rate": 0.01, "lambda_2": 0.001},
        {"learning_rate": 0.01, "lambda_2": 0.0001},
    )
    assert first.reason == "the grid's 6 points"


def test_the_spacing_around_the_best_is_halved_until_the_finest() -> None:
    run = Run(Narrowing([RATES]), lambda point: log_distance(point, learning_rate=0.01))
    assert [[point["learning_rate"] for point in one.points] for one in run.rounds] == [
        [0.1, 0.01, 0.001, 0.0001],
        [0.00316227766017, 0.0316227766017],
        [0.0056234132519, 0.0177827941004],
        [0.00749894209332, 0.0133352143216],
        [0.0086596432336, 0.0115478198469],
    ]
    assert run.finished == Finished(reason=FinishReason.SETTLED, detail="learning_rate: finest step at 0.01")
    assert run.reasons[1] == "learning_rate: 0.003162 and 0.03162 beside 0.01"


def test_it_stops_when_the_neighbours_do_not_differ() -> None:
    run = Run(Narrowing([RATES]), lambda point: log_distance(point, learning_rate=0.01), beyond(0.3))
    assert [len(one.points) for one in run.rounds] == [4, 2]
    detail = "learning_rate: settled at 0.01, from which 0.003162 and 0.03162 do not differ significantly"
    assert run.finished.detail == detail


def test_the_grid_grows_past_an_edge_first() -> None:
    run = Run(Narrowing([RATES]), lambda point: log_distance(point, learning_rate=7.0))
    assert [one.points for one in run.rounds[1:3]] == [({"learning_rate": 1.0},), ({"learning_rate": 10.0},)]
    assert run.reasons[1:3] == [
        "learning_rate: best 0.1 on the edge, grown to 1",
        "learning_rate: best 1 on the edge, grown to 10",
    ]
    # Beyond 10, where the best then sits, it looks as well.
    assert run.rounds[3].points == ({"learning_rate": 100.0},)
    assert run.best["learning_rate"] == pytest.approx(7.0, rel=0.08)


def test_growth_ends_three_decades_past_the_grid() -> None:
    run = Run(Narrowing([RATES]), lambda point: -math.log10(float(point["learning_rate"])))
    assert max(map(float, run.tried("learning_rate"))) == 100.0


def test_zero_is_the_neighbour_below_the_smallest_value() -> None:
    """It is known from the grid, so that nothing grows below a best smallest value that zero equals."""
    narrowing = Narrowing([log_grid("lambda_2", -2, -4, zero=True)])
    run = Run(narrowing, lambda point: max(0.1, float(point["lambda_2"]) * 1000), beyond(0.05))
    assert min(value for value in map(float, run.tried("lambda_2")) if value > 0) == 0.0001


def test_below_the_smallest_value_it_grows_if_zero_is_worse() -> None:
    def error(point: Point) -> float:
        return 9.0 if point["lambda_2"] == 0 else log_distance(point, lambda_2=1e-6)

    run = Run(Narrowing([log_grid("lambda_2", -2, -4, zero=True)]), error)
    assert run.best == {"lambda_2": 1e-6}


@pytest.mark.parametrize(("differ", "smallest"), [(always, 1e-7), (never, 1e-4)])
def test_from_zero_the_grid_grows_down_only_while_the_smallest_value_is_worse(differ: Differ, smallest: float) -> None:
    run = Run(Narrowing([log_grid("lambda_2", -2, -4, zero=True)]), lambda point: float(point["lambda_2"]), differ)
    assert min(value for value in map(float, run.tried("lambda_2")) if value > 0) == pytest.approx(smallest)
    assert run.best == {"lambda_2": 0.0}


def test_a_parameter_without_influence_costs_nothing_more() -> None:
    dimensions = [RATES, log_grid("lambda_2", -2, -5)]
    run = Run(Narrowing(dimensions), lambda point: log_distance(point, learning_rate=0.01), beyond(0.01))
    assert run.tried("lambda_2") == {1e-1, 1e-2, 1e-3, 1e-4, 1e-5}  # the first of equals is on the edge
    assert "lambda_2: settled at 0.01" in run.finished.detail


def test_a_valley_across_the_axes_is_followed_around_the_corner() -> None:
    """All single steps are worse; only the point between the better two is better."""

    def error(point: Point) -> float:
        x, y = (math.log10(float(point[name])) for name in ("learning_rate", "lambda_2"))
        return 10 * (x - y) ** 2 + 0.1 * (x + 1.0) ** 2 + 0.1 * (y + 1.0) ** 2

    dimensions = [log_grid("learning_rate", -3, -4), log_grid("lambda_2", -3, -4)]
    run = Run(Narrowing(dimensions), error, beyond(20))
    assert run.best == {"learning_rate": 0.1, "lambda_2": 0.1}


def test_a_range_is_looked_at_in_its_middle_and_never_left() -> None:
    narrowing = Narrowing([bounded("momentum", 0.5, 0.9)])
    assert [point["momentum"] for point in narrowing.first_round().points] == [0.5, 0.7, 0.9]
    run = Run(narrowing, lambda point: -float(point["momentum"]))
    assert run.best == {"momentum": 0.9}
    assert max(map(float, run.tried("momentum"))) == 0.9


def test_a_long_logarithmic_range_is_looked_at_in_its_decades_and_ends() -> None:
    narrowing = Narrowing([bounded("learning_rate", 8e-5, 0.3, log=True)])
    # 1e-4 stands too near to the end.
    assert [point["learning_rate"] for point in narrowing.first_round().points] == [8e-5, 1e-3, 1e-2, 1e-1, 0.3]


def test_a_range_of_negative_numbers_is_narrowed_too() -> None:
    run = Run(Narrowing([bounded("shift", -3.0, -1.0)]), lambda point: abs(float(point["shift"]) + 1.8))
    assert run.best["shift"] == pytest.approx(-1.8, abs=1 / 16)


def test_whole_numbers_end_where_their_midpoints_are_known() -> None:
    run = Run(Narrowing([bounded("depth", 1, 4, is_integer=True)]), lambda point: abs(float(point["depth"]) - 3))
    assert run.best == {"depth": 3}
    assert all(isinstance(value, int) for value in run.tried("depth"))
    units = Run(
        Narrowing([log_grid("hidden_units", 1, 3, is_integer=True)]), lambda point: abs(int(point["hidden_units"]) - 40)
    )
    assert units.best["hidden_units"] in range(37, 44)


def test_values_of_a_list_are_compared_again_where_the_best_has_moved() -> None:
    """Each activation has a best rate of its own, between the grid's: relu's true error is the lowest."""
    rates = {"tanh": 0.01, "relu": 0.0316227766017}

    def error(point: Point) -> float:
        activation = str(point["activation"])
        distance = log_distance(point, learning_rate=rates[activation])
        return distance + (0.05 if activation == "tanh" else 0.0)

    run = Run(Narrowing([choice("activation", "tanh", "relu"), RATES]), error, beyond(0.21))
    assert run.best == {"activation": "relu", "learning_rate": 0.0316227766017}


def test_a_value_of_a_list_whose_optimum_lies_between_decades_is_narrowed_before_it_is_given_up() -> None:
    """Tanh is best on a decade, relu is better in the middle of two: there it looks worse by 0.25 at first."""
    rates = {"tanh": 0.01, "relu": 0.0316227766017, "sigmoid": 0.01}
    floors = {"tanh": 0.05, "relu": 0.0, "sigmoid": 0.35}

    def error(point: Point) -> float:
        activation = str(point["activation"])
        return floors[activation] + log_distance(point, learning_rate=rates[activation])

    run = Run(Narrowing([choice("activation", *rates), RATES]), error, beyond(0.01))
    assert run.best == {"activation": "relu", "learning_rate": 0.0316227766017}
    # Between decades sigmoid cannot catch up: beside the grid it is tried at the best's rate alone.
    sigmoid = [known.point["learning_rate"] for known in run.known if known.point["activation"] == "sigmoid"]
    assert sigmoid[4:] == [0.0316227766017]


@pytest.mark.parametrize("pruned", [(), (0.5, 0.9)])
def test_a_key_that_the_best_does_not_have_is_narrowed_beside_its_rivals(pruned: tuple[float, ...]) -> None:
    """Sgd is best at first, as no momentum of the first round is good; the key has no part in the best's narrowing."""
    narrowing = Narrowing(
        [choice("optimizer", "sgd", "momentum"), RATES, bounded("momentum", 0.5, 0.9)], reduce=without_idle_momentum
    )

    def error(point: Point) -> float | None:
        distance = log_distance(point, learning_rate=0.02)
        if point["optimizer"] == "sgd":
            return distance + 0.1
        momentum = float(point["momentum"])
        return None if momentum in pruned else distance + (5 * (momentum - 0.8)) ** 2

    run = Run(narrowing, error, beyond(0.01))
    assert run.best["optimizer"] == "momentum"
    assert float(run.best["momentum"]) == pytest.approx(0.8, abs=0.02)


def test_a_key_that_only_rivals_have_is_not_narrowed_beyond_the_finest_spacing() -> None:
    """Its own grid is finer than the best's, which is halved more often."""
    fine = log_grid("momentum", 0, -2, per_decade=4)
    narrowing = Narrowing([choice("optimizer", "sgd", "momentum"), RATES, fine], reduce=without_idle_momentum)

    def error(point: Point) -> float:
        distance = log_distance(point, learning_rate=0.02) + 0.1
        if point["optimizer"] == "momentum":
            distance += 0.0004 + log_distance(point, momentum=0.0713) ** 0.5 / 2
        return distance

    run = Run(narrowing, error, beyond(0.001))
    assert run.best["optimizer"] == "sgd"
    tried = sorted(math.log10(float(value)) for value in run.tried("momentum"))
    assert min(b - a for a, b in itertools.pairwise(tried)) == pytest.approx(1 / 16)


def without_idle_momentum(point: Point) -> Point:
    return {name: value for name, value in point.items() if name != "momentum" or point["optimizer"] == "momentum"}


def test_conditional_parameters_are_no_axes_where_they_have_no_effect() -> None:
    narrowing = Narrowing(
        [choice("optimizer", "sgd", "momentum"), RATES, bounded("momentum", 0.5, 0.9)], reduce=without_idle_momentum
    )
    first = narrowing.first_round()
    assert len(first.points) == 4 + 4 * 3
    assert first.points[0] == {"optimizer": "sgd", "learning_rate": 0.1}
    run = Run(narrowing, lambda point: log_distance(point, learning_rate=0.02) + ("momentum" in point))
    assert run.best["optimizer"] == "sgd"
    # The best optimizer is compared with the other, whose momentum is that of its best point.
    compared = {"optimizer": "momentum", "learning_rate": run.best["learning_rate"], "momentum": 0.5}
    assert compared in [known.point for known in run.known]


def test_inadmissible_points_are_never_given() -> None:
    narrowing = Narrowing([RATES], is_admissible=lambda point: float(point["learning_rate"]) <= 0.1)
    run = Run(narrowing, lambda point: -float(point["learning_rate"]))
    assert run.best == {"learning_rate": 0.1}


def test_a_point_without_a_value_is_worse_than_any() -> None:
    run = Run(
        Narrowing([RATES]),
        lambda point: None if float(point["learning_rate"]) > 0.02 else -float(point["learning_rate"]),
        never,
    )
    assert run.rounds[1].points == ({"learning_rate": 0.00316227766017}, {"learning_rate": 0.0316227766017})
    assert 0.015 < float(run.best["learning_rate"]) <= 0.02


def test_without_any_value_nothing_follows() -> None:
    assert Run(Narrowing([RATES]), lambda point: None).finished.reason is FinishReason.NO_RESULT


def test_equal_values_are_told_apart_by_the_nll() -> None:
    narrowing = Narrowing([RATES])
    known = [
        KnownPoint({"learning_rate": rate}, 0.02, nll)
        for rate, nll in ((0.1, 0.5), (0.01, None), (0.001, 0.3), (0.0001, math.nan))
    ]
    following = narrowing.next_round(narrowing.first_round().state, known, always)
    assert isinstance(following, Round)
    assert following.reason.endswith("beside 0.001")


def test_points_that_were_lost_are_not_given_again() -> None:
    narrowing = Narrowing([RATES])
    first = narrowing.first_round()
    known = [KnownPoint(point, float(point["learning_rate"])) for point in first.points[:-1]]
    following = narrowing.next_round(first.state, known, always)
    assert isinstance(following, Round)
    # 0.0001 was lost, and stands between 0.001 and what is below it: only the known neighbour counts.
    assert [point["learning_rate"] for point in following.points] == [0.000316227766017, 0.00316227766017]
    again = narrowing.next_round(following.state, known, always)
    assert not isinstance(again, Round) or {"learning_rate": 0.0001} not in again.points


def test_a_grid_that_was_widened_is_completed_first() -> None:
    narrowing = Narrowing([RATES])
    run = Run(narrowing, lambda point: log_distance(point, learning_rate=0.02))
    wider = Narrowing([log_grid("learning_rate", 1, -4), log_grid("momentum", -1, -1)])
    known = [KnownPoint({**one.point, "momentum": 0.1}, one.value) for one in run.known]
    following = wider.next_round(run.rounds[-1].state, known, always)
    assert isinstance(following, Round)
    assert [point["learning_rate"] for point in following.points] == [10.0, 1.0]
    assert following.reason == "2 points of the grid that are not known"


@pytest.mark.parametrize(
    ("dimension", "optimum"),
    [
        (bounded("x", 0.5, 0.99), 0.62),  # halfway between the end and the middle, which are equally good
        (bounded("x", 3, 700, log=True, is_integer=True), 287),
        (log_grid("x", 0, 3, is_integer=True), 3),
    ],
)
def test_a_best_on_a_hard_end_is_not_settled_by_its_only_neighbour(dimension: Dimension, optimum: float) -> None:
    def error(point: Point) -> float:
        place, best = float(point["x"]), optimum
        if dimension.is_log:
            place, best = math.log10(place), math.log10(best)
        return abs(place - best) ** 2

    spread = 0.01 if dimension.is_log else 0.002
    run = Run(Narrowing([dimension]), error, beyond(10 * spread))
    assert error(run.best) < spread


def test_a_hard_end_is_settled_where_the_second_neighbour_does_not_differ_either() -> None:
    run = Run(Narrowing([bounded("x", 0, 1)]), lambda point: float(point["x"]), beyond(2.0))
    assert [len(one.points) for one in run.rounds] == [3]
    assert run.finished.detail == "x: settled at 0, from which 0.5 and 1 do not differ significantly"


def test_a_value_of_the_grid_is_not_told_as_its_growth() -> None:
    """0.1 is in the grid, but was not tried beside this best."""
    narrowing = Narrowing([log_grid("a", -1, -3), log_grid("b", -1, -3)])
    first = narrowing.first_round()
    known = [KnownPoint(point, 1.0) for point in first.points if point != {"a": 0.1, "b": 0.01}]
    known.append(KnownPoint({"a": 0.01, "b": 0.01}, 0.0))
    following = narrowing.next_round(NarrowingState(), known, always)
    assert isinstance(following, Round)
    assert following.reason == "1 points of the grid that are not known"
    moved = KnownPoint({"a": 0.01, "b": 0.0316227766017}, -1.0)
    known.append(KnownPoint({"a": 0.1, "b": 0.01}, 1.0))
    following = narrowing.next_round(NarrowingState(), [*known, moved], always)
    assert isinstance(following, Round)
    assert following.reason == "a: 0.001 and 0.1 beside 0.01"


def test_the_reason_tells_only_of_the_points_that_there_is_room_for() -> None:
    narrowing = Narrowing([log_grid("a", -1, -3), log_grid("b", -1, -3)])
    assert narrowing.first_round(room=2).reason == "2 of the grid's 9 points"
    known = [KnownPoint(point, log_distance(point, a=1e-2, b=1e-2)) for point in narrowing.first_round().points]
    following = narrowing.next_round(NarrowingState(), known, always, room=2)
    assert isinstance(following, Round)
    assert following.reason == "a: 0.003162 and 0.03162 beside 0.01"
    rest = narrowing.next_round(NarrowingState(), known[:4], always, room=2)
    assert isinstance(rest, Round)
    assert rest.reason == "2 points of the grid that are not known"


def test_the_reason_names_values_of_lists_and_what_they_are_tried_beside() -> None:
    """Relu is better at once and moves on; tanh is as good as it, and is narrowed where its own best is."""

    def error(point: Point) -> float:
        is_relu = point["activation"] == "relu"
        return log_distance(point, rate=1e-1 if is_relu else 1e-3) + (0.0 if is_relu else 0.01)

    run = Run(Narrowing([log_grid("rate", -1, -3), choice("activation", "tanh", "relu")]), error, beyond(0.2))
    assert any(
        reason.startswith("other choices that may be as good; activation tanh: rate 0.0") for reason in run.reasons
    )
    lists = Run(
        Narrowing([choice("a", "x", "y"), choice("b", 1, 2)]),
        lambda point: 0.0,
        known=[KnownPoint({"a": "x", "b": 3}, -1.0)],
    )
    assert lists.reasons[1:] == ["the best compared once more; a: y beside x"]


def test_points_that_no_round_gave_are_used() -> None:
    """A user's own point is the best: its neighbours lie on the grid."""
    own = KnownPoint({"learning_rate": 0.0213}, -1.0)
    run = Run(Narrowing([RATES]), lambda point: log_distance(point, learning_rate=0.02), known=[own])
    assert run.rounds[1].points == ({"learning_rate": 0.0316227766017},)
    assert run.best == own.point


@pytest.mark.parametrize(("place", "neighbours"), [(-1.5, [0.01, 0.1]), (-2.5, [0.001, 0.01]), (-1.25, [0.01, 1.0])])
def test_a_point_between_two_of_the_grid_has_both_as_its_neighbours(place: float, neighbours: list[float]) -> None:
    """Exactly halfway rounding must not decide: the nearer ones are taken. Else the nearest to one spacing."""
    axis = axis_of(log_grid("x", -1, -3))
    assert axis is not None
    value = rounded(10.0**place)
    assert [axis.neighbour(value, direction, 0) for direction in (-1, 1)] == neighbours


def test_room_limits_a_round_and_the_rest_follows() -> None:
    dimensions = [RATES, log_grid("lambda_2", -2, -5)]
    narrowing = Narrowing(dimensions)

    def error(point: Point) -> float:
        return log_distance(point, learning_rate=0.01, lambda_2=0.001)

    first = narrowing.first_round(room=10)
    assert len(first.points) == 10
    known = [KnownPoint(point, error(point)) for point in first.points]
    second = narrowing.next_round(first.state, known, always, room=3)
    assert isinstance(second, Round)
    assert second.points == narrowing.first_round().points[10:13]
    with pytest.raises(ValueError, match="room must be at least 1, got 0"):
        narrowing.next_round(first.state, known, always, room=0)


def test_the_state_travels_as_json() -> None:
    run = Run(
        Narrowing([RATES, choice("activation", "tanh", "relu")]), lambda point: log_distance(point, learning_rate=0.02)
    )
    for one in run.rounds:
        assert NarrowingState.from_json(json.loads(json.dumps(one.state.as_json()))) == one.state


# Properties

exponents = st.tuples(st.integers(-6, 2), st.integers(-6, 2))
optima = st.floats(-7, 3)


@st.composite
def spaces(draw: st.DrawFn) -> list[Dimension]:
    kinds = draw(
        st.lists(st.sampled_from(["grid", "zero", "fine", "range", "log range", "list"]), min_size=1, max_size=3)
    )
    dimensions = []
    for index, kind in enumerate(kinds):
        name, (first, last) = f"p{index}", draw(exponents)
        if kind == "list":
            dimensions.append(choice(name, "a", "b"))
        elif kind == "range":
            dimensions.append(bounded(name, float(min(first, last)) - 0.5, float(max(first, last))))
        elif kind == "log range":
            dimensions.append(bounded(name, 10.0 ** min(first, last) / 3, 10.0 ** max(first, last), log=True))
        else:
            dimensions.append(log_grid(name, first, last, zero=kind == "zero", per_decade=3 if kind == "fine" else 1))
    return dimensions


def some_error(seed: int, diverging: int) -> Error:
    """Rough, the same for the same point; every so many points diverge."""

    def error(point: Point) -> float | None:
        mixed = zlib.crc32(repr((seed, sorted(point.items()))).encode())
        if diverging and mixed % diverging == 0:
            return None
        smooth = sum(0.1 * abs(float(value)) for value in point.values() if not isinstance(value, str))
        return min(1.0, smooth) + (mixed % 97) / 970

    return error


@given(spaces(), st.integers(0, 5), st.sampled_from([0, 2, 5]), st.floats(0, 0.2))
def test_it_ends_and_never_gives_a_known_point_or_leaves_a_range(
    dimensions: list[Dimension], seed: int, diverging: int, distance: float
) -> None:
    run = Run(Narrowing(dimensions), some_error(seed, diverging), beyond(distance))
    keys = [tuple(sorted(known.point.items())) for known in run.known]
    assert len(set(keys)) == len(keys)
    for dimension in dimensions:
        values = run.tried(dimension.name)
        if dimension.is_continuous:
            low, high = sorted(map(float, dimension.values))
            assert all(low <= float(value) <= high for value in values)
        elif dimension.is_log:
            written = [float(value) for value in dimension.values if value != 0]
            positive = [float(value) for value in values if value != 0]
            assert min(written) / 1000.1 <= min(positive)
            assert max(positive) <= max(written) * 1000.1
            assert dimension.has_zero or 0.0 not in values
        else:
            assert values <= set(dimension.values)


@settings(max_examples=25)
@given(spaces(), st.integers(0, 5))
def test_the_next_round_follows_from_state_and_known_points_alone(dimensions: list[Dimension], seed: int) -> None:
    run = Run(Narrowing(dimensions), some_error(seed, 0))
    num_known = 0
    for one, following in zip(run.rounds, [*run.rounds[1:], run.finished], strict=True):
        num_known += len(one.points)
        state = NarrowingState.from_json(json.loads(json.dumps(one.state.as_json())))
        assert Narrowing(dimensions).next_round(state, run.known[:num_known], always) == following


@given(st.lists(st.tuples(exponents, optima), min_size=1, max_size=2))
def test_the_best_of_a_separable_bowl_is_found_to_the_finest_spacing(
    axes: list[tuple[tuple[int, int], float]],
) -> None:
    """Also where it lies past the grid's edge, as far as the grid may grow."""
    dimensions = [log_grid(f"p{index}", *ends) for index, (ends, _) in enumerate(axes)]
    optimum = {f"p{index}": min(max(place, min(ends) - 3), max(ends) + 3) for index, (ends, place) in enumerate(axes)}

    def error(point: Point) -> float:
        return sum(abs(math.log10(float(point[name])) - place) for name, place in optimum.items())

    run = Run(Narrowing(dimensions), error)
    for name, place in optimum.items():
        assert abs(math.log10(float(run.best[name])) - place) <= 1 / 32 + 1e-9


@given(st.floats(0.5, 0.99), st.booleans())
def test_the_best_of_a_range_is_found_to_the_finest_spacing(optimum: float, log: bool) -> None:
    run = Run(Narrowing([bounded("momentum", 0.5, 0.99, log=log)]), lambda p: abs(float(p["momentum"]) - optimum))
    assert abs(float(run.best["momentum"]) - optimum) < (0.99 * (10 ** (1 / 16) - 1) if log else 0.49 / 2 / 16)


@given(st.floats(0.001, 0.02), st.integers(0, 3))
def test_lost_points_do_not_keep_it_from_ending(distance: float, every: int) -> None:
    narrowing = Narrowing([RATES, log_grid("lambda_2", -2, -5, zero=True)])
    known: list[KnownPoint] = []
    step: Round | Finished = narrowing.first_round()
    given_points = []
    while isinstance(step, Round):
        given_points += [tuple(sorted(point.items())) for point in step.points]
        kept = [point for index, point in enumerate(step.points) if index % 4 != every]
        known += [KnownPoint(point, log_distance(point, learning_rate=0.02)) for point in kept]
        step = narrowing.next_round(step.state, known, beyond(distance))
    assert len(set(given_points)) == len(given_points)


def test_mappings_of_any_kind_are_points() -> None:
    class OwnMapping(dict[str, ParameterValue]):
        pass

    known: list[Mapping[str, ParameterValue]] = [OwnMapping(learning_rate=rate) for rate in (0.1, 0.01, 0.001, 0.0001)]
    narrowing = Narrowing([RATES])
    points = [KnownPoint(point, float(point["learning_rate"])) for point in known]
    assert isinstance(narrowing.next_round(narrowing.first_round().state, points, always), Round)
