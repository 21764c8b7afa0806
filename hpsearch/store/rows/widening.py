"""Continuing a study with a changed definition: missing points are added, existing points are not run again.

hpsearch/study/change.py says what may change. All functions run in the caller's transaction, under the lock on the
study's row, so that active workers see either the old study or the new one. A worker that still has the old definition
in memory can train the new points, because each point carries its own values.
"""

from __future__ import annotations

import itertools

from optuna.distributions import distribution_to_json
from sqlalchemy import Connection, text

from hpsearch.store.rows.columns import as_columns, unnest
from hpsearch.store.rows.counts import num_lost_points
from hpsearch.store.rows.parameter_values import external_value, read_conversions
from hpsearch.store.rows.points import CohortOf, add_points, count_points, narrowing_of, read_points
from hpsearch.store.rows.round_rows import insert_round, read_last_state, read_rounds, remove_end
from hpsearch.store.rows.trial_rows import lock_study
from hpsearch.study.definition import StudyDefinition
from hpsearch.study.space import Point, point_key

WIDENED = "more points were asked for"


def widen_study(
    connection: Connection, study_id: int, stored: StudyDefinition, given: StudyDefinition, cohort_of: CohortOf
) -> int:
    """Add the points of `given` that the study does not have. The caller stores the definition itself.

    Returns:
        The number of added points. Workers can claim them as soon as the transaction commits.
    """
    lock_study(connection, study_id)  # no process can open a round or end the search meanwhile
    if not given.is_drawn:
        _encode_anew(connection, study_id, stored, given)
    points = _lacking_points(connection, study_id, given)
    if stored.search != given.search:
        remove_end(connection, study_id)  # with a larger budget or finer steps, the search has to be decided again
    if points:
        rounds = read_rounds(connection, study_id)
        number = rounds[-1].number + 1 if rounds else 1
        state = read_last_state(connection, study_id)
        add_points(connection, study_id, given, points, cohort_of, round_number=number)
        insert_round(connection, study_id, number, num_points=len(points), state=state, reason=WIDENED)
    return len(points)


def restore_lost_points(connection: Connection, study_id: int, definition: StudyDefinition, cohort_of: CohortOf) -> int:
    """Queue points again whose trials another program has deleted, and return their number. Cheap if there are none."""
    lock_study(connection, study_id)
    if not num_lost_points(definition, count_points(connection, study_id)):
        return 0
    points = _lacking_points(connection, study_id, definition)
    if points:
        add_points(connection, study_id, definition, points, cohort_of)
    return len(points)


def _lacking_points(connection: Connection, study_id: int, given: StudyDefinition) -> list[Point]:
    """Return the points of the definition that equal no point of the study, in order."""
    stored = read_points(connection, study_id)
    if given.is_drawn:
        return list(itertools.islice(given.points(), max(0, given.num_points - len(stored))))
    known = {point_key(point.values) for point in stored}
    is_narrowed = given.search.strategy == "coarse-to-fine"
    wanted = narrowing_of(given, stored=stored).points() if is_narrowed else given.points()
    lacking = [point for point in wanted if point_key(point) not in known]
    room = num_allowed(given) - len(stored) if is_narrowed else len(lacking)
    return list(lacking[: max(0, room)])


def num_allowed(definition: StudyDefinition) -> int:
    """Return the maximum number of points of a coarse-to-fine search."""
    return min(definition.search.budget_points or definition.search.max_points, definition.search.max_points)


def _encode_anew(connection: Connection, study_id: int, stored: StudyDefinition, given: StudyDefinition) -> None:
    """Store the wider distributions in all trials of the study.

    Optuna's importances and plots use only trials with one and the same distribution, and Optuna stores a categorical
    value as its index in the list of choices.
    """
    before, after = stored.distributions(), given.distributions()
    changed = {name: wider for name, wider in after.items() if before.get(name) != wider}
    if not changed:
        return
    values = {"study": study_id, "names": list(changed)}
    what = f"a parameter of study number {study_id}"
    from_numbers = read_conversions(connection, study_id)
    rows = [
        (name, hash_, old, changed[name].to_internal_repr(external_value(from_numbers[hash_], old, what)))
        for name, hash_, old in connection.execute(_STORED_VALUES, values)
    ]
    encoded = as_columns("name hash old_value new_value", rows)
    wider = as_columns("changed json", ((name, distribution_to_json(each)) for name, each in changed.items()))
    connection.execute(_ENCODE, {"study": study_id, **encoded, **wider})


_STORED_VALUES = text("""
    SELECT DISTINCT q.param_name, md5(q.distribution_json) AS hash, q.param_value
    FROM trials t JOIN trial_params q USING (trial_id)
    WHERE t.study_id = :study AND q.param_name = ANY(CAST(:names AS text[]))
""")

_ENCODE = text(f"""
    UPDATE trial_params q SET param_value = r.new_value, distribution_json = d.json
    FROM trials t, {unnest("r", "name text, hash text, old_value float8, new_value float8")}
        JOIN {unnest("d", "changed text, json text")} ON d.changed = r.name
    WHERE t.study_id = :study AND q.trial_id = t.trial_id
        AND q.param_name = r.name AND md5(q.distribution_json) = r.hash AND q.param_value = r.old_value
""")
