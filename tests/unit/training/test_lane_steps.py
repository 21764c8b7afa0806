"""One step of all lanes: the hand-written one equals autograd's, and both equal single trials."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from hpsearch.settings import ModelSettings, TrainingSettings
from hpsearch.training.dense import DenseNetwork
from hpsearch.training.lane_steps import AutogradStep, DenseStep, build_step
from hpsearch.training.losses import mean_nll, regularised_loss
from hpsearch.training.network import Network
from hpsearch.training.networks import build_network
from hpsearch.training.optimizers import Rates, build_optimizer
from hpsearch.training.stack import LaneStack

CPU = torch.device("cpu")
LANES = [
    {"learning_rate": 0.1, "lambda_1": 0.01},
    {"learning_rate": 0.02, "momentum": 0.5, "lambda_2": 0.03},
    {"learning_rate": 0.5, "momentum": 0.0, "beta_1": 0.5},
]
FREE_LANES = [{"learning_rate": rate} for rate in (0.1, 0.02, 0.5)]
NETWORKS = [("logistic", "tanh"), ("mlp", "tanh"), ("mlp", "sigmoid"), ("mlp", "relu"), ("cnn", "tanh")]


def build(family: str, activation: str) -> Network:
    model = ModelSettings(family=family, activation=activation, kernels=(2, 3), hidden_units=6)
    return build_network(model, (16, 16), 5)


def random_parameters(network: Network, seed: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        name: 0.3 * torch.randn(p.shape, dtype=torch.float64, generator=generator)
        for name, p in network.parameter_shapes.items()
    }


def filled_stack(network: Network, optimizer: str, lanes: list[dict[str, float]]) -> LaneStack:
    stack = LaneStack(device=CPU)
    trainings = [TrainingSettings(optimizer=optimizer, **lane) for lane in lanes]
    for lane in range(len(lanes)):
        parameters = random_parameters(network, lane)
        stack.append(parameters, build_optimizer(optimizer).initial_state(parameters))
    stack.set_rates(trainings, [training.learning_rate for training in trainings])
    return stack


def batches(is_shared: bool) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(9)
    shape = (7,) if is_shared else (3, 7)
    return [
        (
            torch.rand(*shape, 256, dtype=torch.float64, generator=generator),
            torch.randint(0, 5, shape, generator=generator),
        )
        for _ in range(4)
    ]


@pytest.mark.parametrize("lanes", [LANES, FREE_LANES], ids=["regularised", "free"])
@pytest.mark.parametrize("is_shared", [True, False], ids=["shared", "own"])
@pytest.mark.parametrize("optimizer", ["sgd", "momentum", "adam"])
@pytest.mark.parametrize(("family", "activation"), NETWORKS)
def test_steps_of_lanes_equal_single_trials_by_autograd(
    family: str, activation: str, optimizer: str, is_shared: bool, lanes: list[dict[str, float]]
) -> None:
    network = build(family, activation)
    stack = filled_stack(network, optimizer, lanes)
    step = build_step(network, build_optimizer(optimizer))

    losses = torch.stack([step(stack, images, labels) for images, labels in batches(is_shared)])

    for lane, settings in enumerate(lanes):
        training = TrainingSettings(optimizer=optimizer, **settings)
        parameters = random_parameters(network, lane)
        one, rates = build_optimizer(optimizer), Rates.of(training, training.learning_rate, CPU)
        state = one.initial_state(parameters)
        for index, (images, labels) in enumerate(batches(is_shared)):
            own_images, own_labels = (images, labels) if is_shared else (images[lane], labels[lane])
            leaves = {name: value.requires_grad_() for name, value in parameters.items()}
            nll = mean_nll(network.logits(leaves, own_images), own_labels)
            weights = [leaves[name] for name in network.weight_names]
            loss = regularised_loss(nll, weights, lambda_1=training.lambda_1, lambda_2=training.lambda_2)
            gradients = torch.autograd.grad(loss, list(leaves.values()))
            parameters = {name: value.detach() for name, value in leaves.items()}
            one.update_(parameters, dict(zip(parameters, gradients, strict=True)), state, rates)
            assert float(losses[index, lane]) == pytest.approx(nll.item(), rel=1e-10)
        for name, value in parameters.items():
            torch.testing.assert_close(stack.parameters[name][lane], value, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("is_shared", [True, False], ids=["shared", "own"])
@pytest.mark.parametrize("optimizer", ["sgd", "momentum", "adam"])
@pytest.mark.parametrize(("family", "activation"), NETWORKS[:4])
def test_the_hand_written_gradient_is_autograds(family: str, activation: str, optimizer: str, is_shared: bool) -> None:
    network = build(family, activation)
    assert isinstance(network, DenseNetwork)
    by_hand, by_autograd = (filled_stack(network, optimizer, LANES) for _ in range(2))
    dense = DenseStep(network=network, optimizer=build_optimizer(optimizer))
    autograd = AutogradStep(network=network, optimizer=build_optimizer(optimizer))

    for images, labels in batches(is_shared):
        torch.testing.assert_close(
            dense(by_hand, images, labels), autograd(by_autograd, images, labels), rtol=1e-11, atol=0
        )

    for name, value in by_hand.parameters.items():
        torch.testing.assert_close(value, by_autograd.parameters[name], rtol=1e-8, atol=1e-11)


@pytest.mark.parametrize("family", ["logistic", "mlp"])
def test_the_hand_written_gradient_agrees_with_central_differences(family: str) -> None:
    """With SGD and a rate of 1 the step is the gradient."""
    network = build(family, "tanh")
    settings = TrainingSettings(learning_rate=1.0, lambda_1=1e-3, lambda_2=1e-2)
    ((images, labels), *_) = batches(is_shared=True)
    stack = filled_stack(network, "sgd", [settings.model_dump(include={"learning_rate", "lambda_1", "lambda_2"})])
    before = random_parameters(network, 0)

    build_step(network, build_optimizer("sgd"))(stack, images, labels)

    def loss() -> float:
        weights = [before[name] for name in network.weight_names]
        nll = mean_nll(network.logits(before, images), labels)
        return float(regularised_loss(nll, weights, lambda_1=1e-3, lambda_2=1e-2))

    generator, width = torch.Generator().manual_seed(3), 1e-5
    for name, parameter in before.items():
        gradient = (parameter - stack.parameters[name][0]).reshape(-1)
        flat = parameter.view(-1)
        for index in torch.randint(0, len(flat), (6,), generator=generator).tolist():
            value = float(flat[index])
            flat[index] = value + width
            above = loss()
            flat[index] = value - width
            below = loss()
            flat[index] = value
            assert (above - below) / (2 * width) == pytest.approx(float(gradient[index]), rel=1e-5, abs=1e-9)


@pytest.mark.parametrize("optimizer", ["sgd", "momentum", "adam"])
@pytest.mark.parametrize(("family", "activation"), NETWORKS)
def test_a_lane_of_nan_changes_no_bit_of_its_neighbours(family: str, activation: str, optimizer: str) -> None:
    network = build(family, activation)
    healthy, poisoned = (filled_stack(network, optimizer, LANES) for _ in range(2))
    for value in poisoned.parameters.values():
        value[1] = math.nan
    step = build_step(network, build_optimizer(optimizer))

    for images, labels in batches(is_shared=True):
        expected, losses = step(healthy, images, labels), step(poisoned, images, labels)
        assert losses[1].isnan()
        assert torch.equal(expected[[0, 2]], losses[[0, 2]])

    for name, value in healthy.parameters.items():
        assert torch.equal(value[[0, 2]], poisoned.parameters[name][[0, 2]])


def test_convolutions_take_the_general_step_and_dense_networks_the_hand_written_one() -> None:
    assert isinstance(build_step(build("cnn", "tanh"), build_optimizer("sgd")), AutogradStep)
    assert isinstance(build_step(build("mlp", "tanh"), build_optimizer("sgd")), DenseStep)
