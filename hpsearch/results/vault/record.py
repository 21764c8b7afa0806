"""The ledger of the vault: every opening of a study's test set, with the number that it gave.

Which opening it is, was decided by the intent that was committed before (intents.py). An opening is unique by a
constraint of the database (study_id, opening): whoever comes second gets the first's record. Rows outlive their study;
then they have its name only.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import Connection, Row, func, or_, select
from sqlalchemy.dialects.postgresql import insert

from hpsearch.errors import InputError, StudyNotFoundError
from hpsearch.results.provenance import code_commit, user_at_host
from hpsearch.search.significance import wilson_interval
from hpsearch.store.connection import tables
from hpsearch.store.connection.database import Database
from hpsearch.store.studies import StoredStudy, current_versions
from hpsearch.stored_json import Kind, check_kind, damaged, parse_stored_object, parse_stored_texts

CONFIDENCE = 0.95
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
# That views show.
_CHOSEN_KEYS = ("selection", "study", "trial", "params", "validation_error", "is_retrained", "device")


@dataclass(frozen=True, kw_only=True)
class Finding:
    """What an evaluation on the test images has found, before it is on record.

    Args:
        reason: why the vault is opened again; None for the first time.
        test_checksums: file name -> SHA-256 of the unpacked content of the test files.
        chosen: what was evaluated:
            selection           best (of the search) or confirmed (over fresh seeds)
            study, trial, point whose parameters they are
            params              the searched keys with their values
            search_error        fraction of misclassified validation images that the point was selected on
            validation_error    the same of the parameters that were evaluated, computed anew
            is_retrained        whether they were trained again for this, or stored by the search
            device              that evaluated them
            machine_openings    earlier openings of these test files, by other studies, that the machine knew of
            intent              id of the committed attempt that gave the number
        parameters_sha256: of the safetensors file that was evaluated (or that a retrained network makes).
        num_images, num_errors: test images, and those of them that are misclassified.
    """

    reason: str | None
    definition_sha256: str
    test_checksums: Mapping[str, str]
    chosen: Mapping[str, Any]
    parameters_sha256: str
    num_images: int
    num_errors: int

    @property
    def test_error(self) -> float:
        """Fraction of misclassified test images."""
        return self.num_errors / self.num_images

    @property
    def interval(self) -> tuple[float, float]:
        """The 95 % Wilson interval of the test error."""
        return wilson_interval(self.num_errors, self.num_images, confidence=CONFIDENCE)


@dataclass(frozen=True, kw_only=True)
class VaultRecord(Finding):
    """One opening, as it stands in the ledger.

    Args:
        opening: 1: the one that counts; 2, 3 ...: again, for a reason.
        opened_at: UTC, by the database's clock.
        opened_by: user@host.
        code_commit: that hpsearch ran from; None if it is not known.
        versions: of hpsearch and of what its results depend on.
    """

    opening_id: int
    study_name: str
    opening: int
    opened_at: datetime
    opened_by: str
    code_commit: str | None
    versions: Mapping[str, str]

    @property
    def machine_openings(self) -> int:
        """Earlier openings of these test files, by other studies, that its machine knew of."""
        number = self.chosen.get("machine_openings")  # not there: written by an older hpsearch
        return number if isinstance(number, int) else 0

    def as_json(self) -> dict[str, Any]:
        """What `test --json`, `status --json` and exports tell of an opening. These keys stay; others may join them.

        opening             1, 2, 3 ...
        reason              null for the first
        opened_at (UTC), opened_by, code_commit (or null), versions, definition_sha256
        test_checksums, parameters_sha256, chosen: as `Finding` has them
        num_images, num_errors
        test_error          fraction of misclassified test images
        test_error_interval its 95 % Wilson interval: [low, high]
        """
        low, high = self.interval
        return {
            "opening": self.opening,
            "reason": self.reason,
            "opened_at": self.opened_at.strftime("%Y-%m-%dT%H:%M:%SZ"),
            "opened_by": self.opened_by,
            "code_commit": self.code_commit,
            "versions": dict(self.versions),
            "definition_sha256": self.definition_sha256,
            "test_checksums": dict(self.test_checksums),
            "parameters_sha256": self.parameters_sha256,
            "chosen": dict(self.chosen),
            "num_images": self.num_images,
            "num_errors": self.num_errors,
            "test_error": self.test_error,
            "test_error_interval": [low, high],
        }

    def describe_number(self) -> str:
        """`8.20 % (21 of 256 images; 95 % interval 5.43 % to 12.21 %)`."""
        low, high = self.interval
        return (
            f"{100 * self.test_error:.2f} % ({self.num_errors:,} of {self.num_images:,} images; "
            f"95 % interval {100 * low:.2f} % to {100 * high:.2f} %)"
        )

    def describe(self) -> str:
        """One line: when, by whom, the number, and of what."""
        how = f"{self.chosen['selection']}{', retrained' if self.chosen['is_retrained'] else ''}"
        return (
            f"{self.opened_at:%Y-%m-%d %H:%M:%S} UTC by {self.opened_by}: test error {self.describe_number()} "
            f"of trial {self.chosen['trial']} of {self.chosen['study']} ({how})"
        )


Openings = tuple[tuple[VaultRecord, ...], tuple[VaultRecord, ...]]  # of a study, and of deleted ones of its name


def describe_openings(openings: Sequence[VaultRecord], earlier: Sequence[VaultRecord]) -> list[str]:
    """Lines for people about all that is on record; none if nothing is."""
    lines = []
    if openings:
        times = "once" if len(openings) == 1 else f"{len(openings)} times"
        lines.append(f"the test set was opened {times}:")
        for record in openings:
            lines.append(f"  {record.opening}. {record.describe()}")
            lines += [f"     again: {record.reason}"] if record.reason is not None else []
    if earlier:
        lines.append("an earlier study of this name, which was deleted, opened the test set:")
        lines += [f"  {record.describe()}" for record in earlier]
    return lines


def check_reason(reason: str) -> str:
    """The reason for a further opening, as it is written down.

    Raises:
        InputError: it is empty, too long, or no single line of text.
    """
    reason = reason.strip()
    hint = '--again "why the test set has to be looked at again"'
    if not reason:
        raise InputError("--again needs a reason, got nothing", hint=hint)
    if len(reason) > MAX_REASON_CHARACTERS:
        raise InputError(f"--again takes {MAX_REASON_CHARACTERS} characters at most, got {len(reason)}", hint=hint)
    if not reason.isprintable():
        raise InputError("--again takes one line of text without control characters", hint=hint)
    return reason


def read_openings(database: Database, study: StoredStudy) -> tuple[VaultRecord, ...]:
    """All openings of this study's test set, in their order."""
    return database.transaction(lambda connection: select_openings(connection, study)[0])


