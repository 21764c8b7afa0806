"""The report of one epoch of one trial.

`training` creates reports, `search` decides on them, `worker` writes them to the database. Plain numbers only: no
tensors, no SQL.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, Final, Self

_STORED_LOSS: Final = "zero_one"


@dataclass(frozen=True, kw_only=True, slots=True)
class Validation:
    """One pass over the validation set.

    Args:
        iteration: minibatches that this trial has trained on so far (1-based: after the first minibatch it is 1).
        loss: of the study's metric (`metric`); of zero-one: the fraction of misclassified validation images.
        nll: mean of what training minimises: the negative log-likelihood in nats, or in regression the squared error of
            the standardised target.
        gained: images that are correct now and were not at the reference, which is the last best validation that was
            significantly better than the reference before it (at first: no image is correct). None if the stopping rule
            does not need it.
        lost: images that were correct at the reference and are not now; None if the stopping rule does not need it.
    """

    iteration: int
    loss: float
    nll: float
    gained: int | None = None
    lost: int | None = None

    @property
    def is_finite(self) -> bool:
        return math.isfinite(self.loss) and math.isfinite(self.nll)

    @property
    def losses(self) -> tuple[float, float]:
        """What validations are compared by: the loss; ties are broken by what training minimises."""
        return self.loss, self.nll

    def as_stored(self) -> dict[str, Any]:
        """All fields by their names in checkpoints, where the loss has the name of the first metric."""
        fields_by_name = asdict(self)
        return {_STORED_LOSS: fields_by_name.pop("loss"), **fields_by_name}

    @classmethod
    def from_stored(cls, stored: Mapping[str, Any]) -> Self:
        """Raises KeyError or TypeError if a field is missing, or one is unknown."""
        return cls(loss=stored[_STORED_LOSS], **{name: value for name, value in stored.items() if name != _STORED_LOSS})

    def is_better_than(self, other: Validation | None) -> bool:
        return other is None or self.losses < other.losses


@dataclass(frozen=True, kw_only=True, slots=True)
class Diagnosis:
    """The state of a trial's network after an epoch, on a fixed batch of training images.

    Numbers that are not finite are None.

    Args:
        nll: mean of what training minimises on the batch: the negative log-likelihood in nats, or the squared error.
        gradient_norm: norm of its gradient with respect to all parameters (nats, without the L1 and L2 terms).
        gradient_noise: root mean square norm of the deviation of one image's gradient from that; of the gradient of a
            minibatch of B images it is the root of B times smaller.
        penalty_norm: norm of the gradient of the L1 and L2 terms.
        saturated: share of tanh or sigmoid outputs with less than 5 % of the largest slope, in the layer that has most
            of them; None if there are none of these units.
        dead: share of relu units, or feature maps, that are 0 for every image, in the layer that has most of them.
        update_ratios: by weight, the norm of the update that the optimizer would make from this batch, divided by the
            weight's norm. About 1e-3 is healthy (docs/sources.md, section 8).
    """

    nll: float | None
    gradient_norm: float | None
    gradient_noise: float | None
    penalty_norm: float | None
    saturated: float | None
    dead: float | None
    update_ratios: Mapping[str, float | None]

    @property
    def numbers(self) -> tuple[float | Mapping[str, float | None] | None, ...]:
        """All fields in order. `from_numbers` makes a diagnosis of them."""
        return tuple(getattr(self, field.name) for field in fields(self))

    @classmethod
    def from_numbers(cls, numbers: Sequence[Any]) -> Diagnosis:
        """Raises ValueError if there are not as many numbers as fields."""
        return cls(**dict(zip((field.name for field in fields(cls)), numbers, strict=True)))

    @property
    def update_ratio(self) -> float | None:
        """The largest of the update ratios."""
        return max((ratio for ratio in self.update_ratios.values() if ratio is not None), default=None)


@dataclass(frozen=True, kw_only=True, slots=True)
class EpochReport:
    """One epoch of one trial.

    Args:
        epoch: 1-based.
        validations: the validations of this epoch in order, at least one; the last is at the epoch's end.
        train_nll: mean over the epoch's minibatches of what training minimises (as `Validation.nll`, without the L1 and
            L2 terms), each taken before its update.
        learning_rate: the rate of this epoch's updates.
        seconds: wall time of the epoch divided by the number of lanes that shared it.
        is_schedule_exhausted: the learning-rate schedule requests the end of the trial (halved down to eta0/1024;
            docs/sources.md, section 4).
        diagnosis: the network's state after the epoch; None if it was not looked at.
    """

    epoch: int
    validations: tuple[Validation, ...]
    train_nll: float
    learning_rate: float
    seconds: float
    is_schedule_exhausted: bool = False
    diagnosis: Diagnosis | None = None

    @property
    def best(self) -> Validation:
        """The epoch's best validation, which is reported as the epoch's value."""
        return min(self.validations, key=lambda validation: validation.losses)

    @property
    def has_diverged(self) -> bool:
        """True if a loss is infinite or NaN; such a trial ends here, and its numbers are not reported."""
        return not (math.isfinite(self.train_nll) and all(v.is_finite for v in self.validations))


@dataclass(frozen=True, kw_only=True, slots=True)
class StepReport:
    """One report of a trial that is a program.

    Args:
        step: as the program counts, from 1; steps may be left out.
        loss: of the reported value, finite.
        seconds: since the report before, or since the start of the attempt.
    """

    step: int
    loss: float
    seconds: float
