"""Shapes, layers and operators of the notes' networks; lanes compute what single trials do."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from hpsearch.errors import InputError
from hpsearch.study.settings import ModelSettings
from hpsearch.training.networks.build import build_network
from hpsearch.training.networks.lenet import LeNet, convolve, max_pool
from hpsearch.training.networks.network import Network


def network(family: str, *, image_shape: tuple[int, int] = (16, 16), **model: object) -> Network:
    return build_network(ModelSettings(family=family, **model), image_shape, 10)


def stacked(network: Network, num_lanes: int) -> tuple[list[dict[str, Tensor]], dict[str, Tensor]]:
    """Random parameters (zero softmax layers would hide mistakes), one by one and stacked."""
    generator = torch.Generator().manual_seed(0)
    lanes = [
        {
            name: 0.3 * torch.randn(parameter.shape, dtype=torch.float64, generator=generator)
            for name, parameter in network.parameter_shapes.items()
        }
        for _ in range(num_lanes)
    ]
    return lanes, {name: torch.stack([lane[name] for lane in lanes]) for name in lanes[0]}


def test_logistic_regression_is_one_softmax_layer_that_starts_at_zero() -> None:
    parameters = network("logistic", image_shape=(28, 28)).initial_parameters(seed=1)

    assert {name: tuple(value.shape) for name, value in parameters.items()} == {
        "output.weight": (10, 784),
        "output.bias": (10,),
    }
    assert not any(value.any() for value in parameters.values())


def test_mlp_has_a_drawn_hidden_layer_and_a_zero_softmax_layer() -> None:
    parameters = network("mlp", image_shape=(28, 28), hidden_units=500).initial_parameters(seed=1)

    assert {name: tuple(value.shape) for name, value in parameters.items()} == {
        "hidden.weight": (500, 784),
        "hidden.bias": (500,),
        "output.weight": (10, 500),
        "output.bias": (10,),
    }
    bound = math.sqrt(6 / (784 + 500))
    assert 0.99 * bound < float(parameters["hidden.weight"].abs().max()) <= bound
    assert not any(parameters[name].any() for name in ("hidden.bias", "output.weight", "output.bias"))


def test_lenet_has_the_shapes_and_initial_weights_of_the_notes() -> None:
    lenet = network("cnn", image_shape=(28, 28))
    parameters = lenet.initial_parameters(seed=1)

    assert isinstance(lenet, LeNet)
    assert lenet.pooled_shapes == ((12, 12), (4, 4))
    assert {name: tuple(value.shape) for name, value in parameters.items()} == {
        "conv1.weight": (20, 1, 5, 5),
        "conv1.bias": (20,),
        "conv2.weight": (50, 20, 5, 5),
        "conv2.bias": (50,),
        "hidden.weight": (500, 800),
        "hidden.bias": (500,),
        "output.weight": (10, 500),
        "output.bias": (10,),
    }
    # fan_in = 1*5*5, fan_out = 20*5*5/4; fan_in = 20*5*5, fan_out = 50*5*5/4
    for name, bound in (
        ("conv1.weight", math.sqrt(6 / (25 + 125))),
        ("conv2.weight", math.sqrt(6 / (500 + 312.5))),
    ):
        assert 0.98 * bound < float(parameters[name].abs().max()) <= bound


def test_only_weights_are_regularised() -> None:
    assert network("cnn").weight_names == ("conv1.weight", "conv2.weight", "hidden.weight", "output.weight")
    assert network("logistic").weight_names == ("output.weight",)


def test_mlp_logits_by_hand() -> None:
    mlp = build_network(ModelSettings(family="mlp", hidden_units=2), (1, 2), 2)
    parameters = {
        "hidden.weight": torch.tensor([[1.0, 2.0], [0.0, -1.0]]),
        "hidden.bias": torch.tensor([0.5, 0.25]),
        "output.weight": torch.tensor([[1.0, 3.0], [2.0, 4.0]]),
        "output.bias": torch.tensor([-1.0, 1.0]),
    }
    first, second = math.tanh(1 * 0.5 + 2 * 1.0 + 0.5), math.tanh(-1.0 + 0.25)

    logits = mlp.logits(parameters, torch.tensor([[0.5, 1.0]]))

    expected = [first + 3 * second - 1, 2 * first + 4 * second + 1]
    assert logits.tolist()[0] == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("activation", ["tanh", "sigmoid", "relu"])
def test_lenet_is_convolution_pool_bias_activation_twice_then_dense(activation: str) -> None:
    lenet = network("cnn", image_shape=(28, 28), kernels=(3, 4), hidden_units=6, activation=activation)
    (p,), _ = stacked(lenet, 1)
    images = torch.rand(5, 784, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    act = getattr(torch, activation)

    # The textbook order (bias inside the convolution, activation before the pool) has the same maxima.
    x = images.reshape(5, 1, 28, 28)
    x = functional.max_pool2d(act(functional.conv2d(x, p["conv1.weight"], p["conv1.bias"])), 2)
    x = functional.max_pool2d(act(functional.conv2d(x, p["conv2.weight"], p["conv2.bias"])), 2)
    x = act(functional.linear(x.flatten(1), p["hidden.weight"], p["hidden.bias"]))
    expected = functional.linear(x, p["output.weight"], p["output.bias"])

    torch.testing.assert_close(lenet.logits(p, images), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("is_shared", [True, False])
@pytest.mark.parametrize("family", ["logistic", "mlp", "cnn"])
def test_every_lane_computes_what_a_single_trial_would(family: str, is_shared: bool) -> None:
    net = network(family, kernels=(3, 4), hidden_units=6)
    lanes, stack = stacked(net, 3)
    shape = (5, 256) if is_shared else (3, 5, 256)
    images = torch.rand(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))

    logits = net.lane_logits(stack, images)

    assert logits.shape == (3, 5, 10)
    for lane, parameters in enumerate(lanes):
        expected = net.logits(parameters, images if is_shared else images[lane])
        torch.testing.assert_close(logits[lane], expected, rtol=1e-12, atol=1e-12)


def test_convolution_and_pool_of_an_rgb_image_ignore_borders() -> None:
    """The notes' example: random 9x9 filters on a picture of 639x516."""
    picture = torch.rand(1, 3, 639, 516)
    filters = torch.rand(2, 3, 9, 9)

    convolved = convolve(picture, filters)

    assert convolved.shape == (1, 2, 631, 508)
    assert max_pool(convolved).shape == (1, 2, 315, 254)


