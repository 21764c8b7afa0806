"""One trial in training: its history in the worker, and what is written when it ends."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

from hpsearch.epoch_report import EpochReport, Validation
from hpsearch.errors import ArtifactError
from hpsearch.search.stopping import StopDecision, StoppingRule, StopReason, decide, rule_from_state
from hpsearch.store.claims.ledger import Claim, Outcome, Result
from hpsearch.store.rows.correct_images import Correctness
from hpsearch.store.rows.points import NLL_ATTRIBUTE
from hpsearch.store.studies import StoredStudy
from hpsearch.study.settings import TrialSettings
from hpsearch.training.lanes.cohort import Cohort
from hpsearch.worker.epoch_writer import BestParameters, Ending

PRUNED = "pruned"  # stop_reason of a trial that lost against others


@dataclass(kw_only=True)
class TrialInTraining:
    """A trial in training.

    Args:
        best: the best validation so far; None before the first finite epoch has ended.
        num_epochs: the last finite epoch, including those of the attempts that this one resumed from.
        seconds: training time, including that of the attempts that this one resumed from.
        last_value: value of the last finite epoch.
    """

    claim: Claim
    settings: TrialSettings
    rule: StoppingRule
    best: Validation | None = None
    best_epoch: int = 0
    num_epochs: int = 0
    seconds: float = 0.0
    last_value: float | None = None
    rungs: dict[str, Any] = field(default_factory=dict)  # the pruner's notes on this trial, by system attribute

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint stores of the trial: its history and its rule's, JSON-serialisable and exact."""
        return {
            "rule": self.rule.state(),
            "best": None if self.best is None else asdict(self.best),
            "best_epoch": self.best_epoch,
            "num_epochs": self.num_epochs,
            "seconds": self.seconds,
            "last_value": self.last_value,
            "rungs": dict(self.rungs),
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take over the history of an earlier attempt; from here on this trial decides as that attempt would have.

        Raises:
            ArtifactError: it is not the state of a lane.
        """
        try:
            rule = rule_from_state(state["rule"])
            best = None if state["best"] is None else Validation(**state["best"])
            history = {name: state[name] for name in ("best_epoch", "num_epochs", "seconds", "last_value", "rungs")}
            _check_history(best, **history)
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise ArtifactError(
                f"the checkpoint of trial {self.claim.number}'s point is damaged: {error!r}",
                hint="the trial begins anew",
            ) from error
        self.rule, self.best = rule, best
        for name, value in history.items():
            setattr(self, name, value)

    def take_over(self, other: TrialInTraining) -> None:
        """Take over all fields of another object for the same trial."""
        for each in fields(self):
            setattr(self, each.name, getattr(other, each.name))

    def take_in(self, report: EpochReport) -> StopDecision | None:
        """Update the trial's history with an epoch. Return a decision if it was the last one, else None."""
        decision = decide(self.rule, report, self.settings.training.max_epochs)
        self.seconds += report.seconds
        if not report.has_diverged:
            self.num_epochs = report.epoch
            self.last_value = report.best.zero_one
            if report.best.is_better_than(self.best):
                self.best, self.best_epoch = report.best, report.epoch
        return decision

    def result(self, decision: StopDecision, origin: Mapping[str, str]) -> Result:
        """Return what is written for a trial that its own stopping rule, its epoch limit or a divergence has ended.

        Args:
            origin: attributes that say where it was trained.
        """
        attributes = self._attributes(decision.reason.value, decision.detail, origin)
        if decision.reason is StopReason.DIVERGED or self.best is None:
            return self._result(Outcome.PRUNED, self.last_value, attributes)
        return self._result(Outcome.COMPLETE, self.best.zero_one, attributes)

    def pruned_result(self, pruner: str, origin: Mapping[str, str]) -> Result:
        """Return what is written for a pruned trial. As in Optuna, its value is its last report."""
        detail = f"pruned at epoch {self.num_epochs}: {pruner} found it worse than the others"
        return self._result(Outcome.PRUNED, self.last_value, self._attributes(PRUNED, detail, origin))

    def ending(self, result: Result, study: StoredStudy, cohort: Cohort, best_value: float | None) -> Ending:
        """Return the trial's end, with its best parameters if they may be kept.

        Args:
            cohort: the cohort in which the trial still has its lane; once it is released, nothing can be read from it.
            best_value: lowest known value of the study's COMPLETE trials; the parameters of worse trials are not kept,
                unless the definition keeps all.
        """
        if result.outcome is not Outcome.COMPLETE:
            return Ending(number=self.claim.number, result=result)
        trial_id, definition = self.claim.trial_id, study.definition
        result = replace(result, correct=Correctness.of(cohort.best_correct(trial_id)))
        is_worse = best_value is not None and result.value is not None and result.value > best_value
        if is_worse and not definition.keeps_all_parameters:
            return Ending(number=self.claim.number, result=result)
        metadata = {
            "study": study.name,
            "definition_sha256": definition.sha256,
            "value_sha256": definition.value_sha256,  # stays when the study is widened
            "trial": str(self.claim.number),
            "settings": self.settings.model_dump_json(),
            "validation_zero_one": repr(result.value),
        }
        best = BestParameters(
            arrays=cohort.best_parameters(trial_id), metadata=metadata, is_always_kept=definition.keeps_all_parameters
        )
        return Ending(number=self.claim.number, result=result, best=best)

    def _result(self, outcome: Outcome, value: float | None, attributes: Mapping[str, Any]) -> Result:
        return Result(
            trial_id=self.claim.trial_id,
            outcome=outcome,
            value=value,
            attributes=attributes,
            claim=self.claim.token,
            num_epochs=self.num_epochs,
            num_parameters=len(self.claim.parameters),
        )

    def _attributes(self, reason: str, detail: str, origin: Mapping[str, str]) -> dict[str, str | int | float | None]:
        return {
            "stop_reason": reason,
            "stop_detail": detail,
            "epochs": self.num_epochs,
            "best_epoch": self.best_epoch,
            "best_validation_zero_one": self.best.zero_one if self.best else None,
            NLL_ATTRIBUTE: self.best.nll if self.best else None,
            "seconds": round(self.seconds, 3),
            **origin,
        }


def _check_history(
    best: Validation | None,
    *,
    best_epoch: int,
    num_epochs: int,
    seconds: float,
    last_value: float | None,
    rungs: Mapping[str, Any],
) -> None:
    """Raise ValueError or TypeError for a history that no lane can have had."""
    if not 0 <= best_epoch <= num_epochs or (best is None) != (best_epoch == 0):
        raise ValueError(f"best epoch {best_epoch} of {num_epochs}")
    if best is not None and not (0 <= best.zero_one <= 1 and best.is_finite):
        raise ValueError(f"a best validation of {best.zero_one} and {best.nll}")
    if not (math.isfinite(seconds) and seconds >= 0):
        raise ValueError(f"{seconds} seconds")
    if not 0 <= (last_value or 0.0) <= 1:
        raise ValueError(f"a last value of {last_value}")
    dict(rungs)
