"""Weights of classes: as scikit-learn balances them, and of whatever scale."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from sklearn.utils.class_weight import compute_class_weight

from hpsearch.errors import InputError
from hpsearch.training.class_weights import check_class_weights, class_weights_of
from hpsearch.training.losses import mean_loss


def test_balanced_weights_are_those_of_scikit_learn() -> None:
    labels = np.repeat([0, 1, 2], [70, 25, 5])
    weights = class_weights_of("balanced", (70, 25, 5))
    assert weights is not None
    assert weights.tolist() == pytest.approx(compute_class_weight("balanced", classes=np.unique(labels), y=labels))


def test_a_class_without_examples_has_no_weight() -> None:
    weights = class_weights_of("balanced", (30, 0, 10))
    assert weights is not None
    assert weights.tolist() == pytest.approx([40 / (2 * 30), 0, 40 / (2 * 10)])


def test_only_the_ratios_of_given_weights_matter() -> None:
    first, second = (class_weights_of(weights, (30, 10)) for weights in ((1.0, 3.0), (10.0, 30.0)))
    assert first is not None
    assert second is not None
    assert first.tolist() == pytest.approx(second.tolist())
    assert first[1] / first[0] == pytest.approx(3)
    assert (30 * first[0] + 10 * first[1]) / 40 == pytest.approx(1)


def test_without_weights_there_are_none() -> None:
    assert class_weights_of("none", (30, 10)) is None
    assert class_weights_of("none", ()) is None


def test_weighted_guessing_costs_ln_of_classes_and_the_whole_set_has_torchs_mean() -> None:
    labels = torch.from_numpy(np.repeat([0, 1, 2], [7, 2, 3]))
    weights = class_weights_of((1.0, 9.0, 0.5), (7, 2, 3))
    assert weights is not None
    assert float(mean_loss(torch.zeros(12, 3).double(), labels, weights)) == pytest.approx(math.log(3))
    scores = torch.randn(12, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    expected = torch.nn.functional.cross_entropy(scores, labels, weight=weights)
    assert float(mean_loss(scores, labels, weights)) == pytest.approx(float(expected))


def test_weights_that_do_not_suit_the_data_are_refused() -> None:
    with pytest.raises(InputError, match="weighs classes, but the target is a number") as error:
        check_class_weights("balanced", 0)
    assert "leave out class_weights" in str(error.value.hint)
    with pytest.raises(InputError, match="has 2 weights, but there are 3 classes"):
        check_class_weights((1.0, 2.0), 3)
    check_class_weights("none", 0)
