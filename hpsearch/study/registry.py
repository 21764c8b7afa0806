"""The named choices of a study file: one table for each kind, with one line for each choice.

From these tables follow the names that a study file accepts, the hint for a misspelt name, the keys that have an
effect with each choice (`conditions`), and the object that implements it. Implementations are named as text and
imported at first use: this module loads neither torch nor Optuna, and imports nothing above it.
"""

from __future__ import annotations

import pkgutil
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final

CUSTOM_FAMILY: Final = "package.module:factory"  # the form of a custom family's name; stands for all of them


@dataclass(frozen=True)
class Named:
    """One choice of a kind.

    Args:
        place: the object that implements it, as "module:name".
        keys: keys of the same section that have an effect with this choice. A key that no choice of the kind names
            always has an effect.
    """

    place: str
    keys: tuple[str, ...] = ()

    @cached_property
    def implementation(self) -> Any:
        return pkgutil.resolve_name(self.place)


@dataclass(frozen=True)
class Strategy(Named):
    """A search strategy.

    Args:
        place: builds the sampler of one trial (`search.samplers.build`); empty for a strategy that does not draw.
        learns: the sampler uses other trials.
    """

    place: str = ""
    learns: bool = False


@dataclass(frozen=True)
class Family(Named):
    """A network family. With the key `hidden_units`, layers of different width share lanes (`networks.padding`).

    Args:
        starts_at_zero: all initial weights are 0, so that they do not depend on the seed.
    """

    starts_at_zero: bool = False


_ROUNDS = ("budget_points", "budget_epochs", "budget_hours", "finest_per_decade")
_DRAWN = ("num_points",)
STRATEGIES: Final[Mapping[str, Strategy]] = {
    "grid": Strategy(),
    "listed": Strategy(keys=("points",)),
    "coarse-to-fine": Strategy(keys=_ROUNDS),
    "random": Strategy("hpsearch.search.samplers.build:random_sampler", _DRAWN),
    "qmc": Strategy("hpsearch.search.samplers.sobol:SobolSampler.for_trial", _DRAWN),
    "tpe": Strategy("hpsearch.search.samplers.build:tpe_sampler", _DRAWN, learns=True),
    "gp": Strategy("hpsearch.search.samplers.gaussian_process:PrunedAwareGPSampler.for_trial", _DRAWN, learns=True),
    "cmaes": Strategy("hpsearch.search.samplers.cma:CmaSampler.for_trial", _DRAWN, learns=True),
}

_HIDDEN = ("hidden_units", "activation", "initialization")
FAMILIES: Final[Mapping[str, Family]] = {
    "logistic": Family("hpsearch.training.networks.dense:Logistic", starts_at_zero=True),
    "mlp": Family("hpsearch.training.networks.dense:Mlp", _HIDDEN),
    "cnn": Family("hpsearch.training.networks.lenet:LeNet", (*_HIDDEN, "kernels")),
    CUSTOM_FAMILY: Family("hpsearch.training.networks.custom:build_custom_network", ("options",)),
}
ACTIVATIONS: Final[Mapping[str, Named]] = {
    "tanh": Named("hpsearch.training.networks.activations:Tanh"),
    "sigmoid": Named("hpsearch.training.networks.activations:Sigmoid"),
    "relu": Named("hpsearch.training.networks.activations:Relu"),
}
OPTIMIZERS: Final[Mapping[str, Named]] = {
    "sgd": Named("hpsearch.training.optimizers:Sgd"),
    "momentum": Named("hpsearch.training.optimizers:Momentum", ("momentum",)),
    "adam": Named("hpsearch.training.optimizers:Adam", ("beta_1", "beta_2", "epsilon")),
}

_FACTOR = ("schedule_factor",)
_STEP = (*_FACTOR, "schedule_every", "schedule_target")
_PLATEAU = (*_FACTOR, "schedule_patience")
SCHEDULES: Final[Mapping[str, Named]] = {
    "constant": Named("hpsearch.training.schedules:ConstantSchedule"),
    "inverse-time": Named("hpsearch.training.schedules:InverseTimeSchedule", ("schedule_decay",)),
    "halving": Named("hpsearch.training.schedules:HalvingSchedule", (*_PLATEAU, "schedule_stop_ratio")),
    "step": Named("hpsearch.training.schedules:StepSchedule", _STEP),
    "plateau": Named("hpsearch.training.schedules:PlateauSchedule", _PLATEAU),
    "exponential": Named("hpsearch.training.schedules:ExponentialSchedule", _FACTOR),
}

_PATIENCE = ("patience", "patience_increase")
STOPPING_RULES: Final[Mapping[str, Named]] = {
    "geometric-patience": Named("hpsearch.search.stopping:GeometricPatience", (*_PATIENCE, "improvement_threshold")),
    "significance": Named("hpsearch.search.stopping:SignificancePatience", (*_PATIENCE, "significance_level")),
    "no-improvement-in-n": Named("hpsearch.search.stopping:NoImprovementInN", ("n",)),
    "none": Named("hpsearch.search.stopping:NeverStops"),
}

_OTHERS = ("warmup_epochs", "startup_trials")
_RUNGS = ("min_epochs", "reduction_factor")
PRUNERS: Final[Mapping[str, Named]] = {
    "none": Named("hpsearch.search.pruners:no_pruner"),
    "median": Named("hpsearch.search.pruners:median_pruner", _OTHERS),
    "percentile": Named("hpsearch.search.pruners:percentile_pruner", (*_OTHERS, "percentile")),
    "successive-halving": Named("hpsearch.search.pruners:successive_halving_pruner", _RUNGS),
    "hyperband": Named("hpsearch.search.pruners:hyperband_pruner", _RUNGS),
}

# The key that names the choice -> its table. [search] refuses the keys of another strategy (`definition`).
OWNERS: Final[Mapping[str, Mapping[str, Named]]] = {
    "model.family": FAMILIES,
    "training.optimizer": OPTIMIZERS,
    "training.schedule": SCHEDULES,
    "stopping.rule": STOPPING_RULES,
    "pruning.pruner": PRUNERS,
}


def choices_by_key(table: Mapping[str, Named]) -> dict[str, tuple[str, ...]]:
    """Key -> the choices with which it has an effect."""
    keys = dict.fromkeys(key for named in table.values() for key in named.keys)
    return {key: tuple(name for name, named in table.items() if key in named.keys) for key in keys}
