"""How many lanes a cohort has: what was named, or what is learned, within the share and the memory."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import torch

from hpsearch.cgroups import MemoryGroups
from hpsearch.data.resident import ResidentData
from hpsearch.postgres.file_lock import close_lock_file
from hpsearch.signals import StopSignal, WorkerStopped
from hpsearch.study.settings import TrialSettings
from hpsearch.training.lanes.device_model import DeviceSpeed
from hpsearch.training.lanes.lane_times import EpochCost
from hpsearch.worker.lanes import lane_count as module
from hpsearch.worker.lanes.lane_count import FixedLanes, LearnedLanes
from hpsearch.worker.lanes.measured_lane_counts import KnownLanes, LaneCase, LaneMemory, StudyMix
from hpsearch.worker.options import MAX_LANES

CPU = torch.device("cpu")
Trial = Callable[..., TrialSettings]


@pytest.fixture(autouse=True)
def no_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    """Epochs of these tests take any time: what a turn costs beside them has tests of its own."""
    monkeypatch.setattr("hpsearch.training.lanes.lane_times.TURN_SECONDS", 0.0)


def never() -> int:
    pytest.fail("the share is not needed")


def test_a_number_that_was_named_is_taken_whatever_the_share(trial: Trial) -> None:
    assert FixedLanes(64).num_lanes(trial(), never) == 64
    assert FixedLanes(64).review(trial(), 64, 1.0, never) == 64


def test_after_a_shortage_a_named_number_is_less_for_that_cohort_only(trial: Trial) -> None:
    lanes = FixedLanes(64)
    lanes.note_shortage(trial(hidden_units=1000), 16)
    assert lanes.num_lanes(trial(hidden_units=1000, learning_rate=0.5), never) == 16
    assert lanes.review(trial(hidden_units=1000), 16, 1.0, never) == 16
    assert lanes.num_lanes(trial(hidden_units=10), never) == 64


class Lab:
    """A simulated device: what its model predicts, and how long epochs take."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, data: ResidentData, folder: Path) -> None:
        self.data = data
        self.stop = StopSignal()
        self.prior = EpochCost(fixed=3.0, per_lane=1.0)
        self.truth = self.prior
        self.available = 10**12
        self.num_shares = 0
        self.num_measured = 0
        self.now = 0.0
        lab = self

        def measure(device: torch.device) -> DeviceSpeed:
            lab.num_measured += 1
            return DeviceSpeed(flops=1.0, bytes_per_second=1.0, call_seconds=1.0)

        class PlantedMemory:
            def available(self) -> int:
                return lab.available

        self.memory = LaneMemory(folder, measure=measure)
        monkeypatch.setattr(DeviceSpeed, "epoch_cost", lambda *_: lab.prior)
        monkeypatch.setattr(module, "memory_of", lambda device, num_sharing=1: PlantedMemory())
        monkeypatch.setattr(module, "bytes_per_lane", lambda network, batch_size: 1000)
        monkeypatch.setattr(module, "measuring_bytes", lambda device: 500)
        groups = MemoryGroups(machine="m", num_kills={1: 0})
        monkeypatch.setattr("hpsearch.worker.lanes.lanes_in_use.memory_groups", lambda: groups)

    def lanes(self) -> LearnedLanes:
        """As in a new process."""
        return LearnedLanes(memory=self.memory, data=self.data, device=CPU, stop=self.stop, clock=lambda: self.now)

    def train(
        self, lanes: LearnedLanes, settings: TrialSettings, num_epochs: int, share: int | None = 1000, busy: int = 0
    ) -> list[int]:
        """The number of lanes after each epoch; `busy` lanes are trained, or as many as there are."""

        def ask() -> int | None:
            self.num_shares += 1
            return share

        numbers = [lanes.num_lanes(settings, lambda: share or 1)]
        for _ in range(num_epochs):
            num_busy = busy or numbers[-1]
            numbers.append(lanes.review(settings, num_busy, num_busy * self.truth.seconds(num_busy), ask))
        return numbers

    def known(self, settings: TrialSettings) -> KnownLanes:
        return self.memory.recall(self.case(settings))

    def case(self, settings: TrialSettings) -> LaneCase:
        return LaneCase.of(settings, self.data, CPU, 1, StudyMix())


