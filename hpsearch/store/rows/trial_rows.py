"""Rows of Optuna's tables that creating a study and requeueing a trial write: trials, parameters, attributes.

Each function runs one statement, however many rows it writes, inside the caller's transaction; `count_trials` runs two.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from optuna.distributions import BaseDistribution, distribution_to_json
from sqlalchemy import Connection, func, select, text

from hpsearch.store.connection import tables
from hpsearch.study.space import ParameterValue

_INSERT_TRIALS = text("""
    INSERT INTO trials (study_id, number, state)
    SELECT :study, number, 'WAITING' FROM generate_series(:first, :first + :count - 1) AS number
    RETURNING trial_id, number
""")

# Each distribution is sent once, however many trials have it: a distribution over a long list of values is long.
_INSERT_PARAMETERS = text("""
    INSERT INTO trial_params (trial_id, param_name, param_value, distribution_json)
    SELECT r.trial_id, d.name, r.value, d.json
    FROM unnest(CAST(:trial_ids AS int[]), CAST(:indices AS int[]), CAST(:values AS float8[]))
            WITH ORDINALITY AS r(trial_id, index, value, place)
        JOIN unnest(CAST(:names AS text[]), CAST(:distributions AS text[]))
            WITH ORDINALITY AS d(name, json, index) USING (index)
    ORDER BY r.place
""")

_SET_ATTRIBUTES = text("""
    INSERT INTO trial_user_attributes (trial_id, key, value_json)
    SELECT * FROM unnest(CAST(:trial_ids AS int[]), CAST(:keys AS text[]), CAST(:values AS text[]))
    ON CONFLICT (trial_id, key) DO UPDATE SET value_json = excluded.value_json
""")


def count_trials(connection: Connection, study_id: int) -> int:
    """Lock the study's row, as Optuna does when it numbers a new trial, and return the number of the next trial.

    The next number equals the number of trials, unless another program has deleted some.
    """
    connection.execute(select(tables.studies.c.study_id).where(tables.studies.c.study_id == study_id).with_for_update())
    number: int = connection.execute(
        select(func.coalesce(func.max(tables.trials.c.number), -1) + 1).where(tables.trials.c.study_id == study_id)
    ).scalar_one()
    return number


def insert_trials(connection: Connection, study_id: int, count: int, *, first_number: int) -> list[int]:
    """Insert WAITING trials with consecutive numbers and return their ids in the same order.

    The caller holds a lock under which the study's number of trials cannot change.
    """
    values = {"study": study_id, "first": first_number, "count": count}
    rows = connection.execute(_INSERT_TRIALS, values).all()
    return [row.trial_id for row in sorted(rows, key=lambda row: row.number)]


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
    names = {name: index for index, name in enumerate(distributions, start=1)}
    rows = [
        (trial_id, names[name], distributions[name].to_internal_repr(value))
        for trial_id, values in parameters
        for name, value in values.items()
    ]
    if not rows:
        return
    trial_ids, indices, values = (list(column) for column in zip(*rows, strict=True))
    connection.execute(
        _INSERT_PARAMETERS,
        {
            "trial_ids": trial_ids,
            "indices": indices,
            "values": values,
            "names": list(names),
            "distributions": [distribution_to_json(d) for d in distributions.values()],
        },
    )


def write_trial_attributes(connection: Connection, attributes: Sequence[tuple[int, Mapping[str, Any]]]) -> None:
    """Set user attributes of trials, replacing attributes with the same key."""
    rows = [(trial_id, key, json.dumps(value)) for trial_id, values in attributes for key, value in values.items()]
    if not rows:
        return
    trial_ids, keys, texts = (list(column) for column in zip(*rows, strict=True))
    connection.execute(_SET_ATTRIBUTES, {"trial_ids": trial_ids, "keys": keys, "values": texts})
