"""What the dense step minimises: the derivative with respect to the last layer's outputs, and the loss itself."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from hpsearch.training.losses import loss_per_example, weight_per_example


class Objective(ABC):
    """The loss, and its derivative with respect to the outputs of the last layer."""

    @abstractmethod
    def wanted(self, labels: Tensor, like: Tensor, num_outputs: int, scale: Tensor) -> Tensor:
        """The labels of a block as `deltas` needs them, [..., R, outputs].

        Args:
            scale: [L, 1, 1]: the factor of an image's gradient.
        """

    @abstractmethod
    def scores(self, outputs: Tensor) -> Tensor:
        """What is kept of the last layer's outputs, [L, B, outputs]."""

    @abstractmethod
    def deltas(self, scores: Tensor, wanted: Tensor, scale: Tensor) -> Tensor:
        """The derivative of the scaled loss with respect to the outputs, [L, B, outputs]."""

    @abstractmethod
    def total(self, scores: Tensor, labels: Tensor) -> Tensor:
        """The sum of a block's losses, [L] float64."""


@final
@dataclass(frozen=True, kw_only=True)
class NegativeLogLikelihood(Objective):
    """Of classes. The scores that are kept are log-probabilities.

    Args:
        class_weights: [classes], factors of the examples' deltas; the total does not have them.
    """

    class_weights: Tensor | None = None

    def wanted(self, labels: Tensor, like: Tensor, num_outputs: int, scale: Tensor) -> Tensor:
        one_hot = like.new_zeros(*labels.shape, num_outputs)
        if self.class_weights is None:
            one_hot.scatter_(-1, labels.unsqueeze(-1), 1.0)
        else:
            weights = weight_per_example(self.class_weights, labels, like)
            one_hot.scatter_(-1, labels.unsqueeze(-1), weights.unsqueeze(-1))
        return one_hot * -scale

    def scores(self, outputs: Tensor) -> Tensor:
        return torch.log_softmax(outputs, dim=-1)

    def deltas(self, scores: Tensor, wanted: Tensor, scale: Tensor) -> Tensor:
        # From a derivative of -1 at the label and 0 elsewhere this computes softmax - one_hot, scaled, in one call. A
        # class's weight multiplies both: the call multiplies softmax with the sum of the derivatives.
        return torch._log_softmax_backward_data(wanted, scores, -1, scores.dtype)

    def total(self, scores: Tensor, labels: Tensor) -> Tensor:
        chosen = labels.expand(scores.shape[:-1]).unsqueeze(-1)
        return -scores.gather(-1, chosen).sum(dim=(1, 2), dtype=torch.float64)


@final
class SquaredError(Objective):
    """Of target values."""

    def wanted(self, labels: Tensor, like: Tensor, num_outputs: int, scale: Tensor) -> Tensor:
        return labels.to(like.dtype).unsqueeze(-1).expand(len(scale), -1, -1)

    def scores(self, outputs: Tensor) -> Tensor:
        return outputs

    def deltas(self, scores: Tensor, wanted: Tensor, scale: Tensor) -> Tensor:
        return (scores - wanted).mul_(2.0 * scale)

    def total(self, scores: Tensor, labels: Tensor) -> Tensor:
        return loss_per_example(scores, labels).sum(dim=1, dtype=torch.float64)
