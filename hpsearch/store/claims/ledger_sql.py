"""The SQL of the ledger. ledger.py explains its rules (claim, fence, finish, requeue).

Every statement compares before it sets, so that any number of workers may run any of them at once. Under READ
COMMITTED, a row that changed just before a statement locked it is checked again in its new version, but rows joined to
it are checked in their old version. Conditions are therefore placed on hpsearch_points wherever possible.
"""

from __future__ import annotations

from sqlalchemy import TextClause, text

from hpsearch.store.claims.lease import PRESENCE_LOCKS, RENEWAL, select_leases
from hpsearch.store.rows import diagnoses
from hpsearch.store.rows.columns import unnest
from hpsearch.store.rows.foreign_endings import ENDED_OUTSIDE
from hpsearch.store.rows.trial_state import BUDGETS_ATTRIBUTE, CONTINUES_ATTRIBUTE, TRIAL_OF_POINT, loss_sql

# A renewal always changes renewed_at, even if the clock stands still or was set back. lease_expires_at is for workers
# of earlier versions, which compare it with the clock.
_RENEWED = """
    renewed_at = greatest(now(), renewed_at + interval '1 microsecond'),
    lease_expires_at = now() + make_interval(secs => :lease)
"""

# The parameters of a point's trial as Optuna stores them: [name, value, distribution]; NULL if it has none.
PARAMETERS = """(
        SELECT json_agg(json_build_array(q.param_name, q.param_value, q.distribution_json) ORDER BY q.param_id)
        FROM trial_params q WHERE q.trial_id = p.trial_id) AS parameters"""

# The points of one claim.
CLAIMED = text(f"""
    SELECT p.trial_id, t.number, p.point, p.attempt, p.cohort, {PARAMETERS},
        EXISTS (SELECT FROM hpsearch_continued k WHERE k.study_id = p.study_id AND k.point = p.point) AS is_continued,
        (SELECT a.value_json FROM study_user_attributes a
            WHERE a.study_id = p.study_id AND a.key = '{BUDGETS_ATTRIBUTE}') AS budgets
    FROM hpsearch_points p JOIN trials t USING (trial_id)
    WHERE p.study_id = :study AND p.owner = :owner AND p.claim = :claim ORDER BY p.point
""")

# Says the same as `t.state = 'WAITING'`, and keeps the planner from comparing each waiting trial with each point.
_WAITS = "(SELECT s.state FROM trials s WHERE s.trial_id = p.trial_id) = 'WAITING'"

# A suspect point, which the next crash would give up, is trained alone, so that a point that kills its workers does not
# count as a crash of its neighbours. It waits until no other point is waiting, and its worker claims nothing beside it.
#
# MATERIALIZED: without statistics (in a new study) the planner would evaluate `mine` again for each waiting point.
CLAIM = text(f"""
    WITH mine AS MATERIALIZED (
        SELECT count(*) AS held, coalesce(bool_or(crashes >= :suspect_crashes), false) AS is_alone
        FROM hpsearch_points WHERE study_id = :study AND owner = :owner
    ), first AS (
        SELECT p.point, p.cohort, p.crashes >= :suspect_crashes AS is_alone
        FROM hpsearch_points p JOIN trials t USING (trial_id), mine
        WHERE p.study_id = :study AND NOT p.is_counted AND {_WAITS} AND t.state = 'WAITING' AND NOT mine.is_alone
          AND (p.crashes < :suspect_crashes OR mine.held = 0)
          AND (CAST(:cohort AS text) IS NULL OR p.cohort IS NULL OR p.cohort = :cohort)
          AND (:takes_unnamed OR p.cohort IS NOT NULL)
        ORDER BY p.crashes >= :suspect_crashes, p.point LIMIT 1
        FOR UPDATE OF p, t SKIP LOCKED
    ), free AS (
        SELECT p.trial_id
        FROM hpsearch_points p JOIN trials t USING (trial_id), first
        WHERE p.study_id = :study AND NOT p.is_counted AND {_WAITS} AND t.state = 'WAITING'
          AND (p.cohort = coalesce(:cohort, first.cohort) OR (p.cohort IS NULL AND :takes_unnamed))
          AND CASE WHEN first.is_alone THEN p.point = first.point ELSE p.crashes < :suspect_crashes END
        ORDER BY p.point LIMIT :limit
        FOR UPDATE OF p, t SKIP LOCKED
    ), started AS (
        UPDATE trials SET state = 'RUNNING', datetime_start = timezone('UTC', clock_timestamp())
        FROM free WHERE trials.trial_id = free.trial_id AND trials.state = 'WAITING'
        RETURNING trials.trial_id
    )
    UPDATE hpsearch_points SET owner = :owner, claim = :claim, {_RENEWED}
    FROM started WHERE hpsearch_points.trial_id = started.trial_id
""")

