"""CMA-ES: candidates from a normal distribution whose mean and covariance adapt to the best candidates so far.

Optuna's own CmaEsSampler stores its state in the database as a pickle, and loads it. This sampler has no state: each
trial records the generation for which it was drawn, and each call replays all generations from the first one.

Source: Hansen, "The CMA Evolution Strategy: A Tutorial", arXiv:1604.00772; the package `cmaes` computes its formulas.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any, Final, final

import numpy as np
from optuna.distributions import BaseDistribution, CategoricalDistribution, distribution_to_json
from optuna.study import Study, StudyDirection
from optuna.trial import FrozenTrial, TrialState

from hpsearch.search.samplers.evolution import Candidate, Evolution, default_population
from hpsearch.search.samplers.seeded import SeededSampler
from hpsearch.search.samplers.seeds import trial_seed
from hpsearch.search.samplers.unit_cube import UnitCube

NOTE_ATTRIBUTE: Final = "hpsearch:draw:cma"  # a trial's system attribute: {space, number, generation, ...}


@final
class CmaSampler(SeededSampler):
    """CMA-ES as an Optuna sampler, for one objective, without pickles and for any number of workers.

        space = {"lr": FloatDistribution(1e-4, 1, log=True), "units": IntDistribution(10, 500, log=True)}
        study = optuna.create_study(sampler=CmaSampler(seed=1, search_space=space))
        study.optimize(objective, n_trials=200)

    A generation ends when its first `population_size` trials, by number, have finished. The order in which they finish
    does not matter, because the trials that train longest are often the best. Trials that are drawn in the meantime are
    further candidates of the same generation; they replace failed trials and are otherwise not used. Many more workers
    than `population_size` therefore gain little. A trial that never ends delays its generation only until twice
    `population_size` trials have finished.

    A pruned trial counts with its last value, or, if it has none, as the worst of its generation. Categorical and
    conditional parameters are drawn at random. When the distribution has shrunk to a point, the search restarts around
    a random place.

    Args:
        seed, search_space: see SeededSampler.
        population_size: >= 4; None: 4 + 3 ln(number of parameters), rounded down. Use a larger one for noisy
            objectives, and for more workers.
    """

    def __init__(
        self,
        *,
        seed: int | None = None,
        search_space: Mapping[str, BaseDistribution] | None = None,
        population_size: int | None = None,
    ) -> None:
        if population_size is not None and population_size < 4:
            raise ValueError(f"population_size must be >= 4, got {population_size}")
        super().__init__(seed=seed, search_space=search_space)
        self._population_size = population_size

    def _is_joint(self, distribution: BaseDistribution) -> bool:
        return not isinstance(distribution, CategoricalDistribution)

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        self._check_objectives(study)
        if not search_space:
            return {}
        cube = UnitCube(search_space)
        population_size = self._population_size or default_population(cube.num_dimensions)
        space = _fingerprint(search_space, population_size)
        note = trial.system_attrs.get(NOTE_ATTRIBUTE)
        if note is not None and note["space"] == space:
            return dict(note["params"])  # drawn before, by a worker that was interrupted

        seed = self.study_seed(study)
        evolution = Evolution(num_dimensions=cube.num_dimensions, population_size=population_size, seed=seed)
        evolution.replay(_candidates(study, cube, space))
        params = cube.values(evolution.ask(trial_seed(seed, trial.number)))
        note = {
            "space": space,
            "number": trial.number,
            "generation": evolution.generation,
            "parents": evolution.parents,
            "params": params,
        }
        study._storage.set_trial_system_attr(trial._trial_id, NOTE_ATTRIBUTE, note)
        return params


def _fingerprint(space: Mapping[str, BaseDistribution], population_size: int) -> str:
    """A fingerprint that distinguishes candidates of this search space from candidates of an earlier one."""
    lines = [f"{name} {distribution_to_json(space[name])}" for name in sorted(space)]
    return hashlib.sha256("\n".join([str(population_size), *lines]).encode()).hexdigest()[:16]


def _candidates(study: Study, cube: UnitCube, space: str) -> list[Candidate]:
    """All candidates in the order of their numbers, except those that failed or got other parameters.

    A failed trial that is repeated with its attributes, as by hpsearch's workers and Optuna's
    RetryHeartbeatStaleTrialCallback, keeps its number.
    """
    sign = -1 if study.direction is StudyDirection.MAXIMIZE else 1
    candidates = []
    for trial in study.get_trials(deepcopy=False):
        note = trial.system_attrs.get(NOTE_ATTRIBUTE)
        if note is None or note["space"] != space or trial.state is TrialState.FAIL:
            continue
        is_finished = trial.state.is_finished()
        if is_finished and any(trial.params.get(name) != value for name, value in note["params"].items()):
            continue  # a user fixed them (`enqueue_trial`), or the objective did not suggest all of them
        candidates.append(
            Candidate(
                number=note["number"],
                generation=note["generation"],
                parents=tuple(note["parents"]),
                place=cube.coordinates(note["params"]),
                is_finished=is_finished,
                loss=_loss(trial, sign) if is_finished else None,
            )
        )
    return sorted(candidates, key=lambda candidate: candidate.number)


def _loss(trial: FrozenTrial, sign: int) -> float | None:
    value = trial.value
    return None if value is None or not np.isfinite(value) else sign * value
