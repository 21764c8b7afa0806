"""The report of one epoch of one trial.

`training` creates reports, `search` decides on them, `worker` writes them to the database. Plain numbers only: no
tensors, no SQL.
"""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class Validation:
    """One pass over the validation set.

    Args:
        iteration: minibatches that this trial has trained on so far (1-based: after the first minibatch it is 1).
        zero_one: fraction of misclassified validation images, in [0, 1].
        nll: mean negative log-likelihood per image, in nats.
        gained: images that are correct now and were not at the reference, which is the last best validation that was
            significantly better than the reference before it (at first: no image is correct). None if the stopping rule
            does not need it.
        lost: images that were correct at the reference and are not now; None if the stopping rule does not need it.
    """

    iteration: int
    zero_one: float
    nll: float
    gained: int | None = None
    lost: int | None = None

    @property
    def is_finite(self) -> bool:
        return math.isfinite(self.zero_one) and math.isfinite(self.nll)

    @property
    def losses(self) -> tuple[float, float]:
        """What validations are compared by: the zero-one loss; ties are broken by the negative log-likelihood."""
        return self.zero_one, self.nll

    def is_better_than(self, other: Validation | None) -> bool:
        return other is None or self.losses < other.losses


@dataclass(frozen=True, kw_only=True, slots=True)
class EpochReport:
    """One epoch of one trial.

    Args:
        epoch: 1-based.
        validations: the validations of this epoch in order, at least one; the last is at the epoch's end.
        train_nll: mean over the epoch's minibatches of the mean NLL (nats, without the L1 and L2 terms), each taken
            before its update.
        learning_rate: the rate of this epoch's updates.
        seconds: wall time of the epoch divided by the number of lanes that shared it.
        is_schedule_exhausted: the learning-rate schedule requests the end of the trial (halved down to eta0/1024;
            docs/sources.md, section 4).
    """

    epoch: int
    validations: tuple[Validation, ...]
    train_nll: float
    learning_rate: float
    seconds: float
    is_schedule_exhausted: bool = False

    @property
    def best(self) -> Validation:
        """The epoch's best validation, which is reported as the epoch's value."""
        return min(self.validations, key=lambda validation: validation.losses)

    @property
    def has_diverged(self) -> bool:
        """True if a loss is infinite or NaN; such a trial ends here, and its numbers are not reported."""
        return not (math.isfinite(self.train_nll) and all(v.is_finite for v in self.validations))
