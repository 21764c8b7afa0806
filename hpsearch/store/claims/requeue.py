"""Requeueing: a trial that ends without a result becomes FAIL, and a new WAITING trial takes its place.

`Ledger.reap` calls it for the trials of dead workers (`lease`), `Ledger.release` for those that a worker gives back.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Row

from hpsearch.safe_text import for_terminal
from hpsearch.store.claims import ledger_sql as statements
from hpsearch.store.rows.columns import as_columns
from hpsearch.store.rows.foreign_endings import FAIL_REASON_ATTRIBUTE, set_aside
from hpsearch.store.rows.trial_rows import insert_trials, write_trial_attributes
from hpsearch.store.rows.trial_state import ATTEMPT_ATTRIBUTE, CONTINUES_ATTRIBUTE, POINT_ATTRIBUTE, ROUND_ATTRIBUTE
from hpsearch.stored_json import parse_stored

MAX_CRASHES = 3  # a point is given up after this many crashes; a continued one gets its earlier result back


@dataclass(frozen=True, kw_only=True)
class CrashLimit:
    """When a point is given up.

    Args:
        max_crashes: after this many crashes.
        always: an attempt that got farther than all earlier ones counts as a crash, too.
    """

    max_crashes: int = MAX_CRASHES
    always: bool = False


def fail_and_requeue(
    connection: Connection,
    study_id: int,
    rows: Sequence[Row[Any]],
    reason: str,
    *,
    is_crash: bool,
    limit: CrashLimit | None = None,
) -> None:
    """Set the trials of `rows` to FAIL and queue a new WAITING trial for each point, or give the point up.

    Part of a transaction that has locked the points and the study's row. Trials that another program has ended, even a
    moment ago, are set aside (foreign_endings.py) instead, whatever the reason for the others is.

    Args:
        rows: as the ledger's statements for a requeue select them.
        reason: stored with each failed trial; passwords in it are masked, and control characters escaped.
        is_crash: these attempts ended with their worker's death. Each counts as a crash of its point, unless it got
            farther than all earlier attempts.
        limit: when a point is given up.
    """
    limit = limit or CrashLimit()
    if not rows:
        return
    failed = set(connection.execute(statements.FAIL, {"trial_ids": [row.trial_id for row in rows]}).scalars())
    set_aside(connection, [row.trial_id for row in rows if row.trial_id not in failed])
    write_trial_attributes(connection, [(i, {FAIL_REASON_ATTRIBUTE: for_terminal(reason)}) for i in failed])
    # An attempt that got farther than all earlier ones was probably not killed by its own point: machines fail, too.
    crash_of = {row.trial_id: int(is_crash and (limit.always or row.reached <= row.furthest_epoch)) for row in rows}
    given_up = [row for row in rows if crash_of[row.trial_id] and row.crashes + 1 >= limit.max_crashes]
    again = [row for row in rows if row not in given_up]
    if given_up:
        connection.execute(statements.GIVE_UP, {"trial_ids": [row.trial_id for row in given_up]})
    if again:
        _queue_again(connection, study_id, again, crash_of)


def retry_given_up(connection: Connection, study_id: int, max_crashes: int) -> int:
    """Queue the points again that were given up after fewer crashes than are allowed now, and return their number.

    Part of a transaction that has locked the study's row.
    """
    given_up = {"study": study_id, "max_crashes": max_crashes}
    rows = connection.execute(statements.GIVEN_UP_FOR_UPDATE, given_up).all()
    if rows:
        _queue_again(connection, study_id, rows, {row.trial_id: 0 for row in rows})
    return len(rows)


def _queue_again(connection: Connection, study_id: int, again: Sequence[Row[Any]], crash_of: Mapping[int, int]) -> None:
    """Give each of these points a new WAITING trial in the place of one that has failed."""
    old_ids = [row.trial_id for row in again]
    new_ids = insert_trials(connection, study_id, len(again))
    replaced = zip(old_ids, new_ids, (crash_of[i] for i in old_ids), (row.reached for row in again), strict=True)
    pairs = as_columns("old_id new_id crash reached", replaced)
    connection.execute(statements.COPY_PARAMETERS, pairs)
    connection.execute(statements.REPLACE_TRIAL, pairs)
    write_trial_attributes(
        connection,
        [
            (new_id, {POINT_ATTRIBUTE: row.point, ATTEMPT_ATTRIBUTE: row.attempt + 1, **_kept(row)})
            for new_id, row in zip(new_ids, again, strict=True)
        ],
    )


def _kept(row: Row[Any]) -> dict[str, Any]:
    """The attributes that the next attempt takes over."""
    stored = {ROUND_ATTRIBUTE: row.round, CONTINUES_ATTRIBUTE: row.continues}
    what = f"trial id {row.trial_id}"
    return {
        key: parse_stored(value, what, f"table trial_user_attributes, key {key}")
        for key, value in stored.items()
        if value is not None
    }
