"""Reads all learning curves of a study in one statement, for pruners to compare a trial with.

Plain Optuna re-reads the whole study for every decision: nine statements or more per trial and epoch. `CurveReader`
uses one statement per worker and epoch, which returns only what may have changed; finished trials are read once.

Failed attempts are left out, unlike in plain Optuna: their points are trained again, and an interrupted point would
compete twice (successive halving counts a trial's rungs however the trial ended). Trials that other programs have
added, and values that other programs have written to our trials, are left out too.

Values are losses: pruners minimise whatever the direction of the metric.
"""

from __future__ import annotations

from optuna.trial import FrozenTrial
from sqlalchemy import text

from hpsearch.store.connection.database import Database
from hpsearch.store.rows.frozen_trial import frozen_trial
from hpsearch.store.rows.trial_state import POINT_RESULTS, TRIAL_RESULTS, loss_sql

_READ = text(f"""
    WITH page AS MATERIALIZED (
        SELECT f.trial_id FROM {POINT_RESULTS} f
        WHERE f.study_id = :study AND f.is_counted AND NOT f.trial_id = ANY(CAST(:known AS int[]))
        ORDER BY f.trial_id LIMIT :page)
    SELECT t.trial_id, t.number, t.state, t.datetime_start, t.datetime_complete, {loss_sql("t.value")} AS value,
        (SELECT json_agg(json_build_array(i.step, {loss_sql("i.intermediate_value")}) ORDER BY i.step)
            FROM trial_intermediate_values i WHERE i.trial_id = t.trial_id) AS curve,
        (SELECT json_object_agg(a.key, a.value_json) FROM trial_system_attributes a
            WHERE a.trial_id = t.trial_id AND a.key LIKE 'completed\\_rung\\_%') AS rungs,
        (SELECT count(*) FROM {POINT_RESULTS} k
            WHERE k.study_id = :study AND k.is_counted AND k.trial_id = ANY(CAST(:known AS int[]))) AS num_known
    FROM {TRIAL_RESULTS} t
    WHERE t.study_id = :study AND (NOT t.is_counted OR t.trial_id IN (SELECT trial_id FROM page))
      AND (t.is_counted OR t.state = 'RUNNING')
""")
_PAGE = 500  # finished trials per statement: a worker that joins a large study gets each answer in time


class CurveReader:
    """Reads one study's trials for pruning: state, value, curve and completed rungs, but no parameters."""

    def __init__(self, database: Database, study_id: int) -> None:
        self._database = database
        self._study_id = study_id
        self._finished: dict[int, FrozenTrial] = {}

    def read(self) -> list[FrozenTrial]:
        """Return the current trials that have started and not failed, by number. One statement; more to catch up."""
        while True:
            # All running trials, and a page of finished ones that are not known yet. Each row also has the number of
            # known trials that are still counted.
            values = {"study": self._study_id, "known": list(self._finished), "page": _PAGE}
            rows = self._database.rows(_READ, values)
            if rows and rows[0].num_known < len(self._finished):
                # A server that lost its last commits in a crash may have trials in state RUNNING that had ended before.
                self._finished.clear()
                continue
            fresh = [frozen_trial(row, curve=row.curve, notes=row.rungs) for row in rows]
            known = list(self._finished.values())
            finished = {trial._trial_id: trial for trial in fresh if trial.state.is_finished()}
            self._finished.update(finished)
            if len(finished) < _PAGE:
                return sorted([*known, *fresh], key=lambda trial: trial.number)
