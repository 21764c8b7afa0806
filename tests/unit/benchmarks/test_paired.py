"""The comparison of two sides on the same splits."""

from __future__ import annotations

import math

import pytest

from benchmarks.paired import PairedDifference


def test_the_interval_is_students_over_the_differences_of_the_splits() -> None:
    difference = PairedDifference.of([11.0, 19.0, 33.0], [10.0, 20.0, 30.0])
    # Differences 1, -1, 3: mean 1, deviation 2; the quantile of t with two degrees of freedom is 4.303.
    assert difference.mean == pytest.approx(1.0)
    assert difference.half_width == pytest.approx(4.302653 * 2 / math.sqrt(3), rel=1e-5)
    assert difference.relative == pytest.approx([value / 20 for value in (1.0, 1 - 4.968275, 1 + 4.968275)], rel=1e-5)


@pytest.mark.parametrize(
    ("ours", "verdict", "is_no_worse"),
    [
        ([98.0, 97.9, 98.1], "better", True),
        ([100.5, 99.5, 100.2], "no worse", True),
        ([101.0, 101.1, 100.9], "no worse", True),  # surely worse, but by less than 2 %
        ([103.0, 103.1, 102.9], "worse", False),
        ([90.0, 110.0, 95.0], "not decided", False),
    ],
)
def test_what_an_interval_shows(ours: list[float], verdict: str, *, is_no_worse: bool) -> None:
    difference = PairedDifference.of(ours, [100.0, 100.0, 100.0])
    assert (difference.verdict, difference.is_no_worse) == (verdict, is_no_worse)
    assert difference.as_json()["verdict"] == verdict


def test_one_split_shows_nothing() -> None:
    difference = PairedDifference.of([1.0], [100.0])
    assert (difference.verdict, difference.is_no_worse) == ("one split shows nothing", False)
