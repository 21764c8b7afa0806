"""Compare configurations by which validation images their models classify correctly.

All configurations are trained with the same seeds and evaluated on the same images. Two configurations are therefore
compared by their differences, seed by seed and image by image. Such a difference is uncertain for two reasons: other
seeds would have given other models, and other images other errors. Both are taken into account. The images matter in
particular because there are few of them, and because the configurations were selected on them, which fresh seeds do
not change.

Variances are estimated from the crossed layout (seeds times images). For the error of one configuration, or the
difference of two, x[s, i] = mean + seed[s] + image[i] + rest[s, i]; with S seeds, N images and unbiased variances,

    variance of the seeds' means / S     estimates   seed / S + rest / SN       with S - 1 degrees of freedom
    variance of the images' means / N    estimates   image / N + rest / SN
    variance of the residuals / SN       estimates   rest / SN

The half width of an interval is sqrt(t^2 * (first) + z^2 * (second - third)): t is for few seeds, z for many images.
This is Banerjee's rule for variances with different degrees of freedom, which gives intervals that are too wide rather
than too narrow. t and z are simulated as quantiles of the largest studentised difference of all pairs (a parametric
bootstrap). With equal configurations, *any* pair is therefore found to differ in at most 5 % of cases, however many are
compared. t is never less than for a single pair, so this also holds if the seeds of one configuration vary far more
than the seeds of the others. If the seeds of two or more configurations vary without bound, it holds from 10 seeds on;
with 5 seeds the rate was up to 10 % of simulated cases, with 2 or 3 seeds up to 15 % (the worst case is 3 such
configurations of 10; among 5 configurations the worst case is 2, with 8 to 9 %).

Where errors are few, because the models are good or the images few, the interval of a mean is not symmetric: the
images' part is Wilson's interval, combined with the seeds' part by Zou and Donner's rule. Even without any error the
upper end is above 0.

The module works on arrays only: it uses no database, study or file.
Sources: Banerjee, Sankhya 22 (1960); Owen, Annals of Applied Statistics 1 (2007), on two-way resampling; Tukey's
range; Oliveira, Lei and Tibshirani, "coupled bootstrap" (2021), on the winner's optimism; Wilson, Journal of the
American Statistical Association 22 (1927); Zou and Donner, Statistics in Medicine 27 (2008).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hpsearch.results.confirmation.compared import Comparison, Difference, MeanError
from hpsearch.results.confirmation.critical_values import (
    CriticalValues,
    Numbers,
    at_least_usual,
    critical_values,
    generator,
)

_NUM_PICKS = 5_000  # simulated picks of a winner; each noise is used with both signs


def compare(correct: NDArray[np.bool_]) -> Comparison:
    """Compare configurations that were trained with the same seeds and evaluated on the same images.

    The result is deterministic, bit for bit.

    Args:
        correct: [configurations, seeds, images]: whether the model of this configuration and seed classifies the
            image correctly. With a single seed the influence of seeds is unknown, and the intervals describe the
            uncertainty from the images alone.
    Raises:
        ValueError: the array has not three axes, or fewer than 1 configuration, 1 seed or 2 images.
    """
    if correct.ndim != 3 or correct.shape[0] < 1 or correct.shape[1] < 1 or correct.shape[2] < 2:
        raise ValueError(f"must be [configurations, seeds, images], at least [1, 1, 2], got {list(correct.shape)}")
    num_configurations, num_seeds, num_images = correct.shape
    layout = _CrossedLayout.of(~correct)
    half_widths = layout.half_widths_of_differences(critical_values(num_configurations, num_seeds))
    differences = layout.means[:, None] - layout.means[None, :]
    intervals = layout.intervals_of_means(critical_values(1, num_seeds), num_images)
    return Comparison(
        means=tuple(
            MeanError(mean=float(mean), deviation=float(deviation) if num_seeds > 1 else None, interval=interval)
            for mean, deviation, interval in zip(layout.means, layout.deviations, intervals, strict=True)
        ),
        winner=int(layout.means.argmin()),
        differences=tuple(
            tuple(
                Difference(value=value, interval=(value - half, value + half))
                for value, half in zip(values.tolist(), halves.tolist(), strict=True)
            )
            for values, halves in zip(differences, half_widths, strict=True)
        ),
        corrected_error=_corrected_for_optimism(layout.means, layout.covariance),
        num_seeds=num_seeds,
        num_images=num_images,
        seeds_matter=bool((correct != correct[:, :1]).any()),
    )


@dataclass(frozen=True, kw_only=True)
class _CrossedLayout:
    """Errors of k configurations over seeds and images: the means, and the covariances of the means by source.

    Args:
        means, deviations: [k]; standard deviations over seeds.
        of_seeds, of_images, of_rest: [k, k], the three estimates in the module's docstring.
    """

    means: Numbers
    deviations: Numbers
    of_seeds: Numbers
    of_images: Numbers
    of_rest: Numbers

    @classmethod
    def of(cls, wrong: NDArray[np.bool_]) -> _CrossedLayout:
        """Estimate means and covariances.

        Args:
            wrong: [k, S, N], whether an image is misclassified.
        """
        k, num_seeds, num_images = wrong.shape
        errors = wrong.astype(np.float64)
        by_seed, by_image = errors.mean(axis=2), errors.mean(axis=1)  # [k, S], [k, N]
        means = by_seed.mean(axis=1)
        seeds = (by_seed - means[:, None]) @ (by_seed - means[:, None]).T  # sums of squares, [k, k]
        images = (by_image - means[:, None]) @ (by_image - means[:, None]).T
        flat = errors.reshape(k, -1) - means[:, None]
        # The rest of the total sum of squares; rounding can make it slightly negative.
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
        """Covariance of the means, [k, k], from all three sources together."""
        return self.of_rest + _non_negative(self.of_seeds - self.of_rest) + _non_negative(self.of_images - self.of_rest)

    def half_widths_of_differences(self, critical: CriticalValues) -> Numbers:
        """Half widths of the simultaneous intervals of all pairs by Banerjee's rule, [k, k]."""
        of_seeds, of_rest = _of_differences(self.of_seeds), _of_differences(self.of_rest)
        k = len(of_seeds)
        if k > 1:
            pairs = np.triu_indices(k, 1)
            usual = np.zeros((k, k))
            usual[pairs] = at_least_usual(of_seeds[pairs])
            of_seeds = usual + usual.T
        # By chance a few seeds can vary less than the residuals imply: the residual variance is the lower bound.
        seeds = np.maximum(of_seeds, of_rest)
        images = np.maximum(_of_differences(self.of_images) - of_rest, 0.0)
        widths: Numbers = np.sqrt(critical.seeds**2 * seeds.clip(0.0) + critical.images**2 * images)
        return widths

    def intervals_of_means(self, critical: CriticalValues, num_images: int) -> list[tuple[float, float]]:
        """The interval of each mean by itself, k of them."""
        of_rest = np.diag(self.of_rest)
        seeds = critical.seeds**2 * np.maximum(np.diag(self.of_seeds), of_rest).clip(0.0)
        images = np.maximum(np.diag(self.of_images) - of_rest, 0.0)
        return [
            _interval_of_mean(float(mean), float(seed), float(image), critical.images, num_images)
            for mean, seed, image in zip(self.means, seeds, images, strict=True)
        ]


