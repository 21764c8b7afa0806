"""The ledger of the vault: every opening of a study's test set, with its number.

The intent, committed before (intents.py), determines the number of the opening. An opening is unique by a database
constraint (study_id, opening): a second process gets the record of the first. Rows are kept when their study is
deleted; they then have only its name.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from datetime import UTC, datetime
from typing import Any, ClassVar

from sqlalchemy import Column, ColumnElement, Connection, Row, func, or_, select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.sql.base import ReadOnlyColumnCollection

from hpsearch.errors import InputError, StudyNotFoundError
from hpsearch.metric import error_text, interval_text
from hpsearch.results.provenance import code_commit, user_at_host
from hpsearch.search.proportions import wilson_interval
from hpsearch.store.connection import tables
from hpsearch.store.connection.database import Database
from hpsearch.store.rows.trial_rows import LockStrength, lock_study
from hpsearch.store.studies import StoredStudy, current_versions
from hpsearch.stored_json import Kind, check_kind, damaged, parse_stored_object, parse_stored_texts
from hpsearch.wording import format_time

MAX_REASON_CHARACTERS = 500
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


@dataclass(frozen=True, kw_only=True)
class Attempt:
    """One committed attempt at an opening.

    Args:
        opening_id: id that the row with the number will have.
    """

    intent_id: str
    opening_id: int
    opening: int
    reason: str | None


@dataclass(frozen=True, kw_only=True)
class Finding:
    """The result of an evaluation on the test images, before it is on record.

    Args:
        test_checksums: file name -> SHA-256 of the unpacked content of the test files.
        chosen: what was evaluated:
            selection           best (of the search) or confirmed (over fresh seeds)
            study, trial, point whose parameters were evaluated
            params              the searched keys with their values
            search_error        validation error of the trial, on which the point was selected; a fraction
            validation_error    validation error of the evaluated parameters, computed for this opening; a fraction
            is_retrained        whether the parameters were trained again for this opening, not stored by the search
            device              that evaluated them
            machine_openings    number of earlier openings of these test files, by other studies, on this machine
        parameters_sha256: SHA-256 of the safetensors file that was evaluated (or would contain a retrained network).
        num_images, num_errors: number of test images, and of misclassified test images.
    """

    test_checksums: Mapping[str, str]
    chosen: Mapping[str, Any]
    parameters_sha256: str
    num_images: int
    num_errors: int


@dataclass(frozen=True, kw_only=True)
class OpeningEntry(ABC):
    """An opening on record, with or without a number.

    Args:
        opening: 1: the one that counts; 2, 3 ...: further openings.
        reason: why the vault was opened again; None for the first opening.
        chosen, parameters_sha256: what was or was to be evaluated, as in `Finding`.
    """

    opening_id: int
    study_name: str
    opening: int
    reason: str | None
    chosen: Mapping[str, Any]
    parameters_sha256: str

    has_number: ClassVar[bool]
    json_keys: ClassVar[tuple[str, ...]]  # of `as_json`, which are attributes

    @property
    def model(self) -> str:
        """What was evaluated, as text: `trial 3 of small (best, retrained)`."""
        retrained = ", retrained" if self.chosen["is_retrained"] else ""
        return f"trial {self.chosen['trial']} of {self.chosen['study']} ({self.chosen['selection']}{retrained})"

    def lines(self) -> list[str]:
        """Lines for display: the opening with its number, and its reason."""
        again = [] if self.reason is None else [f"     again: {self.reason}"]
        return [f"  {self.opening}. {self.describe()}", *again]

    def as_json(self) -> dict[str, Any]:
        """The opening in `test --json`, `status --json` and exports. These keys are stable; new keys may be added."""
        values = {name: getattr(self, name) for name in self.json_keys}
        times = {name: format_time(value) for name, value in values.items() if isinstance(value, datetime)}
        return values | times | {name: dict(value) for name, value in values.items() if isinstance(value, Mapping)}

    @abstractmethod
    def describe(self) -> str:
        """One line: when, by whom, for which point, and the number if there is one."""


@dataclass(frozen=True, kw_only=True)
class VaultRecord(OpeningEntry):
    """One opening with its number, as recorded in the ledger.

    Args:
        opened_at: UTC, by the database's clock.
        opened_by: user@host.
        code_commit: commit of the running hpsearch; None if it is not known.
        versions: of hpsearch and of the programs that its results depend on.
        chosen: as in `Finding`; also intent, the id of the committed attempt that gave the number.
        test_checksums, num_images, num_errors: as in `Finding`.

    The keys of `as_json`:
        opening             1, 2, 3 ...
        reason              null for the first
        opened_at (UTC), opened_by, code_commit (or null), versions, definition_sha256
        test_checksums, parameters_sha256, chosen: as in `Finding`
        num_images, num_errors
        test_error          fraction of misclassified test images
        test_error_interval its 95 % Wilson interval: [low, high]
    """

    has_number = True
    json_keys = (
        *("opening", "reason", "opened_at", "opened_by", "code_commit", "versions", "definition_sha256"),
        *("test_checksums", "parameters_sha256", "chosen", "num_images", "num_errors"),
        *("test_error", "test_error_interval"),
    )
    opened_at: datetime
    opened_by: str
    code_commit: str | None
    versions: Mapping[str, str]
    definition_sha256: str
    test_checksums: Mapping[str, str]
    num_images: int
    num_errors: int

    @property
    def test_error(self) -> float:
        """Fraction of misclassified test images."""
        return self.num_errors / self.num_images

    @property
    def interval(self) -> tuple[float, float]:
        """The 95 % Wilson interval of the test error."""
        return wilson_interval(self.num_errors, self.num_images)

    @property
    def test_error_interval(self) -> list[float]:
        return list(self.interval)

    @property
    def machine_openings(self) -> int:
        """Number of earlier openings of these test files, by other studies, on the machine of this opening."""
        number = self.chosen.get("machine_openings")  # missing in records of older versions
        return number if isinstance(number, int) else 0

    def describe_number(self) -> str:
        """The number as text: `8.20 % (21 of 256 images; 95 % interval 5.43 to 12.21 %)`."""
        images = f"{self.num_errors:,} of {self.num_images:,} images"
        return f"{error_text(self.test_error)} ({images}; 95 % interval {interval_text(self.interval)})"

    def describe(self) -> str:
        opened = f"{self.opened_at:%Y-%m-%d %H:%M:%S} UTC by {self.opened_by}"
        return f"{opened}: test error {self.describe_number()} of {self.model}"


Openings = tuple[tuple[VaultRecord, ...], tuple[VaultRecord, ...]]  # of a study, and of deleted studies of its name


def check_reason(reason: str) -> str:
    """Validate the reason for a further opening; returns it without surrounding white space.

    Raises:
        InputError: it is empty, too long, or not a single line of text.
    """
    reason = reason.strip()
    hint = '--again "the reason for opening the test set again"'
    if not reason:
        raise InputError("--again needs a reason, got nothing", hint=hint)
    if len(reason) > MAX_REASON_CHARACTERS:
        raise InputError(f"--again takes {MAX_REASON_CHARACTERS} characters at most, got {len(reason)}", hint=hint)
    if not reason.isprintable():
        raise InputError("--again takes one line of text without control characters", hint=hint)
    return reason


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
