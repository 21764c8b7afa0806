"""Losses against numbers worked out by hand, central differences and autograd."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from benchmarks.reference_loop import l1_norm, regularised_loss, squared_l2_norm
from hpsearch.study.settings import ModelSettings, TrainingSettings
from hpsearch.training.lanes.stack import LaneStack
from hpsearch.training.losses import (
    LanePenalties,
    is_correct,
    mean_loss,
    sum_loss,
)
from hpsearch.training.networks.build import build_network

CPU = torch.device("cpu")
# p = (1/2, 1/4, 1/4), (1/6, 1/3, 1/2), (1/3, 1/3, 1/3)
LOGITS = torch.tensor([[2.0, 1.0, 1.0], [1.0, 2.0, 3.0], [5.0, 5.0, 5.0]], dtype=torch.float64).log()
LABELS = torch.tensor([0, 0, 0])


def random_lanes(num_lanes: int, batch: int, classes: int, seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(num_lanes, batch, classes, dtype=torch.float64, generator=generator)
    return logits, torch.randint(0, classes, (num_lanes, batch), generator=generator)


def test_nll_by_hand() -> None:
    total = math.log(2) + math.log(6) + math.log(3)

    assert float(sum_loss(LOGITS, LABELS)) == pytest.approx(total, rel=1e-15)
    assert float(mean_loss(LOGITS, LABELS)) == pytest.approx(total / 3, rel=1e-15)


def test_nll_of_guessing_among_ten_is_ln_10() -> None:
    assert float(mean_loss(torch.zeros(4, 10), torch.arange(4))) == pytest.approx(2.302585, rel=1e-6)


def test_nll_of_huge_scores_does_not_overflow() -> None:
    logits = torch.tensor([[1e30, 0.0], [0.0, 1e30]], dtype=torch.float32)

    assert float(mean_loss(logits, torch.tensor([0, 1]))) == 0.0
    assert float(mean_loss(logits, torch.tensor([1, 0]))) == pytest.approx(1e30)


def test_correct_images_by_hand() -> None:
    assert is_correct(LOGITS, LABELS).tolist() == [True, False, True]  # of the third row's equals the first is taken


def test_ties_are_broken_as_by_numpy() -> None:
    logits = torch.randint(0, 2, (500, 6), generator=torch.Generator().manual_seed(0)).float()
    labels = torch.zeros(500, dtype=torch.int64)

    np.testing.assert_array_equal(is_correct(logits, labels), logits.numpy().argmax(axis=1) == 0)


@given(
    num_lanes=st.integers(1, 4),
    batch=st.integers(1, 6),
    classes=st.integers(2, 5),
    seed=st.integers(0, 10**6),
    is_shared=st.booleans(),
)
def test_each_lanes_loss_is_the_single_trials(
    num_lanes: int, batch: int, classes: int, seed: int, is_shared: bool
) -> None:
    logits, own_labels = random_lanes(num_lanes, batch, classes, seed)
    labels = own_labels[0] if is_shared else own_labels

    for loss in (mean_loss, sum_loss):
        of_lanes = loss(logits, labels)
        assert of_lanes.shape == (num_lanes,)
        for lane in range(num_lanes):
            alone = loss(logits[lane], labels if is_shared else labels[lane])
            torch.testing.assert_close(of_lanes[lane], alone, rtol=1e-14, atol=0)


def test_norms_by_hand() -> None:
    weights = [torch.tensor([[1.0, -2.0], [3.0, 0.0]]), torch.tensor([[-0.5]])]

    assert float(l1_norm(weights)) == 6.5
    assert float(squared_l2_norm(weights)) == 14.25


def test_regularised_loss_by_hand() -> None:
    weights = [torch.tensor([[1.0, -2.0], [3.0, 0.0]]), torch.tensor([[-0.5]])]

    loss = regularised_loss(torch.tensor(2.0), weights, lambda_1=0.1, lambda_2=0.01)

    assert float(loss) == pytest.approx(2.0 + 0.65 + 0.1425)


def test_lambdas_of_zero_leave_the_loss_as_it_is() -> None:
    nll = torch.tensor(2.0)

    assert regularised_loss(nll, [torch.ones(2)], lambda_1=0.0, lambda_2=0.0) is nll


def penalties(*lambdas: tuple[float, float]) -> LanePenalties:
    stack = LaneStack(device=CPU)
    stack.set_rates([TrainingSettings(lambda_1=one, lambda_2=two) for one, two in lambdas], [1.0] * len(lambdas))
    return stack.penalties


@pytest.mark.parametrize("lambdas", [[(0.0, 0.0)] * 3, [(0.1, 0.0), (0.0, 0.2), (0.3, 0.4)]])
def test_each_lanes_penalty_gradient_is_autograds_of_the_single_trials_loss(lambdas: list[tuple[float, float]]) -> None:
    weight = torch.randn(3, 4, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    weight[:, 0, 0] = 0.0  # where |w| has no derivative
    weight.requires_grad_()
    scale = torch.tensor([-0.5, 1.0, 2.0], dtype=torch.float64)
    zero = torch.zeros((), dtype=torch.float64)
    terms = penalties(*lambdas)
    losses = [
        regularised_loss(zero, [weight[lane]], lambda_1=one, lambda_2=two) for lane, (one, two) in enumerate(lambdas)
    ]
    total = (torch.stack(losses) * scale).sum()
    expected = torch.autograd.grad(total, weight)[0] if total.requires_grad else torch.zeros_like(weight)

    target = torch.ones_like(weight)
    with torch.no_grad():
        terms.scaled(scale, torch.float64).add_gradient_(target, weight)

    torch.testing.assert_close(target, 1.0 + expected, rtol=1e-14, atol=1e-14)


def test_penalty_gradient_may_be_added_to_the_weight_itself() -> None:
    """Both terms are those of the old weight, even if the step is so long that its sign changes."""
    for rate in (0.1, 3.0):
        weight = torch.tensor([[2.0, -4.0]], dtype=torch.float64)
        scale = torch.tensor([-rate], dtype=torch.float64)

        penalties((0.5, 0.25)).scaled(scale, torch.float64).add_gradient_(weight, weight)

        # w - rate * (0.5 * sign(w) + 2 * 0.25 * w)
        assert weight.tolist()[0] == pytest.approx([2 - rate * (0.5 + 1.0), -4 + rate * (0.5 + 2.0)])


@pytest.mark.parametrize("family", ["logistic", "mlp", "cnn"])
def test_gradient_of_the_regularised_loss_agrees_with_central_differences(family: str) -> None:
    """FAU's gradient check: double precision, few images, relative error."""
    network = build_network(ModelSettings(family=family, kernels=(2, 3), hidden_units=5), (16, 16), 4)
    generator = torch.Generator().manual_seed(2)
    parameters = {
        name: (0.3 * torch.randn(p.shape, dtype=torch.float64, generator=generator)).requires_grad_()
        for name, p in network.parameter_shapes.items()
    }
    images = torch.rand(6, 256, dtype=torch.float64, generator=generator)
    labels = torch.randint(0, 4, (6,), generator=generator)

    def loss() -> Tensor:
        weights = [parameters[name] for name in network.weight_names]
        nll = mean_loss(network.logits(parameters, images), labels)
        return regularised_loss(nll, weights, lambda_1=1e-3, lambda_2=1e-2)

    gradients = dict(zip(parameters, torch.autograd.grad(loss(), list(parameters.values())), strict=True))
    step = 1e-5
    for name, parameter in parameters.items():
        flat, gradient = parameter.detach().view(-1), gradients[name].reshape(-1)
        for index in torch.randint(0, len(flat), (5,), generator=generator).tolist():
            value = float(flat[index])
            flat[index] = value + step
            above = float(loss().detach())
            flat[index] = value - step
            below = float(loss().detach())
            flat[index] = value
            assert (above - below) / (2 * step) == pytest.approx(float(gradient[index]), rel=1e-5, abs=1e-9)
