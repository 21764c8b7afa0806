"""One trial in training: its history in the worker, what is written when it ends, and its competition with others."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from hpsearch.epoch_report import EpochReport, Validation
from hpsearch.errors import ArtifactError
from hpsearch.search.pruners import build_pruner
from hpsearch.search.snapshot import StudySnapshot
from hpsearch.search.stopping import StopDecision, StoppingRule, StopReason, decide, rule_from_state
from hpsearch.store.claims.ledger import Claim, Ledger, Outcome, Result
from hpsearch.store.rows.curves import CurveReader
from hpsearch.store.rows.trial_state import NLL_ATTRIBUTE
from hpsearch.store.studies import StoredStudy
from hpsearch.study.settings import TrialSettings

_HISTORY = ("best_epoch", "num_epochs", "seconds", "last_value", "rungs")  # plain values; `rule` and `best` are not


@dataclass(kw_only=True)
class TrialInTraining:
    """A trial in training.

    Args:
        best: the best validation so far; None before the first finite epoch has ended.
        num_epochs: the last finite epoch, including those of the attempts that this one resumed from.
        seconds: training time, including that of the attempts that this one resumed from.
        last_value: value of the last finite epoch.
        lanes: the distinct numbers of lanes that its epochs were trained with, itself included, in their order.
    """

    claim: Claim
    settings: TrialSettings
    rule: StoppingRule
    best: Validation | None = None
    best_epoch: int = 0
    num_epochs: int = 0
    seconds: float = 0.0
    last_value: float | None = None
    lanes: list[int] = field(default_factory=list)
    rungs: dict[str, Any] = field(default_factory=dict)  # the pruner's notes on this trial, by system attribute

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint stores of the trial: its history and its rule's, JSON-serialisable and exact."""
        best = None if self.best is None else asdict(self.best)
        history = {name: getattr(self, name) for name in _HISTORY}
        return {
            "rule": self.rule.state(),
            "best": best,
            **history,
            "lanes": list(self.lanes),
            "rungs": dict(self.rungs),
        }

    def resumed(self, state: Mapping[str, Any]) -> TrialInTraining:
        """Return this trial with the history of an earlier attempt; it decides as that attempt would have.

        Raises:
            ArtifactError: it is not the state of a trial.
        """
        try:
            best = None if state["best"] is None else Validation(**state["best"])
            history = {name: state[name] for name in _HISTORY}
            history["lanes"] = [int(number) for number in state.get("lanes", ())]  # unknown to older versions
            resumed = replace(self, rule=rule_from_state(state["rule"]), best=best, **history)
            resumed._check_history()
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise ArtifactError(
                f"the checkpoint of trial {self.claim.number}'s point is damaged: {error!r}",
                hint="the trial starts again",
            ) from error
        return resumed

    def take_in(self, report: EpochReport, num_lanes: int) -> StopDecision | None:
        """Update the trial's history with an epoch. Return a decision if it was the last one, else None.

        Args:
            num_lanes: the number of lanes that were trained together.
        """
        decision = decide(self.rule, report, self.settings.training.max_epochs)
        self.seconds += report.seconds
        if num_lanes not in self.lanes:
            self.lanes.append(num_lanes)
        if not report.has_diverged:
            self.num_epochs = report.epoch
            self.last_value = report.best.zero_one
            if report.best.is_better_than(self.best):
                self.best, self.best_epoch = report.best, report.epoch
        return decision

    def pruned_by(self, pruner: str) -> StopDecision:
        """Return the decision to end the trial because its pruner gives it up."""
        detail = f"pruned at epoch {self.num_epochs}: {pruner} found it worse than the others"
        return StopDecision(StopReason.PRUNED, detail)

    def result(self, decision: StopDecision, origin: Mapping[str, str]) -> Result:
        """Return what is written when the trial ends.

        The value of a COMPLETE trial is its best one. As in Optuna, that of a PRUNED trial is its last report.

        Args:
            origin: attributes that say where it was trained.
        """
        is_complete = self.best is not None and decision.reason not in (StopReason.DIVERGED, StopReason.PRUNED)
        best_value = self.best.zero_one if self.best else None
        return Result(
            trial_id=self.claim.trial_id,
            outcome=Outcome.COMPLETE if is_complete else Outcome.PRUNED,
            value=best_value if is_complete else self.last_value,
            attributes={
                "stop_reason": decision.reason.value,
                "stop_detail": decision.detail,
                "epochs": self.num_epochs,
                "best_epoch": self.best_epoch,
                "best_validation_zero_one": best_value,
                NLL_ATTRIBUTE: self.best.nll if self.best else None,
                "seconds": round(self.seconds, 3),
                "lanes": list(self.lanes),
                **origin,
            },
            claim=self.claim.token,
            num_epochs=self.num_epochs,
            num_parameters=len(self.claim.parameters),
        )

    def metadata(self, study: StoredStudy) -> dict[str, str]:
        """Return what is stored in the file with the trial's best parameters."""
        return {
            "study": study.name,
            "definition_sha256": study.definition.sha256,
            "value_sha256": study.definition.value_sha256,  # stays when the study is widened
            "trial": str(self.claim.number),
            "settings": self.settings.model_dump_json(),
            "validation_zero_one": repr(self.best.zero_one if self.best else None),
        }

    def _check_history(self) -> None:
        """Raise ValueError or TypeError for a history that no trial can have had."""
        best = self.best
        if not 0 <= self.best_epoch <= self.num_epochs or (best is None) != (self.best_epoch == 0):
            raise ValueError(f"best epoch {self.best_epoch} of {self.num_epochs}")
        if best is not None and not (0 <= best.zero_one <= 1 and best.is_finite):
            raise ValueError(f"a best validation of {best.zero_one} and {best.nll}")
        if not (math.isfinite(self.seconds) and self.seconds >= 0):
            raise ValueError(f"{self.seconds} seconds")
        if not 0 <= (self.last_value or 0.0) <= 1:
            raise ValueError(f"a last value of {self.last_value}")
        dict(self.rungs)


class Competition:
    """One worker's view of a study whose pruner compares trials: Optuna's own pruner, given all current curves.

    Args:
        ledger: in the worker's name; it should not wait for a database that is away.
    """

    def __init__(self, study: StoredStudy, ledger: Ledger) -> None:
        definition = study.definition
        pruner = build_pruner(definition.pruning, definition.training.max_epochs)
        self._snapshot = StudySnapshot(study_name=definition.name, study_id=study.study_id, pruner=pruner)
        self._curves = CurveReader(ledger.database, study.study_id)
        self._ledger = ledger

    def losers(self, undecided: Collection[int], lanes: Mapping[int, TrialInTraining]) -> list[int]:
        """Return those of these trials that the pruner gives up.

        The pruner's notes are recorded, and kept in the trials' lanes.

        Raises:
            DatabaseAwayError: no trial was given up.
        """
        if not undecided:
            return []
        self._snapshot.replace_trials(self._curves.read())
        # Another worker may have taken a trial over since its report was recorded: the next record detects that.
        running = [trial_id for trial_id in undecided if self._snapshot.is_running(trial_id)]
        losers = [trial_id for trial_id in running if self._snapshot.should_prune(trial_id)]
        rungs = self._snapshot.drain_system_attrs()
        for trial_id, key, value in rungs:
            lanes[trial_id].rungs[key] = value
        if rungs:
            self._ledger.record({}, rungs)
        return losers