def _interval_of_mean(mean: float, seeds: float, images: float, z: float, num_images: int) -> tuple[float, float]:
    """The interval of a mean: on each side the root of the summed squares of the two parts' distances from the mean.

    This is Zou and Donner's rule; the images' part is Wilson's interval.

    Args:
        seeds: squared half width of the seeds' part.
        images: variance that the images' part adds.
        z: critical value of the images' part.
    """
    spread = mean * (1 - mean)
    # z^2 / n, where n independent images would give this variance. If all images are correct, or all are wrong, the
    # variance cannot be estimated, and n is the number of images.
    weight = z**2 * (images / spread if spread > 0 else 1 / num_images)
    middle = (mean + weight / 2) / (1 + weight)
    half = math.sqrt(weight * spread + weight**2 / 4) / (1 + weight)
    low = mean - math.sqrt(seeds + (mean - (middle - half)) ** 2)
    high = mean + math.sqrt(seeds + (middle + half - mean) ** 2)
    return max(0.0, low), min(1.0, high)


def _of_differences(covariance: Numbers) -> Numbers:
    """Variances of the differences of all pairs, [k, k]."""
    variances = np.diag(covariance)
    pairs: Numbers = variances[:, None] + variances[None, :] - 2 * covariance
    return pairs


def _non_negative(covariance: Numbers) -> Numbers:
    """The nearest positive semi-definite matrix: variances that are estimated by subtraction can be negative."""
    values, vectors = np.linalg.eigh(covariance)
    nearest: Numbers = (vectors * np.maximum(values, 0.0)) @ vectors.T
    return nearest


def _corrected_for_optimism(means: Numbers, covariance: Numbers) -> float:
    """The expected error of the lowest configuration, estimated on numbers that were not used to pick it.

    Coupled bootstrap: with noise Z of the same covariance as the means, `means + Z` and `means - Z` are independent.
    The first is used to pick, the second to estimate. The result is unbiased for a pick on twice the variance, so it
    is slightly too high rather than too low. The method needs the variance: in simulations where the seeds' variance
    dominates, a fifth of the optimism remained with 2 seeds, and a tenth with 3.
    """
    values, vectors = np.linalg.eigh(covariance)
    roots = vectors * np.sqrt(np.maximum(values, 0.0))  # equal configurations make the covariance singular
    draws = generator(len(means), -1).standard_normal((_NUM_PICKS, len(means)))
    noise = np.concatenate([draws, -draws]) @ roots.T
    picked = (means + noise).argmin(axis=1)
    judged = means[picked] - noise[np.arange(len(noise)), picked]
    return max(float(judged.mean()), float(means.min()))
