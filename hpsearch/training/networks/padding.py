"""Padding: hidden layers of different width in one cohort. Narrow layers are padded with units that have no effect.

All incoming and outgoing weights of a padding unit are 0. Its output is 0 with tanh and ReLU, and also with a sigmoid
whose bias is so low that it never recovers. The unit therefore adds 0 to every score. Its gradients are 0 as well: the
gradients of its outgoing weights because its output is 0, and those of its incoming weights because its outgoing
weights are 0. L1, L2, momentum and Adam keep a weight of 0 with a gradient of 0 at 0. A trial's results are the same
as without padding.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from hpsearch.study.registry import FAMILIES, choices_by_key
from hpsearch.study.settings import ModelSettings
from hpsearch.training.networks.activations import activation_named, activation_of
from hpsearch.training.networks.network import Network
from hpsearch.training.tensors import Tensors

PADDED_FAMILIES = choices_by_key(FAMILIES)["hidden_units"]
SMALLEST_CLASS = 32  # units; narrower layers are bound by kernel launches, not by arithmetic
CLASS_RATIO = 4  # a lane costs at most this many times the arithmetic of its own network


def cohort_model(model: ModelSettings) -> ModelSettings:
    """The model of a cohort: equal for all models that can train in one cohort.

    The width is rounded up to the next of 32, 128, 512, 2048 ... units. The initialization is set to a fixed value,
    since it does not matter after the weights are drawn. So is the activation of an MLP, whose lanes may have different
    ones (`activations.LaneActivations`).
    """
    if model.family not in PADDED_FAMILIES:
        return model
    widest = SMALLEST_CLASS
    while widest < model.hidden_units:
        widest *= CLASS_RATIO
    fixed = {"activation": "tanh"} if model.family == "mlp" else {}
    return model.model_copy(update={"hidden_units": widest, "initialization": "glorot", **fixed})


def padding_bias(activations: Sequence[str], device: torch.device) -> Tensor:
    """The bias of a hidden padding unit in each lane, [L, 1].

    Args:
        activations: name of each lane's activation.
    """
    return torch.tensor([[activation_named(name).padding_bias] for name in activations], device=device).reshape(-1, 1)


def fit(tensors: Tensors, network: Network, bias: Tensor | float | None = None) -> dict[str, Tensor]:
    """Resize parameters or optimizer state, of one trial or stacked, to the widths of another network.

    Narrower tensors are padded, wider ones are cut; cutting loses nothing as long as it removes only padding.

    Args:
        tensors: keyed by parameter name, or by parameter name and a suffix after a slash; others are unchanged.
        bias: of hidden padding units (`padding_bias`); None: the one of the network's activation.
    """
    if bias is None:
        bias = activation_of(network.model).padding_bias
    return {name: _resized(name, value, network, bias) for name, value in tensors.items()}


def _resized(name: str, value: Tensor, network: Network, bias: Tensor | float) -> Tensor:
    parameter = network.parameter_shapes.get(name.partition("/")[0])
    if parameter is None:
        return value
    lead = value.shape[: value.dim() - len(parameter.shape)]  # [L] of stacked tensors
    shape = lead + torch.Size(parameter.shape)
    if value.shape == shape:
        return value
    result = value.new_zeros(shape)
    if name == "hidden.bias":
        result += bias
    common = tuple(slice(min(old, new)) for old, new in zip(value.shape, shape, strict=True))
    result[common] = value[common]
    return result
