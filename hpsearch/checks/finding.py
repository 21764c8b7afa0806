"""What a check says: a finding, the line of the study file that mends it, and the report of all findings."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import Any, final

from hpsearch.study.definition import StudyDefinition
from hpsearch.study.document import inline_text
from hpsearch.study.space import Dimension
from hpsearch.wording import counted


class Verdict(StrEnum):
    """The outcome of one check, from the best to the worst."""

    PASSED = "passed"
    SKIPPED = "skipped"
    WARNING = "warning"
    FAILED = "failed"

    @property
    def rank(self) -> int:
        return list(Verdict).index(self)


Number = int | float | str
DATA = "data"  # the subject of findings about the data
DEFAULT_SECONDS = 120.0  # for all checks of a study


@final
@dataclass(frozen=True, kw_only=True)
class Finding:
    """What one check says about one thing.

    A warning or a failure also has `expected`, and a `look_at` that says what to do after a colon, or a `fix`
    (tests/unit/checks/test_findings.py).

    Args:
        check: name of the check, such as "gradients".
        subject: what was checked: the data, or a network.
        found: what was found, or the reason why the check was skipped.
        look_at: where the cause is likely to be, the likeliest first: `what may be wrong: what to do about it`.
        fix: the line of the study file that would fix it, such as `shuffle = true  # in [training]` (`line_for`); "" if
            no line can, because data or code must be mended.
        numbers: the numbers behind `found`, by name. NaN and infinities are left out.
        pictures: lines of text to be shown as they are: pairs of images, command lines, the last lines of a program.
    """

    check: str
    subject: str
    verdict: Verdict
    found: str
    expected: str = ""
    look_at: tuple[str, ...] = ()
    fix: str = ""
    numbers: Mapping[str, Number] = field(default_factory=dict)
    pictures: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        finite = {n: v for n, v in self.numbers.items() if not isinstance(v, float) or math.isfinite(v)}
        object.__setattr__(self, "numbers", finite)  # JSON has no other numbers

    @classmethod
    def skip(cls, check: str, subject: str, reason: str) -> Finding:
        return cls(check=check, subject=subject, verdict=Verdict.SKIPPED, found=reason)


@final
@dataclass(frozen=True, kw_only=True)
class CheckReport:
    """All findings of one run of the checks.

    Args:
        date: UTC, as `2026-11-29T12:00:00Z`.
        version: of hpsearch.
        checksums: file name -> SHA-256 of the data that was checked.
        unchecked: networks of the study that were not checked, because there are too many.
        has_networks: networks were checked, and not only the data.
    """

    study: str
    date: str
    version: str
    checksums: Mapping[str, str]
    findings: Sequence[Finding]
    unchecked: Sequence[str] = ()
    has_networks: bool = True
    seconds: float = 0.0

    @property
    def verdict(self) -> Verdict:
        """The worst verdict of a finding."""
        return max((finding.verdict for finding in self.findings), key=lambda v: v.rank, default=Verdict.PASSED)

    def count(self, verdict: Verdict) -> int:
        return sum(finding.verdict is verdict for finding in self.findings)

    def describe_counts(self) -> str:
        """`1 failed, 2 warnings, 10 passed`: the number of findings by verdict, the worst first."""
        parts = [
            counted(number, verdict.value) if verdict is Verdict.WARNING else f"{number} {verdict.value}"
            for verdict in (Verdict.FAILED, Verdict.WARNING, Verdict.PASSED, Verdict.SKIPPED)
            if (number := self.count(verdict))
        ]
        return ", ".join(parts) or "nothing was checked"

    def as_json(self) -> dict[str, Any]:
        """The report as a JSON document."""
        document = asdict(self)
        document["findings"] = [_finding_json(finding) for finding in self.findings]
        document["unchecked"] = list(self.unchecked)
        return {"verdict": self.verdict.value, **document}


def _finding_json(finding: Finding) -> dict[str, Any]:
    document = asdict(finding)
    return {
        **document,
        "verdict": finding.verdict.value,
        "look_at": list(finding.look_at),
        "pictures": list(finding.pictures),
    }


def share_of_time(deadline: float, num_networks: int) -> float:
    """When the next of so many networks must have ended, on `time.monotonic`."""
    now = time.monotonic()
    return now + max(0.0, deadline - now) / num_networks


def line_in(section: str, key: str, value: Any) -> str:
    """The line that gives a key of a section this value."""
    return f"{key} = {inline_text(value)}  # in [{section}]"


def line_for(definition: StudyDefinition, section: str, key: str, value: Any, *others: Any) -> str:
    """The line that gives a key of [model] or [training] this value, or these if the study searches it.

    Returns:
        "" if no single line can: the study lists its points.
    """
    if searched(definition, key) is None:
        return line_in(section, key, value)
    return "" if definition.search.strategy == "listed" else line_in("search", key, [value, *others])


def line_for_values(definition: StudyDefinition, section: str, key: str, values: Sequence[Any], otherwise: Any) -> str:
    """As `line_for`, with those of the searched values that remain, or with another one if none does."""
    if searched(definition, key) is None or not values:
        return line_for(definition, section, key, otherwise)
    return line_for(definition, section, key, *values)


def searched(definition: StudyDefinition, key: str) -> Dimension | None:
    """The dimension that searches this key, if there is one."""
    return next((dimension for dimension in definition.search.dimensions if dimension.name == key), None)
