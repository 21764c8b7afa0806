"""Which changes an existing study accepts: more budget and more points, but nothing that alters the meaning of values.

The values of a study are compared with each other, so everything that they depend on besides their point must be the
same for all of them: data, model, training, stopping, pruning and seed. The search can be extended by more points, a
wider grid or a larger budget. Trained points are kept. The one key of training that may change is max_epochs, upwards:
trials that ended there go on. Of a study of programs, keys that say how they are run may change (`RUN_TIME_KEYS`).
`register_study` (store/registration.py) refuses everything else, and `widen_study` (store/rows/widening.py) adds
points.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from hpsearch.study.definition import KEPT, StudyDefinition
from hpsearch.study.document import inline_text, is_same_place, written_dimension
from hpsearch.study.program import RUN_TIME_KEYS

_FREE_KEYS = ("search.max_points", "search.budget_", "search.finest_per_decade", *KEPT)
_NUM_POINTS = "search.num_points"
_POINTS = "search.points"
_EPOCHS = "training.max_epochs"
_KIND = "trials"  # not a key: what trials are, networks or programs
# Why these keys of a program cannot change.
_OF_PROGRAMS = {
    "max_steps": "a program that was ended there cannot go on",
    "timeout_minutes": "a program that was ended by it cannot go on",
}


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


def describe_differences(stored: StudyDefinition, given: StudyDefinition) -> list[str]:
    """One line per field that differs: `training.max_epochs: 200 in the study, 3 given`.

    The order of keys, dimensions and listed points is not compared.
    """
    if _kind(stored) != _kind(given):
        return [f"{_KIND}: {_kind(stored)} in the study, {_kind(given)} given"]
    old, new = (dict(_lines(definition)) for definition in (stored, given))
    lines = {
        key: f"{key}: {old.get(key, 'absent')} in the study, {new.get(key, 'absent')} given"
        for key in sorted(old.keys() | new.keys())
        if old.get(key) != new.get(key)
    }
    if is_same_place(stored.data.dataset, given.data.dataset):
        lines.pop("data.dataset", None)
    if _POINTS in lines:
        old_points, new_points = set(stored.search.points), set(given.search.points)
        lines[_POINTS] = _points_difference(old_points, new_points)
        if old_points == new_points:
            del lines[_POINTS]  # the same points in another order
    return list(lines.values())


def _objection(key: str, stored: StudyDefinition, given: StudyDefinition) -> str | None:
    """Why this key must not change in this way; None if it may."""
    if key.startswith(_FREE_KEYS):
        return None
    section, _, name = key.partition(".")
    if given.program is not None and section == given.program.section:
        return None if name in RUN_TIME_KEYS else _OF_PROGRAMS.get(name, _meaning(key))
    if stored.search.strategy != given.search.strategy:
        return "the strategy of a study cannot change" if key.startswith("search") else _meaning(key)
    if key == _NUM_POINTS:
        return None if given.num_points >= stored.num_points else "the number of drawn points cannot be lowered"
    if key == _POINTS:
        missing = set(map(frozenset, stored.search.points)) - set(map(frozenset, given.search.points))
        return f"{len(missing)} points of the study are missing" if missing else None
    if key == _EPOCHS:
        return _epochs_objection(stored, given)
    if key.startswith("search."):
        return _dimension_objection(key.removeprefix("search."), stored, given)
    return _meaning(key)


def _kind(definition: StudyDefinition) -> str:
    return "hpsearch's own networks" if definition.program is None else f"programs, [{definition.program.section}]"


def _epochs_objection(stored: StudyDefinition, given: StudyDefinition) -> str | None:
    if given.training.max_epochs < stored.training.max_epochs:
        return "the number of epochs can only be raised"
    if any(d.name == "max_epochs" for d in (*stored.search.dimensions, *given.search.dimensions)):
        return "max_epochs is searched: its values belong to the points"
    if stored.pruning.pruner == "hyperband":
        return "hyperband has divided the trials by the old number of epochs"
    return None


def _meaning(key: str) -> str:
    return "values of the study would no longer be comparable" if key != "name" else "this is another study"


def _dimension_objection(name: str, stored: StudyDefinition, given: StudyDefinition) -> str | None:
    if stored.is_drawn:
        return "the range that points are drawn from cannot change"
    old, new = (
        next((d for d in definition.search.dimensions if d.name == name), None) for definition in (stored, given)
    )
    if old is None or new is None:
        return "the searched keys cannot change"
    if (old.is_continuous, old.is_log, old.has_zero) != (new.is_continuous, new.is_log, new.has_zero):
        return "the kind of its values cannot change"
    if old.is_continuous:
        is_inside = new.values[0] <= old.values[0] and old.values[1] <= new.values[1]  # type: ignore[operator]
        return None if is_inside else "a range can only be widened"
    missing = [value for value in old.values if value not in new.values]
    return f"it lacks {', '.join(map(str, missing))}, which the study has" if missing else None


def _points_difference(old: set[Any], new: set[Any]) -> str:
    """Describe the difference of two lists, which may be long: the numbers, and one new and one missing point."""
    parts = [f"{len(old)} in the study, {len(new)} given"]
    for what, points in (("new", new - old), ("gone", old - new)):
        if points:
            example = inline_text(dict(min(points, key=repr)))
            parts.append(f"{len(points)} {what}, such as {example}")
    return f"{_POINTS}: {'; '.join(parts)}"


def _lines(definition: StudyDefinition) -> Iterator[tuple[str, str]]:
    """Every field with its value, and dimensions as in a study file."""
    for section, content in definition.model_dump(mode="json").items():
        if not isinstance(content, dict):
            if content is not None:
                yield section, inline_text(content)
            continue
        for key, value in content.items():
            if key != "dimensions":
                yield f"{section}.{key}", inline_text(value)
    if definition.search.strategy == "listed":
        return  # the dimensions follow from the points
    for dimension in definition.search.dimensions:
        yield f"search.{dimension.name}", inline_text(written_dimension(dimension))
