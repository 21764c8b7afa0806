"""The coarse-to-fine search as an Optuna sampler, for any objective.

    space = {"lr": LogGrid(log10=(-1, -4)), "activation": ["tanh", "relu"]}
    sampler = CoarseToFineSampler(space, num_validation=10_000)
    study = optuna.create_study(sampler=sampler)
    study.optimize(objective, n_trials=200)  # ends earlier if nothing differs significantly any more

The objective suggests parameters as usual; `trial.suggest_float("lr", 1e-6, 10, log=True)` returns the value of the
trial's point, and the bounds limit the growth of the grid. hpsearch's own workers do not use this class: they use
`narrowing` with paired tests, and the database gives out each point of a round exactly once.
"""

from __future__ import annotations

import contextlib
import copy
import math
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final, final

from optuna.distributions import BaseDistribution, CategoricalDistribution
from optuna.samplers import BaseSampler
from optuna.study import Study, StudyDirection
from optuna.trial import FrozenTrial, TrialState

from hpsearch.search.narrowing.axes import DEFAULT_FINEST
from hpsearch.search.narrowing.closed_round import Finished, KnownPoint, PointKey, Round, rounded_key
from hpsearch.search.narrowing.ladder import Narrowing
from hpsearch.search.proportions import proportions_differ
from hpsearch.study.space import Choice, Dimension, LogGrid, ParameterValue, Point, Range

COARSE_POINT_ATTRIBUTE: Final = "coarse_to_fine:point"  # system attributes of a trial
ROUND_ATTRIBUTE: Final = "coarse_to_fine:round"
_MAX_POINTS: Final = 100_000

Shape = LogGrid | Range | Choice | Sequence[ParameterValue]


@dataclass(frozen=True, kw_only=True)
class _Plan:
    """The state of a study: its current round, and the points of that round that no trial has finished.

    Args:
        open: empty if the search is over.
        best: the best point; empty while the search goes on.
    """

    round: int
    open: tuple[dict[str, ParameterValue], ...]
    reason: str
    best: Point


