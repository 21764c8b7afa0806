"""Two sides that were measured on the same splits: the mean difference, its interval, and what follows from it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from benchmarks.measurement import mean_and_interval

MARGIN: Final = 0.02  # of the contender's mean loss: "no worse" allows for this much


@dataclass(frozen=True, kw_only=True)
class PairedDifference:
    """Losses of hpsearch less those of a contender, split by split.

    Args:
        ours, theirs: mean losses.
        mean: of the differences, below 0 where hpsearch is better.
        half_width: of the 95 % interval by Student's t over splits; 0 with a single split.
        num_splits: at least 1.
    """

    ours: float
    theirs: float
    mean: float
    half_width: float
    num_splits: int

    @classmethod
    def of(cls, ours: Sequence[float], theirs: Sequence[float]) -> PairedDifference:
        differences = [a - b for a, b in zip(ours, theirs, strict=True)]
        mean, half_width = mean_and_interval(differences)
        return cls(
            ours=float(np.mean(ours)),
            theirs=float(np.mean(theirs)),
            mean=mean,
            half_width=half_width,
            num_splits=len(differences),
        )

    @property
    def relative(self) -> tuple[float, float, float]:
        """The mean and both ends of the interval, as parts of the contender's mean loss."""
        ends = self.mean, self.mean - self.half_width, self.mean + self.half_width
        mean, low, high = (value / self.theirs for value in ends)
        return mean, low, high

    @property
    def is_no_worse(self) -> bool:
        """Whether the interval ends below `MARGIN`."""
        return self.num_splits > 1 and self.relative[2] < MARGIN

    @property
    def verdict(self) -> str:
        """What the interval shows: better, no worse, worse, or that it is too wide to tell."""
        if self.num_splits < 2:
            return "one split shows nothing"
        _, low, high = self.relative
        if high < 0:
            return "better"
        if self.is_no_worse:
            return "no worse"
        return "worse" if low > 0 else "not decided"

    def as_json(self) -> dict[str, Any]:
        mean, low, high = self.relative
        return {
            "ours": self.ours,
            "theirs": self.theirs,
            "difference": self.mean,
            "interval": [self.mean - self.half_width, self.mean + self.half_width],
            "relative": mean,
            "relative_interval": [low, high],
            "is_no_worse": self.is_no_worse,
            "verdict": self.verdict,
            "splits": self.num_splits,
        }
