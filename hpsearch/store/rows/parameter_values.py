"""Values of parameters that Optuna has stored as numbers, without Optuna, which takes a third of a second to load."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

from sqlalchemy import Connection, text

from hpsearch.stored_json import Kind, check_kind, damaged

FromNumber = Callable[[float], Any]

# Each distribution is sent once, however many trials have it: a distribution over a long list of values is long.
_DISTRIBUTIONS = text("""
    SELECT DISTINCT md5(q.distribution_json) AS hash, q.distribution_json
    FROM trials t JOIN trial_params q USING (trial_id) WHERE t.study_id = :study
""")


def read_conversions(connection: Connection, study_id: int) -> dict[str, FromNumber]:
    """Return `parse_from_number` of all distributions of a study, by the MD5 of their text."""
    what = f"a parameter of study number {study_id}"
    texts = connection.execute(_DISTRIBUTIONS, {"study": study_id})
    return {row.hash: parse_from_number(row.distribution_json, what) for row in texts}


def read_parameters(rows: Sequence[tuple[str, float, str]] | None, owner: str) -> dict[str, Any]:
    """Return a trial's parameters.

    Args:
        rows: name, number and distribution of each; None: there are none.
        owner: the trial in messages.
    Raises:
        StorageError: a distribution or a number is damaged.
    """
    parameters = {}
    for name, value, distribution in rows or ():
        what = f"parameter {name} of {owner}"
        parameters[name] = external_value(parse_from_number(distribution, what), value, what)
    return parameters


def external_value(from_number: FromNumber, stored: float, what: str) -> Any:
    """Convert a parameter that Optuna has stored as a number.

    Args:
        from_number: `to_external_repr` of its distribution, or the function that `parse_from_number` returns.
        what: name of the object in messages.
    Raises:
        StorageError: the number is damaged.
    """
    place = "table trial_params, column param_value"
    check_kind(stored, Kind.NUMBER, what, place)
    try:
        return from_number(float(stored))  # JSON from PostgreSQL has 1 for 1.0
    except (IndexError, ValueError, OverflowError) as error:
        raise damaged(what, place, error) from error


def parse_from_number(text: str, what: str) -> FromNumber:
    """Return the `to_external_repr` of a distribution that Optuna has stored as JSON.

    The distributions that hpsearch writes are read here. All others are left to Optuna, which also says what is wrong.

    Raises:
        StorageError: the distribution is damaged.
    """
    from_number = _from_number(text)
    if from_number is not None:
        return from_number
    from hpsearch.store.rows.distributions import parse_stored_distribution  # loads Optuna

    return parse_stored_distribution(text, what).to_external_repr


def _from_number(text: str) -> FromNumber | None:
    """The conversion of a distribution that is certainly one of hpsearch's; None for any other text."""
    try:
        match json.loads(text):
            case {"name": "CategoricalDistribution", "attributes": {"choices": [_, *_] as choices, **more}, **others}:
                values = tuple(choices)
                is_ours = all(isinstance(value, str | int | float) for value in values) and not more and not others
                return (lambda stored: values[int(stored)]) if is_ours else None
            case {
                "name": "FloatDistribution" | "IntDistribution" as name,
                "attributes": {"low": low, "high": high, "log": bool() as is_log, "step": step, **more},
                **others,
            }:
                number, whole_step = (int, 1) if name == "IntDistribution" else (float, None)
                is_ours = type(low) is type(high) is number and step == whole_step and not more and not others
                if not is_ours or (is_log and low <= 0) or not low <= high:
                    return None
                return int if number is int else _unchanged
    except (ValueError, RecursionError):
        pass
    return None


def _unchanged(stored: float) -> float:
    return stored
