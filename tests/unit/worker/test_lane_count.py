"""How many lanes a worker opens: what it was told, or what was measured, within its share and its memory."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from hpsearch.data.resident import ResidentData
from hpsearch.signals import StopSignal, WorkerStopped
from hpsearch.study.settings import TrialSettings
from hpsearch.training.lanes.probe import Obstacle
from hpsearch.worker import lane_count as module
from hpsearch.worker.lane_count import FixedLanes, MeasuredLanes
from hpsearch.worker.measured_lane_counts import KnownLanes, LaneCase, LaneMemory
from hpsearch.worker.options import MAX_LANES

CPU = torch.device("cpu")
Trial = Callable[..., TrialSettings]


def never() -> int:
    pytest.fail("nobody needs to know the share")


def test_a_number_that_was_named_is_taken_whatever_the_share(trial: Trial) -> None:
    assert FixedLanes(64).num_lanes(trial(), never) == 64


def test_after_a_shortage_a_named_number_is_less_for_that_cohort_only(trial: Trial) -> None:
    lanes = FixedLanes(64)
    lanes.note_shortage(trial(hidden_units=1000), 16)
    assert lanes.num_lanes(trial(hidden_units=1000, learning_rate=0.5), never) == 16
    assert lanes.num_lanes(trial(hidden_units=10), never) == 64


class Lab:
    """Measured lanes whose measurements are planted: the time of a trial's epoch by the number of lanes."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, data: ResidentData, folder: Path) -> None:
        self.data = data
        self.memory = LaneMemory(folder)
        self.stop = StopSignal()
        self.num_measured = 0
        self.answers: dict[int, float | Obstacle] = {1: 1.0, 2: 0.5, 4: 0.25, 8: 0.2, 16: 0.2, 32: 0.2}
        self.available = 10**9
        lab = self

        class PlantedTimer:
            bytes_per_lane = 1000

            def __init__(self, *_: object, **__: object) -> None:
                """Takes what the real one takes."""

            def __call__(self, num_lanes: int) -> float | Obstacle:
                lab.num_measured += 1
                return lab.answers[num_lanes]

        class PlantedMemory:
            def available(self) -> int:
                return lab.available

        monkeypatch.setattr(module, "CohortTimer", PlantedTimer)
        monkeypatch.setattr(module, "memory_of", lambda device, num_sharing: PlantedMemory())

    def choose(self, settings: TrialSettings, share: int) -> int:
        lanes = MeasuredLanes(memory=self.memory, data=self.data, device=CPU, stop=self.stop)  # as a new process would
        return lanes.num_lanes(settings, lambda: share)

    def known(self, settings: TrialSettings) -> KnownLanes:
        return self.memory.recall(LaneCase.of(settings, self.data, CPU))


@pytest.fixture
def lab(monkeypatch: pytest.MonkeyPatch, resident: Callable[..., ResidentData], tmp_path: Path) -> Lab:
    return Lab(monkeypatch, resident(), tmp_path)


def test_what_pays_is_measured_once_and_remembered(lab: Lab, trial: Trial, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="hpsearch"):
        assert lab.choose(trial(), 100) == 8
    assert caplog.messages == ["8 lanes: 0.2 s per trial-epoch, 16 would take 0.2"]
    assert lab.num_measured == 6
    assert lab.choose(trial(learning_rate=0.5), 100) == 8
    assert lab.num_measured == 6 + 1  # one reading is checked
    assert lab.known(trial()).bytes_per_lane == 1000


def test_never_more_lanes_than_the_share_and_none_is_measured_for_one(lab: Lab, trial: Trial) -> None:
    assert lab.choose(trial(), 1) == 1
    assert lab.num_measured == 0
    lab.answers |= {3: 0.3}
    assert lab.choose(trial(), 3) == 3
    assert lab.num_measured == 3
    assert lab.choose(trial(), 100) == 8  # measured on from where the points ended
    assert lab.num_measured == 3 + 1 + 4


def test_what_could_not_be_measured_in_time_is_measured_by_the_next_worker(lab: Lab, trial: Trial) -> None:
    lab.answers[4] = Obstacle.TIME
    assert lab.choose(trial(), 100) == 2
    lab.answers[4] = 0.25
    assert lab.choose(trial(), 100) == 8


