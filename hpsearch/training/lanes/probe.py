"""How many lanes to use: measures the time per trial and epoch with 1, 2, 4 ... temporary lanes.

More lanes share the cost of launching kernels and of reading images, until a step is bound by arithmetic or the lanes'
weights no longer fit into a cache. Beyond that more lanes only take memory, and leave more lanes empty in the last
epochs of a study.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import final

import torch

from hpsearch.data.resident import ResidentData
from hpsearch.study.settings import TrialSettings
from hpsearch.training.device_memory import DeviceMemory, is_out_of_memory, memory_of, release_cached_memory
from hpsearch.training.evaluation import SLICE_FLOATS
from hpsearch.training.lanes.cohort import Cohort, CohortShape

# Timings repeat to about 3 % on a quiet machine, and a gain must justify twice the memory.
MARGIN = 0.05
# 2 lanes can be slower than one, whose kernels are better tuned, while 8 are the fastest: allow one slower doubling.
PATIENCE = 2
STRETCH_SECONDS = 0.25  # of measured training per number of lanes
NUM_REPEATS = 3  # the fastest counts: disturbances only make a measurement longer
WARM_UP_MINIBATCHES = 4
BUDGET_SECONDS = {"cpu": 5.0, "cuda": 15.0}  # on a GPU each number of lanes may need its own captured graph
# The measured stretches contain no full validation, so its memory is added: per lane one slice each of the scores,
# their logarithms and the layer before.
VALIDATION_BYTES = 3 * 4 * SLICE_FLOATS


class Obstacle(Enum):
    """Why a larger number of lanes was not measured although it might have been faster."""

    MEMORY = "memory"
    TIME = "time"


Measure = Callable[[int], "float | Obstacle"]
BuildProbe = Callable[[CohortShape, ResidentData, torch.device, int], Cohort]


@dataclass(frozen=True, kw_only=True)
class LaneTimings:
    """Measured times.

    Args:
        seconds: number of lanes -> seconds per trial and epoch (without validation).
        obstacle: what ended the measurement early; None if nothing did.
    """

    seconds: Mapping[int, float] = field(default_factory=dict)
    obstacle: Obstacle | None = None

    def best(self, limit: int) -> int:
        """The smallest number of lanes up to `limit` within `MARGIN` of the fastest; 1 if none was timed."""
        allowed = {lanes: seconds for lanes, seconds in self.seconds.items() if lanes <= limit}
        if not allowed:
            return 1
        fastest = min(allowed.values())
        return min(lanes for lanes, seconds in allowed.items() if seconds <= fastest * (1 + MARGIN))

    def describe(self, num_lanes: int, limit: int) -> str:
        """One line: `8 lanes: 0.51 s per trial-epoch, 16 would take 0.52`."""
        line = f"{num_lanes} {'lane' if num_lanes == 1 else 'lanes'}"
        if num_lanes in self.seconds:
            line += f": {self.seconds[num_lanes]:.3g} s per trial-epoch"
        if num_lanes >= limit:
            return f"{line}, and no points for more"
        more = min((lanes for lanes in self.seconds if num_lanes < lanes <= limit), default=None)
        if more is not None:
            return f"{line}, {more} would take {self.seconds[more]:.3g}"
        match self.obstacle:
            case Obstacle.MEMORY:
                return f"{line}, more would not fit into memory"
            case Obstacle.TIME:
                return f"{line}, more would take too long to measure"
            case None:
                return line


def time_lanes(measure: Measure, *, limit: int, known: LaneTimings | None = None) -> LaneTimings:
    """Double the number of lanes until this no longer helps, an obstacle is met, or `limit` is reached.

    Doubling no longer helps when `PATIENCE` doublings in a row failed to improve the best time by `MARGIN`.

    Args:
        measure: seconds per trial and epoch with the given number of lanes, or an obstacle.
        limit: the largest number of lanes to measure.
        known: earlier measurements, perhaps up to a lower limit; they are not repeated.
    """
    known = known or LaneTimings()
    seconds = dict(known.seconds)
    if known.obstacle is not None:
        return known
    for num_lanes in _numbers_up_to(limit):
        if num_lanes in seconds:
            continue
        if not _may_pay(seconds):
            break
        answer = measure(num_lanes)
        if isinstance(answer, Obstacle):
            return LaneTimings(seconds=seconds, obstacle=answer)
        seconds[num_lanes] = answer
    return LaneTimings(seconds=seconds)


def _numbers_up_to(limit: int) -> Iterator[int]:
    """1, 2, 4 ... and the limit itself, which need not be a power of two."""
    num_lanes = 1
    while num_lanes < limit:
        yield num_lanes
        num_lanes *= 2
    yield limit


def _may_pay(seconds: Mapping[int, float]) -> bool:
    """Whether to double once more. Only powers of two count: an earlier limit between two of them is not a doubling."""
    to_beat, num_in_vain = float("inf"), 0
    for num_lanes in sorted(seconds):
        if num_lanes & (num_lanes - 1):
            continue
        if seconds[num_lanes] < to_beat * (1 - MARGIN):
            to_beat, num_in_vain = seconds[num_lanes], 0
        else:
            num_in_vain += 1  # `to_beat` stays, so that small gains of several doublings add up
    return num_in_vain < PATIENCE


@final
class CohortTimer:
    """Times short stretches of real training with temporary lanes; a `Measure`.

    Args:
        settings: the settings of every lane.
        build_cohort, clock, memory: injected in tests.
        num_sharing: workers that share this machine's main memory.
    """

    def __init__(
        self,
        settings: TrialSettings,
        data: ResidentData,
        device: torch.device,
        *,
        build_cohort: BuildProbe = Cohort,
        clock: Callable[[], float] = time.perf_counter,
        memory: DeviceMemory | None = None,
        num_sharing: int = 1,
    ) -> None:
        self._settings = settings
        self._data = data
        self._device = device
        self._build_cohort = build_cohort
        self._clock = clock
        self._memory = memory or memory_of(device, num_sharing=num_sharing)
        self._num_minibatches = data.num_minibatches(settings.training.batch_size)
        self._minibatch_seconds: float | None = None  # per lane, in the last measurement
        self._started = 0.0
        self._last_seconds = 0.0  # duration of the whole last measurement
        self.bytes_per_lane = VALIDATION_BYTES

    def __call__(self, num_lanes: int) -> float | Obstacle:
        """Seconds per trial and epoch with this number of lanes, or the obstacle to measuring it.

        An out-of-memory error is returned as `Obstacle.MEMORY`; other errors are raised.
        """
        try:
            if self._minibatch_seconds is None:
                self._warm_up()
            if num_lanes * self.bytes_per_lane > self._memory.available():
                return Obstacle.MEMORY
            started = self._clock()
            budget = BUDGET_SECONDS[self._device.type]
            if started - self._started + 2 * self._last_seconds > budget:  # twice the lanes take at most twice the time
                return Obstacle.TIME
            seconds = self._time(num_lanes)
            self._last_seconds = self._clock() - started
            return seconds
        except Exception as error:
            if not is_out_of_memory(error):
                raise
        finally:
            release_cached_memory(self._device)
        return Obstacle.MEMORY

    def _warm_up(self) -> None:
        """Train one lane twice. The first run includes what torch initialises once per process."""
        num_minibatches = min(WARM_UP_MINIBATCHES, self._num_minibatches)
        cohort = self._cohort(1, num_minibatches)
        self._time_epoch(cohort)
        self._minibatch_seconds = self._time_epoch(cohort) / num_minibatches
        self._memory.start()
        self._started = self._clock()

    def _time(self, num_lanes: int) -> float:
        assert self._minibatch_seconds is not None
        wanted = STRETCH_SECONDS / NUM_REPEATS / max(self._minibatch_seconds * num_lanes, 1e-9)
        num_minibatches = min(max(1, int(wanted)), self._num_minibatches)
        cohort = self._cohort(num_lanes, num_minibatches)
        self._time_epoch(cohort)  # warm-up
        fastest = min(self._time_epoch(cohort) for _ in range(NUM_REPEATS))
        self.bytes_per_lane = self._memory.growth() // num_lanes + VALIDATION_BYTES
        self._minibatch_seconds = fastest / num_minibatches / num_lanes
        return self._minibatch_seconds * self._num_minibatches

    def _cohort(self, num_lanes: int, num_minibatches: int) -> Cohort:
        num_images = num_minibatches * self._settings.training.batch_size
        head = self._data.head(num_train=num_images, num_validation=1)
        cohort = self._build_cohort(CohortShape.of(self._settings), head, self._device, num_minibatches)
        for lane in range(num_lanes):
            cohort.admit(lane, self._settings)
        return cohort

    def _time_epoch(self, cohort: Cohort) -> float:
        self._wait_for_device()
        started = self._clock()
        cohort.train_epoch()
        self._wait_for_device()
        return self._clock() - started

    def _wait_for_device(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
