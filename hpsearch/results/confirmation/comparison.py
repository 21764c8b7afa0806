"""Compare configurations by their models' losses on each validation image, such as whether it is misclassified.

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
Groups of images may be few: if they are the units, z is Student's t with one degree of freedom less than groups, and
Bonferroni's for all pairs. The third variance is then not subtracted: with few groups the difference would often be 0
or less, just where the second variance is too small by chance.
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

The values of programs come without examples (`compare_values`). Then the seeds are the units: the interval of a
difference is that of a paired t test over the seeds, with the same simultaneous t, and says nothing about other data.

The module works on arrays only: it uses no database, study or file.
Sources: Banerjee, Sankhya 22 (1960); Owen, Annals of Applied Statistics 1 (2007), on two-way resampling; Tukey's
range; Oliveira, Lei and Tibshirani, "coupled bootstrap" (2021), on the winner's optimism; Wilson, Journal of the
American Statistical Association 22 (1927); Zou and Donner, Statistics in Medicine 27 (2008).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
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
    """Compare configurations by the images that their models classify correctly (`compare_losses`).

    Args:
        correct: [configurations, seeds, images]: whether the model of this configuration and seed classifies the
            image correctly.
    Raises:
        ValueError: as `compare_losses`.
    """
    return compare_losses(~correct)


def compare_losses(
    losses: NDArray[np.bool_] | NDArray[np.floating], *, is_share: bool = False, are_groups: bool = False
) -> Comparison:
    """Compare configurations that were trained with the same seeds and evaluated on the same images.

    The result is deterministic, bit for bit.

    Args:
        losses: [configurations, seeds, images]: the image's part of the loss; truth values: it is misclassified, so
            that a mean is a share, and its interval Wilson's. With a single seed the influence of seeds is unknown,
            and the intervals describe the uncertainty from the images alone. With a single image that of images is
            unknown: there are no intervals, and all configurations are tied.
        is_share: the loss is a share although the parts are numbers: those of groups of images.
        are_groups: the images are groups of images, which may be few. A difference that is the same in all groups has
            no interval, and is a tie.
    Raises:
        ValueError: the array has not three axes, or fewer than 1 configuration, 1 seed or 1 image.
    """
    if losses.ndim != 3 or min(losses.shape) < 1:
        raise ValueError(f"must be [configurations, seeds, images], at least [1, 1, 1], got {list(losses.shape)}")
    num_configurations, num_seeds, num_images = losses.shape
    layout, is_share = _CrossedLayout.of(losses), is_share or losses.dtype == np.bool_
    num_groups = num_images if are_groups and num_images > 1 else None
    critical = critical_values(num_configurations, num_seeds, num_groups)
    half_widths = layout.half_widths_of_differences(critical)
    least = np.full_like(half_widths, -1.0 if num_images > 1 else np.inf)
    if num_groups is not None:
        least = max(critical.seeds, critical.images) * layout.rounding_of_differences(_rounding(losses))
        np.fill_diagonal(least, -1.0)
    intervals: Sequence[tuple[float, float] | None] = [None] * num_configurations
    if num_images > 1:
        of_mean = critical_values(1, num_seeds, num_groups)
        rounding = None if num_groups is None else _rounding(losses)
        intervals = layout.intervals_of_means(of_mean, num_images, is_share=is_share, rounding=rounding)
    return Comparison(
        means=tuple(
            MeanError(mean=float(mean), deviation=float(deviation) if num_seeds > 1 else None, interval=interval)
            for mean, deviation, interval in zip(layout.means, layout.deviations, intervals, strict=True)
        ),
        winner=int(layout.means.argmin()),
        differences=_differences(layout.means, half_widths, least),
        corrected_error=_corrected_for_optimism(layout.means, layout.covariance),
        num_seeds=num_seeds,
        num_images=num_images,
        seeds_matter=bool((losses != losses[:, :1]).any()),
    )


def compare_values(losses: NDArray[np.float64]) -> Comparison:
    """Compare configurations by one loss per seed, if nothing is known of single examples.

    The difference of two configurations is that of their losses seed by seed; its half width is t * sqrt(variance of
    these differences / S). Losses may be negative. What has no variance has no interval: with a single seed nothing
    has; otherwise the mean of a configuration whose losses are the same with all seeds, and the difference of two that
    is. Two configurations are tied if their difference has no interval.

    Args:
        losses: [configurations, seeds].
    Raises:
        ValueError: the array has not two axes, or fewer than 1 configuration or 1 seed.
    """
    if losses.ndim != 2 or losses.shape[0] < 1 or losses.shape[1] < 1:
        raise ValueError(f"must be [configurations, seeds], at least [1, 1], got {list(losses.shape)}")
    num_configurations, num_seeds = losses.shape
    layout = _CrossedLayout.of_values(losses)
    means = layout.means
    critical, of_mean = critical_values(num_configurations, num_seeds), critical_values(1, num_seeds)
    half_widths = layout.half_widths_of_differences(critical)
    halves = of_mean.seeds * np.sqrt(np.diag(layout.of_seeds))
    least = _rounding(losses)
    least_of_pairs = critical.seeds * layout.rounding_of_differences(least)
    seeds_matter = bool((losses != losses[:, :1]).any())
    if seeds_matter:
        np.fill_diagonal(least_of_pairs, -1.0)  # how far each is from itself is known
    return Comparison(
        means=tuple(
            MeanError(
                mean=mean,
                deviation=deviation if num_seeds > 1 else None,
                interval=_around(mean, half, of_mean.seeds * least),
            )
            for mean, deviation, half in zip(means.tolist(), layout.deviations.tolist(), halves.tolist(), strict=True)
        ),
        winner=int(means.argmin()),
        differences=_differences(means, half_widths, least_of_pairs),
        corrected_error=_corrected_for_optimism(means, layout.covariance),
        num_seeds=num_seeds,
        num_images=None,
        seeds_matter=seeds_matter,
    )


def _differences(means: Numbers, half_widths: Numbers, least: Numbers) -> tuple[tuple[Difference, ...], ...]:
    """The differences of all pairs; those whose half width is no more than `least`, [k, k], have no interval."""
    differences = (means[:, None] - means[None, :]).tolist()
    return tuple(
        tuple(
            Difference(value=value, interval=_around(value, half, few)) for value, half, few in zip(*row, strict=True)
        )
        for row in zip(differences, half_widths.tolist(), least.tolist(), strict=True)
    )


def _around(value: float, half: float, least: float) -> tuple[float, float] | None:
    return (value - half, value + half) if half > least else None


def _rounding(losses: NDArray[np.bool_] | NDArray[np.floating]) -> float:
    """The standard error that rounding alone may give a mean of losses which are all the same."""
    precision = np.finfo(np.float32 if losses.dtype == np.float32 else np.float64)
    return 8 * float(precision.eps) * float(np.abs(losses).max())


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
    def of(cls, losses: NDArray[np.bool_] | NDArray[np.floating]) -> _CrossedLayout:
        """Estimate means and covariances.

        Args:
            losses: [k, S, N].
        """
        k, num_seeds, num_images = losses.shape
        errors = losses.astype(np.float64)
        by_seed, by_image = errors.mean(axis=2), errors.mean(axis=1)  # [k, S], [k, N]
        means = by_seed.mean(axis=1)
        seeds = (by_seed - means[:, None]) @ (by_seed - means[:, None]).T  # sums of squares, [k, k]
        images = (by_image - means[:, None]) @ (by_image - means[:, None]).T
        flat = errors.reshape(k, -1) - means[:, None]
        # The rest of the total sum of squares; rounding can make it slightly negative.
        rest = flat @ flat.T - num_images * seeds - num_seeds * images
        seeds_freedom, images_freedom = max(num_seeds - 1, 1), max(num_images - 1, 1)
        return cls(
            means=means,
            deviations=np.sqrt(np.diag(seeds) / seeds_freedom),
            of_seeds=seeds / seeds_freedom / num_seeds,
            of_images=images / images_freedom / num_images,
            of_rest=rest / (seeds_freedom * images_freedom) / (num_seeds * num_images),
        )

    @classmethod
    def of_values(cls, losses: NDArray[np.float64]) -> _CrossedLayout:
        """Estimate means and covariances without examples, whose parts are then 0.

        Args:
            losses: [k, S].
        """
        num_seeds = losses.shape[1]
        means = losses.mean(axis=1)
        centred = losses - means[:, None]
        covariance = centred @ centred.T / max(num_seeds - 1, 1)
        nothing = np.zeros_like(covariance)
        return cls(
            means=means,
            deviations=np.sqrt(np.diag(covariance)),
            of_seeds=covariance / num_seeds,
            of_images=nothing,
            of_rest=nothing,
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
        of_images = _of_differences(self.of_images)
        images = np.maximum(of_images if critical.are_groups else of_images - of_rest, 0.0)
        widths: Numbers = np.sqrt(critical.seeds**2 * seeds.clip(0.0) + critical.images**2 * images)
        return widths

    def rounding_of_differences(self, of_losses: float) -> Numbers:
        """The standard errors that rounding alone may give differences that have no variance, [k, k].

        Args:
            of_losses: rounding of the losses (`_rounding`).
        """
        # The variance of a difference is computed from variances and a covariance, which nearly cancel out.
        variances = np.diag(self.of_seeds) + np.diag(self.of_images)
        cancelled = 64 * np.finfo(np.float64).eps * (variances[:, None] + variances[None, :])
        errors: Numbers = 2 * of_losses + np.sqrt(cancelled)
        return errors

    def intervals_of_means(
        self, critical: CriticalValues, num_images: int, *, is_share: bool, rounding: float | None = None
    ) -> list[tuple[float, float] | None]:
        """The interval of each mean by itself, k of them; None: there is nothing to estimate it from.

        Args:
            rounding: of the losses (`_rounding`), if the images are groups; None: they are not.
        """
        of_rest = np.diag(self.of_rest)
        seeds = critical.seeds**2 * np.maximum(np.diag(self.of_seeds), of_rest).clip(0.0)
        of_images = np.diag(self.of_images)
        images = of_images if critical.are_groups else np.maximum(of_images - of_rest, 0.0)
        if not is_share:
            halves = np.sqrt(seeds + critical.images**2 * images)
            least = -1.0 if rounding is None else max(critical.seeds, critical.images) * rounding
            return [
                (max(0.0, mean - half), mean + half) if half > least else None
                for mean, half in zip(self.means.tolist(), halves.tolist(), strict=True)
            ]
        # What each image counts for if their variance cannot be estimated: if all are correct, or all are wrong, or if
        # the rate is the same in all groups.
        unknown = (critical.images if rounding is None else critical_values(1, 1).images) ** 2 * (1 / num_images)
        is_known = self.means * (1 - self.means) > 0
        if rounding is not None:
            is_known &= np.diag(self.of_images) > rounding**2
        return [
            _interval_of_mean(
                float(mean),
                float(seed),
                critical.images**2 * (float(image) / (mean * (1 - mean))) if known else unknown,
            )
            for mean, seed, image, known in zip(self.means.tolist(), seeds, images, is_known.tolist(), strict=True)
        ]


def _interval_of_mean(mean: float, seeds: float, weight: float) -> tuple[float, float]:
    """The interval of a mean: on each side the root of the summed squares of the two parts' distances from the mean.

    This is Zou and Donner's rule; the images' part is Wilson's interval.

    Args:
        seeds: squared half width of the seeds' part.
        weight: z^2 / n, where z is the critical value of the images' part, and n independent images would give its
            variance.
    """
    spread = mean * (1 - mean)
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
