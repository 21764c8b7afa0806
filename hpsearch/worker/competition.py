"""The competition of a worker's trials with all others: Optuna's pruner, given the current curves of the study."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, Protocol

from hpsearch.search.pruners import build_pruner
from hpsearch.search.snapshot import StudySnapshot
from hpsearch.store.claims.claim import Claim
from hpsearch.store.claims.ledger import Ledger
from hpsearch.store.rows.curves import CurveReader
from hpsearch.store.studies import StoredStudy


class Competitor(Protocol):
    """A trial in training: its claim, and the pruner's notes on it, by system attribute."""

    claim: Claim
    rungs: dict[str, Any]


class Competition:
    """One worker's view of a study whose pruner compares trials: Optuna's own pruner, given all current curves.

    Args:
        ledger: in the worker's name; it should not wait for a database that is away.
    """

    def __init__(self, study: StoredStudy, ledger: Ledger) -> None:
        definition = study.definition
        pruner = build_pruner(definition.pruning, definition.max_steps)
        self._snapshot = StudySnapshot(study_name=definition.name, study_id=study.study_id, pruner=pruner)
        self._curves = CurveReader(ledger.database, study.study_id)
        self._ledger = ledger

    def losers(self, undecided: Collection[int], trials: Mapping[int, Competitor]) -> list[int]:
        """Return those of these trials that the pruner gives up.

        The pruner's notes are recorded, and kept with the trials.

        Raises:
            DatabaseAwayError: no trial was given up.
        """
        # A trial that goes on with more epochs has stood the comparison already.
        undecided = [trial_id for trial_id in undecided if not trials[trial_id].claim.is_continued]
        if not undecided:
            return []
        self._snapshot.replace_trials(self._curves.read())
        # Another worker may have taken a trial over since its report was recorded: the next record detects that.
        running = [trial_id for trial_id in undecided if self._snapshot.is_running(trial_id)]
        losers = [trial_id for trial_id in running if self._snapshot.should_prune(trial_id)]
        rungs = self._snapshot.drain_system_attrs()
        for trial_id, key, value in rungs:
            trials[trial_id].rungs[key] = value
        if rungs:
            self._ledger.record({}, rungs)
        return losers
