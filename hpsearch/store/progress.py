"""The progress of a study, read in four statements, for live progress and for `status`."""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import Connection, text

from hpsearch.metric import ZERO_ONE, Metric
from hpsearch.store.claims.continuing import num_continuable
from hpsearch.store.claims.ledger import Ledger
from hpsearch.store.connection.database import Database
from hpsearch.store.rows.counts import PointCounts, num_lost_points
from hpsearch.store.rows.foreign_endings import ENDED_OUTSIDE
from hpsearch.store.rows.round_rows import StoredRound, has_ended, read_rounds
from hpsearch.store.rows.trial_state import (
    BUDGETS_ATTRIBUTE,
    RESUMED_AT_ATTRIBUTE,
    TRIAL_RESULTS,
    loss_sql,
    parse_budgets,
)
from hpsearch.store.studies import DEFINITION_ATTRIBUTE, StoredStudy


@dataclass(frozen=True, kw_only=True)
class RunningTrial:
    """A trial in training and its latest recorded epoch (0, with the value None, before the first one).

    Args:
        value: validation error after that epoch, as a fraction of the validation images.
    """

    number: int
    epoch: int
    value: float | None


@dataclass(frozen=True, kw_only=True)
class Progress:
    """The progress of a study at one moment.

    Args:
        epochs: trial-epochs trained so far. Epochs of failed attempts are included; epochs that a resumed trial took
            over from an earlier attempt are counted once.
        epochs_of_counted: trial-epochs of the counted points.
        best_value: best value of a COMPLETE trial, or None.
        best_trial: number of the trial with the best value, or None.
        running: trials in training, by number.
        rounds: rounds of points, in order, including the row that ends a search.
        metric: of the values.
    """

    counts: PointCounts
    epochs: int
    epochs_of_counted: int
    best_value: float | None
    best_trial: int | None
    running: tuple[RunningTrial, ...]
    rounds: tuple[StoredRound, ...] = ()
    metric: Metric = ZERO_ONE

    @property
    def is_finished(self) -> bool:
        """True if nothing is left to train and no round will follow."""
        return has_ended(self.counts.unfinished, self.rounds)

    def remaining_seconds(self, epochs_per_second: float) -> float | None:
        """Estimate the remaining time in seconds, or return None if nothing is counted or trained yet.

        The estimate assumes that each unfinished point takes as many epochs as a counted point did on average.
        """
        if self.counts.counted == 0 or epochs_per_second <= 0:
            return None
        epochs_per_point = self.epochs_of_counted / self.counts.counted
        done_of_running = sum(min(trial.epoch, epochs_per_point) for trial in self.running)
        return max(0.0, self.counts.unfinished * epochs_per_point - done_of_running) / epochs_per_second


def read_progress(database: Database, study_id: int, metric: Metric = ZERO_ONE) -> Progress:
    """Read the progress of a study. Each of the four statements is a transaction of its own."""
    values = {"study": study_id, "resumed": RESUMED_AT_ATTRIBUTE}
    (totals,) = database.rows(_TOTALS, values)
    running = database.rows(_RUNNING, values)
    return Progress(
        counts=Ledger(database=database, study_id=study_id).counts(),
        **totals._asdict(),
        running=tuple(RunningTrial(**row._asdict()) for row in running),
        rounds=database.transaction(lambda connection: read_rounds(connection, study_id)),
        metric=metric,
    )


@dataclass(frozen=True, kw_only=True)
class Situation:
    """What a decision is based on: as long as it does not change, the decision stays valid.

    Args:
        definition: the stored text, unparsed; None: the study was deleted.
        num_unfinished: points whose trial waits, runs, or was ended by another program.
        num_continuable: points whose trials ended at a number of epochs that the study had before.
    """

    definition: str | None
    rounds: tuple[StoredRound, ...]
    num_points: int
    num_unfinished: int
    num_continuable: int = 0


def read_situation(connection: Connection, study_id: int) -> Situation:
    """Read the situation of a study. One statement, and the rounds."""
    values = {"study": study_id, "definition": DEFINITION_ATTRIBUTE}
    row = connection.execute(_SITUATION, values).one()._asdict()
    budgets = parse_budgets(row.pop("budgets"), f"study number {study_id}")
    number = num_continuable(connection, study_id, budgets[-1]) if budgets else 0
    return Situation(**row, num_continuable=number, rounds=read_rounds(connection, study_id))


def is_finished(database: Database, study: StoredStudy) -> bool:
    """Whether the study needs no more workers. Only this function and `has_ended` decide that."""
    situation = database.transaction(lambda connection: read_situation(connection, study.study_id))
    num_lost = num_lost_points(study.definition, situation.num_points)
    return has_ended(situation.num_unfinished + situation.num_continuable + num_lost, situation.rounds)


_TOTALS = text(f"""
    WITH best AS MATERIALIZED (
        SELECT value, number FROM {TRIAL_RESULTS} t
        WHERE study_id = :study AND is_counted AND state = 'COMPLETE' AND value IS NOT NULL
        ORDER BY {loss_sql("value")}, number LIMIT 1)
    SELECT count(e.epoch) FILTER (WHERE e.epoch > coalesce(CAST(r.value_json AS int), 0)) AS epochs,
        count(e.epoch) FILTER (WHERE p.is_counted) AS epochs_of_counted,
        (SELECT value FROM best) AS best_value, (SELECT number FROM best) AS best_trial
    FROM trials t LEFT JOIN hpsearch_epochs e USING (trial_id) LEFT JOIN hpsearch_points p USING (trial_id)
        LEFT JOIN trial_user_attributes r ON r.trial_id = t.trial_id AND r.key = :resumed
    WHERE t.study_id = :study
""")

_RUNNING = text("""
    SELECT t.number, coalesce(last.step, 0) AS epoch, last.intermediate_value AS value
    FROM hpsearch_points p JOIN trials t USING (trial_id) LEFT JOIN LATERAL (
        SELECT step, intermediate_value FROM trial_intermediate_values i
        WHERE i.trial_id = t.trial_id ORDER BY step DESC LIMIT 1) last ON true
    WHERE p.study_id = :study AND NOT p.is_counted AND t.state = 'RUNNING' ORDER BY t.number
""")

_SITUATION = text(f"""
    SELECT count(*) AS num_points,
        count(*) FILTER (WHERE t.state IN ('WAITING', 'RUNNING') OR {ENDED_OUTSIDE}) AS num_unfinished,
        (SELECT value_json FROM study_user_attributes WHERE study_id = :study AND key = :definition) AS definition,
        (SELECT value_json FROM study_user_attributes
            WHERE study_id = :study AND key = '{BUDGETS_ATTRIBUTE}') AS budgets
    FROM hpsearch_points p JOIN trials t USING (trial_id) WHERE p.study_id = :study
""")
