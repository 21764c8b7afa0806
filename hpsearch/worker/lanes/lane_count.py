"""How many lanes a cohort has: a fixed number, or one that is learned from the epochs that the worker trains.

A lane is the place of one trial in the batched computation of a cohort. A model of the device chooses the first number.
Every epoch is then a reading of the time per trial with the lanes that were busy (`training/lanes/lane_times`). Nothing
but the number of lanes depends on it.
"""

from __future__ import annotations

import logging
import math
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol, final

import torch

from hpsearch.data.resident import ResidentData
from hpsearch.logs import get_logger
from hpsearch.signals import StopSignal
from hpsearch.study.settings import TrialSettings
from hpsearch.training.device_memory import is_out_of_memory, memory_of, release_cached_memory
from hpsearch.training.lanes.cohort_shape import CohortShape
from hpsearch.training.lanes.device_model import bytes_per_lane, measuring_bytes
from hpsearch.training.lanes.lane_times import MARGIN, LaneTimes
from hpsearch.training.networks.build import build_network
from hpsearch.wording import counted, percent
from hpsearch.worker.cohorts import cohort_name
from hpsearch.worker.lanes.measured_lane_counts import SHORTAGE_LASTS, KnownLanes, LaneCase, LaneMemory, StudyMix
from hpsearch.worker.options import MAX_LANES

_log = get_logger("lanes")  # `run` shows its lines (launch/worker_command)
# Readings from one change to the next. With another number of lanes the CUDA graphs are captured again, which takes
# seconds. The number of epochs that would remain to pay for it is unknown: the trials' stopping rules decide it.
_EPOCHS_BETWEEN_CHANGES = {"cpu": 0, "cuda": 5}
_ASK_AGAIN_SECONDS = 60.0  # after more lanes were wanted in vain
_NO_POINTS, _NO_MEMORY = "its share of the points", "more ran out of memory before"
_WRITE_SECONDS = 60.0  # between two writes of readings, unless a number was read for the first time


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

    def note_idle(self) -> None:
        """The worker trains nothing now."""


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
        self._most[cohort_name(settings)] = min(most, self._most.get(cohort_name(settings), most))

    def note_idle(self) -> None:
        pass


@dataclass(kw_only=True)
class _Case:
    """One case in this process.

    Args:
        stored: the readings as they were last written.
        written_at: when they were, in seconds of the clock.
        most: more lanes than this ran out of memory.
        number: lanes of the open cohort.
        peak: the most lanes that were busy since that number was chosen: there may be fewer points than lanes.
        num_epochs: epochs since that number was chosen.
        denied_at: when more lanes were last wanted, and there were no points or no memory for them.
    """

    case: LaneCase
    times: LaneTimes
    bytes_per_lane: int
    stored: Mapping[int, float]
    written_at: float = -math.inf
    most: int = MAX_LANES
    number: int = 1
    peak: int = 0
    num_epochs: int = 0
    denied_at: float = -math.inf

    def change(self, number: int) -> None:
        self.number, self.peak, self.num_epochs, self.denied_at = number, 0, 0, -math.inf


