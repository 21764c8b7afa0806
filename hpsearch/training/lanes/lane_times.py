"""How long one trial's epoch takes with each number of lanes, as far as it is known, and which number follows from it.

With L lanes an epoch takes about c0/L + c1 seconds per trial: the calls of its minibatches cost c0 whatever the number
of lanes, and the arithmetic of each lane costs c1. A model of the device (`device_model`) gives both numbers in
advance. The epochs that are trained anyway then correct them. More lanes than help would only take memory, and leave
more lanes empty in the last epochs of a study.
"""

from __future__ import annotations

import math
import statistics
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import final

MARGIN = 0.05  # a smaller gain does not justify twice the memory
SHRINK_MARGIN = 0.10  # larger than MARGIN, so that the number does not alternate
NOISE_RATIO = 1.25  # other processes, or the first calls of a process, make single epochs slower than this
NUM_RECENT = 5
# The prior is part of each fit with this weight: readings at 7 and 8 lanes say little about 64.
PRIOR_WEIGHT = 0.1
# The model of the device may underestimate the cost of calls by this factor. Without a second number of lanes, readings
# cannot show it; twice as many lanes are then tried once.
PRIOR_DOUBT = 4.0
# Between two epochs of a cohort, whatever its lanes: they are recorded, and trials end and begin. That takes processor
# time beside the training, which the model does not count. It decides only up to FEW_LANES, which cost little memory.
TURN_SECONDS = 0.2
FEW_LANES = 8
_MOST_LANES = 512
_MOST_PARTS = 4  # equal groups of the points that are considered beside powers of two


@final
@dataclass(frozen=True, kw_only=True)
class EpochCost:
    """Seconds per trial and epoch: `fixed / lanes + per_lane`. Both are at least 0, and one is positive."""

    fixed: float
    per_lane: float

    def seconds(self, lanes: int) -> float:
        return self.fixed / lanes + self.per_lane

    def times(self, factor: float) -> EpochCost:
        return EpochCost(fixed=self.fixed * factor, per_lane=self.per_lane * factor)


