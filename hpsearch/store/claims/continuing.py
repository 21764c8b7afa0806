"""Continuing: when a study gets more epochs, the points whose trials ended at the old number get new trials.

A finished trial is never changed. Its point gets a new WAITING trial with the same parameters, which goes on from the
stored end state of the finished one (checkpoints.py), or begins anew if there is none. Until the new trial is counted,
the finished one is the point's result; from that transaction on it is superseded, and views, samplers and pruners leave
it out.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import Connection, Row, text

from hpsearch.store.claims import ledger_sql as statements
from hpsearch.store.claims.requeue import MAX_CRASHES
from hpsearch.store.rows.columns import as_columns, unnest
from hpsearch.store.rows.trial_rows import insert_trials, lock_study, write_trial_attributes
from hpsearch.store.rows.trial_state import (
    ATTEMPT_ATTRIBUTE,
    CONTINUES_ATTRIBUTE,
    MAX_EPOCHS_REASON,
    POINT_ATTRIBUTE,
    ROUND_ATTRIBUTE,
    STOP_REASON_ATTRIBUTE,
)
from hpsearch.stored_json import parse_stored


def num_continuable(connection: Connection, study_id: int, max_epochs: int) -> int:
    """Count the points that `continue_trials` would continue."""
    return len(connection.execute(_CONTINUABLE, _values(study_id, max_epochs)).all())


def continue_trials(connection: Connection, study_id: int, max_epochs: int) -> int:
    """Queue a new trial for each point whose counted trial ended at a smaller number of epochs than this.

    Runs in the caller's transaction; any number of processes may call it at once, and calling it twice is safe.

    Returns:
        The number of new trials.
    """
    lock_study(connection, study_id)
    rows = connection.execute(_TO_CONTINUE, _values(study_id, max_epochs)).all()
    if not rows:
        return 0
    old_ids = [row.trial_id for row in rows]
    new_ids = insert_trials(connection, study_id, len(rows))
    pairs = as_columns("old_id new_id", zip(old_ids, new_ids, strict=True))
    connection.execute(statements.COPY_PARAMETERS, pairs)
    connection.execute(_COPY_RUNGS, pairs)
    connection.execute(_CONTINUE, pairs)
    connection.execute(_USE_END_STATES, {"trial_ids": old_ids})
    attributes = [
        (
            new_id,
            {
                POINT_ATTRIBUTE: row.point,
                ATTEMPT_ATTRIBUTE: row.attempt + 1,
                CONTINUES_ATTRIBUTE: row.number,
                **_round_of(row),
            },
        )
        for new_id, row in zip(new_ids, rows, strict=True)
    ]
    write_trial_attributes(connection, attributes)
    return len(rows)


def _values(study_id: int, max_epochs: int) -> dict[str, Any]:
    reason = f'"{MAX_EPOCHS_REASON}"'
    return {"study": study_id, "max_epochs": max_epochs, "reason": reason, "max_crashes": MAX_CRASHES}


def _round_of(row: Row[Any]) -> dict[str, Any]:
    what, place = f"trial {row.number}", f"table trial_user_attributes, key {ROUND_ATTRIBUTE}"
    return {} if row.round is None else {ROUND_ATTRIBUTE: parse_stored(row.round, what, place)}


# A point that was given up when it was continued is not tried again.
_SELECT = f"""
    SELECT p.point, p.trial_id, p.attempt, t.number,
        (SELECT a.value_json FROM trial_user_attributes a
            WHERE a.trial_id = p.trial_id AND a.key = '{ROUND_ATTRIBUTE}') AS round
    FROM hpsearch_points p JOIN trials t USING (trial_id)
    WHERE p.study_id = :study AND p.is_counted AND t.state = 'COMPLETE' AND p.crashes < :max_crashes
      AND EXISTS (SELECT FROM trial_user_attributes a
        WHERE a.trial_id = p.trial_id AND a.key = '{STOP_REASON_ATTRIBUTE}' AND a.value_json = :reason)
      AND (SELECT max(e.epoch) FROM hpsearch_epochs e WHERE e.trial_id = p.trial_id) < :max_epochs
    ORDER BY p.point
"""
_CONTINUABLE, _TO_CONTINUE = text(_SELECT), text(f"{_SELECT} FOR UPDATE OF p")

# What pruners have noted of the trial stays, for the comparison with others.
_COPY_RUNGS = text(f"""
    INSERT INTO trial_system_attributes (trial_id, key, value_json)
    SELECT r.new_id, a.key, a.value_json
    FROM {unnest("r", "old_id int, new_id int")} JOIN trial_system_attributes a ON a.trial_id = r.old_id
    WHERE starts_with(a.key, 'completed_rung_')
""")

_CONTINUE = text(f"""
    WITH continued AS (
        UPDATE hpsearch_points p
        SET trial_id = r.new_id, attempt = p.attempt + 1, crashes = 0, is_counted = false,
            owner = NULL, claim = NULL, lease_expires_at = NULL
        FROM {unnest("r", "old_id int, new_id int")}
        WHERE p.trial_id = r.old_id
        RETURNING r.old_id, p.study_id, p.point
    )
    INSERT INTO hpsearch_continued (trial_id, study_id, point, continued_at)
    SELECT old_id, study_id, point, now() FROM continued
""")

# An end state becomes the point's checkpoint, from which any worker resumes its next trial. Where the point still has a
# checkpoint, that one is used; the end state is removed with the next ones that are kept.
_USE_END_STATES = text("""
    WITH used AS (
        INSERT INTO hpsearch_checkpoints (study_id, point, trial_id, epoch, artifact_id, num_bytes, saved_at)
        SELECT k.study_id, k.point, s.trial_id, s.epoch, s.artifact_id, s.num_bytes, s.saved_at
        FROM hpsearch_end_states s JOIN hpsearch_continued k USING (trial_id)
        WHERE s.trial_id = ANY(CAST(:trial_ids AS int[]))
        ON CONFLICT (study_id, point) DO NOTHING
        RETURNING artifact_id
    )
    DELETE FROM hpsearch_end_states WHERE artifact_id IN (SELECT artifact_id FROM used)
""")
