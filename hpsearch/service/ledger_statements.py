"""The SQL of the ledger. Its rules (claim, fence, finish, requeue) are told in ledger.py.

Every statement compares before it sets, so that any number of workers may run any of them at once. Under READ
COMMITTED a row that changed just before a statement locked it is judged again in its new form, but the rows
that are joined to it in their old one: that is why conditions stand on hpsearch_points wherever possible.
"""

from __future__ import annotations

from sqlalchemy import text

from hpsearch.service.foreign_endings import ENDED_OUTSIDE

# The parameters of a trial as Optuna has them, in order: [name, value, distribution].
_PARAMETERS = """(
        SELECT json_agg(json_build_array(param_name, param_value, distribution_json) ORDER BY param_id)
        FROM trial_params WHERE trial_params.trial_id = p.trial_id) AS parameters
"""

# What an earlier run of the same call has claimed: its commit took place, but the answer was lost.
CLAIMED = text(f"""
    SELECT p.trial_id, t.number, p.point, p.attempt, {_PARAMETERS}
    FROM hpsearch_points p JOIN trials t USING (trial_id)
    WHERE p.study_id = :study AND p.owner = :owner AND p.claim = :claim ORDER BY p.point
""")

# A point on its last attempt is trained alone, so that a poisonous one takes no neighbour's attempts with it.
# It waits until nothing else does, and its worker takes nothing beside it.
#
# MATERIALIZED: without statistics (a fresh study) the planner would count `mine` anew for each waiting point.
CLAIM = text("""
    WITH mine AS MATERIALIZED (
        SELECT count(*) AS held, coalesce(bool_or(crashes >= :last_attempt), false) AS is_alone
        FROM hpsearch_points WHERE study_id = :study AND owner = :owner
    ), first AS (
        SELECT p.point, p.cohort, p.crashes >= :last_attempt AS is_alone
        FROM hpsearch_points p JOIN trials t USING (trial_id), mine
        WHERE p.study_id = :study AND t.state = 'WAITING' AND NOT mine.is_alone
          AND (p.crashes < :last_attempt OR mine.held = 0)
          AND (CAST(:cohort AS text) IS NULL OR p.cohort IS NULL OR p.cohort = :cohort)
        ORDER BY p.crashes >= :last_attempt, p.point LIMIT 1
        FOR UPDATE OF p, t SKIP LOCKED
    ), free AS (
        SELECT p.trial_id
        FROM hpsearch_points p JOIN trials t USING (trial_id), first
        WHERE p.study_id = :study AND t.state = 'WAITING'
          AND (p.cohort IS NULL OR p.cohort = coalesce(:cohort, first.cohort))
          AND CASE WHEN first.is_alone THEN p.point = first.point ELSE p.crashes < :last_attempt END
        ORDER BY p.point LIMIT :limit
        FOR UPDATE OF p, t SKIP LOCKED
    ), started AS (
        UPDATE trials SET state = 'RUNNING', datetime_start = timezone('UTC', clock_timestamp())
        FROM free WHERE trials.trial_id = free.trial_id AND trials.state = 'WAITING'
        RETURNING trials.trial_id
    )
    UPDATE hpsearch_points
    SET owner = :owner, claim = :claim,
        renewed_at = now(), lease_expires_at = now() + make_interval(secs => :lease)
    FROM started WHERE hpsearch_points.trial_id = started.trial_id
""")

RECORD = text("""
    WITH held AS (
        UPDATE hpsearch_points
        SET renewed_at = now(), lease_expires_at = now() + make_interval(secs => :lease)
        WHERE study_id = :study AND owner = :owner
        RETURNING trial_id
    ), reports AS (
        SELECT r.* FROM unnest(
            CAST(:trial_ids AS int[]), CAST(:epochs AS int[]), CAST(:zero_ones AS float8[]),
            CAST(:train_nlls AS float8[]), CAST(:validation_nlls AS float8[]),
            CAST(:learning_rates AS float8[]), CAST(:seconds AS float8[])
        ) AS r(trial_id, epoch, zero_one, train_nll, validation_nll, learning_rate, seconds)
        JOIN held USING (trial_id)
    ), reported AS (
        INSERT INTO trial_intermediate_values (trial_id, step, intermediate_value, intermediate_value_type)
        SELECT trial_id, epoch, zero_one, 'FINITE' FROM reports
        ON CONFLICT (trial_id, step) DO NOTHING
    ), detailed AS (
        INSERT INTO hpsearch_epochs (trial_id, epoch, train_nll, validation_nll, learning_rate, seconds)
        SELECT trial_id, epoch, train_nll, validation_nll, learning_rate, seconds FROM reports
        ON CONFLICT (trial_id, epoch) DO NOTHING
    )
    SELECT trial_id FROM held
""")

