"""Whether one trial is right on more images than another by more than chance: exact tests on the same images.

Two trials are judged on the same validation images, so only those images tell them apart on which exactly one of
them is right (the discordant ones). If neither were better, each of these would fall to either of them as a coin
does. Two error rates that are compared without this pairing must lie much farther apart to differ significantly.

Which images a trial is right on travels as packed bits: `numpy.packbits` of N truth values, 1 where it is right, the
last byte filled up with zeros.
Sources: McNemar, "Note on the sampling error of the difference between correlated proportions or percentages",
Psychometrika 12 (1947); Wilson, "Probable inference, the law of succession, and statistical inference", Journal of
the American Statistical Association 22 (1927).
"""

from __future__ import annotations

import math
from fractions import Fraction
from functools import lru_cache
from statistics import NormalDist
from typing import Literal

import numpy as np
from numpy.typing import NDArray

SIGNIFICANCE_LEVEL = 0.05  # two-sided: below it, two points of a coarse-to-fine search differ

Alternative = Literal["two-sided", "greater", "less"]


def discordant(bits_a: bytes, bits_b: bytes) -> tuple[int, int]:
    """Images on which only a is right, and on which only b is.

    Args:
        bits_a, bits_b: packed, of the same images in the same order.
    Raises:
        ValueError: they are of different lengths.
    """
    if len(bits_a) != len(bits_b):
        raise ValueError(f"bits of {len(bits_a)} and {len(bits_b)} bytes are not of the same images")
    a, b = int.from_bytes(bits_a, "big"), int.from_bytes(bits_b, "big")
    return (a & ~b).bit_count(), (b & ~a).bit_count()


def mcnemar_p_value(gained: int, lost: int, *, alternative: Alternative = "two-sided") -> float:
    """How likely so many gains, or more extreme numbers, are if neither trial is better. Exact, then rounded once.

    Args:
        gained: images on which only the trial in question is right.
        lost: images on which only the other one is.
        alternative: "greater": the trial in question is the better one; "less": the worse one; "two-sided": they
            differ (twice the smaller of both, at most 1).
    Raises:
        ValueError: a number is negative.
    Source: McNemar (1947); the exact form is the sign test on the discordant images.
    """
    if gained < 0 or lost < 0:
        raise ValueError(f"images are counted from 0, got {gained} gained and {lost} lost")
    match alternative:
        case "greater":
            return _tail(gained + lost, gained)
        case "less":
            return _tail(gained + lost, lost)
        case "two-sided":
            return min(1.0, 2.0 * _tail(gained + lost, max(gained, lost)))


def _tail(num_coins: int, least: int) -> float:
    """P(at least so many heads), to the last bit: sums of whole numbers know no rounding, whatever their size."""
    is_upper = 2 * least > num_coins
    shorter = range(least, num_coins + 1) if is_upper else range(least)
    ways = math.comb(num_coins, shorter.start)
    num_ways = 0
    for heads in shorter:
        num_ways += ways
        ways = ways * (num_coins - heads) // (heads + 1)
    total = 1 << num_coins
    # Python rounds a quotient of two whole numbers correctly, even where neither would fit into a float.
    return (num_ways if is_upper else total - num_ways) / total


@lru_cache(maxsize=16)
def critical_gains(num_max: int, level: float) -> NDArray[np.int64]:
    """For each number of discordant images the fewest gains that are significant, one-sided.

    Args:
        num_max: the greatest number of discordant images.
        level: in (0, 1); significant is a p-value of at most this.
    Returns:
        [num_max + 1], read-only. Entry n is n + 1, which no gains can reach, where not even n of n are significant.
        It does not depend on `num_max`.
    Raises:
        ValueError: the level is not in (0, 1).
    """
    if not 0 < level < 1:
        raise ValueError(f"a significance level lies in (0, 1), got {level}")
    exact = Fraction(level)
    critical = np.empty(num_max + 1, dtype=np.int64)
    # Of n coins: `num_ways` of at least `gains` heads; `edge` of exactly `gains` - 1. From n to n + 1 the fewest gains
    # grow by 0 or 1, so that the whole table takes a few operations per entry.
    gains, num_ways, edge = 1, 0, 1
    for n in range(num_max + 1):
        critical[n] = gains
        # One coin more: at least `gains` heads of n + 1 are at least `gains` of n, or `gains` - 1 and a head.
        num_ways = 2 * num_ways + edge
        edge = edge * (n + 1) // (n + 2 - gains)  # C(n + 1, gains - 1)
        if num_ways * exact.denominator > exact.numerator << (n + 1):
            num_of_gains = edge * (n + 2 - gains) // gains  # C(n + 1, gains)
            num_ways, edge, gains = num_ways - num_of_gains, num_of_gains, gains + 1
    critical.flags.writeable = False
    return critical


def is_significant_gain(gained: int, lost: int, level: float) -> bool:
    """Whether the one-sided p-value of the gains is at most `level`, by the table of `critical_gains`."""
    num_discordant = gained + lost
    # Tables of few sizes serve all numbers.
    table = critical_gains(max(1024, 1 << num_discordant.bit_length()), level)
    return gained >= int(table[num_discordant])


def wilson_interval(num_errors: int, num_images: int, confidence: float = 0.95) -> tuple[float, float]:
    """The interval of an error rate of which `num_errors` in `num_images` were seen, in [0, 1].

    Unlike the usual one of plus or minus so many standard errors it holds for rates near 0 as well, and for none.

    Raises:
        ValueError: no images, more errors than images, or a confidence outside (0, 1).
    Source: Wilson (1927).
    """
    if not 0 <= num_errors <= num_images or num_images < 1:
        raise ValueError(f"{num_errors} errors among {num_images} images")
    if not 0 < confidence < 1:
        raise ValueError(f"a confidence lies in (0, 1), got {confidence}")
    z = NormalDist().inv_cdf(0.5 + confidence / 2)
    rate, shrinkage = num_errors / num_images, 1 + z * z / num_images
    middle = (rate + z * z / (2 * num_images)) / shrinkage
    half = z / shrinkage * math.sqrt(rate * (1 - rate) / num_images + z * z / (4 * num_images**2))
    # At the ends the rounding of a difference that is 0 must not leave [0, 1].
    low = 0.0 if num_errors == 0 else middle - half
    high = 1.0 if num_errors == num_images else middle + half
    return low, high


def proportions_differ(error_one: float, error_other: float, num_images: int) -> bool:
    """Whether two error rates differ, each over images of its own: the two-sided z-test of two proportions."""
    pooled = (error_one + error_other) / 2
    deviation = math.sqrt(2 * pooled * (1 - pooled) / num_images)
    return abs(error_one - error_other) > NormalDist().inv_cdf(1 - SIGNIFICANCE_LEVEL / 2) * deviation
