"""Parameters that a sampler chooses when a point is claimed: random search, Sobol points, TPE, GP, CMA-ES.

The study is read in one transaction, and the drawn parameters are written in another, so that no lock is held while a
sampler computes. Between the two, Optuna's own code asks the sampler on a copy in memory (store/rows/history.py says
which trials it has).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import cached_property

import optuna
from optuna.trial import FrozenTrial, TrialState, create_trial
from sqlalchemy import Connection, text

from hpsearch.search.samplers import SearchSpace, build_sampler, explore, learns
from hpsearch.search.snapshot import StudySnapshot, SystemAttr
from hpsearch.store.claims.claim import Claim
from hpsearch.store.claims.ledger import Ledger
from hpsearch.store.rows.distributions import insert_parameters
from hpsearch.store.rows.history import History
from hpsearch.store.studies import StoredStudy
from hpsearch.study.space import ParameterValue


class Drawing:
    """One worker's access to a study's sampler. Not thread-safe."""

    def __init__(self, study: StoredStudy) -> None:
        self._study = study
        self._history = History(study.study_id)

    @cached_property
    def _space(self) -> SearchSpace:
        return explore(self._study.definition.draw)

    def draw(self, ledger: Ledger, claim: Claim) -> Mapping[str, ParameterValue] | None:
        """Let the sampler choose this point's parameters, except those that an earlier attempt has drawn.

        Args:
            ledger: in the name of the worker that has claimed the point.
        Returns:
            All parameters of the trial, by name; None: another worker has taken the trial over.
        Raises:
            StorageError: the database is away. Repeating the draw is safe.
        """
        trials = self._history.read(ledger.database, only=None if self.learns else claim.trial_id)
        if not any(trial._trial_id == claim.trial_id for trial in trials):
            return None
        storage = self._ask_sampler(trials, claim.trial_id, number=claim.number, point=claim.point)
        return store_parameters(ledger, storage.get_trial(claim.trial_id), storage.drain_system_attrs())

    @cached_property
    def learns(self) -> bool:
        """Whether parameters are drawn by a sampler that uses other trials."""
        definition = self._study.definition
        return definition.is_drawn and learns(definition.search.strategy)

    @cached_property
    def foresees_cohorts(self) -> bool:
        """Whether cohorts differ within the study and can be named before the parameters are drawn."""
        definition = self._study.definition
        if not definition.is_drawn or self.learns or definition.is_program:
            return False

        from hpsearch.worker.cohorts import decides_cohort  # loads torch

        return any(decides_cohort(dimension.name) for dimension in definition.search.dimensions)

    def foresee(self, number: int, point: int) -> Mapping[str, ParameterValue]:
        """Return the parameters that a waiting point will get from a sampler that does not learn."""
        blank = create_trial(state=TrialState.RUNNING)
        blank.number, blank._trial_id = number, number
        return self._ask_sampler([blank], number, number=number, point=point).get_trial(number).params

    def _ask_sampler(self, trials: Sequence[FrozenTrial], trial_id: int, *, number: int, point: int) -> StudySnapshot:
        """Return a copy of the study in memory in which this trial has its parameters."""
        storage = StudySnapshot(study_name=self._study.name, study_id=self._study.study_id)
        storage.replace_trials(trials)
        definition = self._study.definition
        sampler = build_sampler(
            definition.search.strategy,
            study_seed=definition.seed,
            trial_number=number,
            point=point,
            space=self._space,
        )
        study = optuna.Study(study_name=self._study.name, storage=storage, sampler=sampler)
        definition.draw(optuna.Trial(study, trial_id))
        return storage


def store_parameters(
    ledger: Ledger, trial: FrozenTrial, notes: Sequence[SystemAttr]
) -> Mapping[str, ParameterValue] | None:
    """Write the drawn parameters in one transaction. None: the lease on the trial is lost, and nothing was written.

    Args:
        notes: system attributes that the sampler needs to draw later trials.
    """
    values = {"trial": trial._trial_id, "owner": ledger.owner}

    def work(connection: Connection) -> bool:
        if connection.execute(_LOCK, values).one_or_none() is None:
            return False
        stored = set(connection.execute(_STORED, values).scalars())  # by an earlier attempt or run
        drawn = {name: value for name, value in trial.params.items() if name not in stored}
        insert_parameters(connection, trial.distributions, [(trial._trial_id, drawn)])
        for _, key, value in notes:
            connection.execute(_NOTE, {"trial": trial._trial_id, "key": key, "value": json.dumps(value)})
        return True

    return trial.params if ledger.database.transaction(work) else None


_LOCK = text("""
    SELECT 1 FROM hpsearch_points p JOIN trials t USING (trial_id)
    WHERE p.trial_id = :trial AND p.owner = :owner AND t.state = 'RUNNING' FOR UPDATE OF p
""")

_STORED = text("SELECT param_name FROM trial_params WHERE trial_id = :trial")

_NOTE = text("""
    INSERT INTO trial_system_attributes (trial_id, key, value_json) VALUES (:trial, :key, :value)
    ON CONFLICT (trial_id, key) DO UPDATE SET value_json = excluded.value_json
""")
