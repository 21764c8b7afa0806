"""The interface of all networks: a stateless description; the caller owns the parameters as a dict of tensors.

`logits` is the readable forward pass of one trial. `lane_logits` is the forward pass of many trials at once, whose
parameters are stacked: [L, ...].
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from hpsearch.data.example_shape import ExampleShape, num_inputs
from hpsearch.study.settings import ModelSettings
from hpsearch.training.networks.initialization import ParameterShape, draw_parameters
from hpsearch.training.tensors import Tensors


@dataclass(frozen=True, kw_only=True)
class Network(ABC):
    """An architecture that maps examples to scores, for given parameters.

    Args:
        num_outputs: number of classes; 1 in regression.
    """

    model: ModelSettings
    example_shape: ExampleShape
    num_outputs: int

    @property
    @abstractmethod
    def parameter_shapes(self) -> dict[str, ParameterShape]:
        """Every parameter by name, from the first layer to the last."""

    @property
    @abstractmethod
    def widest_activation(self) -> int:
        """Floats per image of the largest intermediate result; determines how many images are evaluated at once."""

    @abstractmethod
    def logits(self, parameters: Tensors, images: Tensor) -> Tensor:
        """Unnormalised log-probabilities of one trial: [B, pixels] -> [B, classes]."""

    @abstractmethod
    def lane_logits(self, parameters: Tensors, images: Tensor) -> Tensor:
        """Unnormalised log-probabilities of L lanes.

        Args:
            parameters: stacked, [L, ...] each.
            images: [B, pixels] for all lanes, or [L, B, pixels].
        Returns:
            [L, B, classes].
        """

    def prefers_single_lanes(self, device: torch.device) -> bool:
        """Whether this device is faster with one lane after the other than with all lanes together."""
        return False

    @cached_property
    def num_inputs(self) -> int:
        return num_inputs(self.example_shape)

    @cached_property
    def weight_names(self) -> tuple[str, ...]:
        """The parameters that lambda_1 and lambda_2 regularise: weights, not biases."""
        return tuple(name for name, parameter in self.parameter_shapes.items() if parameter.is_weight)

    def initial_parameters(
        self, *, seed: int, dtype: torch.dtype = torch.float32, device: torch.device | None = None
    ) -> dict[str, Tensor]:
        """Draw one trial's initial parameters: the same on every device."""
        device = torch.device("cpu") if device is None else device
        return draw_parameters(self.parameter_shapes, seed=seed, dtype=dtype, device=device)
