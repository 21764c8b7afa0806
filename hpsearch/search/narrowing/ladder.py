"""The coarse-to-fine search: which points come next, given the known points. Plain numbers; no Optuna, tensors or SQL.

The first round is the grid in the study file, typically decades. Afterwards the best known point is compared with its
neighbours, one spacing away along each axis (a pattern search: Torczon 1997, with a spacing per axis):

1. Unknown neighbours are tried. They exist if the best point has moved, or lies on the edge of the grid, which then
   grows.
2. If neighbours along different axes do not differ significantly from the best, the corner between them is tried,
   because a valley may run diagonally to the axes.
3. An axis along which no neighbour differs significantly from the best is *settled*. If the best has a neighbour on
   one side only (it lies on the end of a range), the next point on that side is tried as well: an end and its
   neighbour can also be equally good if the optimum lies between them.
4. The spacings of the other axes are halved, and the best point's new, nearer neighbours are tried.
5. When all axes are settled, the best point is compared with everything that has not been compared at its present
   position: the neighbours along axes that were settled before it moved, and the other values of lists. The best points
   with other listed values that may still be as good get neighbours of their own. If nothing differs, the search ends.

A known point is never given again. The next round is a function of (state, known) alone, so that any number of
workers can compute it. Source: docs/sources.md, section 4 (log-spaced values, narrowed later).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Final, final

from hpsearch.search.narrowing.axes import Axis
from hpsearch.search.narrowing.closed_round import (
    Differ,
    Finished,
    FinishReason,
    KnownPoint,
    NarrowingState,
    Round,
    rounded_key,
)
from hpsearch.search.narrowing.grid import SearchGrid
from hpsearch.search.narrowing.neighbourhood import Neighbourhood, rank
from hpsearch.study.space import ParameterValue, Point

MAX_RIVALS: Final = 3  # combinations of listed values that are narrowed in addition to the best point's


@final
class Narrowing(SearchGrid):
    """The rounds of one search space."""

    def first_round(self, *, room: int | None = None) -> Round:
        """The grid in the study file; the last dimension varies fastest.

        Args:
            room: maximum number of points; None: no limit.
        """
        points = tuple(self.points())
        given = points[:room]
        total = f"the grid's {len(points):,} points"
        reason = total if len(given) == len(points) else f"{len(given):,} of {total}"
        return Round(points=given, state=NarrowingState(given=given), reason=reason)

    def next_round(
        self, state: NarrowingState, known: Iterable[KnownPoint], differ: Differ, *, room: int | None = None
    ) -> Round | Finished:
        """The next round, when the last one is over.

        Args:
            state: state of the last round.
            known: all points that have been tried, in the order of their trials, including points that this search
                did not give. Points of the last round that are not among them count as missing.
            differ: whether two points with values differ significantly; symmetric.
            room: maximum number of points; None: no limit.
        Raises:
            ValueError: `room` is below 1.
        """
        if room is not None and room < 1:
            raise ValueError(f"room must be at least 1, got {room}")
        return _Step(self, state, list(known), differ, room).next_round()


@dataclass
class _Step(Neighbourhood):
    """One call of `next_round`."""

    room: int | None

    def next_round(self) -> Round | Finished:
        if points := self.unknown(self.grid.points()):
            return self._round(points, self._describe_rest_of_grid)
        if not self.table or self.best.value is None:
            return Finished(reason=FinishReason.NO_RESULT, detail="no point has a result")
        while True:
            moving = [axis for axis in self.axes() if axis.name not in self.settled]
            if points := self.unknown(self.neighbours(self.best, moving)) or self.unknown(self._corner(moving)):
                return self._round(points, self._reason)
            if moving:
                for axis in moving:
                    self._judge(axis)
                continue
            # The best point may have moved since an axis was settled.
            points = self.unknown([*self.neighbours(self.best, self.axes()), *self._other_choices()])
            if points := points or self.unknown(self._corner(self.axes())):
                return self._round(points, lambda given: f"the best compared once more; {self._reason(given)}")
            if points := self.unknown(itertools.chain.from_iterable(map(self._beside_rival, self._rivals()))):
                return self._round(points, self._describe_rivals)
            num_halved = sum(self._judge(axis) for axis in self.axes())
            if num_halved == 0:
                return Finished(reason=FinishReason.SETTLED, detail=self._conclusion())

    @property
    def _finest_level(self) -> int:
        return max(self.levels.values(), default=0)

    def _judge(self, axis: Axis) -> bool:
        """Halve the axis's spacing if a neighbour differs significantly from the best; otherwise settle the axis.

        Returns:
            Whether it was halved.
        """
        is_halved = self._has_different_neighbour(axis) and self._can_halve(axis)
        if is_halved:
            self.levels[axis.name] = self.levels.get(axis.name, 0) + 1
            self.settled.discard(axis.name)
        else:
            self.settled.add(axis.name)
        return is_halved

    def _has_different_neighbour(self, axis: Axis) -> bool:
        return any(self.differs(point) for point in self.neighbours(self.best, [axis]))

    def _can_halve(self, axis: Axis) -> bool:
        is_zero = axis.is_log and self.best.point[axis.name] == 0  # a logarithmic scale has no midpoint with 0
        return axis.can_halve(self.levels.get(axis.name, 0)) and not is_zero

    def _corner(self, axes: Sequence[Axis]) -> list[dict[str, ParameterValue]]:
        """The point one spacing from the best along several axes at once, since a valley may run diagonally to them.

        It combines the better neighbours along those axes where they do not differ significantly from the best.
        """
        values: dict[str, ParameterValue] = {}
        for axis in axes:
            keys = map(rounded_key, self.neighbours(self.best, [axis]))
            better = min((self.table[key] for key in keys if key in self.table), key=rank, default=None)
            if better is not None and not self.differs(better.point):
                values[axis.name] = better.point[axis.name]
        point = self.grid.point({**self.best.point, **values}) if len(values) > 1 else None
        return [] if point is None else [point]

    def _lists(self) -> list[str]:
        numbers = {axis.name for axis in self.grid.axes}
        return [name for name in self.grid.listed if name not in numbers and name in self.best.point]

    def _other_choices(self) -> list[dict[str, ParameterValue]]:
        """The best point with another value of a list.

        Keys that this value adds have the values of the best known point with the same listed value.
        """
        return [
            point
            for name in self._lists()
            for value in self.grid.listed[name]
            if (point := self.with_value(self.best, name, value)) is not None
        ]

    def _rivals(self) -> list[KnownPoint]:
        """The best points of other combinations of listed values that may still be as good as the best point."""
        lists = self._lists()
        bests: dict[tuple[object, ...], KnownPoint] = {}
        for known in self.table.values():
            bests.setdefault(tuple(known.point.get(name) for name in lists), known)
        rivals = [known for known in bests.values() if known is not self.best and self._may_be_as_good(known)]
        return rivals[:MAX_RIVALS]

    def _may_be_as_good(self, rival: KnownPoint) -> bool:
        """Whether the rival does not differ significantly from the best, or might not after narrowing.

        The optimum for one listed value may lie between decades, while it is already narrowed for another value.
        """
        if rival.value is None:
            return False
        if not self.differs(rival.point):
            return True
        assert self.best.value is not None
        return rival.value - sum(self._largest_gain(rival, axis) for axis in self.axes_of(rival)) <= self.best.value

    def _largest_gain(self, center: KnownPoint, axis: Axis) -> float:
        """How far a parabola through the center and two neighbours can fall below the center; infinite if not known.

        For three points at equal distances this is at most a quarter of the mean rise to the other two, whether they
        are on both sides or on one. The smallest spacing at which both neighbours are known is used.
        """
        assert center.value is not None
        for level in reversed(range(self._finest_level + 1)):
            points = self.neighbours(center, [axis], {axis.name: level})
            found = [self.table[key].value for key in map(rounded_key, points) if key in self.table]
            rises = [value - center.value for value in found if value is not None]
            if len(rises) > 1:
                return sum(rises) / len(rises) / 4
        return math.inf

    def _beside_rival(self, rival: KnownPoint) -> list[dict[str, ParameterValue]]:
        """A rival's unknown neighbours, at the largest spacing at which it has any; its optimum may be elsewhere.

        Axes that the best point also has are not narrowed further than for the best point. No axis is narrowed beyond
        the finest level of the best point's axes.
        """
        axes = self.axes_of(rival)
        for level in range(self._finest_level + 1):
            levels = {
                axis.name: min(level, self.levels.get(axis.name, 0))
                if axis.name in self.best.point
                else axis.allowed(level)
                for axis in axes
            }
            if points := self.unknown(self.neighbours(rival, axes, levels)):
                return points
        return []

    def _round(self, points: list[dict[str, ParameterValue]], describe: Callable[[Sequence[Point]], str]) -> Round:
        """A round of these points, up to `room`; the reason describes only the points of the round."""
        given = tuple(points[: self.room])
        state = NarrowingState(
            round=self.state.round + 1,
            levels=tuple(sorted(self.levels.items())),
            settled=tuple(sorted(self.settled)),
            given=given,
            missing=tuple(self.missing.values()),
        )
        return Round(points=given, state=state, reason=describe(given))

    def _describe_rest_of_grid(self, points: Sequence[Point]) -> str:
        return f"{len(points):,} points of the grid that are not known"

    def _describe_rivals(self, points: Sequence[Point]) -> str:
        """Describe the points that are tried beside the best points of other listed values."""
        names = self._lists()
        bests = [self.best, *self._rivals()]
        parts: dict[str, list[str]] = {}
        for point in points:
            own = {name: point[name] for name in names if name in point}
            rival = next((each for each in bests if own == {name: each.point.get(name) for name in own}), self.best)
            changed = [f"{name} {_text(value)}" for name, value in point.items() if rival.point.get(name) != value]
            label = ", ".join(f"{name} {_text(value)}" for name, value in own.items())
            parts.setdefault(label, []).append(" with ".join(changed))
        return "other choices that may be as good; " + "; ".join(
            f"{label}: {' and '.join(tried)}" for label, tried in parts.items()
        )

    def _reason(self, points: Sequence[Point]) -> str:
        """For each key: the values that are tried, or why no more are."""
        parts = []
        for axis in self.axes():
            best = self.best.point[axis.name]
            if tried := self._tried_instead(axis.name, points):
                parts.append(f"{axis.name}: {self._describe(axis, best, tried)}")
            elif axis.name in self.settled:
                parts.append(self._reason_of_settled(axis))
        for name in self._lists():
            if tried := self._tried_instead(name, points):
                parts.append(f"{name}: {' and '.join(map(_text, tried))} beside {_text(self.best.point[name])}")
        return "; ".join(parts) or "nothing to narrow"

    def _conclusion(self) -> str:
        """For each key: the value at which the search ended, and values that do not differ significantly from it."""
        parts = []
        for axis in self.axes():
            neighbours = [point for point in self.neighbours(self.best, [axis]) if rounded_key(point) in self.table]
            tied = [point[axis.name] for point in neighbours if not self.differs(point)]
            text = self._reason_of_settled(axis)
            if tied:
                verb = "does" if len(tied) == 1 else "do"
                text += f", from which {' and '.join(map(_text, tied))} {verb} not differ significantly"
            parts.append(text)
        return "; ".join(parts) or "nothing to narrow"

    def _reason_of_settled(self, axis: Axis) -> str:
        is_finest = self._has_different_neighbour(axis) and not self._can_halve(axis)
        return f"{axis.name}: {'finest step' if is_finest else 'settled'} at {_text(self.best.point[axis.name])}"

    def _tried_instead(self, name: str, points: Sequence[Point]) -> list[ParameterValue]:
        """The distinct values of the points that differ from the best point's value."""
        best = self.best.point[name]
        return list(dict.fromkeys(point[name] for point in points if point.get(name, best) != best))

    def _describe(self, axis: Axis, best: ParameterValue, tried: list[ParameterValue]) -> str:
        known = [float(value) for value in self.tried_values(axis)]
        low, high = min(known), max(known)
        texts = " and ".join(map(_text, tried))
        if float(best) in (low, high) and all(not low <= float(value) <= high for value in tried):
            return f"best {_text(best)} on the edge, grown to {texts}"
        return f"{texts} beside {_text(best)}"


def _text(value: ParameterValue) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
