"""What an error rate over a number of images says: its confidence interval, and whether two rates differ.

Source: Wilson, "Probable inference, the law of succession, and statistical inference", Journal of the American
Statistical Association 22 (1927).
"""

from __future__ import annotations

import math
from statistics import NormalDist

from hpsearch.metric import critical_t

SIGNIFICANCE_LEVEL = 0.05  # two-sided: below it, two points of a coarse-to-fine search differ


def wilson_interval(
    num_errors: float, num_images: float, confidence: float = 0.95, *, critical: float | None = None
) -> tuple[float, float]:
    """The Wilson confidence interval of an error rate, in [0, 1], given `num_errors` errors in `num_images` images.

    The numbers may be fractions: those of independent images that say as much as images in groups.

    Unlike the usual interval of plus or minus some standard errors it is also valid for rates near 0 and for no errors.

    Args:
        critical: number of standard errors, in place of the normal distribution's for this confidence.
    Raises:
        ValueError: no images, more errors than images, or a confidence outside (0, 1).
    Source: Wilson (1927).
    """
    if not 0 <= num_errors <= num_images or num_images < 1:
        raise ValueError(f"{num_errors} errors among {num_images} images")
    if not 0 < confidence < 1:
        raise ValueError(f"a confidence lies in (0, 1), got {confidence}")
    z = NormalDist().inv_cdf(0.5 + confidence / 2) if critical is None else critical
    rate, shrinkage = num_errors / num_images, 1 + z * z / num_images
    middle = (rate + z * z / (2 * num_images)) / shrinkage
    half = z / shrinkage * math.sqrt(rate * (1 - rate) / num_images + z * z / (4 * num_images**2))
    # At the ends rounding must not take the result out of [0, 1].
    low = 0.0 if num_errors == 0 else middle - half
    high = 1.0 if num_errors == num_images else middle + half
    return low, high


def grouped_interval(rate: float, variance: float, *, num_groups: int, num_rows: int) -> tuple[float, float]:
    """The Wilson interval of an error rate over rows that come in groups.

    The number of images is that of independent ones that would give the rate this variance. A few groups give a poor
    estimate of it, so that the interval has Student's t with one degree of freedom less than there are groups.

    Args:
        variance: of the rate, over other groups; 0 or NaN if it cannot be estimated: each group then counts as one.
    """
    spread = rate * (1 - rate)
    if not (spread > 0 and variance > 0):
        return wilson_interval(rate * num_groups, num_groups)
    # It can be less than one image, if a few groups of very different sizes vary much.
    number = max(1.0, min(float(num_rows), spread / variance))
    return wilson_interval(rate * number, number, critical=critical_t(num_groups - 1))


def proportions_differ(error_one: float, error_other: float, num_images: int) -> bool:
    """Whether two error rates differ, each over images of its own: the two-sided z-test of two proportions."""
    pooled = (error_one + error_other) / 2
    deviation = math.sqrt(2 * pooled * (1 - pooled) / num_images)
    return abs(error_one - error_other) > NormalDist().inv_cdf(1 - SIGNIFICANCE_LEVEL / 2) * deviation
