"""Fully connected networks: logistic regression and the multilayer perceptron."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import final

import torch
from torch import Tensor
from torch.nn import functional

from hpsearch.study.settings import ModelSettings
from hpsearch.training.networks.activations import Activation, activation_of
from hpsearch.training.networks.initialization import ParameterShape, weight_bound
from hpsearch.training.networks.network import Network
from hpsearch.training.tensors import Tensors


@dataclass(frozen=True, kw_only=True, slots=True)
class DenseLayer:
    """outputs = activation(inputs @ weight.T + bias).

    Without an activation the outputs are the scores of the softmax layer.
    """

    name: str
    num_inputs: int
    num_outputs: int
    activation: Activation | None

    @property
    def weight(self) -> str:
        return f"{self.name}.weight"

    @property
    def bias(self) -> str:
        return f"{self.name}.bias"

    def shapes(self, model: ModelSettings) -> dict[str, ParameterShape]:
        """Weight [outputs, inputs], as in torch.nn.Linear, and bias [outputs]. Softmax layers start at 0.

        With this order of dimensions the products of a minibatch with the weights of all lanes are as fast as large
        products; the other order is a fifth slower (docs/performance.md).
        Source: docs/sources.md, section 2.
        """
        bound = 0.0
        if self.activation is not None:
            bound = weight_bound(model, fan_in=self.num_inputs, fan_out=self.num_outputs)
        return {
            self.weight: ParameterShape(shape=(self.num_outputs, self.num_inputs), bound=bound, is_weight=True),
            self.bias: ParameterShape(shape=(self.num_outputs,), bound=0.0, is_weight=False),
        }


def hidden_and_scores(
    model: ModelSettings, *, num_inputs: int, num_outputs: int, activation: Activation | None = None
) -> tuple[DenseLayer, DenseLayer]:
    """A hidden layer of `hidden_units` units, and the softmax layer on it.

    Args:
        activation: of the hidden layer; None: the one that `model` names.
    """
    width, activation = model.hidden_units, activation or activation_of(model)
    hidden = DenseLayer(name="hidden", num_inputs=num_inputs, num_outputs=width, activation=activation)
    scores = DenseLayer(name="output", num_inputs=width, num_outputs=num_outputs, activation=None)
    return hidden, scores


def dense_logits(layers: Sequence[DenseLayer], parameters: Tensors, inputs: Tensor) -> Tensor:
    """The scores of one trial: [B, inputs] -> [B, classes]."""
    outputs = inputs
    for layer in layers:
        outputs = functional.linear(outputs, parameters[layer.weight], parameters[layer.bias])
        if layer.activation is not None:
            outputs = layer.activation(outputs)
    return outputs


@dataclass(frozen=True, kw_only=True)
class DenseNetwork(Network):
    """A sequence of fully connected layers; `dense_step` has their gradient written out.

    Args:
        activation: of the hidden layers; None: the one that `model` names. Lanes may have different ones
            (`activations.lane_activation`).
    """

    activation: Activation | None = None

    @property
    @abstractmethod
    def layers(self) -> tuple[DenseLayer, ...]:
        """The layers, from the images to the scores."""

    @cached_property
    def parameter_shapes(self) -> dict[str, ParameterShape]:
        return {name: shape for layer in self.layers for name, shape in layer.shapes(self.model).items()}

    @cached_property
    def widest_activation(self) -> int:
        return max(layer.num_outputs for layer in self.layers)

    def logits(self, parameters: Tensors, images: Tensor) -> Tensor:
        return dense_logits(self.layers, parameters, images)

    def lane_logits(self, parameters: Tensors, images: Tensor) -> Tensor:
        num_lanes = parameters[self.layers[0].weight].shape[0]
        # Shared images are expanded, not copied: all lanes' products read the same minibatch.
        outputs = images if images.dim() == 3 else images.expand(num_lanes, *images.shape)
        for layer in self.layers:
            weights, bias = parameters[layer.weight], parameters[layer.bias]
            if layer.activation is None:
                outputs = lane_linear(outputs, weights, bias)
            elif torch.is_grad_enabled():
                outputs = layer.activation(lane_linear(outputs, weights, bias))
            else:  # autograd needs its own copies; without it, in-place operations save passes over memory
                outputs = torch.bmm(outputs, weights.transpose(1, 2))
                outputs = layer.activation.apply_(outputs, bias=bias.unsqueeze(1))
        return outputs


def lane_linear(inputs: Tensor, weights: Tensor, biases: Tensor) -> Tensor:
    """torch.nn.functional.linear of every lane: [L, B, inputs], [L, outputs, inputs], [L, outputs]."""
    return torch.baddbmm(biases.unsqueeze(1), inputs, weights.transpose(1, 2))


@final
@dataclass(frozen=True, kw_only=True)
class Logistic(DenseNetwork):
    """Logistic regression: softmax over weighted sums of the pixels; initial weights are 0.

    Source: docs/sources.md, section 2.
    """

    @cached_property
    def layers(self) -> tuple[DenseLayer, ...]:
        scores = DenseLayer(name="output", num_inputs=self.num_inputs, num_outputs=self.num_outputs, activation=None)
        return (scores,)


@final
@dataclass(frozen=True, kw_only=True)
class Mlp(DenseNetwork):
    """Multilayer perceptron with one hidden layer (784 - 500 - 10 in the deeplearning.net tutorial).

    Source: docs/sources.md, section 2.
    """

    @cached_property
    def layers(self) -> tuple[DenseLayer, ...]:
        return hidden_and_scores(
            self.model, num_inputs=self.num_inputs, num_outputs=self.num_outputs, activation=self.activation
        )