# Runs in one transaction after RECORD, which has locked the rows that bear this owner's name.
RECORD_RUNGS = text("""
    INSERT INTO trial_system_attributes (trial_id, key, value_json)
    SELECT r.trial_id, r.key, r.value_json
    FROM unnest(CAST(:rung_trial_ids AS int[]), CAST(:rung_keys AS text[]), CAST(:rung_values AS text[]))
        AS r(trial_id, key, value_json)
    JOIN hpsearch_points p ON p.trial_id = r.trial_id AND p.owner = :owner
    ON CONFLICT (trial_id, key) DO NOTHING
""")

# A trial of these that is counted already was counted by an earlier run of the same call: a trial has one
# owner in its life, for a point that changes hands gets a new trial. One that another program has ended meanwhile is
# not counted (foreign_endings.py).
FINISH = text("""
    WITH mine AS (
        SELECT p.trial_id FROM hpsearch_points p JOIN trials t USING (trial_id)
        WHERE p.study_id = :study AND p.owner = :owner AND NOT p.is_counted AND t.state = 'RUNNING'
          AND p.trial_id = ANY(CAST(:trial_ids AS int[]))
        ORDER BY p.point FOR UPDATE OF p, t
    ), counted AS (
        UPDATE hpsearch_points SET owner = NULL, lease_expires_at = NULL, is_counted = true
        FROM mine WHERE hpsearch_points.trial_id = mine.trial_id
        RETURNING mine.trial_id
    ), results AS (
        SELECT r.* FROM unnest(CAST(:trial_ids AS int[]), CAST(:states AS text[]), CAST(:results AS float8[]))
            AS r(trial_id, state, value)
        JOIN counted USING (trial_id)
    ), ended AS (
        UPDATE trials
        SET state = CAST(results.state AS trialstate), datetime_complete = timezone('UTC', clock_timestamp())
        FROM results WHERE trials.trial_id = results.trial_id
    ), valued AS (
        INSERT INTO trial_values (trial_id, objective, value, value_type)
        SELECT trial_id, 0, value, 'FINITE' FROM results WHERE value IS NOT NULL
        ON CONFLICT (trial_id, objective) DO UPDATE SET value = excluded.value, value_type = excluded.value_type
    )
    SELECT trial_id, true AS is_new FROM counted
    UNION ALL
    SELECT trial_id, false FROM hpsearch_points
    WHERE study_id = :study AND is_counted AND trial_id = ANY(CAST(:trial_ids AS int[]))
""")

RENEW = text("""
    UPDATE hpsearch_points SET renewed_at = now(), lease_expires_at = now() + make_interval(secs => :lease)
    WHERE study_id = :study AND owner = :owner
""")

# What a requeue must know of a point; `reached` is the last epoch that its attempt recorded.
_TO_REQUEUE = """
    SELECT p.point, p.trial_id, p.attempt, p.crashes, p.furthest_epoch,
        (SELECT coalesce(max(e.epoch), 0) FROM hpsearch_epochs e WHERE e.trial_id = p.trial_id) AS reached,
        (SELECT a.value_json FROM trial_user_attributes a WHERE a.trial_id = p.trial_id AND a.key = 'round') AS round
    FROM hpsearch_points p JOIN trials t USING (trial_id)
"""

HELD_FOR_UPDATE = text(
    _TO_REQUEUE
    + "WHERE p.study_id = :study AND p.owner = :owner AND t.state = 'RUNNING' ORDER BY p.point FOR UPDATE OF p"
)

