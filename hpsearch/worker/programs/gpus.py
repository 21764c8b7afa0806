"""Pins the GPUs of programs: as many as one trial needs, all of them or none, for one worker."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from hpsearch.device.devices import Gpu
from hpsearch.device.gpu_lock import GpuLockSession
from hpsearch.device.pin import PinnedDevice
from hpsearch.errors import DeviceError
from hpsearch.logs import get_logger
from hpsearch.signals import StopSignal
from hpsearch.store.connection.database import Database

_log = get_logger("devices")
_PAUSE_SECONDS = (0.5, 1.5)  # random in between: workers that wait for the same GPUs must not keep in step


@dataclass(frozen=True, kw_only=True)
class PinnedGpus:
    """The GPUs of this worker, each with its lock."""

    gpus: Sequence[Gpu]
    pins: Sequence[PinnedDevice]

    @property
    def uuids(self) -> list[str]:
        return [str(gpu.uuid) for gpu in self.gpus]

    @property
    def description(self) -> str:
        return ", ".join(gpu.description for gpu in self.gpus)

    @property
    def is_lost(self) -> bool:
        """Whether another worker has one of them."""
        return any(pin.is_lost for pin in self.pins)

    def keep(self) -> bool:
        """Take the locks again if their sessions were cut (`PinnedDevice.keep`)."""
        return all([pin.keep() for pin in self.pins])  # noqa: C419 - each of them

    def require(self) -> None:
        """Raise DeviceLostError if another worker has taken one."""
        for pin in self.pins:
            pin.require()


@contextlib.contextmanager
def pin_gpus(
    database: Database,
    gpus: Sequence[Gpu],
    number: int,
    *,
    worker: str,
    waits: bool,
    stop: StopSignal,
    is_finished: Callable[[], bool],
) -> Iterator[PinnedGpus | None]:
    """Pin this many of the GPUs while the context is open.

    Args:
        gpus: those that this worker may take.
        waits: wait until enough are free; otherwise it is an error if they are not.
    Yields:
        None if `stop` or `is_finished` ended the wait.
    Raises:
        DeviceError: there are not as many GPUs, one cannot be identified, or they are taken and the worker must not
            wait.
        StorageError: the database was away for too long.
    """
    if len(gpus) < number:
        raise DeviceError(
            f"a trial needs {number} GPUs, and this worker sees {len(gpus)}",
            hint="lower gpus in the study file, or start the worker on another machine",
        )
    for gpu in gpus:
        if gpu.uuid is None:
            raise DeviceError(
                f"cuda:{gpu.index} ({gpu.name}) has no UUID: it cannot be pinned", hint="update the driver"
            )
    was_told = False
    while True:
        found = database.patiently(lambda: _take(database, gpus, number, worker))
        if found is not None:
            break
        if stop.is_set() or is_finished():
            yield None
            return
        if not waits:
            raise DeviceError(f"{number} of the {len(gpus)} GPUs are not free", hint="--wait-for-gpu waits for them")
        if not was_told:
            _log.warning("%d of the %d GPUs are not free: the worker waits for them", number, len(gpus))
        was_told = True
        if stop.wait(random.uniform(*_PAUSE_SECONDS)):
            yield None
            return
    try:
        yield found
    finally:
        for pin in found.pins:
            pin.close()


def _take(database: Database, gpus: Sequence[Gpu], number: int, worker: str) -> PinnedGpus | None:
    """Lock this many GPUs, or none: whoever has a part of what it needs lets it go."""
    taken: list[tuple[Gpu, GpuLockSession]] = []
    for gpu in gpus:
        session = GpuLockSession(database, worker)
        # A worker whose session was cut takes its lock again; programs of one that died may need their grace.
        if not session.is_awaited(str(gpu.uuid)) and session.try_lock(str(gpu.uuid), is_shared=False):
            taken.append((gpu, session))
        else:
            session.close()
        if len(taken) == number:
            pins = [PinnedDevice(gpu, session) for gpu, session in taken]
            return PinnedGpus(gpus=[gpu for gpu, _ in taken], pins=pins)
    for _, session in taken:
        session.close()
    return None
