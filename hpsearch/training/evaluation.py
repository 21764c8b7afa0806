"""Losses of one trial, or of all lanes, on a whole set of images, computed in slices to bound the memory."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from hpsearch.data.resident import ResidentData, as_inputs
from hpsearch.epoch_report import Validation
from hpsearch.metric import critical_t
from hpsearch.training.judge import Judge, ZeroOne
from hpsearch.training.losses import sum_loss
from hpsearch.training.networks.network import Network
from hpsearch.training.tensors import Tensors

# Floats of the widest intermediate result per slice and lane: 4 MiB of float32. It does not depend on the number of
# lanes, so that a lane's losses are summed in the same order whatever trials run beside it.
SLICE_FLOATS = 2**20
Z_95 = 1.959964  # quantile of the normal distribution for a two-sided 95 % interval


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Losses:
    """Losses of one trial on a set of examples.

    Args:
        loss: of the metric.
        nll: the mean of what training minimises: the negative log-likelihood in nats, or the squared error.
        interval: 95 % interval of the loss over other examples by the normal approximation, or over other groups of
            examples with Student's t; None: not known.
        num_groups: groups that are the units of the interval; 0: the examples are.
        variance: of the loss, over other units; NaN: not known.
        record: what the judge keeps of the examples; of zero-one: which of them are classified correctly, bool [N].
    """

    num_examples: int
    loss: float
    nll: float
    record: Tensor
    interval: tuple[float, float] | None
    num_groups: int = 0
    variance: float = math.nan

    @property
    def num_errors(self) -> int:
        """The number of misclassified examples; only of zero-one without groups."""
        return self.num_examples - int(self.record.sum())


def normal_interval(parts: Tensor, *, are_groups: bool = False) -> tuple[float, float] | None:
    """The 95 % interval of the mean of the examples' parts of a loss, [1, N], not below 0.

    None if it is not known: the parts do not vary, or are not finite.

    Args:
        are_groups: the parts are those of groups, which may be few: the interval is that of Student's t.
    """
    mean, deviation = float(parts.mean()), float(parts.std()) if parts.shape[-1] > 1 else 0.0
    if not (0 < deviation < math.inf and math.isfinite(mean)):
        return None
    critical = critical_t(parts.shape[-1] - 1) if are_groups else Z_95
    half = critical * deviation / math.sqrt(parts.shape[-1])
    return max(0.0, mean - half), mean + half


def evaluate(
    network: Network, parameters: Tensors, images: Tensor, labels: Tensor, judge: Judge | None = None
) -> Losses:
    """Losses of one trial on these examples.

    Args:
        images: [N, inputs], on the parameters' device.
        labels: [N] int64, or float32 in regression; on the same device.
        judge: of these labels; None: zero-one.
    """
    return evaluate_with_scores(network, parameters, images, labels, judge)[0]


@torch.no_grad()
def evaluate_with_scores(
    network: Network, parameters: Tensors, images: Tensor, labels: Tensor, judge: Judge | None = None
) -> tuple[Losses, Tensor]:
    """As `evaluate`, with the network's outputs for each example [N, outputs], on the parameters' device; one pass."""
    judge = ZeroOne(labels=labels, num_classes=network.num_outputs) if judge is None else judge
    scores, slices, total = [], [], 0.0
    dtype = next(iter(parameters.values())).dtype
    for some_images, some_labels in _slices(images, labels, network, dtype):
        outputs = network.logits(parameters, some_images)
        scores.append(outputs)
        slices.append(judge.examples(outputs.unsqueeze(0), some_labels))
        total += float(sum_loss(outputs, some_labels))
    examples = torch.cat(slices, dim=-1)
    loss = judge.loss(examples)
    units = judge.units(examples, loss)
    losses = Losses(
        num_examples=len(labels),
        loss=float(loss),
        nll=total / len(labels),
        record=judge.record(examples, loss).squeeze(0),
        interval=normal_interval(units, are_groups=judge.groups is not None),
        num_groups=judge.num_groups,
        variance=float(units.var()) / units.shape[-1] if units.shape[-1] > 1 else math.nan,
    )
    return losses, torch.cat(scores)


def evaluate_with_probabilities(
    network: Network, parameters: Tensors, images: Tensor, labels: Tensor, judge: Judge | None = None
) -> tuple[Losses, Tensor]:
    """As `evaluate`, with the probability of each class for each image, [N, classes] float64, in one pass.

    The most probable class is the one that was compared with the label.
    """
    losses, scores = evaluate_with_scores(network, parameters, images, labels, judge)
    return losses, scores.double().softmax(dim=-1)  # in float32, distinct scores may become a tie


@torch.no_grad()
def validate_lanes(
    network: Network, parameters: Tensors, data: ResidentData, judge: Judge, beat: Callable[[], None] = lambda: None
) -> tuple[Tensor, Tensor, Tensor]:
    """Losses of every lane on the whole validation set, as tensors on the device; no host sync.

    Args:
        parameters: stacked, [L, ...] each.
        judge: of the validation labels.
        beat: called after each slice of images.
    Returns:
        The metric's loss and the mean of what training minimises, [L] float64 each; the judge's record, [L, ...].
    """
    first = next(iter(parameters.values()))
    slices = []
    total = torch.zeros(first.shape[0], dtype=torch.float64, device=first.device)
    for images, labels in _slices(data.validation_images, data.validation_labels, network, first.dtype):
        outputs = _lane_logits(network, parameters, images)
        slices.append(judge.examples(outputs, labels))
        total += sum_loss(outputs, labels)
        beat()
    examples = torch.cat(slices, dim=-1)
    loss = judge.loss(examples)
    return loss, total / examples.shape[-1], judge.record(examples, loss)


def validation_of(iteration: int, loss: float, nll: float, *compared: float) -> Validation:
    """Make a `Validation` from one lane's numbers, which come from the device as floats.

    Args:
        compared: images gained and lost, if the validation was compared with a reference.
    """
    gained, lost = map(int, compared) if compared else (None, None)
    return Validation(iteration=iteration, loss=loss, nll=nll, gained=gained, lost=lost)


def _lane_logits(network: Network, parameters: Tensors, images: Tensor) -> Tensor:
    """Scores of all lanes on the same images, [L, B, classes]."""
    if not network.prefers_single_lanes(images.device):
        return network.lane_logits(parameters, images)
    num_lanes = next(iter(parameters.values())).shape[0]
    lanes = [{name: value[lane] for name, value in parameters.items()} for lane in range(num_lanes)]
    return torch.stack([network.logits(lane, images) for lane in lanes])


def _slices(images: Tensor, labels: Tensor, network: Network, dtype: torch.dtype) -> Iterator[tuple[Tensor, Tensor]]:
    widest = network.widest_activation
    if images.dtype == torch.uint8:  # a slice is copied as floats
        widest = max(widest, network.num_inputs)
    num_rows = max(1, SLICE_FLOATS // widest)
    for start in range(0, len(labels), num_rows):
        yield as_inputs(images[start : start + num_rows], dtype), labels[start : start + num_rows]
