"""Which number of lanes is chosen from what is known of a device, without any device."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpsearch.training.lanes.lane_times import EpochCost, LaneTimes, numbers_up_to

LIMIT = 512
costs = st.builds(
    lambda scale, ratio: EpochCost(fixed=scale * ratio, per_lane=scale),
    st.floats(1e-4, 10.0),
    st.floats(0.01, 300.0),
)


@pytest.fixture(autouse=True)
def no_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    """Epochs of these tests take any time: what a turn costs beside them has tests of its own."""
    monkeypatch.setattr("hpsearch.training.lanes.lane_times.TURN_SECONDS", 0.0)


def settled(times: LaneTimes, lanes: int, seconds: float) -> LaneTimes:
    """Two equal readings are accepted in any case."""
    times.observe(lanes, seconds)
    times.observe(lanes, seconds)
    assert times.estimate(lanes) == seconds
    return times


def train(times: LaneTimes, device: Callable[[int], float], num_epochs: int, limit: int = LIMIT) -> list[int]:
    """The number of lanes of each epoch on a simulated device."""
    numbers = [times.choose(limit)]
    for _ in range(num_epochs):
        times.observe(numbers[-1], device(numbers[-1]))
        numbers.append(times.choose(limit, numbers[-1]))
    return numbers


def best(device: Callable[[int], float], limit: int = LIMIT) -> float:
    return min(device(lanes) for lanes in numbers_up_to(limit))


def test_the_numbers_are_powers_of_two() -> None:
    assert numbers_up_to(1) == [1]
    assert numbers_up_to(9) == [1, 2, 4, 8]


def test_without_readings_the_prior_chooses_any_number() -> None:
    assert LaneTimes(EpochCost(fixed=16.0, per_lane=1.0)).choose(LIMIT) == 256
    assert LaneTimes(EpochCost(fixed=16.0, per_lane=1.0)).choose(8) == 8
    assert LaneTimes(EpochCost(fixed=16.0, per_lane=1.0)).choose(7) == 7
    assert LaneTimes(EpochCost(fixed=0.0, per_lane=1.0)).choose(LIMIT) == 1


@given(costs, st.integers(1, 64), st.floats(0.01, 100.0))
def test_one_reading_scales_the_prior(prior: EpochCost, lanes: int, factor: float) -> None:
    times = settled(LaneTimes(prior), lanes, factor * prior.seconds(lanes))
    for other in (1, 7, 512):
        assert times.estimate(other) == pytest.approx(factor * prior.seconds(other), rel=1e-3)


@given(costs, st.floats(0.5, 2.0))
def test_readings_far_apart_determine_the_curve_whatever_the_prior(truth: EpochCost, factor: float) -> None:
    prior = EpochCost(fixed=truth.fixed * factor, per_lane=truth.per_lane)
    times = LaneTimes(prior)
    for lanes in (1, 8, 64):
        settled(times, lanes, truth.seconds(lanes))
    assert times.estimate(16) == pytest.approx(truth.seconds(16), rel=0.15)


def test_once_there_are_readings_the_number_at_most_doubles() -> None:
    times = settled(LaneTimes(EpochCost(fixed=100.0, per_lane=0.1)), 4, 25.0)
    assert times.choose(LIMIT, 4) == 8
    settled(times, 2, 50.0)
    assert times.choose(LIMIT) == 8
    assert times.choose(6) == 6


def test_a_study_of_few_points_does_not_make_the_next_one_timid() -> None:
    """One number was read, with few lanes, and agrees with the prior: the prior is believed as if nothing was read."""
    prior = EpochCost(fixed=64.0, per_lane=1.0)
    for lanes in (2, 5):
        assert LaneTimes(prior, {lanes: prior.seconds(lanes)}).choose(300) == LaneTimes(prior).choose(300)


@pytest.mark.parametrize("num_points", [*range(1, 40), 100, 300])
@pytest.mark.parametrize("ratio", [0.0, 1.0, 5.0, 24.0, 100.0])
def test_points_that_do_not_fill_the_lanes_at_the_end_count(num_points: int, ratio: float) -> None:
    cost = EpochCost(fixed=ratio, per_lane=1.0)

    def seconds(lanes: int) -> float:
        num_full, rest = divmod(num_points, lanes)
        return num_full * lanes * cost.seconds(lanes) + (rest and rest * cost.seconds(rest))

    chosen = LaneTimes(cost).choose(num_points)
    assert chosen <= num_points
    assert seconds(chosen) <= 1.05 * min(map(seconds, range(1, num_points + 1))) + 1e-9


def test_where_readings_rise_no_more_lanes_are_tried() -> None:
    times = LaneTimes(EpochCost(fixed=100.0, per_lane=0.1))
    for lanes, seconds in ((4, 25.0), (8, 10.0), (16, 12.0)):
        settled(times, lanes, seconds)
    assert times.choose(LIMIT) == 8


@given(costs, st.floats(0.25, 4.0), st.integers(0, 10**6), st.integers(0, 30), st.sampled_from([LIMIT, 100, 9, 1]))
def test_a_noisy_device_is_learned_in_a_few_epochs(
    truth: EpochCost, error: float, seed: int, outlier_at: int, limit: int
) -> None:
    """The prior is wrong by up to a factor of 4 in its ratio, and by any factor in its scale."""
    noise, epochs = random.Random(seed), iter(range(10**6))

    def device(lanes: int) -> float:
        return truth.seconds(lanes) * noise.uniform(1.0, 1.04) * (3.0 if next(epochs) == outlier_at else 1.0)

    times = LaneTimes(EpochCost(fixed=error * truth.fixed, per_lane=truth.per_lane).times(noise.uniform(0.1, 10.0)))
    number = train(times, device, 40, limit)[-1]
    assert truth.seconds(number) <= (1.1 if 0.5 <= error <= 2.0 else 1.2) * truth.seconds(limit)


@pytest.mark.parametrize("turning_point", [1, 2, 8, 32])
@pytest.mark.parametrize("ratio", [1.0, 20.0, 300.0])
def test_a_device_whose_times_rise_is_learned_too(turning_point: int, ratio: float) -> None:
    def device(lanes: int) -> float:
        return EpochCost(fixed=ratio, per_lane=1.0).seconds(lanes) * (1.0 if lanes <= turning_point else 3.0)

    times = LaneTimes(EpochCost(fixed=ratio, per_lane=1.0), {turning_point: device(turning_point)})
    number = train(times, device, 40)[-1]
    assert device(number) <= 1.1 * min(device(turning_point), device(2 * turning_point))


@given(costs, st.integers(1, 8), st.floats(0.01, 100.0))
def test_one_noisy_reading_changes_nothing(truth: EpochCost, num_epochs: int, factor: float) -> None:
    times = LaneTimes(truth)
    numbers = train(times, truth.seconds, 20 + num_epochs)
    assert len(set(numbers[-num_epochs:])) == 1
    times.observe(numbers[-1], factor * truth.seconds(numbers[-1]))
    assert times.choose(LIMIT, numbers[-1]) == numbers[-1]
    assert times.estimate(numbers[-1]) == pytest.approx(truth.seconds(numbers[-1]))


def test_a_first_epoch_that_is_slow_is_not_believed() -> None:
    times = LaneTimes(EpochCost(fixed=1.0, per_lane=1.0))
    assert not times.observe(4, 9.0)
    assert times.readings == {}
    assert times.observe(4, 1.3)
    assert times.readings == {4: 1.3}
    assert not times.observe(4, 9.0)
    assert times.readings == {4: 1.3}


def test_what_an_earlier_process_read_is_replaced_when_two_epochs_contradict_it() -> None:
    times = LaneTimes(EpochCost(fixed=8.0, per_lane=1.0), {4: 3.0, 8: 2.0, 16: 1.5})
    assert not times.observe(8, 4.0)
    assert times.readings[8] == 2.0
    assert times.observe(8, 4.2)
    assert times.readings == {4: 6.0, 8: 4.0, 16: 3.0}  # the machine is half as fast now


def test_a_new_number_that_contradicts_what_is_known_is_not_comparable_until_a_known_one_was_read() -> None:
    """Either the machine is slower than it was, or more lanes are worth less than the prior says."""
    for now in (2.0, 6.0):
        known = {8: 2.0}
        times = settled(LaneTimes(EpochCost(fixed=8.0, per_lane=1.0), known), 64, 3.4)
        assert times.readings == {8: 2.0, 64: 3.4}
        assert times.comparable == known
        settled(times, 128, 3.3)
        assert times.comparable == known
        settled(times, 8, now)
        assert times.comparable == {8: now, 64: 3.4, 128: 3.3}
    agreeing = settled(LaneTimes(EpochCost(fixed=8.0, per_lane=1.0), {8: 2.0}), 64, 1.1)
    assert agreeing.comparable == {8: 2.0, 64: 1.1}
    assert settled(LaneTimes(EpochCost(fixed=8.0, per_lane=1.0)), 64, 99.0).comparable == {64: 99.0}


def test_epochs_that_were_slow_at_first_change_nothing_that_was_known() -> None:
    """Workers that start together disturb each other."""
    times = settled(LaneTimes(EpochCost(fixed=8.0, per_lane=1.0), {8: 2.0}), 64, 1.8)
    assert times.comparable == {8: 2.0}
    settled(times, 64, 1.1)
    assert times.comparable == {8: 2.0, 64: 1.1}


def test_lanes_that_turns_are_worth_are_not_closed_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hpsearch.training.lanes.lane_times.TURN_SECONDS", 0.2)
    for seconds, expected in ((0.36, 4), (0.6, 1)):
        times = LaneTimes(EpochCost(fixed=0.0, per_lane=0.3), {1: 0.3, 4: seconds})
        assert (times.choose(4) == 4) == (expected == 4)
        settled(times, 4, seconds)
        assert times.choose(4, 4) == expected


def test_a_reading_that_is_newer_than_the_replaced_one_stays() -> None:
    times = LaneTimes(EpochCost(fixed=8.0, per_lane=1.0))
    for lanes, seconds in ((4, 3.0), (8, 2.0), (4, 6.0)):
        settled(times, lanes, seconds)
    assert times.readings == {4: 6.0, 8: 2.0}


def test_the_number_is_kept_until_this_process_has_read_it_twice() -> None:
    times = LaneTimes(EpochCost(fixed=8.0, per_lane=1.0), {4: 3.0, 8: 2.0})
    assert times.choose(LIMIT, 4) == 4
    times.observe(4, 3.0)
    assert times.choose(LIMIT, 4) == 4
    times.observe(4, 3.0)
    assert times.choose(LIMIT, 4) == 16


def test_where_one_number_was_read_twice_as_many_lanes_are_tried_once() -> None:
    """The prior may be wrong, and one number of lanes cannot show it."""
    prior = EpochCost(fixed=1.0, per_lane=1.0)
    times = LaneTimes(prior)
    assert train(times, lambda lanes: 1.0, 20)[-1] == 2 * times.choose(LIMIT)
    assert train(LaneTimes(prior, times.readings), lambda lanes: 1.0, 20)[-1] == times.choose(LIMIT)
    one_by_one = EpochCost(fixed=0.0, per_lane=1.0)
    assert set(train(LaneTimes(one_by_one), one_by_one.seconds, 20)) == {1}


def test_the_number_shrinks_for_a_gain_of_a_tenth_only() -> None:
    for seconds, expected in ((1.95, 16), (1.75, 8)):
        times = LaneTimes(EpochCost(fixed=8.0, per_lane=1.0))
        settled(times, 8, seconds)
        settled(times, 16, 2.0)
        assert times.choose(16, 16) == expected


def test_epochs_with_few_lanes_say_little_about_many() -> None:
    """At the end of a study 7 and 8 lanes differ by the noise only; the prior still counts."""
    prior = EpochCost(fixed=100.0, per_lane=1.0)
    times = settled(LaneTimes(prior), 8, 13.5)
    settled(times, 7, 13.4)
    assert times.choose(LIMIT, 8) == 16


@pytest.mark.parametrize(
    ("per_lane", "num_points", "known", "lanes"),
    [
        (0.9, 6, {}, 6),  # LeNet on 5,000 images: of its own time, one lane is as good
        (0.9, 1, {}, 1),
        (0.9, 100, {}, 8),
        (20.0, 100, {}, 1),  # a turn is nothing beside the epoch
        (0.9, 6, {3: 0.95}, 6),
        (0.9, 4, {1: 0.9, 2: 0.9}, 4),  # readings are of the training alone
        (0.9, 6, {1: 0.9, 6: 1.5}, 1),  # lanes that make it slower do not pay
    ],
)
def test_what_a_turn_costs_beside_the_training_is_worth_a_few_lanes(
    per_lane: float, num_points: int, known: dict[int, float], lanes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hpsearch.training.lanes.lane_times.TURN_SECONDS", 0.2)
    assert LaneTimes(EpochCost(fixed=0.0, per_lane=per_lane), known).choose(num_points) == lanes
