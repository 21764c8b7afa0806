"""Train one point again as the search did: same seed, data and stopping rule, keeping the best parameters."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import torch
from numpy.typing import NDArray

from hpsearch.data.resident import ResidentData
from hpsearch.epoch_report import EpochReport
from hpsearch.errors import HpsearchError
from hpsearch.search.stopping import decide, stopping_rule, validation_interval
from hpsearch.study.settings import StoppingSettings, TrialSettings
from hpsearch.training.lanes.cohort import Cohort, CohortShape
from hpsearch.worker.cohorts import reference_test

_KEY = "retrained"


def retrain(
    settings: TrialSettings,
    stopping: StoppingSettings,
    data: ResidentData,
    device: torch.device,
    on_epoch: Callable[[EpochReport], object],
) -> Mapping[str, NDArray[np.generic]]:
    """Train a point in a single lane until its stopping rule, its schedule or its epochs end it.

    The result equals that of the trial in the search bit for bit on the same kind of device with the same other lanes,
    and otherwise up to rounding, which long training amplifies.

    Args:
        on_epoch: called after every epoch.
    Returns:
        The parameters at the best validation, by name.
    Raises:
        InputError: the batch size does not fit the training set.
        HpsearchError: no validation was finite.
    """
    num_minibatches = data.num_minibatches(settings.training.batch_size)
    rule = stopping_rule(stopping, num_minibatches=num_minibatches)
    reference = reference_test(stopping, len(data.validation_labels))
    interval = validation_interval(stopping, num_minibatches)
    cohort = Cohort(CohortShape.of(settings), data, device, interval, reference)
    cohort.admit(_KEY, settings)
    decision = None
    while decision is None:
        report = cohort.train_epoch()[_KEY]
        on_epoch(report)
        decision = decide(rule, report, settings.training.max_epochs)
    if cohort.best(_KEY) is None:
        raise HpsearchError(f"the point cannot be trained again: it {decision.detail}")
    return cohort.best_parameters(_KEY)
