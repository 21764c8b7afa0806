"""What coarse to fine (ladder.py) takes and gives: points that are known, rounds with their state, and the end."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
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
        nll: breaks ties of `value`.
        key: for the caller: a trial's id, say.
    """

    point: Point
    value: float | None
    nll: float | None = None
    key: object = None


Differ = Callable[[KnownPoint, KnownPoint], bool]


@final
@dataclass(frozen=True, kw_only=True)
class NarrowingState:
    """What the next round needs to know besides the known points.

    Args:
        round: rounds given so far, the first one included.
        levels: how often each axis's spacing has been halved.
        settled: axes along which nothing differs, or whose spacing cannot be halved.
        given: the last round's points.
        missing: points that were given and never became known; they are not given again.
    """

    round: int = 1
    levels: tuple[tuple[str, int], ...] = ()
    settled: tuple[str, ...] = ()
    given: tuple[Point, ...] = ()
    missing: tuple[Point, ...] = ()

    def as_json(self) -> dict[str, Any]:
        return {
            "round": self.round,
            "levels": dict(self.levels),
            "settled": list(self.settled),
            "given": [dict(point) for point in self.given],
            "missing": [dict(point) for point in self.missing],
        }

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
    """Points to try next, the nearest to the best first; none of them is known.

    Args:
        state: for the call that follows, when these points are known.
        reason: one line for people.
    """

    points: tuple[dict[str, ParameterValue], ...]
    state: NarrowingState
    reason: str


class FinishReason(StrEnum):
    """Why no round follows."""

    SETTLED = "settled"  # the neighbours of the best no longer differ significantly from it, or cannot come nearer
    NO_RESULT = "no-result"  # no point has a value
    BUDGET = "budget"  # the caller's: points, epochs or hours are spent


@final
@dataclass(frozen=True, kw_only=True)
class Finished:
    """The search is over.

    Args:
        detail: one line for people.
    """

    reason: FinishReason
    detail: str


def rounded_key(point: Point) -> PointKey:
    """What points are compared by: the same for values that are equal to 12 digits."""
    return tuple(sorted((name, canonical(value)) for name, value in point.items()))
