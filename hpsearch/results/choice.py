"""Choose the point of a study, and estimate its error. `test`, `export`, `report`, `status` and the Python API use it.

It is the point that a finished confirmation picked. Without a confirmation, or before it is finished, it is the best
point of the search.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from hpsearch.errors import InputError
from hpsearch.metric import ZERO_ONE, Metric
from hpsearch.results.confirmation.outcome import Confirmation
from hpsearch.results.openings.record import VaultRecord
from hpsearch.results.selection import Selection
from hpsearch.results.summary import StudySummary, describe_counts
from hpsearch.results.trial_summary import TrialSummary, values_of
from hpsearch.search.proportions import wilson_interval
from hpsearch.store.studies import StoredStudy
from hpsearch.wording import counted


@dataclass(frozen=True, kw_only=True)
class ChosenPoint:
    """The chosen point, represented by the trial that has its model.

    Args:
        selection: whether the search or its confirmation chose the point.
        study: the study of the trial: the searched study, or the companion study that confirmed it.
    """

    selection: Selection
    study: StoredStudy
    trial: TrialSummary

    def values(self, *names: str) -> dict[str, Any]:
        """What chose the point, the study of its trial, and these values of the trial (`TRIAL_VALUES`), for JSON."""
        return {"selection": self.selection.value, "study": self.study.name, **values_of(self.trial, *names)}

    def is_of(self, record: VaultRecord) -> bool:
        """Whether an opening of the test set evaluated this trial's model."""
        return (record.chosen["study"], record.chosen["trial"]) == (self.study.name, self.trial.number)


def choose_point(
    summary: StudySummary, confirmation: Confirmation | None, selection: Selection | None = None
) -> ChosenPoint:
    """The currently chosen point.

    Args:
        confirmation: None: the study has no confirmation.
        selection: requests the best or the confirmed point; None: the confirmed point if a finished confirmation has
            picked one, otherwise the best point of the search.
    Raises:
        NothingCompleteError: no trial is complete.
        InputError: the confirmed point was requested, but no finished confirmation has picked one.
    """
    is_confirmed = confirmation is not None and confirmation.is_finished and confirmation.chosen is not None
    if selection is Selection.CONFIRMED or (selection is None and is_confirmed):
        return _confirmed_point(summary, confirmation)
    return ChosenPoint(selection=Selection.BEST, study=summary.study, trial=summary.require_best())


def _confirmed_point(summary: StudySummary, confirmation: Confirmation | None) -> ChosenPoint:
    if confirmation is None:
        raise InputError(
            f"study {summary.name!r} has not been confirmed",
            hint=f"hpsearch confirm {summary.name}, or select the search's best point with --point best",
        )
    companion = confirmation.companion
    if not confirmation.is_finished:
        raise InputError(
            f"the confirmation of study {summary.name!r} is not finished: {describe_counts(companion.points)}",
            hint=f"finish it first (hpsearch worker {companion.name}), or select the best point with --point best",
        )
    chosen = confirmation.chosen
    if chosen is None:
        raise InputError(
            f"the confirmation of study {summary.name!r} could not choose: {'; '.join(confirmation.notes)}",
            hint=f"hpsearch confirm {summary.name} with a larger --seeds, or select the best point with --point best",
        )
    return ChosenPoint(selection=Selection.CONFIRMED, study=companion.study, trial=chosen.trial)


class Evidence(StrEnum):
    """The source of an error estimate, the least biased first."""

    TEST = "test"
    CONFIRMED = "confirmed"
    SEARCH = "search"


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """An error estimate of the chosen point, with its interval and a remark about its reliability.

    Args:
        metric: of the study.
        error: a value of the metric; None: it is not defined on the test examples.
        interval: 95 % interval: Wilson's over the images, or for a confirmed mean over other seeds and other images.
            None: it is not known.
        num_images: size of the test set or validation set; None: not known.
        examples: what they are called; groups, if their rows are not independent.
        name: what the error is, for display.
        remark: how far it can be trusted, in a few words.
    """

    evidence: Evidence
    metric: Metric
    error: float | None
    interval: tuple[float, float] | None
    num_images: int | None
    examples: str
    name: str
    remark: str

    def describe(self) -> str:
        """The estimate as text: `test error 5.07 % (95 % interval 4.66 to 5.52 %; 10,000 images; ...)`."""
        told = []
        if self.interval is not None:
            told.append(f"95 % interval {self.metric.interval_text(self.interval)}")
        if self.num_images is not None:
            told.append(f"{self.num_images:,} {self.examples}")
        return f"{self.name} {self.metric.text(self.error)} ({'; '.join([*told, self.remark])})"

    def as_json(self) -> dict[str, Any]:
        """The estimate in `status --json` and exports. These keys are stable; new keys may be added."""
        return {
            "evidence": self.evidence.value,
            "metric": self.metric.name,
            "error": self.error,
            "interval": None if self.interval is None else list(self.interval),
            "num_images": self.num_images,
            "units": None if self.metric.is_reported else self.examples,
        }


def estimate_of(
    chosen: ChosenPoint, summary: StudySummary, confirmation: Confirmation | None, num_images: int | None
) -> Estimate:
    """The least biased available estimate of this point's error.

    Args:
        summary: of the searched study.
        num_images: size of its validation set; None: not known.
    """
    metric, examples = summary.metric, summary.study.examples
    record = next((record for record in summary.openings if chosen.is_of(record)), None)
    if record is not None:
        which = "" if record.opening == 1 else f", opening {record.opening} of the test set"
        retrained = ", retrained" if record.chosen["is_retrained"] else ""
        return Estimate(
            evidence=Evidence.TEST,
            metric=record.metric,
            error=record.test_value,
            interval=record.interval,
            num_images=record.num_images,
            examples=examples,
            name=record.metric.test_label,
            remark=f"on {examples} that no selection used{which}{retrained}",
        )
    confirmed = confirmation and confirmation.chosen
    mean = confirmed and confirmed.configuration.mean
    if chosen.selection is Selection.CONFIRMED and confirmation and confirmation.comparison and mean:
        return Estimate(
            evidence=Evidence.CONFIRMED,
            metric=metric,
            error=metric.value_of(mean.mean),
            interval=None if mean.interval is None else metric.interval_of(mean.interval),
            num_images=confirmation.comparison.num_images,
            examples=summary.study.units,
            name=f"confirmed {metric.validation_label}",
            remark=f"mean over {counted(len(confirmation.seeds), 'fresh seed')}"
            + ("" if metric.is_reported else f", on the {examples} of the selection"),
        )
    value = chosen.trial.value
    assert value is not None, "a complete trial has a value"
    share, interval = min(max(value, 0.0), 1.0), None
    # The database has the losses of groups, but not how many errors a group has.
    if metric is ZERO_ONE and num_images is not None and summary.study.group_sizes is None:
        interval = wilson_interval(round(share * num_images), num_images)
    return Estimate(
        evidence=Evidence.SEARCH,
        metric=metric,
        error=value,
        interval=interval,
        num_images=None if metric.is_reported else num_images,
        examples=summary.study.units,
        name=f"the search's {metric.label}" if metric.is_reported else f"{metric.validation_label} in the search",
        remark=f"the {metric.best_word} of many trials, so it tends to be too {'low' if metric.sign > 0 else 'high'}",
    )
