"""Quasi-random search: scrambled Sobol points, which fill a space more evenly than random ones.

Source: Bergstra and Bengio, "Random search for hyper-parameter optimization", JMLR 13 (2012), section 5.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Any, final

import numpy as np
from optuna.distributions import BaseDistribution
from optuna.study import Study
from optuna.trial import FrozenTrial
from scipy.stats import qmc

from hpsearch.search.samplers.seeded import SeededSampler
from hpsearch.search.samplers.unit_cube import UnitCube

# SciPy reads its table of direction numbers at the first use, into a global that several threads must not fill at once.
_TABLE_LOCK = threading.Lock()


@final
class SobolSampler(SeededSampler):
    """A scrambled Sobol sequence as an Optuna sampler: trial number n gets the sequence's point n.

        study = optuna.create_study(sampler=SobolSampler(seed=1, search_space={"x": FloatDistribution(0, 1)}))
        study.optimize(lambda trial: trial.suggest_float("x", 0, 1) ** 2, n_trials=64)

    Optuna's own QMCSampler counts its points in an attribute of the study that parallel workers read and write without
    a lock, and may give one point to two of them. Here no two trials share a point, and after a restart the sequence
    goes on. It is most even after a power of two of trials. Categorical parameters are drawn jointly with the others,
    and conditional ones if `search_space` names them: a trial without them leaves its coordinates unused.

    Args:
        seed: >= 0, of the scrambling.
        search_space: see SeededSampler. With None the study's first trials are random, and the sequence begins with
            the first trial that starts after another has finished.
        index: the sequence's point for the one trial that this object serves, instead of the trial's number.
    """

    is_for_one_objective = False  # it looks at no values

    def __init__(
        self,
        *,
        seed: int | None = None,
        search_space: Mapping[str, BaseDistribution] | None = None,
        index: int | None = None,
    ) -> None:
        super().__init__(seed=seed, search_space=search_space)
        self._index = index

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        if not search_space:
            return {}
        cube = UnitCube(search_space)
        with _TABLE_LOCK:
            # `seed` is called `rng` from SciPy 1.15 on, which still takes the old name.
            sequence = qmc.Sobol(cube.num_dimensions, scramble=True, seed=np.random.default_rng(self.study_seed(study)))
        index = trial.number if self._index is None else self._index
        if index > 0:  # SciPy fails at 0
            sequence.fast_forward(index)
        return cube.values(sequence.random(1)[0])