@final
@dataclass(kw_only=True)
class LearnedLanes:
    """The smallest number of lanes within 5 % of the fastest, and at most the worker's share, as far as is known.

    Args:
        num_sharing: number of workers on this machine.
        num_on_device: of those, the ones that share this worker's device and its memory.
        mix: what the study's lanes may mix.
        judging_bytes: memory that a lane needs for the judge of the study's metric (`training.judge.judging_bytes`).
        clock: seconds from any origin.
    """

    memory: LaneMemory
    data: ResidentData
    device: torch.device
    stop: StopSignal
    num_sharing: int = 1
    num_on_device: int = 1
    mix: StudyMix = field(default_factory=StudyMix)
    judging_bytes: int = 0
    clock: Callable[[], float] = time.monotonic
    _most: dict[str, tuple[int, float]] = field(default_factory=dict)  # by cohort, and until when
    _looked_at: float = -math.inf  # when the limits of the open cohort were last looked at
    _cases: dict[LaneCase, _Case] = field(default_factory=dict)
    _told: int | None = None  # the number that was logged last: one line per change

    def num_lanes(self, settings: TrialSettings, share: Callable[[], int]) -> int:
        points, words = min(MAX_LANES, share()), self._case_of(settings)
        most = self._most_lanes(settings)
        limit, case = min(points, most), self._cases.get(words)
        if case is None:
            if limit == 1:  # nothing to choose: the device need not be known
                return self._open_one(_NO_POINTS if points == 1 else _NO_MEMORY)
            if not self._can_measure():
                return self._open_one("no memory is left to measure the device")
            with self.stop.interruptible():
                case = self._cases[words] = self._begin(settings, words)
        case.most, self._looked_at = most, self.clock()
        wanted = case.times.choose(limit)
        self._change(case, self._that_fit(case, wanted, num_held=0))
        if case.number < wanted:
            self._tell_memory(case.number, wanted)
        elif wanted == points < case.times.choose(most):
            self._tell(case.number, _NO_POINTS)
        elif wanted == most < MAX_LANES:
            self._tell(case.number, _NO_MEMORY)
        else:
            self._tell(case.number, _reason(case.times, wanted, limit))
        return case.number

    def review(self, settings: TrialSettings, num_busy: int, seconds: float, share: Callable[[], int | None]) -> int:
        case = self._cases.get(self._case_of(settings))
        if case is None:
            return self._look_again(settings, share)
        if self._is_time_to_look():  # how far it may grow: a shortage may be forgotten, or another worker's be known
            case.most = self._most_lanes(settings)
        # Lanes that are left over at the end of a cohort are not representative: their trials may be narrow or cheap.
        is_full = num_busy == case.number or num_busy >= case.peak
        case.peak = max(case.peak, num_busy)
        if is_full and case.times.observe(num_busy, seconds / num_busy):
            is_new = num_busy not in case.stored
            if self._is_news(case, num_busy) and (is_new or self.clock() - case.written_at >= _WRITE_SECONDS):
                self._remember(case)
        case.num_epochs += 1
        if case.num_epochs <= _EPOCHS_BETWEEN_CHANGES[self.device.type]:
            return case.number
        wanted = case.times.choose(case.most, case.number)
        if wanted == case.number or (wanted > case.number and self.clock() - case.denied_at < _ASK_AGAIN_SECONDS):
            return case.number
        number = wanted
        if wanted > case.number:
            points = share()
            if points is None:
                return case.number
            wanted = min(wanted, points)
            number = self._that_fit(case, wanted, num_held=num_busy)
            if number <= case.number:
                case.denied_at = self.clock()
                return case.number
        self._change(case, number)
        if number < wanted:
            case.denied_at = self.clock()
            self._tell_memory(number, wanted)
        else:
            self._tell(number, _reason(case.times, number, case.most))
        return number

    def note_shortage(self, settings: TrialSettings, most: int) -> None:
        self._told = most  # whoever calls this has logged it
        most = min(most, self._shortage(settings))
        self._most[cohort_name(settings)] = most, self.clock() + SHORTAGE_LASTS.total_seconds()
        self.memory.note_shortage(self._case_of(settings), most)
        if (case := self._cases.get(self._case_of(settings))) is not None:
            case.most = min(case.most, most)
            if case.number > most:
                self._change(case, most)

    def note_idle(self) -> None:
        self.memory.end_use()
        for case in self._cases.values():
            if any(self._is_news(case, lanes) for lanes in case.times.readings):
                self._remember(case)

    def _most_lanes(self, settings: TrialSettings) -> int:
        most = self.memory.most_lanes(self._case_of(settings))
        return min(most or MAX_LANES, self._shortage(settings))

    def _shortage(self, settings: TrialSettings) -> int:
        most, until = self._most.get(cohort_name(settings), (MAX_LANES, math.inf))
        return most if self.clock() < until else MAX_LANES

    def _look_again(self, settings: TrialSettings, share: Callable[[], int | None]) -> int:
        """Begin to learn where a cohort was opened with one lane, for lack of points or memory, and has both by now."""
        if self._is_time_to_look() and not self.stop.is_set():
            most = self._most_lanes(settings)
            if most > 1 and (share() or 1) > 1 and self._can_measure():
                words = self._case_of(settings)
                try:
                    case = self._cases[words] = self._begin(settings, words)
                    case.most = most
                except Exception as error:
                    if not is_out_of_memory(error):
                        raise
        return 1  # as long as it is all that was read

    def _is_time_to_look(self) -> bool:
        is_time = self.clock() - self._looked_at >= _ASK_AGAIN_SECONDS
        self._looked_at = self.clock() if is_time else self._looked_at
        return is_time

    def _open_one(self, reason: str) -> int:
        self._looked_at = self.clock()
        self.memory.end_use()
        self._tell(1, reason)
        return 1

    def _change(self, case: _Case, number: int) -> None:
        case.change(number)
        if self.device.type == "cpu":
            self.memory.use_lanes(case.case, number)

    def _case_of(self, settings: TrialSettings) -> LaneCase:
        return LaneCase.of(settings, self.data, self.device, self.num_sharing, self.mix)

    def _can_measure(self) -> bool:
        is_known = self.memory.knows_speed(self.device, self.num_sharing)
        return is_known or self._available() >= measuring_bytes(self.device)

    def _begin(self, settings: TrialSettings, words: LaneCase) -> _Case:
        """The case, by what is known of it. Any trial may bring the widest network into the cohort."""
        batch_size = settings.training.batch_size
        shape = self.data.example_shape, self.data.num_outputs
        network = build_network(self.mix.widest_model(settings), *shape)
        largest = build_network(CohortShape.of(settings).model, *shape)  # in later rounds
        validations = self.mix.validations_per_epoch(self.data.num_minibatches(batch_size))
        speed = self.memory.device_speed(self.device, self.num_sharing)
        prior = speed.epoch_cost(network, self.data, batch_size, self.device, validations)
        known = self.memory.recall(words).seconds
        return _Case(
            case=words,
            times=LaneTimes(prior, known),
            bytes_per_lane=bytes_per_lane(largest, batch_size) + self.judging_bytes,
            stored=known,
        )

    def _is_news(self, case: _Case, lanes: int) -> bool:
        now, before = case.times.comparable.get(lanes), case.stored.get(lanes)
        return now is not None and (before is None or abs(now - before) > MARGIN * before)

    def _remember(self, case: _Case) -> None:
        """Write the readings: all, because a single one would not fit to those of another hour.

        Other numbers that are stored by now were read by other workers in the meantime. If both have read one, the
        others' are scaled to this worker's hour.
        """
        mine, known = case.times.comparable, self.memory.recall(case.case).seconds
        others = {lanes: value for lanes, value in known.items() if value != case.stored.get(lanes)}
        ratios = [mine[lanes] / others[lanes] for lanes in mine.keys() & others.keys()]
        factor = statistics.median(ratios) if ratios else 1.0
        seconds = known | {lanes: factor * value for lanes, value in others.items()} | mine
        self.memory.remember(KnownLanes(case=case.case.words, seconds=seconds))
        case.stored, case.written_at = seconds, self.clock()

    def _that_fit(self, case: _Case, number: int, *, num_held: int) -> int:
        """Reduce the number to what fits into memory now, beside the lanes that are held already."""
        if self.device.type == "cpu" and num_held + self._available() // case.bytes_per_lane < number:
            release_cached_memory(self.device)  # of the cohort before
        return min(number, max(1, num_held + self._available() // case.bytes_per_lane))

    def _available(self) -> int:
        return memory_of(self.device, num_sharing=self.num_on_device).available()

    def _tell(self, number: int, reason: str, level: int = logging.INFO) -> None:
        if self._told != number:
            self._told = number
            _log.log(level, "%s: %s", counted(number, "lane"), reason)

    def _tell_memory(self, number: int, wanted: int) -> None:
        self._tell(number, f"there is no memory for more, and {wanted} would pay", logging.WARNING)


def _reason(times: LaneTimes, number: int, limit: int) -> str:
    """Compare the chosen number with twice as many lanes, or with half as many at the limit."""
    other = 2 * number if 2 * number <= limit else max(1, number // 2)
    seconds, others = times.estimate(number), times.estimate(other)
    if not times.readings:
        gain = f"{other} would gain {percent(max(0.0, 1 - others / seconds))}"
        return f"by this machine's model{f', {gain}' if other > number else ''}"
    return f"{seconds:.3g} s per trial-epoch" + (f", {other} would take {others:.3g}" if other != number else "")
