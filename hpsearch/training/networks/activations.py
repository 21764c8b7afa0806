"""Non-linearities of the hidden layers, with in-place forms and derivatives for the explicit pass of `dense_step`."""

from __future__ import annotations

import torch
from torch import Tensor

from hpsearch.study.settings import Activation


def activate(activation: Activation, inputs: Tensor) -> Tensor:
    """Apply the non-linearity to each element."""
    match activation:
        case "tanh":
            return torch.tanh(inputs)
        case "sigmoid":
            return torch.sigmoid(inputs)
        case "relu":
            return torch.relu(inputs)


def activate_(activation: Activation, inputs: Tensor, *, bias: Tensor | float = 0.0) -> Tensor:
    """Compute the non-linearity of inputs + bias in place.

    On a CPU tanh is computed as 2 sigmoid(2x) - 1: five times faster, and within 2.4e-7 of tanh in float32.

    Args:
        bias: broadcast over the inputs.
    """
    match activation:
        case "tanh" if inputs.device.type == "cpu":
            # alpha includes the factor in the addition: two passes over memory instead of four.
            doubled = torch.add(2.0 * torch.as_tensor(bias), inputs, alpha=2.0, out=inputs).sigmoid_()
            return torch.add(inputs.new_full((), -1.0), doubled, alpha=2.0, out=inputs)
        case "tanh":
            return inputs.add_(bias).tanh_()
        case "sigmoid":
            return inputs.add_(bias).sigmoid_()
        case "relu":
            return inputs.add_(bias).relu_()


def multiply_slope(activation: Activation, deltas: Tensor, outputs: Tensor, *, out: Tensor) -> Tensor:
    """Multiply deltas by the non-linearity's derivative, computed from its outputs; its inputs need not be kept.

    The ReLU's derivative at 0 is 0, as in torch.

    Args:
        out: receives the product; may be `deltas`.
    """
    aten = torch.ops.aten
    match activation:
        case "tanh":
            aten.tanh_backward.grad_input(deltas, outputs, grad_input=out)
        case "sigmoid":
            aten.sigmoid_backward.grad_input(deltas, outputs, grad_input=out)
        case "relu":
            aten.threshold_backward.grad_input(deltas, outputs, 0, grad_input=out)
    return out
