"""The points of strategy `listed`: validated by their sections, without duplicates."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hpsearch.errors import InputError
from hpsearch.study.conditions import without_idle
from hpsearch.study.document import listed_dimensions, section_of, value_in
from hpsearch.study.settings import kernels_text
from hpsearch.study.space import Dimension, ParameterValue, Point, SearchSettings


def with_listed_points(
    settings: SearchSettings, others: Mapping[str, Any], sections: Mapping[str, Any], source: str
) -> SearchSettings:
    """The settings with points as their sections read them (for example 1 as 1.0 for a rate), and their dimensions.

    Keys that have no effect in a point are removed.

    Raises:
        InputError: [search] has other dimensions, two points are equivalent, or as `listed_dimensions`.
    """
    if others:
        raise InputError(
            f"{source}: search.{next(iter(others))} cannot be combined with strategy listed",
            hint="put the key into the points, or use strategy grid",
        )
    dimensions = listed_dimensions(list(map(dict, settings.points)), sections, settings.max_points, source)
    as_read = {d.name: {value: value for value in d.values} for d in dimensions}
    numbers: dict[frozenset[tuple[str, Any]], int] = {}
    points = []
    for number, given in enumerate(settings.points, start=1):
        point = {name: as_read[name][kernels_text(value)] for name, value in given}
        point = without_idle(point, sections)
        meaning = point | values_left_to_study(point, dimensions, sections)
        first = numbers.setdefault(frozenset(meaning.items()), number)
        if first != number:
            raise InputError(
                f"{source}: search.points: point {number} is equivalent to point {first}",
                hint="each point is counted once; a different seed makes a different point",
            )
        points.append(tuple(sorted(point.items())))
    return settings.model_copy(update={"points": tuple(points), "dimensions": dimensions})


def values_left_to_study(
    point: Point, dimensions: tuple[Dimension, ...], sections: Mapping[str, Any]
) -> dict[str, ParameterValue]:
    """The study's values of keys that other points name and this one does not, if they have an effect in it."""
    own = {d.name: value for d in dimensions if (value := _study_value(d.name, sections)) is not None}
    return {name: value for name, value in without_idle({**own, **point}, sections).items() if name not in point}


def _study_value(name: str, sections: Mapping[str, Any]) -> ParameterValue | None:
    """The study's own value of a searched key; None if it has none."""
    section = section_of(name)
    if name == "seed" and sections["training"]["seed"] is None:
        section = None  # use the study's seed
    value = value_in(sections[section] if section else sections, name)
    return None if value is None else kernels_text(value)
