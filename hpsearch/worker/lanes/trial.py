"""One trial in training: its history in the worker and what is written when it ends."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any, cast

import numpy as np

from hpsearch.epoch_report import Diagnosis, EpochReport, Validation
from hpsearch.errors import ArtifactError
from hpsearch.logs import get_logger
from hpsearch.metric import ZERO_ONE, Metric
from hpsearch.search.stopping import StopDecision, StoppingRule, StopReason, decide, rule_from_state
from hpsearch.store.claims.claim import Claim, Outcome, Result
from hpsearch.store.rows.correct_images import Correctness
from hpsearch.store.rows.trial_state import NLL_ATTRIBUTE
from hpsearch.store.studies import StoredStudy
from hpsearch.study.settings import TrialSettings
from hpsearch.training.diagnosis.verdict import EpochLosses, find_verdict
from hpsearch.training.filter_series import FilterSeries
from hpsearch.training.lanes.cohort import Cohort
from hpsearch.training.tensor_file import Array

_log = get_logger("worker")

_HISTORY = ("best_epoch", "num_epochs", "seconds", "rungs")  # plain values; `rule` and `best` are not
_LAST_LOSS = "last_value"  # its name in checkpoints


@dataclass(kw_only=True)
class TrialInTraining:
    """A trial in training.

    Args:
        best: the best validation so far; None before the first finite epoch has ended.
        num_epochs: the last finite epoch, including those of the attempts that this one resumed from.
        seconds: training time, including that of the attempts that this one resumed from.
        last_loss: of the last finite epoch.
        num_classes: of the data; 0 in regression.
        metric: by which the study is judged.
        curve: its finite epochs, including those of the attempts that this one resumed from; shorter than `num_epochs`
            if a checkpoint of an older version had none.
        diagnoses: by epoch.
        has_diverged: the last epoch was not finite.
        lanes: the distinct numbers of lanes that its epochs were trained with, itself included, in their order.
        filters: copies of its first-layer filters, including those of the attempts that this one resumed from.
    """

    claim: Claim
    settings: TrialSettings
    rule: StoppingRule
    num_classes: int
    metric: Metric = ZERO_ONE
    best: Validation | None = None
    best_epoch: int = 0
    num_epochs: int = 0
    seconds: float = 0.0
    last_loss: float | None = None
    curve: list[EpochLosses] = field(default_factory=list)
    diagnoses: dict[int, Diagnosis] = field(default_factory=dict)
    has_diverged: bool = False
    lanes: list[int] = field(default_factory=list)
    rungs: dict[str, Any] = field(default_factory=dict)  # the pruner's notes on this trial, by system attribute
    filters: FilterSeries = field(default_factory=FilterSeries, compare=False)

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint stores of the trial: its history and its rule's, JSON-serialisable and exact."""
        best = None if self.best is None else self.best.as_stored()
        history = {name: getattr(self, name) for name in _HISTORY} | {_LAST_LOSS: self.last_loss}
        return {
            "rule": self.rule.state(),
            "best": best,
            **history,
            "curve": [list(epoch) for epoch in self.curve],
            "diagnoses": [[epoch, *diagnosis.numbers] for epoch, diagnosis in self.diagnoses.items()],
            "lanes": list(self.lanes),
            "rungs": dict(self.rungs),
        }

    def resumed(self, state: Mapping[str, Any], filters: Mapping[str, Array] = MappingProxyType({})) -> TrialInTraining:
        """Return this trial with the history of an earlier attempt; it decides as that attempt would have.

        Args:
            filters: the arrays of the earlier attempt's filters.
        Raises:
            ArtifactError: it is not the state of a trial.
        """
        try:
            best = None if state["best"] is None else Validation.from_stored(state["best"])
            history = {name: state[name] for name in _HISTORY} | {"last_loss": state[_LAST_LOSS]}
            # Unknown to older versions:
            history["lanes"] = [int(number) for number in state.get("lanes", ())]
            history["curve"] = [EpochLosses(*epoch) for epoch in state.get("curve", ())]
            history["diagnoses"] = {
                int(epoch): Diagnosis.from_numbers(its) for epoch, *its in state.get("diagnoses", ())
            }
            resumed = replace(
                self, rule=rule_from_state(state["rule"]), best=best, filters=self._series(filters), **history
            )
            resumed._check_history()
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise ArtifactError(
                f"the checkpoint of trial {self.claim.number}'s point is damaged: {error!r}",
                hint="the trial starts again",
            ) from error
        return resumed

    def _series(self, filters: Mapping[str, Array]) -> FilterSeries:
        try:
            return FilterSeries.from_arrays(filters)
        except ValueError as error:  # costs only pictures
            _log.warning("trial %d begins a new series of filters: %s", self.claim.number, error)
            return FilterSeries()

    def take_in(self, report: EpochReport, num_lanes: int) -> StopDecision | None:
        """Update the trial's history with an epoch. Return a decision if it was the last one, else None.

        Args:
            num_lanes: the number of lanes that were trained together.
        """
        decision = decide(self.rule, report, self.settings.training.max_epochs)
        self.seconds += report.seconds
        if num_lanes not in self.lanes:
            self.lanes.append(num_lanes)
        self.has_diverged = report.has_diverged
        if not report.has_diverged:
            self.num_epochs = report.epoch
            self.last_loss = report.best.loss
            self.curve.append(EpochLosses(report.epoch, report.train_nll, report.best.nll, report.best.loss))
            if report.diagnosis is not None:
                self.note_diagnosis(report.diagnosis)
            if report.best.is_better_than(self.best):
                self.best, self.best_epoch = report.best, report.epoch
        return decision

    @property
    def is_undiagnosed(self) -> bool:
        """Whether the network was finite after the last epoch and nobody has looked at it."""
        return not self.has_diverged and self.num_epochs not in self.diagnoses

    def note_diagnosis(self, diagnosis: Diagnosis) -> None:
        """Keep the diagnosis of the network after the last epoch."""
        self.diagnoses[self.num_epochs] = diagnosis

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
        best_loss = self.best.loss if self.best else None
        best_value = None if best_loss is None else self.metric.value_of(best_loss)
        name = self.metric.name.replace("-", "_")
        return Result(
            trial_id=self.claim.trial_id,
            outcome=Outcome.COMPLETE if is_complete else Outcome.PRUNED,
            loss=self._as_stored(best_loss if is_complete else self.last_loss),
            attributes={
                "stop_reason": decision.reason.value,
                "stop_detail": decision.detail,
                "epochs": self.num_epochs,
                "best_epoch": self.best_epoch,
                f"best_validation_{name}": best_value,
                NLL_ATTRIBUTE: self.best.nll if self.best else None,
                "seconds": round(self.seconds, 3),
                "lanes": list(self.lanes),
                **self._verdict(),
                **origin,
            },
            diagnosis=self.diagnoses.get(self.num_epochs),
            claim=self.claim.token,
            num_epochs=self.num_epochs,
            num_parameters=len(self.claim.parameters),
        )

    def _as_stored(self, loss: float | None) -> float | None:
        """The loss as it is read back: the database has the value, whose difference from 1 may be rounded."""
        return None if loss is None else self.metric.loss_of(self.metric.value_of(loss))

    def _verdict(self) -> dict[str, Any]:
        """The attributes that say what the trial suffers from, and three numbers; none if that is not known."""
        if len(self.curve) < self.num_epochs:
            return {}
        verdict = find_verdict(
            self.settings, self.num_classes, self.curve, self.diagnoses, has_diverged=self.has_diverged
        )
        if verdict is None:
            return {}
        words = {"verdict": str(verdict), "verdict_detail": verdict.detail} if verdict.causes else {}
        return {**words, **verdict.numbers}

    def metadata(self, study: StoredStudy) -> dict[str, str]:
        """Return what is stored in the file with the trial's best parameters."""
        return {
            "study": study.name,
            "definition_sha256": study.definition.sha256,
            "value_sha256": study.value_sha256,  # stays when the study is widened
            "trial": str(self.claim.number),
            "settings": self.settings.model_dump_json(),
            f"validation_{self.metric.name.replace('-', '_')}": repr(
                self.metric.value_of(self.best.loss) if self.best else None
            ),
        }

    def _check_history(self) -> None:
        """Raise ValueError or TypeError for a history that no trial can have had."""
        best = self.best
        if not 0 <= self.best_epoch <= self.num_epochs or (best is None) != (self.best_epoch == 0):
            raise ValueError(f"best epoch {self.best_epoch} of {self.num_epochs}")
        most = 1.0 if self.metric.is_share else math.inf
        if best is not None and not (0 <= best.loss <= most and best.is_finite):
            raise ValueError(f"a best validation of {best.loss} and {best.nll}")
        if not (math.isfinite(self.seconds) and self.seconds >= 0):
            raise ValueError(f"{self.seconds} seconds")
        if not (0 <= (self.last_loss or 0.0) <= most and math.isfinite(self.last_loss or 0.0)):
            raise ValueError(f"a last loss of {self.last_loss}")
        dict(self.rungs)


def record_of(cohort: Cohort, trial_id: int) -> dict[str, Any]:
    """Return what comparisons of trials need of a trial's best validation, as a field of `Result`."""
    record = cohort.best_record(trial_id)
    return {"correct": Correctness.of(record.astype(bool))} if record.dtype == np.bool_ else {"losses": record}


def diagnose_ended(
    cohort: Cohort, lanes: Mapping[int, TrialInTraining], decisions: Mapping[int, StopDecision | None]
) -> None:
    """Look at the networks of trials that have ended after an epoch in which that was not due."""
    ended = [i for i, decision in decisions.items() if decision is not None and i in lanes]
    for key, diagnosis in cohort.diagnose([i for i in ended if lanes[i].is_undiagnosed]).items():
        lanes[cast("int", key)].note_diagnosis(diagnosis)
