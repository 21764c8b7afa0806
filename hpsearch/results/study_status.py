"""What `status` tells of a study: its summary, and its confirmation if somebody has asked for one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from hpsearch.results.confirm import confirmation_for
from hpsearch.results.confirmation import Confirmation
from hpsearch.results.summary import StudySummary, read_summary
from hpsearch.service.database import Database


@dataclass(frozen=True, kw_only=True)
class StudyStatus:
    """A study as of now.

    Args:
        confirmation: None if nobody has asked for one.
    """

    summary: StudySummary
    confirmation: Confirmation | None

    @property
    def best_is_not_confirmed(self) -> bool:
        """Whether a finished confirmation picked another point than the search's best."""
        confirmation, best = self.confirmation, self.summary.best
        if best is None or confirmation is None or not confirmation.is_finished or confirmation.chosen is None:
            return False
        found = confirmation.chosen.configuration.search_trial
        return found is None or found.trial_id != best.trial_id

    def as_json(self) -> dict[str, Any]:
        """What `hpsearch status --json` prints: the keys of `StudySummary.as_json`, and this one.

        confirmation        null if nobody has asked for one, else as `Confirmation.as_json` tells it: the companion
                            study, how far it is, each configuration's mean error over the fresh seeds with its
                            interval, which are tied, the corrected error, and which one is chosen
        """
        return {**self.summary.as_json(), "confirmation": self.confirmation and self.confirmation.as_json()}


def read_status(database: Database, name: str) -> StudyStatus:
    """Read a study with all its trials, and what its confirmation has found so far.

    Raises:
        StudyNotFoundError: no such study.
        InputError: not a study of hpsearch.
    """
    summary = read_summary(database, name)
    return StudyStatus(summary=summary, confirmation=confirmation_for(database, summary))
