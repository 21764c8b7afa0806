"""Build the sampler of a strategy that draws points, by its name in `study.registry.STRATEGIES`: one for each trial."""

from __future__ import annotations

import warnings
from collections.abc import Callable

from optuna.exceptions import ExperimentalWarning
from optuna.samplers import BaseSampler, RandomSampler, TPESampler

from hpsearch.errors import InputError
from hpsearch.search.samplers.search_space import DrawRequest, SearchSpace
from hpsearch.study.registry import STRATEGIES, Strategy


def build_sampler(
    strategy: str,
    *,
    study_seed: int,
    trial_number: int,
    point: int | None = None,
    space: SearchSpace | None = None,
    is_open: bool = False,
) -> BaseSampler:
    """The sampler for one trial.

    Its random numbers depend on (study seed, trial number) alone, so the same history gives the same suggestion in any
    worker.

    Args:
        point: number of the trial's point, if points and trials are numbered separately; `qmc` uses it as the index in
            its sequence.
        space: the search space; None: samplers infer it from finished trials.
        is_open: parameters become known only as trials ask for them.
    Raises:
        InputError: no sampler of this name.
    """
    build: Callable[[DrawRequest], BaseSampler] = _drawing(strategy).implementation
    request = DrawRequest(study_seed=study_seed, trial_number=trial_number, point=point, space=space, is_open=is_open)
    return build(request)


def learns(strategy: str) -> bool:
    """Whether the sampler of this name uses other trials, so that they must be read before it is called.

    Raises:
        InputError: no sampler of this name.
    """
    return _drawing(strategy).learns


def _drawing(strategy: str) -> Strategy:
    drawn = {name: entry for name, entry in STRATEGIES.items() if entry.place}
    if strategy not in drawn:
        raise InputError(f"unknown sampler {strategy!r}", hint=f"choose one of: {', '.join(drawn)}")
    return drawn[strategy]


def random_sampler(request: DrawRequest) -> BaseSampler:
    return RandomSampler(seed=request.trial_seed)


def tpe_sampler(request: DrawRequest) -> BaseSampler:
    """TPE with the defaults of Optuna 5, set explicitly so that they do not change with Optuna.

    Multivariate (parameters are drawn jointly), with constant liar (RUNNING trials count as bad, so that workers that
    ask at the same time do not get similar points), and 10 random trials first. Conditional parameters that appear
    together are drawn jointly, group by group.
    """
    is_conditional = request.is_open or (request.space is not None and bool(request.space.sometimes))
    with warnings.catch_warnings():
        if is_conditional:
            warnings.simplefilter("ignore", ExperimentalWarning)  # `group`, since Optuna 2.8
        return TPESampler(
            seed=request.trial_seed, n_startup_trials=10, multivariate=True, constant_liar=True, group=is_conditional
        )
