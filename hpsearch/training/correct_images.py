"""Which validation images a lane classifies correctly, and how they differ from an earlier validation of the lane.

Whether a new best validation is significantly better than the reference is decided twice: on the device, to avoid a
host sync, and by the trial's stopping rule on the host. Both use the same table (`ReferenceTest`).
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class ReferenceTest:
    """The test by which a new best validation becomes the reference for later validations.

    Args:
        level: significance level. Checkpoints store it, because the reference depends on it.
        critical_gains: [N + 1] for N validation images. Entry n is the number of gains that is significant when the
            two validations differ on n images (`search.significance.critical_gains`).
    """

    level: float
    critical_gains: NDArray[np.int64] = field(compare=False, repr=False)

    def table(self, device: torch.device) -> Tensor:
        """`critical_gains` on the device."""
        return torch.tensor(self.critical_gains, device=device)


def gained_and_lost(correct: Tensor, reference: Tensor) -> tuple[Tensor, Tensor]:
    """Count the images that only `correct` classifies correctly, and those that only `reference` does: int64 [...].

    Args:
        correct, reference: bool [..., N].
    """
    gained = (correct & ~reference).sum(dim=-1)
    lost = (reference & ~correct).sum(dim=-1)
    return gained, lost
