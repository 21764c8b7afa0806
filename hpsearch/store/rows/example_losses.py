"""Losses of trials on each validation example, of studies that are not judged by their errors.

They are the examples' parts of the metric's loss at the trial's best validation: their mean is the loss
(`training.judge.Judge.record`).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import Connection, text

from hpsearch.logs import get_logger
from hpsearch.store.connection.database import Database
from hpsearch.store.rows.columns import as_columns, unnest

_log = get_logger("example_losses")
_TYPE = np.dtype("<f4")

_READ = text("""
    SELECT trial_id, num_examples, losses FROM hpsearch_example_losses
    WHERE trial_id = ANY(CAST(:trial_ids AS int[]))
""")

_WRITE = text(f"""
    INSERT INTO hpsearch_example_losses (trial_id, num_examples, losses)
    SELECT * FROM {unnest("r", "trial_id int, num_examples int, losses bytea")}
    ON CONFLICT (trial_id) DO NOTHING
""")

Losses = NDArray[np.float32]


def read_example_losses(database: Database, trial_ids: Sequence[int]) -> dict[int, Losses]:
    """Map trial ids to their losses, [N], for those trials that have any. Damaged ones are logged and left out."""
    found = {}
    for row in database.rows(_READ, {"trial_ids": list(trial_ids)}):
        content = bytes(row.losses)
        losses = np.frombuffer(content, dtype=_TYPE) if len(content) % _TYPE.itemsize == 0 else None
        if losses is None or len(losses) != row.num_examples or not np.isfinite(losses).all():
            what = "the record of trial id %d in hpsearch_example_losses is damaged: %d bytes for %d examples"
            _log.warning(what, row.trial_id, len(content), row.num_examples)
            continue
        found[row.trial_id] = losses
    return found


def write_example_losses(connection: Connection, items: Iterable[tuple[int, Losses | None]]) -> None:
    """Write the losses of the trials that have any, in one statement; no statement if no trial has any.

    Runs in the caller's transaction. The caller must have checked that it may write these trials.

    Args:
        items: (trial id, losses [N]) pairs.
    """
    rows = [(trial_id, len(its), its.astype(_TYPE).tobytes()) for trial_id, its in items if its is not None]
    if rows:
        connection.execute(_WRITE, as_columns("trial_id num_examples losses", rows))
