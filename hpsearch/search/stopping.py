"""Stopping rules, which end a trial based on its own history alone, never on other trials.

The worker has one `StoppingRule` per trial and calls `decide` after every epoch (`take_in` in worker/lanes/trial.py). A
trial that a rule ends is COMPLETE with its best value (PRUNED if it diverged: docs/decisions/0003). Ending a trial
because others are better is the task of `pruners`.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any, ClassVar, Self, final

from hpsearch.epoch_report import EpochReport, Validation
from hpsearch.errors import ArtifactError
from hpsearch.search.significance import is_significant_gain
from hpsearch.study.registry import STOPPING_RULES
from hpsearch.study.settings import StoppingSettings


class StopReason(StrEnum):
    """Why a trial ended."""

    PATIENCE_EXHAUSTED = "patience-exhausted"
    NO_IMPROVEMENT = "no-improvement"
    SCHEDULE_EXHAUSTED = "schedule-exhausted"
    MAX_EPOCHS = "max-epochs"
    MAX_STEPS = "max-steps"  # of a program
    DIVERGED = "diverged"
    PRUNED = "pruned"  # the pruner found it worse than other trials
    FINISHED = "finished"  # a program has ended by itself
    TIMEOUT = "timeout"  # of a program's attempt


@dataclass(frozen=True, slots=True)
class StopDecision:
    """The decision to end a trial: the reason, and one sentence for display."""

    reason: StopReason
    detail: str


@dataclass(kw_only=True)
class StoppingRule(ABC):
    """A stopping rule with the history of one trial. It must observe each epoch of the trial once.

    All fields are plain numbers, so that `state` is JSON and a trial can be resumed from a checkpoint.

    Args:
        best: the validation with the lowest loss so far, the first one in case of a tie. (Between two trials
            with equal losses the NLL breaks the tie; here it does not.)
    """

    name: ClassVar[str]

    best: Validation | None = None

    @classmethod
    @abstractmethod
    def fresh(cls, settings: StoppingSettings, num_minibatches: int) -> Self:
        """The rule before the first epoch of a trial whose epochs have `num_minibatches` minibatches."""

    @abstractmethod
    def observe(self, report: EpochReport) -> StopDecision | None:
        """Observe the next epoch of the trial; returns a decision if the trial should end."""

    def state(self) -> dict[str, Any]:
        """The rule with its history as JSON-serialisable values, exact; `rule_from_state` restores it."""
        return {"rule": self.name, **asdict(self), "best": self.best and self.best.as_stored()}

    def _improves_on_best(self, validation: Validation) -> bool:
        return self.best is None or validation.loss < self.best.loss

    def _describe_best(self) -> str:
        if self.best is None:
            return "nothing was validated before"
        return f"best validation loss {self.best.loss:.6g} at minibatch {self.best.iteration}"


@dataclass(kw_only=True)
class _Patience(StoppingRule):
    """Early stopping as in the deeplearning.net tutorial: each significant new best extends the trial.

    The trial may then run to a multiple of the minibatches so far. The tutorial's loop tests `patience <= iter` after
    every minibatch, and its `iter` counts from 0: minibatch t (counted from 1, as in `Validation.iteration`) is
    trained and validated exactly if `patience > t - 2` before it. We train whole epochs and then determine which
    validations that loop would have reached:

    - Validations beyond the end of patience within an epoch are ignored, so `best` is the tutorial's best.
    - If patience ends before the first validation of the next epoch we stop at once. The tutorial trains up to that
      minibatch, but never validates the result.

    `best` and its iteration equal the tutorial's if the validation points are the same, which they are whenever
    `validations_every` divides the number of minibatches, as in all runs of the sources. If it does not, the tutorial
    validates at every multiple of it, across epochs. We restart the count in each epoch and also validate at the end
    of the epoch, because the epoch's value is reported; the rule is then applied at these points.

    Args:
        patience: number of minibatches that are trained in any case; grows during the trial.
        increase: a significant new best lets the trial run to this multiple of the tutorial's `iter` at that moment.
        validations_every: minibatches between two validations, at most the minibatches of an epoch
            (`validation_interval`).
    Source: docs/sources.md, section 5.
    """

    patience: float
    increase: float
    validations_every: int

    @abstractmethod
    def _is_significant(self, new_best: Validation) -> bool:
        """Whether the new best is enough better than the earlier validations to extend the trial."""

    def observe(self, report: EpochReport) -> StopDecision | None:
        for validation in report.validations:
            if not self._reaches(validation.iteration):
                return self._stop()
            self._weigh(validation)
        next_validation = report.validations[-1].iteration + self.validations_every
        return None if self._reaches(next_validation) else self._stop()

    def _reaches(self, iteration: int) -> bool:
        return self.patience > iteration - 2

    def _weigh(self, validation: Validation) -> None:
        if not self._improves_on_best(validation):
            return
        if self._is_significant(validation):
            self.patience = max(self.patience, (validation.iteration - 1) * self.increase)
        self.best = validation

    def _stop(self) -> StopDecision:
        detail = f"patience ran out after {self.patience:.12g} minibatches; {self._describe_best()}"
        return StopDecision(StopReason.PATIENCE_EXHAUSTED, detail)


@final
@dataclass(kw_only=True)
class GeometricPatience(_Patience):
    """Patience that grows with relative improvements, as in the deeplearning.net tutorial.

    Args:
        threshold: a new best is significant if it is below this fraction of the old best.
    Source: docs/sources.md, section 5.
    """

    name: ClassVar[str] = "geometric-patience"

    threshold: float

    @classmethod
    def fresh(cls, settings: StoppingSettings, num_minibatches: int) -> Self:
        return cls(
            patience=float(settings.patience),
            increase=settings.patience_increase,
            threshold=settings.improvement_threshold,
            validations_every=validation_interval(settings, num_minibatches),
        )

    def _is_significant(self, new_best: Validation) -> bool:
        best_loss = math.inf if self.best is None else self.best.loss
        return new_best.loss < best_loss * self.threshold


@final
@dataclass(kw_only=True)
class SignificancePatience(_Patience):
    """Patience that grows with statistically significant improvements, by an exact McNemar test on the same images.

    A new best is compared with the reference: the last new best that was significant, initially the first validation.
    If it were compared with the previous best, a slow and steady improvement would never be significant. The code that
    validates keeps the reference, and moves it by the same test (`training.correct_images`).

    Args:
        level: a new best is significant if its one-sided p-value is at most this.
        reference_iteration: iteration of the reference; 0 if there is none.
    Raises:
        ValueError: a new best was not compared with a reference (`gained` and `lost` are None).
    Source: docs/sources.md, section 5, where a test of statistical significance is suggested for the decision whether
        to increase the patience; McNemar (1947).
    """

    name: ClassVar[str] = "significance"

    level: float
    reference_iteration: int = 0

    @classmethod
    def fresh(cls, settings: StoppingSettings, num_minibatches: int) -> Self:
        return cls(
            patience=float(settings.patience),
            increase=settings.patience_increase,
            level=settings.significance_level,
            validations_every=validation_interval(settings, num_minibatches),
        )

    def _is_significant(self, new_best: Validation) -> bool:
        if new_best.gained is None or new_best.lost is None:
            raise ValueError(f"the validation at minibatch {new_best.iteration} was not compared with a reference")
        is_significant = self.best is None or is_significant_gain(new_best.gained, new_best.lost, self.level)
        if is_significant:
            self.reference_iteration = new_best.iteration
        return is_significant


@final
@dataclass(kw_only=True)
class NoImprovementInN(StoppingRule):
    """Stops after n epochs in a row without a new best; a tie is not a new best.

    Args:
        n: 1 or more; 10, 20 or 30 in the source, since one or two bad epochs mean nothing.
        num_epochs_without_best: epochs since the last new best.
    Source: docs/sources.md, section 5.
    """

    name: ClassVar[str] = "no-improvement-in-n"

    n: int
    num_epochs_without_best: int = 0

    @classmethod
    def fresh(cls, settings: StoppingSettings, num_minibatches: int) -> Self:
        return cls(n=settings.n)

    def observe(self, report: EpochReport) -> StopDecision | None:
        if self._improves_on_best(report.best):
            self.best = report.best
            self.num_epochs_without_best = 0
            return None
        self.num_epochs_without_best += 1
        if self.num_epochs_without_best < self.n:
            return None
        detail = f"no new best in {self.num_epochs_without_best} epochs; {self._describe_best()}"
        return StopDecision(StopReason.NO_IMPROVEMENT, detail)


@final
@dataclass(kw_only=True)
class NeverStops(StoppingRule):
    """Never stops, but keeps the best. The trial ends by its number of epochs, its schedule, or a pruner."""

    name: ClassVar[str] = "none"

    @classmethod
    def fresh(cls, settings: StoppingSettings, num_minibatches: int) -> Self:
        return cls()

    def observe(self, report: EpochReport) -> StopDecision | None:
        if self._improves_on_best(report.best):
            self.best = report.best
        return None


def stopping_rule(settings: StoppingSettings, *, num_minibatches: int) -> StoppingRule:
    """A fresh rule for one trial whose epochs have `num_minibatches` minibatches."""
    rule: type[StoppingRule] = STOPPING_RULES[settings.rule].implementation
    return rule.fresh(settings, num_minibatches)


def validation_interval(settings: StoppingSettings, num_minibatches: int) -> int:
    """Minibatches between two validations: 1 to `num_minibatches`.

    With a patience rule at most half of the patience, so that a trial is validated before its patience can run out
    (docs/sources.md, section 5); otherwise once per epoch.
    """
    if "patience" not in STOPPING_RULES[settings.rule].keys:
        return num_minibatches
    return max(1, min(num_minibatches, settings.patience // 2))


def validations_per_epoch(settings: StoppingSettings, num_minibatches: int) -> int:
    """How often each epoch validates, the validation at its end included."""
    return math.ceil(num_minibatches / validation_interval(settings, num_minibatches))


def rule_from_state(state: Mapping[str, Any]) -> StoppingRule:
    """Restore a rule with its history from a saved `state`.

    Raises:
        ArtifactError: the state names an unknown rule, or lacks fields.
    """
    fields = dict(state)
    try:
        rule: type[StoppingRule] = STOPPING_RULES[fields.pop("rule")].implementation
        best = fields.pop("best")
        return rule(best=None if best is None else Validation.from_stored(best), **fields)
    except (KeyError, TypeError) as error:
        raise ArtifactError(
            f"the saved state of a trial's stopping rule cannot be read: {error!r}",
            hint="the checkpoint is damaged or from another version; let the trial start again",
        ) from error


def decide(rule: StoppingRule, report: EpochReport, max_epochs: int) -> StopDecision | None:
    """Decide after an epoch whether its trial ends; None to continue.

    The first of these reasons is returned: divergence (the rule does not observe such an epoch, so its best stays
    finite), the end of the learning-rate schedule, the stopping rule, the last epoch. Call it once per epoch, in order.
    """
    if report.has_diverged:
        return StopDecision(StopReason.DIVERGED, f"diverged at epoch {report.epoch}: a loss is not finite")
    by_rule = rule.observe(report)  # before the other checks: the last epoch may be the best one
    if report.is_schedule_exhausted:
        detail = f"the schedule ended at epoch {report.epoch}, after the rate {report.learning_rate:.6g}"
        return StopDecision(StopReason.SCHEDULE_EXHAUSTED, detail)
    if by_rule is None and report.epoch >= max_epochs:
        return StopDecision(StopReason.MAX_EPOCHS, f"all {max_epochs} epochs are trained")
    return by_rule
