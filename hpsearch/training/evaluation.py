"""Validation losses of one trial and of lanes, in slices that bound the memory."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from hpsearch.data.resident import ResidentData
from hpsearch.epoch_report import Validation
from hpsearch.training.losses import sum_nll, zero_one_count
from hpsearch.training.network import Network

# Floats of the widest intermediate result per slice and lane: 4 MiB of float32. It does not depend on the
# number of lanes, so that a lane's losses are added up in the same portions whoever its neighbours are.
SLICE_FLOATS = 2**20


@torch.no_grad()
def validate(network: Network, parameters: Mapping[str, Tensor], data: ResidentData, *, iteration: int) -> Validation:
    """Losses of one trial on the whole validation set.

    Args:
        iteration: minibatches that the trial has trained on so far.
    """
    num_errors, total_nll = 0, 0.0
    dtype = next(iter(parameters.values())).dtype
    for images, labels in _slices(data, network, dtype):
        logits = network.logits(parameters, images)
        num_errors += int(zero_one_count(logits, labels))
        total_nll += float(sum_nll(logits, labels))
    num_images = len(data.validation_labels)
    return Validation(iteration=iteration, zero_one=num_errors / num_images, nll=total_nll / num_images)


@torch.no_grad()
def validate_lanes(network: Network, parameters: Mapping[str, Tensor], data: ResidentData) -> tuple[Tensor, Tensor]:
    """Losses of every lane on the whole validation set, left on the device.

    Args:
        parameters: stacked, [L, ...] each.
    Returns:
        Zero-one loss (fraction) and mean NLL (nats), [L] float64 each.
    """
    first = next(iter(parameters.values()))
    num_errors = torch.zeros(first.shape[0], dtype=torch.int64, device=first.device)
    total_nll = torch.zeros(first.shape[0], dtype=torch.float64, device=first.device)
    for images, labels in _slices(data, network, first.dtype):
        logits = _lane_logits(network, parameters, images)
        num_errors += zero_one_count(logits, labels)
        total_nll += sum_nll(logits, labels)
    num_images = len(data.validation_labels)
    return num_errors.double() / num_images, total_nll / num_images


def _lane_logits(network: Network, parameters: Mapping[str, Tensor], images: Tensor) -> Tensor:
    """Scores of all lanes on the same images, [L, B, classes]."""
    if not network.prefers_single_lanes(images.device):
        return network.lane_logits(parameters, images)
    num_lanes = next(iter(parameters.values())).shape[0]
    lanes = [{name: value[lane] for name, value in parameters.items()} for lane in range(num_lanes)]
    return torch.stack([network.logits(lane, images) for lane in lanes])


def _slices(data: ResidentData, network: Network, dtype: torch.dtype) -> Iterator[tuple[Tensor, Tensor]]:
    num_rows = max(1, SLICE_FLOATS // network.widest_activation)
    for start in range(0, len(data.validation_labels), num_rows):
        images = data.validation_images[start : start + num_rows].to(dtype)
        yield images, data.validation_labels[start : start + num_rows]
