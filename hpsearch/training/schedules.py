"""Learning-rate schedules: host objects, one per trial, that are told of each epoch and give the next rate.

Deterministic; all that a schedule remembers is a `ScheduleState` of plain numbers, for checkpoints to keep.
Source: REFERENCE section 4 (DLT, KZL, FAU).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import final

from hpsearch.study.settings import TrainingSettings

DEFAULT_FACTOR = 0.5
DEFAULT_EXPONENTIAL_FACTOR = 0.95


@dataclass(frozen=True, kw_only=True, slots=True)
class ScheduleState:
    """What a schedule has seen so far.

    Args:
        num_epochs: finished epochs.
        best_zero_one: lowest validation zero-one loss so far.
        num_stale_epochs: epochs in a row without a new best, since the best or since the rate last fell.
        num_falls: how many times want of progress has made the rate fall.
        is_exhausted: the rate would have to fall below its floor: the trial should end.
    """

    num_epochs: int = 0
    best_zero_one: float | None = None
    num_stale_epochs: int = 0
    num_falls: int = 0
    is_exhausted: bool = False


class LearningRateSchedule(ABC):
    """The learning rate of each epoch of one trial."""

    def __init__(self, training: TrainingSettings, state: ScheduleState | None = None) -> None:
        self.training = training
        self.state = ScheduleState() if state is None else state

    @property
    @abstractmethod
    def learning_rate(self) -> float:
        """The rate for the epoch to come."""

    @property
    def is_exhausted(self) -> bool:
        return self.state.is_exhausted

    @property
    def factor(self) -> float:
        """What the rate is multiplied with when it falls."""
        factor = self.training.schedule_factor
        return DEFAULT_FACTOR if factor is None else factor

    def finish_epoch(self, zero_one: float) -> None:
        """Tell the schedule an epoch's best validation zero-one loss."""
        is_best = self.state.best_zero_one is None or zero_one < self.state.best_zero_one
        self.state = replace(
            self.state,
            num_epochs=self.state.num_epochs + 1,
            best_zero_one=zero_one if is_best else self.state.best_zero_one,
            num_stale_epochs=0 if is_best else self.state.num_stale_epochs + 1,
        )


def build_schedule(training: TrainingSettings, state: ScheduleState | None = None) -> LearningRateSchedule:
    """Make the schedule that the settings name: fresh, or from where a checkpoint left it."""
    match training.schedule:
        case "constant":
            return ConstantSchedule(training, state)
        case "inverse-time":
            return InverseTimeSchedule(training, state)
        case "step":
            return StepSchedule(training, state)
        case "exponential":
            return ExponentialSchedule(training, state)
        case "plateau":
            return PlateauSchedule(training, state)
        case "halving":
            return HalvingSchedule(training, state)


@final
class ConstantSchedule(LearningRateSchedule):
    """eta0 (DLT: the first thing to try)."""

    @property
    def learning_rate(self) -> float:
        return self.training.learning_rate


@final
class InverseTimeSchedule(LearningRateSchedule):
    """eta0 / (1 + decay * epoch), with epoch 0 the first (KZL, d = 0.001; FAU's 1/t)."""

    @property
    def learning_rate(self) -> float:
        return self.training.learning_rate / (1.0 + self.training.schedule_decay * self.state.num_epochs)


@final
class StepSchedule(LearningRateSchedule):
    """Every n epochs times a factor, or after n epochs a constant such as 0.01 (FAU), if that is lower."""

    @property
    def learning_rate(self) -> float:
        num_steps = self.state.num_epochs // self.training.schedule_every
        if self.training.schedule_target is None:
            return float(self.training.learning_rate * self.factor**num_steps)
        start = self.training.learning_rate
        return start if num_steps == 0 else min(start, self.training.schedule_target)


@final
class ExponentialSchedule(LearningRateSchedule):
    """eta0 * factor^epoch, with epoch 0 the first (FAU)."""

    @property
    def factor(self) -> float:
        factor = self.training.schedule_factor
        return DEFAULT_EXPONENTIAL_FACTOR if factor is None else factor

    @property
    def learning_rate(self) -> float:
        return float(self.training.learning_rate * self.factor**self.state.num_epochs)


class ProgressSchedule(LearningRateSchedule):
    """Falls after n epochs in a row without a new best validation zero-one loss; then n more must pass."""

    @property
    def learning_rate(self) -> float:
        return float(self.training.learning_rate * self.factor**self.state.num_falls)

    def finish_epoch(self, zero_one: float) -> None:
        super().finish_epoch(zero_one)
        if self.state.num_stale_epochs >= self.training.schedule_patience:
            self.state = self._after_fall()

    @abstractmethod
    def _after_fall(self) -> ScheduleState:
        """The state once patience with the present rate has run out."""


@final
class PlateauSchedule(ProgressSchedule):
    """Times a factor whenever the validation error stays on a plateau (FAU)."""

    def _after_fall(self) -> ScheduleState:
        return replace(self.state, num_falls=self.state.num_falls + 1, num_stale_epochs=0)


@final
class HalvingSchedule(ProgressSchedule):
    """As on a plateau, but the trial ends when the rate would fall below eta0 / stop_ratio (KZL: 1024)."""

    def _after_fall(self) -> ScheduleState:
        next_ratio = self.factor ** (self.state.num_falls + 1) * self.training.schedule_stop_ratio
        if next_ratio < 1.0:
            return replace(self.state, is_exhausted=True)
        return replace(self.state, num_falls=self.state.num_falls + 1, num_stale_epochs=0)
