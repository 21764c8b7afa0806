"""How wide initial weights are drawn, and that every device and precision starts at the same point."""

from __future__ import annotations

import math

import pytest
import torch

from hpsearch.study.settings import ModelSettings
from hpsearch.training.networks.initialization import ParameterShape, draw_parameters, weight_bound

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("activation", "initialization", "bound"),
    [
        ("tanh", "glorot", math.sqrt(6 / (784 + 500))),
        ("sigmoid", "glorot", 4 * math.sqrt(6 / (784 + 500))),
        ("relu", "glorot", math.sqrt(6 / 784)),
        ("tanh", "lecun", 1 / 28),
        ("sigmoid", "lecun", 1 / 28),
        ("relu", "lecun", 1 / 28),
    ],
)
def test_bound_follows_the_notes(activation: str, initialization: str, bound: float) -> None:
    model = ModelSettings.model_validate({"activation": activation, "initialization": initialization})
    assert weight_bound(model, fan_in=784, fan_out=500) == pytest.approx(bound)


SHAPES = {
    "w": ParameterShape(shape=(300, 40), bound=0.25, is_weight=True),
    "b": ParameterShape(shape=(40,), bound=0.0, is_weight=False),
}


def test_weights_fill_their_interval_and_biases_are_zero() -> None:
    drawn = draw_parameters(SHAPES, seed=3, dtype=torch.float64, device=CPU)

    assert drawn["w"].abs().max() <= 0.25
    assert drawn["w"].min() < -0.249
    assert drawn["w"].max() > 0.249
    assert abs(float(drawn["w"].mean())) < 0.005  # 12,000 draws: 3.8 standard errors
    assert not drawn["b"].any()


def test_the_same_seed_gives_the_same_weights_and_another_seed_others() -> None:
    first = draw_parameters(SHAPES, seed=3, dtype=torch.float32, device=CPU)["w"]

    assert torch.equal(first, draw_parameters(SHAPES, seed=3, dtype=torch.float32, device=CPU)["w"])
    assert not torch.equal(first, draw_parameters(SHAPES, seed=4, dtype=torch.float32, device=CPU)["w"])


def test_seeds_that_differ_in_their_high_bits_only_are_different_seeds() -> None:
    low = draw_parameters(SHAPES, seed=3, dtype=torch.float32, device=CPU)["w"]
    high = draw_parameters(SHAPES, seed=3 + 2**40, dtype=torch.float32, device=CPU)["w"]

    assert not torch.equal(low, high)


def test_float32_weights_are_the_float64_ones_rounded() -> None:
    precise = draw_parameters(SHAPES, seed=3, dtype=torch.float64, device=CPU)["w"]

    assert torch.equal(precise.float(), draw_parameters(SHAPES, seed=3, dtype=torch.float32, device=CPU)["w"])
