"""Judges: how a set of examples is turned into the loss of a metric, and what is kept of each example.

All judges work on lanes: outputs [L, B, outputs] of all lanes for the same examples. Lanes never mix.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, Final, final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hpsearch.errors import InputError
from hpsearch.metric import METRICS, Task
from hpsearch.training.losses import is_correct, loss_per_example

MOST_RECORDED: Final = 10_000  # examples whose losses are kept for comparisons; if there are more, always the same ones


@dataclass(frozen=True, kw_only=True, eq=False)
class Judge(ABC):
    """Judges one set of examples.

    Numbers of examples, and losses, are in the unit of the target (nats for NLL; shares for errors).

    Args:
        labels: [N] of the whole set, on the device.
        deviation: of the target, in its own unit; 1 in classification.
        num_classes: 0 in regression.
        groups: [N] int64, on the device, from 0: the groups of examples that are the units of tests (`Split.groups`);
            None: each example is one.
        num_groups: 0 without groups.
    """

    metric: ClassVar[str]
    # Attributes that depend on the labels alone, computed at once: they wait for the device, which a captured graph of
    # `examples` and `loss` must not.
    prepared: ClassVar[tuple[str, ...]] = ("_recorded",)
    bytes_per_example: ClassVar[int] = 24  # of each lane while it is judged

    labels: Tensor
    deviation: float = 1.0
    num_classes: int = 0
    groups: Tensor | None = None
    num_groups: int = 0

    @property
    def record_type(self) -> torch.dtype:
        return torch.float32

    @abstractmethod
    def examples(self, outputs: Tensor, labels: Tensor) -> Tensor:
        """One number for each example of a slice, [L, B]."""

    @abstractmethod
    def loss(self, examples: Tensor) -> Tensor:
        """The metric's loss, [L] float64, from the numbers of all examples, [L, N]."""

    def record(self, examples: Tensor, loss: Tensor) -> Tensor:
        """What is kept of each example for comparisons, [L, `num_recorded`]: its part of the loss, which is their mean.

        With groups, it is one number for each group: the sum of its examples' parts, as a share of the mean number of
        examples of a group. The mean of these numbers is the loss, too.

        Args:
            loss: [L], as `loss` gives it.
        """
        if self.groups is not None:
            return self._group_sums(self.parts(examples, loss)).float()
        if self._recorded is None:
            return self.parts(examples, loss).float()
        parts = self._chosen_parts(examples, loss, self._recorded)
        return (parts + (loss - parts.mean(dim=-1)).unsqueeze(-1)).float()  # the mean of all examples, not of these

    def _chosen_parts(self, examples: Tensor, loss: Tensor, rows: Tensor) -> Tensor:
        return self.parts(examples[:, rows], loss)

    def parts(self, examples: Tensor, loss: Tensor) -> Tensor:
        """Each example's part of the loss, [L, N] float64: their mean is the loss.

        Of a loss that is no mean it is the loss and the example's influence on it, to first order.
        """
        return examples.double()

    def units(self, examples: Tensor, loss: Tensor) -> Tensor:
        """Independent parts of the loss, of which it is the mean: those of the examples or of the groups, [L, units].

        A group's part is the loss and the group's influence on it, so that large groups count as such, and do not
        only vary more.
        """
        parts = self.parts(examples, loss)
        if self.groups is None:
            return parts
        sizes = self._group_sums(torch.ones_like(parts))
        return self._group_sums(parts) + loss.unsqueeze(-1) * (1.0 - sizes)

    def _group_sums(self, parts: Tensor) -> Tensor:
        """[L, groups] float64, with the mean of the parts, [L, N]."""
        assert self.groups is not None
        sums = torch.zeros(len(parts), self.num_groups, dtype=torch.float64, device=parts.device)
        return sums.index_add_(1, self.groups, parts) * (self.num_groups / parts.shape[-1])

    @property
    def num_recorded(self) -> int:
        return self.num_groups if self.groups is not None else min(len(self.labels), MOST_RECORDED)

    @cached_property
    def _recorded(self) -> Tensor | None:
        """The examples that are recorded; None: all. Drawn, because files may be periodic."""
        if len(self.labels) <= MOST_RECORDED:
            return None
        generator = torch.Generator().manual_seed(0)
        rows = torch.randperm(len(self.labels), generator=generator)[:MOST_RECORDED].sort().values
        return rows.to(self.labels.device)


