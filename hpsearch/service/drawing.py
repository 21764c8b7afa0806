"""Parameters that a sampler chooses when a point is claimed: random search, Sobol points, TPE, GP, CMA-ES."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property

import optuna

from hpsearch.search.samplers import SearchSpace, build_sampler, explore
from hpsearch.service.database import Database
from hpsearch.service.ledger import Claim
from hpsearch.service.registry import StoredStudy
from hpsearch.space import ParameterValue


class Drawing:
    """One worker's access to a study's sampler. Not safe for threads."""

    def __init__(self, study: StoredStudy) -> None:
        self._study = study
        self._loaded: optuna.Study | None = None  # with Optuna's cache, which reads finished trials once

    @cached_property
    def _space(self) -> SearchSpace:
        return explore(self._study.definition.draw)

    def draw(self, database: Database, claim: Claim) -> Mapping[str, ParameterValue]:
        """Let the sampler choose this point's parameters; those that an earlier attempt has drawn stay.

        Raises:
            StorageError: the database is away.
            optuna.exceptions.UpdateFinishedTrialError: the trial has been taken from this worker.
        """
        return database.with_optuna(lambda: self._draw(database, claim))

    def _draw(self, database: Database, claim: Claim) -> Mapping[str, ParameterValue]:
        study, self._loaded = self._loaded or database.load_study(self._study.name), None  # kept if all goes well
        definition = self._study.definition
        study.sampler = build_sampler(
            definition.search.strategy,
            study_seed=definition.seed,
            trial_number=claim.number,
            point=claim.point,
            space=self._space,
        )
        study.get_trials(deepcopy=False)  # Optuna's cache refuses to write to a trial that it has not read
        trial = optuna.Trial(study, claim.trial_id)
        definition.draw(trial)
        self._loaded = study
        return trial.params
