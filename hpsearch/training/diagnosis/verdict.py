"""What is wrong with a trial's training, in words: at most two causes, from its curve and its diagnoses.

Source: docs/sources.md, section 8.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property
from itertools import pairwise
from typing import NamedTuple

from hpsearch.epoch_report import Diagnosis
from hpsearch.study.settings import TrialSettings
from hpsearch.training.losses import guessing_loss, loss_name
from hpsearch.wording import counted, percent


class Cause(StrEnum):
    """What a trial suffers from."""

    RATE_TOO_HIGH = "learning rate too high"
    RATE_TOO_LOW = "learning rate too low"
    EXPLODING = "exploding"
    VANISHING = "vanishing"
    SATURATED = "saturated"
    DEAD = "dead units"
    OVERFITTING = "overfitting"
    UNDERFITTING = "underfitting"
    NOISY = "noisy"
    FINE = "fine"


class EpochLosses(NamedTuple):
    """One epoch of a trial's curve, as it is stored.

    Args:
        train_nll: mean over the epoch of what training minimises (`epoch_report.Validation`).
        validation_nll, loss: at the epoch's best validation.
    """

    epoch: int
    train_nll: float
    validation_nll: float
    loss: float


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """At most two causes, the likeliest first, what they were found by, and three numbers of the last diagnosis.

    Args:
        causes: none if it is too early to say.
        numbers: update_ratio, gradient_norm and generalization_gap (validation NLL minus training NLL, nats); those
            that are not known are left out.
    """

    causes: tuple[Cause, ...]
    detail: str
    numbers: Mapping[str, float]

    def __str__(self) -> str:
        return ", ".join(self.causes)


# Thresholds, set on digits (benchmarks/planted_verdicts.py) and judged on MNIST (docs/results/believe.md). Losses are
# fractions of the loss of guessing, ln(classes).
_LEARNED, _LEARNED_NATS = 0.15, 0.345  # a training loss below the larger of these is learned
_GUESSING = 0.9  # a loss above this is that of guessing
_BLOWN_UP = 1.25  # a first epoch with a mean loss above this was thrown far away from the initial weights
_OVERFITTING, _OVERFITTING_NATS = 0.1, 0.15  # the validation loss is higher than the training loss by more than both
_COLLAPSED = 0.95  # share of dead or saturated units in the first epoch
_STUCK = 0.9  # and at the end
_FEW_IMAGES = 4  # minibatches of at most so many images are noise, whatever the rate
_NOISY = 4.5  # times the gradient: the noise of a minibatch's gradient
_PENALISED = 0.2  # times the gradient of the loss: the gradient of the penalties
_PENALISED_LOSS = 0.1  # with a lower loss not much is lost to the penalties
_STILL_FALLING = 0.15  # share of the whole decrease of the loss in the last third of the epochs
_VANISHING = 1e-3  # nats: norm of the gradient
_EXPLODING = 100.0
_FEWEST_EPOCHS = 6  # with fewer, a loss that is still high says nothing


def find_verdict(
    settings: TrialSettings,
    num_classes: int,
    curve: Sequence[EpochLosses],
    diagnoses: Mapping[int, Diagnosis],
    *,
    has_diverged: bool,
) -> Verdict | None:
    """Judge a trial that has ended.

    Args:
        num_classes: 0 in regression.
        curve: its finite epochs, in order.
        diagnoses: by epoch.
        has_diverged: an epoch followed whose losses were not finite.
    Returns:
        None if the trial was not diagnosed. A trial that was too short to be judged has no causes.
    """
    if not diagnoses and not has_diverged:
        return None
    signs = _Signs(
        settings=settings,
        guess=guessing_loss(num_classes),
        loss=loss_name(num_classes),
        curve=curve,
        diagnoses=diagnoses,
        has_diverged=has_diverged,
    )
    found: dict[Cause, str] = {}
    for cause, detail in _causes(signs):
        found.setdefault(cause, detail)
    is_too_early = not found and signs.is_short and signs.is_bad
    causes = () if is_too_early else tuple(found)[:2] or (Cause.FINE,)
    details = dict.fromkeys(found.get(cause, signs.losses) for cause in causes or (Cause.FINE,))
    return Verdict(causes=causes, detail="; ".join(details), numbers=signs.numbers)


@dataclass(frozen=True, kw_only=True)
class _Signs:
    """What the causes are told by."""

    settings: TrialSettings
    guess: float
    loss: str
    curve: Sequence[EpochLosses]
    diagnoses: Mapping[int, Diagnosis]
    has_diverged: bool

    @cached_property
    def first(self) -> Diagnosis | None:
        return self.diagnoses[min(self.diagnoses)] if self.diagnoses else None

    @cached_property
    def last(self) -> Diagnosis | None:
        return self.diagnoses[max(self.diagnoses)] if self.diagnoses else None

    @property
    def is_short(self) -> bool:
        return len(self.curve) < _FEWEST_EPOCHS

    @property
    def is_bad(self) -> bool:
        """Whether the training images were not learned."""
        return self.train > max(_LEARNED, _LEARNED_NATS / self.guess)

    @property
    def is_vanishing(self) -> bool:
        norm = None if self.last is None else self.last.gradient_norm
        return self.train > _GUESSING and norm is not None and norm < _VANISHING

    @property
    def batch_size(self) -> int:
        return self.settings.training.batch_size

    @cached_property
    def train(self) -> float:
        """The training loss at the end, as a fraction of that of guessing."""
        return self.curve[-1].train_nll / self.guess if self.curve else math.inf

    @cached_property
    def validation(self) -> float:
        """The lowest validation loss, as such a fraction."""
        return min((epoch.validation_nll for epoch in self.curve), default=math.inf) / self.guess

    @cached_property
    def tail(self) -> float:
        """The share of the whole decrease of the training loss that the last third of the epochs made."""
        losses = [epoch.train_nll for epoch in self.curve]
        total, last = losses[0] - losses[-1], losses[-1 - max(1, len(losses) // 3)] - losses[-1]
        return last / total if total > 0 else 0.0

    @cached_property
    def is_falling(self) -> bool:
        """Whether the training loss was still falling at the end, and never rose."""
        losses = [epoch.train_nll for epoch in self.curve]
        return self.tail > _STILL_FALLING and all(b <= a * 1.001 for a, b in pairwise(losses))

    @cached_property
    def noise(self) -> float:
        """The noise of a minibatch's gradient, divided by the gradient."""
        last = self.last
        if last is None or not last.gradient_norm or last.gradient_noise is None:
            return 0.0
        return last.gradient_noise / math.sqrt(self.batch_size) / last.gradient_norm

    @cached_property
    def penalties(self) -> float:
        """The gradient of the penalties, divided by that of the loss: the largest ratio of all epochs."""
        pairs = [(each.penalty_norm, each.gradient_norm) for each in self.diagnoses.values()]
        return max((penalty / norm for penalty, norm in pairs if penalty and norm), default=0.0)

    @property
    def losses(self) -> str:
        if not self.curve:
            return "the first epoch was not finite"
        last = self.curve[-1]
        return f"{self.loss} {last.train_nll:.3g} in training and {last.validation_nll:.3g} in validation"

    @property
    def updates(self) -> str:
        ratios = [] if self.last is None else [r for r in self.last.update_ratios.values() if r is not None]
        if not ratios:
            return self.losses
        low, high = f"{min(ratios):.1e}", f"{max(ratios):.1e}"
        return f"{self.losses}; updates of {low if low == high else f'{low} to {high}'} of the weights"

    @property
    def numbers(self) -> dict[str, float]:
        last, epoch = self.last, self.curve[-1] if self.curve else None
        found = {
            "update_ratio": last and last.update_ratio,
            "gradient_norm": last and last.gradient_norm,
            "generalization_gap": epoch and epoch.validation_nll - epoch.train_nll,
        }
        return {name: float(f"{number:.6g}") for name, number in found.items() if number is not None}


