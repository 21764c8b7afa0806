"""One step of all lanes: the hand-written one equals autograd's, and both equal single trials."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from benchmarks.reference_loop import rates_of, regularised_loss, update_
from hpsearch.study.settings import ModelSettings, TrainingSettings, TrialSettings
from hpsearch.training.lanes.dense_step import DenseStep
from hpsearch.training.lanes.stack import LaneKind, LaneStack, TrialTensors
from hpsearch.training.lanes.steps import BLOCK_ROWS, AutogradStep, build_step
from hpsearch.training.losses import mean_loss
from hpsearch.training.networks.activations import lane_activation
from hpsearch.training.networks.build import build_network
from hpsearch.training.networks.dense import DenseNetwork
from hpsearch.training.networks.network import Network
from hpsearch.training.optimizers import build_optimizer

CPU = torch.device("cpu")
BATCH = 7
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
    return stack_of(network, [TrainingSettings(optimizer=optimizer, **lane) for lane in lanes])


def stack_of(network: Network, trainings: list[TrainingSettings], activations: Sequence[str] = ()) -> LaneStack:
    """Lanes in the order of their kinds; the parameters of a training are those of its place in the list."""
    stack = LaneStack(device=CPU)
    names = activations or [network.model.activation] * len(trainings)
    ordered = sorted(zip(map(kind_of, trainings, names), range(len(trainings)), strict=True))
    for kind, index in ordered:
        parameters = random_parameters(network, index)
        stack.insert(
            [(kind, TrialTensors.fresh(parameters, build_optimizer(kind.optimizer).initial_state(parameters)))]
        )
    in_order = [trainings[index] for _, index in ordered]
    stack.set_rates(in_order, [training.learning_rate for training in in_order])
    return stack


def kind_of(training: TrainingSettings, activation: str = "tanh") -> LaneKind:
    return LaneKind.of(TrialSettings(model=ModelSettings(activation=activation), training=training))


def batches(is_shared: bool) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(9)
    shape = (BATCH,) if is_shared else (3, BATCH)
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
    step = build_step(network, CPU)

    losses = torch.stack([step.train(stack, images, labels, BATCH) for images, labels in batches(is_shared)])

    for lane, settings in enumerate(lanes):
        training = TrainingSettings(optimizer=optimizer, **settings)
        parameters = random_parameters(network, lane)
        one, rates = build_optimizer(optimizer), rates_of(training, training.learning_rate, CPU)
        state = one.initial_state(parameters)
        for index, (images, labels) in enumerate(batches(is_shared)):
            own_images, own_labels = (images, labels) if is_shared else (images[lane], labels[lane])
            leaves = {name: value.requires_grad_() for name, value in parameters.items()}
            nll = mean_loss(network.logits(leaves, own_images), own_labels)
            weights = [leaves[name] for name in network.weight_names]
            loss = regularised_loss(nll, weights, lambda_1=training.lambda_1, lambda_2=training.lambda_2)
            gradients = torch.autograd.grad(loss, list(leaves.values()))
            parameters = {name: value.detach() for name, value in leaves.items()}
            update_(one, parameters, dict(zip(parameters, gradients, strict=True)), state, rates)
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
    dense = DenseStep(network=network, block_rows=BATCH)
    autograd = AutogradStep(network=network)

    for images, labels in batches(is_shared):
        torch.testing.assert_close(
            dense.train(by_hand, images, labels, BATCH),
            autograd.train(by_autograd, images, labels, BATCH),
            rtol=1e-11,
            atol=0,
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

    build_step(network, CPU).train(stack, images, labels, BATCH)

    def loss() -> float:
        weights = [before[name] for name in network.weight_names]
        nll = mean_loss(network.logits(before, images), labels)
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
    step = build_step(network, CPU)

    for images, labels in batches(is_shared=True):
        expected = step.train(healthy, images, labels, BATCH)
        losses = step.train(poisoned, images, labels, BATCH)
        assert losses[1].isnan()
        assert torch.equal(expected[[0, 2]], losses[[0, 2]])

    for name, value in healthy.parameters.items():
        assert torch.equal(value[[0, 2]], poisoned.parameters[name][[0, 2]])


@pytest.mark.parametrize("block_rows", [1, 2 * BATCH])
@pytest.mark.parametrize("family", ["mlp", "cnn"])
def test_lanes_of_different_optimizers_and_activations_equal_lanes_of_one(
    family: str, block_rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hpsearch.training.lanes.dense_step.LEAST_OUTPUTS_PER_ROW", 0)
    monkeypatch.setattr("hpsearch.training.lanes.dense_step.LEAST_PIXELS_PER_ROW", 0)
    monkeypatch.setitem(BLOCK_ROWS, "cpu", block_rows)
    activations = ["relu", "tanh", "sigmoid"] if family == "mlp" else ["tanh"]
    trainings = [
        TrainingSettings(optimizer=optimizer, **lane)
        for lane in [*LANES, *FREE_LANES]
        for optimizer in ("sgd", "adam", "momentum")
        for _ in activations
    ]
    names = activations * (len(trainings) // len(activations))
    network = build(family, "tanh")
    mixed = stack_of(network, trainings, names)
    if isinstance(network, DenseNetwork):
        network = replace(network, activation=lane_activation([kind.activation for kind in mixed.kinds]))
    images, labels = long_stretch(4)

    losses = build_step(network, CPU).train(mixed, images, labels, BATCH)

    ordered = sorted(zip(map(kind_of, trainings, names), range(len(trainings)), strict=True))
    for lane, (kind, index) in enumerate(ordered):
        own = build(family, kind.activation)
        alone = LaneStack(device=CPU)
        parameters = random_parameters(own, index)
        alone.insert(
            [(kind, TrialTensors.fresh(parameters, build_optimizer(kind.optimizer).initial_state(parameters)))]
        )
        alone.set_rates([trainings[index]], [trainings[index].learning_rate])
        expected = AutogradStep(network=own).train(alone, images, labels, BATCH)
        torch.testing.assert_close(losses[lane : lane + 1], expected, rtol=1e-10, atol=0)
        for name, value in alone.parameters.items():
            torch.testing.assert_close(mixed.parameters[name][lane], value[0], rtol=1e-8, atol=1e-10)


def test_convolutions_take_the_general_step_and_dense_networks_the_hand_written_one() -> None:
    assert isinstance(build_step(build("cnn", "tanh"), CPU), AutogradStep)
    assert isinstance(build_step(build("mlp", "tanh"), CPU), DenseStep)


def long_stretch(num_minibatches: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(4)
    num_images = num_minibatches * BATCH
    images = torch.rand(num_images, 256, dtype=torch.float64, generator=generator)
    return images, torch.randint(0, 5, (num_images,), generator=generator)


@pytest.mark.parametrize("lambda_2", [0.0, 3e-3])
@pytest.mark.parametrize("minibatches_per_block", [2, 3, 5, 8, 100])
@pytest.mark.parametrize(("family", "activation"), NETWORKS[:4])
def test_a_block_of_minibatches_is_the_same_sgd(
    family: str, activation: str, minibatches_per_block: int, lambda_2: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sums in another order, nothing else; blocks that end in the middle included. One lane has no L2."""
    monkeypatch.setattr("hpsearch.training.lanes.dense_step.LEAST_OUTPUTS_PER_ROW", 0)
    monkeypatch.setattr("hpsearch.training.lanes.dense_step.LEAST_PIXELS_PER_ROW", 0)
    lanes = [{"learning_rate": 0.5, "lambda_2": lambda_2}, {"learning_rate": 2.0}, {"learning_rate": 0.01}]
    network = build(family, activation)
    assert isinstance(network, DenseNetwork)
    in_blocks, one_by_one = (filled_stack(network, "sgd", lanes) for _ in range(2))
    assert in_blocks.linear == slice(0, 3)
    images, labels = long_stretch(8)
    rows = minibatches_per_block * BATCH

    losses = DenseStep(network=network, block_rows=rows).train(in_blocks, images, labels, BATCH)

    autograd = AutogradStep(network=network)
    torch.testing.assert_close(losses, autograd.train(one_by_one, images, labels, BATCH), rtol=1e-10, atol=0)
    for name, value in in_blocks.parameters.items():
        torch.testing.assert_close(value, one_by_one.parameters[name], rtol=1e-9, atol=1e-11)


