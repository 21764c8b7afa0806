"""The ways to choose a point. A module of its own, so that the command line need not import the code that chooses."""

from __future__ import annotations

from enum import StrEnum


class Selection(StrEnum):
    """How a point is chosen."""

    BEST = "best"
    CONFIRMED = "confirmed"

    @property
    def label(self) -> str:
        return {Selection.BEST: "the best of the search", Selection.CONFIRMED: "confirmed over fresh seeds"}[self]
