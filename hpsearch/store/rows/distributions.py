"""Parameters of trials with their distributions, as Optuna stores them: written, and parsed for those who need them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from optuna.distributions import BaseDistribution, distribution_to_json, json_to_distribution
from sqlalchemy import Connection, text

from hpsearch.store.rows.columns import as_columns, unnest
from hpsearch.stored_json import damaged
from hpsearch.study.space import ParameterValue

# Each distribution is sent once, however many trials have it: a distribution over a long list of values is long.
_INSERT_PARAMETERS = text(f"""
    INSERT INTO trial_params (trial_id, param_name, param_value, distribution_json)
    SELECT r.trial_id, r.name, r.value, d.json
    FROM {unnest("r", "place int, trial_id int, name text, value float8")}
        JOIN {unnest("d", "distribution text, json text")} ON d.distribution = r.name
    ORDER BY r.place
""")


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


def parse_stored_distribution(text: str, what: str) -> BaseDistribution:
    """Parse a parameter's distribution, as Optuna stores it. Raises the errors of `parse_stored`."""
    place = "table trial_params, column distribution_json"
    try:
        return json_to_distribution(text)
    except RecursionError:
        raise damaged(what, place, "it is nested too deeply") from None
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
        raise damaged(what, place, error if isinstance(error, ValueError) else repr(error)) from error
