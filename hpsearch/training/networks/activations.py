"""Non-linearities of the hidden layers, with in-place forms and derivatives for the explicit pass of `dense_step`."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from typing import ClassVar, final

import torch
from torch import Tensor

from hpsearch.study.registry import ACTIVATIONS
from hpsearch.study.settings import ModelSettings
from hpsearch.training.tensors import runs

SIGMOID_GAIN = 4.0  # sigmoid needs 4 times tanh's interval (Glorot & Bengio 2010; docs/sources.md, section 2)


class Activation(ABC):
    """An element-wise non-linearity. Objects have no state.

    Args:
        padding_bias: bias with which a unit without inputs has the output 0 (`padding`).
    """

    padding_bias: ClassVar[float] = 0.0

    @abstractmethod
    def __call__(self, inputs: Tensor) -> Tensor: ...

    @abstractmethod
    def apply_(self, inputs: Tensor, *, bias: Tensor | float = 0.0) -> Tensor:
        """Compute the non-linearity of inputs + bias in place; the bias is broadcast over the inputs."""

    @abstractmethod
    def multiply_slope(self, deltas: Tensor, outputs: Tensor, *, out: Tensor) -> None:
        """Multiply deltas by the derivative, computed from the outputs; the inputs need not be kept.

        Args:
            out: receives the product; may be `deltas`.
        """

    @abstractmethod
    def weight_bound(self, fan_in: float, fan_out: float) -> float:
        """Half the width of the interval of a layer's initial weights (`initialization` "glorot")."""


def activation_of(model: ModelSettings) -> Activation:
    return activation_named(model.activation)


@cache
def activation_named(name: str) -> Activation:
    """The activation of this name: always the same object."""
    activation: Activation = ACTIVATIONS[name].implementation()
    return activation


@final
class Tanh(Activation):
    def __call__(self, inputs: Tensor) -> Tensor:
        return torch.tanh(inputs)

    def apply_(self, inputs: Tensor, *, bias: Tensor | float = 0.0) -> Tensor:
        """On a CPU computed as 2 sigmoid(2x) - 1: five times faster, and within 2.4e-7 of tanh in float32."""
        if inputs.device.type != "cpu":
            return inputs.add_(bias).tanh_()
        # alpha includes the factor in the addition: two passes over memory instead of four.
        doubled = torch.add(2.0 * torch.as_tensor(bias), inputs, alpha=2.0, out=inputs).sigmoid_()
        return torch.add(inputs.new_full((), -1.0), doubled, alpha=2.0, out=inputs)

    def multiply_slope(self, deltas: Tensor, outputs: Tensor, *, out: Tensor) -> None:
        torch.ops.aten.tanh_backward.grad_input(deltas, outputs, grad_input=out)

    def weight_bound(self, fan_in: float, fan_out: float) -> float:
        """Source: Glorot & Bengio 2010."""
        return math.sqrt(6.0 / (fan_in + fan_out))


@final
class Sigmoid(Activation):
    padding_bias = -1e30  # sigmoid of this is 0 exactly, in every precision

    def __call__(self, inputs: Tensor) -> Tensor:
        return torch.sigmoid(inputs)

    def apply_(self, inputs: Tensor, *, bias: Tensor | float = 0.0) -> Tensor:
        return inputs.add_(bias).sigmoid_()

    def multiply_slope(self, deltas: Tensor, outputs: Tensor, *, out: Tensor) -> None:
        torch.ops.aten.sigmoid_backward.grad_input(deltas, outputs, grad_input=out)

    def weight_bound(self, fan_in: float, fan_out: float) -> float:
        """Source: Glorot & Bengio 2010."""
        return SIGMOID_GAIN * math.sqrt(6.0 / (fan_in + fan_out))


@final
class Relu(Activation):
    """The derivative at 0 is 0, as in torch."""

    def __call__(self, inputs: Tensor) -> Tensor:
        return torch.relu(inputs)

    def apply_(self, inputs: Tensor, *, bias: Tensor | float = 0.0) -> Tensor:
        return inputs.add_(bias).relu_()

    def multiply_slope(self, deltas: Tensor, outputs: Tensor, *, out: Tensor) -> None:
        torch.ops.aten.threshold_backward.grad_input(deltas, outputs, 0, grad_input=out)

    def weight_bound(self, fan_in: float, fan_out: float) -> float:
        """Source: He et al. 2015: docs/sources.md has no rule for ReLU; Glorot's loses half the variance with it."""
        return math.sqrt(6.0 / fan_in)


@final
@dataclass(frozen=True)
class LaneActivations(Activation):
    """The non-linearities of lanes, [L, ...], which may differ from lane to lane.

    Args:
        names: of each lane's activation. Neighbours with the same one are computed together.
    """

    names: tuple[str, ...]

    @cached_property
    def _runs(self) -> list[tuple[slice, Activation]]:
        return [(lanes, activation_named(name)) for lanes, name in runs(self.names)]

    def __call__(self, inputs: Tensor) -> Tensor:
        return torch.cat([activation(inputs[lanes]) for lanes, activation in self._runs])

    def apply_(self, inputs: Tensor, *, bias: Tensor | float = 0.0) -> Tensor:
        for lanes, activation in self._runs:
            activation.apply_(inputs[lanes], bias=bias[lanes] if isinstance(bias, Tensor) else bias)
        return inputs

    def multiply_slope(self, deltas: Tensor, outputs: Tensor, *, out: Tensor) -> None:
        for lanes, activation in self._runs:
            activation.multiply_slope(deltas[lanes], outputs[lanes], out=out[lanes])

    def weight_bound(self, fan_in: float, fan_out: float) -> float:
        raise TypeError("initial weights are those of one trial")


def lane_activation(names: Sequence[str]) -> Activation:
    """The activation of lanes with these names: a plain one if they all have the same."""
    return LaneActivations(tuple(names)) if len(set(names)) > 1 else activation_named(names[0])