@final
class ZeroOne(Judge):
    """The fraction of misclassified examples.

    Without groups, the record says of every example whether it is classified correctly.
    """

    metric = "zero-one"
    prepared = ()
    bytes_per_example = 2

    @property
    def record_type(self) -> torch.dtype:
        return torch.bool if self.groups is None else torch.float32

    def examples(self, outputs: Tensor, labels: Tensor) -> Tensor:
        return is_correct(outputs, labels)

    def loss(self, examples: Tensor) -> Tensor:
        num_examples = examples.shape[-1]
        # A tensor on the device: CUDA multiplies by a rounded 1/N instead of dividing by a number of the host, and an
        # error that a CPU has found would be no tie.
        divisor = torch.full((), num_examples, dtype=torch.float64, device=examples.device)
        return (num_examples - examples.sum(dim=-1)) / divisor

    def record(self, examples: Tensor, loss: Tensor) -> Tensor:
        return examples if self.groups is None else super().record(examples, loss)

    def parts(self, examples: Tensor, loss: Tensor) -> Tensor:
        return (~examples).double()

    @property
    def num_recorded(self) -> int:
        return len(self.labels) if self.groups is None else self.num_groups


@final
class BalancedError(Judge):
    """The mean over the classes of the fraction of misclassified examples; classes without examples do not count."""

    metric = "balanced-error"

    prepared = ("_recorded", "_weights", "_widening")

    @cached_property
    def _weights(self) -> Tensor:
        counts = torch.bincount(self.labels, minlength=self.num_classes)
        return len(self.labels) / (counts.clamp(min=1) * (counts > 0).sum()).double()

    def examples(self, outputs: Tensor, labels: Tensor) -> Tensor:
        return (~is_correct(outputs, labels)).double() * self._weights[labels]

    def loss(self, examples: Tensor) -> Tensor:
        return examples.mean(dim=-1)

    @cached_property
    def _widening(self) -> Tensor | None:
        """The factors of the classes' deviations in `units`, [classes]; None: a class is in a single group, or none.

        A class that is in m groups has only m - 1 deviations that are free.
        """
        if self.groups is None:
            return None
        pairs = torch.unique(self.groups * self.num_classes + self.labels)
        in_groups = torch.bincount(pairs % self.num_classes, minlength=self.num_classes).double()
        if bool((in_groups == 1).any()):
            return None
        free = in_groups / (in_groups - 1).clamp(min=1) * (self.num_groups - 1) / self.num_groups
        return free.sqrt()

    def units(self, examples: Tensor, loss: Tensor) -> Tensor:
        """With groups, the loss and the deviations of a group's examples from the errors of their classes.

        Which classes a group has is thus no deviation, however different the errors of the classes are. If a class is
        in a single group, nothing is known of how its error varies: all of the group's part is then taken for a
        deviation, which gives an interval that is too wide rather than too narrow.
        """
        if self._widening is None:
            return super().units(examples, loss)
        counts = torch.bincount(self.labels, minlength=self.num_classes).clamp(min=1)
        of_classes = torch.zeros(len(examples), self.num_classes, dtype=torch.float64, device=examples.device)
        of_classes = of_classes.index_add_(1, self.labels, examples) / counts
        deviations = (examples - of_classes[:, self.labels]) * self._widening[self.labels]
        return loss.unsqueeze(-1) + self._group_sums(deviations)


@final
class NegativeLogLikelihood(Judge):
    """Mean NLL in nats."""

    metric = "nll"

    def examples(self, outputs: Tensor, labels: Tensor) -> Tensor:
        return loss_per_example(outputs, labels)

    def loss(self, examples: Tensor) -> Tensor:
        return examples.double().mean(dim=-1)


@final
class AreaUnderCurve(Judge):
    """1 - the area under the ROC curve of two classes; ties count half.

    Source: DeLong, DeLong and Clarke-Pearson, "Comparing the areas under two or more correlated receiver operating
    characteristic curves", Biometrics 44 (1988), whose placement values are the examples' parts.
    """

    metric = "auc"

    prepared = ("_recorded", "_rows")
    bytes_per_example = 100  # sorted scores, places and placements

    def examples(self, outputs: Tensor, labels: Tensor) -> Tensor:
        return (outputs[..., 1] - outputs[..., 0]).double()

    def loss(self, examples: Tensor) -> Tensor:
        area = self._placements(examples)[:, self._rows[1]].mean(dim=-1)
        return torch.where(examples.isfinite().all(dim=-1), 1.0 - area, torch.nan)

    def parts(self, examples: Tensor, loss: Tensor) -> Tensor:
        loss = loss.unsqueeze(-1)
        shares = torch.where(self._is_positive, *self._class_shares)
        return loss - (self._placements(examples) - (1.0 - loss)) / shares

    def _chosen_parts(self, examples: Tensor, loss: Tensor, rows: Tensor) -> Tensor:
        return self.parts(examples, loss)[:, rows]

    @property
    def _is_positive(self) -> Tensor:
        return self.labels == 1

    @property
    def _class_shares(self) -> tuple[Tensor, Tensor]:
        share = self._is_positive.double().mean()
        return share, 1.0 - share

    @cached_property
    def _rows(self) -> tuple[Tensor, Tensor]:
        """The examples of class 0, and those of class 1."""
        negative, positive = (torch.nonzero(self.labels == label).squeeze(1) for label in (0, 1))
        return negative, positive

    def _placements(self, scores: Tensor) -> Tensor:
        """The share of the other class on the right side of each example's score, [L, N]."""
        placements = torch.empty_like(scores)
        negative, positive = self._rows
        for mine, others, sign in ((positive, negative, 1.0), (negative, positive, -1.0)):
            ordered = (sign * scores[:, others]).sort(dim=-1).values
            asked = (sign * scores[:, mine]).contiguous()
            below = torch.searchsorted(ordered, asked) + torch.searchsorted(ordered, asked, right=True)
            placements[:, mine] = below.double() / (2 * len(others))
        return placements


