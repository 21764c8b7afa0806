"""Points of a study: its first points, how new points are queued, and what is known of the stored ones.

A process that adds points to an existing study holds the lock on the study's row, as Optuna does when it numbers a new
trial. Points and trials are therefore numbered without gaps, even when other processes add trials at the same time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from sqlalchemy import Connection, text

from hpsearch.search.narrowing.ladder import Narrowing
from hpsearch.store.rows.columns import as_columns, unnest
from hpsearch.store.rows.distributions import insert_parameters
from hpsearch.store.rows.foreign_endings import ENDED_OUTSIDE
from hpsearch.store.rows.parameter_values import external_value, read_conversions
from hpsearch.store.rows.trial_rows import insert_trials, lock_study, write_trial_attributes
from hpsearch.store.rows.trial_state import (
    ATTEMPT_ATTRIBUTE,
    NLL_ATTRIBUTE,
    POINT_ATTRIBUTE,
    ROUND_ATTRIBUTE,
    StoredState,
    loss_sql,
)
from hpsearch.stored_json import parse_stored
from hpsearch.study.definition import StudyDefinition
from hpsearch.study.settings import TrialSettings
from hpsearch.study.space import ParameterValue, Point, point_key, without_zero_switches

CohortOf = Callable[[TrialSettings], str]


@dataclass(frozen=True, kw_only=True)
class StoredPoint:
    """A point as the database has it.

    Args:
        trial_id: id of its current trial.
        state: state of that trial. WAITING if another program has ended the trial, because the point gets a new one.
        parameters: as Optuna stores them, with `_is_zero` switches; empty if they are still to be drawn.
        loss: of a COMPLETE trial, otherwise None (the value of a PRUNED trial is not the best that it reached).
        nll: validation NLL in nats, at the validation that gave the loss.
    """

    point: int
    trial_id: int
    state: StoredState
    parameters: Mapping[str, ParameterValue]
    loss: float | None
    nll: float | None

    @property
    def values(self) -> dict[str, ParameterValue]:
        """The searched keys with their values; a switched-off lambda is 0."""
        return without_zero_switches(self.parameters)


def narrowing_of(
    definition: StudyDefinition,
    is_trainable: Callable[[TrialSettings], bool] | None = None,
    stored: Iterable[StoredPoint] = (),
) -> Narrowing:
    """Return the rounds of a coarse-to-fine study.

    Args:
        is_trainable: checks what the definition does not know, for example whether the data has enough images for a
            batch size. None: all settings can be trained.
        stored: points of the study. They were checked before they were stored, so they are not checked again: for
            thousands of points that takes a second.
    """
    known = {point_key(point.values) for point in stored}

    def is_admissible(point: Point) -> bool:
        if point_key(point) in known:
            return True
        if definition.is_program or not definition.is_admissible(point):
            return definition.is_program
        return is_trainable is None or is_trainable(definition.resolve(point))

    return Narrowing(
        definition.search.dimensions,
        reduce=definition.reduce,
        is_admissible=is_admissible,
        finest=1 / definition.search.finest_per_decade,
    )


def add_points(
    connection: Connection,
    study_id: int,
    definition: StudyDefinition,
    points: Sequence[Point],
    cohort_of: CohortOf,
    *,
    round_number: int | None = None,
) -> None:
    """Queue points as WAITING trials after the existing ones, in seven statements of the caller's transaction.

    New points get the lowest point numbers that are free: first the numbers of lost points, then the following ones.

    Args:
        points: without Optuna's switches; an empty point has parameters that are still to be drawn.
        cohort_of: names the cohort of a point's settings; not called if the parameters are still to be drawn.
        round_number: the round that adds the points; None if no round does.
    """
    lock_study(connection, study_id)
    numbers = connection.execute(_FREE_NUMBERS, {"study": study_id, "count": len(points)}).scalars().all()
    has_cohorts = not definition.is_drawn and not definition.is_program
    cohorts = [cohort_of(definition.resolve(point)) if has_cohorts else None for point in points]
    trial_ids = insert_trials(connection, study_id, len(points))
    rows = as_columns("number trial_id cohort", zip(numbers, trial_ids, cohorts, strict=True))
    connection.execute(_INSERT_POINTS, {"study": study_id, **rows})
    connection.execute(_FORGET_CONTINUED, {"study": study_id, "numbers": list(numbers)})
    parameters = [definition.parameters(point) for point in points]
    insert_parameters(connection, definition.distributions(), zip(trial_ids, parameters, strict=True))
    in_round = {} if round_number is None else {ROUND_ATTRIBUTE: round_number}
    write_trial_attributes(
        connection,
        [
            (trial_id, {POINT_ATTRIBUTE: number, ATTEMPT_ATTRIBUTE: 1, **in_round})
            for number, trial_id in zip(numbers, trial_ids, strict=True)
        ],
    )


def count_points(connection: Connection, study_id: int) -> int:
    """Return the number of points of a study."""
    return int(connection.execute(_NUM_POINTS, {"study": study_id}).scalar_one())


def read_points(connection: Connection, study_id: int) -> list[StoredPoint]:
    """Return all points of a study with their current trials, in order. Two statements."""
    values = {"study": study_id, "nll": NLL_ATTRIBUTE}
    what = f"a parameter of study number {study_id}"
    from_numbers = read_conversions(connection, study_id)
    return [
        StoredPoint(
            point=row.point,
            trial_id=row.trial_id,
            state=StoredState(row.state),
            parameters={
                name: external_value(from_numbers[hash_], value, what) for name, value, hash_ in row.parameters or ()
            },
            loss=row.loss if row.state == StoredState.COMPLETE.value else None,
            nll=None if row.nll is None else _number(row.nll, f"trial id {row.trial_id}"),
        )
        for row in connection.execute(_POINTS, values)
    ]


def _number(text: str, what: str) -> float | None:
    value = parse_stored(text, what, f"table trial_user_attributes, key {NLL_ATTRIBUTE}")
    return float(value) if isinstance(value, int | float) else None


_NUM_POINTS = text("SELECT count(*) FROM hpsearch_points WHERE study_id = :study")

_INSERT_POINTS = text(f"""
    INSERT INTO hpsearch_points (study_id, point, trial_id, cohort, attempt, crashes, furthest_epoch, is_counted)
    SELECT :study, number, trial_id, cohort, 1, 0, 0, false FROM {unnest("r", "number int, trial_id int, cohort text")}
