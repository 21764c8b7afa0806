"""Parameters that a sampler chooses when a point is claimed: random search, Sobol points, TPE, GP, CMA-ES.

The study is read in one transaction, and the drawn parameters are written in another, so that no lock is held while a
sampler computes. Between the two, Optuna's own code asks the sampler on a copy in memory (store/rows/history.py says
which trials it has).
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from functools import cached_property

import optuna
from optuna.distributions import BaseDistribution
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

    def draw(self, ledger: Ledger, claims: Sequence[Claim]) -> Mapping[int, Mapping[str, ParameterValue]]:
        """Let the sampler choose the parameters of these points, except those that an earlier attempt has drawn.

        Args:
            ledger: in the name of the worker that has claimed the points.
            claims: only one for a sampler that learns: it must know what was drawn before.
        Returns:
            All parameters of each trial, by its id and by name. Another worker has taken the others over.
        Raises:
            StorageError: the database is away. Repeating the draw is safe.
        """
        if self.learns and len(claims) > 1:
            raise ValueError("a sampler that learns draws one point at a time")
        only = None if self.learns else [claim.trial_id for claim in claims]
        trials = {trial._trial_id: trial for trial in self._history.read(ledger.database, only=only)}
        drawn: list[FrozenTrial] = []
        notes: list[SystemAttr] = []
        for claim in claims:
            if claim.trial_id in trials:
                seen = list(trials.values()) if self.learns else [trials[claim.trial_id]]
                storage = self._ask_sampler(seen, claim.trial_id, number=claim.number, point=claim.point)
                drawn.append(storage.get_trial(claim.trial_id))
                notes += storage.drain_system_attrs()
        stored = store_parameters(ledger, drawn, notes)
        return {trial._trial_id: trial.params for trial in drawn if trial._trial_id in stored}

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


def store_parameters(ledger: Ledger, trials: Sequence[FrozenTrial], notes: Sequence[SystemAttr]) -> Collection[int]:
    """Write the drawn parameters of trials in one transaction.

    Args:
        notes: system attributes that the sampler needs to draw later trials.
    Returns:
        The ids of the trials whose lease still holds. Nothing was written of the others.
    """

    def work(connection: Connection) -> set[int]:
        ids = [trial._trial_id for trial in trials]
        held = set(connection.execute(_LOCK, {"trials": ids, "owner": ledger.owner}).scalars())
        stored = {tuple(row) for row in connection.execute(_STORED, {"trials": list(held)})}  # by an earlier attempt
        drawn: list[tuple[int, dict[str, ParameterValue]]] = []
        distributions: dict[str, BaseDistribution] = {}
        for trial in trials:
            trial_id = trial._trial_id
            new = [name for name in trial.params if trial_id in held and (trial_id, name) not in stored]
            drawn.append((trial_id, {name: trial.params[name] for name in new}))
            distributions |= {name: trial.distributions[name] for name in new}
        insert_parameters(connection, distributions, drawn)
        for trial_id, key, value in notes:
            if trial_id in held:
                connection.execute(_NOTE, {"trial": trial_id, "key": key, "value": json.dumps(value)})
        return held

    return ledger.database.transaction(work) if trials else set()


# A point that changes hands gets a new trial, which waits for this lock on the point. This worker's own renewals of its
# leases do not: they lock the same points in another order. A repeated call waits for the first one, at the trials.
_LOCK = text("""
    SELECT p.trial_id FROM hpsearch_points p JOIN trials t USING (trial_id)
    WHERE p.trial_id = ANY(:trials) AND p.owner = :owner AND t.state = 'RUNNING'
    ORDER BY p.point FOR KEY SHARE OF p FOR NO KEY UPDATE OF t
""")

_STORED = text("SELECT trial_id, param_name FROM trial_params WHERE trial_id = ANY(:trials)")

_NOTE = text("""
    INSERT INTO trial_system_attributes (trial_id, key, value_json) VALUES (:trial, :key, :value)
    ON CONFLICT (trial_id, key) DO UPDATE SET value_json = excluded.value_json
""")
