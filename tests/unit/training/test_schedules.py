"""Learning rates epoch by epoch."""

from __future__ import annotations

from dataclasses import asdict

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpsearch.study.settings import TrainingSettings
from hpsearch.training.schedules import LearningRateSchedule, ScheduleState, build_schedule

NAMES = ["constant", "inverse-time", "step", "exponential", "plateau", "halving"]


def rates(schedule: LearningRateSchedule, zero_ones: list[float]) -> list[float]:
    """The rates of the first epochs, one more than there are losses."""
    seen = [schedule.learning_rate]
    for zero_one in zero_ones:
        schedule.finish_epoch(zero_one)
        seen.append(schedule.learning_rate)
    return seen


def build(name: str, **training: object) -> LearningRateSchedule:
    return build_schedule(TrainingSettings(schedule=name, **training))


def test_constant_never_changes() -> None:
    assert rates(build("constant", learning_rate=0.3), [0.5, 0.5, 0.6]) == [0.3] * 4


def test_inverse_time_divides_by_one_plus_decay_times_finished_epochs() -> None:
    schedule = build("inverse-time", learning_rate=0.1, schedule_decay=0.5)

    assert rates(schedule, [0.5] * 3) == pytest.approx([0.1, 0.1 / 1.5, 0.1 / 2.0, 0.1 / 2.5])


def test_step_halves_every_n_epochs() -> None:
    schedule = build("step", learning_rate=0.8, schedule_every=2)

    assert rates(schedule, [0.5] * 5) == pytest.approx([0.8, 0.8, 0.4, 0.4, 0.2, 0.2])


def test_step_with_a_factor_of_a_tenth() -> None:
    schedule = build("step", learning_rate=0.8, schedule_every=1, schedule_factor=0.1)

    assert rates(schedule, [0.5] * 2) == pytest.approx([0.8, 0.08, 0.008])


def test_step_to_a_constant_stays_there() -> None:
    schedule = build("step", learning_rate=0.8, schedule_every=2, schedule_target=0.01)

    assert rates(schedule, [0.5] * 5) == [0.8, 0.8, 0.01, 0.01, 0.01, 0.01]


def test_step_to_a_constant_does_not_raise_the_rate() -> None:
    schedule = build("step", learning_rate=0.001, schedule_every=2, schedule_target=0.01)

    assert rates(schedule, [0.5] * 3) == [0.001] * 4


def test_exponential_multiplies_each_epoch_by_095_or_the_factor() -> None:
    assert rates(build("exponential", learning_rate=1.0), [0.5] * 2) == pytest.approx([1.0, 0.95, 0.9025])
    schedule = build("exponential", learning_rate=1.0, schedule_factor=0.5)
    assert rates(schedule, [0.5] * 2) == pytest.approx([1.0, 0.5, 0.25])


def test_plateau_falls_after_n_epochs_without_a_new_best() -> None:
    schedule = build("plateau", learning_rate=0.8, schedule_patience=2)

    #                         best   -    best   -     -    (fall) -     -    (fall) best  -
    losses = [0.50, 0.60, 0.40, 0.40, 0.45, 0.41, 0.40, 0.39, 0.39]
    assert rates(schedule, losses) == pytest.approx([0.8, 0.8, 0.8, 0.8, 0.8, 0.4, 0.4, 0.2, 0.2, 0.2])


def test_plateau_never_exhausts() -> None:
    schedule = build("plateau", learning_rate=0.8, schedule_patience=1, schedule_stop_ratio=2.0)
    rates(schedule, [0.5] * 30)

    assert not schedule.is_exhausted


def test_halving_ends_when_the_rate_would_fall_below_a_1024th() -> None:
    schedule = build("halving", learning_rate=1.0, schedule_patience=1)
    for num_falls in range(11):
        assert schedule.learning_rate == 2.0**-num_falls
        assert not schedule.is_exhausted
        schedule.finish_epoch(0.5)  # the first of these is a best: the rate falls after the second
        if num_falls == 0:
            schedule.finish_epoch(0.5)

    assert schedule.is_exhausted
    assert schedule.learning_rate == 2.0**-10  # eta0 / 1024 itself is still trained with


@pytest.mark.parametrize(("factor", "ratio", "num_rates"), [(0.1, 1000.0, 4), (0.5, 1024.0, 11), (0.5, 3.0, 2)])
def test_halving_reaches_a_floor_that_is_a_power_of_its_factor_in_spite_of_rounding(
    factor: float, ratio: float, num_rates: int
) -> None:
    schedule = build("halving", schedule_patience=1, schedule_factor=factor, schedule_stop_ratio=ratio)
    seen = set()
    while not schedule.is_exhausted:
        seen.add(schedule.learning_rate)
        schedule.finish_epoch(0.5)

    assert len(seen) == num_rates


@pytest.mark.parametrize("name", NAMES)
@given(losses=st.lists(st.sampled_from([0.1, 0.2, 0.3]), max_size=30), cut=st.integers(0, 30))
def test_a_schedule_resumes_from_its_state(name: str, losses: list[float], cut: int) -> None:
    training = TrainingSettings(schedule=name, schedule_patience=2, schedule_every=3)
    whole = build_schedule(training)
    expected = rates(whole, losses)

    first = build_schedule(training)
    begun = rates(first, losses[:cut])
    numbers = asdict(first.state)  # as a checkpoint would keep it
    second = build_schedule(training, ScheduleState(**numbers))

    assert begun[:-1] + rates(second, losses[cut:]) == expected
    assert second.is_exhausted == whole.is_exhausted


@pytest.mark.parametrize("name", NAMES)
@given(losses=st.lists(st.floats(0, 1), max_size=40), every=st.integers(1, 5))
def test_rates_fall_and_stay_positive(name: str, losses: list[float], every: int) -> None:
    schedule = build(name, learning_rate=0.1, schedule_patience=every, schedule_every=every)
    seen = rates(schedule, losses)

    assert seen == sorted(seen, reverse=True)
    assert seen[-1] > 0
    assert seen[0] == 0.1
