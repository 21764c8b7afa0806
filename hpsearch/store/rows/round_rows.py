"""Rows of hpsearch_rounds: the rounds of points that a study was given, and the row that ends a search.

A search in rounds (coarse-to-fine) has round 0 from its creation on. Other searches have no rounds until their user
widens them: points that are added later form a round of their own, numbered from 1.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, text

from hpsearch.errors import StorageError
from hpsearch.stored_json import damaged, parse_stored_object


@dataclass(frozen=True, kw_only=True)
class StoredRound:
    """A round of a study.

    Args:
        num_points: number of points that it added; 0 if the search ended with this row.
        reason: for people: why these points were added, or why no more will be.
        opened_at: timezone-aware.
    """

    number: int
    num_points: int
    reason: str
    opened_at: datetime

    @property
    def is_end(self) -> bool:
        """Whether this row ended the search."""
        return self.num_points == 0


def has_ended(num_unfinished: int, rounds: Sequence[StoredRound]) -> bool:
    """Whether a study needs no more workers: nothing is left to train, and no round will follow."""
    goes_in_rounds = bool(rounds) and rounds[0].number == 0
    return num_unfinished == 0 and (not goes_in_rounds or rounds[-1].is_end)


def read_rounds(connection: Connection, study_id: int) -> tuple[StoredRound, ...]:
    """Return the rounds of a study, in order."""
    return tuple(StoredRound(**row._asdict()) for row in connection.execute(_SELECT, {"study": study_id}))


def read_last_state(connection: Connection, study_id: int) -> dict[str, Any]:
    """Return the state from which the next round continues, or {} if there is no round yet.

    Raises:
        StorageError: the state is damaged.
    """
    state = connection.execute(_LAST_STATE, {"study": study_id}).scalar_one_or_none()
    return {} if state is None else parse_stored_object(state, _last_round(study_id), _STATE)


def damaged_state(study_id: int, reason: object) -> StorageError:
    """Return the error to raise if the last round's state is not one that hpsearch has written."""
    return damaged(_last_round(study_id), _STATE, reason)


def _last_round(study_id: int) -> str:
    return f"the state of the last round of study number {study_id}"


def insert_round(
    connection: Connection, study_id: int, number: int, *, num_points: int, state: Mapping[str, Any], reason: str
) -> None:
    """Insert a round. The caller holds the lock on the study's row and knows that the number is free."""
    values = {"study": study_id, "round": number, "num_points": num_points}
    connection.execute(_INSERT, {**values, "state": json.dumps(state), "reason": reason})


def remove_end(connection: Connection, study_id: int) -> bool:
    """Delete the row that ended the search, so that the search continues. Return whether there was one."""
    return connection.execute(_DELETE_END, {"study": study_id}).rowcount > 0


_STATE = "table hpsearch_rounds, column state"

_SELECT = text("""
    SELECT round AS number, num_points, reason, opened_at FROM hpsearch_rounds WHERE study_id = :study ORDER BY round
""")

_LAST_STATE = text("""
    SELECT state FROM hpsearch_rounds WHERE study_id = :study ORDER BY round DESC LIMIT 1
""")

_INSERT = text("""
    INSERT INTO hpsearch_rounds (study_id, round, num_points, state, reason, opened_at)
    VALUES (:study, :round, :num_points, :state, :reason, now())
""")

_DELETE_END = text("DELETE FROM hpsearch_rounds WHERE study_id = :study AND num_points = 0")
