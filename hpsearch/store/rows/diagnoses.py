"""The table hpsearch_diagnoses: the state of a trial's network after some of its epochs."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

from sqlalchemy import Connection, text

from hpsearch.epoch_report import Diagnosis
from hpsearch.store.rows.columns import as_columns, unnest

NUMBERS = ("nll", "gradient_norm", "gradient_noise", "penalty_norm", "saturated", "dead")
COLUMNS = (*NUMBERS, "update_ratios")
# The columns in a statement that also has other columns; update_ratios is NULL if there is no diagnosis.
NAMES = tuple(f"diagnosed_{name}" for name in COLUMNS)
TYPED = ", ".join(f"{name} {'text' if name.endswith('_ratios') else 'float8'}" for name in NAMES)

INSERT = f"INSERT INTO hpsearch_diagnoses (trial_id, epoch, {', '.join(COLUMNS)})"
_WRITE = text(f"""
    {INSERT}
    SELECT trial_id, epoch, {", ".join(NAMES)} FROM {unnest("r", f"trial_id int, epoch int, {TYPED}")}
    ON CONFLICT (trial_id, epoch) DO NOTHING
""")


def diagnosis_values(diagnosis: Diagnosis | None) -> tuple[Any, ...]:
    """The values of `NAMES`, in order."""
    if diagnosis is None:
        return (None,) * len(NAMES)
    return (*(getattr(diagnosis, name) for name in NUMBERS), json.dumps(dict(diagnosis.update_ratios)))


def write_diagnoses(connection: Connection, items: Iterable[tuple[int, int, Diagnosis | None]]) -> None:
    """Write the diagnoses that are not on record, in one statement; no statement if there are none.

    Runs in the caller's transaction. The caller must have checked that it may write these trials.

    Args:
        items: (trial id, epoch, diagnosis).
    """
    rows = [(i, epoch, *diagnosis_values(diagnosis)) for i, epoch, diagnosis in items if diagnosis is not None]
    if rows:
        connection.execute(_WRITE, as_columns(f"trial_id epoch {' '.join(NAMES)}", rows))