@pytest.fixture
def lab(monkeypatch: pytest.MonkeyPatch, resident: Callable[..., ResidentData], tmp_path: Path) -> Lab:
    return Lab(monkeypatch, resident(), tmp_path)


def test_a_good_model_chooses_once_and_its_readings_are_remembered(
    lab: Lab, trial: Trial, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, logger="hpsearch"):
        assert lab.train(lab.lanes(), trial(), 9) == [64] * 2 + [128] * 8  # twice as many are tried once
    assert caplog.messages == [
        "64 lanes: by this machine's model, 128 would gain 2 %",
        "128 lanes: 1.02 s per trial-epoch, 256 would take 1.01",
    ]
    assert (lab.num_measured, lab.num_shares) == (1, 1)
    assert lab.known(trial()).seconds == {lanes: lab.truth.seconds(lanes) for lanes in (64, 128)}
    assert lab.lanes().num_lanes(trial(learning_rate=0.5, optimizer="adam"), lambda: 100) == 50
    assert lab.num_measured == 1


def test_readings_let_the_number_grow_by_doubling(lab: Lab, trial: Trial, caplog: pytest.LogCaptureFixture) -> None:
    lab.prior = EpochCost(fixed=0.1, per_lane=1.0)
    with caplog.at_level(logging.INFO, logger="hpsearch"):
        numbers = lab.train(lab.lanes(), trial(), 40)
    assert list(dict.fromkeys(numbers)) == [2, 4, 8, 16, 32]
    assert caplog.messages[0] == "2 lanes: by this machine's model, 4 would gain 2 %"
    assert len(caplog.messages) == 5
    assert lab.num_shares == 4  # the share is asked for only when more lanes are wanted
    with caplog.at_level(logging.INFO, logger="hpsearch"):
        assert lab.lanes().num_lanes(trial(), lambda: 1000) == 32
    assert caplog.messages[-1] == "32 lanes: 1.09 s per trial-epoch, 64 would take 1.06"


def test_readings_let_the_number_shrink(lab: Lab, trial: Trial) -> None:
    """32 lanes should be faster than 16, and are slower."""
    lanes = lab.lanes()
    assert lanes.num_lanes(trial(), lambda: 16) == 16
    numbers = [lanes.review(trial(), 16, 16 * lab.truth.seconds(16), lambda: 1000) for _ in range(2)]
    assert numbers[-1] == 32
    numbers = [lanes.review(trial(), 32, 32 * 1.35, never) for _ in range(2)]
    assert numbers[-1] == 16


def test_never_more_lanes_than_the_share(lab: Lab, trial: Trial, caplog: pytest.LogCaptureFixture) -> None:
    lanes = lab.lanes()
    with caplog.at_level(logging.INFO, logger="hpsearch"):
        assert set(lab.train(lanes, trial(), 10, share=5)) == {5}
        assert set(lab.train(lanes, trial(), 10, share=5)) == {5}
    assert caplog.messages == ["5 lanes: its share of the points"]
    assert lab.num_shares == 2  # once for each cohort


def test_for_one_point_nothing_is_measured(lab: Lab, trial: Trial, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="hpsearch"):
        assert set(lab.train(lab.lanes(), trial(), 3, share=1)) == {1}
    assert caplog.messages == ["1 lane: its share of the points"]
    assert (lab.num_measured, lab.num_shares) == (0, 0)


