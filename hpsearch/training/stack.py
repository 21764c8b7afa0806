"""The tensors of all busy lanes: parameters, the best so far, optimizer state, rates; all begin with [L]."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from hpsearch.settings import TrainingSettings
from hpsearch.training.losses import LanePenalties
from hpsearch.training.optimizers import Rates


@dataclass(kw_only=True)
class LaneStack:
    """Exactly the busy lanes, one behind the other: an idle lane has no memory and costs no time.

    Lane l of every tensor belongs to the same trial. `rates` and `penalties` hold for one epoch
    (`set_rates`).
    """

    device: torch.device
    rates: Rates = field(init=False)
    penalties: LanePenalties = field(init=False)
    parameters: dict[str, Tensor] = field(default_factory=dict)
    optimizer_state: dict[str, Tensor] = field(default_factory=dict)
    best_parameters: dict[str, Tensor] = field(default_factory=dict)
    best_losses: dict[str, Tensor] = field(default_factory=dict)  # zero_one, nll: [L] float64

    def __post_init__(self) -> None:
        self.set_rates([], [])

    def append(self, parameters: Mapping[str, Tensor], optimizer_state: Mapping[str, Tensor]) -> None:
        """Put one trial's tensors behind the last lane. They are copied."""
        worst = torch.tensor(math.inf, dtype=torch.float64, device=self.device)
        self.parameters = _appended(self.parameters, parameters)
        self.optimizer_state = _appended(self.optimizer_state, optimizer_state)
        self.best_parameters = _appended(self.best_parameters, parameters)
        self.best_losses = _appended(self.best_losses, {"zero_one": worst, "nll": worst})

    def remove(self, lane: int) -> None:
        """Close the gap that a finished trial leaves: the lanes behind it move up."""
        self.parameters = _without(self.parameters, lane)
        self.optimizer_state = _without(self.optimizer_state, lane)
        self.best_parameters = _without(self.best_parameters, lane)
        self.best_losses = _without(self.best_losses, lane)

    def set_rates(self, trainings: Sequence[TrainingSettings], learning_rates: Sequence[float]) -> None:
        """Prepare an epoch: one transfer for the rates and one for the lambdas."""
        self.rates = Rates.of_lanes(trainings, learning_rates, self.device)
        self.penalties = LanePenalties.of(trainings, self.device)

    @torch.no_grad()
    def keep_best(self, zero_one: Tensor, nll: Tensor) -> None:
        """Copy the parameters of those lanes whose validation is their best so far; no host sync.

        The rule is `Validation.is_better_than`: lower zero-one loss, then lower NLL. A loss that is not
        finite is never the best: a diverged network still has a zero-one loss, and by chance a low one.
        """
        best_zero_one, best_nll = self.best_losses["zero_one"], self.best_losses["nll"]
        is_lower = (zero_one < best_zero_one) | ((zero_one == best_zero_one) & (nll < best_nll))
        is_best = is_lower & nll.isfinite()
        best_zero_one.copy_(torch.where(is_best, zero_one, best_zero_one))
        best_nll.copy_(torch.where(is_best, nll, best_nll))
        for name, best in self.best_parameters.items():
            parameter = self.parameters[name]
            mask = is_best.reshape(-1, *[1] * (parameter.dim() - 1))
            # where, not arithmetic with a 0/1 mask: 0 * NaN would let a diverged lane spoil its own best.
            torch.where(mask, parameter, best, out=best)


def _appended(stacked: dict[str, Tensor], single: Mapping[str, Tensor]) -> dict[str, Tensor]:
    if not stacked:
        return {name: value.unsqueeze(0).clone() for name, value in single.items()}
    return {name: torch.cat([stacked[name], value.unsqueeze(0)]) for name, value in single.items()}


def _without(stacked: dict[str, Tensor], lane: int) -> dict[str, Tensor]:
    # Two slices rather than index_select: no index has to travel to the device.
    return {name: torch.cat([value[:lane], value[lane + 1 :]]) for name, value in stacked.items()}
