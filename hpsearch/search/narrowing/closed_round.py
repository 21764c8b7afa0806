"""Inputs and outputs of the coarse-to-fine search (ladder.py): known points, rounds with their state, and the end."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any, final

from hpsearch.search.narrowing.axes import canonical
from hpsearch.study.space import ParameterValue, Point

PointKey = tuple[tuple[str, ParameterValue], ...]


@final
@dataclass(frozen=True)
class KnownPoint:
    """A point that has been tried.

    Args:
        value: lower is better; None: pruned, diverged or given up, which is worse than any value.
        nll: breaks ties in `value`.
        key: for the caller's use, for example a trial's id.
    """

    point: Point
    value: float | None
    nll: float | None = None
    key: object = None


Differ = Callable[[KnownPoint, KnownPoint], bool]


@final
@dataclass(frozen=True, kw_only=True)
class NarrowingState:
    """The state from which the next round follows, together with the known points.

    Args:
        round: number of rounds so far, including the first.
        levels: how often each axis's spacing has been halved.
        settled: axes along which nothing differs significantly, or whose spacing cannot be halved.
        given: the points of the last round.
        missing: points of earlier rounds that never became known; they are not given again.
    """

    round: int = 1
    levels: tuple[tuple[str, int], ...] = ()
    settled: tuple[str, ...] = ()
    given: tuple[Point, ...] = ()
    missing: tuple[Point, ...] = ()

    def as_json(self) -> dict[str, Any]:
        return {**asdict(self), "levels": dict(self.levels)}

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> NarrowingState:
        return cls(
            round=document["round"],
            levels=tuple(document["levels"].items()),
            settled=tuple(document["settled"]),
            given=tuple(document["given"]),
            missing=tuple(document["missing"]),
        )


@final
@dataclass(frozen=True, kw_only=True)
class Round:
    """Points to try next, in the order in which to try them; none of them is known.

    Args:
        state: for the next call, when these points are known.
        reason: one line for display.
    """

    points: tuple[dict[str, ParameterValue], ...]
    state: NarrowingState
    reason: str


class FinishReason(StrEnum):
    """Why no round follows."""

    SETTLED = "settled"  # the best point's neighbours do not differ significantly, or no spacing can be halved
    NO_RESULT = "no-result"  # no point has a value
    BUDGET = "budget"  # set by the caller: the budget of points, epochs or hours is spent


@final
@dataclass(frozen=True, kw_only=True)
class Finished:
    """The search is over.

    Args:
        detail: one line for display.
    """

    reason: FinishReason
    detail: str


def rounded_key(point: Point) -> PointKey:
    """The key by which points are compared: equal for values that are equal to 12 digits."""
    return tuple(sorted((name, canonical(value)) for name, value in point.items()))
