"""Which of several configurations is better, from their models' right and wrong answers on the validation images.

All configurations are trained with the same seeds and judged on the same images, so that two of them are compared
by their differences, seed by seed and image by image. Two things make such a difference uncertain: other seeds would
have given other models, and other images other errors. Both count. The images do in particular because they are few,
and because the configurations were selected on them: fresh seeds do not take that away.

Variances come from the crossed layout (seeds times images). For the error of one configuration, or the difference of
two, x[s, i] = mean + seed[s] + image[i] + rest[s, i]; with S seeds, N images and unbiased variances,

    of the seeds' means / S              estimates   seed / S + rest / SN       with S - 1 degrees of freedom
    of the images' means / N             estimates   image / N + rest / SN
    of what both leave unexplained / SN  estimates   rest / SN

An interval's half width is sqrt(t^2 * (first) + z^2 * (second - third)): t is for few seeds, z for many images. This
is Banerjee's rule for variances of unlike degrees of freedom, which errs on the wide side and never on the other.
t and z are simulated: those of the largest of all pairs' studentised differences (a parametric bootstrap), so that
with equal configurations *any* pair is told apart in at most 5 % of cases, however many were compared. t is never less
than a single pair needs: so this also holds if the seeds of one configuration vary far more than the others'. If those
of two or more do, without bound, it holds from 10 seeds on; with 5 it was up to 10 % of simulated cases, with 2 or 3 up
to 15 % (the worst is 3 restless of 10 configurations; of 5 configurations it is 2, with 8 to 9 %).

Errors are few where models are good or images are few, and a mean's interval is then not symmetric: its images' part is
Wilson's, joined with the seeds' part by Zou and Donner's rule. No error at all still has an upper end above 0.

Nothing here knows a database, a study or a file.
Sources: Banerjee, Sankhya 22 (1960); Owen, Annals of Applied Statistics 1 (2007), on two-way resampling; Tukey's
range; Oliveira, Lei and Tibshirani, "coupled bootstrap" (2021), on the winner's optimism; Wilson, Journal of the
American Statistical Association 22 (1927); Zou and Donner, Statistics in Medicine 27 (2008).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

CONFIDENCE = 0.95  # of a single mean's interval
# Of all pairs' intervals at once. That equal configurations are told apart in at most 5 % of cases shall hold for
# seeds that are not quite normal too, and in a simulation of finite length: so a little more than 95 %.
SIMULTANEOUS_CONFIDENCE = 0.96
_NUM_DRAWS = 200_000  # gives a critical value to 0.3 %
_LARGEST_TABLE = 10_000_000  # fewer draws than that where there are many configurations: it takes a second
_CHUNK = 4_000  # draws at a time
_FEWEST_CHUNKS = 3
_NUM_PICKS = 5_000  # of a winner, each of them twice

Numbers = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class MeanError:
    """A configuration's validation error.

    Args:
        mean: over seeds and images, a fraction.
        deviation: standard deviation over seeds; None with a single seed.
        interval: 95 %, for this mean alone, over other seeds and other images.
    """

    mean: float
    deviation: float | None
    interval: tuple[float, float]


@dataclass(frozen=True, kw_only=True)
class Difference:
    """How much worse a configuration is than another: the difference of their errors.

    Args:
        interval: simultaneous: all pairs' intervals hold together in 95 % of cases, or rather more.
    """

    value: float
    interval: tuple[float, float]

    @property
    def is_significant(self) -> bool:
        """True if the interval does not hold 0."""
        return self.interval[0] > 0 or self.interval[1] < 0


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """What the right and wrong answers tell about k configurations, in the order in which they were given.

    Args:
        winner: index of the lowest mean; the first of equal ones.
        differences: [k][k]: `differences[i][j]` is how much worse i is than j.
        corrected_error: the winner's error without the optimism of having been picked as the lowest of k on these
            very seeds and images; never below its mean.
        seeds_matter: whether any answer depends on the seed.
    """

    means: tuple[MeanError, ...]
    winner: int
    differences: tuple[tuple[Difference, ...], ...]
    corrected_error: float
    num_seeds: int
    num_images: int
    seeds_matter: bool

    @property
    def from_winner(self) -> tuple[Difference, ...]:
        """How much worse each configuration is than the winner."""
        return tuple(row[self.winner] for row in self.differences)

    @property
    def tied(self) -> tuple[int, ...]:
        """The configurations that may be the best, the winner among them: not told apart from it."""
        return tuple(i for i, difference in enumerate(self.from_winner) if not difference.is_significant)


@dataclass(frozen=True, kw_only=True)
class CriticalValues:
    """By what standard errors are multiplied: the seeds' part (t) and the images' part (z)."""

    seeds: float
    images: float


@dataclass(frozen=True, kw_only=True)
class Complexity:
    """What decides among tied configurations, in this order: the simplest is the smallest.

    Args:
        num_parameters: trainable ones.
    """

    num_parameters: int


def compare(correct: NDArray[np.bool_]) -> Comparison:
    """Compare configurations that were trained with the same seeds and judged on the same images.

    The same input gives the same result, bit for bit.

    Args:
        correct: [configurations, seeds, images]: whether the model of this configuration and seed is right on the
            image. With a single seed, how much seeds matter is unknown: intervals then tell of the images alone.
    Raises:
        ValueError: not three axes, or fewer than 1 configuration, 1 seed, 2 images.
    """
    if correct.ndim != 3 or correct.shape[0] < 1 or correct.shape[1] < 1 or correct.shape[2] < 2:
        raise ValueError(f"must be [configurations, seeds, images], at least [1, 1, 2], got {list(correct.shape)}")
    num_configurations, num_seeds, num_images = correct.shape
    layout = _CrossedLayout.of(~correct)
    winner = int(layout.means.argmin())
    half_widths = layout.half_widths_of_differences(critical_values(num_configurations, num_seeds))
    differences = layout.means[:, None] - layout.means[None, :]
    return Comparison(
        means=_mean_errors(layout, num_seeds, num_images),
        winner=winner,
        differences=tuple(
            tuple(
                _difference(float(value), float(half))
                for value, half in zip(differences[i], half_widths[i], strict=True)
            )
            for i in range(num_configurations)
        ),
        corrected_error=_corrected_for_optimism(layout.means, layout.covariance),
        num_seeds=num_seeds,
        num_images=num_images,
        seeds_matter=bool((correct != correct[:, :1]).any()),
    )


@dataclass(frozen=True, kw_only=True)
class Pick:
    """The configuration that the rule picks, by its index, and why."""

    index: int
    reason: str


def simplest_of(comparison: Comparison, complexities: Sequence[Complexity]) -> Pick:
    """Of the tied configurations the simplest: fewest parameters; of equally simple ones the lowest mean."""
    left = list(comparison.tied)
    if len(left) == 1:
        return Pick(index=left[0], reason="no other is tied with it")
    fewest = min(complexities[i].num_parameters for i in left)
    left = [i for i in left if complexities[i].num_parameters == fewest]
    if len(left) == 1:
        return Pick(index=left[0], reason=f"the fewest trainable parameters of the tied ({fewest:,})")
    lowest = min(comparison.means[i].mean for i in left)
    left = [i for i in left if comparison.means[i].mean == lowest]
    equal = f"of the tied with the fewest trainable parameters ({fewest:,})"
    return Pick(index=left[0], reason=f"{equal} the {'lowest mean error' if len(left) == 1 else 'one that came first'}")


@dataclass(frozen=True, kw_only=True)
class _CrossedLayout:
    """Errors of k configurations over seeds and images: means, and covariances of these means by their source.

    Args:
        means, deviations: [k]; deviations over seeds.
        of_seeds, of_images, of_rest: [k, k], the three estimates that the module's head names.
    """

    means: Numbers
    deviations: Numbers
    of_seeds: Numbers
    of_images: Numbers
    of_rest: Numbers

    @classmethod
    def of(cls, wrong: NDArray[np.bool_]) -> _CrossedLayout:
        """Args: wrong: [k, S, N]."""
        k, num_seeds, num_images = wrong.shape
        errors = wrong.astype(np.float64)
        by_seed, by_image = errors.mean(axis=2), errors.mean(axis=1)  # [k, S], [k, N]
        means = by_seed.mean(axis=1)
        seeds = (by_seed - means[:, None]) @ (by_seed - means[:, None]).T  # sums of squares, [k, k]
        images = (by_image - means[:, None]) @ (by_image - means[:, None]).T
        flat = errors.reshape(k, -1) - means[:, None]
        # What is left of the total sum of squares; rounding may leave a hair less than nothing.
        rest = flat @ flat.T - num_images * seeds - num_seeds * images
        seeds_freedom, images_freedom = max(num_seeds - 1, 1), num_images - 1
        return cls(
            means=means,
            deviations=np.sqrt(np.diag(seeds) / seeds_freedom),
            of_seeds=seeds / seeds_freedom / num_seeds,
            of_images=images / images_freedom / num_images,
            of_rest=rest / (seeds_freedom * images_freedom) / (num_seeds * num_images),
        )

    @property
    def covariance(self) -> Numbers:
        """Of the means, [k, k]: all three sources together; never negative in any direction."""
        return self.of_rest + _non_negative(self.of_seeds - self.of_rest) + _non_negative(self.of_images - self.of_rest)

    def half_widths_of_differences(self, critical: CriticalValues) -> Numbers:
        """Of all pairs' simultaneous intervals, [k, k]."""
        of_seeds = _of_differences(self.of_seeds)
        k = len(of_seeds)
        if k > 1:
            pairs = np.triu_indices(k, 1)
            usual = np.zeros((k, k))
            usual[pairs] = _at_least_usual(of_seeds[pairs])
            of_seeds = usual + usual.T
        return _half_widths(of_seeds, _of_differences(self.of_images), _of_differences(self.of_rest), critical)

    def intervals_of_means(self, critical: CriticalValues, num_images: int) -> list[tuple[float, float]]:
        """Each mean's own, k of them."""
        of_rest = np.diag(self.of_rest)
        seeds = critical.seeds**2 * np.maximum(np.diag(self.of_seeds), of_rest).clip(0.0)
        images = np.maximum(np.diag(self.of_images) - of_rest, 0.0)
        return [
            _interval_of_mean(float(mean), float(seed), float(image), critical.images, num_images)
            for mean, seed, image in zip(self.means, seeds, images, strict=True)
        ]