def test_without_the_database_the_number_stays_and_the_share_is_asked_for_again(lab: Lab, trial: Trial) -> None:
    lab.prior = EpochCost(fixed=0.1, per_lane=1.0)
    lanes = lab.lanes()
    lanes.num_lanes(trial(), lambda: 1000)
    numbers = [lanes.review(trial(), 2, 2 * lab.truth.seconds(2), lambda: None) for _ in range(5)]
    assert set(numbers) == {2}
    assert lanes.review(trial(), 2, 2 * lab.truth.seconds(2), lambda: 1000) == 4


def test_one_epoch_and_few_busy_lanes_change_nothing(lab: Lab, trial: Trial) -> None:
    lab.truth = EpochCost(fixed=300.0, per_lane=1.0)
    lanes = lab.lanes()
    assert set(lab.train(lanes, trial(), 1)) == {64}
    numbers = [lanes.review(trial(), 3, 3 * lab.truth.seconds(3), never) for _ in range(20)]
    assert set(numbers) == {64}
    assert 3 not in lab.known(trial()).seconds, "the last trials of a cohort are not representative"


def test_a_cohort_that_never_fills_is_read_with_the_most_lanes_that_it_has(lab: Lab, trial: Trial) -> None:
    lanes = lab.lanes()
    assert lanes.num_lanes(trial(), lambda: 1000) == 64
    for busy in (20, 20, 20, 12, 5):
        lanes.review(trial(), busy, busy * lab.truth.seconds(busy), lambda: 20)
    assert list(lab.known(trial()).seconds) == [20]


def test_a_busy_hour_changes_no_later_choice(lab: Lab, trial: Trial) -> None:
    """Processes on a machine that is sometimes three times as slow: what they store keeps its proportions."""
    lab.prior = lab.truth = EpochCost(fixed=40.0, per_lane=1.0)
    first = []
    for factor in (1.0, 3.0, 3.0, 1.6, 1.0, 1.0):
        lab.truth = EpochCost(fixed=40.0, per_lane=1.0).times(factor)
        first.append(lab.train(lab.lanes(), trial(), 8)[0])
    assert min(first) >= 256


