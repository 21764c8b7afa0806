"""Choose the point of a study. `test`, `export`, `report`, `status` and the Python API all use this choice.

It is the point that a finished confirmation picked. Without a confirmation, or before it is finished, it is the best
point of the search.
"""

from __future__ import annotations

from dataclasses import dataclass

from hpsearch.errors import InputError
from hpsearch.results.confirmation.outcome import Confirmation
from hpsearch.results.openings.record import VaultRecord
from hpsearch.results.selection import Selection
from hpsearch.results.summary import StudySummary, describe_counts
from hpsearch.results.trial_summary import TrialSummary
from hpsearch.store.studies import StoredStudy


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
            hint=f"hpsearch confirm {summary.name}, or take the search's best point with --point best",
        )
    companion = confirmation.companion
    if not confirmation.is_finished:
        raise InputError(
            f"the confirmation of study {summary.name!r} is not finished: {describe_counts(companion.points)}",
            hint=f"let it finish first (hpsearch worker {companion.name}), or --point best to do without it",
        )
    chosen = confirmation.chosen
    if chosen is None:
        raise InputError(
            f"the confirmation of study {summary.name!r} could not choose: {'; '.join(confirmation.notes)}",
            hint=f"hpsearch confirm {summary.name} --seeds with a larger number, or --point best to do without it",
        )
    return ChosenPoint(selection=Selection.CONFIRMED, study=companion.study, trial=chosen.trial)