def test_linear_lanes_go_in_blocks_and_their_neighbours_one_minibatch_at_a_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("hpsearch.training.lanes.dense_step.LEAST_OUTPUTS_PER_ROW", 0)
    monkeypatch.setattr("hpsearch.training.lanes.dense_step.LEAST_PIXELS_PER_ROW", 0)
    lanes = [{"learning_rate": 0.5}, {"learning_rate": 0.1, "lambda_2": 0.01}, {"learning_rate": 0.3, "lambda_1": 0.01}]
    lanes.append({"learning_rate": 0.9, "lambda_2": 0.5})  # shrinks its weights too fast for a block
    network = build("mlp", "tanh")
    assert isinstance(network, DenseNetwork)
    mixed, one_by_one = (filled_stack(network, "sgd", lanes) for _ in range(2))
    assert mixed.linear == slice(2, 4)
    images, labels = long_stretch(6)
    dense = DenseStep(network=network, block_rows=3 * BATCH)
    autograd = AutogradStep(network=network)

    losses = dense.train(mixed, images, labels, BATCH)

    torch.testing.assert_close(losses, autograd.train(one_by_one, images, labels, BATCH), rtol=1e-10, atol=0)
    for name, value in mixed.parameters.items():
        torch.testing.assert_close(value, one_by_one.parameters[name], rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, True),
        ({"lambda_2": 0.1, "learning_rate": 0.09}, True),
        ({"lambda_2": 0.1, "learning_rate": 0.11}, False),
        ({"lambda_1": 1e-9}, False),
        ({"optimizer": "momentum"}, False),
        ({"optimizer": "adam"}, False),
    ],
)
def test_updates_are_linear_in_the_weights_only_for_sgd_without_l1(settings: dict[str, object], expected: bool) -> None:
    assert kind_of(TrainingSettings(**settings)).is_linear is expected


