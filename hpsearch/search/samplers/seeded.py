"""The base class of hpsearch's samplers, which have no state.

A suggestion is a function of the study's trials, the seed and the trial's number. One object can therefore serve any
number of threads, any number of processes can have their own object, and a resumed study continues as if it had not
been interrupted.
"""

from __future__ import annotations

import zlib
from abc import abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar, Self

from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler, RandomSampler
from optuna.search_space import intersection_search_space
from optuna.study import Study
from optuna.trial import FrozenTrial

from hpsearch.search.samplers.search_space import DrawRequest
from hpsearch.search.samplers.seeds import name_seed, trial_seed


class SeededSampler(BaseSampler):
    """Draws the parameters of the search space jointly, and other parameters at random.

    Args:
        seed: >= 0, the same for all workers of a study; None: a seed derived from the study's name.
        search_space: the parameters that are drawn jointly; None: those that all finished trials of the study have
            (so its first trials are drawn at random).
    Raises:
        ValueError: on use with a multi-objective study, for samplers that compare single values.
    """

    is_for_one_objective: ClassVar[bool] = True

    def __init__(self, *, seed: int | None = None, search_space: Mapping[str, BaseDistribution] | None = None) -> None:
        self._seed = seed
        self._search_space = search_space

    @classmethod
    def for_trial(cls, request: DrawRequest) -> Self:
        """The sampler that draws the parameters of one trial."""
        return cls(seed=request.study_seed, search_space=request.space.always if request.space else None)

    def study_seed(self, study: Study) -> int:
        return name_seed(study.study_name) if self._seed is None else self._seed

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        self._check_objectives(study)
        space = self._search_space
        if space is None:
            space = intersection_search_space(study.get_trials(deepcopy=False), include_pruned=True)
        return {name: space[name] for name in sorted(space) if not space[name].single() and self._is_joint(space[name])}

    def _is_joint(self, distribution: BaseDistribution) -> bool:
        """Whether this sampler can draw a parameter of this distribution jointly with others."""
        return True

    @abstractmethod
    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]: ...

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        self._check_objectives(study)
        seed = trial_seed(self.study_seed(study), trial.number, zlib.crc32(param_name.encode()))
        return RandomSampler(seed=seed).sample_independent(study, trial, param_name, param_distribution)

    def _check_objectives(self, study: Study) -> None:
        if self.is_for_one_objective:
            self._raise_error_if_multi_objective(study)