def test_convolution_and_pool_by_hand() -> None:
    image = torch.arange(25.0).reshape(1, 1, 5, 5)
    edge = torch.tensor([[[[1.0, 0.0], [0.0, -1.0]]]])  # 4x4: each pixel minus its lower right neighbour

    assert torch.equal(convolve(image, edge), torch.full((1, 1, 4, 4), -6.0))
    assert max_pool(image).tolist() == [[[[6.0, 8.0], [16.0, 18.0]]]]  # the fifth row and column are ignored


@pytest.mark.parametrize("image_shape", [(15, 28), (28, 15), (8, 8), (1, 1)])
def test_images_too_small_for_lenet_are_an_input_error(image_shape: tuple[int, int]) -> None:
    with pytest.raises(InputError, match=f"at least 16x16 pixels, got {image_shape[0]}x{image_shape[1]}") as e:
        network("cnn", image_shape=image_shape)
    assert e.value.hint


def test_the_smallest_images_for_lenet_leave_one_pixel() -> None:
    lenet = network("cnn", image_shape=(16, 16), kernels=(2, 3), hidden_units=4)

    assert lenet.parameter_shapes["hidden.weight"].shape == (4, 3)


def test_widest_activation_counts_floats_per_image() -> None:
    assert network("logistic", image_shape=(28, 28)).widest_activation == 10
    assert network("mlp", image_shape=(28, 28), hidden_units=500).widest_activation == 500
    assert network("cnn", image_shape=(28, 28)).widest_activation == 20 * 24 * 24