def _half_widths(of_seeds: Numbers, of_images: Numbers, of_rest: Numbers, critical: CriticalValues) -> Numbers:
    """Banerjee's rule, on variances."""
    # By chance a few seeds agree better than what is left unexplained allows: it is the least that they can vary.
    seeds = np.maximum(of_seeds, of_rest)
    images = np.maximum(of_images - of_rest, 0.0)
    widths: Numbers = np.sqrt(critical.seeds**2 * seeds.clip(0.0) + critical.images**2 * images)
    return widths


def _interval_of_mean(mean: float, seeds: float, images: float, z: float, num_images: int) -> tuple[float, float]:
    """The roots of the summed squares of both parts' distances from the mean, to either side.

    Args:
        seeds: the squared half width of the seeds' part.
        images: the variance that the images' part adds.
    """
    spread = mean * (1 - mean)
    # z^2 / n, where n independent images would give this variance. All right or all wrong, they tell nothing of it.
    weight = z**2 * (images / spread if spread > 0 else 1 / num_images)
    middle = (mean + weight / 2) / (1 + weight)
    half = math.sqrt(weight * spread + weight**2 / 4) / (1 + weight)
    low = mean - math.sqrt(seeds + (mean - (middle - half)) ** 2)
    high = mean + math.sqrt(seeds + (middle + half - mean) ** 2)
    return max(0.0, low), min(1.0, high)


