"""Writes an epoch to the study database in a thread of its own, while the device trains the next one.

The worker hands over what an epoch has brought, trains on, and collects what became of it before it hands over the
next one: one epoch is outstanding at most, and a worker that was fenced out learns of it one epoch later. Within an
epoch the reports of a trial come before its end.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from types import TracebackType

import numpy as np
from numpy.typing import NDArray
from optuna.exceptions import UpdateFinishedTrialError

from hpsearch.epoch_report import EpochReport
from hpsearch.logs import get_logger
from hpsearch.service.artifacts import ArtifactFolder
from hpsearch.service.ledger import Ledger, Result
from hpsearch.service.signals import StopSignal, WorkerStopped

_log = get_logger("worker")

# Docker and our supervisor kill a worker 10 s after they have asked it to stop: half of that for what is outstanding,
# half for giving the trials back.
FLUSH_SECONDS = 5.0
_LOOK_SECONDS = 0.5  # between two looks at the stop signal while the database is slow


@dataclass(frozen=True, kw_only=True)
class BestParameters:
    """A COMPLETE trial's parameters, kept if no trial is better."""

    arrays: Mapping[str, NDArray[np.generic]]
    metadata: Mapping[str, str]


@dataclass(frozen=True, kw_only=True)
class Ending:
    """A trial's end.

    Args:
        number: of the trial, for the log.
        best: None if it cannot be the study's best trial.
    """

    number: int
    result: Result
    best: BestParameters | None = None


@dataclass(frozen=True, kw_only=True)
class EpochEntry:
    """What one epoch of all lanes has brought.

    Args:
        held: all trials that the worker takes for its own.
        reports: trial id -> its epoch, without diverged ones; None if they are recorded already.
        endings: of trials that are among `held`.
    """

    held: frozenset[int]
    reports: Mapping[int, EpochReport] | None
    endings: Sequence[Ending]


@dataclass(frozen=True, kw_only=True)
class Written:
    """What became of an entry.

    Args:
        lost: of the held trials, those that have been taken from this worker.
        counted: trials whose ends stand in the database.
        best_value: of all COMPLETE trials, if it was looked up.
    """

    lost: frozenset[int] = frozenset()
    counted: frozenset[int] = frozenset()
    best_value: float | None = None


class EpochWriter:
    """Context manager: the thread that writes one worker's epochs. To be used by one thread.

    Args:
        ledger: in the worker's name.
        name: the worker's, for the log.
    """

    def __init__(self, ledger: Ledger, artifacts: ArtifactFolder, stop: StopSignal, name: str) -> None:
        self._ledger = ledger
        self._artifacts = artifacts
        self._stop = stop
        self._name = name
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="epoch writer")
        self._outstanding: Future[Written] | None = None

    def __enter__(self) -> EpochWriter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        # A write that hangs is not waited for here. Python waits for it before the process ends, unless it is killed
        # first; that its worker's lease is gone keeps it from changing anything.
        self._thread.shutdown(wait=self._outstanding is None or self._outstanding.done(), cancel_futures=True)

    @property
    def is_outstanding(self) -> bool:
        """Whether something was handed over that has not been collected."""
        return self._outstanding is not None

    def hand_over(self, entry: EpochEntry) -> None:
        """Write this in the background. What was handed over before must have been collected."""
        assert self._outstanding is None
        self._outstanding = self._thread.submit(self._write, entry)

    def collect(self) -> Written:
        """Wait until what is outstanding has been written, and say what became of it.

        Raises:
            StorageError: the database has been away for too long.
            ArtifactError: the best parameters could not be kept.
            WorkerStopped: asked to stop while the database did not answer; the entry is still outstanding.
        """
        while not self._is_written(_LOOK_SECONDS):
            if self._stop.is_set():
                raise WorkerStopped
        return self._take()

    def flush(self) -> Written:
        """The same at a worker's end: wait for `FLUSH_SECONDS` at most, whoever asks to stop."""
        if self._is_written(FLUSH_SECONDS):
            return self._take()
        _log.warning("%s: the database does not answer: its last epoch may not be recorded", self._name)
        return Written()

    def _is_written(self, seconds: float) -> bool:
        return self._outstanding is None or bool(wait([self._outstanding], timeout=seconds).done)

    def _take(self) -> Written:
        outstanding, self._outstanding = self._outstanding, None
        return Written() if outstanding is None else outstanding.result()

    # In the thread

    def _write(self, entry: EpochEntry) -> Written:
        held = entry.held
        if entry.reports is not None:
            held &= self._ledger.record(entry.reports)
        endings = [ending for ending in entry.endings if ending.result.trial_id in held]
        counted, best_value = self._finish(endings)
        uncounted = {ending.result.trial_id for ending in endings} - counted
        self._tell(entry.endings, counted)
        return Written(lost=(entry.held - held) | uncounted, counted=frozenset(counted), best_value=best_value)

    def _finish(self, endings: Sequence[Ending]) -> tuple[set[int], float | None]:
        """Count the trials, the best first: once it is counted, nobody wants the others' parameters."""
        candidates = [ending for ending in endings if ending.best is not None]
        others = [ending for ending in endings if ending.best is None]
        best_value = self._ledger.best_value() if candidates else None
        counted: set[int] = set()
        for value, equals in itertools.groupby(sorted(candidates, key=_value), key=_value):
            if best_value is not None and value > best_value:
                others += equals
                continue
            # Their file and its record must be there before they are finished: Optuna takes nothing afterwards.
            accepted = self._count(ending for ending in equals if self._keep(ending))
            counted |= accepted
            if accepted:
                best_value = value
        return counted | self._count(others), best_value

    def _count(self, endings: Iterable[Ending]) -> set[int]:
        return self._ledger.finish([ending.result for ending in endings])

    def _keep(self, ending: Ending) -> bool:
        """Keep a trial's parameters. False: the trial is no longer ours."""
        assert ending.best is not None
        database, trial_id, best = self._ledger.database, ending.result.trial_id, ending.best
        try:
            database.with_optuna(
                lambda: self._artifacts.save_parameters(database.storage, trial_id, best.arrays, best.metadata)
            )
        except UpdateFinishedTrialError:
            return False
        return True

    def _tell(self, endings: Sequence[Ending], counted: set[int]) -> None:
        for ending in endings:
            if ending.result.trial_id in counted:
                result = ending.result
                _log.debug("%s: trial %d %s: %s", self._name, ending.number, result.outcome.name, result.attributes)
            else:
                _log.warning("%s: lost trial %d to another worker", self._name, ending.number)


def _value(ending: Ending) -> float:
    assert ending.result.value is not None  # only a diverged trial has none, and it is no candidate
    return ending.result.value