def read_earlier_openings(database: Database, study: StoredStudy) -> tuple[VaultRecord, ...]:
    """Openings by deleted studies of the same name, in the order of time."""
    return database.transaction(lambda connection: select_openings(connection, study)[1])


def select_openings(connection: Connection, study: StoredStudy) -> Openings:
    """Openings of this study, and of deleted ones of its name; one statement."""
    vault = tables.vault.c
    ours = vault.study_id == study.study_id
    deleted = vault.study_id.is_(None) & (vault.study_name == study.name)
    rows = connection.execute(select(tables.vault).where(or_(ours, deleted)).order_by(vault.opening_id)).all()
    records = [(row.study_id, _record_from(row)) for row in rows]
    openings = sorted((record for study_id, record in records if study_id is not None), key=lambda r: r.opening)
    return tuple(openings), tuple(record for study_id, record in records if study_id is None)


def record_opening(
    database: Database, study: StoredStudy, finding: Finding, *, opening_id: int, opening: int
) -> tuple[VaultRecord, bool]:
    """Write the number of an opening down, whose intent is committed. One transaction.

    Any number of processes may do so at once. Of those at the same opening one is written.

    Args:
        opening_id, opening: of the intent; `finding.chosen["intent"]` is its id.
    Returns:
        The record and True; or, if another process was first, its record and False: the finding is to be discarded.
    Raises:
        StudyNotFoundError: the study was deleted meanwhile; nothing is written.
        StorageError: the database went away; whether it is written will be seen when it is back.
    """
    values = {
        "opening_id": opening_id,
        "opening": opening,
        "study_id": study.study_id,
        "study_name": study.name,
        "reason": finding.reason,
        "opened_by": user_at_host(),
        "code_commit": code_commit(),
        "versions": json.dumps(current_versions()),
        "definition_sha256": finding.definition_sha256,
        "test_checksums": json.dumps(dict(finding.test_checksums)),
        "chosen": json.dumps(dict(finding.chosen)),
        "parameters_sha256": finding.parameters_sha256,
        "num_images": finding.num_images,
        "num_errors": finding.num_errors,
    }
    record = database.transaction(lambda connection: _insert(connection, study, values))
    return record, record.chosen.get("intent") == finding.chosen.get("intent")


