"""Activations and their slopes."""

from __future__ import annotations

import pytest
import torch

from hpsearch.training.activations import activate, slope_at_output


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

    assert activate(activation, inputs).tolist() == pytest.approx(outputs, abs=1e-15)


@pytest.mark.parametrize("activation", ["tanh", "sigmoid", "relu"])
def test_slope_from_the_output_is_autograds_derivative(activation: str) -> None:
    inputs = torch.linspace(-4, 4, 81, dtype=torch.float64).requires_grad_()  # 0 included: ReLU's kink
    outputs = activate(activation, inputs)
    (expected,) = torch.autograd.grad(outputs.sum(), inputs)

    torch.testing.assert_close(slope_at_output(activation, outputs.detach()), expected, rtol=0, atol=1e-14)
