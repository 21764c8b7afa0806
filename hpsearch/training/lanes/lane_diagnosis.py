"""Diagnoses the lanes of a cohort between two epochs: lanes side by side that have the same network are one batch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from hpsearch.data.resident import ResidentData
from hpsearch.epoch_report import Diagnosis
from hpsearch.logs import get_logger
from hpsearch.study.settings import TrialSettings
from hpsearch.training.device_memory import is_out_of_memory
from hpsearch.training.diagnosis.gradient_state import FixedBatch, LanesState, is_diagnosis_due, measure, names_of
from hpsearch.training.lanes.stack import LaneStack
from hpsearch.training.networks.network import Network
from hpsearch.training.networks.padding import PADDED_FAMILIES, fit
from hpsearch.training.tensors import runs

_log = get_logger("diagnosis")


@final
@dataclass(kw_only=True, eq=False)
class LaneDiagnoser:
    """Looks at the lanes of one cohort, on a fixed batch of training images. Nothing that it reads is changed.

    Args:
        num_minibatches: of an epoch.
        has_memory: False after the device had no memory for it: training goes on without diagnosis.
    """

    batch: FixedBatch
    num_minibatches: int
    has_memory: bool = True

    @classmethod
    def of(
        cls, data: ResidentData, batch_size: int, dtype: torch.dtype, class_weights: Tensor | None = None
    ) -> LaneDiagnoser:
        return cls(batch=FixedBatch.of(data, dtype, class_weights), num_minibatches=data.num_minibatches(batch_size))

    def is_due(self, epoch: int, settings: TrialSettings) -> bool:
        """Whether a trial is looked at after this epoch, 1-based."""
        return is_diagnosis_due(epoch, num_minibatches=self.num_minibatches, max_epochs=settings.training.max_epochs)

    def measure(self, stack: LaneStack, networks: Sequence[Network | None]) -> Tensor:
        """The numbers of those lanes that have a network here, [numbers, L] float64; NaN for others; no host sync.

        Args:
            networks: of each lane the trial's own network, the cohort's may be wider; None: it is not looked at.
        Returns:
            [0, L] if no lane is looked at.
        """
        network = next((network for network in networks if network is not None), None)
        if network is None or not self.has_memory:
            return torch.empty(0, len(networks), dtype=torch.float64, device=stack.device)
        numbers = len(names_of(network)), len(networks)
        measured = torch.full(numbers, math.nan, dtype=torch.float64, device=stack.device)
        for lanes, (its, _) in runs(zip(networks, stack.kinds, strict=True)):
            if its is not None and self.has_memory:
                measured[:, lanes] = self._measure(_state_of(its, stack.part(lanes)))
        return measured

    def _measure(self, state: LanesState) -> Tensor | float:
        try:
            return measure(state, self.batch)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            _log.warning("lanes are no longer diagnosed: the device has no memory for it")
            self.has_memory = False
            return math.nan


def _state_of(network: Network, stack: LaneStack) -> LanesState:
    """The tensors of lanes that all have this network and one optimizer, without padding."""
    parameters, state = stack.parameters, stack.optimizer_state
    if network.model.family in PADDED_FAMILIES:
        parameters, state = fit(parameters, network), fit(state, network)
    return LanesState(
        network=network,
        optimizer=stack.kinds[0].optimizer,
        parameters=parameters,
        optimizer_state=state,
        rates=stack.rates,
        penalties=stack.penalties,
    )


def diagnosis_of(network: Network, numbers: Sequence[float]) -> Diagnosis | None:
    """One lane's numbers as they come from the device; None if it was not looked at, or its loss is not finite."""
    known = {
        name: number if math.isfinite(number) else None
        for name, number in zip(names_of(network), numbers, strict=False)  # there are none if no lane was looked at
    }
    if known.get("nll") is None:
        return None
    ratios = {name: known.pop(name) for name in network.weight_names}
    return Diagnosis(**known, update_ratios=ratios)
