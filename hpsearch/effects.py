"""Keys that matter only for some values of another key: `momentum` for the optimiser of that name.

A searched key without effect would count one point many times, and is refused. One that is merely set is
told of in a warning: `--set model.family=logistic` must not force anybody to edit the rest of a file.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, Final

from hpsearch.errors import InputError
from hpsearch.logs import get_logger
from hpsearch.settings import CUSTOM_FAMILY, is_custom_family
from hpsearch.space import ParameterValue, SearchSettings

_log = get_logger("study")

Sections = Mapping[str, Any]  # section -> key -> value, as `StudyDefinition.model_dump` gives them

_HIDDEN: Final = ("model.family", ("mlp", "cnn"))
_ADAM: Final = ("training.optimizer", ("adam",))
_STEP: Final = ("training.schedule", ("step",))
_PATIENCE: Final = ("stopping.rule", ("geometric-patience",))
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
    "stopping.improvement_threshold": _PATIENCE,
    "stopping.n": ("stopping.rule", ("no-improvement-in-n",)),
    "pruning.warmup_epochs": _AGAINST_OTHERS,
    "pruning.startup_trials": _AGAINST_OTHERS,
    "pruning.percentile": ("pruning.pruner", ("percentile",)),
    "pruning.min_epochs": _RUNGS,
    "pruning.reduction_factor": _RUNGS,
}
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
    """Refuse searched keys without effect, and warn of those that are only set.

    Args:
        set_keys: what the document itself says, `section.key` each; the rest are defaults.
        source: what messages call the document.
    Raises:
        InputError: a searched key matters in no point, or a grid would list one point more than once.
    """
    searched = {dimension.name for dimension in search.dimensions}
    given = {*set_keys, *(key for key in _EXCLUSIVE if _name(key) in searched)}
    if given.issuperset(_EXCLUSIVE):
        raise InputError(
            f"{source}: {_EXCLUSIVE[0]} stands in place of {_EXCLUSIVE[1]}: give one of them",
            hint="the rate falls to the target once, or by the factor again and again",
        )
    idle = idle_keys(sections, search)
    for key, (owner, values) in EFFECTS.items():
        names = [name for name in searched if name == _name(key) or name.startswith(f"{_name(key)}.")]
        for name in names:
            _check_searched(name, owner, values, idle.get(key), sections, search, source)
        if not names and key in idle and key in set_keys:
            _log.warning("%s: %s has no effect: %s", source, key, idle[key])


def _check_searched(
    name: str,
    owner: str,
    values: Collection[str],
    idle_because: str | None,
    sections: Sections,
    search: SearchSettings,
    source: str,
) -> None:
    if idle_because is not None:
        raise InputError(
            f"{source}: search.{name} has no effect: {idle_because}",
            hint=f"it belongs to {owner} = {_either(values)}",
        )
    without = [value for value in _possible_values(owner, sections, search) if not _matters(value, values)]
    num_values = next(len(dimension.values) for dimension in search.dimensions if dimension.name == name)
    if search.strategy == "grid" and without and num_values > 1:
        raise InputError(
            f"{source}: search.{name} has no effect where search.{_name(owner)} is {_either(without)}: "
            f"the grid would train each such point {num_values} times",
            hint=f"run two studies: one that searches {name} with {owner} = {_either(values)}, "
            f"and one without {name} for {_either(without)}",
        )


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
