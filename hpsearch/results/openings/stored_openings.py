"""The table of the vault: every opening of a study's test set, with its number.

The intent, committed before (intents.py), determines the number of the opening. An opening is unique by a database
constraint (study_id, opening): a second process gets the record of the first. Rows are kept when their study is
deleted; they then have only its name.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import fields
from datetime import UTC
from typing import Any

from sqlalchemy import Column, ColumnElement, Connection, Row, func, or_, select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.sql.base import ReadOnlyColumnCollection

from hpsearch.errors import StudyNotFoundError
from hpsearch.metric import METRICS
from hpsearch.results.openings.record import Attempt, Finding, Openings, VaultRecord
from hpsearch.results.provenance import code_commit, user_at_host
from hpsearch.store.connection import tables
from hpsearch.store.connection.database import Database
from hpsearch.store.rows.trial_rows import LockStrength, lock_study
from hpsearch.store.studies import StoredStudy, current_versions
from hpsearch.stored_json import Kind, check_kind, damaged, parse_stored_object, parse_stored_texts

_CHOSEN_KINDS = {
    "selection": Kind.TEXT,
    "study": Kind.TEXT,
    "trial": Kind.WHOLE,
    "point": Kind.WHOLE,
    "params": Kind.OBJECT,
    "validation_error": Kind.NUMBER,
    "is_retrained": Kind.FLAG,
    "device": Kind.TEXT,
}
# The keys that views show.
_CHOSEN_KEYS = ("selection", "study", "trial", "params", "validation_error", "is_retrained", "device")


def select_openings(connection: Connection, study: StoredStudy) -> Openings:
    """Openings of this study, and of deleted studies of its name, each in order; one statement."""
    vault = tables.vault.c
    rows = connection.execute(select(tables.vault).where(is_about(vault, study)).order_by(vault.opening_id)).all()
    ours = sorted((_record_from(row) for row in rows if row.study_id is not None), key=lambda record: record.opening)
    return tuple(ours), tuple(_record_from(row) for row in rows if row.study_id is None)


def is_about(columns: ReadOnlyColumnCollection[str, Column[Any]], study: StoredStudy) -> ColumnElement[bool]:
    """Condition for the rows of a study and of deleted studies of its name, which have no study_id."""
    return or_(columns.study_id == study.study_id, columns.study_id.is_(None) & (columns.study_name == study.name))


def record_opening(
    database: Database, study: StoredStudy, attempt: Attempt, finding: Finding
) -> tuple[VaultRecord, bool]:
    """Record the number of an opening whose intent is committed. One transaction.

    Any number of processes may call it at the same time. For one opening only the first number is recorded.

    Returns:
        The record and True; or, if another process was first, its record and False: discard the finding.
    Raises:
        StudyNotFoundError: the study was deleted in the meantime; nothing is written.
        StorageError: the connection was lost; the number may or may not have been committed.
    """
    values = {
        **vars(finding),
        "test_checksums": json.dumps(dict(finding.test_checksums)),
        "chosen": json.dumps({**finding.chosen, "intent": attempt.intent_id}),
        "opening_id": attempt.opening_id,
        "opening": attempt.opening,
        "reason": attempt.reason,
        "study_id": study.study_id,
        "study_name": study.name,
        "definition_sha256": study.definition.sha256,
        "opened_by": user_at_host(),
        "code_commit": code_commit(),
        "versions": json.dumps(current_versions()),
    }
    record = database.transaction(lambda connection: _insert(connection, study, values))
    return record, record.chosen.get("intent") == attempt.intent_id


def _insert(connection: Connection, study: StoredStudy, values: Mapping[str, Any]) -> VaultRecord:
    """Insert the row unless the opening has one; returns the row, or the existing row."""
    lock_opening(connection, study, "KEY SHARE", "nothing is recorded, and the number is discarded")
    # On a conflict the insert waits for the other process's commit, which the next statement then sees. A row without
    # an intent, by an older hpsearch, has another id and the same number of the opening.
    statement = insert(tables.vault).values(**values, opened_at=func.now()).on_conflict_do_nothing()
    row = connection.execute(statement.returning(tables.vault)).one_or_none()
    if row is None:
        vault = tables.vault.c
        first = (vault.study_id == study.study_id) & (vault.opening == values["opening"])
        row = connection.execute(select(tables.vault).where(first)).one()
    return _record_from(row)


def lock_opening(connection: Connection, study: StoredStudy, strength: LockStrength, consequence: str) -> None:
    """Prevent the study from being deleted before the commit. The lock does not block workers.

    Args:
        consequence: what a deletion means, for the error message.
    """
    if not lock_study(connection, study.study_id, strength):
        raise StudyNotFoundError(f"study {study.name!r} was deleted in the meantime: {consequence}")


def parse_chosen(text: str, what: str, place: str, keys: Sequence[str]) -> dict[str, Any]:
    """Parse a stored `Finding.chosen`. Raises StorageError if it is damaged."""
    chosen = parse_stored_object(text, what, place, keys)
    for key in keys:
        if not (key == "point" and chosen[key] is None):  # a trial without a point, by an older hpsearch
            check_kind(chosen[key], _CHOSEN_KINDS[key], what, f"{place}, {key}")
    if "metric" in chosen and chosen["metric"] not in METRICS:
        raise damaged(what, f"{place}, metric", f"a metric that this version does not know: {chosen['metric']!r}")
    numbers = [chosen[key] for key in ("test_value", "macro_f1") if chosen.get(key) is not None]
    if (interval := chosen.get("test_interval")) is not None:
        numbers += interval if isinstance(interval, list) and len(interval) == 2 else [None]
    for number in numbers:
        check_kind(number, Kind.NUMBER, what, f"{place}, test_value, test_interval and macro_f1")
    if chosen["selection"] not in ("best", "confirmed"):
        raise damaged(what, f"{place}, selection", f"expected best or confirmed, found {chosen['selection']!r}")
    for name, value in chosen["params"].items():
        if not isinstance(value, str | bool):
            check_kind(value, Kind.NUMBER, what, f"{place}, params, {name}")
    return chosen


def _record_from(row: Row[Any]) -> VaultRecord:
    """A record from its row. Raises StorageError if the row is damaged."""
    values = {field.name: getattr(row, field.name) for field in fields(VaultRecord)}
    what = f"opening {row.opening} of the test set of study {row.study_name!r}"
    place = f"table {tables.vault.name}, column"
    for name in ("versions", "test_checksums"):
        values[name] = parse_stored_texts(values[name], what, f"{place} {name}")
    values["chosen"] = parse_chosen(values["chosen"], what, f"{place} chosen", _CHOSEN_KEYS)
    if not 0 <= row.num_errors <= row.num_images or not row.num_images:
        raise damaged(what, f"{place} num_errors", f"{row.num_errors} of {row.num_images} images")
    return VaultRecord(**{**values, "opened_at": row.opened_at.astimezone(UTC)})