@final
class CoarseToFineSampler(BaseSampler):
    """Gives each trial the next point of the round; when all points of a round are finished, the next round begins.

    The sampler reads its whole state from the trials, so a study in a database can be continued in another process. A
    point counts with the first of its trials that finishes: COMPLETE with its value, PRUNED and FAIL as worse than all
    others.

    If all open points of the round are running, the next trial repeats the one whose latest trial was started first,
    since its worker may be dead. Up to one trial per worker and round is therefore repeated. Processes that ask at the
    same moment may also get the same point; threads that share the sampler do not. When the search is over,
    `study.optimize` is stopped; further calls of `study.ask` get the best point again.

    Args:
        search_space: per parameter a log-spaced grid, a range, or a list of values.
        num_validation: number of validation images, if the objective's value is an error rate. Two trials differ
            significantly by a two-sided test of two proportions at 5 %. The test ignores that the images are the same,
            so it has less power than a paired test.
        is_significant: used instead of this test: whether two finished trials differ; symmetric. Without both, all
            trials with unequal values differ, and the search ends at the finest spacing.
        max_rounds: maximum number of rounds; 1 is the grid as written.
        whole_numbers: parameters whose log-spaced grid or range means whole numbers (`suggest_int`).
        reduce: removes the parameters that have no effect given the others.
        finest: smallest spacing after halving, in decades.
        seed: not used; accepted because other samplers have it.
    Raises:
        ValueError: the search space has a grid with fractions for whole numbers.
    """

    def __init__(
        self,
        search_space: Mapping[str, Shape],
        *,
        num_validation: int | None = None,
        is_significant: Callable[[FrozenTrial, FrozenTrial], bool] | None = None,
        max_rounds: int | None = None,
        whole_numbers: Sequence[str] = (),
        reduce: Callable[[Point], Point] = dict,
        finest: float = DEFAULT_FINEST,
        seed: int | None = None,
    ) -> None:
        self._dimensions = tuple(_dimension(name, shape, name in whole_numbers) for name, shape in search_space.items())
        self._num_validation = num_validation
        self._is_significant = is_significant
        self._max_rounds = max_rounds
        self._reduce = reduce
        self._finest = finest
        self._lock = threading.Lock()  # makes choosing and recording a point atomic among threads

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_lock"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _lock=threading.Lock())

    def before_trial(self, study: Study, trial: FrozenTrial) -> None:
        """Choose a point for the trial, and store it in the trial's system attributes."""
        _check_objectives(study)
        fixed = trial.system_attrs.get("fixed_params", {})
        if COARSE_POINT_ATTRIBUTE in trial.system_attrs or all(one.name in fixed for one in self._dimensions):
            return  # a repeated trial, or a point that the user has fixed
        with self._lock:
            trials = [one for one in _trials(study) if one.number != trial.number]
            plan = self._plan(study, trials)
            point = self._next_point(plan, trials)
            storage = study._storage
            storage.set_trial_system_attr(trial._trial_id, COARSE_POINT_ATTRIBUTE, point)
            storage.set_trial_system_attr(trial._trial_id, ROUND_ATTRIBUTE, [plan.round, plan.reason])

    def after_trial(self, study: Study, trial: FrozenTrial, state: TrialState, values: Sequence[float] | None) -> None:
        """Stop `study.optimize` if this was the last trial."""
        # Optuna writes the trial's state after this call.
        ended = copy.copy(trial)
        ended.state, ended.values = state, values
        trials = [ended if one.number == trial.number else one for one in _trials(study)]
        if not self._plan(study, trials).open:
            with contextlib.suppress(RuntimeError):  # raised outside study.optimize, where there is nothing to stop
                study.stop()

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        return {}

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        return {}

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """The value in the trial's point; for a parameter that has no effect in this point, its first listed value.

        Raises:
            ValueError: the search space does not have the parameter, or the value is outside the distribution.
        """
        _check_objectives(study)
        listed = self._narrowing({}).listed
        if param_name not in listed:
            raise ValueError(f"the search space has no parameter {param_name!r}, only {list(listed)}")
        # Read from the storage: Optuna's copy of the trial may be older than `before_trial`.
        point = study._storage.get_trial_system_attrs(trial._trial_id).get(COARSE_POINT_ATTRIBUTE, {})
        value = point.get(param_name, listed[param_name][0])
        if not _is_within(value, param_distribution):
            raise ValueError(
                f"{param_name} = {value!r} is outside the distribution of the objective: {param_distribution}"
            )
        return value

    def _plan(self, study: Study, trials: Sequence[FrozenTrial]) -> _Plan:
        """Replay all rounds up to the first that is not finished."""
        narrowing = self._narrowing(_distributions(trials))
        sign = -1.0 if study.direction is StudyDirection.MAXIMIZE else 1.0
        finished = self._first_finished(narrowing, trials)
        known: list[KnownPoint] = []
        step: Round | Finished = narrowing.first_round()
        rounds = 0
        while isinstance(step, Round):
            rounds += 1
            left = tuple(point for point in step.points if rounded_key(point) not in finished)
            if left:
                return _Plan(round=rounds, open=left, reason=step.reason, best={})
            for point in step.points:
                trial = finished[rounded_key(point)]
                value = trial.value if trial.state is TrialState.COMPLETE else None
                known.append(KnownPoint(point, None if value is None else sign * value, key=trial))
            if rounds == self._max_rounds:
                break
            step = narrowing.next_round(step.state, known, self._differ)
        best = min(known, key=lambda one: math.inf if one.value is None else one.value)
        reason = step.detail if isinstance(step, Finished) else f"all {rounds} rounds are finished"
        return _Plan(round=rounds, open=(), reason=reason, best=best.point)

    def _next_point(self, plan: _Plan, trials: Sequence[FrozenTrial]) -> Point:
        running = [
            rounded_key(one.system_attrs[COARSE_POINT_ATTRIBUTE])
            for one in trials
            if one.state is TrialState.RUNNING and COARSE_POINT_ATTRIBUTE in one.system_attrs
        ]
        free = [point for point in plan.open if rounded_key(point) not in running]
        if free or not plan.open:
            return free[0] if free else plan.best
        last_begun = {key: order for order, key in enumerate(running)}
        return min(plan.open, key=lambda point: last_begun[rounded_key(point)])

    def _first_finished(self, narrowing: Narrowing, trials: Sequence[FrozenTrial]) -> dict[PointKey, FrozenTrial]:
        """The trial of each point that finished first, so that a repetition that finishes later has no effect."""
        names = {dimension.name for dimension in self._dimensions}
        finished: dict[PointKey, FrozenTrial] = {}
        ended = [one for one in trials if one.state.is_finished()]
        for one in sorted(ended, key=lambda one: (one.datetime_complete or datetime.max, one.number)):
            values = {**one.system_attrs.get(COARSE_POINT_ATTRIBUTE, {})}
            values |= {name: value for name, value in one.params.items() if name in names}
            finished.setdefault(rounded_key(narrowing.reduced(values)), one)
        return finished

    def _differ(self, a: KnownPoint, b: KnownPoint) -> bool:
        assert isinstance(a.key, FrozenTrial)
        assert isinstance(b.key, FrozenTrial)
        if self._is_significant is not None:
            return self._is_significant(a.key, b.key)
        if self._num_validation is None:
            return a.value != b.value
        return proportions_differ(a.key.value or 0.0, b.key.value or 0.0, self._num_validation)

    def _narrowing(self, distributions: Mapping[str, BaseDistribution]) -> Narrowing:
        def is_admissible(point: Point) -> bool:
            return all(_is_within(point[name], one) for name, one in distributions.items() if name in point)

        return Narrowing(self._dimensions, reduce=self._reduce, is_admissible=is_admissible, finest=self._finest)


def _dimension(name: str, shape: Shape, is_integer: bool) -> Dimension:
    if not isinstance(shape, LogGrid | Range):
        return Dimension(name=name, values=shape.values if isinstance(shape, Choice) else tuple(shape))
    values = shape.listed(is_integer=is_integer, limit=_MAX_POINTS)
    return Dimension.of(shape, name=name, values=values, is_integer=is_integer)


def _check_objectives(study: Study) -> None:
    if study._is_multi_objective():
        raise ValueError("coarse-to-fine needs a single objective: the study has several objectives")


def _trials(study: Study) -> list[FrozenTrial]:
    # From the storage, not from the study: Hyperband shows a sampler only the trials of its own bracket.
    return study._storage.get_all_trials(study._study_id, deepcopy=False)


def _distributions(trials: Sequence[FrozenTrial]) -> dict[str, BaseDistribution]:
    """The distributions from which the objective suggests; the first one if they differ between trials."""
    found: dict[str, BaseDistribution] = {}
    for trial in trials:
        if trial.state.is_finished():
            for name, distribution in trial.distributions.items():
                found.setdefault(name, distribution)
    return found


def _is_within(value: Any, distribution: BaseDistribution) -> bool:
    if isinstance(distribution, CategoricalDistribution):
        return value in distribution.choices
    low, high = getattr(distribution, "low", -math.inf), getattr(distribution, "high", math.inf)
    return bool(low <= value <= high)
