"""How many lanes pay: the rule on planted timings, and stretches of training timed with a planted clock."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any, cast

import pytest
import torch

from hpsearch.data.resident import ResidentData
from hpsearch.study.settings import TrialSettings
from hpsearch.training.lanes.cohort import Cohort, CohortShape
from hpsearch.training.lanes.probe import (
    BUDGET_SECONDS,
    MARGIN,
    VALIDATION_BYTES,
    CohortTimer,
    LaneTimings,
    Obstacle,
    time_lanes,
)

CPU = torch.device("cpu")
Build = Callable[..., ResidentData]
Trial = Callable[..., TrialSettings]


class Planted:
    """Answers with planted timings and notes what it was asked for."""

    def __init__(self, answers: dict[int, float | Obstacle]) -> None:
        self.answers = answers
        self.asked: list[int] = []

    def __call__(self, num_lanes: int) -> float | Obstacle:
        self.asked.append(num_lanes)
        return self.answers[num_lanes]


def halving(up_to: int) -> dict[int, float | Obstacle]:
    """Timings of a device that is bound by launches: twice the lanes, half the time."""
    return {2**i: 1.0 / 2**i for i in range(up_to.bit_length())}


# The rule


def test_lanes_are_doubled_until_two_doublings_in_a_row_bring_nothing() -> None:
    measure = Planted({1: 1.12, 2: 0.79, 4: 0.69, 8: 0.51, 16: 0.52, 32: 0.62, 64: 0.01})
    timings = time_lanes(measure, limit=512)
    assert measure.asked == [1, 2, 4, 8, 16, 32]
    assert timings.best(512) == 8
    assert timings.describe(8, 512) == "8 lanes: 0.51 s per trial-epoch, 16 would take 0.52"


def test_one_bump_is_forgiven() -> None:
    measure = Planted({1: 1.0, 2: 1.2, 4: 0.6, 8: 0.6, 16: 0.6})
    assert time_lanes(measure, limit=64).best(64) == 4
    assert measure.asked == [1, 2, 4, 8, 16]


def test_small_gains_that_add_up_count() -> None:
    measure = Planted({1: 1.0, 2: 0.96, 4: 0.92, 8: 0.92, 16: 0.92})
    timings = time_lanes(measure, limit=64)
    assert measure.asked == [1, 2, 4, 8, 16]
    assert timings.best(64) == 2  # within the margin of the fastest


def test_a_gain_within_the_margin_is_not_worth_twice_the_memory() -> None:
    seconds = {1: 1.0, 2: 0.5, 4: 0.5 / (1 + MARGIN) + 1e-6}
    assert LaneTimings(seconds=seconds).best(4) == 2
    assert LaneTimings(seconds={**seconds, 4: 0.5 / (1 + MARGIN) - 1e-6}).best(4) == 4


@pytest.mark.parametrize(("limit", "asked"), [(1, [1]), (2, [1, 2]), (3, [1, 2, 3]), (4, [1, 2, 4]), (6, [1, 2, 4, 6])])
def test_no_more_lanes_are_measured_than_there_are_points_for(limit: int, asked: list[int]) -> None:
    measure = Planted({n: 1.0 / n for n in range(1, 10)})
    timings = time_lanes(measure, limit=limit)
    assert measure.asked == asked
    assert timings.best(limit) == limit
    assert timings.describe(limit, limit).endswith("and no points for more")


def test_what_is_known_is_not_measured_again() -> None:
    known = time_lanes(Planted(halving(4)), limit=4)
    more = Planted({8: 0.2, 16: 0.2, 32: 0.2})
    timings = time_lanes(more, limit=64, known=known)
    assert more.asked == [8, 16, 32]
    assert timings.seconds == {1: 1.0, 2: 0.5, 4: 0.25, 8: 0.2, 16: 0.2, 32: 0.2}
    again = Planted({})
    assert time_lanes(again, limit=512, known=timings) == timings
    assert time_lanes(again, limit=2, known=timings).best(2) == 2


def test_a_limit_between_two_doublings_is_no_reason_to_stop_later() -> None:
    known = time_lanes(Planted({1: 1.0, 2: 0.5, 3: 0.49}), limit=3)
    more = Planted({4: 0.25, 8: 0.25, 16: 0.25})
    assert time_lanes(more, limit=16, known=known).best(16) == 4
    assert more.asked == [4, 8, 16]


@pytest.mark.parametrize(
    ("obstacle", "words"),
    [(Obstacle.MEMORY, "more would not fit into memory"), (Obstacle.TIME, "more would take too long to measure")],
)
def test_an_obstacle_ends_the_search_and_is_told(obstacle: Obstacle, words: str) -> None:
    timings = time_lanes(Planted({**halving(4), 8: obstacle}), limit=64)
    assert timings.best(64) == 4
    assert timings.describe(4, 64) == f"4 lanes: 0.25 s per trial-epoch, {words}"
    assert time_lanes(Planted({}), limit=512, known=timings) == timings


def test_one_lane_is_taken_where_not_even_one_could_be_measured() -> None:
    timings = time_lanes(Planted({1: Obstacle.MEMORY}), limit=64)
    assert timings.best(64) == 1
    assert timings.describe(1, 64) == "1 lane, more would not fit into memory"


# The timer


class Clock:
    """Stands still but for what is added to it."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class Memory:
    """A device with so many bytes, of which each lane of the largest cohort so far has taken some."""

    def __init__(self, available: int = 2**40, bytes_per_lane: int = 0) -> None:
        self._available = available
        self._bytes_per_lane = bytes_per_lane
        self.num_lanes = 0

    def available(self) -> int:
        return self._available

    def start(self) -> None:
        self.num_lanes = 0

    def growth(self) -> int:
        return self.num_lanes * self._bytes_per_lane


