"""Names the cohorts of waiting points whose parameters are still to be drawn, so that they can be claimed together."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from sqlalchemy import text

from hpsearch.store.claims.ledger_sql import PARAMETERS
from hpsearch.store.connection.database import Database
from hpsearch.store.rows.columns import as_columns, unnest
from hpsearch.store.rows.parameter_values import read_parameters

LIMIT = 200  # points per call: a sampler needs one or two milliseconds for each


def name_cohorts(database: Database, study_id: int, cohort_of: Callable[[int, int, dict[str, Any]], str]) -> bool:
    """Store the cohorts of the next waiting points that have none.

    A name only decides which points are claimed together. The worker that claims a point draws its parameters and looks
    at them again.

    Args:
        cohort_of: (trial number, point, parameters that an earlier attempt has drawn) -> the name of the cohort to
            which the trial's parameters will lead.
    Returns:
        Whether more points may be without a name.
    """
    values = {"study": study_id, "limit": LIMIT}
    rows = database.transaction(lambda connection: connection.execute(_UNNAMED, values).all())
    names = [
        (row.point, cohort_of(row.number, row.point, read_parameters(row.parameters, f"trial {row.number}")))
        for row in rows
    ]
    if names:
        named = as_columns("point cohort", names)
        database.transaction(lambda connection: connection.execute(_NAME, {**values, **named}))
    return len(names) == LIMIT


_UNNAMED = text(f"""
    SELECT p.point, t.number, {PARAMETERS}
    FROM hpsearch_points p JOIN trials t USING (trial_id)
    WHERE p.study_id = :study AND NOT p.is_counted AND t.state = 'WAITING' AND p.cohort IS NULL
    ORDER BY p.point LIMIT :limit
""")
# In the order in which claims lock them; those that a claim has locked are no longer waiting.
_NAME = text(f"""
    WITH given AS (
        SELECT p.point, r.cohort
        FROM hpsearch_points p JOIN trials t USING (trial_id) JOIN {unnest("r", "point int, cohort text")} USING (point)
        WHERE p.study_id = :study AND p.point = ANY(CAST(:point AS int[])) AND p.cohort IS NULL AND t.state = 'WAITING'
        ORDER BY p.point FOR UPDATE OF p SKIP LOCKED
    )
    UPDATE hpsearch_points SET cohort = given.cohort FROM given
    WHERE study_id = :study AND hpsearch_points.point = ANY(CAST(:point AS int[]))
      AND hpsearch_points.point = given.point
""")
