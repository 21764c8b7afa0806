"""Hidden layers of different width in one cohort: the narrow ones are filled up with units that do nothing.

A filling unit has weights of 0 into it and out of it. tanh and ReLU give 0 for it, and a sigmoid does with a
bias that its unit cannot come back from. So it adds 0 to every score, and its gradients are 0 as well: those
of its outgoing weights for its output is 0, those of its incoming ones for its outgoing weights are. L1, L2,
momentum and Adam leave a weight of 0 without gradient at 0. A trial's numbers are those of its own network.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from hpsearch.study.settings import ModelSettings
from hpsearch.training.networks.network import Network

PADDED_FAMILIES = ("mlp", "cnn")
SMALLEST_CLASS = 32  # units; below this a hidden layer costs launches, not arithmetic
CLASS_RATIO = 4  # a lane costs at most so many times its own arithmetic
SIGMOID_OFF = -1e30  # sigmoid of this is 0 exactly, in every precision


def cohort_model(model: ModelSettings) -> ModelSettings:
    """What the models of a cohort have in common: equal for models that can train side by side.

    Widths share a cohort up to the next of 32, 128, 512, 2048 ... units. How the initial weights are drawn
    does not matter any more once they are drawn.
    """
    if model.family not in PADDED_FAMILIES:
        return model
    widest = SMALLEST_CLASS
    while widest < model.hidden_units:
        widest *= CLASS_RATIO
    return model.model_copy(update={"hidden_units": widest, "initialization": "glorot"})


def fit(tensors: Mapping[str, Tensor], network: Network) -> dict[str, Tensor]:
    """Bring parameters or optimizer state, of one trial or stacked, to the widths of another network.

    Wider is filled up, narrower is cut: nothing is lost as long as what is cut off was filling.

    Args:
        tensors: by parameter name, or by parameter name, a slash and more; others are left alone.
    """
    return {name: _resized(name, value, network) for name, value in tensors.items()}


def _resized(name: str, value: Tensor, network: Network) -> Tensor:
    parameter = network.parameter_shapes.get(name.partition("/")[0])
    if parameter is None:
        return value
    lead = value.shape[: value.dim() - len(parameter.shape)]  # [L] of stacked tensors
    shape = lead + torch.Size(parameter.shape)
    if value.shape == shape:
        return value
    is_sigmoid_bias = name == "hidden.bias" and network.model.activation == "sigmoid"
    result = value.new_full(shape, SIGMOID_OFF if is_sigmoid_bias else 0.0)
    common = tuple(slice(min(old, new)) for old, new in zip(value.shape, shape, strict=True))
    result[common] = value[common]
    return result
