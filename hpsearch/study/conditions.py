"""Keys that matter only for some values of another key: `momentum` for the optimiser of that name.

Such a parameter is conditional: a point has it only where it has an effect, so that no point is counted twice. One
that has an effect in no point is refused as a dimension. One that is merely set is told of in a warning:
`--set model.family=logistic` must not force anybody to edit the rest of a file.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping
from typing import Any, Final

from hpsearch.errors import InputError
from hpsearch.logs import get_logger
from hpsearch.study.settings import CUSTOM_FAMILY, OPTION_PREFIX, is_custom_family
from hpsearch.study.space import Dimension, ParameterValue, Point, SearchSettings, grid_points

_log = get_logger("study")

Sections = Mapping[str, Any]  # section -> key -> value, as `StudyDefinition.model_dump` gives them

_HIDDEN: Final = ("model.family", ("mlp", "cnn"))
_ADAM: Final = ("training.optimizer", ("adam",))
_STEP: Final = ("training.schedule", ("step",))
_PATIENCE: Final = ("stopping.rule", ("geometric-patience", "significance"))
_AGAINST_OTHERS: Final = ("pruning.pruner", ("median", "percentile"))
_RUNGS: Final = ("pruning.pruner", ("successive-halving", "hyperband"))

# key -> its owner, and the owner's values for which the key matters. A key that is not here always matters.
EFFECTS: Final[Mapping[str, tuple[str, tuple[str, ...]]]] = {
    "model.hidden_units": _HIDDEN,
    "model.kernels": ("model.family", ("cnn",)),
    "model.activation": _HIDDEN,
    "model.initialization": _HIDDEN,
    "model.options": ("model.family", (CUSTOM_FAMILY,)),
    "training.momentum": ("training.optimizer", ("momentum",)),
    "training.beta_1": _ADAM,
    "training.beta_2": _ADAM,
    "training.epsilon": _ADAM,
    "training.schedule_decay": ("training.schedule", ("inverse-time",)),
    "training.schedule_factor": ("training.schedule", ("step", "plateau", "halving", "exponential")),
    "training.schedule_every": _STEP,
    "training.schedule_target": _STEP,
    "training.schedule_patience": ("training.schedule", ("plateau", "halving")),
    "training.schedule_stop_ratio": ("training.schedule", ("halving",)),
    "stopping.patience": _PATIENCE,
    "stopping.patience_increase": _PATIENCE,
    "stopping.improvement_threshold": ("stopping.rule", ("geometric-patience",)),
    "stopping.significance_level": ("stopping.rule", ("significance",)),
    "stopping.n": ("stopping.rule", ("no-improvement-in-n",)),
    "pruning.warmup_epochs": _AGAINST_OTHERS,
    "pruning.startup_trials": _AGAINST_OTHERS,
    "pruning.percentile": ("pruning.pruner", ("percentile",)),
    "pruning.min_epochs": _RUNGS,
    "pruning.reduction_factor": _RUNGS,
}
_KEY_OF: Final = {key.rpartition(".")[2]: key for key in EFFECTS if key.startswith(("model.", "training."))}
_OWNERS: Final = {owner.rpartition(".")[2] for owner, _ in EFFECTS.values()}
_EXCLUSIVE: Final = ("training.schedule_target", "training.schedule_factor")


def idle_keys(sections: Sections, search: SearchSettings) -> dict[str, str]:
    """The keys that matter in no point, each with the reason: `training.optimizer is sgd`."""
    idle = {}
    for key, (owner, values) in EFFECTS.items():
        possible = _possible_values(owner, sections, search)
        if not any(_matters(value, values) for value in possible):
            idle[key] = f"{owner} is {_either(possible)}"
    return idle


def check_effects(sections: Sections, search: SearchSettings, set_keys: Collection[str], source: str) -> None:
    """Refuse searched keys that have an effect in no point, and warn of those that are only set.

    Args:
        set_keys: what the document itself says, `section.key` each; the rest are defaults.
        source: what messages call the document.
    Raises:
        InputError: a searched key matters in no point.
    """
    searched = {dimension.name for dimension in search.dimensions}
    # The points of a list need not have the same keys: one may have a target, another a factor.
    together = [{name for name, _ in point} for point in search.points] or [searched]
    for number, keys in enumerate(together, start=1):
        if {*set_keys, *(key for key in _EXCLUSIVE if _name(key) in keys)}.issuperset(_EXCLUSIVE):
            where = f"search.points: point {number}: " if search.points else ""
            raise InputError(
                f"{source}: {where}{_EXCLUSIVE[0]} stands in place of {_EXCLUSIVE[1]}: give one of them",
                hint="the rate falls to the target once, or by the factor again and again",
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


def active_dimensions(
    dimensions: tuple[Dimension, ...], sections: Sections, chosen: Mapping[str, ParameterValue]
) -> Iterator[Dimension]:
    """The dimensions that a point has, those first that decide about others.

    Args:
        chosen: the point so far: the caller puts the value of each dimension in before it asks for the next one.
    """
    for dimension in sorted(dimensions, key=lambda dimension: not _is_owner(dimension.name)):
        if has_effect(dimension.name, chosen, sections):
            yield dimension


def has_effect(name: str, point: Point, sections: Sections) -> bool:
    """Whether a searched key matters for a point; what the point does not say, its study's sections do."""
    key = _key(name)
    if key not in EFFECTS:
        return True
    owner, values = EFFECTS[key]
    section, owner_name = owner.split(".")
    return _matters(point.get(owner_name, sections[section][owner_name]), values)


