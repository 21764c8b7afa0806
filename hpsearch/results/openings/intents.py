"""Intents: records that a test set is about to be opened, committed before the first test image is read.

An intent is for one point with certain parameters. An intent without a number can be finished for the same point and
parameters without a reason, since a power failure between reading and writing must not use up the only opening. Each
further attempt adds a row, so that every read of the test images is on record, whatever its result. Rows are kept when
their study is deleted.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import groupby
from typing import Any

from sqlalchemy import Connection, Row, func, insert, select, text

from hpsearch.errors import InputError, VaultOpenedError
from hpsearch.results.openings.record import Attempt, OpeningEntry, VaultRecord
from hpsearch.results.openings.stored_openings import is_about, lock_opening, parse_chosen, select_openings
from hpsearch.results.provenance import user_at_host
from hpsearch.store.connection import tables
from hpsearch.store.connection.database import Database
from hpsearch.store.studies import StoredStudy
from hpsearch.wording import times

_CHOSEN_KEYS = ("selection", "study", "trial", "point", "params", "is_retrained")
_NEXT_OPENING_ID = text("SELECT nextval(pg_get_serial_sequence('hpsearch_vault', 'opening_id'))")


@dataclass(frozen=True, kw_only=True)
class VaultIntent(OpeningEntry):
    """An opening that was begun and has no number: its evaluation is still running, failed, or was killed.

    Args:
        intent_ids: ids of its attempts, in order; also in the vault.jsonl of their machines.
        chosen: what was to be evaluated, as in `Finding.chosen`, without validation_error, device and intent.
        declared_at, declared_by: time (UTC, the database's clock) and user@host of the first attempt.
        last_at, last_by: time and user@host of the latest attempt.
    """

    has_number = False
    json_keys = (
        *("opening", "reason", "declared_at", "declared_by", "attempts", "last_at", "last_by"),
        *("parameters_sha256", "chosen"),
    )
    intent_ids: tuple[str, ...]
    declared_at: datetime
    declared_by: str
    last_at: datetime
    last_by: str

    @property
    def attempts(self) -> int:
        """Number of attempts."""
        return len(self.intent_ids)

    def describe(self) -> str:
        again = ""
        if self.attempts > 1:
            again = f", and {self.attempts - 1} more times, last {self.last_at:%Y-%m-%d %H:%M:%S} by {self.last_by}"
        declared = f"{self.declared_at:%Y-%m-%d %H:%M:%S} UTC by {self.declared_by}"
        return f"{declared}{again}: no number on record, for {self.model}"

    def is_of(self, chosen: Mapping[str, Any]) -> bool:
        """Whether the intent is for this point of this study."""
        return all(self.chosen[key] == chosen[key] for key in ("study", "trial", "point", "params"))


Intents = tuple[tuple[VaultIntent, ...], tuple[VaultIntent, ...]]  # of a study, and of deleted studies of its name


def intent_to_finish(
    name: str,
    openings: Sequence[VaultRecord],
    intents: Sequence[VaultIntent],
    *,
    reason: str | None,
    chosen: Mapping[str, Any] | None = None,
    parameters_sha256: str | None = None,
) -> VaultIntent | None:
    """Check that the test set may be opened, and find the unfinished opening that this would finish.

    Args:
        reason: why the vault is opened again; None: it must be unopened, or its last opening unfinished.
        chosen, parameters_sha256: what will be evaluated, if it is known already; None is not checked.
    Returns:
        The intent to finish; None for a new opening.
    Raises:
        VaultOpenedError: without a reason, and the test set was opened before, or was begun to be opened for another
            point or other parameters.
        InputError: a reason was given, but the test set was never opened.
    """
    if reason is not None:
        if not openings and not intents:
            raise InputError(
                f"--again: the test set of study {name!r} has not been opened yet", hint=f"hpsearch test {name}"
            )
        return None
    last_number = max((record.opening for record in openings), default=0)
    pending = intents[-1] if intents and intents[-1].opening > last_number else None
    if pending is None:
        if openings:
            raise opened_before(name, openings)
        return None
    if chosen is not None and not pending.is_of(chosen):
        raise _begun_for_another(name, pending, "another point")
    if parameters_sha256 not in (None, pending.parameters_sha256):
        raise _begun_for_another(
            name, pending, f"other parameters (SHA-256 {pending.parameters_sha256}, not {parameters_sha256})"
        )
    return pending


def opened_before(name: str, openings: Sequence[VaultRecord]) -> VaultOpenedError:
    """The error for a test set that has a number on record already; its message has all numbers."""
    told = [f"{r.describe()}, again: {r.reason}" if r.reason else r.describe() for r in openings]
    often = "" if len(told) == 1 else f" {times(len(told))}"
    return VaultOpenedError(
        f"the test set of study {name!r} was opened before{often}: {'; '.join(told)}",
        hint='results that are chosen by repeated looks at the test images are biased; --again "reason" opens the test '
        "set once more and records the reason",
    )


def _begun_for_another(name: str, pending: VaultIntent, what: str) -> VaultOpenedError:
    return VaultOpenedError(
        f"the test set of study {name!r} was opened before for {what}: {pending.describe()}",
        hint=f"--point {pending.chosen['selection']} finishes that opening if it selects the same parameters; "
        '--again "reason" opens the test set once more and records the reason',
    )


def declare_intent(
    database: Database,
    study: StoredStudy,
    *,
    intent_id: str,
    chosen: Mapping[str, Any],
    parameters_sha256: str,
    reason: str | None,
) -> Attempt:
    """Commit the intent to open the test set: for a new opening, or as another attempt at an unfinished one.

    One transaction. Any number of processes may call it at the same time; for different points only one succeeds.
    Calling it twice with the same id is safe.

    Raises:
        VaultOpenedError, InputError: as `intent_to_finish`.
        StudyNotFoundError: the study was deleted in the meantime.
        StorageError: the connection was lost; the row may or may not have been committed.
    """

    def work(connection: Connection) -> Attempt:
        columns = tables.vault_intents.c
        row = connection.execute(select(tables.vault_intents).where(columns.intent_id == intent_id)).one_or_none()
        if row is not None:  # an earlier call committed it, but the answer was lost
            return Attempt(intent_id=intent_id, opening_id=row.opening_id, opening=row.opening, reason=row.reason)
        lock_opening(connection, study, "NO KEY UPDATE", "the test set was not opened")
        intents, _ = select_intents(connection, study)
        openings, _ = select_openings(connection, study)
        unfinished = intent_to_finish(
            study.name, openings, intents, reason=reason, chosen=chosen, parameters_sha256=parameters_sha256
        )
        if unfinished is None:
            latest = max([0, *(each.opening for each in (*openings, *intents))])
            opening_id = connection.execute(_NEXT_OPENING_ID).scalar_one()
            attempt = Attempt(intent_id=intent_id, opening_id=opening_id, opening=latest + 1, reason=reason)
        else:
            place = {"opening_id": unfinished.opening_id, "opening": unfinished.opening}
            attempt = Attempt(intent_id=intent_id, **place, reason=unfinished.reason)
        values = {
            **vars(attempt),
            "attempt": 1 if unfinished is None else unfinished.attempts + 1,
            "study_id": study.study_id,
            "study_name": study.name,
            "declared_at": func.now(),
            "declared_by": user_at_host(),
            "chosen": json.dumps(dict(chosen)),
            "parameters_sha256": parameters_sha256,
        }
        connection.execute(insert(tables.vault_intents).values(**values))
        return attempt

    return database.transaction(work)


def is_declared(database: Database, attempt: Attempt) -> bool:
    """Whether the attempt's row is committed. The reader of the test images checks this before it reads."""
    intent_id = tables.vault_intents.c.intent_id
    query = select(intent_id).where(intent_id == attempt.intent_id)
    return database.transaction(lambda connection: connection.execute(query).one_or_none()) is not None


def read_intent_ids(database: Database, study: StoredStudy) -> list[str]:
    """The ids of all attempts of this study, finished or not."""
    query = select(tables.vault_intents.c.intent_id).where(tables.vault_intents.c.study_id == study.study_id)
    return list(database.transaction(lambda connection: connection.execute(query).scalars().all()))


def select_intents(connection: Connection, study: StoredStudy) -> Intents:
    """The openings without a number of this study, and of deleted studies of its name; one statement.

    In a transaction that also reads the numbers, call this function first. An opening whose number is written between
    the two statements then appears in both results instead of in neither.
    """
    columns, numbers = tables.vault_intents.c, tables.vault.c
    has_number = select(numbers.opening_id).where(numbers.opening_id == columns.opening_id).exists()
    query = select(tables.vault_intents).where(is_about(columns, study), ~has_number)
    rows = connection.execute(query.order_by(columns.opening_id, columns.attempt)).all()
    openings = groupby(rows, lambda row: (row.opening_id, row.study_id is not None))
    found = [(own, _intent_from(list(group))) for (_, own), group in openings]
    return tuple(intent for own, intent in found if own), tuple(intent for own, intent in found if not own)


def _intent_from(rows: Sequence[Row[Any]]) -> VaultIntent:
    """An intent from the rows of its attempts, in order. Raises StorageError if a row is damaged."""
    first, last = rows[0], rows[-1]
    what = f"the intent to open the test set of study {first.study_name!r}"
    place = f"table {tables.vault_intents.name}, column chosen"
    return VaultIntent(
        intent_ids=tuple(row.intent_id for row in rows),
        opening_id=first.opening_id,
        study_name=first.study_name,
        opening=first.opening,
        reason=first.reason,
        chosen=parse_chosen(first.chosen, what, place, _CHOSEN_KEYS),
        parameters_sha256=first.parameters_sha256,
        declared_at=first.declared_at.astimezone(UTC),
        declared_by=first.declared_by,
        last_at=last.declared_at.astimezone(UTC),
        last_by=last.declared_by,
    )