# Renews the leases and records epochs, if there are any. An epoch is recorded only directly after the one before it
# (`previous`: the epoch that the trial has reported before this statement, 0 if none). A curve therefore never has a
# gap, whichever acknowledged writes the database has lost. One row is returned even if nothing is held, because it
# carries the start time of the server.
_REPORT = (
    "trial_id int, claim bigint, previous int, epoch int, loss float8, train_nll float8, validation_nll float8, "
    f"learning_rate float8, seconds float8, {diagnoses.TYPED}"
)
RECORD = text(f"""
    WITH held AS (
        UPDATE hpsearch_points SET {_RENEWED}
        WHERE study_id = :study AND owner = :owner
        RETURNING trial_id, claim
    ), reports AS (
        SELECT r.* FROM {unnest("r", _REPORT)}
        -- IS TRUE: looked up in a hash table. As a join, each report would be compared with each point that is held.
        WHERE ((r.trial_id, r.claim) IN (SELECT trial_id, claim FROM held)) IS TRUE AND (r.previous = 0 OR EXISTS (
            SELECT FROM hpsearch_epochs e WHERE e.trial_id = r.trial_id AND e.epoch = r.previous))
    ), reported AS (
        INSERT INTO trial_intermediate_values (trial_id, step, intermediate_value, intermediate_value_type)
        SELECT trial_id, epoch, {loss_sql("loss")}, 'FINITE' FROM reports
        ON CONFLICT (trial_id, step) DO NOTHING
    ), detailed AS (
        INSERT INTO hpsearch_epochs (trial_id, epoch, train_nll, validation_nll, learning_rate, seconds)
        SELECT trial_id, epoch, train_nll, validation_nll, learning_rate, seconds FROM reports
        ON CONFLICT (trial_id, epoch) DO NOTHING
    ), diagnosed AS (
        {diagnoses.INSERT}
        SELECT trial_id, epoch, {", ".join(diagnoses.NAMES)} FROM reports WHERE diagnosed_update_ratios IS NOT NULL
        ON CONFLICT (trial_id, epoch) DO NOTHING
    )
    SELECT server.started_at, held.trial_id, held.claim,
        held.trial_id IN (SELECT trial_id FROM reports) AS is_recorded
    FROM (SELECT pg_postmaster_start_time() AS started_at) server LEFT JOIN held ON true
""")

# Runs in one transaction after RECORD, which has locked the rows that have this owner's name.
RECORD_RUNGS = text(f"""
    INSERT INTO trial_system_attributes (trial_id, key, value_json)
    SELECT r.trial_id, r.key, r.value_json
    FROM {unnest("r", "trial_id int, key text, value_json text")}
        JOIN hpsearch_points p ON p.trial_id = r.trial_id AND p.owner = :owner
        JOIN trials t ON t.trial_id = r.trial_id AND t.state = 'RUNNING'
    ON CONFLICT (trial_id, key) DO NOTHING
""")

# As Optuna's storage writes it: the trial must not have ended, but whose it is decides the count that follows.
SET_SYSTEM_ATTRIBUTE = text("""
    INSERT INTO trial_system_attributes (trial_id, key, value_json)
    SELECT trial_id, :key, :value_json FROM trials
    WHERE trial_id = :trial_id AND state IN ('WAITING', 'RUNNING') FOR KEY SHARE
    ON CONFLICT (trial_id, key) DO UPDATE SET value_json = excluded.value_json
    RETURNING trial_id
""")

