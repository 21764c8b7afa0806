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
from hpsearch.training.evaluation import validate_lanes
from hpsearch.training.losses import mean_nll
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

    zero_one, nll, correct = validate_lanes(network, parameters, data)

    for lane in range(3):
        own = {name: value[lane] for name, value in parameters.items()}
        logits = network.logits(own, data.validation_images.double())
        one, own_correct = validate(network, own, data, iteration=17)
        assert one.iteration == 17
        assert one.zero_one == float(zero_one[lane]) == float((~own_correct).double().mean())
        assert one.nll == pytest.approx(float(mean_nll(logits, data.validation_labels)), rel=1e-12)
        assert one.nll == pytest.approx(float(nll[lane]), rel=1e-12)
        expected = logits.argmax(dim=-1) == data.validation_labels
        assert torch.equal(correct[lane], expected)
        assert torch.equal(own_correct, expected)


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

    watched = Watched(model=network.model, image_shape=(16, 16), num_classes=10)
    validate(watched, watched.initial_parameters(seed=0), data, iteration=1)

    assert rows == [1] * 9
