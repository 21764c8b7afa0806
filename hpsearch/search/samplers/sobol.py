"""Quasi-random search: scrambled Sobol points, which fill a space more evenly than random ones.

Source: Bergstra and Bengio, "Random search for hyper-parameter optimization", JMLR 13 (2012), section 5.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Any, Self, final

import numpy as np
from optuna.distributions import BaseDistribution
from optuna.study import Study
from optuna.trial import FrozenTrial

from hpsearch.search.samplers.search_space import DrawRequest
from hpsearch.search.samplers.seeded import SeededSampler
from hpsearch.search.samplers.unit_cube import UnitCube

# SciPy loads its table of direction numbers at the first use, into a global that threads must not fill concurrently.
_TABLE_LOCK = threading.Lock()


@final
class SobolSampler(SeededSampler):
    """A scrambled Sobol sequence as an Optuna sampler: trial number n gets point n of the sequence.

        study = optuna.create_study(sampler=SobolSampler(seed=1, search_space={"x": FloatDistribution(0, 1)}))
        study.optimize(lambda trial: trial.suggest_float("x", 0, 1) ** 2, n_trials=64)

    Optuna's own QMCSampler counts its points in an attribute of the study that parallel workers read and write without
    a lock, so two workers may get the same point. Here no two trials share a point, and the sequence continues after a
    restart. The points are most even if the number of trials is a power of two. Categorical parameters are drawn
    jointly with the others, and so are conditional ones if `search_space` names them: a trial without them leaves
    their coordinates unused.

    Args:
        seed: >= 0, seed of the scrambling.
        search_space: see SeededSampler. With None the study's first trials are random, and the sequence begins with
            the first trial that starts after another has finished.
        index: the index in the sequence for the one trial that this object serves, instead of the trial's number.
    """

    is_for_one_objective = False  # it uses no values

    def __init__(
        self,
        *,
        seed: int | None = None,
        search_space: Mapping[str, BaseDistribution] | None = None,
        index: int | None = None,
    ) -> None:
        super().__init__(seed=seed, search_space=search_space)
        self._index = index

    @classmethod
    def for_trial(cls, request: DrawRequest) -> Self:
        # Conditional parameters have coordinates as well; a trial without them leaves theirs unused.
        space = request.space.all if request.space else None
        return cls(seed=request.study_seed, search_space=space, index=request.point)

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        if not search_space:
            return {}
        from scipy.stats import qmc  # takes as long to load as half of torch

        cube = UnitCube(search_space)
        with _TABLE_LOCK:
            # SciPy 1.15 renamed `seed` to `rng`, but still accepts the old name.
            sequence = qmc.Sobol(cube.num_dimensions, scramble=True, seed=np.random.default_rng(self.study_seed(study)))
        index = trial.number if self._index is None else self._index
        if index > 0:  # fast_forward(0) fails in SciPy
            sequence.fast_forward(index)
        return cube.values(sequence.random(1)[0])
