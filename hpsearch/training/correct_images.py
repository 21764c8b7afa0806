"""On which validation images lanes are right, and how that compares with an earlier validation of theirs.

Whether a new best is better than the reference by more than chance is decided on the device, so that nothing waits
for it, and once more by the trial's stopping rule on the host: both look into one table (`ReferenceTest`).
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class ReferenceTest:
    """When a new best becomes the reference that later validations are compared with.

    Args:
        level: of significance; stands in checkpoints, since another one makes another reference.
        critical_gains: [N + 1] for N validation images. Entry n is the number of gains that it takes when n images
            tell the two validations apart (`search.significance.critical_gains`).
    """

    level: float
    critical_gains: NDArray[np.int64] = field(compare=False, repr=False)

    def table(self, device: torch.device) -> Tensor:
        """`critical_gains` on the device."""
        return torch.tensor(self.critical_gains, device=device)


def gained_and_lost(correct: Tensor, reference: Tensor) -> tuple[Tensor, Tensor]:
    """Images on which only `correct` is right, and on which only `reference` is: int64 [...].

    Args:
        correct, reference: bool [..., N].
    """
    gained = (correct & ~reference).sum(dim=-1)
    lost = (reference & ~correct).sum(dim=-1)
    return gained, lost
