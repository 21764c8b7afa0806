"""The status of a study, as all views show it: summary, confirmation, chosen point and its error estimate."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from hpsearch.results.choice import ChosenPoint, Estimate, choose_point, estimate_of
from hpsearch.results.confirmation.companion_study import find_companion
from hpsearch.results.confirmation.outcome import Confirmation
from hpsearch.results.openings.record import VaultRecord
from hpsearch.results.selection import Selection
from hpsearch.results.summary import StudySummary, read_summary
from hpsearch.store.connection.database import Database
from hpsearch.store.rows.counts import read_num_images
from hpsearch.wording import parameters_label


@dataclass(frozen=True, kw_only=True)
class StudyStatus:
    """The status of a study at one moment.

    Args:
        confirmation: None if the study has none.
        num_images: size of the validation set; None: no trial has recorded it.
    """

    summary: StudySummary
    confirmation: Confirmation | None = None
    num_images: int | None = None

    @cached_property
    def chosen(self) -> ChosenPoint | None:
        """The chosen point; None while no trial is complete."""
        return None if self.summary.best is None else self.choose()

    def choose(self, selection: Selection | None = None) -> ChosenPoint:
        """The chosen point, or the requested one. Raises the errors of `choose_point`."""
        return choose_point(self.summary, self.confirmation, selection)

    def estimate(self, chosen: ChosenPoint) -> Estimate:
        """The least biased available estimate of this point's error."""
        return estimate_of(chosen, self.summary, self.confirmation, self.num_images)

    @property
    def best_is_another(self) -> bool:
        """Whether the best point of the search differs from the chosen point."""
        best, chosen, confirmation = self.summary.best, self.chosen, self.confirmation
        if best is None or chosen is None or chosen.selection is Selection.BEST:
            return False
        found = confirmation and confirmation.chosen and confirmation.chosen.configuration.search_trial
        return not found or found.trial_id != best.trial_id

    def answer(self) -> list[str]:
        """Lines for display: the chosen point with its estimate, and test set openings for other points."""
        chosen, best = self.chosen, self.summary.best
        if chosen is None or best is None:
            return []
        lines = [f"chosen point: {describe_point(chosen)}: {self.estimate(chosen).describe()}"]
        if self.best_is_another:
            error = f"{self.summary.metric.text(best.value)} in the search"
            lines.append(f"the search's best is another point: trial {best.number}, {error}; --point best selects it")
        return lines + [describe_other_opening(record) for record in openings_of_others(self.summary, chosen)]

    def as_json(self) -> dict[str, Any]:
        """The status as `hpsearch status --json` prints it: the keys of `StudySummary.as_json`, and these.

        chosen              null while no trial is complete; otherwise the point that `test` and `export` use:
                            selection (best or confirmed), study and trial (of the companion study for a confirmed
                            point), point, params, value, and estimate, the least biased error estimate: evidence
                            (test, confirmed or search), error, interval (95 %, or null), num_images (or null)
        confirmation        null if there is none, otherwise `Confirmation.as_json`: the companion study, its progress,
                            each configuration's mean error over the fresh seeds with its interval, the tied
                            configurations, the corrected error, and the chosen configuration
        """
        chosen = self.chosen
        return {
            **self.summary.as_json(),
            "chosen": chosen
            and {
                **chosen.values("trial", "point", "params", "value"),
                "estimate": self.estimate(chosen).as_json(),
            },
            "confirmation": self.confirmation and self.confirmation.as_json(),
        }


def openings_of_others(summary: StudySummary, chosen: ChosenPoint) -> Sequence[VaultRecord]:
    """Openings of the test set for points other than this one."""
    return [record for record in summary.openings if not chosen.is_of(record)]


def describe_other_opening(record: VaultRecord) -> str:
    """One line: the test set was opened for another point, with its number."""
    evaluated = f"{record.model}: {record.metric.test_label} {record.describe_number()}"
    return f"the test set was opened for another point than the chosen one, {evaluated}"


def describe_point(chosen: ChosenPoint) -> str:
    """The point as text: `learning_rate 0.1 (trial 40 of small-confirm, confirmed over fresh seeds)`."""
    trial = f"trial {chosen.trial.number} of {chosen.study.name}"
    return f"{parameters_label(chosen.trial.point_parameters)} ({trial}, {chosen.selection.label})"


def read_status(database: Database, name: str, *, with_curves: bool = False) -> StudyStatus:
    """Read a study as `read_summary` does, and the current results of its confirmation."""
    summary = read_summary(database, name, with_curves=with_curves)
    companion, confirmation = find_companion(database, summary.study), None
    if companion is not None:
        from hpsearch.results.confirmation.read_outcome import read_confirmation  # loads numpy

        confirmation = read_confirmation(database, summary, companion)
    return StudyStatus(
        summary=summary,
        confirmation=confirmation,
        num_images=read_num_images(database, summary.study.study_id),
    )