@final
class RootMeanSquare(Judge):
    """Root of the mean squared error, in the target's unit."""

    metric = "rmse"

    def examples(self, outputs: Tensor, labels: Tensor) -> Tensor:
        return loss_per_example(outputs, labels).double() * self.deviation**2

    def loss(self, examples: Tensor) -> Tensor:
        return examples.mean(dim=-1).sqrt()

    def parts(self, examples: Tensor, loss: Tensor) -> Tensor:
        loss = loss.unsqueeze(-1)
        return loss + (examples - loss**2) / (2.0 * loss.clamp(min=torch.finfo(torch.float64).tiny))


@final
class MeanAbsolute(Judge):
    """Mean absolute error, in the target's unit."""

    metric = "mae"

    def examples(self, outputs: Tensor, labels: Tensor) -> Tensor:
        return loss_per_example(outputs, labels).double().sqrt() * self.deviation

    def loss(self, examples: Tensor) -> Tensor:
        return examples.mean(dim=-1)


@final
class Unexplained(Judge):
    """1 - R2: the squared errors divided by those of the mean of these targets."""

    metric = "r2"

    def examples(self, outputs: Tensor, labels: Tensor) -> Tensor:
        variance = self.labels.double().var(correction=0)
        return loss_per_example(outputs, labels).double() / variance

    def loss(self, examples: Tensor) -> Tensor:
        return examples.mean(dim=-1)


_ALL: tuple[type[Judge], ...] = (
    *(ZeroOne, BalancedError, NegativeLogLikelihood, AreaUnderCurve),
    *(RootMeanSquare, MeanAbsolute, Unexplained),
)
_JUDGES: Final = {judge.metric: judge for judge in _ALL}


def judging_bytes(metric: str, num_examples: int, *, is_grouped: bool = False) -> int:
    """Memory that the judge of a metric needs for each lane, about."""
    per_example = _JUDGES[metric].bytes_per_example + (Judge.bytes_per_example if is_grouped else 0)
    return per_example * num_examples


JudgeOf = Callable[[Tensor], Judge]


def judge_of(
    metric: str, labels: Tensor, *, num_classes: int, deviation: float = 1.0, groups: Tensor | None = None
) -> Judge:
    """The judge of a metric for a set of examples with these labels.

    Args:
        groups: [N] int64 on the labels' device; waits for the device.
    Raises:
        InputError: the metric is not defined for this target.
    """
    check_metric(metric, num_classes)
    judge = _JUDGES[metric](
        labels=labels,
        num_classes=num_classes,
        deviation=deviation,
        groups=groups,
        num_groups=0 if groups is None else int(groups.max()) + 1,
    )
    for name in judge.prepared:
        getattr(judge, name)
    return judge


def check_metric(metric: str, num_classes: int) -> None:
    """Check that a metric suits the data.

    Args:
        num_classes: 0 in regression.
    Raises:
        InputError: it does not; the hint names those that do.
    """
    asked, task = METRICS[metric], Task.CLASSIFICATION if num_classes else Task.REGRESSION
    fitting = [m.name for m in METRICS.values() if m.task is task and num_classes <= (m.most_classes or num_classes)]
    if metric in fitting:
        return
    hint = f"write one of these above the first section: metric = {', '.join(map(repr, fitting))}"
    if asked.task is not task:
        target = f"has {num_classes} classes" if num_classes else "is a number"
        raise InputError(f"metric {metric} is for {asked.task}, but the target {target}", hint=hint)
    raise InputError(
        f"metric {metric} is defined for {asked.most_classes} classes, but there are {num_classes}", hint=hint
    )


def check_judgeable(metric: str, labels: NDArray[Any]) -> None:
    """Check that a metric is defined on a set of examples with these labels.

    Raises:
        InputError: an AUC of one class, or R2 of a target with one value.
    """
    num_values = len(np.unique(labels[:100_000]))
    if num_values < 2:
        num_values = len(np.unique(labels))
    if num_values < 2 and metric in ("auc", "r2"):
        what = "one class" if metric == "auc" else "one value of the target"
        raise InputError(
            f"metric {metric} is not defined on the validation part, which has {what} only",
            hint="make the validation part larger, or choose another metric",
        )
