"""Learning-rate schedules: one object per trial, on the host. It receives each epoch's result and gives the next rate.

Schedules are deterministic. Their whole state is a `ScheduleState` of plain numbers, which checkpoints store.
Source: docs/sources.md, section 4.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import ClassVar, final

from hpsearch.study.registry import SCHEDULES
from hpsearch.study.settings import TrainingSettings


@dataclass(frozen=True, kw_only=True, slots=True)
class ScheduleState:
    """The state of a schedule.

    Args:
        num_epochs: finished epochs.
        best_loss: lowest validation loss so far.
        num_stale_epochs: epochs in a row without a new best, since the best or since the rate last fell.
        num_falls: how many times the rate has fallen for lack of progress.
        is_exhausted: the next fall would take the rate below its floor; the trial should end.
    """

    num_epochs: int = 0
    best_loss: float | None = None
    num_stale_epochs: int = 0
    num_falls: int = 0
    is_exhausted: bool = False


class LearningRateSchedule(ABC):
    """The learning rate of each epoch of one trial."""

    default_factor: ClassVar[float] = 0.5

    def __init__(self, training: TrainingSettings, state: ScheduleState | None = None) -> None:
        self.training = training
        self.state = ScheduleState() if state is None else state

    @property
    @abstractmethod
    def learning_rate(self) -> float:
        """The rate for the next epoch."""

    @property
    def is_exhausted(self) -> bool:
        return self.state.is_exhausted

    @property
    def factor(self) -> float:
        """The factor by which the rate is multiplied when it falls."""
        factor = self.training.schedule_factor
        return self.default_factor if factor is None else factor

    def finish_epoch(self, loss: float) -> None:
        """Record the lowest validation loss of an epoch."""
        is_best = self.state.best_loss is None or loss < self.state.best_loss
        self.state = replace(
            self.state,
            num_epochs=self.state.num_epochs + 1,
            best_loss=loss if is_best else self.state.best_loss,
            num_stale_epochs=0 if is_best else self.state.num_stale_epochs + 1,
        )


def build_schedule(training: TrainingSettings, state: ScheduleState | None = None) -> LearningRateSchedule:
    """Make the schedule that the settings name: fresh, or with the state from a checkpoint."""
    schedule: type[LearningRateSchedule] = SCHEDULES[training.schedule].implementation
    return schedule(training, state)


@final
class ConstantSchedule(LearningRateSchedule):
    """eta0 in every epoch; the first schedule to try (docs/sources.md, section 4)."""

    @property
    def learning_rate(self) -> float:
        return self.training.learning_rate


@final
class InverseTimeSchedule(LearningRateSchedule):
    """eta0 / (1 + decay * epoch), counting epochs from 0 (docs/sources.md, section 4, where decay is 0.001)."""

    @property
    def learning_rate(self) -> float:
        return self.training.learning_rate / (1.0 + self.training.schedule_decay * self.state.num_epochs)


@final
class StepSchedule(LearningRateSchedule):
    """Multiplies the rate by a factor every n epochs, or changes it once, after n epochs, to a constant if lower.

    Source: docs/sources.md, section 4 (with the constant 0.01 as an example).
    """

    @property
    def learning_rate(self) -> float:
        num_steps = self.state.num_epochs // self.training.schedule_every
        if self.training.schedule_target is None:
            return float(self.training.learning_rate * self.factor**num_steps)
        start = self.training.learning_rate
        return start if num_steps == 0 else min(start, self.training.schedule_target)


@final
class ExponentialSchedule(LearningRateSchedule):
    """eta0 * factor^epoch, counting epochs from 0 (docs/sources.md, section 4)."""

    default_factor = 0.95

    @property
    def learning_rate(self) -> float:
        return float(self.training.learning_rate * self.factor**self.state.num_epochs)


class ProgressSchedule(LearningRateSchedule):
    """A rate that falls after n epochs in a row without a new best validation loss.

    After a fall the count starts again from 0.
    """

    @property
    def learning_rate(self) -> float:
        return float(self.training.learning_rate * self.factor**self.state.num_falls)

    def finish_epoch(self, loss: float) -> None:
        super().finish_epoch(loss)
        if self.state.num_stale_epochs >= self.training.schedule_patience:
            self.state = self._after_fall()

    @abstractmethod
    def _after_fall(self) -> ScheduleState:
        """The state after n epochs in a row without a new best."""


@final
class PlateauSchedule(ProgressSchedule):
    """Multiplies the rate by a factor whenever the validation error is on a plateau (docs/sources.md, section 4)."""

    def _after_fall(self) -> ScheduleState:
        return replace(self.state, num_falls=self.state.num_falls + 1, num_stale_epochs=0)


@final
class HalvingSchedule(ProgressSchedule):
    """As `PlateauSchedule`, but the trial ends when the rate would fall below eta0 / stop_ratio.

    Source: docs/sources.md, section 4 (with a stop ratio of 1024).
    """

    def _after_fall(self) -> ScheduleState:
        next_ratio = self.factor ** (self.state.num_falls + 1) * self.training.schedule_stop_ratio
        if next_ratio < 1.0:
            return replace(self.state, is_exhausted=True)
        return replace(self.state, num_falls=self.state.num_falls + 1, num_stale_epochs=0)
