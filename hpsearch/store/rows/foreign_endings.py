"""Trials that another program has ended: through plain Optuna, its dashboard, or its own SQL.

Optuna lets any program tell the result of a trial that has not ended, even if another process trains it. hpsearch does
not accept such a value as a result: the trial becomes FAIL, keeps the foreign state and values as attributes, and its
point gets a new attempt. Until a worker has done that (`Ledger.give_back_ended_outside`), readers show the point as
WAITING.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import Connection, text

from hpsearch.store.rows.trial_rows import write_trial_attributes

FAIL_REASON_ATTRIBUTE = "fail_reason"
ENDED_OUTSIDE_REASON = "ended outside hpsearch"
# What the other program wrote: the name of the state, and the values if there were any (numbers, or INF_POS and
# INF_NEG).
FOREIGN_STATE_ATTRIBUTE = "foreign_state"
FOREIGN_VALUES_ATTRIBUTE = "foreign_values"

# A condition on a point `p` and its current trial `t`. hpsearch marks a point as counted in the transaction that ends
# its trial as COMPLETE or PRUNED, and writes a reason for each FAIL; a trial without either was ended by another
# program.
ENDED_OUTSIDE = f"""(
    NOT p.is_counted AND (t.state IN ('COMPLETE', 'PRUNED') OR (t.state = 'FAIL' AND NOT EXISTS (
        SELECT FROM trial_user_attributes a WHERE a.trial_id = t.trial_id AND a.key = '{FAIL_REASON_ATTRIBUTE}'
        OFFSET 0))))"""  # OFFSET 0: looked up for these few, where the attributes of all studies would be read

# A trial's values as a JSON list, or NULL.
FOREIGN_VALUES = """(
    SELECT json_agg(CASE value_type WHEN 'FINITE' THEN to_json(value) ELSE to_json(CAST(value_type AS text)) END
        ORDER BY objective) FROM trial_values WHERE trial_values.trial_id = t.trial_id)"""


def foreign_attributes(state: str, values: Sequence[Any] | None) -> dict[str, Any]:
    """Return the attributes that say why the trial failed, and what the other program wrote."""
    told = {FAIL_REASON_ATTRIBUTE: ENDED_OUTSIDE_REASON, FOREIGN_STATE_ATTRIBUTE: state}
    return told if values is None else {**told, FOREIGN_VALUES_ATTRIBUTE: list(values)}


def set_aside(connection: Connection, trial_ids: Sequence[int]) -> None:
    """Set these ended trials to FAIL and remove their values, in four statements. Their points must be locked."""
    if not trial_ids:
        return
    ended = {"trial_ids": list(trial_ids)}
    told = connection.execute(_TOLD, ended).all()
    write_trial_attributes(connection, [(row.trial_id, foreign_attributes(row.state, row.told)) for row in told])
    connection.execute(_REMOVE_VALUES, ended)
    connection.execute(_FAIL, ended)


_TOLD = text(f"""
    SELECT t.trial_id, CAST(t.state AS text) AS state, {FOREIGN_VALUES} AS told
    FROM trials t WHERE t.trial_id = ANY(CAST(:trial_ids AS int[]))
""")

_REMOVE_VALUES = text("DELETE FROM trial_values WHERE trial_id = ANY(CAST(:trial_ids AS int[]))")

_FAIL = text("UPDATE trials SET state = 'FAIL' WHERE trial_id = ANY(CAST(:trial_ids AS int[]))")
