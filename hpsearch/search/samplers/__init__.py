"""Optuna samplers, which draw the next point for strategies whose points are not listed.

`build_sampler` takes a strategy's name and returns a sampler for one trial. hpsearch's own samplers also work with a
plain Optuna study:

    from hpsearch.search.samplers import CmaSampler

    study = optuna.create_study(sampler=CmaSampler(seed=1))
    study.optimize(objective, n_trials=100, n_jobs=4)
"""

from hpsearch.search.samplers.build import build_sampler, learns
from hpsearch.search.samplers.cma import CmaSampler
from hpsearch.search.samplers.coarse_to_fine import CoarseToFineSampler
from hpsearch.search.samplers.gaussian_process import PrunedAwareGPSampler
from hpsearch.search.samplers.search_space import SearchSpace, explore
from hpsearch.search.samplers.seeded import SeededSampler
from hpsearch.search.samplers.seeds import trial_seed
from hpsearch.search.samplers.sobol import SobolSampler

__all__ = [
    "CmaSampler",
    "CoarseToFineSampler",
    "PrunedAwareGPSampler",
    "SeededSampler",
    "SobolSampler",
    "SearchSpace",
    "build_sampler",
    "explore",
    "learns",
    "trial_seed",
]