def _insert(connection: Connection, study: StoredStudy, values: Mapping[str, Any]) -> VaultRecord:
    """Insert the row unless it is there; returns it, or the row of whoever was first."""
    _lock_study(connection, study)
    # A conflict waits for the other process's commit, which the next statement then sees. One without an intent, of an
    # older hpsearch, has another id and the same number of opening.
    statement = insert(tables.vault).values(**values, opened_at=func.now()).on_conflict_do_nothing()
    row = connection.execute(statement.returning(tables.vault)).one_or_none()
    if row is None:
        vault = tables.vault.c
        first = (vault.study_id == study.study_id) & (vault.opening == values["opening"])
        row = connection.execute(select(tables.vault).where(first)).one()
    return _record_from(row)


def _lock_study(connection: Connection, study: StoredStudy) -> None:
    """Keep the study from being deleted before the commit."""
    studies = tables.studies.c
    lock = select(studies.study_id).where(studies.study_id == study.study_id).with_for_update(read=True, key_share=True)
    if connection.execute(lock).one_or_none() is None:
        raise StudyNotFoundError(
            f"study {study.name!r} was deleted while its test set was evaluated: nothing is recorded, "
            "and the number is discarded"
        )


def parse_chosen(text: str, what: str, place: str, keys: Sequence[str]) -> dict[str, Any]:
    """`Finding.chosen`, as it is stored. Raises StorageError if somebody has damaged it."""
    chosen = parse_stored_object(text, what, place, keys)
    for key in keys:
        if not (key == "point" and chosen[key] is None):  # a trial without a point: of an older hpsearch
            check_kind(chosen[key], _CHOSEN_KINDS[key], what, f"{place}, {key}")
    if chosen["selection"] not in ("best", "confirmed"):
        raise damaged(what, f"{place}, selection", f"expected best or confirmed, found {chosen['selection']!r}")
    for name, value in chosen["params"].items():
        if not isinstance(value, str | bool):
            check_kind(value, Kind.NUMBER, what, f"{place}, params, {name}")
    return chosen


def _record_from(row: Row[Any]) -> VaultRecord:
    """Raises StorageError if somebody has damaged the row."""
    values = {field.name: getattr(row, field.name) for field in fields(VaultRecord)}
    what = f"opening {row.opening} of the test set of study {row.study_name!r}"
    place = f"table {tables.vault.name}, column"
    for name in ("versions", "test_checksums"):
        values[name] = parse_stored_texts(values[name], what, f"{place} {name}")
    values["chosen"] = parse_chosen(values["chosen"], what, f"{place} chosen", _CHOSEN_KEYS)
    if not 0 <= row.num_errors <= row.num_images or not row.num_images:
        raise damaged(what, f"{place} num_errors", f"{row.num_errors} of {row.num_images} images")
    return VaultRecord(**{**values, "opened_at": row.opened_at.astimezone(UTC)})
