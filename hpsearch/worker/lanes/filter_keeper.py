"""After which epochs the first-layer filters are kept for pictures. Which filters: training/networks/first_layer.py."""

from __future__ import annotations

from collections.abc import Mapping

from hpsearch.logs import get_logger
from hpsearch.search.stopping import StopDecision, StopReason
from hpsearch.training.device_memory import is_out_of_memory
from hpsearch.training.filter_series import is_due
from hpsearch.training.lanes.cohort import Cohort
from hpsearch.worker.lanes.trial import TrialInTraining

_log = get_logger("worker")


class FilterKeeper:
    """Keeps copies of one worker's first-layer filters, and warns once when the device has no memory for them."""

    def __init__(self) -> None:
        self._has_memory = True

    def keep(
        self,
        cohort: Cohort,
        lanes: Mapping[int, TrialInTraining],
        decisions: Mapping[int, StopDecision | None],
        every: int | None,
    ) -> None:
        """Copy the filters of the trials for which this epoch is due, or is the last. Between two epochs.

        Args:
            lanes: the trials in training, by id, after this epoch.
            decisions: by trial id; None: the trial goes on.
            every: epochs between two copies; None: none is kept.
        """
        if every is None:
            return
        ending = {trial_id for trial_id, decision in decisions.items() if decision is not None}
        diverged = {i for i in ending if (decision := decisions[i]) and decision.reason is StopReason.DIVERGED}
        due = [i for i, lane in lanes.items() if i not in diverged and (i in ending or is_due(lane.num_epochs, every))]
        try:
            copies = cohort.first_filters(due)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            if self._has_memory:
                _log.warning("filters of some epochs are not kept: the device has no memory for a copy")
            self._has_memory = False
            return
        if copies and not self._has_memory:
            _log.info("filters are kept again: the device has memory for a copy")
            self._has_memory = True
        for trial_id in due:
            if trial_id in copies:
                lane = lanes[trial_id]
                lane.filters = lane.filters.added(lane.num_epochs, copies[trial_id], every)
