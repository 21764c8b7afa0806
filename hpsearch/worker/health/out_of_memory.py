"""What a worker does when its device runs out of memory in training.

`training/device_memory` recognises the error, and says how much memory is free. The worker then gives all of its trials
back, and takes them up again in at most half as many lanes. A trial that runs out of memory alone counts as crashed,
and is given up after MAX_CRASHES attempts. Elsewhere a shortage costs less: trials that find no room beside others are
given back, and the others train on; a checkpoint is left out (`worker/lanes/checkpointer`).
"""

from __future__ import annotations

from collections.abc import Callable, Collection

from hpsearch.errors import DeviceError
from hpsearch.logs import get_logger
from hpsearch.store.claims.holdings import Hold
from hpsearch.store.claims.ledger import Ledger
from hpsearch.store.claims.requeue import MAX_CRASHES
from hpsearch.wording import counted

_log = get_logger("worker")
_lanes_log = get_logger("lanes")  # `run` shows these lines (launch/worker_command)
_HINT = "choose a smaller network or training.batch_size, or free the device"


class OutOfMemory:
    """One worker's shortages of memory.

    Args:
        name: name of the worker, for the log.
        device: description of its device.
        num_alone: consecutive trials that ran out of memory alone; set it to 0 when an epoch was trained.
    """

    def __init__(self, name: str, device: str) -> None:
        self._name = name
        self._device = device
        self.num_alone = 0

    @property
    def refusal(self) -> str:
        """Why a trial is given back for which there was no memory beside those in lanes."""
        return f"out of memory on {self._device} beside other lanes"

    def tell_refusal(self, number: int, request: str, most: int) -> None:
        """Log that trials were given back for which there was no memory beside those in lanes, which train on.

        Args:
            request: the allocation that failed.
            most: the most lanes that the cohort may have from now on.
        """
        trials, lanes = counted(number, "trial"), counted(most, "lane")
        message = "%s: out of memory on %s (%s): %s given back, at most %s from now on"
        _lanes_log.warning(message, self._name, self._device, request, trials, lanes)

    def give_back(
        self, ledger: Ledger, trained: Collection[Hold], request: str, limit_lanes: Callable[[int], object]
    ) -> None:
        """Give back all trials of the worker.

        Args:
            trained: the trials in lanes. Others have not caused the shortage.
            request: the allocation that failed.
            limit_lanes: called with the most lanes that the cohort may have from now on.
        Raises:
            DeviceError: single trials have run out of memory more than MAX_CRASHES times in a row.
        """
        num_lanes, where = len(trained), f"out of memory on {self._device}"
        if num_lanes > 1:
            limit_lanes(num_lanes // 2)
            num_released = ledger.release(f"{where} with {num_lanes} lanes")
            _lanes_log.warning(
                "%s: %s with %d lanes (%s): %d trials will be trained again, in at most %d lanes",
                *(self._name, where, num_lanes, request, num_released, num_lanes // 2),
            )
            return
        reason = f"{where} with one lane: {request}"
        _log.error("%s: %s; %s", self._name, reason, _HINT)
        ledger.give_back(trained, f"{reason}; {_HINT}", is_crash=True)
        ledger.release(where)
        self.num_alone += 1
        if self.num_alone > MAX_CRASHES:  # then the points are not the cause
            raise DeviceError(f"{reason}, {self.num_alone} times in a row", hint=_HINT)
