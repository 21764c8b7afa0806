"""Losses of one trial, or of all lanes, on a whole set of images, computed in slices to bound the memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from hpsearch.data.resident import ResidentData
from hpsearch.epoch_report import Validation
from hpsearch.training.losses import is_correct, sum_nll
from hpsearch.training.networks.network import Network
from hpsearch.training.tensors import Tensors

# Floats of the widest intermediate result per slice and lane: 4 MiB of float32. It does not depend on the number of
# lanes, so that a lane's losses are summed in the same order whatever trials run beside it.
SLICE_FLOATS = 2**20


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Losses:
    """Losses of one trial on a set of images.

    Args:
        nll: mean negative log-likelihood per image, in nats.
        correct: which images are classified correctly, bool [N], on the device.
    """

    num_images: int
    num_errors: int
    nll: float
    correct: Tensor

    @property
    def zero_one(self) -> float:
        """Fraction of misclassified images."""
        return self.num_errors / self.num_images


@torch.no_grad()
def evaluate(network: Network, parameters: Tensors, images: Tensor, labels: Tensor) -> Losses:
    """Losses of one trial on these images.

    Args:
        images: [N, pixels] in [0, 1], on the parameters' device.
        labels: [N] int64, on the same device.
    """
    slices, total_nll = [], 0.0
    dtype = next(iter(parameters.values())).dtype
    for some_images, some_labels in _slices(images, labels, network, dtype):
        logits = network.logits(parameters, some_images)
        slices.append(is_correct(logits, some_labels))
        total_nll += float(sum_nll(logits, some_labels))
    correct = torch.cat(slices)
    num_errors = len(correct) - int(correct.sum())
    return Losses(num_images=len(correct), num_errors=num_errors, nll=total_nll / len(correct), correct=correct)


@torch.no_grad()
def validate_lanes(
    network: Network, parameters: Tensors, data: ResidentData, beat: Callable[[], None] = lambda: None
) -> tuple[Tensor, Tensor, Tensor]:
    """Losses of every lane on the whole validation set, as tensors on the device; no host sync.

    Args:
        parameters: stacked, [L, ...] each.
        beat: called after each slice of images.
    Returns:
        Zero-one loss (fraction) and mean NLL (nats), [L] float64 each; which images are classified correctly,
        bool [L, N].
    """
    first = next(iter(parameters.values()))
    slices = []
    total_nll = torch.zeros(first.shape[0], dtype=torch.float64, device=first.device)
    for images, labels in _slices(data.validation_images, data.validation_labels, network, first.dtype):
        logits = _lane_logits(network, parameters, images)
        slices.append(is_correct(logits, labels))
        total_nll += sum_nll(logits, labels)
        beat()
    correct = torch.cat(slices, dim=-1)
    num_images = correct.shape[-1]
    num_errors = num_images - correct.sum(dim=-1)
    return num_errors.double() / num_images, total_nll / num_images, correct


def validation_of(iteration: int, zero_one: float, nll: float, *compared: float) -> Validation:
    """Make a `Validation` from one lane's numbers, which come from the device as floats.

    Args:
        compared: images gained and lost, if the validation was compared with a reference.
    """
    gained, lost = map(int, compared) if compared else (None, None)
    return Validation(iteration=iteration, zero_one=zero_one, nll=nll, gained=gained, lost=lost)


def _lane_logits(network: Network, parameters: Tensors, images: Tensor) -> Tensor:
    """Scores of all lanes on the same images, [L, B, classes]."""
    if not network.prefers_single_lanes(images.device):
        return network.lane_logits(parameters, images)
    num_lanes = next(iter(parameters.values())).shape[0]
    lanes = [{name: value[lane] for name, value in parameters.items()} for lane in range(num_lanes)]
    return torch.stack([network.logits(lane, images) for lane in lanes])


def _slices(images: Tensor, labels: Tensor, network: Network, dtype: torch.dtype) -> Iterator[tuple[Tensor, Tensor]]:
    num_rows = max(1, SLICE_FLOATS // network.widest_activation)
    for start in range(0, len(labels), num_rows):
        yield images[start : start + num_rows].to(dtype), labels[start : start + num_rows]
