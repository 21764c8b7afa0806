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
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from hpsearch.home import make_folder
from hpsearch.metric import METRICS, ZERO_ONE
from hpsearch.wording import printable, times

_MOST_SHOWN = 5

Text = Annotated[str, AfterValidator(printable)]  # other programs may write the file, and it is shown on a terminal
Count = Annotated[int, Field(ge=0, lt=2**53)]


class MachineOpening(BaseModel):
    """An opening in this machine's record.

    Args:
        intent_id: id of the row in the study's database.
        at: UTC.
        by: user@host.
        database: address of the database, without a password.
        files: marks that identify its test files (`data.test_file_marks`).
        num_images, num_errors: None: no number was recorded.
        metric, value: of the study, if it is not judged by its errors.
    """

    model_config = ConfigDict(frozen=True, strict=True)

    at: Text
    by: Text
    study: Text
    database: Text
    num_images: Count | None = None
    num_errors: Count | None = None
    metric: Text | None = None
    value: float | None = None
    intent_id: Text
    files: frozenset[str] = Field(strict=False)  # JSON has a list

    def describe(self) -> str:
        """One line: when, by whom, in which study, and the number."""
        number = "no number on record"
        metric = METRICS.get(self.metric or ZERO_ONE.name, ZERO_ONE)
        if self.value is not None:
            number = f"{metric.test_label} {metric.text(self.value)}"
        elif self.num_images and self.num_errors is not None:
            number = f"{metric.test_label} {metric.text(self.num_errors / self.num_images)}"
        return f"{self.at} by {self.by} for study {self.study!r} in {self.database}: {number}"

    def with_line(self, line: MachineOpening) -> MachineOpening:
        """This opening with the data of a later line about it; the time stays that of the first line."""
        number = line if self.num_images is None else self
        update = {name: getattr(number, name) for name in ("num_images", "num_errors", "metric", "value")}
        return self.model_copy(update={"files": self.files | line.files, **update})


def read_machine_openings(
    path: Path, marks: Collection[str], *, without: Collection[str] = ()
) -> tuple[list[MachineOpening], list[str]]:
    """Earlier openings of test files that share one of these marks, oldest first.

    Args:
        without: intent ids to leave out, since they are in the study's own database.
    Returns:
        The openings, and problems with the file as lines for display.
    """
    try:
        lines = path.read_bytes().splitlines()
    except FileNotFoundError:
        return [], []
    except OSError as error:
        return [], [f"cannot read {path} ({error.strerror}): openings in other databases are not known"]
    found: dict[str, MachineOpening] = {}
    num_damaged = 0
    for line in filter(None, map(bytes.strip, lines)):
        try:
            # Not by pydantic: a folder's name that is not UTF-8 is stored as lone surrogates, which it refuses.
            opening = MachineOpening.model_validate(json.loads(line))
        except (ValueError, RecursionError):
            num_damaged += 1
        else:
            found[opening.intent_id] = found.get(opening.intent_id, opening).with_line(opening)
    shared = [each for each in found.values() if each.intent_id not in without and each.files & set(marks)]
    damage = f"ignored {num_damaged} of {len(lines)} lines of {path}, which cannot be read"
    return shared, [damage] if num_damaged else []


def append_machine_opening(path: Path, opening: MachineOpening) -> list[str]:
    """Append a line and sync it to disk. Any number of processes may call it at the same time.

    Returns:
        Problems as lines for display.
    """
    values = opening.model_dump()
    unused = {key for key in ("metric", "value") if values[key] is None}  # older versions do not know them
    values = {key: value for key, value in values.items() if key not in unused}
    text = json.dumps({**values, "files": sorted(opening.files)})
    try:
        make_folder(path.parent)
        with path.open("a+b") as file:
            fcntl.flock(file, fcntl.LOCK_EX)  # released when the file is closed
            if file.seek(0, os.SEEK_END):
                file.seek(-1, os.SEEK_END)
                if file.read(1) != b"\n":  # an incomplete line, as after a power failure
                    file.write(b"\n")
            file.write(text.encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        return [f"cannot record this opening in {path} ({error.strerror}): other databases will not know of it"]
    return []


def describe_machine_openings(openings: Sequence[MachineOpening]) -> list[str]:
    """Lines for display about earlier openings of the same test files; empty if there are none."""
    if not openings:
        return []
    shown = openings[-_MOST_SHOWN:]
    opened = f"opened {times(len(openings))} on this machine"
    lines = [f"the same test files, or the test files beside the same training files, were {opened}:"]
    lines += [f"  and {len(openings) - len(shown)} more"] if len(openings) > len(shown) else []
    return lines + [f"  {opening.describe()}" for opening in shown]
