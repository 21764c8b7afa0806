"""One minibatch for all lanes: forward, backward, update.

The hot path: everything here runs once per minibatch.

Two ways to the same numbers: `AutogradStep` for any network, `DenseStep` with the gradient written out for
fully connected ones. A fused or captured step needs only the same signature.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, final

import torch
from torch import Tensor

from hpsearch.training.activations import slope_at_output
from hpsearch.training.dense import DenseLayer, DenseNetwork
from hpsearch.training.losses import lanes_first, mean_nll
from hpsearch.training.network import Network
from hpsearch.training.optimizers import Optimizer
from hpsearch.training.stack import LaneStack


class LaneStep(Protocol):
    """Train every lane on one minibatch."""

    def __call__(self, stack: LaneStack, images: Tensor, labels: Tensor) -> Tensor:
        """Update the stack's parameters and optimizer state in place, without a host sync.

        Args:
            images: [B, pixels] shared by the lanes, or [L, B, pixels].
            labels: [B] or [L, B] int64.
        Returns:
            Mean NLL of the minibatch before the update, in nats, [L].
        """


def build_step(network: Network, optimizer: Optimizer) -> LaneStep:
    """The fastest step that we have for this network."""
    if isinstance(network, DenseNetwork):
        return DenseStep(network=network, optimizer=optimizer)
    return AutogradStep(network=network, optimizer=optimizer)


@final
@dataclass(frozen=True, kw_only=True)
class AutogradStep:
    """Gradients by torch.autograd, of a sum over lanes in which each lane's loss has its own factor.

    The factor carries the optimizer's gradient scale (the learning rate), so that gradients arrive ready to
    be added.
    """

    network: Network
    optimizer: Optimizer

    def __call__(self, stack: LaneStack, images: Tensor, labels: Tensor) -> Tensor:
        leaves = {name: value.detach().requires_grad_(True) for name, value in stack.parameters.items()}
        scale = self.optimizer.gradient_scale(stack.rates)
        with torch.enable_grad():
            losses = mean_nll(self.network.lane_logits(leaves, images), labels)
            # A lane that is NaN makes the sum NaN, but not the other lanes' derivatives of it.
            total = (losses * scale.to(losses.dtype)).sum()
        gradients = torch.autograd.grad(total, list(leaves.values()))
        with torch.no_grad():
            targets = self.optimizer.targets_(stack.parameters, stack.optimizer_state, stack.rates)
            for name in self.network.weight_names:
                stack.penalties.add_gradient_(targets[name], stack.parameters[name], scale=scale)
            for name, gradient in zip(leaves, gradients, strict=True):
                targets[name].add_(gradient)
            self.optimizer.finish_(stack.parameters, stack.optimizer_state, stack.rates, targets)
        return losses.detach()


@final
@dataclass(frozen=True, kw_only=True)
class DenseStep:
    """Backpropagation written out for fully connected layers.

    At batch 20 the time goes into reading and writing weights. A weight's gradient is inputs^T @ deltas; the
    GEMM that computes it adds straight into the optimizer's target (for SGD the weight itself), so that no
    gradient is written down. This needs the learning rate inside the deltas: they are scaled once, at the
    scores, where they are small.
    """

    network: DenseNetwork
    optimizer: Optimizer

    @torch.no_grad()
    def __call__(self, stack: LaneStack, images: Tensor, labels: Tensor) -> Tensor:
        scale = self.optimizer.gradient_scale(stack.rates)
        *inputs, logits = self.network.lane_layer_inputs(stack.parameters, images)
        losses, score_deltas = _softmax_deltas(logits, labels, scale)
        # All deltas come before the first update: they need the weights of this step's forward pass.
        deltas = self._layer_deltas(stack, inputs, score_deltas)
        targets = self.optimizer.targets_(stack.parameters, stack.optimizer_state, stack.rates)
        for layer, layer_inputs, layer_deltas in zip(self.network.layers, inputs, deltas, strict=True):
            weights = targets[layer.weight]
            stack.penalties.add_gradient_(weights, stack.parameters[layer.weight], scale=scale)
            weights.baddbmm_(layer_inputs.transpose(1, 2), layer_deltas)
            targets[layer.bias].add_(layer_deltas.sum(dim=1))
        self.optimizer.finish_(stack.parameters, stack.optimizer_state, stack.rates, targets)
        return losses

    def _layer_deltas(self, stack: LaneStack, inputs: list[Tensor], score_deltas: Tensor) -> list[Tensor]:
        """The scaled loss derived by each layer's weighted sums, [L, B, outputs] each, first layer first."""
        deltas = [score_deltas]
        for below, layer, layer_inputs in _hidden_layers_downwards(self.network.layers, inputs):
            by_outputs = torch.bmm(deltas[0], stack.parameters[layer.weight].transpose(1, 2))
            assert below.activation is not None  # only the last layer has none
            deltas.insert(0, by_outputs.mul_(slope_at_output(below.activation, layer_inputs)))
        return deltas


def _hidden_layers_downwards(
    layers: tuple[DenseLayer, ...], inputs: list[Tensor]
) -> list[tuple[DenseLayer, DenseLayer, Tensor]]:
    """(hidden layer, the layer above it, what lies between them), from the scores down."""
    return list(zip(layers, layers[1:], inputs[1:], strict=False))[::-1]


def _softmax_deltas(logits: Tensor, labels: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    """Mean NLL [L], and scale * NLL's derivative by the scores: scale * (p - onehot) / B, [L, B, classes]."""
    log_probabilities = torch.log_softmax(logits, dim=-1)
    chosen = labels.expand(logits.shape[:-1]).unsqueeze(-1)  # [L, B, 1]
    losses = -log_probabilities.gather(-1, chosen).squeeze(-1).mean(dim=-1)
    deltas = log_probabilities.exp_()
    deltas.scatter_add_(-1, chosen, deltas.new_full((), -1.0).expand(chosen.shape))
    return losses, deltas.mul_(lanes_first(scale / logits.shape[1], deltas))