def _causes(signs: _Signs) -> Iterator[tuple[Cause, str]]:
    """The causes with what they were found by, the likeliest first."""
    if signs.has_diverged:
        yield from _of_a_diverged_trial(signs)
        return
    stuck = _stuck_units(signs)
    is_bad = signs.is_bad
    is_penalised = signs.penalties > _PENALISED and signs.train > _PENALISED_LOSS
    is_blown_up = signs.curve[0].train_nll > _BLOWN_UP * signs.guess and signs.train > 0.5
    if is_bad and (stuck or is_blown_up):
        yield from _of_a_rate_too_high(signs, stuck)
    if is_penalised:
        yield (
            Cause.UNDERFITTING,
            f"the penalties pull {signs.penalties:.2g} times as hard as the loss, which stays at {signs.losses}",
        )
    if is_bad and not is_penalised and not signs.is_vanishing and signs.noise > _NOISY:
        yield (
            Cause.NOISY,
            f"the noise of {_images(signs.batch_size)} is {signs.noise:.2g} times the gradient; {signs.losses}",
        )
    if signs.is_short:
        # The mean over an epoch says little of its end.
        nll = None if signs.last is None else signs.last.nll
        if not is_penalised and (nll is None or nll > _GUESSING * signs.guess) and signs.train > _GUESSING:
            yield Cause.RATE_TOO_LOW, signs.updates
        return
    if is_bad:
        yield from _of_a_high_loss(signs)
    gap = signs.validation - signs.train
    if gap > max(_OVERFITTING, _OVERFITTING_NATS / signs.guess) and signs.train < 0.5 * signs.validation:
        yield (
            Cause.OVERFITTING,
            f"{signs.loss} {signs.curve[-1].train_nll:.3g} in training and never below "
            f"{signs.validation * signs.guess:.3g} in validation",
        )


