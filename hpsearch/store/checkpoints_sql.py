"""The SQL of the checkpoints. checkpoints.py explains its rules.

A worker's writes are fenced as in ledger_sql.py: they apply only to points that have its name. The rows of the points
are locked FOR KEY SHARE until the transaction ends. That blocks a requeue of the point (FOR UPDATE), but not the
worker's own reports and renewals; a stronger lock would occasionally deadlock with those.
"""

from __future__ import annotations

from sqlalchemy import text

from hpsearch.store.rows.columns import unnest
from hpsearch.store.rows.diagnoses import COLUMNS, INSERT
from hpsearch.store.rows.foreign_endings import ENDED_OUTSIDE
from hpsearch.store.rows.trial_state import loss_sql

# An earlier attempt's checkpoint is always replaced: if this attempt could have used it, it would have started there.
SAVE = text(f"""
    WITH held AS (
        SELECT p.study_id, p.point, f.*
        FROM {unnest("f", "trial_id int, epoch int, artifact_id text, num_bytes bigint")}
        JOIN hpsearch_points p ON p.trial_id = f.trial_id
        WHERE p.study_id = :study AND p.owner = :owner AND NOT p.is_counted
        ORDER BY p.point
        FOR KEY SHARE OF p
    ), replaced AS (
        SELECT c.point, c.artifact_id FROM hpsearch_checkpoints c JOIN held USING (study_id, point)
    ), saved AS (
        INSERT INTO hpsearch_checkpoints AS c (study_id, point, trial_id, epoch, artifact_id, num_bytes, saved_at)
        SELECT study_id, point, trial_id, epoch, artifact_id, num_bytes, now() FROM held
        ON CONFLICT (study_id, point) DO UPDATE
        SET trial_id = excluded.trial_id, epoch = excluded.epoch, artifact_id = excluded.artifact_id,
            num_bytes = excluded.num_bytes, saved_at = excluded.saved_at
        WHERE c.trial_id <> excluded.trial_id OR c.epoch <= excluded.epoch
        RETURNING c.point, c.trial_id
    )
    SELECT saved.trial_id, replaced.artifact_id AS replaced_id FROM saved LEFT JOIN replaced USING (point)
""")

# Which of these files are in use. Run in SAVE's transaction, after it.
RECORDED = text("SELECT artifact_id FROM hpsearch_checkpoints WHERE artifact_id = ANY(CAST(:artifact_ids AS text[]))")

FIND = text("""
    SELECT p.trial_id, c.trial_id AS source_trial_id, t.number AS source_number, c.epoch, c.artifact_id, c.num_bytes
    FROM hpsearch_points p
        JOIN hpsearch_checkpoints c USING (study_id, point)
        JOIN trials t ON t.trial_id = c.trial_id
    WHERE p.study_id = :study AND p.trial_id = ANY(CAST(:trial_ids AS int[]))
""")

# The earlier attempt has ended, so its rows no longer change. If the database was away at its end, it may have recorded
# fewer epochs than its checkpoint contains; a checkpoint with an incomplete curve is not resumed.
RESUME = text(f"""
    WITH held AS (
        SELECT p.trial_id FROM hpsearch_points p
        WHERE p.study_id = :study AND p.owner = :owner AND p.trial_id = :trial_id AND NOT p.is_counted
        FOR KEY SHARE OF p
    ), judged AS (
        SELECT held.trial_id, :epoch = (
            SELECT count(*) FROM hpsearch_epochs e
                JOIN trial_intermediate_values i ON i.trial_id = e.trial_id AND i.step = e.epoch
            WHERE e.trial_id = :source_id AND e.epoch BETWEEN 1 AND :epoch
        ) AS is_whole
        FROM held
    ), whole AS (
        SELECT trial_id FROM judged WHERE is_whole
    ), reported AS (
        INSERT INTO trial_intermediate_values (trial_id, step, intermediate_value, intermediate_value_type)
        SELECT whole.trial_id, i.step, i.intermediate_value, i.intermediate_value_type
        FROM whole, trial_intermediate_values i WHERE i.trial_id = :source_id AND i.step BETWEEN 1 AND :epoch
        ON CONFLICT (trial_id, step) DO NOTHING
    ), detailed AS (
        INSERT INTO hpsearch_epochs (trial_id, epoch, train_nll, validation_nll, learning_rate, seconds)
        SELECT whole.trial_id, e.epoch, e.train_nll, e.validation_nll, e.learning_rate, e.seconds
        FROM whole, hpsearch_epochs e WHERE e.trial_id = :source_id AND e.epoch BETWEEN 1 AND :epoch
        ON CONFLICT (trial_id, epoch) DO NOTHING
    ), diagnosed AS (
        {INSERT}
        SELECT whole.trial_id, d.epoch, {", ".join(f"d.{name}" for name in COLUMNS)}
        FROM whole, hpsearch_diagnoses d WHERE d.trial_id = :source_id AND d.epoch BETWEEN 1 AND :epoch
        ON CONFLICT (trial_id, epoch) DO NOTHING
    ), told AS (
        INSERT INTO trial_user_attributes (trial_id, key, value_json)
        SELECT whole.trial_id, a.key, CAST(a.value AS text)
        FROM whole, (VALUES (:from_key, :source_number), (:at_key, :epoch)) AS a(key, value)
        ON CONFLICT (trial_id, key) DO UPDATE SET value_json = excluded.value_json
    )
    SELECT is_whole FROM judged
""")

