"""When a trial ends of its own accord: its rule looks at its own history only, never at other trials.

The worker keeps one `StoppingRule` per trial and asks `decide` after every epoch. A trial that ends here is
COMPLETE with its best value (PRUNED if it diverged: docs/decisions/0003); giving a trial up because others are
better is the business of `pruners`.
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
from hpsearch.study.settings import StoppingSettings


class StopReason(StrEnum):
    """Why a trial ended of its own accord."""

    PATIENCE_EXHAUSTED = "patience-exhausted"
    NO_IMPROVEMENT = "no-improvement"
    SCHEDULE_EXHAUSTED = "schedule-exhausted"
    MAX_EPOCHS = "max-epochs"
    DIVERGED = "diverged"


@dataclass(frozen=True, kw_only=True, slots=True)
class StopDecision:
    """A trial ends here: the reason, and one sentence for people."""

    reason: StopReason
    detail: str


@dataclass(kw_only=True)
class StoppingRule(ABC):
    """What the stopping of one trial depends on: one object per trial, told each of its epochs once.

    Every field is a plain number, so that `state` is JSON and a trial can be taken up again from a
    checkpoint.

    Args:
        best: the validation with the strictly lowest zero-one loss so far; the first of equals stays. (Which
            of two equal trials is the better one is another question: there the NLL breaks the tie.)
    """

    name: ClassVar[str]

    best: Validation | None = None

    @abstractmethod
    def observe(self, report: EpochReport) -> StopDecision | None:
        """Take in the next epoch of this trial; say so if it was the last one."""

    def state(self) -> dict[str, Any]:
        """The rule with its history: JSON-serialisable, exact, read back by `rule_from_state`."""
        return {"rule": self.name, **asdict(self)}

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> Self:
        """The rule that `state` was taken from; it decides from here on as that one would have.

        Raises:
            ArtifactError: the state is not one of this rule.
        """
        fields = {key: value for key, value in state.items() if key != "rule"}
        try:
            best = fields.pop("best")
            return cls(**fields, best=None if best is None else Validation(**best))
        except (KeyError, TypeError) as error:
            raise _damaged_state(f"fields {sorted(state)} for the rule {cls.name}") from error

    def _improves_on_best(self, validation: Validation) -> bool:
        return self.best is None or validation.zero_one < self.best.zero_one

    def _describe_best(self) -> str:
        if self.best is None:
            return "nothing was validated before"
        return f"best validation zero-one loss {self.best.zero_one:.6g} at minibatch {self.best.iteration}"


@dataclass(kw_only=True)
class _Patience(StoppingRule):
    """DLT's early stopping: each significant new best buys the trial a multiple of the minibatches so far.

    DLT's loop tests `patience <= iter` after every minibatch, and its `iter` counts from 0: minibatch t
    (counted from 1, as in `Validation.iteration`) is trained, and looked at, exactly if `patience > t - 2`
    before it. We train whole epochs and then ask which validations that loop would have reached:

    - Validations beyond the end of patience within an epoch are ignored, so `best` is DLT's best.
    - If patience ends before the next epoch's first validation we stop at once: DLT trains on up to that
      minibatch, but never looks at what came out.

    `best` and its iteration equal DLT's wherever the validation points are the same: whenever
    `validations_every` divides the number of minibatches, as in all runs of the notes. Where it does not, DLT
    validates at every multiple of it, across the epochs; we begin to count anew in each epoch and validate at
    the epoch's end too, because the epoch's value is reported. The same rule then holds at our points.

    Args:
        patience: minibatches that are trained in any case; grows as the trial goes.
        increase: a significant new best lets the trial run to this multiple of DLT's `iter` at that moment.
        validations_every: minibatches between two validations, at most the minibatches of an epoch
            (`validation_interval`).
    Source: DLT, "Early-Stopping"; REFERENCE section 5.
    """

    patience: float
    increase: float
    validations_every: int

    @abstractmethod
    def _is_significant(self, new_best: Validation) -> bool:
        """Whether it is so much better than what went before that the trial should go on for longer."""

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
        return StopDecision(reason=StopReason.PATIENCE_EXHAUSTED, detail=detail)


@final
@dataclass(kw_only=True)
class GeometricPatience(_Patience):
    """Patience that grows with relative improvements, as DLT has it.

    Args:
        threshold: a new best is significant below this fraction of the old one.
    """

    name: ClassVar[str] = "geometric-patience"

    threshold: float

    def _is_significant(self, new_best: Validation) -> bool:
        best_loss = math.inf if self.best is None else self.best.zero_one
        return new_best.zero_one < best_loss * self.threshold


@final
@dataclass(kw_only=True)
class SignificancePatience(_Patience):
    """Patience that grows with improvements that are more than chance: an exact McNemar test on the same images.

    A new best is held against the reference: the new best that was significant last, the very first at first. Held
    against the best before it, a slow and steady improvement would never be significant. Whoever validates keeps the
    reference, and moves it by the same test (`training.correctness`).

    Args:
        level: a new best is significant if its one-sided p-value is at most this.
        reference_iteration: of the reference; 0 before there is one.
    Source: DLT, "Early-Stopping", wishes for "a test of statistical significance when deciding whether to increase
        the patience"; McNemar (1947).
    """

    name: ClassVar[str] = "significance"

    level: float
    reference_iteration: int = 0

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
    """Stop when n epochs in a row brought no new best; a tie is no improvement.

    Args:
        n: 1 or more; KZL uses 10, 20 or 30, as one or two bad epochs mean nothing.
        num_epochs_without_best: epochs since the last new best.
    Source: KZL, "no-improvement-in-n"; REFERENCE section 5.
    """

    name: ClassVar[str] = "no-improvement-in-n"

    n: int
    num_epochs_without_best: int = 0

    def observe(self, report: EpochReport) -> StopDecision | None:
        if self._improves_on_best(report.best):
            self.best = report.best
            self.num_epochs_without_best = 0
            return None
        self.num_epochs_without_best += 1
        if self.num_epochs_without_best < self.n:
            return None
        detail = f"no new best in {self.num_epochs_without_best} epochs; {self._describe_best()}"
        return StopDecision(reason=StopReason.NO_IMPROVEMENT, detail=detail)


@final
@dataclass(kw_only=True)
class NeverStops(StoppingRule):
    """Keep the best and train on: such a trial ends by its epochs, its schedule, or a pruner."""

    name: ClassVar[str] = "none"

    def observe(self, report: EpochReport) -> StopDecision | None:
        if self._improves_on_best(report.best):
            self.best = report.best
        return None


def stopping_rule(settings: StoppingSettings, *, num_minibatches: int) -> StoppingRule:
    """A fresh rule for one trial whose epochs have `num_minibatches` minibatches."""
    match settings.rule:
        case "geometric-patience":
            return GeometricPatience(
                patience=float(settings.patience),
                increase=settings.patience_increase,
                threshold=settings.improvement_threshold,
                validations_every=validation_interval(settings, num_minibatches),
            )
        case "significance":
            return SignificancePatience(
                patience=float(settings.patience),
                increase=settings.patience_increase,
                level=settings.significance_level,
                validations_every=validation_interval(settings, num_minibatches),
            )
        case "no-improvement-in-n":
            return NoImprovementInN(n=settings.n)
        case "none":
            return NeverStops()


def validation_interval(settings: StoppingSettings, num_minibatches: int) -> int:
    """Minibatches between two validations: 1 to `num_minibatches`.

    With patience half of it at most, so that a trial is looked at before it can run out (DLT); otherwise once per
    epoch.
    """
    if settings.rule not in ("geometric-patience", "significance"):
        return num_minibatches
    return max(1, min(num_minibatches, settings.patience // 2))


def rule_from_state(state: Mapping[str, Any]) -> StoppingRule:
    """The rule whose `state` was saved, with its history.

    Raises:
        ArtifactError: the state names no rule that we know, or lacks its fields.
    """
    for rule in (GeometricPatience, SignificancePatience, NoImprovementInN, NeverStops):
        if state.get("rule") == rule.name:
            return rule.from_state(state)
    raise _damaged_state(f"the rule {state.get('rule')!r}")


def decide(rule: StoppingRule, report: EpochReport, max_epochs: int) -> StopDecision | None:
    """What the epoch means for its trial: a reason to end it, or None to train on.

    The first that holds counts: divergence (the rule is not told: its best stays finite), the learning-rate
    schedule's end, the trial's own rule, the last epoch. To be called once per epoch, in order.
    """
    if report.has_diverged:
        detail = f"diverged at epoch {report.epoch}: a loss is not finite"
        return StopDecision(reason=StopReason.DIVERGED, detail=detail)
    by_rule = rule.observe(report)  # in any case: the last epoch may be the best one
    if report.is_schedule_exhausted:
        detail = f"the schedule ended at epoch {report.epoch}, after the rate {report.learning_rate:.6g}"
        return StopDecision(reason=StopReason.SCHEDULE_EXHAUSTED, detail=detail)
    if by_rule is not None:
        return by_rule
    if report.epoch >= max_epochs:
        return StopDecision(reason=StopReason.MAX_EPOCHS, detail=f"all {max_epochs} epochs are trained")
    return None


def _damaged_state(found: str) -> ArtifactError:
    return ArtifactError(
        f"the saved state of a trial's stopping rule cannot be read: it has {found}",
        hint="the checkpoint is damaged or from another version; let the trial start again",
    )
