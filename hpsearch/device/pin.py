"""One GPU per worker: a worker pins its GPU as long as it lives, so that identical replicas divide the GPUs among them.

Workers see each other through the database: all workers that use the GPUs of one machine must use one database. A GPU
is shared only by workers that all allow it.
"""

from __future__ import annotations

import contextlib
import random
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from sqlalchemy.exc import SQLAlchemyError

from hpsearch.device.devices import Gpu, VisibleDevices, wanted_gpus
from hpsearch.device.gpu_lock import GpuLockSession
from hpsearch.errors import DeviceError, DeviceLostError
from hpsearch.logs import get_logger
from hpsearch.signals import StopSignal
from hpsearch.store.connection.answer_limit import answer_limit
from hpsearch.store.connection.database import Database
from hpsearch.wording import first_line

if TYPE_CHECKING:
    import torch

_log = get_logger("devices")

_POLL_SECONDS = (0.5, 1.5)  # random in between, so that replicas that started together do not keep polling together
_MOST_TRIES = 3
_KEEP_ANSWER_SECONDS = 5.0
_CLOSE_SECONDS = 5.0


@dataclass(frozen=True, kw_only=True)
class PinRules:
    """How a worker gets its GPU.

    Args:
        waits: wait until a GPU is free; otherwise it is an error if none is free.
        is_shared: share a GPU with other workers that allow it.
    """

    waits: bool = True
    is_shared: bool = False


class PinnedDevice:
    """The device of this worker, and the lock on it if it is a GPU.

    Args:
        gpu: None: the CPU, on which any number of workers may train.
        session: holds the lock; None if there is nothing to hold.
        is_shared: the lock is a shared one.
    """

    def __init__(self, gpu: Gpu | None, session: GpuLockSession | None = None, *, is_shared: bool = False) -> None:
        self._gpu = gpu
        self.description = gpu.description if gpu else "cpu"  # for people, and for the trials' attribute `device`
        self._uuid = gpu.uuid if gpu else None
        self._session = session
        self._is_shared = is_shared
        self._mutex = threading.Lock()
        self._is_lost = False

    @cached_property
    def device(self) -> torch.device:
        import torch  # a worker whose trials are programs does not need it

        return self._gpu.device if self._gpu else torch.device("cpu")

    @property
    def is_lost(self) -> bool:
        """True once another worker has this GPU: this worker must not use it any more. Any thread may ask."""
        return self._is_lost

    def keep(self) -> bool:
        """Take the lock again if its session was cut. Call this every few seconds, from any thread.

        While the database is away, the GPU counts as ours, because no other worker can lock it either. Database errors
        are logged, not raised.

        Returns:
            False, for good, once another worker has the GPU.
        """
        if self._session is None or self._uuid is None:
            return True
        with self._mutex:
            if self._is_lost:
                return False
            for attempt in (1, 2):  # the second one in a new session: without one, others may take the GPU
                try:
                    with answer_limit(_KEEP_ANSWER_SECONDS):
                        self._is_lost = not (self._session.has_lock(self._uuid) or self._lock_again())
                    break
                except SQLAlchemyError as error:
                    if attempt == 2:
                        _log.warning("could not check the lock on %s: %s", self.description, first_line(error))
        if self._is_lost:
            _log.error("another worker has taken %s while the database was away", self.description)
        return not self._is_lost

    def require(self) -> None:
        """Raise DeviceLostError if another worker has taken this GPU."""
        if self._is_lost:
            raise DeviceLostError(
                f"another worker has taken {self.description} while the database was away",
                hint="start this worker again: it takes a free GPU, or waits for one",
            )

    def close(self) -> None:
        """Release the GPU."""
        if self._session is None or not self._mutex.acquire(timeout=_CLOSE_SECONDS):
            return  # the thread that keeps the lock hangs: the session ends with the process
        try:
            with answer_limit(_CLOSE_SECONDS):
                self._session.close()
        finally:
            self._mutex.release()

    def _lock_again(self) -> bool:
        assert self._session is not None
        assert self._uuid is not None
        for _ in range(_MOST_TRIES):
            if self._session.try_lock(self._uuid, is_shared=self._is_shared):
                _log.info("the session that pins %s was cut: pinned again", self.description)
                return True
            holders = self._session.holders(self._uuid)
            if holders and not any(holder.is_self for holder in holders):
                return False
            for holder in holders:  # our old session, which the server has not yet noticed to be gone
                if holder.is_self:
                    self._session.end_session_of(holder)
        return True  # the old session still holds it: the next call tries again


