"""What is minimised (negative log-likelihood, L1, L2) and what is selected on (zero-one loss).

Likelihood and zero-one losses take any leading dimensions: logits [B, classes] of one trial or [L, B,
classes] of lanes, with labels [B] (shared by the lanes) or [L, B]. Lanes never mix: each result is [L].
Source: REFERENCE section 3; DLT, "A Primer on Supervised Learning for Deep Learning".
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor


def nll_per_image(logits: Tensor, labels: Tensor) -> Tensor:
    """-log p(label | image) in nats, [..., B]."""
    chosen = labels.expand(logits.shape[:-1]).unsqueeze(-1)
    return -torch.log_softmax(logits, dim=-1).gather(-1, chosen).squeeze(-1)


def mean_nll(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean negative log-likelihood per image, in nats, [...]: the training surrogate.

    The mean keeps the learning rate's meaning when the batch size changes; the sum does not.
    """
    return nll_per_image(logits, labels).mean(dim=-1)


def sum_nll(logits: Tensor, labels: Tensor) -> Tensor:
    """Sum of the negative log-likelihoods, in nats, float64 [...]: large sets lose no digits."""
    return nll_per_image(logits, labels).sum(dim=-1, dtype=torch.float64)


def is_correct(logits: Tensor, labels: Tensor) -> Tensor:
    """Whether an image's most probable class is its label, bool [..., B]; of equals the first is taken."""
    return logits.argmax(dim=-1) == labels


def zero_one_count(logits: Tensor, labels: Tensor) -> Tensor:
    """Images whose most probable class is not their label, int64 [...]."""
    return logits.shape[-2] - is_correct(logits, labels).sum(dim=-1)


def zero_one_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Fraction of images whose most probable class is not their label, float64 [...]."""
    return zero_one_count(logits, labels).double() / logits.shape[-2]


def l1_norm(weights: Iterable[Tensor]) -> Tensor:
    """sum |w| over all weights of one trial."""
    return torch.stack([weight.abs().sum() for weight in weights]).sum()


def squared_l2_norm(weights: Iterable[Tensor]) -> Tensor:
    """sum w^2 over all weights of one trial."""
    return torch.stack([weight.square().sum() for weight in weights]).sum()


def regularised_loss(nll: Tensor, weights: Sequence[Tensor], *, lambda_1: float, lambda_2: float) -> Tensor:
    """nll + lambda_1 * sum |w| + lambda_2 * sum w^2: what one trial's training minimises.

    A lambda of 0 is free.

    L2's gradient is 2 * lambda_2 * w: twice what other programs call weight decay.
    Source: DLT, "L1 and L2 regularization".
    """
    loss = nll
    if lambda_1 > 0:
        loss = loss + lambda_1 * l1_norm(weights)
    if lambda_2 > 0:
        loss = loss + lambda_2 * squared_l2_norm(weights)
    return loss


@dataclass(frozen=True, kw_only=True)
class LanePenalties:
    """lambda_1 and lambda_2 of every lane, and what they add to losses and gradients.

    Args:
        lambda_1, lambda_2: [L] float64 on the lanes' device.
        has_l1, has_l2: whether any lane's is above 0, known on the host: a term that no lane has is free.
    """

    lambda_1: Tensor
    lambda_2: Tensor
    has_l1: bool
    has_l2: bool

    def part(self, lanes: slice) -> LanePenalties:
        """Some of the lanes', in the same memory."""
        return replace(self, lambda_1=self.lambda_1[lanes], lambda_2=self.lambda_2[lanes])

    def regularised(self, nll: Tensor, weights: Sequence[Tensor]) -> Tensor:
        """Every lane's nll + lambda_1 * sum |w| + lambda_2 * sum w^2, [L]; weights are stacked, [L, ...]."""
        loss = nll
        for weight in weights:
            flat = weight.flatten(start_dim=1)
            if self.has_l1:
                loss = loss + self.lambda_1.to(weight.dtype) * flat.abs().sum(dim=1)
            if self.has_l2:
                loss = loss + self.lambda_2.to(weight.dtype) * flat.square().sum(dim=1)
        return loss

    def scaled(self, scale: Tensor, dtype: torch.dtype) -> ScaledPenalties:
        """What the penalties add to gradients that are multiplied with `scale`, [L]."""
        return ScaledPenalties(
            l1_factor=(self.lambda_1 * scale).to(dtype) if self.has_l1 else None,
            l2_factor=(2.0 * self.lambda_2 * scale).to(dtype) if self.has_l2 else None,
        )


@dataclass(frozen=True, kw_only=True)
class ScaledPenalties:
    """The penalties' share in scaled gradients: l1_factor * sign(w) + l2_factor * w.

    Args:
        l1_factor, l2_factor: [L] in the weights' precision; None is a term that no lane has.
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
        # On a CPU lane by lane, through one buffer: a lane's signs are in the cache when they are added.
        step = 1 if weight.device.type == "cpu" else len(weight)
        signs = torch.empty_like(weight[:step])
        for start in range(0, len(weight), step):
            lanes = slice(start, start + step)
            # The sign of 0 is 0: L1 leaves a weight of exactly 0 alone, as torch's gradient of abs does.
            torch.sign(weight[lanes], out=signs)
            if l2_factor is not None:
                target[lanes].addcmul_(weight[lanes], l2_factor[lanes])
            target[lanes].addcmul_(signs, l1_factor[lanes])


def lanes_first(values: Tensor, like: Tensor) -> Tensor:
    """Per-lane numbers [L] (or one trial's, 0-d) in a shape and precision that multiply a [L, ...] tensor."""
    return values.to(like.dtype).reshape(values.shape + (1,) * (like.dim() - values.dim()))
