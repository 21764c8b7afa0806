"""How many lanes a worker opens for a cohort: a fixed number, or a measured number that is fast on its device."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol, final

import torch

from hpsearch.data.resident import ResidentData
from hpsearch.logs import get_logger
from hpsearch.signals import StopSignal
from hpsearch.study.settings import TrialSettings
from hpsearch.training.device_memory import memory_of
from hpsearch.training.lanes.cohort import Cohort
from hpsearch.training.lanes.probe import BuildProbe, CohortTimer, LaneTimings, Measure, Obstacle, time_lanes
from hpsearch.worker.cohorts import cohort_name
from hpsearch.worker.measured_lane_counts import KnownLanes, LaneCase, LaneMemory
from hpsearch.worker.options import MAX_LANES

_log = get_logger("lanes")
# A measurement taken while other processes kept the machine busy must not stay valid for ever: if old and new times
# differ by more than this ratio, everything is measured again.
DOUBT_RATIO = 1.5


class LaneChoice(Protocol):
    """Decides on the number of lanes of each cohort."""

    def num_lanes(self, settings: TrialSettings, share: Callable[[], int]) -> int:
        """Return the number of lanes for the cohort of this trial, at least 1.

        May train for some seconds to measure it.

        Args:
            share: returns how many of the study's points this worker may take.
        Raises:
            WorkerStopped: asked to stop while it measured.
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

    def note_shortage(self, settings: TrialSettings, most: int) -> None:
        self._most[cohort_name(settings)] = most


@final
@dataclass(frozen=True, kw_only=True)
class MeasuredLanes:
    """The smallest measured number of lanes within 5 % of the fastest, and at most the worker's share.

    Once per process and case, one of the known timings is repeated: if it has changed, all of them are discarded.

    Args:
        num_sharing: number of workers on this machine, which share its main memory.
        build_cohort: makes the temporary lanes that are timed.
    """

    memory: LaneMemory
    data: ResidentData
    device: torch.device
    stop: StopSignal
    num_sharing: int = 1
    build_cohort: BuildProbe = Cohort
    _most: dict[str, int] = field(default_factory=dict)  # by cohort
    _believed: set[str] = field(default_factory=set)  # cases that this process has measured or checked

    def num_lanes(self, settings: TrialSettings, share: Callable[[], int]) -> int:
        share_limit = min(MAX_LANES, share())
        known = self.memory.recall(LaneCase.of(settings, self.data, self.device))
        most = min(known.most or MAX_LANES, self._most.get(cohort_name(settings), MAX_LANES))
        limit = min(share_limit, most)
        if limit <= 1:
            return 1
        known = self._measured(known, settings, limit)
        number = known.timings.best(limit)
        if most < share_limit:
            _log.info("%d lanes: more than %d ran out of memory before", number, most)
        else:
            _log.info("%s", known.timings.describe(number, limit))
        return self._that_fit(number, known.bytes_per_lane)

    def note_shortage(self, settings: TrialSettings, most: int) -> None:
        self._most[cohort_name(settings)] = most
        self.memory.note_shortage(LaneCase.of(settings, self.data, self.device), most)

    def _measured(self, known: KnownLanes, settings: TrialSettings, limit: int) -> KnownLanes:
        """Measure what is missing, and remember it."""
        timer = CohortTimer(
            settings, self.data, self.device, build_cohort=self.build_cohort, num_sharing=self.num_sharing
        )
        with self.stop.interruptible():
            if known.case not in self._believed and _is_outdated(known.timings, timer, limit):
                known = known.model_copy(update={"seconds": {}, "obstacle": None})
            timings = time_lanes(timer, limit=limit, known=known.timings)
        self._believed.add(known.case)
        if timings == known.timings:
            return known
        news = {"seconds": timings.seconds, "obstacle": timings.obstacle, "bytes_per_lane": timer.bytes_per_lane}
        measured = known.model_copy(update=news)
        # What was not tried for lack of time, or of memory that other processes may have used, is left to the next
        # worker, which continues from here.
        is_final = timings.obstacle is None
        self.memory.remember(measured if is_final else measured.model_copy(update={"obstacle": None}))
        return measured

    def _that_fit(self, number: int, bytes_per_lane: int) -> int:
        """Reduce the number to what fits into memory now: a measurement may be from a time with more free memory."""
        available = memory_of(self.device, num_sharing=self.num_sharing).available()
        fitting = max(1, available // max(1, bytes_per_lane))
        if fitting < number:
            _log.warning("%d lanes would pay, but there is memory for %d only", number, fitting)
        return min(number, fitting)


def _is_outdated(known: LaneTimings, timer: Measure, limit: int) -> bool:
    """Whether the best known timing, measured again, differs by more than DOUBT_RATIO."""
    number = known.best(limit)
    if number not in known.seconds:
        return False
    before, now = known.seconds[number], timer(number)
    if isinstance(now, Obstacle) or max(before, now) <= DOUBT_RATIO * min(before, now):
        return False
    _log.info("lanes are measured again: %d took %.3g s per trial-epoch then, %.3g now", number, before, now)
    return True
