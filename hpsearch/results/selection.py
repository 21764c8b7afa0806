"""The names of the ways to choose a point. The code that chooses is `choose_point` in choice.py, which loads more."""

from __future__ import annotations

from enum import StrEnum


class Selection(StrEnum):
    """How a point is chosen."""

    BEST = "best"
    CONFIRMED = "confirmed"

    @property
    def label(self) -> str:
        return {Selection.BEST: "the best of the search", Selection.CONFIRMED: "confirmed over fresh seeds"}[self]
