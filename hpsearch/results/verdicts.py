"""What the trials of a study suffer from: their verdicts, counted, and what to change.

A worker judges each trial when it ends (training/diagnosis/verdict.py) and stores the words as attributes.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from hpsearch.results.trial_summary import TrialSummary

NO_VERDICT = "no verdict"  # too short, or of an older version
_ADVICE = {
    "learning rate too high": "lower rates; the search's upper end costs more than it finds",
    "learning rate too low": "higher rates, or more epochs",
    "exploding": "smaller initial weights, scaled inputs, or a lower rate",
    "vanishing": "another activation, larger initial weights, or scaled inputs",
    "saturated": "smaller initial weights or scaled inputs; a lower rate if it comes with a rate that is too high",
    "dead units": "a lower rate, or another activation than relu",
    "overfitting": "more regularisation, a smaller network, or more training images",
    "underfitting": "less regularisation, or a larger network",
    "noisy": "larger minibatches, or a lower or falling rate",
    "fine": "",
}


@dataclass(frozen=True, kw_only=True)
class VerdictGroup:
    """The trials with the same likeliest cause.

    Args:
        cause: its name, or `NO_VERDICT`.
        trials: best first, at least one.
    """

    cause: str
    trials: tuple[TrialSummary, ...]

    @property
    def advice(self) -> str:
        """What to change; empty if nothing."""
        return _ADVICE.get(self.cause, "")


def causes_of(trial: TrialSummary) -> tuple[str, ...]:
    """The causes that its verdict names, the likeliest first; none if it has no verdict."""
    verdict = trial.attributes.get("verdict")
    return tuple(str(verdict).split(", ")) if verdict else ()


def group_by_verdict(trials: Iterable[TrialSummary]) -> tuple[VerdictGroup, ...]:
    """The counted trials by their likeliest cause, the largest group first.

    Args:
        trials: best first.
    """
    groups: dict[str, list[TrialSummary]] = {}
    for trial in trials:
        if trial.is_counted:
            groups.setdefault((*causes_of(trial), NO_VERDICT)[0], []).append(trial)
    found = (VerdictGroup(cause=cause, trials=tuple(its)) for cause, its in groups.items())
    return tuple(sorted(found, key=lambda group: (group.cause == NO_VERDICT, -len(group.trials))))


def describe_verdicts(trials: Iterable[TrialSummary]) -> str:
    """One line: `verdicts: 20 fine, 8 learning rate too low, 5 no verdict`; empty if no trial has a verdict."""
    groups = group_by_verdict(trials)
    if all(group.cause == NO_VERDICT for group in groups):
        return ""
    return "verdicts: " + ", ".join(f"{len(group.trials)} {group.cause}" for group in groups)
