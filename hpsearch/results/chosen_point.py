"""Which point a study has chosen in the end: the search's best, or the one that its confirmation picked."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from hpsearch.errors import InputError
from hpsearch.results.companions import confirmations
from hpsearch.results.confirm import confirmation_for
from hpsearch.results.confirmation import Confirmation
from hpsearch.results.summary import StudySummary, describe_counts
from hpsearch.results.trial_summary import TrialSummary
from hpsearch.service.database import Database
from hpsearch.service.registry import StoredStudy


class Selection(StrEnum):
    """How the point is chosen that is exported, or that the test images are for."""

    BEST = "best"
    CONFIRMED = "confirmed"


@dataclass(frozen=True, kw_only=True)
class ChosenPoint:
    """The point that the search, or its confirmation, has chosen: by its trial.

    Args:
        study: whose trial it is: the one that was searched, or the companion that confirmed it.
    """

    selection: Selection
    study: StoredStudy
    trial: TrialSummary


def choose_point(database: Database, summary: StudySummary, selection: Selection | None) -> ChosenPoint:
    """The point that the vault may be opened for.

    Args:
        selection: None: the confirmed point if somebody has asked for a confirmation, else the best one.
    Raises:
        NothingCompleteError: no trial is complete.
        InputError: the search or its confirmation still goes on, there is no confirmation, it could not choose, or
            the study is itself the confirmation of another.
    """
    confirms = confirmations(database).get(summary.name)
    if confirms is not None:
        raise InputError(
            f"study {summary.name!r} is the confirmation of study {confirms['study']!r}, which has the test set",
            hint=f"hpsearch test {confirms['study']}",
        )
    best = best_point(summary)
    if not summary.is_finished:
        raise InputError(
            f"study {summary.name!r} is not finished: {describe_counts(summary.points)}",
            hint=f"let it finish first (hpsearch worker {summary.name}): it may still choose another point",
        )
    confirmation = None if selection is Selection.BEST else confirmation_for(database, summary)
    if confirmation is None and selection is not Selection.CONFIRMED:
        return best
    return confirmed_point(summary, confirmation)


def best_point(summary: StudySummary) -> ChosenPoint:
    """The search's best as of now. Raises NothingCompleteError if there is none."""
    return ChosenPoint(selection=Selection.BEST, study=summary.study, trial=summary.require_best())


def confirmed_point(summary: StudySummary, confirmation: Confirmation | None) -> ChosenPoint:
    """The point that a confirmation has chosen.

    Raises:
        InputError: there is no confirmation, it still goes on, or it could not choose.
    """
    if confirmation is None:
        raise InputError(
            f"study {summary.name!r} has not been confirmed",
            hint=f"hpsearch confirm {summary.name}, or take the search's best point with --point best",
        )
    companion = confirmation.companion
    if not companion.is_finished:
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
