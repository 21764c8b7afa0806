"""Exact tests on the same images: against SciPy's binomial test, published values, and each other."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest

from hpsearch.search.proportions import wilson_interval
from hpsearch.search.significance import (
    critical_gains,
    discordant,
    gain_p_value,
    is_significant_gain,
    mcnemar_p_value,
)

counts = st.integers(0, 3000)
levels = st.sampled_from([0.5, 0.25, 0.1, 0.05, 0.03125, 0.01, 1e-3, 1e-9])


@pytest.mark.parametrize("alternative", ["two-sided", "greater"])
@given(gained=counts, lost=counts)
@settings(max_examples=60)
def test_p_values_are_those_of_the_binomial_test(alternative: str, gained: int, lost: int) -> None:
    ours = (mcnemar_p_value if alternative == "two-sided" else gain_p_value)(gained, lost)
    if gained + lost == 0:
        assert ours == 1.0  # SciPy refuses a test without any coin
        return
    scipys = binomtest(gained, gained + lost, alternative=alternative).pvalue
    assert ours == pytest.approx(scipys, rel=1e-9, abs=1e-300)


def test_p_values_are_exact() -> None:
    assert gain_p_value(5, 0) == 1 / 32
    assert mcnemar_p_value(5, 0) == 1 / 16
    assert gain_p_value(0, 5) == 1.0
    assert gain_p_value(3, 1) == 5 / 16
    assert mcnemar_p_value(7, 7) == 1.0
    assert mcnemar_p_value(0, 0) == gain_p_value(0, 0) == 1.0
    # Agresti, "Categorical Data Analysis": approval of the prime minister, 150 changed to no and 86 to yes.
    assert mcnemar_p_value(86, 150) == pytest.approx(3.716e-5, rel=1e-3)
    assert gain_p_value(1000, 0) == 2.0**-1000
    assert gain_p_value(5000, 0) == 0.0  # less than any float
    assert gain_p_value(0, 5000) == 1.0


@pytest.mark.parametrize(("gained", "lost"), [(5_300, 4_701), (5_100, 4_901), (5_001, 5_000), (7_000, 3_100)])
def test_of_more_than_ten_thousand_the_approximation_is_close(gained: int, lost: int) -> None:
    exact = min(1.0, 2 * gain_p_value(max(gained, lost), min(gained, lost)))
    assert mcnemar_p_value(gained, lost) == pytest.approx(exact, rel=0.02, abs=1e-300)


def test_a_million_discordant_images_take_no_time() -> None:
    assert mcnemar_p_value(500_000, 500_000) == 1.0
    assert mcnemar_p_value(502_000, 498_000) < 1e-4


def test_thousands_of_discordant_images_lose_no_digits() -> None:
    """The tail of many coins, summed in logarithms."""
    n, k = 9000, 4700
    logs = [math.lgamma(n + 1) - math.lgamma(j + 1) - math.lgamma(n - j + 1) for j in range(k, n + 1)]
    expected = math.fsum(math.exp(value - n * math.log(2)) for value in logs)
    assert gain_p_value(k, n - k) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize(("gained", "lost"), [(-1, 3), (3, -1)])
def test_negative_counts_are_refused(gained: int, lost: int) -> None:
    with pytest.raises(ValueError, match="counted from 0"):
        mcnemar_p_value(gained, lost)


@given(level=levels, n=st.integers(0, 400))
def test_the_table_agrees_with_the_p_values(level: float, n: int) -> None:
    fewest = int(critical_gains(400, level)[n])
    assert 1 <= fewest <= n + 1
    if fewest <= n:
        assert gain_p_value(fewest, n - fewest) <= level
    if fewest >= 1 and fewest - 1 <= n:
        assert gain_p_value(fewest - 1, n - fewest + 1) > level


def test_a_p_value_of_just_the_level_is_significant() -> None:
    assert critical_gains(6, 1 / 32).tolist() == [1, 2, 3, 4, 5, 5, 6]
    assert critical_gains(3, 0.5).tolist() == [1, 1, 2, 2]


@given(level=levels, short=st.integers(0, 300))
def test_a_longer_table_begins_with_the_shorter_one(level: float, short: int) -> None:
    assert np.array_equal(critical_gains(short, level), critical_gains(600, level)[: short + 1])


def test_the_table_of_a_whole_validation_set() -> None:
    table = critical_gains(10_000, 0.05)
    assert len(table) == 10_001
    assert table[10_000] == 5083  # the normal approximation: 5000 + 1.645 * 50 + 0.5
    assert gain_p_value(5083, 4917) <= 0.05
    assert gain_p_value(5082, 4918) > 0.05
    with pytest.raises(ValueError, match="read-only"):
        table[0] = 0


@given(gained=counts, lost=counts, level=levels)
@settings(max_examples=50, deadline=None)  # the first of each size makes its table
def test_a_gain_is_significant_by_its_p_value(gained: int, lost: int, level: float) -> None:
    p_value = gain_p_value(gained, lost)
    assert is_significant_gain(gained, lost, level) == (p_value <= level)


@pytest.mark.parametrize("level", [0.0, 1.0, -0.1, math.nan])
def test_a_level_outside_of_0_to_1_is_refused(level: float) -> None:
    with pytest.raises(ValueError, match="significance level"):
        critical_gains(10, level)


@given(pairs=st.lists(st.tuples(st.booleans(), st.booleans()), max_size=70))
def test_discordant_images_are_counted_in_packed_bits(pairs: list[tuple[bool, bool]]) -> None:
    """Whatever the number of images: the last byte's rest is zero in both."""
    a, b = (np.array([pair[i] for pair in pairs], dtype=bool) for i in range(2))
    only_a, only_b = discordant(np.packbits(a).tobytes(), np.packbits(b).tobytes())
    assert (only_a, only_b) == (sum(x and not y for x, y in pairs), sum(y and not x for x, y in pairs))


def test_bits_of_different_sets_are_refused() -> None:
    with pytest.raises(ValueError, match="1 and 2 bytes"):
        discordant(b"\x00", b"\x00\x00")


@given(num_images=st.integers(1, 20_000), fraction=st.floats(0, 1), confidence=st.sampled_from([0.9, 0.95, 0.99]))
def test_wilsons_interval_is_scipys(num_images: int, fraction: float, confidence: float) -> None:
    num_errors = round(fraction * num_images)
    low, high = wilson_interval(num_errors, num_images, confidence)
    expected = binomtest(num_errors, num_images).proportion_ci(confidence, method="wilson")
    assert (low, high) == pytest.approx((expected.low, expected.high), abs=1e-12)
    assert 0 <= low <= num_errors / num_images <= high <= 1


def test_wilsons_interval_of_no_error_and_of_errors_only() -> None:
    """Published: 0 of 10 gives 0 to 0.278 at 95 % (Newcombe 1998 and many others)."""
    assert wilson_interval(0, 10) == (0.0, pytest.approx(0.2775, abs=1e-4))
    assert wilson_interval(10, 10) == (pytest.approx(0.7225, abs=1e-4), 1.0)


@pytest.mark.parametrize("numbers", [(1, 0), (-1, 10), (11, 10)])
def test_impossible_counts_have_no_interval(numbers: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="errors among"):
        wilson_interval(*numbers)


@pytest.mark.parametrize("confidence", [0.0, 1.0])
def test_a_confidence_outside_of_0_to_1_is_refused(confidence: float) -> None:
    with pytest.raises(ValueError, match="confidence"):
        wilson_interval(1, 10, confidence)
