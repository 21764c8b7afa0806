"""Explicit backpropagation through the fully connected layers of all lanes, in blocks of minibatches.

At batch size 20 plain SGD spends its time reading and writing the first layer's weights: a minibatch is too small to
reuse them. These weights are needed only for X W^T, and an update adds D^T X to them. So for the minibatches
X_0, X_1 ... of a block, with the weights W as they are at its beginning,

    X_j W_j^T = X_j W^T + sum over i < j of (X_j X_i^T) D_i

where D_i are the deltas of minibatch i, multiplied by the learning rate. The Gram matrix X X^T of a block is the same
for all lanes. This is the same SGD, one minibatch after the other, with sums in another order: one large product
replaces many small ones, and W is read twice and written once per block. L2 regularisation multiplies W by a factor f
in each step, which puts powers of f into the sum. L1 and the other optimizers are not linear in W; for them a block
is one minibatch.

Lanes may have different optimizers and activations: the products are made for all lanes of a group at once, the updates
for each optimizer, the non-linearities for each activation.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import final

import torch
from torch import Tensor

from hpsearch.data.resident import as_inputs
from hpsearch.study.settings import Precision
from hpsearch.training.lanes.dense_objective import NegativeLogLikelihood, Objective, SquaredError
from hpsearch.training.lanes.stack import LaneStack
from hpsearch.training.losses import ScaledPenalties, lanes_first
from hpsearch.training.networks.activations import LaneActivations, lane_activation
from hpsearch.training.networks.dense import DenseLayer, DenseNetwork
from hpsearch.training.optimizers import Optimizer, build_optimizer
from hpsearch.training.precision import Products
from hpsearch.training.tensors import Tensors

# Images per block. On a CPU products reach their full rate at about 100 rows, and the corrections within a block grow
# with the square of its rows. On a GPU the memory traffic of the weights costs more.
BLOCK_ROWS = {"cpu": 100, "cuda": 200}
# A block's Gram matrix costs rows^2 * pixels once for all lanes; the lanes' products cost rows * outputs * pixels.
LEAST_OUTPUTS_PER_ROW = 4
# The corrections within a block cost rows^2 * outputs / 2, and save reading and writing pixels * outputs weights for
# each minibatch: with few pixels blocks are slower (docs/performance.md).
LEAST_PIXELS_PER_ROW = 3


@final
@dataclass(frozen=True, kw_only=True)
class DenseStep:
    """Trains the stack's linear lanes in blocks and the other lanes one minibatch at a time; no host sync.

    A weight's gradient is deltas^T @ inputs. The product that computes it adds directly to the optimizer's target (for
    SGD the weight itself), so that no gradient is stored. The deltas must therefore contain the learning rate; they
    are scaled once, at the scores, where they are small.

    Args:
        block_rows: maximum number of images per block. Minibatches larger than half of it form blocks of one
            minibatch, and so does every minibatch in float32 where blocks would be slower. Must be 1 if the precision
            is lower than float32 and lanes share images in some epochs only: a block is rounded differently from
            separate minibatches.
        class_weights: [classes] on the device (`class_weights_of`); None: all classes are weighed alike.
    """

    network: DenseNetwork
    block_rows: int
    precision: Precision = "float32"
    beat: Callable[[], None] = lambda: None
    class_weights: Tensor | None = None

    @cached_property
    def products(self) -> Products:
        return Products(precision=self.precision)

    @torch.no_grad()
    def train(self, stack: LaneStack, images: Tensor, labels: Tensor, batch_size: int) -> Tensor:
        has_own_images = images.dim() == 3
        losses = []
        for lanes, num_per_block in self._groups(stack, batch_size, has_own_images=has_own_images):
            group = _LaneGroup(step=self, stack=stack.part(lanes), batch_size=batch_size, num_per_block=num_per_block)
            its = (images[lanes], labels[lanes]) if has_own_images else (images, labels)
            losses.append(group.train(*its))
        return torch.cat(losses)

    def _groups(self, stack: LaneStack, batch_size: int, *, has_own_images: bool) -> list[tuple[slice, int]]:
        """The groups of lanes that train one after the other, with their numbers of minibatches per block."""
        linear = stack.linear
        num_per_block = self._minibatches_per_block(linear.stop - linear.start, batch_size)
        if num_per_block == 1 or has_own_images:  # lanes with different images would need one Gram matrix each
            return [(slice(0, stack.num_lanes), 1)]
        groups = [(slice(0, linear.start), 1), (linear, num_per_block), (slice(linear.stop, stack.num_lanes), 1)]
        return [(lanes, number) for lanes, number in groups if lanes.stop > lanes.start]

    def _minibatches_per_block(self, num_lanes: int, batch_size: int) -> int:
        first, rows = self.network.layers[0], self.block_rows
        if num_lanes == 0 or first.num_inputs < LEAST_PIXELS_PER_ROW * rows:
            return 1
        # In float32 both ways agree up to rounding. In TF32 and bfloat16 they round differently, and a trial must not
        # depend on the number of lanes beside it.
        if self.precision == "float32" and num_lanes * first.num_outputs < LEAST_OUTPUTS_PER_ROW * rows:
            return 1
        return max(1, rows // batch_size)


@dataclass(kw_only=True)
class _Block:
    """Tensors of one block of R images.

    Args:
        prepared: [L, R, pixels] images, prepared for products (`Products.prepared`); expanded if the lanes share them.
        labels: [L, R], or [R] if the lanes share them.
        wanted: what the objective compares the scores with (`Objective.wanted`).
        sums: [L, R, outputs] the first layer's weighted sums, without bias, with the weights at the block's beginning.
        deltas: [L, R, outputs] derivative of the scaled loss with respect to those sums; filled one minibatch at a
            time.
        gram: [R, R] dot products between the images; None in a block of one minibatch. The Gram matrix and the
            corrections computed from it are float32 whatever the study's precision.
    """

    prepared: Tensor
    labels: Tensor
    wanted: Tensor
    sums: Tensor
    deltas: Tensor
    gram: Tensor | None
    scores: list[Tensor] = field(default_factory=list)  # of each minibatch, as `Objective.scores` returns them


@final
@dataclass(frozen=True, kw_only=True)
class _LaneGroup:
    """A group of lanes that trains on consecutive minibatches.

    Args:
        num_per_block: minibatches per block; with more than one, all lanes are linear.
    """

    step: DenseStep
    stack: LaneStack
    batch_size: int
    num_per_block: int

    def train(self, images: Tensor, labels: Tensor) -> Tensor:
        """Train the lanes on all minibatches; returns the sum of the minibatches' mean losses, [L] float64."""
        rows, dtype = self.batch_size * self.num_per_block, self.stack.parameters[self._first.weight].dtype
        losses = torch.zeros(self.stack.num_lanes, dtype=torch.float64, device=images.device)
        for start in range(0, labels.shape[-1], rows):
            size = min(rows, labels.shape[-1] - start)
            inputs = as_inputs(images.narrow(-2, start, size), dtype)
            block = self._block(inputs, labels.narrow(-1, start, size))
            self._train_block(block)
            self.step.beat()
            losses += self._objective(labels).total(torch.cat(block.scores, dim=1), block.labels)
        return losses / self.batch_size

    def _objective(self, labels: Tensor) -> Objective:
        return SquaredError() if labels.is_floating_point() else self._of_classes

    @cached_property
    def _of_classes(self) -> Objective:
        return NegativeLogLikelihood(class_weights=self.step.class_weights)

    def _block(self, images: Tensor, labels: Tensor) -> _Block:
        gram = images @ images.T if labels.shape[-1] > self.batch_size else None
        products = self.step.products
        prepared = products.prepared(images)
        if images.dim() == 2:  # expanded, not copied: every lane's product reads the same images
            prepared = prepared.expand(self.stack.num_lanes, *images.shape)
        weights = products.prepared(self.stack.parameters[self._first.weight])
        sums = products.multiply(prepared, weights.transpose(1, 2))
        return _Block(
            prepared=prepared,
            labels=labels,
            wanted=self._objective(labels).wanted(labels, images, self.step.network.num_outputs, self._scale_per_image),
            sums=sums,
            deltas=torch.empty_like(sums),
            gram=gram,
        )

    def _train_block(self, block: _Block) -> None:
        num_rows = block.sums.shape[1]
        for start in range(0, num_rows, self.batch_size):
            for update in self._updates:
                update.begin()
            self._train_minibatch(block, slice(start, start + self.batch_size))
        deltas = self.step.products.prepared(block.deltas)
        for update in self._updates:
            update.add_product_(self._first.weight, deltas, block.prepared, is_penalised=block.gram is None)
            if block.gram is not None and self.stack.penalties.has_l2:
                update.targets[self._first.weight].mul_(self._shrinking(num_rows // self.batch_size))
            update.finish()

    def _train_minibatch(self, block: _Block, rows: slice) -> None:
        """Forward and backward pass of one minibatch, and every update except the one of the first layer's weights."""
        outputs = [self._first_outputs(block, rows)]
        for layer in self._layers[1:]:
            outputs.append(self._forward(layer, outputs[-1]))
        objective = self._objective(block.labels)
        block.scores.append(objective.scores(outputs[-1]))
        deltas = objective.deltas(block.scores[-1], block.wanted[:, rows], self._scale_per_image)
        for below, layer, inputs in self._downwards(outputs):
            prepared = self.step.products.prepared(deltas)
            weights = self.step.products.prepared(self.stack.parameters[layer.weight])
            # Compute the deltas below before updating this layer: they need the weights of this forward pass.
            deltas_below = self.step.products.multiply(prepared, weights)
            self._update(layer, prepared, deltas, inputs)
            assert below.activation is not None  # only the last layer has none
            # The first layer's deltas are collected for the whole block.
            deltas = block.deltas[:, rows] if below is self._first else deltas_below
            below.activation.multiply_slope(deltas_below, inputs, out=deltas)
        self._update_bias(self._first, deltas)
        if block.gram is not None and self.stack.penalties.has_l2:
            # Cancels in advance the shrinking that is applied to the whole sum when it is used.
            deltas.mul_(self._shrinking(-rows.start // self.batch_size - 1))
        if len(self._layers) == 1:
            block.deltas[:, rows] = deltas

    def _first_outputs(self, block: _Block, rows: slice) -> Tensor:
        """The first layer's outputs with its current weights, [L, B, outputs]."""
        sums = block.sums[:, rows]
        if block.gram is not None and rows.start > 0:
            gram = block.gram[rows, : rows.start].expand(self.stack.num_lanes, -1, -1)
            sums.baddbmm_(gram, block.deltas[:, : rows.start])
            if self.stack.penalties.has_l2:
                sums.mul_(self._shrinking(rows.start // self.batch_size))
        return self._activated_(self._first, sums)

    def _forward(self, layer: DenseLayer, inputs: Tensor) -> Tensor:
        products = self.step.products
        weights = products.prepared(self.stack.parameters[layer.weight])
        return self._activated_(layer, products.multiply(products.prepared(inputs), weights.transpose(1, 2)))

    def _activated_(self, layer: DenseLayer, sums: Tensor) -> Tensor:
        bias = self.stack.parameters[layer.bias].unsqueeze(1)
        return sums.add_(bias) if layer.activation is None else layer.activation.apply_(sums, bias=bias)

    def _update(self, layer: DenseLayer, prepared: Tensor, deltas: Tensor, inputs: Tensor) -> None:
        inputs = self.step.products.prepared(inputs)
        for update in self._updates:
            update.add_product_(layer.weight, prepared, inputs)
        self._update_bias(layer, deltas)

    def _update_bias(self, layer: DenseLayer, deltas: Tensor) -> None:
        sums = deltas.sum(dim=1)
        for update in self._updates:
            update.targets[layer.bias].add_(update.of(sums))

    def _downwards(self, outputs: list[Tensor]) -> list[tuple[DenseLayer, DenseLayer, Tensor]]:
        """(layer below, layer, the outputs between them), from the scores down to the second layer."""
        return list(zip(self._layers, self._layers[1:], outputs, strict=False))[::-1]

    @cached_property
    def _layers(self) -> tuple[DenseLayer, ...]:
        network = self.step.network
        if isinstance(network.activation, LaneActivations):
            activation = lane_activation([kind.activation for kind in self.stack.kinds])
            network = replace(network, activation=activation)
        return network.layers

    @cached_property
    def _updates(self) -> Sequence[_Update]:
        return [
            _Update(
                lanes=None if stack is self.stack else lanes,
                stack=stack,
                optimizer=build_optimizer(name),
                products=self.step.products,
            )
            for lanes, name, stack in self.stack.by_optimizer()
        ]

    @property
    def _first(self) -> DenseLayer:
        return self._layers[0]

    @cached_property
    def _scale(self) -> Tensor:
        """The factor by which gradients are multiplied before they are added, [L] float64."""
        return torch.cat([update.scale for update in self._updates])

    @cached_property
    def _scale_per_image(self) -> Tensor:
        """`_scale` divided by the batch size, [L, 1, 1] in the weights' precision."""
        like = self.stack.parameters[self._first.weight]
        return lanes_first(self._scale / self.batch_size, like)

    @cached_property
    def _powers(self) -> dict[int, Tensor]:
        return {}

    def _shrinking(self, num_minibatches: int) -> Tensor:
        """The factor by which L2 multiplies a lane's weights in `num_minibatches` minibatches, [L, 1, 1]."""
        if num_minibatches not in self._powers:
            factor = 1.0 + 2.0 * self.stack.penalties.lambda_2 * self._scale  # the scale is negative
            like = self.stack.parameters[self._first.weight]
            self._powers[num_minibatches] = lanes_first(factor**num_minibatches, like)
        return self._powers[num_minibatches]


@final
@dataclass(kw_only=True)
class _Update:
    """The updates of those lanes of a group that share an optimizer.

    Args:
        lanes: where they are in the group; None: they are the whole group.
        stack: a view of them.
    """

    lanes: slice | None
    stack: LaneStack
    optimizer: Optimizer
    products: Products
    targets: Tensors = field(default_factory=dict)  # of the current minibatch

    def begin(self) -> None:
        """Prepare the targets of a minibatch."""
        self.targets = self.optimizer.targets_(self.stack.parameters, self._state, self.stack.rates)

    def add_product_(self, name: str, deltas: Tensor, inputs: Tensor, *, is_penalised: bool = True) -> None:
        """Add the gradient of a weight, deltas^T @ inputs of the whole group, and that of its penalties."""
        if is_penalised:
            self._penalties.add_gradient_(self.targets[name], self.stack.parameters[name])
        self.products.add_product_(self.targets[name], self.of(deltas).transpose(1, 2), self.of(inputs))

    def finish(self) -> None:
        """Update the parameters: every target has received its gradient."""
        self.optimizer.finish_(self.stack.parameters, self._state, self.stack.rates, self.targets)

    def of(self, values: Tensor) -> Tensor:
        """These lanes' part of the group's values, [L, ...]."""
        return values if self.lanes is None else values[self.lanes]

    @cached_property
    def scale(self) -> Tensor:
        """The factor by which gradients are multiplied before they are added, [L] float64."""
        return self.optimizer.gradient_scale(self.stack.rates)

    @cached_property
    def _state(self) -> Tensors:
        return self.stack.optimizer_state

    @cached_property
    def _penalties(self) -> ScaledPenalties:
        return self.stack.penalties.scaled(self.scale, next(iter(self.stack.parameters.values())).dtype)
