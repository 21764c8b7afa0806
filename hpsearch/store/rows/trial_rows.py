"""Rows of Optuna's tables that creating a study and requeueing a trial write: trials and attributes.

Each function runs one statement, however many rows it writes, inside the caller's transaction.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from sqlalchemy import Connection, text

from hpsearch.store.rows.columns import as_columns, unnest

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


def write_trial_attributes(connection: Connection, attributes: Sequence[tuple[int, Mapping[str, Any]]]) -> None:
    """Set user attributes of trials, replacing attributes with the same key."""
    rows = [(trial_id, key, json.dumps(value)) for trial_id, values in attributes for key, value in values.items()]
    if rows:
        connection.execute(_SET_ATTRIBUTES, as_columns("trial_id key value_json", rows))
