"""A few settings that stand for all points of a study: every network that they name, and the middle of the rest."""

from __future__ import annotations

import math
from collections.abc import Callable

from hpsearch.study.definition import StudyDefinition
from hpsearch.study.document import section_of
from hpsearch.study.settings import TrialSettings
from hpsearch.study.space import Dimension, ParameterValue, Point, grid_points, point_key, rounded


def shape_settings(definition: StudyDefinition) -> list[TrialSettings]:
    """The settings of `shape_points`."""
    return [definition.resolve(point) for point in shape_points(definition)]


def shape_points(definition: StudyDefinition) -> list[Point]:
    """Points with every value of the dimensions that may determine tensor shapes. Others do not matter here.

    A range contributes its two ends. As in the study's own points, parameters without effect are left out.
    """
    return _corner_points(definition, lambda name: _is_of_model(name) or name == "batch_size")


def model_settings(definition: StudyDefinition) -> list[TrialSettings]:
    """One trial's settings for each distinct network of the study: the middle value of every other searched key.

    A strategy with listed points gives the middle one of the points with the same network.
    """
    if definition.search.strategy == "listed":
        points = list(definition.points())
    else:
        others = {d.name: middle(d) for d in definition.search.dimensions if not _is_of_model(d.name)}
        points = [definition.reduce({**others, **corner}) for corner in _corner_points(definition, _is_of_model)]
    by_model: dict[object, list[TrialSettings]] = {}
    for settings in map(definition.resolve, points):
        by_model.setdefault(settings.model, []).append(settings)
    return [its[len(its) // 2] for its in by_model.values()]


def sample_points(definition: StudyDefinition) -> list[Point]:
    """At most three different points of a study: the middle of its space, and its first and last corner."""
    if definition.search.strategy == "listed":
        listed = list(definition.points())
        points = [listed[len(listed) // 2], listed[0], listed[-1]]
    else:
        dimensions = definition.search.dimensions
        choices = (middle, lambda d: d.values[0], lambda d: d.values[-1])
        points = [definition.reduce({d.name: choose(d) for d in dimensions}) for choose in choices]
    return list({point_key(point): point for point in points}.values())


def middle(dimension: Dimension) -> ParameterValue:
    """The middle value of a dimension: of a range the (geometric, if logarithmic) mean of its ends."""
    if not dimension.is_continuous:
        listed = [value for value in dimension.values if not (dimension.has_zero and value == 0)]
        if not any(isinstance(value, str | bool) for value in listed):
            listed.sort(key=float)
        return listed[len(listed) // 2]
    low, high = (float(value) for value in dimension.values)
    mean = math.sqrt(low * high) if dimension.is_log else (low + high) / 2
    return round(mean) if dimension.is_integer else rounded(mean)


def _corner_points(definition: StudyDefinition, is_wanted: Callable[[str], bool]) -> list[Point]:
    if definition.search.strategy == "listed":
        corners = ({n: value for n, value in point.items() if is_wanted(n)} for point in definition.points())
    else:
        dimensions = tuple(d for d in definition.search.dimensions if is_wanted(d.name))
        corners = (definition.reduce(point) for point in grid_points(dimensions))
    return list({point_key(point): point for point in corners}.values())


def _is_of_model(name: str) -> bool:
    return section_of(name) == "model"
