"""The host-side state of a busy lane: which trial it trains, and how far the trial has come."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from hpsearch.epoch_report import EpochReport, Validation
from hpsearch.study.settings import TrialSettings
from hpsearch.training.evaluation import validation_of
from hpsearch.training.lanes.checkpoint import TrialProgress
from hpsearch.training.lanes.lane_diagnosis import diagnosis_of
from hpsearch.training.minibatches import is_validation_due, minibatch_order
from hpsearch.training.networks.network import Network
from hpsearch.training.schedules import LearningRateSchedule, build_schedule


@dataclass(frozen=True, kw_only=True, slots=True)
class EpochPlan:
    """What the epochs of a cohort have in common.

    Args:
        num_minibatches: of an epoch.
        due: the minibatches of an epoch after which lanes are validated, 1-based.
        is_compared: validations are compared with a reference, which gives two more numbers each.
    """

    num_minibatches: int
    due: tuple[int, ...]
    is_compared: bool

    @classmethod
    def of(cls, num_minibatches: int, validations_every: int, *, is_compared: bool) -> EpochPlan:
        """The plan of epochs with a validation after each `validations_every` minibatches, and at their end."""
        if validations_every < 1:
            raise ValueError(f"validations_every must be at least 1, got {validations_every}")
        sizes = {"num_minibatches": num_minibatches, "validations_every": validations_every}
        due = tuple(m for m in range(1, num_minibatches + 1) if is_validation_due(m, **sizes))
        return cls(num_minibatches=num_minibatches, due=due, is_compared=is_compared)


@dataclass(kw_only=True, slots=True)
class BusyLane:
    """One busy lane. Its tensors are in the stack, at the same index.

    Args:
        key: of the trial.
        network: the trial's own network; the cohort's may be wider.
    """

    key: Hashable
    settings: TrialSettings
    schedule: LearningRateSchedule
    network: Network
    num_epochs: int = 0
    best: Validation | None = None

    def progress(self, **of_cohort: Any) -> TrialProgress:
        """The trial's progress as of now, with those fields that are the same for the whole cohort."""
        mine: dict[str, Any] = {"num_epochs": self.num_epochs, "schedule": self.schedule.state, "best": self.best}
        return TrialProgress(settings=self.settings, **mine, **of_cohort)

    def go_on_from(self, progress: TrialProgress) -> None:
        self.schedule = build_schedule(self.settings.training, progress.schedule)
        self.num_epochs = progress.num_epochs
        self.best = progress.best

    def finish_epoch(
        self, plan: EpochPlan, numbers: Sequence[float], learning_rate: float, seconds: float
    ) -> EpochReport:
        """Update the state after an epoch and report the epoch.

        Args:
            numbers: training NLL; for each validation the loss and the NLL, and with a reference the images gained and
                lost; then the numbers of the diagnosis, if there is one.
        """
        offset = self.num_epochs * plan.num_minibatches
        width = 4 if plan.is_compared else 2
        end = 1 + width * len(plan.due)
        rows = [numbers[start : start + width] for start in range(1, end, width)]
        validations = tuple(
            validation_of(offset + minibatch, *row) for minibatch, row in zip(plan.due, rows, strict=True)
        )
        for validation in validations:
            if validation.is_finite and validation.is_better_than(self.best):
                self.best = validation
        self.num_epochs += 1
        self.schedule.finish_epoch(min(validation.loss for validation in validations))
        return EpochReport(
            epoch=self.num_epochs,
            validations=validations,
            train_nll=numbers[0],
            learning_rate=learning_rate,
            seconds=seconds,
            is_schedule_exhausted=self.schedule.is_exhausted,
            diagnosis=diagnosis_of(self.network, numbers[end:]),
        )


def minibatch_orders(lanes: Iterable[BusyLane], num_images: int) -> list[Tensor]:
    """The order in which each lane's next epoch takes the images; a single one if it is the same for all lanes."""
    epochs = [(lane.settings.training_seed, lane.num_epochs + 1) for lane in lanes]
    distinct = {epoch: minibatch_order(*epoch, num_images) for epoch in epochs}
    return list(distinct.values()) if len(distinct) == 1 else [distinct[epoch] for epoch in epochs]
