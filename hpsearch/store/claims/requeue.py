"""Requeueing: a trial that ends without a result becomes FAIL, and a new WAITING trial takes its place."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import Connection, Row

from hpsearch.safe_text import mask_passwords
from hpsearch.store.claims import ledger_sql as statements
from hpsearch.store.rows.foreign_endings import FAIL_REASON_ATTRIBUTE, set_aside
from hpsearch.store.rows.points import ATTEMPT_ATTRIBUTE, POINT_ATTRIBUTE, ROUND_ATTRIBUTE
from hpsearch.store.rows.trial_rows import insert_trials, write_trial_attributes
from hpsearch.stored_json import parse_stored


def fail_and_requeue(
    connection: Connection,
    study_id: int,
    rows: Sequence[Row[Any]],
    reason: str,
    first_number: int,
    *,
    is_crash: bool,
    max_crashes: int,
) -> None:
    """Set the trials of `rows` to FAIL and queue a new WAITING trial for each point, or give the point up.

    Part of a transaction that has locked the points and the study's row. Trials that another program has ended, even a
    moment ago, are set aside (foreign_endings.py) instead, whatever the reason for the others is.

    Args:
        rows: as the ledger's statements for a requeue select them.
        reason: stored with each failed trial; passwords in it are masked.
        first_number: number of the first new trial.
        is_crash: count this as a crash of those points that got no farther than in earlier attempts.
        max_crashes: number of crashes after which a point is given up.
    """
    if not rows:
        return
    failed = set(connection.execute(statements.FAIL, {"trial_ids": [row.trial_id for row in rows]}).scalars())
    set_aside(connection, [row.trial_id for row in rows if row.trial_id not in failed])
    write_trial_attributes(connection, [(i, {FAIL_REASON_ATTRIBUTE: mask_passwords(reason)}) for i in failed])
    # An attempt that got farther than all earlier ones was probably not killed by its own point: machines fail, too.
    crash_of = {row.trial_id: int(is_crash and row.reached <= row.furthest_epoch) for row in rows}
    given_up = [row for row in rows if crash_of[row.trial_id] and row.crashes + 1 >= max_crashes]
    again = [row for row in rows if row not in given_up]
    if given_up:
        connection.execute(statements.GIVE_UP, {"trial_ids": [row.trial_id for row in given_up]})
    if not again:
        return
    old_ids = [row.trial_id for row in again]
    new_ids = insert_trials(connection, study_id, len(again), first_number=first_number)
    pairs = {"old_ids": old_ids, "new_ids": new_ids}
    connection.execute(statements.COPY_PARAMETERS, pairs)
    crashes = {"crashes": [crash_of[i] for i in old_ids], "reached": [row.reached for row in again]}
    connection.execute(statements.REPLACE_TRIAL, {**pairs, **crashes})
    write_trial_attributes(
        connection,
        [
            (new_id, {POINT_ATTRIBUTE: row.point, ATTEMPT_ATTRIBUTE: row.attempt + 1, **_round_of(row)})
            for new_id, row in zip(new_ids, again, strict=True)
        ],
    )


def _round_of(row: Row[Any]) -> dict[str, Any]:
    what, place = f"trial id {row.trial_id}", f"table trial_user_attributes, key {ROUND_ATTRIBUTE}"
    return {} if row.round is None else {ROUND_ATTRIBUTE: parse_stored(row.round, what, place)}