# A trial is stale when its lease has run out; or, sooner, when it has not been renewed for a while and the
# session that its owner keeps open is gone.
#
# A restarted server has ended every session, and leases ran out while it was away. So a lease that was not
# renewed since gets `absence` from the start on, unless it ran out so long before that its worker must have
# ceased to wait for the server.
#
# `is_counted` looks needless beside the trial's state, but that is the state of the statement's snapshot: a
# trial that was finished since (owner NULL!) must not be requeued.
_STALE = f"""{_TO_REQUEUE}
    WHERE p.study_id = :study AND NOT p.is_counted AND t.state = 'RUNNING' AND (
        p.owner IS NULL
        OR (
            p.lease_expires_at < now()
            OR (p.renewed_at < now() - make_interval(secs => :absence) AND NOT EXISTS (
                SELECT 1 FROM pg_locks l
                WHERE l.locktype = 'advisory' AND l.granted AND l.objsubid = 2
                  AND l.classid = CAST(:namespace AS oid) AND l.objid = CAST(p.owner AS oid)
                  AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())))
        ) AND (
            p.renewed_at > pg_postmaster_start_time()
            OR pg_postmaster_start_time() < now() - make_interval(secs => :absence)
            OR pg_postmaster_start_time() > p.lease_expires_at + make_interval(secs => :outage)
        )
    )
    ORDER BY p.point
"""
STALE = text(_STALE + "LIMIT 1")
STALE_FOR_UPDATE = text(_STALE + "FOR UPDATE OF p SKIP LOCKED")

_ENDED_OUTSIDE = f"{_TO_REQUEUE} WHERE p.study_id = :study AND {ENDED_OUTSIDE} ORDER BY p.point "
ENDED_OUTSIDE_TRIALS = text(_ENDED_OUTSIDE + "LIMIT 1")
ENDED_OUTSIDE_FOR_UPDATE = text(_ENDED_OUTSIDE + "FOR UPDATE OF p, t SKIP LOCKED")

# A point whose trial another program has ended waits for a fresh one.
COUNTS = text(f"""
    SELECT CASE WHEN {ENDED_OUTSIDE} THEN 'WAITING' ELSE CAST(t.state AS text) END AS state, count(*) AS number
    FROM hpsearch_points p JOIN trials t USING (trial_id)
    WHERE p.study_id = :study GROUP BY 1
""")

NUM_WAITING = text("""
    SELECT count(*) FROM hpsearch_points p JOIN trials t USING (trial_id)
    WHERE p.study_id = :study AND t.state = 'WAITING' AND (p.cohort IS NULL OR p.cohort = :cohort)
""")

# Living workers but for those that hold points of other studies: they are at work there.
NUM_WORKERS = text("""
    SELECT count(DISTINCT l.objid) FROM pg_locks l
    WHERE l.locktype = 'advisory' AND l.granted AND l.objsubid = 2 AND l.classid = CAST(:namespace AS oid)
      AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())
      AND NOT EXISTS (
        SELECT FROM hpsearch_points p WHERE CAST(p.owner AS oid) = l.objid AND p.study_id <> :study)
""")

BEST_VALUE = text("""
    SELECT min(v.value)
    FROM hpsearch_points p JOIN trials t USING (trial_id) JOIN trial_values v USING (trial_id)
    WHERE p.study_id = :study AND p.is_counted AND t.state = 'COMPLETE' AND v.objective = 0
""")

FAIL = text("""
    UPDATE trials SET state = 'FAIL', datetime_complete = timezone('UTC', clock_timestamp())
    WHERE trial_id = ANY(CAST(:trial_ids AS int[])) AND state = 'RUNNING' RETURNING trial_id
""")

# What a sampler of ours noted when it drew the parameters goes with them. What pruners note is the attempt's own.
COPY_PARAMETERS = text("""
    WITH replaced AS (
        SELECT * FROM unnest(CAST(:old_ids AS int[]), CAST(:new_ids AS int[])) AS r(old_id, new_id)
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

REPLACE_TRIAL = text("""
    UPDATE hpsearch_points p
    SET trial_id = r.new_id, attempt = p.attempt + 1, crashes = p.crashes + r.crash,
        furthest_epoch = greatest(p.furthest_epoch, r.reached),
        owner = NULL, claim = NULL, lease_expires_at = NULL
    FROM unnest(CAST(:old_ids AS int[]), CAST(:new_ids AS int[]), CAST(:crashes AS int[]), CAST(:reached AS int[]))
        AS r(old_id, new_id, crash, reached)
    WHERE p.trial_id = r.old_id
""")

GIVE_UP = text("""
    UPDATE hpsearch_points SET crashes = crashes + 1, owner = NULL, claim = NULL, lease_expires_at = NULL
    WHERE trial_id = ANY(CAST(:trial_ids AS int[]))
""")