def _of_differences(covariance: Numbers) -> Numbers:
    """Variances of all pairs' differences, [k, k]."""
    variances = np.diag(covariance)
    pairs: Numbers = variances[:, None] + variances[None, :] - 2 * covariance
    return pairs


def _non_negative(covariance: Numbers) -> Numbers:
    """The nearest covariance: estimates of variances by subtraction can come out below nothing."""
    values, vectors = np.linalg.eigh(covariance)
    nearest: Numbers = (vectors * np.maximum(values, 0.0)) @ vectors.T
    return nearest


def _mean_errors(layout: _CrossedLayout, num_seeds: int, num_images: int) -> tuple[MeanError, ...]:
    intervals = layout.intervals_of_means(critical_values(1, num_seeds), num_images)
    return tuple(
        MeanError(
            mean=float(mean),
            deviation=float(deviation) if num_seeds > 1 else None,
            interval=interval,
        )
        for mean, deviation, interval in zip(layout.means, layout.deviations, intervals, strict=True)
    )


def _difference(value: float, half_width: float) -> Difference:
    return Difference(value=value, interval=(value - half_width, value + half_width))


@cache
def critical_values(num_configurations: int, num_seeds: int) -> CriticalValues:
    """For intervals to hold all at once: of all pairs of so many configurations, or of a single mean (1).

    Simulated with seeds whose normal effects differ from configuration to configuration, all alike.
    """
    confidence = CONFIDENCE if num_configurations == 1 else SIMULTANEOUS_CONFIDENCE
    images = float(np.quantile(_largest_normal(num_configurations), confidence))
    if num_seeds == 1:
        return CriticalValues(seeds=0.0, images=images)
    seeds = float(np.quantile(_largest_studentised(num_configurations, num_seeds), confidence))
    if num_configurations > 2:
        # With few seeds `_at_least_usual` brings it below that of a single pair: right where all seeds vary alike, but
        # a restless configuration's pairs keep their own variances, and are then as uncertain as a single pair is.
        seeds = max(seeds, critical_values(2, num_seeds).seeds)
    return CriticalValues(seeds=seeds, images=images)


