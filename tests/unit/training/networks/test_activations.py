"""Activations and their slopes."""

from __future__ import annotations

import math

import pytest
import torch

from hpsearch.study.registry import ACTIVATIONS
from hpsearch.study.settings import ModelSettings
from hpsearch.training.networks.activations import Activation, activation_of


def named(activation: str) -> Activation:
    return activation_of(ModelSettings(activation=activation))


@pytest.mark.parametrize(
    ("activation", "outputs"),
    [
        ("tanh", [-0.7615941559557649, 0.0, 0.7615941559557649]),
        ("sigmoid", [0.2689414213699951, 0.5, 0.7310585786300049]),
        ("relu", [0.0, 0.0, 1.0]),
    ],
)
def test_known_values(activation: str, outputs: list[float]) -> None:
    inputs = torch.tensor([-1.0, 0.0, 1.0], dtype=torch.float64)

    assert named(activation)(inputs).tolist() == pytest.approx(outputs, abs=1e-15)
    assert named(activation).apply_(inputs).tolist() == pytest.approx(outputs, abs=1e-15)
    assert inputs.tolist() == pytest.approx(outputs, abs=1e-15)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_a_bias_is_added_on_the_way(activation: str) -> None:
    inputs, bias = torch.rand(2, 3, 4, dtype=torch.float64) - 0.5, torch.rand(2, 1, 4, dtype=torch.float64) - 0.5
    expected = named(activation)(inputs + bias)

    torch.testing.assert_close(named(activation).apply_(inputs, bias=bias), expected, rtol=1e-14, atol=1e-15)


def test_tanh_in_place_is_within_two_roundings_of_tanh_in_float32() -> None:
    inputs = torch.cat([torch.linspace(-30, 30, 60001), torch.logspace(-9, 0, 1000), torch.tensor([math.inf])])

    assert (named("tanh").apply_(inputs.clone()) - torch.tanh(inputs)).abs().max() < 2.4e-7
    assert named("tanh").apply_(torch.tensor([math.nan])).isnan().all()


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_slope_from_the_output_is_autograds_derivative(activation: str) -> None:
    inputs = torch.linspace(-4, 4, 81, dtype=torch.float64).requires_grad_()  # 0 included: ReLU's kink
    outputs = named(activation)(inputs)
    (expected,) = torch.autograd.grad(outputs.sum(), inputs)

    deltas = torch.full_like(expected, 3.0)

    named(activation).multiply_slope(deltas, outputs.detach(), out=deltas)

    torch.testing.assert_close(deltas, 3.0 * expected, rtol=0, atol=1e-13)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_a_padding_unit_has_the_output_0(activation: str) -> None:
    assert named(activation)(torch.tensor(named(activation).padding_bias)) == 0