@contextlib.contextmanager
def pin_device(
    database: Database,
    wanted: str,
    visible: VisibleDevices,
    *,
    worker: str,
    stop: StopSignal,
    is_finished: Callable[[], bool],
    rules: PinRules,
) -> Iterator[PinnedDevice | None]:
    """Pin the first free GPU of the requested ones while the context is open, or use the CPU.

    Any number of processes may do so at once. A lock that was lost with its connection is requested again.

    Args:
        wanted: `auto`, `cpu`, `cuda` or `cuda:N`.
        worker: name of the worker, shown to other workers that wait for the GPU.
        is_finished: whether the study needs no more workers; checked while waiting.
    Yields:
        None if `stop` or `is_finished` ended the wait.
    Raises:
        InputError: not a device name.
        DeviceError: the GPU does not exist, cannot be identified, or is taken and the rules say not to wait.
        StorageError: the database was away for too long.
    """
    gpus = wanted_gpus(wanted, visible)
    if not gpus:
        if wanted == "auto":
            _log.info("no GPU is visible: training on the CPU")
        yield PinnedDevice(None)
        return
    _require_identity(gpus)
    session = GpuLockSession(database, worker)
    pinned: PinnedDevice | None = None
    try:
        gpu = _wait_for_one(database, session, gpus, stop, is_finished, rules)
        if gpu is not None:
            pinned = PinnedDevice(gpu, session, is_shared=rules.is_shared)
        yield pinned
    finally:
        (pinned or session).close()


def describe_taken(database: Database, gpus: Sequence[Gpu]) -> list[str]:
    """Describe which of these GPUs are held, and by whom: `cuda:0 (NVIDIA H200, GPU-5ee1...) by node7:4711`."""
    with contextlib.closing(GpuLockSession(database)) as session:
        return database.patiently(lambda: _taken(session, gpus))


def _require_identity(gpus: Sequence[Gpu]) -> None:
    for gpu in gpus:
        if gpu.uuid is None:
            raise DeviceError(
                f"{gpu.device} ({gpu.name}) has neither a UUID nor a known place on the PCI bus: it cannot be pinned",
                hint="update the driver or torch, or choose another device with --device",
            )


def _wait_for_one(
    database: Database,
    session: GpuLockSession,
    gpus: Sequence[Gpu],
    stop: StopSignal,
    is_finished: Callable[[], bool],
    rules: PinRules,
) -> Gpu | None:
    was_told = False
    while True:
        gpu = database.patiently(lambda: _take_one(session, gpus, is_shared=rules.is_shared))
        if gpu is not None:
            if was_told:
                _log.info("%s is free now", gpu.description)
            return gpu
        if stop.is_set() or is_finished():
            return None
        # It may take some seconds to find out whether a GPU is free; the rules do not mean that wait.
        if not was_told and (rules.waits or not database.patiently(lambda: _is_any_awaited(session, gpus))):
            was_told = True
            _tell(database.patiently(lambda: _taken(session, gpus)), rules)
        if stop.wait(random.uniform(*_POLL_SECONDS)):
            return None


def _take_one(session: GpuLockSession, gpus: Sequence[Gpu], *, is_shared: bool) -> Gpu | None:
    """Take and return the first free GPU, or with `is_shared` the one with the fewest holders; None if none is free."""
    others = {gpu.index: session.holders(_uuid(gpu)) if is_shared else [] for gpu in gpus}
    for gpu in sorted(gpus, key=lambda gpu: len(others[gpu.index])):
        if session.is_awaited(_uuid(gpu)):
            continue
        if session.try_lock(_uuid(gpu), is_shared=is_shared):
            if is_shared:
                names = ", ".join(holder.worker for holder in others[gpu.index])
                _log.warning("%s is shared, with %s", gpu.description, names or "nobody yet")
            return gpu
    return None


def _is_any_awaited(session: GpuLockSession, gpus: Sequence[Gpu]) -> bool:
    return any(session.is_awaited(_uuid(gpu)) for gpu in gpus)


def _taken(session: GpuLockSession, gpus: Sequence[Gpu]) -> list[str]:
    known = [gpu for gpu in gpus if gpu.uuid is not None]
    holders = {gpu: ", ".join(holder.worker for holder in session.holders(_uuid(gpu))) for gpu in known}
    return [f"{gpu.description} by {names}" for gpu, names in holders.items() if names]


def _tell(taken: Sequence[str], rules: PinRules) -> None:
    """Report why there is no GPU for this worker.

    Raises:
        DeviceError: the rules say not to wait.
    """
    reason = f"no GPU is free for this worker: {'; '.join(taken) or 'another worker was faster'}"
    if rules.waits:
        _log.warning("%s; it waits until one is free or the study is finished", reason)
        return
    raise DeviceError(
        reason, hint="--wait-for-gpu waits for one; --share-gpu shares one with workers that were started with it, too"
    )


def _uuid(gpu: Gpu) -> str:
    assert gpu.uuid is not None
    return gpu.uuid
