"""Rows of Optuna's tables, as creating a study and requeueing a trial need them: trials, parameters, attributes.

Each function runs one statement, however many rows it writes, inside the caller's transaction.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

from optuna.distributions import BaseDistribution, distribution_to_json
from sqlalchemy import Connection, text

from hpsearch.store.rows.columns import as_columns, unnest
from hpsearch.stored_json import parse_stored_distribution
from hpsearch.study.space import ParameterValue

LockStrength = Literal["UPDATE", "NO KEY UPDATE", "KEY SHARE"]

_LOCK = {
    strength: text(f"SELECT 1 FROM studies WHERE study_id = :study FOR {strength}")
    for strength in ("UPDATE", "NO KEY UPDATE", "KEY SHARE")
}

# The next number equals the number of trials, unless another program has deleted some.
_INSERT_TRIALS = text("""
    INSERT INTO trials (study_id, number, state)
    SELECT :study, last.number + place, 'WAITING'
    FROM (SELECT coalesce(max(number), -1) AS number FROM trials WHERE study_id = :study) last,
        generate_series(1, :count) AS place
    RETURNING trial_id, number
""")

# Each distribution is sent once, however many trials have it: a distribution over a long list of values is long.
_DISTRIBUTIONS = text("""
    SELECT DISTINCT md5(q.distribution_json) AS hash, q.distribution_json
    FROM trials t JOIN trial_params q USING (trial_id) WHERE t.study_id = :study
""")
_INSERT_PARAMETERS = text(f"""
    INSERT INTO trial_params (trial_id, param_name, param_value, distribution_json)
    SELECT r.trial_id, r.name, r.value, d.json
    FROM {unnest("r", "place int, trial_id int, name text, value float8")}
        JOIN {unnest("d", "distribution text, json text")} ON d.distribution = r.name
    ORDER BY r.place
""")

_SET_ATTRIBUTES = text(f"""
    INSERT INTO trial_user_attributes (trial_id, key, value_json)
    SELECT * FROM {unnest("r", "trial_id int, key text, value_json text")}
    ON CONFLICT (trial_id, key) DO UPDATE SET value_json = excluded.value_json
""")


def lock_study(connection: Connection, study_id: int, strength: LockStrength = "UPDATE") -> bool:
    """Lock the study's row until the transaction ends, and return whether the study exists.

    Args:
        strength: UPDATE: nobody numbers a new trial, as in Optuna, adds points or opens a round meanwhile. NO KEY
            UPDATE: nobody else takes this lock; workers go on. KEY SHARE: nobody deletes the study.
    """
    return connection.execute(_LOCK[strength], {"study": study_id}).one_or_none() is not None


def insert_trials(connection: Connection, study_id: int, count: int) -> list[int]:
    """Insert WAITING trials with the next numbers and return their ids in order. The caller holds `lock_study`."""
    rows = connection.execute(_INSERT_TRIALS, {"study": study_id, "count": count}).all()
    return [row.trial_id for row in sorted(rows, key=lambda row: row.number)]


def read_distributions(connection: Connection, study_id: int) -> dict[str, BaseDistribution]:
    """Return the distributions that parameters of a study have, by the MD5 of their text."""
    what = f"a parameter of study number {study_id}"
    texts = connection.execute(_DISTRIBUTIONS, {"study": study_id})
    return {row.hash: parse_stored_distribution(row.distribution_json, what) for row in texts}


def insert_parameters(
    connection: Connection,
    distributions: Mapping[str, BaseDistribution],
    parameters: Iterable[tuple[int, Mapping[str, ParameterValue]]],
) -> None:
    """Insert the parameters of trials.

    Args:
        distributions: name -> distribution.
        parameters: (trial id, name -> value) pairs; every name is a key of `distributions`.
    """
    given = ((trial_id, name, value) for trial_id, values in parameters for name, value in values.items())
    rows = [(place, i, name, distributions[name].to_internal_repr(v)) for place, (i, name, v) in enumerate(given)]
    if rows:
        texts = ((name, distribution_to_json(distribution)) for name, distribution in distributions.items())
        values = as_columns("place trial_id name value", rows) | as_columns("distribution json", texts)
        connection.execute(_INSERT_PARAMETERS, values)


def write_trial_attributes(connection: Connection, attributes: Sequence[tuple[int, Mapping[str, Any]]]) -> None:
    """Set user attributes of trials, replacing attributes with the same key."""
    rows = [(trial_id, key, json.dumps(value)) for trial_id, values in attributes for key, value in values.items()]
    if rows:
        connection.execute(_SET_ATTRIBUTES, as_columns("trial_id key value_json", rows))
