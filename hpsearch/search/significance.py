"""Exact tests whether one trial classifies significantly more images correctly than another, on the same images.

Two trials are evaluated on the same validation images, so only the images on which exactly one of them is right
distinguish them (the discordant images). If neither trial is better, each discordant image favours one or the other
with equal probability, like a coin. Two error rates that are compared without this pairing (proportions.py) must be
much farther apart to differ significantly.

The correctly classified images of a trial are represented as packed bits: `numpy.packbits` of N truth values, 1 where
the trial is right, with the last byte padded with zeros.
Sources: McNemar, "Note on the sampling error of the difference between correlated proportions or percentages",
Psychometrika 12 (1947).
"""

from __future__ import annotations

import math
from fractions import Fraction
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

NUM_FLIPS = 1999
_MOST_EXACT = 10_000
_FLIPS_AT_ONCE = 250  # 2.5 MB for 10,000 examples


def discordant(bits_a: bytes, bits_b: bytes) -> tuple[int, int]:
    """Count the images on which only a is right, and those on which only b is right.

    Args:
        bits_a, bits_b: packed bits, of the same images in the same order.
    Raises:
        ValueError: they have different lengths.
    """
    if len(bits_a) != len(bits_b):
        raise ValueError(f"bits of {len(bits_a)} and {len(bits_b)} bytes are not of the same images")
    a, b = int.from_bytes(bits_a, "big"), int.from_bytes(bits_b, "big")
    return (a & ~b).bit_count(), (b & ~a).bit_count()


def mcnemar_p_value(gained: int, lost: int) -> float:
    """The two-sided p-value: twice the smaller one-sided one (`gain_p_value`), at most 1.

    Of more than 10,000 discordant images, the normal approximation with its continuity correction: integer sums take
    time with the square of their number, and the two differ by less than 1 % of the p-value.

    Args:
        gained: number of images on which only one of the two trials is right.
        lost: number of images on which only the other one is right.
    Raises:
        ValueError: a number is negative.
    """
    if gained + lost > _MOST_EXACT and min(gained, lost) >= 0:
        return min(1.0, math.erfc(max(0.0, abs(gained - lost) - 1.0) / math.sqrt(2.0 * (gained + lost))))
    return min(1.0, 2.0 * gain_p_value(max(gained, lost), min(gained, lost)))


def gain_p_value(gained: int, lost: int) -> float:
    """The probability of at least that many gains among the discordant images, if neither trial is better.

    Exact, then rounded once: integer sums are exact whatever their size.

    Raises:
        ValueError: a number is negative.
    Source: McNemar (1947); the exact form is the sign test on the discordant images.
    """
    if gained < 0 or lost < 0:
        raise ValueError(f"images are counted from 0, got {gained} gained and {lost} lost")
    num_coins = gained + lost
    is_upper = gained > lost
    shorter = range(gained, num_coins + 1) if is_upper else range(gained)
    ways = math.comb(num_coins, shorter.start)
    num_ways = 0
    for heads in shorter:
        num_ways += ways
        ways = ways * (num_coins - heads) // (heads + 1)
    total = 1 << num_coins
    # Python rounds the quotient of two integers correctly, even if neither fits into a float.
    return (num_ways if is_upper else total - num_ways) / total


def sign_flip_p_value(differences: NDArray[np.float64]) -> float:
    """The two-sided p-value that the mean of paired differences is 0, by a test that flips their signs at random.

    If neither of two trials is better, each example's difference could as well have the other sign. The p-value is the
    share of `NUM_FLIPS` random signs, and of the signs as they are, that give a mean at least as far from 0. The signs
    depend on the number of differences alone, so that every process finds the same.

    Args:
        differences: [N] losses of one trial minus those of the other, on the same examples.
    Source: Fisher, "The design of experiments" (1935), chapter 3.
    """
    differences = differences[differences != 0]
    if not len(differences):
        return 1.0
    found = abs(float(differences.sum())) * (1 - 1e-12)  # equal sums in another order differ by rounding
    words = np.random.PCG64(np.random.SeedSequence(len(differences)))
    num_as_far = 1
    for start in range(0, NUM_FLIPS, _FLIPS_AT_ONCE):
        number = min(_FLIPS_AT_ONCE, NUM_FLIPS - start)
        bits = words.random_raw(number * -(-len(differences) // 64)).reshape(number, -1).view(np.uint8)
        is_kept = np.unpackbits(bits, axis=1, count=len(differences))
        sums = 2.0 * (is_kept @ differences) - differences.sum()
        num_as_far += int((np.abs(sums) >= found).sum())
    return num_as_far / (NUM_FLIPS + 1)


@lru_cache(maxsize=16)
def critical_gains(num_max: int, level: float) -> NDArray[np.int64]:
    """For each number of discordant images, the smallest number of gains that is significant, one-sided.

    Args:
        num_max: the largest number of discordant images.
        level: in (0, 1); a p-value of at most this is significant.
    Returns:
        [num_max + 1], read-only. If not even n gains of n images are significant, entry n is n + 1, which cannot be
        reached. Entries do not depend on `num_max`.
    Raises:
        ValueError: the level is not in (0, 1).
    """
    if not 0 < level < 1:
        raise ValueError(f"a significance level lies in (0, 1), got {level}")
    exact = Fraction(level)
    critical = np.empty(num_max + 1, dtype=np.int64)
    # For n coins: `num_ways` is the number of ways to get at least `gains` heads, `edge` to get exactly `gains` - 1.
    # From n to n + 1 the smallest significant number grows by 0 or 1, so each entry takes only a few operations.
    gains, num_ways, edge = 1, 0, 1
    for n in range(num_max + 1):
        critical[n] = gains
        # One more coin: at least `gains` heads of n + 1 are at least `gains` of n, or `gains` - 1 of n and a head.
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
    # Round the size up, so that few tables are computed.
    table = critical_gains(max(1024, 1 << num_discordant.bit_length()), level)
    return gained >= int(table[num_discordant])
