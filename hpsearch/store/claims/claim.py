"""What a worker takes from the ledger, and what it gives back: a claimed point, and the result of its trial."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from hpsearch.epoch_report import Diagnosis
from hpsearch.store.claims.holdings import Hold
from hpsearch.store.rows.correct_images import Correctness
from hpsearch.store.rows.example_losses import Losses
from hpsearch.store.rows.trial_state import StoredState
from hpsearch.study.space import ParameterValue


@dataclass(frozen=True, kw_only=True)
class Claim:
    """A point that this worker now trains.

    Args:
        trial_id, number: id and number of the trial in Optuna's tables.
        parameters: as Optuna stores them; empty if a sampler still has to draw them.
        token: of the call that claimed it; 0 for a trial without a database.
        cohort: its cohort's name, as it was stored with the point; None if the parameters were still to be drawn.
        is_continued: an earlier trial of the point ended at a smaller number of epochs, and this one goes on.
        max_epochs: the study's number of epochs, if it has changed since the study was created.
    """

    trial_id: int
    number: int
    point: int
    attempt: int
    parameters: Mapping[str, ParameterValue]
    token: int = 0
    cohort: str | None = None
    is_continued: bool = False
    max_epochs: int | None = None

    @property
    def hold(self) -> Hold:
        """The hold that this claim gives its worker."""
        return self.trial_id, self.token


class Outcome(Enum):
    """How a counted trial ended."""

    COMPLETE = StoredState.COMPLETE
    PRUNED = StoredState.PRUNED


@dataclass(frozen=True, kw_only=True)
class Result:
    """What is written when a trial ends.

    Args:
        loss: of the study's metric, finite; None only for a trial that is PRUNED because it
            diverged in its first epoch.
        attributes: user attributes of the trial.
        correct: which validation images its best parameters classify correctly; only for a COMPLETE trial.
        losses: instead of `correct`, the losses of a study that is not judged by its errors, [N].
        claim: token of the claim under which the trial was trained; None: whichever claim the trial has.
        diagnosis: the network's state after the last epoch, if it was looked at.
        num_epochs: number of epochs that were reported; the trial is counted only if the last of them is on record.
        num_parameters: number of parameters that the trial was trained with and that must be on record; None: any
            number.
    """

    trial_id: int
    outcome: Outcome
    loss: float | None
    attributes: Mapping[str, Any] = field(default_factory=dict)
    correct: Correctness | None = None
    losses: Losses | None = field(default=None, compare=False)
    diagnosis: Diagnosis | None = None
    claim: int | None = None
    num_epochs: int = 0
    num_parameters: int | None = None

    def __post_init__(self) -> None:
        # Optuna would take a COMPLETE trial of -inf for the best one, and fail on one without a value.
        assert math.isfinite(self.loss) if self.loss is not None else self.outcome is Outcome.PRUNED
