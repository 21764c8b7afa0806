"""Train one point again as the search did: same seed, data and stopping rule, keeping the best parameters."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from hpsearch.data.resident import ResidentData
from hpsearch.epoch_report import EpochReport, Validation
from hpsearch.errors import HpsearchError
from hpsearch.search.stopping import decide
from hpsearch.study.settings import StoppingSettings, TrialSettings
from hpsearch.worker.cohorts import Cohorts

_KEY = "retrained"


@dataclass(frozen=True, kw_only=True)
class Retrained:
    """A point that was trained again.

    Args:
        parameters: parameters at the best validation, by name.
        best: the best validation.
    """

    parameters: Mapping[str, NDArray[np.generic]]
    best: Validation


def retrain(
    settings: TrialSettings,
    stopping: StoppingSettings,
    data: ResidentData,
    device: torch.device,
    on_epoch: Callable[[EpochReport], object],
) -> Retrained:
    """Train a point in a single lane until its stopping rule, its schedule or its epochs end it.

    The result equals that of the trial in the search bit for bit on the same kind of device with the same other lanes,
    and otherwise up to rounding, which long training amplifies.

    Args:
        on_epoch: called after every epoch.
    Raises:
        InputError: the batch size does not fit the training set.
        HpsearchError: no validation was finite.
    """
    cohorts = Cohorts(stopping, data, device)
    rule, cohort = cohorts.stopping_rule(settings), cohorts.open(settings)
    cohort.admit(_KEY, settings)
    decision = None
    while decision is None:
        report = cohort.train_epoch()[_KEY]
        on_epoch(report)
        decision = decide(rule, report, settings.training.max_epochs)
    best = cohort.best(_KEY)
    if best is None:
        raise HpsearchError(f"the point cannot be trained again: it {decision.detail}")
    return Retrained(parameters=cohort.best_parameters(_KEY), best=best)
