"""The model of the device: measured in a moment, and right about what more lanes save."""

from __future__ import annotations

import math
import subprocess
import sys
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from hpsearch.data.resident import ResidentData
from hpsearch.data.splits import SelectionData, Split
from hpsearch.study.settings import ModelSettings
from hpsearch.training.lanes import device_model as module
from hpsearch.training.lanes.device_model import (
    DeviceSpeed,
    bytes_per_lane,
    flops_per_image,
    measure_speed,
    num_parameters,
)
from hpsearch.training.lanes.lane_times import FEW_LANES, EpochCost, LaneTimes
from hpsearch.training.networks.build import build_network
from hpsearch.training.networks.network import Network

CPU = torch.device("cpu")
SPEED = DeviceSpeed(flops=1e11, bytes_per_second=1e10, call_seconds=2e-6)


def network(pixels: int = 8, **model: object) -> Network:
    return build_network(ModelSettings(**model), (pixels, pixels), 10)  # type: ignore[arg-type]


@pytest.fixture
def data() -> Callable[[int], ResidentData]:
    def build(pixels: int) -> ResidentData:
        images = np.zeros((100, pixels * pixels), np.float32)
        split = Split(images=images, labels=np.zeros(100, np.int64))
        sizes = {"example_shape": (pixels, pixels), "num_classes": 10, "name": "zeros", "checksums": {}}
        return ResidentData.place(SelectionData(train=split, validation=split, **sizes), CPU)  # type: ignore[arg-type]

    return build


def test_a_real_device_has_three_plausible_speeds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_MEASURED_SECONDS", 0.01)
    speed = measure_speed(CPU)
    assert 1e7 < speed.flops < 1e15
    assert 1e7 < speed.bytes_per_second < 1e14
    assert 1e-8 < speed.call_seconds < 1e-2


@pytest.mark.parametrize("model", [{"family": "logistic"}, {"hidden_units": 20}, {"hidden_units": 500}])
def test_products_are_counted(model: dict[str, object]) -> None:
    dense = network(**model)
    weights = sum(math.prod(shape.shape) for shape in dense.parameter_shapes.values() if shape.is_weight)
    assert flops_per_image(dense) == 2 * weights


def test_convolutions_count_for_each_pixel() -> None:
    lenet = network(28, family="cnn", hidden_units=20)
    assert flops_per_image(lenet) > 5 * 2 * num_parameters(lenet)


def test_products_are_counted_as_torch_counts_them_and_without_its_second_of_imports() -> None:
    """FlopCounterMode imports torch._dynamo and sympy."""
    networks = [
        network(28, family="cnn", hidden_units=20),
        network(28, family="examples.two_hidden_layers:TwoHiddenLayers"),
    ]
    for its in networks:
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            its.logits(its.initial_parameters(seed=0), torch.zeros(2, its.num_inputs))
        assert flops_per_image(its) == counter.get_total_flops() / 2 > 0
    program = (
        "import sys, torch; from hpsearch.training.lanes.device_model import flops_per_image;"
        "from hpsearch.study.settings import ModelSettings;"
        "from hpsearch.training.networks.build import build_network;"
        "flops_per_image(build_network(ModelSettings(family='cnn'), (28, 28), 10));"
        "sys.exit('sympy' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


def test_products_with_named_arguments_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    dense = network(family="logistic")

    def logits(self: Network, parameters: Any, images: torch.Tensor) -> torch.Tensor:
        weight = torch.ones(3, 64)
        found = functional.linear(input=images, weight=weight) + torch.matmul(input=images, other=weight.t())
        found = torch.addmm(input=found, mat1=images, mat2=weight.t())
        return found + functional.conv1d(input=images.unsqueeze(1), weight=torch.ones(3, 1, 64)).squeeze(-1)

    monkeypatch.setattr(type(dense), "logits", logits)
    assert flops_per_image(dense) == 4 * 2 * 3 * 64


def test_where_products_are_not_seen_each_weight_counts_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a recurrent layer nothing is counted, and one linear layer behind it is not the whole cost."""
    dense = network(hidden_units=20)

    def fail(*_: object) -> None:
        raise RuntimeError("not with a counter")

    def only_the_last_layer(self: Network, parameters: Any, images: torch.Tensor) -> torch.Tensor:
        return images[:, :3] @ torch.ones(3, 10)

    for logits in (fail, lambda *_: None, only_the_last_layer):
        monkeypatch.setattr(type(dense), "logits", logits)
        assert flops_per_image(dense) == 2 * (64 * 20 + 20 * 10)


def test_the_cost_of_calls_depends_on_minibatches_and_that_of_a_lane_on_its_size(
    data: Callable[[int], ResidentData],
) -> None:
    def cost(hidden_units: int, batch_size: int) -> EpochCost:
        return SPEED.epoch_cost(network(hidden_units=hidden_units), data(8), batch_size, CPU)

    assert cost(20, 10).fixed == pytest.approx(
        3 * cost(20, 50).fixed
    )  # 10 and 2 minibatches, and the epoch's own calls
    assert cost(20, 10).fixed == cost(500, 10).fixed
    assert cost(500, 10).per_lane > 5 * cost(20, 10).per_lane
    often = SPEED.epoch_cost(network(hidden_units=20), data(8), 10, CPU, num_validations=5)
    assert often.per_lane > 1.2 * cost(20, 10).per_lane
    assert often.fixed > 1.2 * cost(20, 10).fixed
    assert LaneTimes(cost(20, 10)).choose(512) > LaneTimes(cost(500, 100)).choose(512)


def test_a_network_that_is_computed_lane_by_lane_gets_more_than_one_lane_only_for_its_turns(
    data: Callable[[int], ResidentData],
) -> None:
    cost = SPEED.epoch_cost(network(28, family="cnn"), data(28), 20, CPU)
    assert cost.fixed == 0.0
    assert LaneTimes(cost).choose(512) == FEW_LANES
    assert LaneTimes(cost.times(1e6)).choose(512) == 1  # an epoch of many images


def test_larger_networks_and_minibatches_take_more_memory() -> None:
    small = bytes_per_lane(network(hidden_units=20), 20)
    assert small < bytes_per_lane(network(hidden_units=500), 20)
    assert small < bytes_per_lane(network(hidden_units=20), 500)
    assert bytes_per_lane(network(hidden_units=500), 20) > 4 * 4 * num_parameters(network(hidden_units=500))


def test_a_lane_of_a_deep_network_keeps_the_results_of_all_its_layers() -> None:
    """Autograd keeps them until the backward pass; the first convolution alone has 20 maps of 24x24."""
    lenet = build_network(ModelSettings(family="cnn"), (28, 28), 10)
    first_maps = 4 * 20 * 24 * 24
    assert bytes_per_lane(lenet, 500) - bytes_per_lane(lenet, 100) > 400 * 2 * first_maps


def test_the_memory_that_was_measured_is_free_before_it_is_returned(monkeypatch: pytest.MonkeyPatch) -> None:
    tensors: list[weakref.ref[torch.Tensor]] = []
    alive: list[int] = []
    copy = module._copy

    def watched(device: torch.device) -> tuple[module.Work, int]:
        work, num_bytes = copy(device)
        tensors.extend(weakref.ref(cell.cell_contents) for cell in work.__closure__)
        return work, num_bytes

    monkeypatch.setattr(module, "_copy", watched)
    monkeypatch.setattr(
        module, "release_cached_memory", lambda _: alive.extend(tensor() is not None for tensor in tensors)
    )
    measure_speed(CPU)
    assert alive == [False, False]