def _largest_normal(k: int) -> Numbers:
    """Draws of the largest standardised difference of k normal means; of the mean itself for k = 1."""
    draws = _generator(k, 0).standard_normal((_NUM_DRAWS, k))
    largest: Numbers = np.abs(draws[:, 0]) if k == 1 else np.ptp(draws, axis=1) / np.sqrt(2)
    return largest


def _largest_studentised(k: int, num_seeds: int) -> Numbers:
    """Draws of the largest of all pairs' differences, over the standard errors that `compare` gives them."""
    generator = _generator(k, num_seeds)
    num_chunks = max(_FEWEST_CHUNKS, min(_NUM_DRAWS, _LARGEST_TABLE // (k * max(k, num_seeds))) // _CHUNK)
    chunks = (generator.standard_normal((_CHUNK, k, num_seeds)) for _ in range(num_chunks))
    return np.concatenate([_largest_t(chunk) for chunk in chunks])


def _largest_t(draws: Numbers) -> Numbers:
    """[draws, k, S] -> [draws]."""
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
    largest: Numbers = (np.abs(differences) / np.sqrt(_at_least_usual(of_pairs))).max(axis=1)
    return largest


def _at_least_usual(of_pairs: Numbers) -> Numbers:
    """Variances of pairs [..., pairs], none below their median.

    A few seeds tell little of one pair's variance. A pair with restless seeds keeps its own, and leaves the others
    theirs; a variance that all had in common would grow with it.
    """
    usual: Numbers = np.maximum(of_pairs, np.median(of_pairs, axis=-1, keepdims=True))
    return usual


def _corrected_for_optimism(means: Numbers, covariance: Numbers) -> float:
    """What the pick of the lowest is expected to have, judged on numbers that had no part in the picking.

    Coupled bootstrap: with noise Z of the means' own covariance, `means + Z` and `means - Z` are independent. The
    first picks, the second judges. It is unbiased for a pick on twice the variance, so a little too high rather
    than too low. It needs to know the variance: with 2 seeds, whose variation is the greater part, a fifth of the
    optimism was left in simulations, with 3 a tenth.
    """
    values, vectors = np.linalg.eigh(covariance)
    roots = vectors * np.sqrt(np.maximum(values, 0.0))  # equal configurations have a covariance without inverse
    draws = _generator(len(means), -1).standard_normal((_NUM_PICKS, len(means)))
    noise = np.concatenate([draws, -draws]) @ roots.T
    picked = (means + noise).argmin(axis=1)
    judged = means[picked] - noise[np.arange(len(noise)), picked]
    return max(float(judged.mean()), float(means.min()))


def _generator(*key: int) -> np.random.Generator:
    """Its own numbers for each use, the same in every process."""
    return np.random.default_rng([1940, *(part + 1 for part in key)])
