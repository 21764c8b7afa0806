"""Names the cohorts of waiting points whose parameters are still to be drawn, so that they can be claimed together."""

from __future__ import annotations

from collections.abc import Callable

from sqlalchemy import text

from hpsearch.store.connection.database import Database
from hpsearch.store.rows.columns import as_columns, unnest

LIMIT = 500  # points per call: a sampler needs up to a millisecond for each


def name_cohorts(database: Database, study_id: int, cohort_of: Callable[[int, int], str]) -> None:
    """Store the cohorts of the next waiting points that have none.

    A name only decides which points are claimed together. The worker that claims a point draws its parameters and looks
    at them again.

    Args:
        cohort_of: (trial number, point) -> the name of the cohort to which its parameters will lead.
    """
    values = {"study": study_id, "limit": LIMIT}
    rows = database.transaction(lambda connection: connection.execute(_UNNAMED, values).all())
    if rows:
        named = as_columns("point cohort", ((row.point, cohort_of(row.number, row.point)) for row in rows))
        database.transaction(lambda connection: connection.execute(_NAME, {**values, **named}))


_UNNAMED = text("""
    SELECT p.point, t.number FROM hpsearch_points p JOIN trials t USING (trial_id)
    WHERE p.study_id = :study AND t.state = 'WAITING' AND p.cohort IS NULL ORDER BY p.point LIMIT :limit
""")
_NAME = text(f"""
    UPDATE hpsearch_points SET cohort = r.cohort FROM {unnest("r", "point int, cohort text")}
    WHERE study_id = :study AND hpsearch_points.point = r.point AND hpsearch_points.cohort IS NULL
""")