def without_idle(point: Point, sections: Sections) -> dict[str, ParameterValue]:
    """The point without what has no effect in it."""
    return {name: value for name, value in point.items() if has_effect(name, point, sections)}


def effective_points(dimensions: tuple[Dimension, ...], sections: Sections) -> Iterator[dict[str, ParameterValue]]:
    """The points of a grid in order, each once: conditional parameters stand only where they have an effect."""
    if not _are_conditional(dimensions):
        yield from grid_points(dimensions)
        return
    seen = set()
    for point in (without_idle(point, sections) for point in grid_points(dimensions)):
        identity = tuple(point.items())
        if identity not in seen:
            seen.add(identity)
            yield point


def num_effective_points(dimensions: tuple[Dimension, ...], sections: Sections) -> int:
    """How many `effective_points` there are, without a look at each."""
    owners = tuple(dimension for dimension in dimensions if _is_owner(dimension.name))
    others = [dimension for dimension in dimensions if not _is_owner(dimension.name)]
    if not _are_conditional(dimensions):
        return math.prod(len(dimension.values) for dimension in dimensions)
    return sum(
        math.prod(len(dimension.values) for dimension in others if has_effect(dimension.name, point, sections))
        for point in grid_points(owners)
    )


def _are_conditional(dimensions: tuple[Dimension, ...]) -> bool:
    return any(_key(dimension.name) in EFFECTS for dimension in dimensions) and any(
        _is_owner(dimension.name) for dimension in dimensions
    )


def _is_owner(name: str) -> bool:
    return _key(name) in _OWNERS


def _key(name: str) -> str:
    """The key of `EFFECTS` that a searched key is, if it is there: `momentum` -> `training.momentum`."""
    return _KEY_OF.get("options" if name.startswith(OPTION_PREFIX) else name, name)


def _possible_values(owner: str, sections: Sections, search: SearchSettings) -> tuple[ParameterValue, ...]:
    """The owner's values in the study's points: those searched, or else the one that is set."""
    section, name = owner.split(".")
    for dimension in search.dimensions:
        if dimension.name == name:
            return dimension.values
    return (sections[section][name],)


def _matters(value: ParameterValue, values: Collection[str]) -> bool:
    """Whether the owner's value is among those listed; every custom family is one and the same there."""
    return (CUSTOM_FAMILY if is_custom_family(str(value)) else value) in values


def _name(key: str) -> str:
    return key.rpartition(".")[2]


def _either(values: Collection[ParameterValue]) -> str:
    return " or ".join(str(value) for value in values)
