"""Where the next trial is, when points are drawn and not listed: real Optuna samplers, seeded per trial.

A sampler serves one trial. Its randomness comes from (study seed, trial number) alone, so whichever worker
asks, the same history gives the same suggestion.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from optuna.samplers import BaseSampler, RandomSampler, TPESampler

from hpsearch.errors import InputError


def build_sampler(strategy: str, *, study_seed: int, trial_number: int) -> BaseSampler:
    """Optuna's sampler for one trial.

    `tpe` is Optuna 5's own choice, written out so that it stays: multivariate (parameters are drawn jointly),
    with constant liar (trials that are RUNNING count as bad, so workers that ask at once do not crowd one
    spot), 10 random trials first.

    Raises:
        InputError: no sampler of this name.
    """
    try:
        build = _BUILDERS[strategy]
    except KeyError:
        choices = ", ".join(_BUILDERS)
        raise InputError(f"unknown sampler {strategy!r}", hint=f"choose one of: {choices}") from None
    return build(trial_seed(study_seed, trial_number))


def trial_seed(study_seed: int, trial_number: int) -> int:
    """A seed in [0, 2**32) for one trial, well mixed: neighbouring trials and studies share no random stream.

    The same on every machine: NumPy's SeedSequence is a fixed hash (a test holds some of its values).
    """
    sequence = np.random.SeedSequence(study_seed, spawn_key=(trial_number,))
    return int(sequence.generate_state(1)[0])


def _build_random(seed: int) -> BaseSampler:
    return RandomSampler(seed=seed)


def _build_tpe(seed: int) -> BaseSampler:
    return TPESampler(seed=seed, n_startup_trials=10, multivariate=True, constant_liar=True)


_BUILDERS: dict[str, Callable[[int], BaseSampler]] = {"random": _build_random, "tpe": _build_tpe}
