"""Parameters that a sampler chooses when a point is claimed: random search, TPE."""

from __future__ import annotations

from collections.abc import Mapping

import optuna

from hpsearch.search.samplers import build_sampler
from hpsearch.service.database import Database
from hpsearch.service.ledger import Claim
from hpsearch.service.registry import StoredStudy
from hpsearch.space import ParameterValue


def draw_parameters(database: Database, study: StoredStudy, claim: Claim) -> Mapping[str, ParameterValue]:
    """Let the study's sampler choose this point's parameters; those that an earlier attempt has drawn stay.

    Raises:
        StorageError: the database is away.
        optuna.exceptions.UpdateFinishedTrialError: the trial has been taken from this worker.
    """
    return database.with_optuna(lambda: _draw(database, study, claim))


def _draw(database: Database, study: StoredStudy, claim: Claim) -> Mapping[str, ParameterValue]:
    loaded = database.load_study(study.name)
    definition = study.definition
    loaded.sampler = build_sampler(definition.search.strategy, study_seed=definition.seed, trial_number=claim.number)
    loaded.get_trials(deepcopy=False)  # Optuna's cache refuses to write to a trial that it has not read
    trial = optuna.Trial(loaded, claim.trial_id)
    for dimension in definition.search.dimensions:
        dimension.suggest(trial)
    return trial.params
