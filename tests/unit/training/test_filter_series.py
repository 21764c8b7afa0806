"""The series of a trial's filters: regular, bounded in size, and read back as it was written."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpsearch.training.filter_series import MOST_MOMENTS, FilterCopy, FilterSeries, evenly_chosen, is_due


def copy(value: int = 1) -> FilterCopy:
    codes = np.full((2, 3, 4), value % 127, dtype=np.int8)
    return FilterCopy(units=np.array([0, 5], dtype=np.int32), codes=codes, scales=np.full(2, 0.5, dtype=np.float32))


def series_of(num_epochs: int, every: int) -> FilterSeries:
    series = FilterSeries()
    for epoch in range(1, num_epochs + 1):
        if is_due(epoch, every) or epoch == num_epochs:
            series = series.added(epoch, copy(epoch), every)
    return series


@given(num_epochs=st.integers(1, 2000), every=st.integers(1, 40))
def test_a_series_has_the_multiples_of_one_interval_and_the_last_epoch(num_epochs: int, every: int) -> None:
    """The interval is the requested one, unless the trial is too long for it: then it is doubled as often as needed."""
    epochs = series_of(num_epochs, every).epochs
    interval = every
    while num_epochs > interval * MOST_MOMENTS:
        interval *= 2
    assert epochs == tuple(sorted({*range(interval, num_epochs + 1, interval), num_epochs}))
    assert len(epochs) <= MOST_MOMENTS + 1


def test_another_interval_leaves_the_earlier_moments_of_a_short_series_alone() -> None:
    series = series_of(10, 5).added(12, copy(), 4)
    assert series.epochs == (5, 10, 12)


def test_a_series_is_read_back_as_it_was_written() -> None:
    series = series_of(7, 2)
    again = FilterSeries.from_arrays(series.arrays())
    assert again.epochs == series.epochs == (2, 4, 6, 7)
    np.testing.assert_array_equal(again.codes, series.codes)
    np.testing.assert_array_equal(again.weights, series.weights)
    np.testing.assert_array_equal(again.units, [0, 5])
    assert again.weights.shape == (4, 2, 3, 4)
    assert FilterSeries.from_arrays(FilterSeries().arrays()).epochs == ()


@pytest.mark.parametrize("name", ["epochs", "units", "filters", "scales"])
def test_other_arrays_are_refused(name: str) -> None:
    arrays = series_of(4, 2).arrays()
    for wrong in ({**arrays, name: arrays[name][:1]}, {**arrays, name: arrays[name].astype(np.float64)}):
        with pytest.raises(ValueError, match=r"shapes|types"):
            FilterSeries.from_arrays(wrong)
    del arrays[name]
    with pytest.raises(ValueError, match=name):
        FilterSeries.from_arrays(arrays)


@given(number=st.integers(1, 200), most=st.integers(2, 10))
def test_moments_are_chosen_evenly_with_both_ends(number: int, most: int) -> None:
    chosen = evenly_chosen(range(number), most)
    assert chosen == sorted(set(chosen))
    assert (chosen[0], chosen[-1], len(chosen)) == (0, number - 1, min(number, most))
    assert evenly_chosen(range(number), 1) == [number - 1]
