"""Bayesian optimisation with a Gaussian process: Optuna's sampler, extended to learn from pruned trials."""

from __future__ import annotations

import copy
import math
from collections.abc import Container, Mapping, Sequence
from typing import Any, final

from optuna.distributions import BaseDistribution
from optuna.samplers import GPSampler
from optuna.study import Study, StudyDirection
from optuna.trial import FrozenTrial, TrialState

from hpsearch.search.samplers.seeded import SeededSampler
from hpsearch.search.samplers.seeds import trial_seed

_FEWEST_TO_CLIP = 8


@final
class PrunedAwareGPSampler(SeededSampler):
    """Optuna's GPSampler, which uses complete trials only, extended to use pruned trials as well.

        study = optuna.create_study(sampler=PrunedAwareGPSampler(seed=1))
        study.optimize(objective, n_trials=100)

    A pruned trial counts with its last value. A pruned trial without a value (it diverged) counts with the worst known
    value: a sampler that ignores these trials proposes similar ones repeatedly. Running trials count as well: Optuna
    averages the expected improvement over their possible values. For studies with one objective. A suggestion takes
    half a second with 100 trials and seconds with 500.

    Unlike Optuna's, an object keeps no Gaussian process between trials, so any number of threads can share it.

    Args:
        seed, search_space: see SeededSampler. Parameters that are not in the search space are drawn at random.
        num_startup_trials: number of counted trials before the Gaussian process is used; until then all parameters are
            drawn at random.
    """

    def __init__(
        self,
        *,
        seed: int | None = None,
        search_space: Mapping[str, BaseDistribution] | None = None,
        num_startup_trials: int = 10,
    ) -> None:
        super().__init__(seed=seed, search_space=search_space)
        self._num_startup_trials = num_startup_trials

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        self._check_objectives(study)
        seed = trial_seed(self.study_seed(study), trial.number)
        sampler = GPSampler(seed=seed, n_startup_trials=self._num_startup_trials)
        return sampler.sample_relative(_PrunedCount(study, search_space), trial, search_space)


class _PrunedCount(Study):
    """A study that shows pruned trials as complete, for a sampler that uses complete trials only."""

    def __init__(self, study: Study, search_space: Mapping[str, BaseDistribution]) -> None:
        super().__init__(study_name=study.study_name, storage=study._storage)
        self._shown = study
        self._names = search_space.keys()

    def _get_trials(
        self, deepcopy: bool = True, states: Container[TrialState] | None = None, use_cache: bool = False
    ) -> list[FrozenTrial]:
        trials = self._shown.get_trials(deepcopy=False)
        values = [trial.value for trial in trials if _is_finite(trial)]
        is_minimized = self._shown.direction is StudyDirection.MINIMIZE
        worst = (max if is_minimized else min)((value for value in values if value is not None), default=0.0)
        worst = min(worst, _highest_useful(values)) if is_minimized else worst
        shown = (
            _as_complete(trial, worst) if trial.state is TrialState.PRUNED or _is_above(trial, worst) else trial
            for trial in trials
            if not trial.state.is_finished() or self._names <= trial.params.keys()
        )
        return [trial for trial in shown if states is None or trial.state in states]


def _as_complete(trial: FrozenTrial, worst: float) -> FrozenTrial:
    shown = copy.copy(trial)
    shown.state = TrialState.COMPLETE
    shown.values = [worst if not _is_finite(trial) or _is_above(trial, worst) else trial.value]
    return shown


def _highest_useful(values: Sequence[float | None]) -> float:
    """Losses above this are shown as this: nearly diverged trials would make all others look equal to the process.

    Losses up to 1, such as error rates, are shown as they are.
    """
    known = sorted(value for value in values if value is not None)
    if len(known) < _FEWEST_TO_CLIP:
        return math.inf
    low, middle, high = (known[len(known) * part // 4] for part in (1, 2, 3))
    return max(1.0, middle + 5 * (high - low))


def _is_above(trial: FrozenTrial, most: float) -> bool:
    return _is_finite(trial) and trial.values is not None and trial.values[0] > most


def _is_finite(trial: FrozenTrial) -> bool:
    """Whether a finished trial has a finite value."""
    return trial.state.is_finished() and trial.values is not None and math.isfinite(trial.values[0])
