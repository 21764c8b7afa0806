"""vault.jsonl: this machine's record of test set openings, for studies in any database.

An append-only file in HPSEARCH_HOME with one JSON object per line. Each opening has two lines: one before the test
images are read, and one with the number. The file lets a study in another database know that its test files were read
before. The record in the database is authoritative; a problem with the file is reported but does not prevent an
opening.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from hpsearch.home import make_folder

_TEXTS = ("intent_id", "at", "by", "study", "database")
_MOST_SHOWN = 5


@dataclass(frozen=True, kw_only=True)
class MachineOpening:
    """An opening in this machine's record.

    Args:
        intent_id: id of the row in the study's database.
        at: UTC.
        by: user@host.
        database: address of the database, without a password.
        files: marks that identify its test files (`data.test_files`).
        num_images, num_errors: None: no number was recorded.
    """

    intent_id: str
    at: str
    by: str
    study: str
    database: str
    files: frozenset[str]
    num_images: int | None = None
    num_errors: int | None = None

    def describe(self) -> str:
        """One line: when, by whom, in which study, and the number."""
        number = "no number noted"
        if self.num_images and self.num_errors is not None:
            number = f"test error {100 * self.num_errors / self.num_images:.2f} %"
        return f"{self.at} by {self.by} for study {self.study!r} in {self.database}: {number}"

    def as_json(self) -> dict[str, Any]:
        """The opening in `test --json`. These keys are stable; new keys may be added."""
        return {
            "at": self.at,
            "by": self.by,
            "study": self.study,
            "database": self.database,
            "num_images": self.num_images,
            "num_errors": self.num_errors,
        }


@dataclass(frozen=True, kw_only=True)
class MachineLedger:
    """The file vault.jsonl. Problems with it are returned as lines for display."""

    path: Path

    def openings(
        self, marks: Collection[str], *, without: Collection[str] = ()
    ) -> tuple[list[MachineOpening], list[str]]:
        """Earlier openings of test files that share one of these marks, oldest first.

        Args:
            without: intent ids to leave out, since they are in the study's own database.
        Returns:
            The openings, and problems with the file as lines for display.
        """
        try:
            lines = self.path.read_bytes().splitlines()
        except FileNotFoundError:
            return [], []
        except OSError as error:
            return [], [f"{self.path} cannot be read ({error.strerror}): openings in other databases are not known"]
        found: dict[str, MachineOpening] = {}
        num_damaged = 0
        for line in filter(None, map(bytes.strip, lines)):
            opening = _parse(line)
            if opening is None:
                num_damaged += 1
            else:
                found[opening.intent_id] = _merged(found.get(opening.intent_id), opening)
        shared = [each for each in found.values() if each.intent_id not in without and each.files & set(marks)]
        damage = f"{num_damaged} of {len(lines)} lines of {self.path} cannot be read and are passed over"
        return shared, [damage] if num_damaged else []

    def append(self, opening: MachineOpening) -> list[str]:
        """Append a line and sync it to disk. Any number of processes may call it at the same time.

        Returns:
            Problems as lines for display.
        """
        text = json.dumps({**opening.as_json(), "intent_id": opening.intent_id, "files": sorted(opening.files)})
        try:
            make_folder(self.path.parent)
            descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o666)
            with os.fdopen(descriptor, "r+b", buffering=0) as file:
                fcntl.flock(file, fcntl.LOCK_EX)  # released when the file is closed
                _write_whole(file.fileno(), _line_break(file.fileno()) + text.encode() + b"\n")
                os.fsync(file.fileno())
        except OSError as error:
            return [f"cannot note this opening in {self.path} ({error.strerror}): other databases will not know of it"]
        return []


def describe_machine_openings(openings: Sequence[MachineOpening]) -> list[str]:
    """Lines for display about earlier openings of the same test files; empty if there are none."""
    if not openings:
        return []
    times = "once" if len(openings) == 1 else f"{len(openings)} times"
    shown = openings[-_MOST_SHOWN:]
    lines = [f"the same test files, or those beside the same training files, were opened {times} on this machine:"]
    lines += [f"  and {len(openings) - len(shown)} more"] if len(openings) > len(shown) else []
    return lines + [f"  {opening.describe()}" for opening in shown]


def moment() -> str:
    """The current time (UTC) in the file's format."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _line_break(descriptor: int) -> bytes:
    """A line break if the file ends with an incomplete line, as after a power failure; otherwise nothing."""
    size = os.fstat(descriptor).st_size
    return b"\n" if size and os.pread(descriptor, 1, size - 1) != b"\n" else b""


def _write_whole(descriptor: int, content: bytes) -> None:
    while content:
        content = content[os.write(descriptor, content) :]


def _parse(line: bytes) -> MachineOpening | None:
    """Parse a line; None if it is not a valid opening."""
    try:
        found = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(found, Mapping) or not all(isinstance(found.get(name), str) for name in _TEXTS):
        return None
    files, num_images, num_errors = found.get("files"), found.get("num_images"), found.get("num_errors")
    if not isinstance(files, list) or not all(isinstance(mark, str) for mark in files):
        return None
    if not all(number is None or (type(number) is int and 0 <= number < 2**53) for number in (num_images, num_errors)):
        return None
    texts = {name: _plain(found[name]) for name in _TEXTS}
    return MachineOpening(**texts, files=frozenset(files), num_images=num_images, num_errors=num_errors)


def _plain(text: str) -> str:
    """Replace control characters, since other programs may write the file and it is shown on a terminal."""
    return "".join(character if character.isprintable() else "?" for character in text)


def _merged(before: MachineOpening | None, after: MachineOpening) -> MachineOpening:
    """Combine the lines of one opening: the time of the first line, and the data of both."""
    if before is None:
        return after
    return MachineOpening(
        intent_id=before.intent_id,
        at=before.at,
        by=before.by,
        study=before.study,
        database=before.database,
        files=before.files | after.files,
        num_images=after.num_images if before.num_images is None else before.num_images,
        num_errors=after.num_errors if before.num_errors is None else before.num_errors,
    )
