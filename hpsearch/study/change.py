"""Which changes an existing study accepts: more budget and more points, but nothing that alters the meaning of values.

The values of a study are compared with each other, so everything that they depend on besides their point must be the
same for all of them: data, model, training, stopping, pruning and seed. The search can be extended by more points, a
wider grid or a larger budget. Trained points are kept.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from hpsearch.study.definition import StudyDefinition, describe_differences

_FREE_KEYS = ("search.max_points", "search.budget_", "search.finest_per_decade", "keep_parameters")
_NUM_POINTS = "search.num_points"
_POINTS = "search.points"


@dataclass(frozen=True, kw_only=True)
class StudyChange:
    """The differences between a definition and the stored one of the same name.

    Args:
        lines: all differences, one line each.
        refused: the differences that cannot be applied to an existing study, each line followed by the reason.
    """

    lines: tuple[str, ...]
    refused: tuple[str, ...]

    @property
    def is_none(self) -> bool:
        return not self.lines


def compare_definitions(stored: StudyDefinition, given: StudyDefinition) -> StudyChange:
    """The differences between two definitions, and which of them an existing study does not accept."""
    lines = describe_differences(stored, given)
    refused = [
        f"{line} ({why})" for line in lines if (why := _objection(line.partition(": ")[0], stored, given)) is not None
    ]
    return StudyChange(lines=tuple(lines), refused=tuple(refused))


def _objection(key: str, stored: StudyDefinition, given: StudyDefinition) -> str | None:
    """Why this key must not change in this way; None if it may."""
    if key.startswith(_FREE_KEYS):
        return None
    if stored.search.strategy != given.search.strategy:
        return "the strategy stays" if key.startswith("search") else _meaning(key)
    if key == _NUM_POINTS:
        return None if given.num_points >= stored.num_points else "points that were drawn stay"
    if key == _POINTS:
        missing = set(map(frozenset, stored.search.points)) - set(map(frozenset, given.search.points))
        return f"{len(missing)} points of the study are not among them" if missing else None
    if key.startswith("search."):
        return _dimension_objection(key.removeprefix("search."), stored, given)
    return _meaning(key)


def _meaning(key: str) -> str:
    return "its values would mean something else" if key != "name" else "this is another study"


def _dimension_objection(name: str, stored: StudyDefinition, given: StudyDefinition) -> str | None:
    if stored.is_drawn:
        return "where points are drawn from stays; it would not be one sample any more"
    old, new = (
        next((d for d in definition.search.dimensions if d.name == name), None) for definition in (stored, given)
    )
    if old is None or new is None:
        return "the searched keys stay"
    if (old.is_continuous, old.is_log, old.has_zero) != (new.is_continuous, new.is_log, new.has_zero):
        return "the kind of its values stays"
    if old.is_continuous:
        is_inside = new.values[0] <= old.values[0] and old.values[1] <= new.values[1]  # type: ignore[operator]
        return None if is_inside else "it may only become wider"
    missing = list(_missing(old.values, new.values))
    return f"it lacks {', '.join(map(str, missing))}, which the study has" if missing else None


def _missing(old: tuple[object, ...], new: tuple[object, ...]) -> Iterator[object]:
    return (value for value in old if value not in new)