@pytest.mark.parametrize("optimizer", ["sgd", "momentum", "adam"])
@pytest.mark.parametrize("is_shared", [True, False], ids=["shared", "own"])
def test_slices_of_a_minibatch_lane_by_lane_are_the_same_step(
    optimizer: str, is_shared: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = build("cnn", "tanh")
    monkeypatch.setattr(
        "hpsearch.training.lanes.steps.TRAINING_SLICE_FLOATS", 3 * network.widest_activation
    )  # 7 = 3 + 3 + 1
    sliced, at_once = (filled_stack(network, optimizer, LANES) for _ in range(2))

    for images, labels in batches(is_shared):
        losses = AutogradStep(network=network, is_sliced=True).train(sliced, images, labels, BATCH)
        expected = AutogradStep(network=network).train(at_once, images, labels, BATCH)
        torch.testing.assert_close(losses, expected, rtol=1e-11, atol=0)

    for name, value in sliced.parameters.items():
        torch.testing.assert_close(value, at_once.parameters[name], rtol=1e-8, atol=1e-11)


@pytest.mark.parametrize(("family", "activation"), NETWORKS)
def test_bfloat16_rounds_products_and_keeps_weights_and_losses_in_float32(family: str, activation: str) -> None:
    network = build(family, activation)
    exact, rounded = (filled_stack(network, "sgd", FREE_LANES) for _ in range(2))
    for stack in (exact, rounded):
        stack.parameters = {name: value.float() for name, value in stack.parameters.items()}
    for images, labels in batches(is_shared=True):
        minibatch = images.float(), labels, BATCH
        expected = build_step(network, CPU).train(exact, *minibatch)
        losses = build_step(network, CPU, "bfloat16").train(rounded, *minibatch)
        assert losses.dtype == torch.float64
        torch.testing.assert_close(losses, expected, rtol=0.05, atol=0)
        assert not torch.equal(losses, expected)

    for name, value in rounded.parameters.items():
        assert value.dtype == torch.float32
        torch.testing.assert_close(value, exact.parameters[name], rtol=0.1, atol=0.03)