class Lab:
    """Cohorts whose minibatches take planted seconds on a planted clock; the first one ever takes long."""

    def __init__(self, seconds_per_minibatch: Callable[[int], float], memory: Memory | None = None) -> None:
        self.clock = Clock()
        self.memory = memory or Memory()
        self.seconds_per_minibatch = seconds_per_minibatch
        self.epochs: list[tuple[int, int]] = []  # lanes and minibatches of every epoch that was trained
        self.fails_at: int | None = None

    def build(self, shape: CohortShape, data: ResidentData, device: torch.device, validations_every: int) -> Cohort:
        lab = self
        num_minibatches = data.num_minibatches(shape.batch_size)
        assert validations_every == num_minibatches
        assert len(data.validation_labels) == 1

        class PlantedCohort:
            keys: list[Hashable] = []  # noqa: RUF012  # one cohort per class

            def admit(self, key: Hashable, settings: TrialSettings) -> None:
                self.keys.append(key)

            def train_epoch(self) -> dict[Hashable, Any]:
                num_lanes = len(self.keys)
                if num_lanes == lab.fails_at:
                    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")
                lab.clock.now += 0.0 if lab.epochs else 4.0
                lab.epochs.append((num_lanes, num_minibatches))
                lab.clock.now += num_minibatches * lab.seconds_per_minibatch(num_lanes)
                lab.memory.num_lanes = num_lanes
                return {}

        return cast(Cohort, PlantedCohort())

    def timer(self, data: ResidentData, settings: TrialSettings) -> CohortTimer:
        return CohortTimer(settings, data, CPU, build_cohort=self.build, clock=self.clock, memory=self.memory)


def test_the_time_of_a_stretch_is_that_of_a_whole_trial_epoch(resident: Build, trial: Trial) -> None:
    data = resident(num_train=4000)  # 200 minibatches
    lab = Lab(lambda lanes: 0.001 + 0.0005 * lanes)
    timer = lab.timer(data, trial("mlp"))
    assert timer(1) == pytest.approx(200 * 0.0015)
    assert timer(4) == pytest.approx(200 * 0.003 / 4)