def test_on_a_gpu_changes_are_some_epochs_apart(lab: Lab, trial: Trial, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(module._EPOCHS_BETWEEN_CHANGES, "cpu", module._EPOCHS_BETWEEN_CHANGES["cuda"])
    lab.prior = EpochCost(fixed=0.1, per_lane=1.0)
    numbers = lab.train(lab.lanes(), trial(), 40)
    assert numbers[:8] == [2, 2, 2, 2, 2, 2, 4, 4]
    assert numbers[-1] == 32


def test_a_reading_is_written_when_it_is_news_and_not_every_epoch(lab: Lab, trial: Trial) -> None:
    lanes = lab.lanes()
    lab.train(lanes, trial(), 10, share=64)
    path = lab.memory.path(lab.case(trial()))
    before, number = path.read_text(), lanes.num_lanes(trial(), lambda: 64)
    path.write_text("not read while nothing is new")
    old = lab.truth.seconds(number)
    for _ in range(5):
        lanes.review(trial(), number, number * old, lambda: number)
    for _ in range(8):  # news, but the last write is less than a minute old
        lanes.review(trial(), number, number * 1.1 * old, lambda: number)
    assert path.read_text() == "not read while nothing is new"
    path.write_text(before)
    lab.now = 61.0
    lanes.review(trial(), number, number * 1.1 * old, lambda: number)
    assert lab.known(trial()).seconds[number] == pytest.approx(1.1 * old)


def test_there_is_a_limit_for_all(lab: Lab, trial: Trial) -> None:
    lab.prior = EpochCost(fixed=1.0, per_lane=0.0)
    assert lab.lanes().num_lanes(trial(), lambda: 10**6) == MAX_LANES


def test_what_ran_out_of_memory_once_is_not_tried_again(
    lab: Lab, trial: Trial, caplog: pytest.LogCaptureFixture
) -> None:
    lanes = lab.lanes()
    lab.train(lanes, trial(), 3)
    lanes.note_shortage(trial(), 4)
    assert set(lab.train(lanes, trial(), 5)) == {4}
    lab.memory.folder.rename(lab.memory.folder.with_name("away"))
    assert lanes.num_lanes(trial(), lambda: 100) == 4  # even if the files are lost
    lanes.note_idle()
    shutil.rmtree(lab.memory.folder)
    lab.memory.folder.with_name("away").rename(lab.memory.folder)
    with caplog.at_level(logging.INFO, logger="hpsearch"):
        assert set(lab.train(lab.lanes(), trial(), 5)) == {4}
    assert caplog.messages == ["4 lanes: more ran out of memory before"]
    assert 64 in lab.known(trial()).seconds  # the readings stay


def test_a_worker_that_is_killed_for_memory_is_followed_by_one_with_half_the_lanes(
    lab: Lab, trial: Trial, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """On a CPU nothing is raised when memory runs out: the kernel kills the worker, and counts it."""
    num_kills = 3
    groups = "hpsearch.worker.lanes.lanes_in_use.memory_groups"
    monkeypatch.setattr(groups, lambda: MemoryGroups(machine="m", num_kills={1: num_kills}))

    def in_use() -> list[int]:
        files = (lab.memory.folder / "in-use").glob("*")
        return [int(json.loads(file.read_text())["lanes"]) for file in files]

    lanes = lab.lanes()
    for expected in (64, 32, 16):
        assert lanes.num_lanes(trial(), lambda: 1000) == expected
        assert in_use() == [expected]
        _, descriptor = lab.memory._workers._own  # type: ignore[misc]
        close_lock_file(descriptor)  # as the kernel does when the process is killed
        lab.memory._workers._own = None
        num_kills += 1
        lanes = lab.lanes()
    lanes.num_lanes(trial(), lambda: 1000)
    lanes.note_idle()
    assert in_use() == []
    assert caplog.messages[0] == (
        "a worker with 64 lanes was killed, perhaps because memory ran out: the next ones train at most 32"
    )


def test_what_was_learned_last_is_written_at_the_end(lab: Lab, trial: Trial) -> None:
    """Less than a minute after the first reading, which had the calls of a new process in it."""
    lanes = lab.lanes()
    number = lanes.num_lanes(trial(), lambda: 64)
    slow, usual = 1.2 * lab.truth.seconds(number), lab.truth.seconds(number)
    for seconds in (slow, usual, usual):
        lanes.review(trial(), number, number * seconds, lambda: number)
    assert lab.known(trial()).seconds == {number: slow}
    lanes.note_idle()
    assert lab.known(trial()).seconds == {number: usual}


def test_where_memory_is_too_short_to_measure_the_device_one_lane_is_opened(
    lab: Lab, trial: Trial, caplog: pytest.LogCaptureFixture
) -> None:
    lab.available = 400
    with caplog.at_level(logging.INFO, logger="hpsearch"):
        assert set(lab.train(lab.lanes(), trial(), 3)) == {1}
    assert caplog.messages == ["1 lane: no memory is left to measure the device"]
    assert lab.num_measured == 0
    lab.available = 10**6
    assert lab.lanes().num_lanes(trial(), lambda: 100) == 50
    lab.available = 400
    assert lab.lanes().num_lanes(trial(), lambda: 100) == 1  # the device is known
    assert caplog.messages[-1] == "1 lane: there is no memory for more, and 50 would pay"


def test_only_lanes_that_fit_into_memory_are_opened(lab: Lab, trial: Trial, caplog: pytest.LogCaptureFixture) -> None:
    lab.available = 3500
    assert lab.lanes().num_lanes(trial(), lambda: 100) == 3
    assert caplog.messages == ["3 lanes: there is no memory for more, and 50 would pay"]
    lab.available = 10
    assert lab.lanes().num_lanes(trial(), lambda: 100) == 1


def test_each_change_of_the_number_is_told_in_one_line(
    lab: Lab, trial: Trial, caplog: pytest.LogCaptureFixture
) -> None:
    """Also those that memory decides, and those that it takes back."""
    lab.prior = lab.truth = EpochCost(fixed=0.1, per_lane=1.0)
    lanes, numbers = lab.lanes(), []
    lab.truth = EpochCost(fixed=3.0, per_lane=1.0)
    with caplog.at_level(logging.INFO, logger="hpsearch"):
        for lab.available in (10**6, 1000, 1500, 10**6, 5000):
            numbers += lab.train(lanes, trial(), 4)
    changes = [number for number, before in zip(numbers, [0, *numbers], strict=False) if number != before]
    assert len(changes) > 4
    assert [int(message.split()[0]) for message in caplog.messages] == changes


def test_lanes_are_added_only_if_they_fit_beside_those_that_there_are(
    lab: Lab, trial: Trial, caplog: pytest.LogCaptureFixture
) -> None:
    lab.prior = EpochCost(fixed=0.1, per_lane=1.0)
    lanes = lab.lanes()
    lab.available = 2000
    assert lanes.num_lanes(trial(), lambda: 100) == 2
    lab.available = 0
    caplog.clear()
    numbers = [lanes.review(trial(), 2, 2 * lab.truth.seconds(2), lambda: 100) for _ in range(20)]
    assert set(numbers) == {2}
    assert caplog.messages == []  # nothing has changed


def test_a_worker_that_is_asked_to_stop_does_not_measure(lab: Lab, trial: Trial) -> None:
    lab.stop.set()
    with pytest.raises(WorkerStopped):
        lab.lanes().num_lanes(trial(), lambda: 100)
    assert lab.num_measured == 0


def test_a_real_device_is_measured_once_and_remembered(
    resident: Callable[..., ResidentData], trial: Trial, tmp_path: Path
) -> None:
    for _ in range(2):
        lanes = LearnedLanes(memory=LaneMemory(tmp_path), data=resident(), device=CPU, stop=StopSignal())
        assert 1 <= lanes.num_lanes(trial(), lambda: 3) <= 3
    (file,) = [file for file in tmp_path.glob("*.json") if "speed" in file.read_text()]
    assert "call_seconds" in file.read_text()


def test_workers_that_train_at_the_same_time_remember_what_each_of_them_read(lab: Lab, trial: Trial) -> None:
    one, other = lab.lanes(), lab.lanes()
    for lanes, busy in ((one, 50), (other, 3)):
        lanes.num_lanes(trial(), lambda busy=busy: busy)
    for lanes, busy in ((one, 50), (other, 3)):
        for _ in range(2):
            lanes.review(trial(), busy, busy * lab.truth.seconds(busy), lambda: 1)
    one.note_idle()
    other.note_idle()
    assert lab.known(trial()).seconds == {50: lab.truth.seconds(50), 3: lab.truth.seconds(3)}


def test_an_open_cohort_gets_no_more_lanes_after_a_shortage(lab: Lab, trial: Trial) -> None:
    lanes, settings = lab.lanes(), trial()
    assert lab.train(lanes, settings, 2)[-1] == 128
    lanes.note_shortage(settings, 20)
    seconds = 20 * lab.truth.seconds(20)
    assert [lanes.review(settings, 20, seconds, lambda: 1000) for _ in range(5)] == [20] * 5
    assert lanes.num_lanes(settings, lambda: 1000) == 20


def test_a_shortage_limits_the_lanes_for_a_day_and_no_longer(lab: Lab, trial: Trial) -> None:
    lanes, settings = lab.lanes(), trial()
    lanes.note_shortage(settings, 4)
    lanes.note_shortage(settings, 15)  # a later one does not raise the limit
    assert lanes.num_lanes(settings, lambda: 1000) == 4
    lab.now += 25 * 3600
    lab.memory._now = lambda: datetime.now(UTC) + timedelta(hours=25)
    seconds = 4 * lab.truth.seconds(4)
    assert [lanes.review(settings, 4, seconds, lambda: 1000) for _ in range(2)] == [4, 8]
    assert lanes.num_lanes(settings, lambda: 1000) > 4


def test_a_later_shortage_does_not_raise_the_limit_of_a_named_number(trial: Trial) -> None:
    lanes = FixedLanes(64)
    lanes.note_shortage(trial(), 4)
    lanes.note_shortage(trial(), 15)
    assert lanes.num_lanes(trial(), lambda: 1000) == 4


@pytest.mark.parametrize("lacks", ["points", "memory"])
def test_a_cohort_that_was_opened_with_one_lane_grows_when_there_is_more(lab: Lab, trial: Trial, lacks: str) -> None:
    lanes, settings = lab.lanes(), trial()
    lab.available = 100 if lacks == "memory" else lab.available
    numbers = [lanes.num_lanes(settings, lambda: 1 if lacks == "points" else 1000)]
    lab.available = 10**12
    for _ in range(20):
        lab.now += 10
        seconds = numbers[-1] * lab.truth.seconds(numbers[-1])
        numbers.append(lanes.review(settings, numbers[-1], seconds, lambda: 1000))
    assert numbers[:6] == [1] * 6  # the question is repeated once a minute
    assert numbers[-1] >= 32


def test_what_others_have_read_in_another_hour_is_scaled_to_what_both_have_read(lab: Lab, trial: Trial) -> None:
    settings, slow = trial(), 3.0
    lanes = lab.lanes()
    assert lanes.num_lanes(settings, lambda: 32) == 32
    theirs = {number: slow * lab.truth.seconds(number) for number in (32, 64)}
    lab.memory.remember(KnownLanes(case=lab.case(settings).words, seconds=theirs))
    for _ in range(2):
        lanes.review(settings, 32, 32 * lab.truth.seconds(32), lambda: 32)
    lanes.note_idle()
    expected = {number: lab.truth.seconds(number) for number in (32, 64)}
    assert lab.known(settings).seconds == pytest.approx(expected)


def test_what_others_have_read_meanwhile_stays_when_a_reading_of_ones_own_is_corrected(lab: Lab, trial: Trial) -> None:
    settings, lanes = trial(), lab.lanes()
    assert lanes.num_lanes(settings, lambda: 32) == 32
    seconds = lab.truth.seconds(32)
    lanes.review(settings, 32, 1.2 * 32 * seconds, lambda: 32)
    lab.memory.remember(KnownLanes(case=lab.case(settings).words, seconds={**lab.known(settings).seconds, 3: 7.0}))
    for _ in range(4):
        lanes.review(settings, 32, 32 * seconds, lambda: 32)
    lanes.note_idle()
    assert lab.known(settings).seconds == {3: 7.0, 32: seconds}


def test_memory_that_runs_out_while_the_device_is_measured_ends_no_trial(
    lab: Lab, trial: Trial, monkeypatch: pytest.MonkeyPatch
) -> None:
    lanes = lab.lanes()
    assert lanes.num_lanes(trial(), lambda: 1) == 1
    lab.now += 61

    def measure(device: torch.device) -> DeviceSpeed:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    monkeypatch.setattr(lab.memory, "_measure", measure)
    assert lanes.review(trial(), 1, 1.0, lambda: 1000) == 1


def test_a_shortage_that_was_told_is_not_told_again(lab: Lab, trial: Trial, caplog: pytest.LogCaptureFixture) -> None:
    lanes, settings = lab.lanes(), trial()
    with caplog.at_level(logging.INFO, logger="hpsearch"):
        lanes.num_lanes(settings, lambda: 1000)
        lanes.note_shortage(settings, 32)
        lanes.num_lanes(settings, lambda: 1000)
    assert len(caplog.messages) == 1
