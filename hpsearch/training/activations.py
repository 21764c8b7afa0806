"""Non-linearities of the hidden layers, and their slopes written in terms of their outputs.

The forward passes of `networks` apply them; the hand-written backward pass of `lane_steps` needs the slopes.
"""

from __future__ import annotations

import torch
from torch import Tensor

from hpsearch.settings import Activation


def activate(activation: Activation, inputs: Tensor) -> Tensor:
    """Apply the non-linearity to each element."""
    match activation:
        case "tanh":
            return torch.tanh(inputs)
        case "sigmoid":
            return torch.sigmoid(inputs)
        case "relu":
            return torch.relu(inputs)


def slope_at_output(activation: Activation, outputs: Tensor) -> Tensor:
    """Derivative of the non-linearity, from its outputs: no need to keep its inputs for the backward pass.

    The ReLU's derivative at 0 is 0, as torch has it.
    """
    match activation:
        case "tanh":
            return outputs.square().neg_().add_(1.0)  # 1 - y^2
        case "sigmoid":
            return outputs - outputs.square()  # y (1 - y)
        case "relu":
            return (outputs > 0).to(outputs.dtype)
