"""Validation losses: slices add up, lanes equal single trials."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from benchmarks.reference_loop import validate
from hpsearch.data.resident import ResidentData
from hpsearch.study.settings import ModelSettings
from hpsearch.training import evaluation
from hpsearch.training.evaluation import evaluate, evaluate_with_probabilities, validate_lanes
from hpsearch.training.judge import ZeroOne
from hpsearch.training.losses import mean_loss
from hpsearch.training.networks.build import build_network
from hpsearch.training.networks.network import Network

Build = Callable[..., ResidentData]


def drawn(network: Network, num_lanes: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        name: 0.3 * torch.randn(num_lanes, *p.shape, dtype=torch.float64, generator=generator)
        for name, p in network.parameter_shapes.items()
    }


@pytest.mark.parametrize("rows", [1, 7, 80, 1000])
@pytest.mark.parametrize("family", ["logistic", "mlp", "cnn"])
def test_slices_add_up_to_the_losses_of_the_whole_set(
    resident: Build, monkeypatch: pytest.MonkeyPatch, family: str, rows: int
) -> None:
    data = resident(num_validation=80)
    network = build_network(ModelSettings(family=family, kernels=(2, 3), hidden_units=5), (16, 16), 10)
    parameters = drawn(network, 3)
    monkeypatch.setattr(evaluation, "SLICE_FLOATS", rows * network.widest_activation)

    judge = ZeroOne(labels=data.validation_labels, num_classes=data.num_classes)
    zero_one, nll, correct = validate_lanes(network, parameters, data, judge)

    for lane in range(3):
        own = {name: value[lane] for name, value in parameters.items()}
        logits = network.logits(own, data.validation_images.double())
        one, own_correct = validate(network, own, data, iteration=17)
        assert one.iteration == 17
        assert one.loss == float(zero_one[lane]) == float((~own_correct).double().mean())
        assert one.nll == pytest.approx(float(mean_loss(logits, data.validation_labels)), rel=1e-12)
        assert one.nll == pytest.approx(float(nll[lane]), rel=1e-12)
        expected = logits.argmax(dim=-1) == data.validation_labels
        assert torch.equal(correct[lane], expected)
        assert torch.equal(own_correct, expected)


def test_probabilities_come_with_the_losses_in_one_pass(resident: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    data = resident(num_validation=80)
    network = build_network(ModelSettings(family="mlp", hidden_units=5), (16, 16), 10)
    own = {name: value[0] for name, value in drawn(network, 1).items()}
    monkeypatch.setattr(evaluation, "SLICE_FLOATS", 7 * network.widest_activation)
    images, labels = data.validation_images, data.validation_labels
    expected, alone = network.logits(own, images.double()).softmax(dim=1), evaluate(network, own, images, labels)
    rows: list[int] = []
    logits = type(network).logits
    monkeypatch.setattr(
        type(network), "logits", lambda self, values, some: rows.append(len(some)) or logits(self, values, some)
    )

    losses, probabilities = evaluate_with_probabilities(network, own, images, labels)

    assert rows == [7] * 11 + [3]
    assert (losses.num_errors, losses.nll) == (alone.num_errors, alone.nll)
    assert torch.equal(probabilities.argmax(dim=1) == labels, losses.record)
    torch.testing.assert_close(probabilities, expected)


def test_memory_is_bounded_even_where_one_image_is_wider_than_a_slice(
    resident: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evaluation, "SLICE_FLOATS", 1)
    data = resident(num_validation=9)
    network = build_network(ModelSettings(family="logistic"), (16, 16), 10)
    rows: list[int] = []

    class Watched(type(network)):  # type: ignore[misc]
        def logits(self, parameters: dict[str, Tensor], images: Tensor) -> Tensor:
            rows.append(len(images))
            return super().logits(parameters, images)

    watched = Watched(model=network.model, example_shape=(16, 16), num_outputs=10)
    validate(watched, watched.initial_parameters(seed=0), data, iteration=1)

    assert rows == [1] * 9
