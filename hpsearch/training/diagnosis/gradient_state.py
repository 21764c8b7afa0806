"""What an update would do to each lane: its gradient on a fixed batch, the gradient's noise, and the step's size.

Everything is computed on copies: parameters and optimizer states stay as they are, bit for bit.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor
from torch.func import vmap

from hpsearch.data.resident import ResidentData, as_inputs
from hpsearch.training.diagnosis.hidden_units import HiddenUnits
from hpsearch.training.losses import LanePenalties, lanes_first, mean_loss
from hpsearch.training.networks.network import Network
from hpsearch.training.optimizers import Rates, build_optimizer
from hpsearch.training.tensors import Tensors

NUM_IMAGES = 256
EVERY_EPOCH_FROM = 500  # minibatches: in shorter epochs the diagnosis would cost more than a few percent
# Lanes are looked at together up to this number of floats, of their parameters or of their widest intermediate results:
# on a CPU as many as its cache may hold.
_CHUNK_FLOATS = {"cpu": 2**19, "cuda": 2**25}
_NUMBERS = ("nll", "gradient_norm", "gradient_noise", "penalty_norm", "saturated", "dead")


def is_diagnosis_due(epoch: int, *, num_minibatches: int, max_epochs: int) -> bool:
    """Whether a trial is looked at after this epoch (1-based): always, or in epochs 1, 2, 3, 5, 8 ... and the last."""
    if num_minibatches >= EVERY_EPOCH_FROM or epoch == max_epochs:
        return True
    low, high = 1, 2
    while low < epoch:
        low, high = high, low + high
    return low == epoch


@dataclass(frozen=True, kw_only=True, eq=False)
class LanesState:
    """The tensors of lanes that have the same network and optimizer: those of `LaneStack`, [L, ...] each."""

    network: Network
    optimizer: str
    parameters: Tensors
    optimizer_state: Tensors
    rates: Rates
    penalties: LanePenalties

    @property
    def num_lanes(self) -> int:
        return len(next(iter(self.parameters.values())))

    def part(self, lanes: slice) -> LanesState:
        """Some of the lanes, as views of the same memory."""
        return LanesState(
            network=self.network,
            optimizer=self.optimizer,
            parameters={name: value[lanes] for name, value in self.parameters.items()},
            optimizer_state={name: value[lanes] for name, value in self.optimizer_state.items()},
            rates=self.rates.part(lanes),
            penalties=self.penalties.part(lanes),
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class FixedBatch:
    """The training images that every trial is diagnosed with: evenly spaced ones, the same in every epoch.

    Args:
        images: [N, pixels], on the device.
        labels: [N].
        class_weights: [classes], by which training weighs the examples; they are in the gradients, not in the loss.
    """

    images: Tensor
    labels: Tensor
    class_weights: Tensor | None = None

    @classmethod
    def of(cls, data: ResidentData, dtype: torch.dtype, class_weights: Tensor | None = None) -> FixedBatch:
        """At most `NUM_IMAGES` of the training images; an even number, unless there is only one."""
        rows = np.unique(np.linspace(0, data.num_train - 1, min(NUM_IMAGES, data.num_train)).astype(np.int64))
        rows = rows[: max(1, len(rows) // 2 * 2)]
        # Neighbours alternate between the two halves of the batch, which both have images of all of the file.
        images, labels = data.train_images(np.concatenate([rows[::2], rows[1::2]]))
        return cls(images=as_inputs(images, dtype), labels=labels, class_weights=class_weights)

    @property
    def halves(self) -> list[tuple[Tensor, Tensor]]:
        size = max(1, len(self.labels) // 2)
        return [(self.images[at : at + size], self.labels[at : at + size]) for at in range(0, len(self.labels), size)]


def names_of(network: Network) -> tuple[str, ...]:
    """The names of the numbers that `measure` returns."""
    return (*_NUMBERS, *network.weight_names)


def measure(state: LanesState, batch: FixedBatch) -> Tensor:
    """Diagnose lanes, without a host sync.

    Returns:
        [len(names_of), L] float64: the numbers of `epoch_report.Diagnosis`, in the order of `names_of`. NaN stands for
        a share of units that the network does not have.
    """
    return torch.cat([_measure_chunk(state.part(lanes), batch) for lanes in _chunks(state, batch)], dim=1)


def _chunks(state: LanesState, batch: FixedBatch) -> Iterator[slice]:
    network, device = state.network, batch.images.device
    per_lane = max(
        sum(math.prod(shape.shape) for shape in network.parameter_shapes.values()),
        network.widest_activation * len(batch.labels),
    )
    size = 1 if network.prefers_single_lanes(device) else max(1, _CHUNK_FLOATS[device.type] // per_lane)
    for start in range(0, state.num_lanes, size):
        yield slice(start, min(start + size, state.num_lanes))


def _measure_chunk(state: LanesState, batch: FixedBatch) -> Tensor:
    halves = batch.halves
    losses, units, gradients = zip(*(_gradients(state, *half, batch.class_weights) for half in halves), strict=True)
    mean = {name: sum(each[name] for each in gradients) / len(halves) for name in state.parameters}
    squared = [_squares([each[name] for name in each]) for each in gradients]
    norm_squared = _squares(list(mean.values()))
    # The halves' gradients deviate from their mean by the noise of one image, divided by the root of the batch size.
    spread = sum(squared) / len(halves) - norm_squared
    noise = (spread * len(batch.labels)).clamp(min=0.0).sqrt()
    shares = [sum(each) / len(halves) for each in zip(*units, strict=True)]
    numbers = [sum(losses) / len(halves), norm_squared.sqrt(), noise, _penalty_norm(state), *shares]
    return torch.stack([*(number.double() for number in numbers), *_update_ratios(state, mean)])


def _gradients(
    state: LanesState, images: Tensor, labels: Tensor, class_weights: Tensor | None
) -> tuple[Tensor, tuple[Tensor, Tensor], Tensors]:
    """Mean loss [L], shares of saturated and dead outputs [L] each, and the gradients of the weighted loss [L, ...]."""
    leaves = {name: value.detach().requires_grad_(True) for name, value in state.parameters.items()}
    forward = partial(_forward, state.network, images, labels, class_weights)
    with torch.enable_grad():
        if state.num_lanes == 1:  # without vmap's costs, and for what vmap cannot do
            lane = forward({name: value[0] for name, value in leaves.items()})
            losses, minimised, saturated, dead = (number.unsqueeze(0) for number in lane)
        else:
            losses, minimised, saturated, dead = vmap(forward)(leaves)
        gradients = torch.autograd.grad(minimised.sum(), list(leaves.values()))
    return losses.detach(), (saturated, dead), dict(zip(leaves, gradients, strict=True))


def _forward(
    network: Network, images: Tensor, labels: Tensor, class_weights: Tensor | None, parameters: Tensors
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """One lane: mean loss, what training minimises, and shares of saturated and of dead outputs, 0-d."""
    units = HiddenUnits(len(labels))
    with units:
        logits = network.logits(parameters, images)
    nothing = torch.full((), math.nan, dtype=torch.float64, device=images.device)
    saturated, dead = units.worst("tanh", "sigmoid"), units.worst("relu")
    loss = mean_loss(logits, labels)
    return (
        loss,
        loss if class_weights is None else mean_loss(logits, labels, class_weights),
        nothing if saturated is None else saturated,
        nothing if dead is None else dead,
    )


@torch.no_grad()
def _penalty_norm(state: LanesState) -> Tensor:
    """The norm of the gradient of the L1 and L2 terms, [L]."""
    if not (state.penalties.has_l1 or state.penalties.has_l2):
        return torch.zeros_like(state.rates.learning_rate)
    weights = [state.parameters[name] for name in state.network.weight_names]
    scaled = state.penalties.scaled(torch.ones_like(state.rates.learning_rate), weights[0].dtype)
    gradients = [torch.zeros_like(weight) for weight in weights]
    for gradient, weight in zip(gradients, weights, strict=True):
        scaled.add_gradient_(gradient, weight)
    return _squares(gradients).sqrt()


@torch.no_grad()
def _update_ratios(state: LanesState, gradients: Tensors) -> list[Tensor]:
    """Norm of each weight's next update, divided by the weight's norm, [L] float64 each."""
    optimizer = build_optimizer(state.optimizer)
    parameters = {name: value.clone() for name, value in state.parameters.items()}
    copied = {name: value.clone() for name, value in state.optimizer_state.items()}
    scale = optimizer.gradient_scale(state.rates)
    targets = optimizer.targets_(parameters, copied, state.rates)
    penalties = state.penalties.scaled(scale, next(iter(parameters.values())).dtype)
    for name in state.network.weight_names:
        penalties.add_gradient_(targets[name], parameters[name])
    for name, gradient in gradients.items():
        targets[name].addcmul_(gradient, lanes_first(scale, gradient))
    optimizer.finish_(parameters, copied, state.rates, targets)
    weights = [(parameters[name], state.parameters[name]) for name in state.network.weight_names]
    return [(_squares([after - before]) / _squares([before])).sqrt().double() for after, before in weights]


def _squares(tensors: Sequence[Tensor]) -> Tensor:
    """The sum of squares of each lane's numbers, [L]."""
    return torch.stack([tensor.flatten(start_dim=1).square().sum(dim=1) for tensor in tensors]).sum(dim=0)
