"""What a program has reported in an earlier attempt: the next attempt at the point takes it over.

A program that saves its state goes on where it was killed, so its first reports of a step stay.
"""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import text

from hpsearch.store.claims.claim import Claim
from hpsearch.store.claims.ledger import Ledger
from hpsearch.store.rows.trial_state import POINT_ATTRIBUTE, RESUMED_AT_ATTRIBUTE, loss_sql

RESUMED_FROM_ATTRIBUTE = "resumed_from_trial"


@dataclass(frozen=True, kw_only=True)
class EarlierReport:
    """A report that was taken over: its step, its loss, and the seconds since the one before."""

    step: int
    loss: float
    seconds: float


def take_over_reports(ledger: Ledger, claim: Claim) -> list[EarlierReport] | None:
    """Give a trial the reports of the last attempt that has any, and return them in order. One fenced statement.

    Safe to repeat. That attempt may have taken over reports itself: it then has all of them. An attempt in between may
    have been given back before it reported anything.

    Returns:
        None: the trial no longer belongs to this worker.
    Raises:
        StorageError: the database is away.
    """
    rows = ledger.rows(
        _TAKE_OVER,
        trial_id=claim.trial_id,
        point_key=POINT_ATTRIBUTE,
        point_json=str(claim.point),
        from_key=RESUMED_FROM_ATTRIBUTE,
        at_key=RESUMED_AT_ATTRIBUTE,
    )
    if not rows:
        return None
    found = [row for row in rows if row.step is not None]
    return [EarlierReport(step=row.step, loss=row.loss, seconds=row.seconds) for row in found]


_TAKE_OVER = text(f"""
    WITH held AS (
        SELECT p.trial_id FROM hpsearch_points p
        WHERE p.study_id = :study AND p.owner = :owner AND p.trial_id = :trial_id AND NOT p.is_counted
        FOR KEY SHARE OF p
    ), source AS (
        SELECT t.trial_id, t.number FROM trials t
            JOIN trial_user_attributes a ON a.trial_id = t.trial_id AND a.key = :point_key
        WHERE t.study_id = :study AND t.state = 'FAIL' AND a.value_json = :point_json
            AND EXISTS (SELECT FROM hpsearch_epochs e WHERE e.trial_id = t.trial_id)
        ORDER BY t.number DESC LIMIT 1
    ), steps AS (
        SELECT held.trial_id, e.epoch AS step, i.intermediate_value AS value, i.intermediate_value_type, e.seconds
        FROM held, source
            JOIN hpsearch_epochs e ON e.trial_id = source.trial_id
            JOIN trial_intermediate_values i ON i.trial_id = e.trial_id AND i.step = e.epoch
    ), reported AS (
        INSERT INTO trial_intermediate_values (trial_id, step, intermediate_value, intermediate_value_type)
        SELECT trial_id, step, value, intermediate_value_type FROM steps
        ON CONFLICT (trial_id, step) DO NOTHING
    ), detailed AS (
        INSERT INTO hpsearch_epochs (trial_id, epoch, seconds) SELECT trial_id, step, seconds FROM steps
        ON CONFLICT (trial_id, epoch) DO NOTHING
    ), told AS (
        INSERT INTO trial_user_attributes (trial_id, key, value_json)
        SELECT held.trial_id, a.key, CAST(a.value AS text)
        FROM held, source, (SELECT max(step) AS step FROM steps) last,
            LATERAL (VALUES (:from_key, source.number), (:at_key, last.step)) AS a(key, value)
        WHERE last.step IS NOT NULL
        ON CONFLICT (trial_id, key) DO UPDATE SET value_json = excluded.value_json
    )
    SELECT held.trial_id, steps.step, {loss_sql("steps.value")} AS loss, steps.seconds
    FROM held LEFT JOIN steps ON true ORDER BY steps.step
""")
