"""Keys that have an effect only for some values of another key, such as `momentum` for the optimizer of that name.

Such a parameter is conditional: a point has it only if it has an effect, so that no point is counted twice. A
dimension that has no effect in any point is refused. A key without effect that is set, but not searched, only causes a
warning: `--set model.family=logistic` must not require editing the rest of the file.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping
from typing import Any, Final

from hpsearch.errors import InputError
from hpsearch.logs import get_logger
from hpsearch.study.registry import CUSTOM_FAMILY, OWNERS, choices_by_key
from hpsearch.study.settings import OPTION_PREFIX, is_custom_family
from hpsearch.study.space import Dimension, ParameterValue, Point, SearchSettings, grid_points

_log = get_logger("study")

# Section -> key -> value, as `StudyDefinition.model_dump` gives them; empty for programs, whose keys always have an
# effect.
Sections = Mapping[str, Any]

# key -> its owner, and the owner's values for which the key has an effect. A key that is not here always has one.
EFFECTS: Final[Mapping[str, tuple[str, tuple[str, ...]]]] = {
    f"{owner.partition('.')[0]}.{key}": (owner, names)
    for owner, table in OWNERS.items()
    for key, names in choices_by_key(table).items()
}
_KEY_OF: Final = {key.rpartition(".")[2]: key for key in EFFECTS if key.startswith(("model.", "training."))}
_OWNER_NAMES: Final = {owner.rpartition(".")[2] for owner in OWNERS}
_EXCLUSIVE: Final = ("training.schedule_target", "training.schedule_factor")


def idle_keys(sections: Sections, search: SearchSettings) -> dict[str, str]:
    """The keys that have no effect in any point, each with the reason: `training.optimizer is sgd`."""
    idle = {}
    for key, (owner, values) in EFFECTS.items():
        possible = _possible_values(owner, sections, search)
        if not any(_matters(value, values) for value in possible):
            idle[key] = f"{owner} is {_either(possible)}"
    return idle


def check_effects(sections: Sections, search: SearchSettings, set_keys: Collection[str], source: str) -> None:
    """Refuse searched keys that have no effect in any point, and warn of keys without effect that are only set.

    Args:
        set_keys: the keys in the document itself, as `section.key`; all others have their defaults.
        source: name of the document in messages.
    Raises:
        InputError: a searched key has no effect in any point, or a step schedule has both a target and a factor.
    """
    searched = {dimension.name for dimension in search.dimensions}
    # Listed points need not have the same keys: one may have a target, another a factor.
    together = [{name for name, _ in point} for point in search.points] or [searched]
    for number, keys in enumerate(together, start=1):
        if {*set_keys, *(key for key in _EXCLUSIVE if _name(key) in keys)}.issuperset(_EXCLUSIVE):
            where = f"search.points: point {number}: " if search.points else ""
            raise InputError(
                f"{source}: {where}{_EXCLUSIVE[0]} stands in place of {_EXCLUSIVE[1]}: give one of them",
                hint="the rate falls to the target once, or repeatedly by the factor",
            )
    for key, because in idle_keys(sections, search).items():
        owner, values = EFFECTS[key]
        names = [name for name in searched if _key(name) == key]
        if names:
            raise InputError(
                f"{source}: search.{names[0]} has no effect: {because}",
                hint=f"it belongs to {owner} = {_either(values)}",
            )
        if key in set_keys:
            _log.warning("%s: %s has no effect: %s", source, key, because)


def warn_of_idle_program_keys(sections: Sections, set_keys: Collection[str], source: str) -> None:
    """Warn of keys of [stopping] and [pruning] that are set in the study of a program and have no effect.

    Args:
        set_keys: see `check_effects`.
    """
    for key, (owner, values) in EFFECTS.items():
        section, _, name = owner.partition(".")
        if section in ("stopping", "pruning") and key in set_keys and sections[section][name] not in values:
            _log.warning("%s: %s has no effect: %s is %s", source, key, owner, sections[section][name])


def active_dimensions(
    dimensions: tuple[Dimension, ...], sections: Sections, chosen: Mapping[str, ParameterValue]
) -> Iterator[Dimension]:
    """The dimensions that a point has, starting with those on which others depend.

    Args:
        chosen: the point so far. The caller must add the value of each dimension before it requests the next one.
    """
    for dimension in sorted(dimensions, key=lambda dimension: not _is_owner(dimension.name)):
        if has_effect(dimension.name, chosen, sections):
            yield dimension


def has_effect(name: str, point: Point, sections: Sections) -> bool:
    """Whether a searched key has an effect in a point. Keys that the point lacks have the values in `sections`."""
    key = _key(name)
    if key not in EFFECTS or not sections:
        return True
    owner, values = EFFECTS[key]
    section, owner_name = owner.split(".")
    return _matters(point.get(owner_name, sections[section][owner_name]), values)


def without_idle(point: Point, sections: Sections) -> dict[str, ParameterValue]:
    """The point without the keys that have no effect in it."""
    return {name: value for name, value in point.items() if has_effect(name, point, sections)}


def effective_points(dimensions: tuple[Dimension, ...], sections: Sections) -> Iterator[dict[str, ParameterValue]]:
    """The distinct points of a grid in order; each has conditional parameters only if they have an effect."""
    if not _are_conditional(dimensions, sections):
        yield from grid_points(dimensions)
        return
    seen = set()
    for point in (without_idle(point, sections) for point in grid_points(dimensions)):
        identity = tuple(point.items())
        if identity not in seen:
            seen.add(identity)
            yield point


def num_effective_points(dimensions: tuple[Dimension, ...], sections: Sections) -> int:
    """The number of `effective_points`, computed without listing all of them."""
    owners = tuple(dimension for dimension in dimensions if _is_owner(dimension.name))
    others = [dimension for dimension in dimensions if not _is_owner(dimension.name)]
    if not _are_conditional(dimensions, sections):
        return math.prod(len(dimension.values) for dimension in dimensions)
    return sum(
        math.prod(len(dimension.values) for dimension in others if has_effect(dimension.name, point, sections))
        for point in grid_points(owners)
    )


def _are_conditional(dimensions: tuple[Dimension, ...], sections: Sections) -> bool:
    return (
        bool(sections)
        and any(_key(dimension.name) in EFFECTS for dimension in dimensions)
        and any(_is_owner(dimension.name) for dimension in dimensions)
    )


def _is_owner(name: str) -> bool:
    return _key(name) in _OWNER_NAMES


def _key(name: str) -> str:
    """The full key of a searched key as in `EFFECTS`, if it is there: `momentum` -> `training.momentum`."""
    return _KEY_OF.get("options" if name.startswith(OPTION_PREFIX) else name, name)


def _possible_values(owner: str, sections: Sections, search: SearchSettings) -> tuple[ParameterValue, ...]:
    """The owner's values in the study's points: the searched values, otherwise the one that is set."""
    section, name = owner.split(".")
    for dimension in search.dimensions:
        if dimension.name == name:
            return dimension.values
    return (sections[section][name],)


def _matters(value: ParameterValue, values: Collection[str]) -> bool:
    """Whether the owner's value is among `values`; all custom families count as `CUSTOM_FAMILY`."""
    return (CUSTOM_FAMILY if is_custom_family(str(value)) else value) in values


def _name(key: str) -> str:
    return key.rpartition(".")[2]


def _either(values: Collection[ParameterValue]) -> str:
    return " or ".join(str(value) for value in values)


def warn_of_small_budget(search: SearchSettings, sections: Mapping[str, Any], source: str) -> None:
    """Warn if a coarse-to-fine search cannot train the points that it begins with."""
    budget = search.budget_points
    if search.strategy == "coarse-to-fine" and budget is not None:
        num_points = num_effective_points(search.dimensions, sections)
        if budget < num_points:
            _log.warning(
                "%s: search.budget_points = %d is less than the %d points of the grid that the search begins with: "
                "only a part of them will be trained",
                *(source, budget, num_points),
            )