# If one of these trials is already counted, an earlier run of the same call has counted it: a trial has only one claim
# in its life, because a point that changes hands gets a new trial. Not counted are trials that another program has
# ended meanwhile (foreign_endings.py), and trials of which the database has lost parameters or epochs.
#
# MATERIALIZED: what is looked up for each result is looked up once, and not for each RUNNING trial. PostgreSQL takes
# RUNNING trials for very few, because there were none when it last counted. OFFSET 0: one point is looked up for each
# result, where all counted points of the study would be read.
_RESULT = "trial_id int, claim bigint, state text, loss float8, num_epochs int, num_parameters int"
FINISH = text(f"""
    WITH given AS (
        SELECT * FROM {unnest("r", _RESULT)}
    ), whole AS MATERIALIZED (
        SELECT r.trial_id, r.claim FROM given r
        WHERE (r.num_epochs = 0 OR EXISTS (
            SELECT FROM hpsearch_epochs e WHERE e.trial_id = r.trial_id AND e.epoch = r.num_epochs))
          AND coalesce(r.num_parameters = (SELECT count(*) FROM trial_params q WHERE q.trial_id = r.trial_id), true)
    ), mine AS (
        SELECT p.trial_id FROM whole r JOIN hpsearch_points p USING (trial_id) JOIN trials t USING (trial_id)
        WHERE p.study_id = :study AND p.owner = :owner AND NOT p.is_counted AND t.state = 'RUNNING'
          AND p.claim = coalesce(r.claim, p.claim)
        ORDER BY p.point FOR UPDATE OF p, t
    ), counted AS (
        UPDATE hpsearch_points SET owner = NULL, lease_expires_at = NULL, is_counted = true
        FROM mine WHERE hpsearch_points.trial_id = mine.trial_id
        RETURNING mine.trial_id
    ), results AS (
        SELECT given.* FROM given JOIN counted USING (trial_id)
    ), ended AS (
        UPDATE trials
        SET state = CAST(results.state AS trialstate), datetime_complete = timezone('UTC', clock_timestamp())
        FROM results WHERE trials.trial_id = results.trial_id
    ), valued AS (
        INSERT INTO trial_values (trial_id, objective, value, value_type)
        SELECT trial_id, 0, {loss_sql("loss")}, 'FINITE' FROM results WHERE loss IS NOT NULL
        ON CONFLICT (trial_id, objective) DO UPDATE SET value = excluded.value, value_type = excluded.value_type
    )
    SELECT trial_id, true AS is_new FROM counted
    UNION ALL
    SELECT r.trial_id, false FROM given r CROSS JOIN LATERAL (
        SELECT o.study_id, o.is_counted, o.claim FROM hpsearch_points o WHERE o.trial_id = r.trial_id OFFSET 0) p
    WHERE p.study_id = :study AND p.is_counted AND p.claim = coalesce(r.claim, p.claim)
""")


def _points_to_requeue(condition: str, lock: str) -> TextClause:
    """Return the statement that selects what a requeue must know of points, and locks them.

    `reached` is the last epoch that the point's attempt recorded.
    """
    return text(f"""
        SELECT p.point, p.trial_id, p.attempt, p.crashes, p.furthest_epoch,
            (SELECT coalesce(max(e.epoch), 0) FROM hpsearch_epochs e WHERE e.trial_id = p.trial_id) AS reached,
            (SELECT a.value_json FROM trial_user_attributes a WHERE a.trial_id = p.trial_id AND a.key = 'round')
                AS round,
            (SELECT a.value_json FROM trial_user_attributes a
                WHERE a.trial_id = p.trial_id AND a.key = '{CONTINUES_ATTRIBUTE}') AS continues
        FROM hpsearch_points p JOIN trials t USING (trial_id)
        WHERE p.study_id = :study AND {condition} ORDER BY p.point {lock}
    """)


# `is_counted` looks redundant beside the trial's state, but that state comes from the statement's snapshot: a trial
# that was finished since (owner NULL!) must not be requeued.
_IS_OPEN = "NOT p.is_counted AND t.state = 'RUNNING'"
_THESE_CLAIMS = f"(p.trial_id, p.claim) IN (SELECT * FROM {unnest('r', 'trial_id int, claim bigint')})"
_THESE_LEASES = f"(p.owner, {RENEWAL}) IN (SELECT * FROM {unnest('r', 'stale_owner bigint, stale_renewal text')})"

HELD_FOR_UPDATE = _points_to_requeue("p.owner = :owner AND t.state = 'RUNNING'", "FOR UPDATE OF p")
CLAIMED_FOR_UPDATE = _points_to_requeue(f"p.owner = :owner AND {_IS_OPEN} AND {_THESE_CLAIMS}", "FOR UPDATE OF p")
STALE_FOR_UPDATE = _points_to_requeue(
    f"{_IS_OPEN} AND (p.owner IS NULL OR {_THESE_LEASES})", "FOR UPDATE OF p SKIP LOCKED"
)
GIVEN_UP_FOR_UPDATE = _points_to_requeue(
    f"NOT p.is_counted AND t.state = 'FAIL' AND NOT {ENDED_OUTSIDE} AND p.crashes < :max_crashes", "FOR UPDATE OF p"
)
ENDED_OUTSIDE_TRIALS = _points_to_requeue(ENDED_OUTSIDE, "LIMIT 1")
ENDED_OUTSIDE_FOR_UPDATE = _points_to_requeue(ENDED_OUTSIDE, "FOR UPDATE OF p, t SKIP LOCKED")

# The leases of all other workers on this study. A RUNNING trial without an owner gives a row without one.
LEASES = select_leases(f"""
    hpsearch_points p JOIN trials t USING (trial_id)
    WHERE p.study_id = :study AND {_IS_OPEN} AND p.owner IS DISTINCT FROM :owner
""")

