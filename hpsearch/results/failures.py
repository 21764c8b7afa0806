"""Why attempts have failed: the reason in one line, and the last lines that a program printed."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from hpsearch.results.trial_summary import TrialSummary
from hpsearch.store.rows.foreign_endings import FAIL_REASON_ATTRIBUTE
from hpsearch.store.rows.trial_state import LAST_LINES


@dataclass(frozen=True, kw_only=True)
class Failure:
    """One attempt that failed.

    Args:
        reason: one line.
        last_lines: of the program's output; empty for other failures, and if it printed nothing.
    """

    trial: TrialSummary
    reason: str
    last_lines: tuple[str, ...] = ()

    def as_json(self) -> dict[str, Any]:
        """The failure in `status --json`. These keys are stable; new keys may be added."""
        return {
            "trial": self.trial.number,
            "point": self.trial.point,
            "attempt": self.trial.attributes.get("attempt"),
            "given_up": self.trial.is_current,
            "reason": self.reason,
            "last_lines": list(self.last_lines),
        }


def failure_of(trial: TrialSummary) -> Failure:
    """Why a trial in state FAIL has failed."""
    told = str(trial.attributes.get(FAIL_REASON_ATTRIBUTE) or "no reason recorded")
    reason, _, output = told.partition(LAST_LINES)
    return Failure(trial=trial, reason=reason, last_lines=tuple(output.splitlines()))


def by_reason(trials: Iterable[TrialSummary]) -> dict[str, list[Failure]]:
    """Failures with the same reason together; the most frequent reason first."""
    found: dict[str, list[Failure]] = {}
    for trial in trials:
        failure = failure_of(trial)
        found.setdefault(failure.reason, []).append(failure)
    return dict(sorted(found.items(), key=lambda item: -len(item[1])))
