"""What all views tell of a study: its summary, its confirmation, the chosen point and the number about it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from hpsearch.results.choice import ChosenPoint, choose_point
from hpsearch.results.confirmation.outcome import Confirmation
from hpsearch.results.confirmation.read_outcome import confirmation_for
from hpsearch.results.estimate import Estimate, estimate_of
from hpsearch.results.selection import Selection
from hpsearch.results.summary import StudySummary, read_summary
from hpsearch.results.vault.record import VaultRecord
from hpsearch.store.connection.database import Database
from hpsearch.store.rows.correct_images import read_num_images


@dataclass(frozen=True, kw_only=True)
class StudyStatus:
    """A study as of now.

    Args:
        confirmation: None if nobody has asked for one.
        num_images: of the validation set; None: no trial has a record of it.
    """

    summary: StudySummary
    confirmation: Confirmation | None = None
    num_images: int | None = None

    @cached_property
    def chosen(self) -> ChosenPoint | None:
        """The chosen point; None as long as no trial is complete."""
        return None if self.summary.best is None else self.choose()

    def choose(self, selection: Selection | None = None) -> ChosenPoint:
        """The chosen point, or the one that is asked for. Raises what `choose_point` does."""
        return choose_point(self.summary, self.confirmation, selection)

    def estimate(self, chosen: ChosenPoint) -> Estimate:
        """The most honest number about this point."""
        return estimate_of(chosen, self.summary, self.confirmation, self.num_images)

    @property
    def best_is_another(self) -> bool:
        """Whether the search's best is another point than the chosen one."""
        best, chosen, confirmation = self.summary.best, self.chosen, self.confirmation
        if best is None or chosen is None or chosen.selection is Selection.BEST:
            return False
        found = confirmation and confirmation.chosen and confirmation.chosen.configuration.search_trial
        return not found or found.trial_id != best.trial_id

    def answer(self) -> list[str]:
        """Lines for people: the chosen point with its number, and what was asked of other points."""
        chosen, best = self.chosen, self.summary.best
        if chosen is None or best is None:
            return []
        lines = [f"chosen point: {describe_point(chosen)}: {self.estimate(chosen).describe()}"]
        if self.best_is_another and best.value is not None:
            lines.append(
                f"the search's best is another point: trial {best.number}, {100 * best.value:.2f} % in the search: "
                "--point best asks for it"
            )
        return lines + [describe_other_opening(record) for record in openings_of_others(self.summary, chosen)]

    def as_json(self) -> dict[str, Any]:
        """What `hpsearch status --json` prints: the keys of `StudySummary.as_json`, and these.

        chosen              null while no trial is complete; else the point that `test` and `export` take: selection
                            (best or confirmed), study and trial (of a confirmed one: of the companion), point, params,
                            value, and estimate, the most honest number there is: evidence (test, confirmed or
                            search), error, interval (95 %, or null), num_images (or null)
        confirmation        null if nobody has asked for one, else as `Confirmation.as_json` tells it: the companion
                            study, how far it is, each configuration's mean error over the fresh seeds with its
                            interval, which are tied, the corrected error, and which one is chosen
        """
        chosen = self.chosen
        return {
            **self.summary.as_json(),
            "chosen": chosen
            and {
                "selection": chosen.selection.value,
                "study": chosen.study.name,
                "trial": chosen.trial.number,
                "point": chosen.trial.point,
                "params": chosen.trial.point_parameters,
                "value": chosen.trial.value,
                "estimate": self.estimate(chosen).as_json(),
            },
            "confirmation": self.confirmation and self.confirmation.as_json(),
        }


def openings_of_others(summary: StudySummary, chosen: ChosenPoint) -> Sequence[VaultRecord]:
    """Openings of the test set for another point than this one."""
    return [record for record in summary.openings if not chosen.is_of(record)]


def describe_other_opening(record: VaultRecord) -> str:
    """One line: the test set was opened for another point, with its number."""
    return (
        f"the test set was opened for another point than the chosen one, trial {record.chosen['trial']} of "
        f"{record.chosen['study']} ({record.chosen['selection']}): test error {record.describe_number()}"
    )


def describe_point(chosen: ChosenPoint) -> str:
    """`learning_rate 0.1 (trial 40 of small-confirm, confirmed over fresh seeds)`."""
    values = [
        f"{name} {f'{value:.4g}' if isinstance(value, float) else value}"
        for name, value in chosen.trial.point_parameters.items()
    ]
    how = {Selection.BEST: "the best of the search", Selection.CONFIRMED: "confirmed over fresh seeds"}
    point = ", ".join(values) or "the only one"
    return f"{point} (trial {chosen.trial.number} of {chosen.study.name}, {how[chosen.selection]})"


def read_status(database: Database, name: str, *, with_curves: bool = False) -> StudyStatus:
    """Read a study with all its trials, and what its confirmation has found so far.

    Args:
        with_curves: read every trial's epochs too.
    Raises:
        StudyNotFoundError: no such study.
        InputError: not a study of hpsearch.
        StorageError: the database went away, or what it has of the study was damaged.
    """
    summary = read_summary(database, name, with_curves=with_curves)
    return StudyStatus(
        summary=summary,
        confirmation=confirmation_for(database, summary),
        num_images=read_num_images(database, summary.study.study_id),
    )
