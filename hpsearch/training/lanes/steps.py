"""Training steps: forward pass, backward pass and update of all lanes on consecutive minibatches. The hot path.

`AutogradStep` works for any network; `DenseStep` has an explicit gradient for fully connected networks. Both give the
same numbers up to rounding.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, final

import torch
from torch import Tensor

from hpsearch.data.resident import as_inputs
from hpsearch.study.settings import Precision
from hpsearch.training.lanes.capture import CapturedStep, CudaCapture, LaneStep
from hpsearch.training.lanes.dense_step import BLOCK_ROWS, DenseStep
from hpsearch.training.lanes.stack import LaneStack
from hpsearch.training.losses import loss_per_example, mean_loss, weight_per_example
from hpsearch.training.networks.dense import DenseNetwork
from hpsearch.training.networks.network import Network
from hpsearch.training.optimizers import Optimizer, build_optimizer
from hpsearch.training.precision import computing, multiplying
from hpsearch.training.tensors import Tensors

# Floats of a slice's widest intermediate result, 32 MiB of float32: bounds the memory of large minibatches. LeNet's
# minibatches of 500 images (docs/sources.md, section 1) are one slice: smaller slices were slower
# (docs/performance.md).
TRAINING_SLICE_FLOATS = 2**23


def build_step(
    network: Network,
    device: torch.device,
    precision: Precision = "float32",
    is_shuffled: bool = False,
    beat: Callable[[], None] = lambda: None,
    class_weights: Tensor | None = None,
) -> LaneStep:
    """Build the fastest available step for this network on this device.

    Shuffled lanes share images only while all lanes have the same seed and epoch, so sharing depends on the other
    trials in the cohort. In float32 the faster computation with shared images differs by rounding only. In TF32 and
    bfloat16 every lane is therefore computed as if its images were not shared.

    Args:
        is_shuffled: whether the trials shuffle their training images.
        beat: called after each minibatch (block, or slice of a minibatch), or after each run of a captured graph.
        class_weights: [classes] on the device (`class_weights_of`); None: all classes are weighed alike.
    """
    step: LaneStep
    ignores_sharing = is_shuffled and precision != "float32"
    if isinstance(network, DenseNetwork):
        rows = 1 if ignores_sharing else BLOCK_ROWS[device.type]
        step = DenseStep(network=network, precision=precision, block_rows=rows, beat=beat, class_weights=class_weights)
    else:
        step = AutogradStep(
            network=network,
            precision=precision,
            is_sliced=network.prefers_single_lanes(device),
            ignores_sharing=ignores_sharing,
            beat=beat,
            class_weights=class_weights,
        )
    if device.type != "cuda":
        return step
    return CapturedStep(step=step, capture=CudaCapture(device), beat=beat)


class _Update(NamedTuple):
    """The lanes that share an optimizer: where they are, and a view of them."""

    lanes: slice
    optimizer: Optimizer
    stack: LaneStack


@final
@dataclass(frozen=True, kw_only=True)
class AutogradStep:
    """A step with gradients by torch.autograd.

    Each lane's loss is multiplied by the optimizer's gradient scale (the learning rate), so that the gradients can be
    added directly to their targets.

    Args:
        is_sliced: process the lanes one after the other, and large minibatches in slices, instead of all at once
            (`Network.prefers_single_lanes`).
        ignores_sharing: compute with shared images as if each lane had its own.
    """

    network: Network
    precision: Precision = "float32"
    is_sliced: bool = False
    ignores_sharing: bool = False
    beat: Callable[[], None] = lambda: None
    class_weights: Tensor | None = None

    def train(self, stack: LaneStack, images: Tensor, labels: Tensor, batch_size: int) -> Tensor:
        losses = torch.zeros(stack.num_lanes, dtype=torch.float64, device=images.device)
        updates = [_Update(lanes, build_optimizer(name), part) for lanes, name, part in stack.by_optimizer()]
        scale = torch.cat([update.optimizer.gradient_scale(update.stack.rates) for update in updates])
        with multiplying(self.precision, images.device):
            for start in range(0, labels.shape[-1], batch_size):
                inputs = as_inputs(images.narrow(-2, start, batch_size), _dtype_of(stack.parameters))
                its_labels = labels.narrow(-1, start, batch_size)
                losses += self._train_minibatch(stack, updates, scale, inputs, its_labels)
                self.beat()
        return losses

    def _train_minibatch(
        self, stack: LaneStack, updates: Sequence[_Update], scale: Tensor, images: Tensor, labels: Tensor
    ) -> Tensor:
        gradients_of = self._lane_by_lane if self.is_sliced else self._all_at_once
        losses, gradients = gradients_of(stack.parameters, images, labels, scale)
        with torch.no_grad():
            for update in updates:
                parameters, state, rates = update.stack.parameters, update.stack.optimizer_state, update.stack.rates
                targets = update.optimizer.targets_(parameters, state, rates)
                penalties = update.stack.penalties.scaled(scale[update.lanes], losses.dtype)
                for name in self.network.weight_names:
                    penalties.add_gradient_(targets[name], parameters[name])
                for name, gradient in gradients.items():
                    targets[name].add_(gradient[update.lanes])
                update.optimizer.finish_(parameters, state, rates, targets)
        return losses

    def _all_at_once(
        self, parameters: Tensors, images: Tensor, labels: Tensor, scale: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Mean loss [L], and its scaled gradients [L, ...] by parameter name."""
        leaves = {name: value.detach().requires_grad_(True) for name, value in parameters.items()}
        with torch.enable_grad():
            if self.ignores_sharing and images.dim() == 2:
                images = images.expand(len(scale), *images.shape)
            with computing(self.precision, images.device):
                logits = self.network.lane_logits(leaves, images)
            scores = logits.to(_dtype_of(parameters))
            losses = mean_loss(scores, labels)
            weights = self.class_weights
            minimised = losses if weights is None else mean_loss(scores, labels, weights)
            # A lane with a NaN loss makes the sum NaN, but not the gradients of the other lanes.
            total = (minimised * scale.to(losses.dtype)).sum()
        gradients = torch.autograd.grad(total, list(leaves.values()))
        return losses.detach(), dict(zip(leaves, gradients, strict=True))

    def _lane_by_lane(
        self, parameters: Tensors, images: Tensor, labels: Tensor, scale: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """As `_all_at_once`, but processes one slice of one lane's images at a time."""
        losses = torch.zeros(len(scale), dtype=_dtype_of(parameters), device=images.device)
        gradients = {name: torch.zeros_like(value) for name, value in parameters.items()}
        for lane, factor in enumerate(scale.to(losses.dtype) / labels.shape[-1]):
            leaves = {name: value[lane].detach().requires_grad_(True) for name, value in parameters.items()}
            lane_images = images if images.dim() == 2 else images[lane]
            lane_labels = labels if labels.dim() == 1 else labels[lane]
            for rows in _even_slices(len(lane_labels), TRAINING_SLICE_FLOATS // self.network.widest_activation):
                with torch.enable_grad():
                    with computing(self.precision, images.device):
                        logits = self.network.logits(leaves, lane_images[rows])
                    each = loss_per_example(logits.to(losses.dtype), lane_labels[rows])
                    loss = each.sum()
                    scaled = self._weighted_sum(each, loss, lane_labels[rows]) * factor
                for name, gradient in zip(leaves, torch.autograd.grad(scaled, list(leaves.values())), strict=True):
                    gradients[name][lane].add_(gradient)
                losses[lane] += loss.detach()
                self.beat()
        return losses / labels.shape[-1], gradients

    def _weighted_sum(self, losses: Tensor, total: Tensor, labels: Tensor) -> Tensor:
        if self.class_weights is None:
            return total
        return (losses * weight_per_example(self.class_weights, labels, losses)).sum()


def _even_slices(num_rows: int, limit: int) -> list[slice]:
    """Slices of about equal length, at most `limit` rows each."""
    num_slices = -(-num_rows // max(1, limit))
    size = -(-num_rows // num_slices)
    return [slice(start, min(start + size, num_rows)) for start in range(0, num_rows, size)]


def _dtype_of(parameters: Tensors) -> torch.dtype:
    return next(iter(parameters.values())).dtype
