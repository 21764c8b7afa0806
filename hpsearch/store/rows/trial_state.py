"""The states of trials, and the attributes that hpsearch writes with a trial, under the names in Optuna's tables."""

from __future__ import annotations

from enum import Enum

from hpsearch.stored_json import Kind, check_kind, parse_stored

# An attribute of a study that was given more epochs: its numbers of epochs, in order.
BUDGETS_ATTRIBUTE = "hpsearch:budgets"

# The points of all studies as a table in SQL, each with its result's trial: while a trial goes on with more epochs, the
# one that it continues (claims/continuing.py). `current_trial_id` is the point's own trial, by which an index finds it.
POINT_RESULTS = """(
    SELECT o.study_id, o.point, o.attempt, o.trial_id AS current_trial_id, coalesce(k.trial_id, o.trial_id) AS trial_id,
        o.is_counted OR k.trial_id IS NOT NULL AS is_counted
    FROM hpsearch_points o LEFT JOIN LATERAL (
        SELECT c.trial_id FROM hpsearch_continued c
        WHERE NOT o.is_counted AND c.study_id = o.study_id AND c.point = o.point
        ORDER BY c.trial_id DESC LIMIT 1) k ON true)"""

# The trial of a row `r` of points, with its value. OFFSET 0 keeps the order of the join: a study's points, then the
# trial of each. If PostgreSQL takes COMPLETE trials for few, because they were few when it last counted, it would begin
# with those of all studies, and read the study's points again for each of them.
TRIAL_OF_POINT = """LATERAL (
    SELECT s.number, s.state, s.datetime_start, s.datetime_complete,
        CASE WHEN s.state = 'COMPLETE' OR s.state = 'PRUNED' THEN (
            SELECT v.value FROM trial_values v WHERE v.trial_id = s.trial_id AND v.objective = 0) END AS value
    FROM trials s WHERE s.trial_id = r.trial_id OFFSET 0)"""

# POINT_RESULTS, and what their trials are.
TRIAL_RESULTS = f"(SELECT r.*, t.* FROM {POINT_RESULTS} r CROSS JOIN {TRIAL_OF_POINT} t)"

# An attribute of a study whose trials are programs: a JSON object with `section` (of its definition) and `key`.
PROGRAM_ATTRIBUTE = "hpsearch:program"

# In the reason of a program's failure: what comes after it are the last lines of the program's output.
STOPPED_REASON = "its worker was stopped"  # why an attempt was given back: no failure
LAST_LINES = "; its last lines:\n"

# Further values of a program's last report: `reported:train_loss`.
REPORTED_PREFIX = "reported:"

# Trial attributes, for readers that know only Optuna.
POINT_ATTRIBUTE = "point"
ATTEMPT_ATTRIBUTE = "attempt"
ROUND_ATTRIBUTE = "round"  # the round that added the point (round_rows.py)
RESUMED_AT_ATTRIBUTE = "resumed_at_epoch"  # the last epoch of the checkpoint that the trial continued (checkpoints.py)
CONTINUES_ATTRIBUTE = "continues_trial"  # number of the trial of its point that it continues (claims/continuing.py)
DIVERGED_REASON = "diverged"
STOP_REASON_ATTRIBUTE = "stop_reason"
MAX_EPOCHS_REASON = "max-epochs"  # search.stopping.StopReason.MAX_EPOCHS, which takes longer to load
NLL_ATTRIBUTE = "best_validation_nll"  # in nats; written when the trial ends (worker/lanes/trial.py)
# What the trial suffers from, in words, and three numbers of its last diagnosis (training/diagnosis/verdict.py).
VERDICT_ATTRIBUTES = ("verdict", "verdict_detail", "update_ratio", "gradient_norm", "generalization_gap")


class StoredState(Enum):
    """The state of a trial: Optuna's TrialState, which takes a third of a second to load."""

    RUNNING = "RUNNING"
    COMPLETE = "COMPLETE"
    PRUNED = "PRUNED"
    FAIL = "FAIL"
    WAITING = "WAITING"


def parse_budgets(text: str | None, what: str) -> tuple[int, ...]:
    """The numbers of epochs that a study has had, in order; none if it has had only one.

    Raises:
        StorageError: the attribute is damaged.
    """
    if text is None:
        return ()
    place = f"table study_user_attributes, key {BUDGETS_ATTRIBUTE}"
    budgets = parse_stored(text, what, place)
    check_kind(budgets, Kind.COUNTS, what, place)
    return tuple(budgets)


def loss_sql(column: str) -> str:
    """SQL for the loss of a value, and for the value of a loss (`metric.Metric`); lower losses are better.

    The statement has the parameter :study.
    """
    return (
        f"CASE WHEN (SELECT direction = 'MAXIMIZE' FROM study_directions WHERE study_id = :study) "
        f"THEN (SELECT CASE WHEN EXISTS (SELECT FROM study_user_attributes a "
        f"WHERE a.study_id = :study AND a.key = '{PROGRAM_ATTRIBUTE}') THEN 0 ELSE 1 END) - {column} ELSE {column} END"
    )