def test_what_did_not_fit_is_tried_again_by_the_next_worker(lab: Lab, trial: Trial) -> None:
    """Others may have held the memory."""
    lab.answers[4] = Obstacle.MEMORY
    assert lab.choose(trial(), 100) == 2
    lab.answers[4] = 0.25
    assert lab.choose(trial(), 100) == 8


def test_one_process_checks_what_is_known_once(lab: Lab, trial: Trial) -> None:
    assert lab.choose(trial(), 100) == 8
    lanes = MeasuredLanes(memory=lab.memory, data=lab.data, device=CPU, stop=lab.stop)
    for _ in range(3):
        assert lanes.num_lanes(trial(), lambda: 100) == 8
    assert lab.num_measured == 6 + 1


@pytest.mark.parametrize("factor", [0.1, 10.0])
def test_what_was_measured_on_a_busy_machine_does_not_stand(
    factor: float, lab: Lab, trial: Trial, caplog: pytest.LogCaptureFixture
) -> None:
    quiet = dict(lab.answers)
    lab.answers = {1: factor, 2: factor, 4: factor}
    assert lab.choose(trial(), 100) == 1
    lab.answers = quiet
    with caplog.at_level(logging.INFO, logger="hpsearch"):
        assert lab.choose(trial(), 100) == 8
    assert caplog.messages[0] == f"lanes are measured again: 1 took {factor:.3g} s per trial-epoch then, 1 now"
    assert lab.known(trial()).seconds == quiet


def test_a_small_change_raises_no_doubt(lab: Lab, trial: Trial) -> None:
    assert lab.choose(trial(), 100) == 8
    before = lab.known(trial())
    lab.answers[8] = 0.28
    assert lab.choose(trial(), 100) == 8
    assert lab.known(trial()) == before


def test_there_is_a_limit_for_all(lab: Lab, trial: Trial) -> None:
    lab.answers = {2**i: 1.0 / 2**i for i in range(10)}
    assert lab.choose(trial(), 10**6) == MAX_LANES


def test_what_ran_out_of_memory_once_is_not_tried_again(
    lab: Lab, trial: Trial, caplog: pytest.LogCaptureFixture
) -> None:
    assert lab.choose(trial(), 100) == 8
    lanes = MeasuredLanes(memory=lab.memory, data=lab.data, device=CPU, stop=lab.stop)
    lanes.note_shortage(trial(), 4)
    assert lanes.num_lanes(trial(), lambda: 100) == 4
    lab.memory.path(LaneCase.of(trial(), lab.data, CPU)).rename(lab.memory.folder / "away")
    assert lanes.num_lanes(trial(), lambda: 100) == 4  # though the file were lost, or of another trial of the cohort
    (lab.memory.folder / "away").rename(lab.memory.path(LaneCase.of(trial(), lab.data, CPU)))
    with caplog.at_level(logging.INFO, logger="hpsearch"):
        assert lab.choose(trial(), 100) == 4
    assert caplog.messages == ["4 lanes: more than 4 ran out of memory before"]
    assert lab.known(trial()).seconds[8] == 0.2  # the timings stay


def test_memory_that_others_have_taken_since_counts(lab: Lab, trial: Trial, caplog: pytest.LogCaptureFixture) -> None:
    assert lab.choose(trial(), 100) == 8
    lab.available = 3500
    assert lab.choose(trial(), 100) == 3
    assert caplog.messages[-1] == "8 lanes would pay, but there is memory for 3 only"
    lab.available = 10
    assert lab.choose(trial(), 100) == 1


def test_a_worker_that_is_asked_to_stop_does_not_measure(lab: Lab, trial: Trial) -> None:
    lab.stop.set()
    with pytest.raises(WorkerStopped):
        lab.choose(trial(), 100)
    assert lab.num_measured == 0


def test_a_real_measurement_decides_and_is_remembered(
    resident: Callable[..., ResidentData], trial: Trial, tmp_path: Path
) -> None:
    data = resident()
    lanes = MeasuredLanes(memory=LaneMemory(tmp_path), data=data, device=CPU, stop=StopSignal())
    assert 1 <= lanes.num_lanes(trial(), lambda: 3) <= 3
    known = LaneMemory(tmp_path).recall(LaneCase.of(trial(), data, CPU))
    assert set(known.seconds) == {1, 2, 3}
    assert all(seconds > 0 for seconds in known.seconds.values())