def _of_a_diverged_trial(signs: _Signs) -> Iterator[tuple[Cause, str]]:
    norm = None if signs.last is None else signs.last.gradient_norm
    detail = f"the loss was not finite after epoch {len(signs.curve)}"
    if norm is not None and norm > _EXPLODING:
        yield Cause.EXPLODING, f"{detail}, with a gradient of {norm:.3g}"
    yield Cause.RATE_TOO_HIGH, detail
    yield Cause.EXPLODING, detail


def _of_a_rate_too_high(signs: _Signs, stuck: Cause | None) -> Iterator[tuple[Cause, str]]:
    if signs.batch_size <= _FEW_IMAGES:
        yield Cause.NOISY, f"{_images(signs.batch_size)}; {signs.loss} {signs.curve[0].train_nll:.3g} in epoch 1"
    yield Cause.RATE_TOO_HIGH, f"{signs.loss} {signs.curve[0].train_nll:.3g} in epoch 1, then {signs.losses}"
    if stuck is not None and signs.last is not None:
        share = (signs.last.dead if stuck is Cause.DEAD else signs.last.saturated) or 0.0
        yield stuck, f"{percent(share)} of a layer {'dead' if stuck is Cause.DEAD else 'saturated'}"


def _of_a_high_loss(signs: _Signs) -> Iterator[tuple[Cause, str]]:
    last = signs.last
    is_falling = signs.is_falling and (last is None or (last.saturated or 0.0) < 0.5)
    if signs.is_vanishing and last is not None:
        yield Cause.VANISHING, f"a gradient of {last.gradient_norm:.1e}; {signs.losses}"
    if is_falling:
        yield Cause.RATE_TOO_LOW, f"still falling; {signs.updates}"
    if last is not None and (last.dead or 0.0) > _STUCK:
        yield Cause.DEAD, f"{percent(last.dead or 0.0)} of a layer dead"
    yield Cause.UNDERFITTING, signs.losses
    if not is_falling and last is not None and (last.saturated or 0.0) > _STUCK:
        yield Cause.SATURATED, f"{percent(last.saturated or 0.0)} of a layer saturated"


def _stuck_units(signs: _Signs) -> Cause | None:
    """Whether the units of a layer were dead or saturated after the first epoch, and are so at the end."""
    first, last = signs.first, signs.last
    if first is None or last is None:
        return None
    for cause, name in ((Cause.DEAD, "dead"), (Cause.SATURATED, "saturated")):
        if (getattr(first, name) or 0.0) >= _COLLAPSED and (getattr(last, name) or 0.0) >= _STUCK:
            return cause
    return None


def _images(number: int) -> str:
    return f"minibatches of {counted(number, 'image')}"
