"""One trial in training: what a worker knows of it, and what is written when it ends."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from hpsearch.epoch_report import EpochReport, Validation
from hpsearch.search.stopping import StopDecision, StoppingRule, StopReason, decide
from hpsearch.service.ledger import Claim, Outcome, Result
from hpsearch.settings import TrialSettings

PRUNED = "pruned"  # the stop_reason of a trial that lost against others


@dataclass(kw_only=True)
class Lane:
    """A trial in training.

    Args:
        best: the best validation so far; None before the first epoch has ended.
        last_value: the value of the last finite epoch.
    """

    claim: Claim
    settings: TrialSettings
    rule: StoppingRule
    best: Validation | None = None
    best_epoch: int = 0
    num_epochs: int = 0
    seconds: float = 0.0
    last_value: float | None = None

    def take_in(self, report: EpochReport) -> StopDecision | None:
        """Update the trial's history with an epoch; says whether it was the last one."""
        decision = decide(self.rule, report, self.settings.training.max_epochs)
        self.seconds += report.seconds
        if not report.has_diverged:
            self.num_epochs = report.epoch
            self.last_value = report.best.zero_one
            if report.best.is_better_than(self.best):
                self.best, self.best_epoch = report.best, report.epoch
        return decision

    def result(self, decision: StopDecision, origin: Mapping[str, str]) -> Result:
        """What is written for a trial that ended of its own accord.

        Args:
            origin: attributes that say where it was trained.
        """
        attributes = self._attributes(decision.reason.value, decision.detail, origin)
        trial_id = self.claim.trial_id
        if decision.reason is StopReason.DIVERGED or self.best is None:
            return Result(trial_id=trial_id, outcome=Outcome.PRUNED, value=self.last_value, attributes=attributes)
        return Result(trial_id=trial_id, outcome=Outcome.COMPLETE, value=self.best.zero_one, attributes=attributes)

    def pruned_result(self, pruner: str, origin: Mapping[str, str]) -> Result:
        """As Optuna has it, the value of a pruned trial is its last report."""
        detail = f"pruned at epoch {self.num_epochs}: {pruner} found it worse than the others"
        attributes = self._attributes(PRUNED, detail, origin)
        trial_id = self.claim.trial_id
        return Result(trial_id=trial_id, outcome=Outcome.PRUNED, value=self.last_value, attributes=attributes)

    def _attributes(self, reason: str, detail: str, origin: Mapping[str, str]) -> dict[str, str | int | float | None]:
        return {
            "stop_reason": reason,
            "stop_detail": detail,
            "epochs": self.num_epochs,
            "best_epoch": self.best_epoch,
            "best_validation_zero_one": self.best.zero_one if self.best else None,
            "best_validation_nll": self.best.nll if self.best else None,
            "seconds": round(self.seconds, 3),
            **origin,
        }
