"""Critical values of the intervals in comparison.py, simulated as quantiles of the largest studentised difference."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cache

import numpy as np
from numpy.typing import NDArray

from hpsearch.metric import critical_t

CONFIDENCE = 0.95  # of a single mean's interval
# Of all pairs' intervals together. Slightly more than 95 %, so that equal configurations are found to differ in at most
# 5 % of cases even if seed effects are not exactly normal, and although the simulation is finite.
SIMULTANEOUS_CONFIDENCE = 0.96
_NUM_DRAWS = 200_000  # gives a critical value to 0.3 %
_LARGEST_TABLE = 10_000_000  # numbers drawn; limits the draws for many configurations to about a second
_CHUNK = 4_000  # draws at a time
_FEWEST_CHUNKS = 3

Numbers = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class CriticalValues:
    """The factors of the standard errors in an interval: for the seeds' part (t) and the images' part (z).

    Args:
        are_groups: the images are groups of images, and their part has a t, too.
    """

    seeds: float
    images: float
    are_groups: bool = False


@cache
def critical_values(num_configurations: int, num_seeds: int, num_groups: int | None = None) -> CriticalValues:
    """Critical values for the simultaneous intervals of all pairs of configurations, or of a single mean.

    They are simulated with independent normal seed effects of equal variance in all configurations.

    Args:
        num_configurations: 1 for the interval of a single mean.
        num_groups: of images, at least 2, which then are the units of the images' part. Its value is Student's t with
            one degree of freedom less, and Bonferroni's for all pairs, so that it holds however the groups of each pair
            vary. None: each image is a unit, and there are many.
    """
    confidence = CONFIDENCE if num_configurations == 1 else SIMULTANEOUS_CONFIDENCE
    if num_groups is not None:
        num_pairs = max(1, math.comb(num_configurations, 2))
        of_groups = critical_t(num_groups - 1, 1 - (1 - confidence) / num_pairs)
        return replace(critical_values(num_configurations, num_seeds), images=of_groups, are_groups=True)
    images = float(np.quantile(_largest_normal(num_configurations), confidence))
    if num_seeds == 1:
        return CriticalValues(seeds=0.0, images=images)
    seeds = float(np.quantile(_largest_studentised(num_configurations, num_seeds), confidence))
    if num_configurations > 2:
        # With few seeds `at_least_usual` lowers this value below the one of a single pair. That is right if all
        # configurations' seeds vary equally. But the pairs of a configuration whose seeds vary more keep their own
        # variances, and are then as uncertain as a single pair.
        seeds = max(seeds, critical_values(2, num_seeds).seeds)
    return CriticalValues(seeds=seeds, images=images)


def _largest_normal(k: int) -> Numbers:
    """Draws of the largest standardised difference of k normal means; for k = 1, of the absolute mean itself."""
    draws = generator(k, 0).standard_normal((_NUM_DRAWS, k))
    largest: Numbers = np.abs(draws[:, 0]) if k == 1 else np.ptp(draws, axis=1) / np.sqrt(2)
    return largest


def _largest_studentised(k: int, num_seeds: int) -> Numbers:
    """Draws of the largest difference of all pairs, divided by the standard errors that `compare` uses."""
    draws = generator(k, num_seeds)
    num_chunks = max(_FEWEST_CHUNKS, min(_NUM_DRAWS, _LARGEST_TABLE // (k * max(k, num_seeds))) // _CHUNK)
    chunks = (draws.standard_normal((_CHUNK, k, num_seeds)) for _ in range(num_chunks))
    return np.concatenate([_largest_t(chunk) for chunk in chunks])


def _largest_t(draws: Numbers) -> Numbers:
    """The largest studentised difference of each draw: [draws, k, S] -> [draws]."""
    k, num_seeds = draws.shape[1:]
    means = draws.mean(axis=2)
    centred = draws - means[:, :, None]
    covariances = centred @ centred.transpose(0, 2, 1) / (num_seeds - 1) / num_seeds  # [draws, k, k]
    variances = np.diagonal(covariances, axis1=1, axis2=2)
    if k == 1:
        alone: Numbers = np.abs(means[:, 0]) / np.sqrt(variances[:, 0])
        return alone
    pairs = np.triu_indices(k, 1)
    of_pairs = (variances[:, :, None] + variances[:, None, :] - 2 * covariances)[:, *pairs]
    differences = (means[:, :, None] - means[:, None, :])[:, *pairs]
    largest: Numbers = (np.abs(differences) / np.sqrt(at_least_usual(of_pairs))).max(axis=1)
    return largest


def at_least_usual(of_pairs: Numbers) -> Numbers:
    """Variances of pairs [..., pairs], raised to their median where they are lower.

    A few seeds give a poor estimate of a single pair's variance. A pair whose seeds vary more keeps its own variance
    and does not affect the others; a pooled variance would grow with it.
    """
    usual: Numbers = np.maximum(of_pairs, np.median(of_pairs, axis=-1, keepdims=True))
    return usual


def generator(*key: int) -> np.random.Generator:
    """A generator with a stream of its own for each key, the same in every process."""
    return np.random.default_rng([1940, *(part + 1 for part in key)])
