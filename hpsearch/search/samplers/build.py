"""Build the sampler of a strategy that draws points, by name. Each sampler is for one trial."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass

from optuna.exceptions import ExperimentalWarning
from optuna.samplers import BaseSampler, RandomSampler, TPESampler

from hpsearch.errors import InputError
from hpsearch.search.samplers.cma import CmaSampler
from hpsearch.search.samplers.gaussian_process import PrunedAwareGPSampler
from hpsearch.search.samplers.search_space import SearchSpace
from hpsearch.search.samplers.seeds import trial_seed
from hpsearch.search.samplers.sobol import SobolSampler


@dataclass(frozen=True, kw_only=True)
class _Request:
    study_seed: int
    trial_number: int
    point: int | None
    space: SearchSpace | None

    @property
    def trial_seed(self) -> int:
        return trial_seed(self.study_seed, self.trial_number)


def build_sampler(
    strategy: str,
    *,
    study_seed: int,
    trial_number: int,
    point: int | None = None,
    space: SearchSpace | None = None,
) -> BaseSampler:
    """The sampler for one trial.

    Its random numbers depend on (study seed, trial number) alone, so the same history gives the same suggestion in any
    worker.

    Args:
        point: number of the trial's point, if points and trials are numbered separately; `qmc` uses it as the index in
            its sequence.
        space: the search space; None: samplers infer it from finished trials.
    Raises:
        InputError: no sampler of this name.
    """
    request = _Request(study_seed=study_seed, trial_number=trial_number, point=point, space=space)
    return _kind(strategy).build(request)


def learns(strategy: str) -> bool:
    """Whether the sampler of this name uses other trials, so that they must be read before it is called.

    Raises:
        InputError: no sampler of this name.
    """
    return _kind(strategy).learns


@dataclass(frozen=True, kw_only=True)
class _Kind:
    build: Callable[[_Request], BaseSampler]
    learns: bool


def _kind(strategy: str) -> _Kind:
    try:
        return _KINDS[strategy]
    except KeyError:
        choices = ", ".join(_KINDS)
        raise InputError(f"unknown sampler {strategy!r}", hint=f"choose one of: {choices}") from None


def _build_random(request: _Request) -> BaseSampler:
    return RandomSampler(seed=request.trial_seed)


def _build_qmc(request: _Request) -> BaseSampler:
    # Conditional parameters have coordinates as well; a trial without them leaves theirs unused.
    space = request.space.all if request.space else None
    return SobolSampler(seed=request.study_seed, search_space=space, index=request.point)


def _build_tpe(request: _Request) -> BaseSampler:
    """TPE with the defaults of Optuna 5, set explicitly so that they do not change with Optuna.

    Multivariate (parameters are drawn jointly), with constant liar (RUNNING trials count as bad, so that workers that
    ask at the same time do not get similar points), and 10 random trials first. Conditional parameters that appear
    together are drawn jointly, group by group.
    """
    is_conditional = request.space is not None and bool(request.space.sometimes)
    with warnings.catch_warnings():
        if is_conditional:
            warnings.simplefilter("ignore", ExperimentalWarning)  # `group`, since Optuna 2.8
        return TPESampler(
            seed=request.trial_seed,
            n_startup_trials=10,
            multivariate=True,
            constant_liar=True,
            group=is_conditional,
        )


def _build_gp(request: _Request) -> BaseSampler:
    return PrunedAwareGPSampler(seed=request.study_seed, search_space=request.space.always if request.space else None)


def _build_cmaes(request: _Request) -> BaseSampler:
    return CmaSampler(seed=request.study_seed, search_space=request.space.always if request.space else None)


_KINDS: dict[str, _Kind] = {
    "random": _Kind(build=_build_random, learns=False),
    "qmc": _Kind(build=_build_qmc, learns=False),
    "tpe": _Kind(build=_build_tpe, learns=True),
    "gp": _Kind(build=_build_gp, learns=True),
    "cmaes": _Kind(build=_build_cmaes, learns=True),
}