# A point whose trial another program has ended waits for a new trial.
COUNTS = text(f"""
    SELECT CASE WHEN {ENDED_OUTSIDE} THEN 'WAITING' ELSE CAST(t.state AS text) END AS state, count(*) AS number
    FROM hpsearch_points p JOIN trials t USING (trial_id)
    WHERE p.study_id = :study GROUP BY 1
""")

NUM_WAITING = text("""
    SELECT count(*) AS number FROM hpsearch_points p JOIN trials t USING (trial_id)
    WHERE p.study_id = :study AND NOT p.is_counted AND t.state = 'WAITING'
      AND (p.cohort IS NULL OR p.cohort = :cohort)
""")

# Live workers, except those that hold points of other studies, because they work there.
NUM_WORKERS = text(f"""
    SELECT count(DISTINCT l.objid) AS number FROM {PRESENCE_LOCKS}
      AND NOT EXISTS (
        SELECT FROM hpsearch_points p WHERE p.owner = CAST(l.objid AS bigint) AND p.study_id <> :study)
""")

# A result that its point's next trial will replace is left out: parameters are kept as if it were gone.
BEST_LOSSES = text(f"""
    SELECT {loss_sql("t.value")} AS loss FROM hpsearch_points r CROSS JOIN {TRIAL_OF_POINT} t
    WHERE r.study_id = :study AND r.is_counted AND t.state = 'COMPLETE' AND t.value IS NOT NULL
    ORDER BY loss LIMIT :number
""")

BEST_POINT = text(f"""
    SELECT r.point FROM hpsearch_points r CROSS JOIN {TRIAL_OF_POINT} t
    WHERE r.study_id = :study AND r.is_counted AND t.state = 'COMPLETE' AND t.value IS NOT NULL
    ORDER BY {loss_sql("t.value")}, t.number LIMIT 1
""")

COUNTED_POINTS = text("SELECT p.point FROM hpsearch_points p WHERE p.study_id = :study AND p.is_counted")

FAIL = text("""
    UPDATE trials SET state = 'FAIL', datetime_complete = timezone('UTC', clock_timestamp())
    WHERE trial_id = ANY(CAST(:trial_ids AS int[])) AND state = 'RUNNING' RETURNING trial_id
""")

# What our sampler stored when it drew the parameters is copied with them. What pruners store belongs to the attempt and
# is not copied.
COPY_PARAMETERS = text(f"""
    WITH replaced AS (
        SELECT * FROM {unnest("r", "old_id int, new_id int")}
    ), noted AS (
        INSERT INTO trial_system_attributes (trial_id, key, value_json)
        SELECT r.new_id, a.key, a.value_json
        FROM replaced r JOIN trial_system_attributes a ON a.trial_id = r.old_id
        WHERE starts_with(a.key, 'hpsearch:draw:')
    )
    INSERT INTO trial_params (trial_id, param_name, param_value, distribution_json)
    SELECT r.new_id, p.param_name, p.param_value, p.distribution_json
    FROM replaced r JOIN trial_params p ON p.trial_id = r.old_id ORDER BY p.param_id
""")

REPLACE_TRIAL = text(f"""
    UPDATE hpsearch_points p
    SET trial_id = r.new_id, attempt = p.attempt + 1, crashes = p.crashes + r.crash,
        -- Parameters that were not drawn yet may be drawn differently for the new trial.
        cohort = CASE WHEN EXISTS (SELECT FROM trial_params q WHERE q.trial_id = r.old_id) THEN p.cohort END,
        furthest_epoch = greatest(p.furthest_epoch, r.reached),
        owner = NULL, claim = NULL, lease_expires_at = NULL
    FROM {unnest("r", "old_id int, new_id int, crash int, reached int")}
    WHERE p.trial_id = r.old_id
""")

# A point whose trial was continued has its result again: that of the continued trial.
GIVE_UP = text("""
    WITH result AS (
        SELECT DISTINCT ON (p.trial_id) p.trial_id AS given_up, k.trial_id
        FROM hpsearch_points p JOIN hpsearch_continued k USING (study_id, point)
        WHERE p.trial_id = ANY(CAST(:trial_ids AS int[]))
        ORDER BY p.trial_id, k.trial_id DESC
    ), again AS (
        DELETE FROM hpsearch_continued k USING result WHERE k.trial_id = result.trial_id
    )
    UPDATE hpsearch_points p
    SET crashes = crashes + 1, owner = NULL, claim = NULL, lease_expires_at = NULL,
        trial_id = coalesce((SELECT r.trial_id FROM result r WHERE r.given_up = p.trial_id), p.trial_id),
        is_counted = EXISTS (SELECT FROM result r WHERE r.given_up = p.trial_id)
    WHERE p.trial_id = ANY(CAST(:trial_ids AS int[]))
""")
