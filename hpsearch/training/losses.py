"""The loss that training minimises: negative log-likelihood or squared error, with L1 and L2 terms.

The type of the labels decides: int64 labels are classes, floating-point labels are standardised target values.
Losses accept any leading dimensions: outputs [B, classes] of one trial or [L, B, classes] of lanes ([..., B, 1] in
regression), with labels [B] (shared by the lanes) or [L, B]. Lanes never mix: each result is [L].
Source: docs/sources.md, section 3.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor


def loss_per_example(outputs: Tensor, labels: Tensor) -> Tensor:
    """-log p(label | example) in nats, or the squared error, [..., B]."""
    if labels.is_floating_point():
        return (outputs.squeeze(-1) - labels.to(outputs.dtype)).square()
    chosen = labels.expand(outputs.shape[:-1]).unsqueeze(-1)
    return -torch.log_softmax(outputs, dim=-1).gather(-1, chosen).squeeze(-1)


def mean_loss(outputs: Tensor, labels: Tensor, class_weights: Tensor | None = None) -> Tensor:
    """Mean loss per example, [...]: what training minimises.

    With the mean, unlike the sum, the scale of the gradient does not depend on the batch size.

    Args:
        class_weights: [classes], by which each example's loss is multiplied; its mean stays one over all examples.
    """
    losses = loss_per_example(outputs, labels)
    return (losses if class_weights is None else losses * weight_per_example(class_weights, labels, losses)).mean(
        dim=-1
    )


def weight_per_example(class_weights: Tensor, labels: Tensor, like: Tensor) -> Tensor:
    """The weight of each example's class, of the shape of the labels."""
    return class_weights.to(like.dtype)[labels]


def sum_loss(outputs: Tensor, labels: Tensor) -> Tensor:
    """Sum of the losses, [...]; float64, to keep precision on large sets."""
    return loss_per_example(outputs, labels).sum(dim=-1, dtype=torch.float64)


def guessing_loss(num_classes: int) -> float:
    """The loss of a network that knows nothing: ln(classes), or 1 in regression (0 classes), the target's variance."""
    return math.log(num_classes) if num_classes else 1.0


def loss_name(num_classes: int) -> str:
    return "NLL" if num_classes else "MSE"


def is_correct(logits: Tensor, labels: Tensor) -> Tensor:
    """Whether an image's most probable class is its label, bool [..., B]; the first class wins a tie."""
    return logits.argmax(dim=-1) == labels


@dataclass(frozen=True, kw_only=True)
class LanePenalties:
    """lambda_1 and lambda_2 of every lane, and the terms that they add to losses and gradients.

    Args:
        lambda_1, lambda_2: [L] float64 on the lanes' device.
        has_l1, has_l2: whether lambda_1 or lambda_2 is above 0 in any lane. Known on the host, so that a term that no
            lane uses is not computed.
    """

    lambda_1: Tensor
    lambda_2: Tensor
    has_l1: bool
    has_l2: bool

    def part(self, lanes: slice) -> LanePenalties:
        """The penalties of some lanes, as views of the same memory."""
        return replace(self, lambda_1=self.lambda_1[lanes], lambda_2=self.lambda_2[lanes])

    def scaled(self, scale: Tensor, dtype: torch.dtype) -> ScaledPenalties:
        """The penalties' terms for gradients that are multiplied by `scale`, [L]."""
        return ScaledPenalties(
            l1_factor=(self.lambda_1 * scale).to(dtype) if self.has_l1 else None,
            l2_factor=(2.0 * self.lambda_2 * scale).to(dtype) if self.has_l2 else None,
        )


@dataclass(frozen=True, kw_only=True)
class ScaledPenalties:
    """The penalties' part of scaled gradients: l1_factor * sign(w) + l2_factor * w.

    Args:
        l1_factor, l2_factor: [L] in the weights' precision; None for a term that no lane uses.
    """

    l1_factor: Tensor | None
    l2_factor: Tensor | None

    def add_gradient_(self, target: Tensor, weight: Tensor) -> None:
        """Add the penalties' gradient to the target, [L, ...], which may be the weight itself."""
        if self.l1_factor is None:
            if self.l2_factor is not None:
                target.addcmul_(weight, lanes_first(self.l2_factor, weight))
            return
        l1_factor = lanes_first(self.l1_factor, weight)
        l2_factor = None if self.l2_factor is None else lanes_first(self.l2_factor, weight)
        # On a CPU process one lane at a time through one buffer, so that a lane's signs are still in the cache when
        # they are added.
        step = 1 if weight.device.type == "cpu" else len(weight)
        signs = torch.empty_like(weight[:step])
        for start in range(0, len(weight), step):
            lanes = slice(start, start + step)
            # sign(0) is 0: L1 does not change a weight of exactly 0, as with torch's gradient of abs.
            torch.sign(weight[lanes], out=signs)
            if l2_factor is not None:
                target[lanes].addcmul_(weight[lanes], l2_factor[lanes])
            target[lanes].addcmul_(signs, l1_factor[lanes])


def lanes_first(values: Tensor, like: Tensor) -> Tensor:
    """Reshape and cast per-lane numbers [L] (or one trial's, 0-d) to multiply a tensor [L, ...]."""
    return values.to(like.dtype).reshape(values.shape + (1,) * (like.dim() - values.dim()))
