"""The trials of a study that a sampler sees, as the database has them at the moment of the draw.

A sampler sees the current trials of the study's points: counted ones (COMPLETE and PRUNED), RUNNING ones, and WAITING
ones that inherited their parameters from an earlier attempt. It does not see failed attempts, because their points are
trained again; trials that other programs have added or ended; or WAITING trials without parameters, which carry no
information. Of a point that goes on with more epochs it sees the earlier trial until the new one has ended.

Values are losses: samplers minimise whatever the direction of the metric.
"""

from __future__ import annotations

from collections.abc import Collection
from functools import lru_cache
from typing import Any

from optuna.distributions import BaseDistribution
from optuna.trial import FrozenTrial
from sqlalchemy import Connection, Row, text

from hpsearch.store.connection.database import Database
from hpsearch.store.rows.distributions import parse_stored_distribution
from hpsearch.store.rows.frozen_trial import frozen_trial
from hpsearch.store.rows.parameter_values import external_value
from hpsearch.store.rows.trial_state import TRIAL_RESULTS, loss_sql

_LIST = text(f"""
    SELECT t.trial_id, t.number, t.state, t.datetime_start, t.datetime_complete, {loss_sql("t.value")} AS value
    FROM {TRIAL_RESULTS} t
    WHERE t.study_id = :study AND (CAST(:only AS int[]) IS NULL OR t.current_trial_id = ANY(:only)) AND (
        t.state = 'RUNNING'
        OR (t.state = 'WAITING' AND t.attempt > 1)
        OR (t.is_counted AND t.state = 'COMPLETE' AND t.value IS NOT NULL)
        OR (t.is_counted AND t.state = 'PRUNED'))
    ORDER BY t.number
""")

# Only the last value of the curve is read: samplers rank pruned trials by their last step and the value at that step.
_DETAILS = text(f"""
    SELECT r.trial_id,
        (SELECT json_agg(json_build_array(q.param_name, q.param_value, q.distribution_json) ORDER BY q.param_id)
            FROM trial_params q WHERE q.trial_id = r.trial_id) AS parameters,
        (SELECT json_object_agg(a.key, a.value_json) FROM trial_system_attributes a WHERE a.trial_id = r.trial_id)
            AS notes,
        (SELECT json_build_array(json_build_array(i.step, {loss_sql("i.intermediate_value")}))
            FROM trial_intermediate_values i WHERE i.trial_id = r.trial_id ORDER BY i.step DESC LIMIT 1) AS last_values
    FROM unnest(CAST(:trial_ids AS int[])) AS r(trial_id)
""")
_PAGE = 500  # trials per statement: a worker that joins a large study gets each answer within the answer limit


class History:
    """Reads one study's trials for sampling. Not thread-safe.

    The parameters of ended trials are read once. The list of trials and their states is read each time: an ended trial
    may be RUNNING again after a crash of a server that had not yet written its commit to disk.
    """

    def __init__(self, study_id: int) -> None:
        self._study_id = study_id
        self._finished: dict[int, FrozenTrial] = {}

    def read(self, database: Database, *, only: Collection[int] | None = None) -> list[FrozenTrial]:
        """Return the current trials, by number. Two statements; more to catch up.

        Args:
            only: the ids of the trials to read; None reads all trials.
        """
        ids = None if only is None else list(only)
        return database.transaction(lambda connection: self._read(connection, ids))

    def _read(self, connection: Connection, only: list[int] | None) -> list[FrozenTrial]:
        rows = connection.execute(_LIST, {"study": self._study_id, "only": only}).all()
        known = {row.trial_id: self._finished[row.trial_id] for row in rows if self._is_known(row)}
        new_ids = [row.trial_id for row in rows if row.trial_id not in known]
        pages = (new_ids[start : start + _PAGE] for start in range(0, len(new_ids), _PAGE))
        details = {
            row.trial_id: row
            for ids in pages
            for row in connection.execute(_DETAILS, {"trial_ids": ids, "study": self._study_id})
        }
        trials = [known.get(row.trial_id) or _trial(row, details[row.trial_id]) for row in rows]
        if only is None:
            self._finished = {trial._trial_id: trial for trial in trials if trial.state.is_finished()}
        return trials

    def _is_known(self, row: Row[Any]) -> bool:
        known, now = self._finished.get(row.trial_id), (row.state, row.value, row.datetime_complete)
        return known is not None and (known.state.name, known.value, known.datetime_complete) == now


def _trial(row: Row[Any], details: Row[Any]) -> FrozenTrial:
    what, stored = f"trial {row.number}", details.parameters or ()
    distributions = {name: _distribution(text) for name, _, text in stored}
    parameters = {
        name: external_value(distributions[name].to_external_repr, float(value), what) for name, value, _ in stored
    }
    return frozen_trial(
        row, curve=details.last_values, notes=details.notes, distributions=distributions, parameters=parameters
    )


@lru_cache(maxsize=1000)  # all trials of a study have the same ones
def _distribution(text: str) -> BaseDistribution:
    return parse_stored_distribution(text, "a parameter of a trial")