@final
class LaneTimes:
    """What is known of one case.

    Args:
        prior: by a model of the device; only its ratio matters once an epoch was read.
        known: readings of earlier processes: number of lanes -> seconds per trial and epoch.
    """

    def __init__(self, prior: EpochCost, known: Mapping[int, float] | None = None) -> None:
        self._prior = prior
        self._recent = {lanes: deque([seconds], NUM_RECENT) for lanes, seconds in (known or {}).items()}
        self._num_accepted: dict[int, int] = {}  # readings of this process
        self._last_accepted: dict[int, int] = {}  # number of the reading; none of an earlier process
        self._doubtful: dict[int, float] = {}  # the last reading, where it was not accepted
        self._num_observed = 0
        self._known = dict(known or {})
        self._known_fit = self._fitted = self._fit()
        self._has_compared = not known  # a reading of this process shows how those of earlier ones relate to its own

    @property
    def readings(self) -> dict[int, float]:
        """The lower median of the last readings, so that one slow epoch hardly changes it."""
        return {lanes: statistics.median_low(recent) for lanes, recent in self._recent.items()}

    @property
    def comparable(self) -> dict[int, float]:
        """The readings, as far as they are of one condition of the machine; otherwise those of earlier processes.

        Where this process has read only new numbers, and all contradict the known ones, the machine may be slower than
        it was, or more lanes may be worth less than the prior says. It is open until a known number is read.
        """
        return self.readings if self._has_compared else dict(self._known)

    def estimate(self, lanes: int) -> float:
        """Seconds per trial and epoch: the reading if there is one, else by the fit."""
        if lanes in self._recent:
            return statistics.median_low(self._recent[lanes])
        return self._fitted.seconds(lanes)

    def choose(self, limit: int, current: int | None = None) -> int:
        """The smallest number within MARGIN of the fastest one, among 1, 2, 4 ... and `limit`.

        Once there are readings, the number grows to at most twice the largest one, because the fit is a rough guess
        further away. The current number is kept until this process has read it twice.

        Args:
            limit: the most lanes that there are points and memory for.
            current: the number of lanes in use; None if none are: then `limit` points are about to be trained, and all
                of them count, also those that do not fill the lanes at the end.
        """
        numbers = {*numbers_up_to(limit), limit}
        if current is None:
            numbers |= {-(-limit // parts) for parts in range(2, _MOST_PARTS + 1)}
            horizon = max(self._horizon(), self._believed())
            near = [lanes for lanes in numbers if lanes <= horizon]
            best = self._smallest_good(near, lambda lanes: self._mean_seconds(limit, lanes))
            return self._at_least_few(best, near, limit)
        candidates = {lanes for lanes in numbers if lanes <= self._horizon()}
        if self._num_accepted.get(current, 0) < 2:
            return current
        best = self._smallest_good(candidates | {current}, self.estimate)
        if best == current and 2 * current in candidates and self._is_worth_a_try(2 * current):
            best = 2 * current
        if best >= current:
            return best
        read = [lanes for lanes in candidates if lanes < current and lanes in self._recent]
        enough = (1 - SHRINK_MARGIN) * self._seconds_with_turn(current)
        is_worth_it = bool(read) and min(map(self._seconds_with_turn, read)) <= enough
        return self._smallest_good(read, self._seconds_with_turn) if is_worth_it else current

    def _seconds_with_turn(self, lanes: int) -> float:
        return self.estimate(lanes) + TURN_SECONDS / lanes

    def _mean_seconds(self, num_points: int, lanes: int) -> float:
        """Seconds per point and epoch if so many points are trained in groups of this many lanes."""
        num_full, rest = divmod(num_points, lanes)
        seconds = num_full * lanes * self.estimate(lanes) + (rest * self.estimate(rest) if rest else 0.0)
        return seconds / num_points

    def observe(self, lanes: int, seconds: float) -> bool:
        """Take in an epoch that was trained with this number of lanes from its beginning to its end.

        A reading that differs from the estimate by more than NOISE_RATIO is not accepted, until the next one for the
        same number confirms it. The two then replace what was known of this number. Other readings that are older than
        the replaced one are scaled by the same factor: the machine has become faster or slower since. Those of earlier
        processes are not as long as they are not `comparable`.

        Args:
            seconds: per trial.
        Returns:
            Whether the readings have changed.
        """
        self._num_observed += 1
        if _agree(seconds, self.estimate(lanes)):
            self._recent.setdefault(lanes, deque(maxlen=NUM_RECENT)).append(seconds)
            self._num_accepted[lanes] = self._num_accepted.get(lanes, 0) + 1
            self._doubtful.pop(lanes, None)
            self._compare(lanes, seconds)
        elif lanes in self._doubtful and _agree(seconds, self._doubtful[lanes]):
            self._replace(lanes, [self._doubtful.pop(lanes), seconds])
        else:
            self._doubtful[lanes] = seconds
            return False
        self._last_accepted[lanes] = self._num_observed
        self._fitted = self._fit()
        return True

    def _replace(self, lanes: int, seconds: list[float]) -> None:
        value = statistics.median_low(seconds)
        if lanes in self._recent:
            factor = value / self.estimate(lanes)
            age = self._last_accepted.get(lanes, 0)
            is_comparable = self._has_compared or lanes in self._known
            for other, recent in self._recent.items():
                if self._last_accepted.get(other, 0) <= age and (is_comparable or other not in self._known):
                    self._recent[other] = deque((factor * each for each in recent), NUM_RECENT)
        self._recent[lanes] = deque(seconds, NUM_RECENT)
        self._num_accepted[lanes] = len(seconds)
        self._compare(lanes, value)

    def _compare(self, lanes: int, seconds: float) -> None:
        if lanes in self._known or _agree(seconds, self._known_fit.seconds(lanes)):
            self._has_compared = True

    def _horizon(self) -> int:
        """The largest number that may be chosen. Where readings rise already, more lanes are not tried."""
        if not self._recent:
            return _MOST_LANES
        largest = max(self._recent)
        return largest if self._rises() else 2 * largest

    def _rises(self) -> bool:
        # A neighbouring number proves nothing: 7 and 8 lanes differ by less than the noise.
        largest = max(self._recent)
        fewer = [self.estimate(lanes) for lanes in self._recent if 2 * lanes <= largest]
        return bool(fewer) and self.estimate(largest) > min(fewer)

    def _believed(self) -> int:
        """The number that the prior chooses, as long as no two readings could contradict it; otherwise 1.

        A study of few points, read with few lanes, must not make the next one timid.
        """
        if self._is_contradictable():
            return 1
        return self._smallest_good(numbers_up_to(_MOST_LANES), self._prior.seconds)

    def _is_contradictable(self) -> bool:
        """Whether there are readings for two numbers so far apart that they show what more lanes bring."""
        return bool(self._recent) and 2 * min(self._recent) <= max(self._recent)

    def _at_least_few(self, best: int, numbers: Iterable[int], num_points: int) -> int:
        """The best number, or the one up to FEW_LANES that is better by MARGIN with what each turn costs."""

        def seconds(lanes: int) -> float:
            return self._mean_seconds(num_points, lanes) + TURN_SECONDS * math.ceil(num_points / lanes) / num_points

        few = min((lanes for lanes in sorted(numbers) if lanes <= FEW_LANES), key=seconds)
        return few if best < few and seconds(few) * (1 + MARGIN) < seconds(best) else best

    def _is_worth_a_try(self, lanes: int) -> bool:
        """Whether a wrong prior could be the reason why twice as many lanes do not seem to help."""
        if self._is_contradictable():
            return False
        doubtful = EpochCost(fixed=PRIOR_DOUBT * self._prior.fixed, per_lane=self._prior.per_lane)
        return doubtful.seconds(lanes) * (1 + MARGIN) < doubtful.seconds(lanes // 2)

    def _smallest_good(self, numbers: Iterable[int], seconds_of: Callable[[int], float]) -> int:
        seconds = {lanes: seconds_of(lanes) for lanes in numbers}
        enough = (1 + MARGIN) * min(seconds.values())
        return min(lanes for lanes in seconds if seconds[lanes] <= enough)

    def _fit(self) -> EpochCost:
        """The curve with the smallest squares of relative errors, of the readings and of the scaled prior."""
        readings = self.readings
        if not readings:
            return self._prior
        logs = [math.log(seconds / self._prior.seconds(lanes)) for lanes, seconds in readings.items()]
        prior = self._prior.times(math.exp(statistics.fmean(logs)))
        # Each row is weight * (fixed / lanes + per_lane) / seconds, which should be the weight.
        rows = [(1.0, lanes, seconds) for lanes, seconds in readings.items()]
        rows += [(PRIOR_WEIGHT, lanes, prior.seconds(lanes)) for lanes in (1, _MOST_LANES)]
        a = [(weight / seconds / lanes, weight / seconds, weight) for weight, lanes, seconds in rows]
        ff, fp, pp = (sum(row[i] * row[j] for row in a) for i, j in ((0, 0), (0, 1), (1, 1)))
        f1, p1 = (sum(row[i] * row[2] for row in a) for i in (0, 1))
        determinant = ff * pp - fp * fp
        fixed, per_lane = (f1 * pp - p1 * fp) / determinant, (p1 * ff - f1 * fp) / determinant
        if fixed < 0:
            fixed, per_lane = 0.0, p1 / pp
        elif per_lane < 0:
            fixed, per_lane = f1 / ff, 0.0
        return EpochCost(fixed=fixed, per_lane=per_lane)


def numbers_up_to(limit: int) -> list[int]:
    """1, 2, 4 ... up to the limit, which is at least 1."""
    return [1 << exponent for exponent in range(limit.bit_length())]


def _agree(one: float, other: float) -> bool:
    return max(one, other) <= NOISE_RATIO * min(one, other)
