"""How many lanes a cohort has: a fixed number, or one that is learned from the epochs that the worker trains.

A lane is the place of one trial in the batched computation of a cohort. A model of the device chooses the first number.
Every epoch is then a reading of the time per trial with the lanes that were busy (`training/lanes/lane_times`). Nothing
but the number of lanes depends on it.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol, final

import torch

from hpsearch.data.resident import ResidentData
from hpsearch.logs import get_logger
from hpsearch.signals import StopSignal
from hpsearch.study.settings import TrialSettings
from hpsearch.training.device_memory import memory_of
from hpsearch.training.lanes.cohort_shape import CohortShape
from hpsearch.training.lanes.device_model import bytes_per_lane
from hpsearch.training.lanes.lane_times import MARGIN, LaneTimes
from hpsearch.training.networks.build import build_network
from hpsearch.wording import counted, percent
from hpsearch.worker.cohorts import cohort_name
from hpsearch.worker.lanes.measured_lane_counts import KnownLanes, LaneCase, LaneMemory
from hpsearch.worker.options import MAX_LANES

_log = get_logger("lanes")  # `run` shows its lines (launch/worker_command)
# Epochs from one change to the next. With another number of lanes the CUDA graphs are captured again, which takes
# seconds, and the first epoch after a change measures little else. The number of epochs that would remain to pay for a
# capture is unknown: the trials' stopping rules decide it.
_EPOCHS_BETWEEN_CHANGES = {"cpu": 0, "cuda": 5}
_ASK_AGAIN_SECONDS = 60.0  # after more lanes were wanted in vain
_NO_POINTS, _NO_MEMORY = "its share of the points", "more ran out of memory before"
_WRITE_SECONDS = 60.0  # between two writes of a reading for the same number of lanes


class LaneChoice(Protocol):
    """Decides on the number of lanes of each cohort."""

    def num_lanes(self, settings: TrialSettings, share: Callable[[], int]) -> int:
        """Return the number of lanes for the cohort that this trial opens, at least 1.

        Args:
            share: returns how many of the study's points this worker may take.
        Raises:
            WorkerStopped: asked to stop while the device was measured.
        """

    def review(self, settings: TrialSettings, num_busy: int, seconds: float, share: Callable[[], int | None]) -> int:
        """Return the number of lanes from now on, after an epoch of the open cohort.

        Args:
            settings: of the trial that opened the cohort.
            num_busy: lanes that were trained in the epoch.
            seconds: duration of the epoch.
            share: as in `num_lanes`; None if the database is away. Called only if more lanes are wanted than there are.
        """

    def note_shortage(self, settings: TrialSettings, most: int) -> None:
        """Use at most `most` lanes for this cohort from now on, because more ran out of memory."""


@final
@dataclass(frozen=True)
class FixedLanes:
    """The number that the user has set, or fewer for a cohort that ran out of memory."""

    number: int
    _most: dict[str, int] = field(default_factory=dict)  # by cohort

    def num_lanes(self, settings: TrialSettings, share: Callable[[], int]) -> int:
        return min(self.number, self._most.get(cohort_name(settings), self.number))

    def review(self, settings: TrialSettings, num_busy: int, seconds: float, share: Callable[[], int | None]) -> int:
        return min(self.number, self._most.get(cohort_name(settings), self.number))

    def note_shortage(self, settings: TrialSettings, most: int) -> None:
        self._most[cohort_name(settings)] = most


@dataclass(kw_only=True)
class _Case:
    """One case in this process.

    Args:
        stored: the readings as they were last written.
        written_at: number of lanes -> when its reading was last written, in seconds of the clock.
        most: more lanes than this ran out of memory.
        number: lanes of the open cohort.
        peak: the most lanes that were busy since that number was chosen: there may be fewer points than lanes.
        num_epochs: epochs since that number was chosen.
        is_first_epoch: more lanes than were ever read are trained, for the first epoch.
        denied_at: when more lanes were last wanted, and there were no points or no memory for them.
    """

    case: LaneCase
    times: LaneTimes
    bytes_per_lane: int
    stored: Mapping[int, float]
    written_at: dict[int, float] = field(default_factory=dict)
    most: int = MAX_LANES
    number: int = 1
    peak: int = 0
    num_epochs: int = 0
    is_first_epoch: bool = False
    denied_at: float = -math.inf

    def change(self, number: int) -> None:
        self.number, self.peak, self.num_epochs, self.denied_at = number, 0, 0, -math.inf

    @property
    def largest(self) -> int:
        """The largest number of lanes that was read."""
        return max(self.times.readings, default=1)


@final
@dataclass(kw_only=True)
class LearnedLanes:
    """The smallest number of lanes within 5 % of the fastest, and at most the worker's share, as far as is known.

    Args:
        num_sharing: number of workers on this machine, which share its main memory.
        mix: `measured_lane_counts.mix_of` the study.
        judging_bytes: memory that a lane needs for the judge of the study's metric (`training.judge.judging_bytes`).
        clock: seconds from any origin.
    """

    memory: LaneMemory
    data: ResidentData
    device: torch.device
    stop: StopSignal
    num_sharing: int = 1
    mix: str = ""
    judging_bytes: int = 0
    clock: Callable[[], float] = time.monotonic
    _most: dict[str, int] = field(default_factory=dict)  # by cohort
    _cases: dict[LaneCase, _Case] = field(default_factory=dict)
    _told_fitting: int | None = None  # the last number that memory allowed only
    _told: int | None = None  # the number that was logged last: one line per change

    def num_lanes(self, settings: TrialSettings, share: Callable[[], int]) -> int:
        points = min(MAX_LANES, share())
        known = self.memory.recall(self._case_of(settings))
        most = min(known.most or MAX_LANES, self._most.get(cohort_name(settings), MAX_LANES))
        limit = min(points, most)
        case = self._cases.get(LaneCase(words=known.case))
        if case is None:
            if limit == 1:  # nothing to choose: the device need not be known
                self._tell(1, _NO_POINTS if points == 1 else _NO_MEMORY)
                return 1
            case = self._cases[LaneCase(words=known.case)] = self._begin(settings, known)
        case.most = most
        wanted = case.times.choose(limit)
        self._change(case, self._that_fit(case, wanted, num_held=0))
        if case.number == wanted:
            if wanted == points < case.times.choose(most):
                self._tell(case.number, _NO_POINTS)
            elif wanted == most < MAX_LANES:
                self._tell(case.number, _NO_MEMORY)
            else:
                self._tell(case.number, _reason(case.times, wanted, limit))
        return case.number

    def review(self, settings: TrialSettings, num_busy: int, seconds: float, share: Callable[[], int | None]) -> int:
        case = self._cases.get(self._case_of(settings))
        if case is None:
            return 1  # opened for a single point
        # Lanes that are left over at the end of a cohort are not representative: their trials may be narrow or cheap.
        if case.is_first_epoch:
            case.is_first_epoch = False
            self.memory.end_first_epoch(case.case)
        is_full = num_busy == case.number or num_busy >= case.peak
        case.peak = max(case.peak, num_busy)
        if is_full and case.times.observe(num_busy, seconds / num_busy):
            self._remember(case, num_busy)
        case.num_epochs += 1
        if case.num_epochs <= _EPOCHS_BETWEEN_CHANGES[self.device.type]:
            return case.number
        wanted = case.times.choose(case.most, case.number)
        if wanted == case.number or (wanted > case.number and self.clock() - case.denied_at < _ASK_AGAIN_SECONDS):
            return case.number
        if wanted > case.number:
            points = share()
            if points is None:
                return case.number
            wanted = self._that_fit(case, min(wanted, points), num_held=num_busy)
            if wanted <= case.number:
                case.denied_at = self.clock()
                return case.number
        self._change(case, wanted)
        self._tell(case.number, _reason(case.times, wanted, case.most))
        return wanted

    def note_shortage(self, settings: TrialSettings, most: int) -> None:
        self._most[cohort_name(settings)] = most
        self.memory.note_shortage(self._case_of(settings), most)

    def _change(self, case: _Case, number: int) -> None:
        case.change(number)
        if self.device.type == "cpu" and number > case.largest:
            case.is_first_epoch = True
            self.memory.begin_first_epoch(case.case, number)

    def _case_of(self, settings: TrialSettings) -> LaneCase:
        return LaneCase.of(settings, self.data, self.device, self.num_sharing, self.mix)

    def _begin(self, settings: TrialSettings, known: KnownLanes) -> _Case:
        batch_size = settings.training.batch_size
        shape = self.data.example_shape, self.data.num_outputs
        network = build_network(settings.model, *shape)
        widest = build_network(CohortShape.of(settings).model, *shape)  # which other trials may bring into the cohort
        with self.stop.interruptible():
            speed = self.memory.device_speed(self.device, self.num_sharing)
            prior = speed.epoch_cost(network, self.data, batch_size, self.device)
        return _Case(
            case=LaneCase(words=known.case),
            times=LaneTimes(prior, known.seconds),
            bytes_per_lane=bytes_per_lane(widest, batch_size) + self.judging_bytes,
            stored=known.seconds,
        )

    def _remember(self, case: _Case, lanes: int) -> None:
        """Write the readings if the one for this number of lanes is news, at most once per minute."""
        readings = case.times.readings
        before = case.stored.get(lanes)
        is_news = before is None or abs(readings[lanes] - before) > MARGIN * before
        if is_news and self.clock() - case.written_at.get(lanes, -math.inf) >= _WRITE_SECONDS:
            known = self.memory.recall(case.case)
            # All of them: they are of one condition of the machine. A single one would not fit to those of another.
            seconds = {**known.seconds, **readings}
            self.memory.remember(known.model_copy(update={"seconds": seconds}))
            case.stored, case.written_at[lanes] = seconds, self.clock()

    def _that_fit(self, case: _Case, number: int, *, num_held: int) -> int:
        """Reduce the number to what fits into memory now, beside the lanes that are held already."""
        available = memory_of(self.device, num_sharing=self.num_sharing).available()
        fitting = max(1, num_held + available // case.bytes_per_lane)
        if fitting < number and self._told_fitting != fitting:
            self._told_fitting = fitting
            _log.warning("%d lanes would pay, but there is memory for %d only", number, fitting)
        return min(number, fitting)

    def _tell(self, number: int, reason: str) -> None:
        if self._told != number:
            self._told = number
            _log.info("%s: %s", counted(number, "lane"), reason)


def _reason(times: LaneTimes, number: int, limit: int) -> str:
    """Compare the chosen number with twice as many lanes, or with half as many at the limit."""
    other = 2 * number if 2 * number <= limit else max(1, number // 2)
    seconds, others = times.estimate(number), times.estimate(other)
    if not times.readings:
        gain = f"{other} would gain {percent(max(0.0, 1 - others / seconds))}"
        return f"by this machine's model{f', {gain}' if other > number else ''}"
    return f"{seconds:.3g} s per trial-epoch" + (f", {other} would take {others:.3g}" if other != number else "")