def test_each_number_of_lanes_gets_about_the_same_time_and_a_warm_up(resident: Build, trial: Trial) -> None:
    lab = Lab(lambda lanes: 0.001 * lanes)
    timer = lab.timer(resident(num_train=4000), trial("mlp"))
    for num_lanes in (1, 2, 4):
        timer(num_lanes)
    assert lab.epochs[:2] == [(1, 4)] * 2  # torch's own preparations, and an estimate
    assert lab.epochs[2:] == [(1, 83)] * 4 + [(2, 41)] * 4 + [(4, 20)] * 4  # 83 minibatches of 1 ms, three times


def test_a_stretch_has_one_minibatch_at_least_and_an_epoch_at_most(resident: Build, trial: Trial) -> None:
    slow, fast = Lab(lambda lanes: 0.2), Lab(lambda lanes: 1e-7)
    data = resident(num_train=130)  # 6 minibatches
    assert slow.timer(data, trial("mlp"))(1) == pytest.approx(6 * 0.2)
    fast.timer(data, trial("mlp"))(1)
    assert slow.epochs[2:] == [(1, 1)] * 4
    assert fast.epochs[2:] == [(1, 6)] * 4


def test_the_fastest_of_some_readings_counts(resident: Build, trial: Trial) -> None:
    readings = iter([0.01] * 2 + [9.0, 0.03, 0.02, 0.05])  # two warm-ups of the process, one of the cohort
    lab = Lab(lambda lanes: next(readings))
    assert lab.timer(resident(num_train=130), trial("mlp"))(1) == pytest.approx(6 * 0.02)


def test_no_number_of_lanes_is_tried_that_would_burst_the_budget(resident: Build, trial: Trial) -> None:
    lab = Lab(lambda lanes: 0.2 * lanes)  # 0.8 s for one lane, 1.6 for two: 3.2 more are too many
    timer = lab.timer(resident(), trial("cnn"))
    timings = time_lanes(timer, limit=64)
    assert list(timings.seconds) == [1, 2]
    assert timings.obstacle is Obstacle.TIME
    assert lab.clock.now - 100.0 - 4.0 - 2 * 4 * 0.2 <= BUDGET_SECONDS["cpu"]


def test_lanes_that_would_not_fit_are_not_tried(resident: Build, trial: Trial) -> None:
    per_lane = 2**20
    memory = Memory(available=6 * (per_lane + VALIDATION_BYTES), bytes_per_lane=per_lane)
    lab = Lab(lambda lanes: 0.001, memory)
    timer = lab.timer(resident(), trial("mlp"))
    timings = time_lanes(timer, limit=64)
    assert list(timings.seconds) == [1, 2, 4]
    assert timings.obstacle is Obstacle.MEMORY
    assert timer.bytes_per_lane == per_lane + VALIDATION_BYTES


def test_running_out_of_memory_is_an_answer_and_another_error_is_not(resident: Build, trial: Trial) -> None:
    lab = Lab(lambda lanes: 0.001)
    lab.fails_at = 8
    timings = time_lanes(lab.timer(resident(), trial("mlp")), limit=64)
    assert (list(timings.seconds), timings.obstacle) == ([1, 2, 4], Obstacle.MEMORY)

    def broken(num_lanes: int) -> float:
        raise RuntimeError("the device fell off the bus")

    with pytest.raises(RuntimeError, match="fell off the bus"):
        Lab(broken).timer(resident(), trial("mlp"))(1)


@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.parametrize("family", ["mlp", "cnn"])
def test_real_cohorts_are_timed_and_leave_the_data_alone(
    family: str, shuffle: bool, resident: Build, trial: Trial
) -> None:
    data = resident()
    before = data.validation_images.clone()
    timer = CohortTimer(trial(family, shuffle=shuffle), data, CPU)
    assert all(isinstance(seconds := timer(lanes), float) and seconds > 0 for lanes in (1, 2))
    assert torch.equal(data.validation_images, before)
    assert data.num_train == 130
    assert timer.bytes_per_lane >= VALIDATION_BYTES