# Checkpoints that no attempt will resume: the points are counted or given up. :trial_ids NULL: all trials.
NEEDLESS = text(f"""
    SELECT c.artifact_id
    FROM hpsearch_checkpoints c JOIN hpsearch_points p USING (study_id, point)
        JOIN trials t ON t.trial_id = p.trial_id
    WHERE c.study_id = :study AND (CAST(:trial_ids AS int[]) IS NULL OR p.trial_id = ANY(CAST(:trial_ids AS int[])))
      AND (p.is_counted OR (p.owner IS NULL AND t.state NOT IN ('WAITING', 'RUNNING') AND NOT {ENDED_OUTSIDE}))
""")

DELETE = text("""
    DELETE FROM hpsearch_checkpoints WHERE study_id = :study AND artifact_id = ANY(CAST(:artifact_ids AS text[]))
    RETURNING artifact_id
""")

# End states are written after their trials were counted. A state whose trial is not, or no longer, its point's result
# is not recorded.
KEEP_ENDS = text(f"""
    WITH ended AS (
        SELECT f.*, p.study_id
        FROM {unnest("f", "trial_id int, epoch int, artifact_id text, num_bytes bigint")}
        JOIN hpsearch_points p ON p.trial_id = f.trial_id
        WHERE p.study_id = :study AND p.is_counted
        ORDER BY p.point
        FOR KEY SHARE OF p
    )
    INSERT INTO hpsearch_end_states (trial_id, study_id, epoch, artifact_id, num_bytes, saved_at)
    SELECT trial_id, study_id, epoch, artifact_id, num_bytes, now() FROM ended
    ON CONFLICT (trial_id) DO NOTHING
""")

# The best ones stay, up to a number and a size; and none of a trial that was continued.
DROP_SURPLUS_ENDS = text(f"""
    WITH ranked AS MATERIALIZED (
        SELECT s.trial_id, row_number() OVER best_first AS rank, sum(s.num_bytes) OVER best_first AS total
        FROM hpsearch_end_states s LEFT JOIN trial_values v ON v.trial_id = s.trial_id AND v.objective = 0
        WHERE s.study_id = :study
        WINDOW best_first AS (ORDER BY {loss_sql("v.value")} NULLS LAST, s.trial_id))
    DELETE FROM hpsearch_end_states WHERE study_id = :study AND trial_id IN (
        SELECT trial_id FROM ranked
        WHERE rank > :num_states OR total > :num_bytes
            OR NOT EXISTS (SELECT FROM hpsearch_points p WHERE p.trial_id = ranked.trial_id))
    RETURNING artifact_id
""")

# Which of these files are in use. Run in the same transaction, after them.
RECORDED_ENDS = text("""
    SELECT artifact_id FROM hpsearch_end_states WHERE artifact_id = ANY(CAST(:artifact_ids AS text[]))
    UNION SELECT artifact_id FROM hpsearch_checkpoints WHERE artifact_id = ANY(CAST(:artifact_ids AS text[]))
""")
