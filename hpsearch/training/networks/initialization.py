"""Initial weights: the width of their distribution, and drawing them reproducibly on every device."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hpsearch.study.settings import ModelSettings
from hpsearch.training.networks.activations import activation_of


@dataclass(frozen=True, kw_only=True, slots=True)
class ParameterShape:
    """One parameter of a network.

    Args:
        shape: shape of one trial's tensor (stacked tensors have the number of lanes in front).
        bound: initial values are uniform in [-bound, bound]; 0 for biases and softmax layers.
        is_weight: weights are regularised by lambda_1 and lambda_2, biases are not.
    """

    shape: tuple[int, ...]
    bound: float
    is_weight: bool


def weight_bound(model: ModelSettings, *, fan_in: float, fan_out: float) -> float:
    """Half the width of the interval from which a layer's initial weights are drawn.

    "glorot" is the activation's own rule (`Activation.weight_bound`). "lecun" is 1 / sqrt(fan_in) for every activation
    (LeCun 1998). Source: docs/sources.md, section 2.
    """
    if model.initialization == "lecun":
        return 1.0 / math.sqrt(fan_in)
    return activation_of(model).weight_bound(fan_in, fan_out)


def draw_parameters(
    shapes: Mapping[str, ParameterShape], *, seed: int, dtype: torch.dtype, device: torch.device
) -> dict[str, Tensor]:
    """Draw one trial's initial parameters.

    They are drawn on the host in float64 and then converted: the same seed gives the same numbers on any device, and
    float32 and float64 trials start from the same weights.
    """
    generator = np.random.default_rng(seed)  # torch's CPU generator would use only the seed's low 32 bits
    parameters = {}
    for name, parameter in shapes.items():
        values = np.zeros(parameter.shape)
        if parameter.bound > 0:
            values = _uniform(generator, parameter)
        parameters[name] = torch.from_numpy(values).to(dtype=dtype, device=device)
    return parameters


def _uniform(generator: np.random.Generator, parameter: ParameterShape) -> NDArray[np.float64]:
    if len(parameter.shape) != 2:
        return generator.uniform(-parameter.bound, parameter.bound, size=parameter.shape)
    # Dense weights are drawn in the order of the formula x W (input by input) and stored output by output.
    drawn = generator.uniform(-parameter.bound, parameter.bound, size=parameter.shape[::-1])
    return np.ascontiguousarray(drawn.T)