""")

# Of a lost point that had the same number.
_FORGET_CONTINUED = text("""
    DELETE FROM hpsearch_continued WHERE study_id = :study AND point = ANY(CAST(:numbers AS int[]))
""")

_FREE_NUMBERS = text("""
    SELECT number
    FROM generate_series(0, (SELECT count(*) FROM hpsearch_points WHERE study_id = :study) + :count - 1) AS number
    WHERE NOT EXISTS (SELECT FROM hpsearch_points p WHERE p.study_id = :study AND p.point = number)
    ORDER BY number LIMIT :count
""")

_POINTS = text(f"""
    SELECT p.point, p.trial_id, {loss_sql("v.value")} AS loss,
        CASE WHEN {ENDED_OUTSIDE} THEN 'WAITING' ELSE CAST(t.state AS text) END AS state,
        (SELECT a.value_json FROM trial_user_attributes a WHERE a.trial_id = p.trial_id AND a.key = :nll) AS nll,
        (SELECT json_agg(json_build_array(q.param_name, q.param_value, md5(q.distribution_json)) ORDER BY q.param_id)
            FROM trial_params q WHERE q.trial_id = p.trial_id) AS parameters
    FROM hpsearch_points p JOIN trials t USING (trial_id)
    LEFT JOIN trial_values v ON v.trial_id = p.trial_id AND v.objective = 0
    WHERE p.study_id = :study ORDER BY p.point
""")
