"""A trial as Optuna's samplers and pruners see it, from rows of our own statements."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

from optuna.distributions import BaseDistribution
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy import Row

from hpsearch.stored_json import parse_stored


def frozen_trial(
    row: Row[Any],
    *,
    curve: Sequence[tuple[int, float]] | None,
    notes: Mapping[str, str] | None,
    distributions: Mapping[str, BaseDistribution] = MappingProxyType({}),
    parameters: Mapping[str, Any] = MappingProxyType({}),
) -> FrozenTrial:
    """Return the trial of a row that has its id, number, state, value and times.

    Args:
        curve: (step, intermediate value) pairs.
        notes: system attributes, as JSON.
    Raises:
        StorageError: a note is damaged.
    """
    return FrozenTrial(
        number=row.number,
        trial_id=row.trial_id,
        state=TrialState[row.state],
        value=row.value,
        datetime_start=row.datetime_start,
        datetime_complete=row.datetime_complete,
        params=dict(parameters),
        distributions=dict(distributions),
        user_attrs={},
        system_attrs={
            key: parse_stored(value, f"trial {row.number}", f"table trial_system_attributes, key {key}")
            for key, value in (notes or {}).items()
        },
        intermediate_values={step: float(value) for step, value in curve or ()},  # JSON writes 0.0 as 0
    )
