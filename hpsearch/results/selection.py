"""How a point is chosen; apart from what chooses it, so that the command line can name it without loading that."""

from __future__ import annotations

from enum import StrEnum


class Selection(StrEnum):
    """How a point is chosen."""

    BEST = "best"
    CONFIRMED = "confirmed"
