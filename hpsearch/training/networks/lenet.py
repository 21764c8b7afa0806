"""LeNet, a convolutional network, and its convolution and pooling operations."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import final

import torch
from torch import Tensor
from torch.nn import functional

from hpsearch.data.example_shape import is_image, maps_shape, shape_text
from hpsearch.errors import InputError
from hpsearch.training.networks.activations import activation_of
from hpsearch.training.networks.dense import DenseLayer, dense_logits, hidden_and_scores, lane_linear
from hpsearch.training.networks.initialization import ParameterShape, weight_bound
from hpsearch.training.networks.network import Network
from hpsearch.training.tensors import Tensors

KERNEL_SIZE = 5  # both convolutions are 5x5
POOL_SIZE = 2  # both max-pools are 2x2


def convolve(images: Tensor, kernels: Tensor, *, groups: int = 1) -> Tensor:
    """Cross-correlate the images with every kernel, without padding.

    Theano's operator flips the kernels and this one does not. The difference does not matter for kernels that are
    drawn at random and learned.

    Args:
        images: [B, maps, height, width].
        kernels: [kernels, maps / groups, kernel height, kernel width].
    Returns:
        [B, kernels, height - kernel height + 1, width - kernel width + 1].
    Source: docs/sources.md, section 2.
    """
    return functional.conv2d(images, kernels, groups=groups)


def max_pool(images: Tensor) -> Tensor:
    """Keep the largest of every 2x2 pixels; an odd last row or column is ignored (docs/sources.md, section 2)."""
    return functional.max_pool2d(images, kernel_size=POOL_SIZE)


@final
@dataclass(frozen=True, kw_only=True)
class LeNet(Network):
    """Two convolutions with max-pools, a dense layer and a softmax layer.

    Bias and activation follow the pool instead of the convolution: they then process a quarter of the numbers, and the
    result is the same.

    Raises:
        InputError: the images have no pixel left after the second pool.
    Source: docs/sources.md, section 2.
    """

    def __post_init__(self) -> None:
        if not is_image(self.example_shape):
            raise InputError(
                f"model.family cnn needs images, got rows of {shape_text(self.example_shape)}",
                hint="use model.family mlp or logistic",
            )
        if min(self.pooled_shapes[1]) < 1:
            raise InputError(
                f"model.family cnn needs images of at least 16x16 pixels, got {shape_text(self.example_shape)}",
                hint="use model.family mlp or logistic, or larger images",
            )

    @cached_property
    def _maps_shape(self) -> tuple[int, int, int]:
        return maps_shape(self.example_shape)

    @cached_property
    def pooled_shapes(self) -> tuple[tuple[int, int], tuple[int, int]]:
        """Height and width after each pool: 28 -> 24 (5x5) -> 12 (2x2 pool) -> 8 (5x5) -> 4 (2x2 pool)."""
        first = _pooled_shape(self._maps_shape[1:])
        return first, _pooled_shape(first)

    @cached_property
    def dense_layers(self) -> tuple[DenseLayer, DenseLayer]:
        height, width = self.pooled_shapes[1]
        num_features = self.model.kernels[1] * height * width  # 50 * 4 * 4 = 800 in the deeplearning.net tutorial
        return hidden_and_scores(self.model, num_inputs=num_features, num_outputs=self.num_outputs)

    @cached_property
    def parameter_shapes(self) -> dict[str, ParameterShape]:
        first, second = self.model.kernels
        shapes = self._convolution_shapes("conv1", num_maps=self._maps_shape[0], num_kernels=first)
        shapes |= self._convolution_shapes("conv2", num_maps=first, num_kernels=second)
        for layer in self.dense_layers:
            shapes |= layer.shapes(self.model)
        return shapes

    def _convolution_shapes(self, name: str, *, num_maps: int, num_kernels: int) -> dict[str, ParameterShape]:
        area = KERNEL_SIZE * KERNEL_SIZE
        bound = weight_bound(
            self.model,
            fan_in=num_maps * area,
            fan_out=num_kernels * area / POOL_SIZE**2,  # divided by the pool's size: docs/sources.md, section 2
        )
        shape = (num_kernels, num_maps, KERNEL_SIZE, KERNEL_SIZE)
        return {
            f"{name}.weight": ParameterShape(shape=shape, bound=bound, is_weight=True),
            f"{name}.bias": ParameterShape(shape=(num_kernels,), bound=0.0, is_weight=False),
        }

    @cached_property
    def widest_activation(self) -> int:
        _, height, width = self._maps_shape
        convolved = (height - KERNEL_SIZE + 1) * (width - KERNEL_SIZE + 1)
        return max(self.model.kernels[0] * convolved, self.model.hidden_units)

    def prefers_single_lanes(self, device: torch.device) -> bool:
        """True on a CPU: many lanes together are no faster than one, whose results stay in the cache."""
        return device.type == "cpu"

    def logits(self, parameters: Tensors, images: Tensor) -> Tensor:
        maps = _fast_layout(images.reshape(-1, *self._maps_shape))
        for name in ("conv1", "conv2"):
            pooled = max_pool(convolve(maps, parameters[f"{name}.weight"]))
            biases = parameters[f"{name}.bias"].reshape(1, -1, 1, 1)
            # Cast the biases to the maps' type: under autocast a sum with float32 would make all later maps float32.
            maps = activation_of(self.model)(pooled + biases.to(pooled.dtype))
        return dense_logits(self.dense_layers, parameters, maps.flatten(start_dim=1))  # from [B, 800]

    def lane_logits(self, parameters: Tensors, images: Tensor) -> Tensor:
        num_lanes = parameters["conv1.weight"].shape[0]
        # The lanes' feature maps are concatenated. On shared images the first convolution is one ordinary convolution
        # with the kernels of all lanes. The second one is grouped: each lane's kernels see only that lane's maps.
        if images.dim() == 2:
            maps, groups = images.reshape(-1, *self._maps_shape), 1
        else:
            channels, *size = self._maps_shape
            maps, groups = images.transpose(0, 1).reshape(-1, num_lanes * channels, *size), num_lanes
        maps = _fast_layout(maps)
        maps = self._lane_maps("conv1", parameters, maps, groups=groups)  # [B, L * 20, 12, 12]
        maps = self._lane_maps("conv2", parameters, maps, groups=num_lanes)  # [B, L * 50, 4, 4]
        features = maps.reshape(maps.shape[0], num_lanes, -1).transpose(0, 1)  # [L, B, 800]
        hidden, scores = self.dense_layers
        units = lane_linear(features, parameters[hidden.weight], parameters[hidden.bias])
        units = activation_of(self.model)(units)
        return lane_linear(units, parameters[scores.weight], parameters[scores.bias])

    def _lane_maps(self, name: str, parameters: Tensors, maps: Tensor, *, groups: int) -> Tensor:
        kernels = _fast_layout(parameters[f"{name}.weight"].flatten(end_dim=1))  # [L * kernels, maps, 5, 5]
        biases = parameters[f"{name}.bias"].reshape(1, -1, 1, 1)
        pooled = max_pool(convolve(maps, kernels, groups=groups))
        return activation_of(self.model)(pooled + biases.to(pooled.dtype))


def _fast_layout(maps: Tensor) -> Tensor:
    """Convert maps to the memory layout in which this device convolves fastest.

    On a CPU this is channels last: the maps of one pixel are adjacent. LeNet's epoch then takes about half the time.
    """
    if maps.device.type != "cpu":
        return maps
    # Not `contiguous`: with a single map it does nothing and keeps the strides, and the gain is lost.
    return maps.to(memory_format=torch.channels_last)


def _pooled_shape(shape: tuple[int, int]) -> tuple[int, int]:
    height, width = shape
    return (height - KERNEL_SIZE + 1) // POOL_SIZE, (width - KERNEL_SIZE + 1) // POOL_SIZE
