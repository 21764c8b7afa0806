"""The sign-flip test: exact where it can be counted, as often significant by chance as it says, the same everywhere."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpsearch.search.significance import NUM_FLIPS, sign_flip_p_value


def exact_p_value(differences: np.ndarray) -> float:
    sums = [abs(np.dot(signs, differences)) for signs in itertools.product((1, -1), repeat=len(differences))]
    return float(np.mean(np.array(sums) >= abs(differences.sum()) - 1e-9))


@given(st.lists(st.integers(-20, 20).filter(bool), min_size=1, max_size=10))
def test_the_p_value_is_that_of_all_signs(differences: list[int]) -> None:
    values = np.array(differences, dtype=float)
    expected = exact_p_value(values)
    assert sign_flip_p_value(values) == pytest.approx(expected, abs=5 * np.sqrt(0.25 / NUM_FLIPS))


def test_equal_losses_do_not_differ() -> None:
    assert sign_flip_p_value(np.zeros(100)) == 1.0
    assert sign_flip_p_value(np.array([])) == 1.0


def test_examples_without_a_difference_and_the_sign_change_nothing() -> None:
    differences = np.random.default_rng(0).normal(0.1, 1, 300)
    p_value = sign_flip_p_value(differences)
    assert sign_flip_p_value(np.concatenate([differences, np.zeros(50)])) == p_value
    assert sign_flip_p_value(-differences) == pytest.approx(p_value, abs=0.03)
    assert sign_flip_p_value(differences) == p_value


def test_five_percent_of_equal_pairs_are_called_different() -> None:
    random = np.random.default_rng(1)
    called = sum(sign_flip_p_value(random.standard_t(3, 60)) < 0.05 for _ in range(400))
    assert 8 <= called <= 33  # 20 are expected; the ends have a probability of about 0.002


def test_a_clear_difference_among_many_examples_is_found() -> None:
    assert sign_flip_p_value(np.random.default_rng(2).normal(0.1, 1, 10_000)) == 1 / (NUM_FLIPS + 1)
