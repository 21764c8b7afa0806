"""Writes epochs to the study database in a background thread, while the device trains the next epoch.

The worker hands over the results of an epoch, continues to train, and collects the outcome before it hands over the
next epoch: a worker that was fenced out notices one epoch later. Within an epoch, the reports of a trial are written
before its end.

A database that is away does not stop the training: epochs are queued in order and written when it is back; each can
safely be written twice. Two bounds end this: the ledger's patience (`outage_seconds`), after which the worker ends, and
MAX_BUFFERED_REPORTS, beyond which the training waits.
"""

from __future__ import annotations

import itertools
import threading
from collections import deque
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, replace
from types import TracebackType

import numpy as np
from numpy.typing import NDArray
from optuna.exceptions import UpdateFinishedTrialError

from hpsearch.artifacts.best_parameters import Artifacts
from hpsearch.epoch_report import EpochReport
from hpsearch.logs import get_logger
from hpsearch.signals import FLUSH_SECONDS, StopSignal, WorkerStopped
from hpsearch.store.claims.holdings import Hold
from hpsearch.store.claims.ledger import Ledger, Outcome, Result

_log = get_logger("worker")

# How long an epoch waits for the previous one to be written. A database that is merely slow thus slows the training
# down; one that is away does not.
SLOW_SECONDS = 1.0
MAX_BUFFERED_REPORTS = 200_000  # about 200 MB
_LOOK_SECONDS = 0.5  # between two checks of the stop signal while the database is slow


@dataclass(frozen=True, kw_only=True)
class BestParameters:
    """A COMPLETE trial's parameters, to be kept if no trial is better, or in any case.

    Args:
        arrays: name -> array.
        metadata: stored in the same file.
        is_always_kept: keep them even if another trial is better.
    """

    arrays: Mapping[str, NDArray[np.generic]]
    metadata: Mapping[str, str]
    is_always_kept: bool = False


@dataclass(frozen=True, kw_only=True)
class Ending:
    """The end of a trial.

    Args:
        number: number of the trial, for the log.
        best: None if it cannot be the study's best trial and is not kept otherwise.
    """

    number: int
    result: Result
    best: BestParameters | None = None


@dataclass(frozen=True, kw_only=True)
class EpochEntry:
    """The results of one epoch of all lanes.

    Args:
        held: all holds of the worker after the epoch.
        reports: trial id -> its epoch, without diverged ones; None if they are already recorded.
        endings: of trials that are among `held`.
        num_restarts: number of server restarts known when the worker decided whose parameters to keep (holdings.py).
    """

    held: frozenset[Hold]
    reports: Mapping[int, EpochReport] | None
    endings: Sequence[Ending]
    num_restarts: int = 0


@dataclass(frozen=True, kw_only=True)
class Written:
    """The outcome of writing an entry.

    Args:
        lost: those of the entry's holds that no longer belong to this worker.
        counted: trials whose ends are in the database.
        best_value: lowest value of all COMPLETE trials, if it was looked up.
    """

    lost: frozenset[Hold] = frozenset()
    counted: frozenset[int] = frozenset()
    best_value: float | None = None

    def followed_by(self, later: Written) -> Written:
        """Return the combined outcome of this entry and a later one."""
        return Written(
            lost=self.lost | later.lost,
            counted=self.counted | later.counted,
            best_value=self.best_value if later.best_value is None else later.best_value,
        )


@dataclass(frozen=True, kw_only=True)
class _Outstanding:
    """An entry that was handed over, and the number of reports that it keeps in memory."""

    write: Future[Written]
    num_reports: int


class EpochWriter:
    """Context manager: the thread that writes one worker's epochs. Its methods are for one thread.

    Args:
        ledger: in the worker's name.
        name: name of the worker, for the log.
        discard: called with the trials that were counted, whose checkpoints are no longer needed.
    """

    def __init__(
        self,
        ledger: Ledger,
        artifacts: Artifacts,
        stop: StopSignal,
        name: str,
        *,
        discard: Callable[[Collection[int]], object] = lambda trial_ids: None,
    ) -> None:
        # An event of its own, so that the thread can be made to give up after its worker has left.
        self._abandoned = threading.Event()
        self._ledger = replace(ledger, database=replace(ledger.database, abandoned=self._abandoned))
        self._artifacts = artifacts
        self._stop = stop
        self._name = name
        self._discard = discard
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="epoch writer")
        self._queue: deque[_Outstanding] = deque()
        self._is_behind = False
        self._failure: BaseException | None = None  # of an entry; no later entry is written

    def __enter__(self) -> EpochWriter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        # Does not wait here for a write that hangs; a write that waits for the database gives up. Python waits for the
        # thread before the process ends, unless the process is killed first.
        self._abandoned.set()
        self._thread.shutdown(wait=all(entry.write.done() for entry in self._queue), cancel_futures=True)

    @property
    def is_outstanding(self) -> bool:
        """Whether an entry was handed over and not yet collected."""
        return bool(self._queue)

    @property
    def is_behind(self) -> bool:
        """Whether the database did not keep up when last checked: it is slow, hangs, or is away."""
        return self._is_behind

    @property
    def num_buffered(self) -> int:
        """The number of reports that have not been written."""
        return sum(entry.num_reports for entry in self._queue)

    @property
    def last_write(self) -> Future[Written] | None:
        """A future that is done when everything handed over so far has been written; None if nothing is outstanding."""
        return self._queue[-1].write if self._queue else None

    def hand_over(self, entry: EpochEntry) -> None:
        """Write this entry in the background, after all entries that were handed over before."""
        write = self._thread.submit(self._write, entry)
        self._queue.append(_Outstanding(write=write, num_reports=len(entry.reports or ())))

    def collect(self) -> Written:
        """Return the outcome of the written entries, after a short wait for outstanding ones.

        Raises:
            StorageError: the database was away for too long.
            ArtifactError: the best parameters could not be saved.
        """
        # Do not wait for a database that is away. Wait for one that answers: otherwise a single slow moment would never
        # end.
        is_answering = not self._is_behind or not self._queue or self._queue[0].write.done()
        self._await(SLOW_SECONDS if is_answering else 0.0)
        written = self._take()
        while self.num_buffered > MAX_BUFFERED_REPORTS and not self._stop.is_set():
            self._await(_LOOK_SECONDS)
            written = written.followed_by(self._take())
        self._note_behind(self.is_outstanding)
        return written

    def drain(self) -> Written:
        """Wait until all entries are written and return their outcome.

        Raises:
            StorageError, ArtifactError: as in `collect`.
            WorkerStopped: asked to stop while the database did not answer; outstanding entries stay outstanding.
        """
        while not self._await(_LOOK_SECONDS):
            if self._stop.is_set():
                raise WorkerStopped
        self._note_behind(False)
        return self._take()

    def flush(self) -> Written:
        """Return the outcome at a worker's end, after a wait of at most `FLUSH_SECONDS`.

        The wait is shorter if the database is known to be away.
        """
        if not self._await(min(SLOW_SECONDS, FLUSH_SECONDS) if self._is_behind else FLUSH_SECONDS):
            _log.warning("%s: the database does not answer: its last epochs may not be recorded", self._name)
        return self._take()

    def _await(self, seconds: float) -> bool:
        """Wait for all entries for at most `seconds`; return whether they are written."""
        return not self._queue or bool(wait([self._queue[-1].write], timeout=seconds).done)

    def _note_behind(self, is_behind: bool) -> None:
        if is_behind and not self._is_behind:
            what = "the database, or the artifact store, does not answer: training goes on, its reports are kept"
            _log.warning("%s: %s", self._name, what)
        elif self._is_behind and not is_behind:
            _log.info("%s: all epochs are written again", self._name)
        self._is_behind = is_behind

    def _take(self) -> Written:
        """Return the outcome of the finished entries, in order. After an error, all later entries are dropped."""
        written = Written()
        while self._queue and self._queue[0].write.done():
            try:
                written = written.followed_by(self._queue.popleft().write.result())
            except BaseException:
                wait([entry.write for entry in self._queue if not entry.write.cancel()])
                self._queue.clear()
                self._failure = None
                raise
        return written

    # In the writer's thread

    def _write(self, entry: EpochEntry) -> Written:
        if self._failure is not None:  # a later epoch would leave a gap in its trials' curves
            raise self._failure
        try:
            return self._write_entry(entry)
        except BaseException as error:
            self._failure = error
            raise

    def _write_entry(self, entry: EpochEntry) -> Written:
        held = {trial_id for trial_id, _ in entry.held}
        if entry.reports is not None:
            held = self._ledger.record(entry.reports, held=entry.held)
        endings = [ending for ending in entry.endings if ending.result.trial_id in held]
        if entry.num_restarts != self._ledger.holdings.num_restarts:
            endings = self._without_lost_bests(endings)
        counted, best_value = self._finish(endings)
        held -= {ending.result.trial_id for ending in entry.endings} - counted
        self._discard(counted)
        self._tell(entry.endings, counted)
        lost = frozenset(hold for hold in entry.held if hold[0] not in held)
        self._ledger.holdings.drop(lost)  # a refused end ends the hold, too: others train the point
        return Written(lost=lost, counted=frozenset(counted), best_value=best_value)

    def _without_lost_bests(self, endings: Sequence[Ending]) -> list[Ending]:
        """Leave out trials that are now the study's best but come without parameters.

        This happens when the database has lost a better result.

        They count as lost and are given back with the next renewal.
        """
        best = self._ledger.best_value()

        def is_lost(ending: Ending) -> bool:
            is_complete = ending.result.outcome is Outcome.COMPLETE
            return ending.best is None and is_complete and (best is None or _value(ending) < best)

        lost = {ending.result.trial_id for ending in endings if is_lost(ending)}
        return [ending for ending in endings if ending.result.trial_id not in lost]

    def _finish(self, endings: Sequence[Ending]) -> tuple[set[int], float | None]:
        """Count the trials, the best ones first: once one is counted, the parameters of worse trials are not needed."""
        candidates = [ending for ending in endings if ending.best is not None]
        others = [ending for ending in endings if ending.best is None]
        best_value = self._ledger.best_value() if candidates else None
        counted: set[int] = set()
        for value, equals in itertools.groupby(sorted(candidates, key=_value), key=_value):
            is_worse = best_value is not None and value > best_value
            wanted: list[Ending] = []
            for ending in equals:
                (others if is_worse and not _is_always_kept(ending) else wanted).append(ending)
            # The file and its record must exist before the trials are finished: Optuna accepts no attributes
            # afterwards.
            accepted = self._count(ending for ending in wanted if self._keep(ending))
            counted |= accepted
            if accepted and not is_worse:
                best_value = value
        return counted | self._count(others), best_value

    def _count(self, endings: Iterable[Ending]) -> set[int]:
        return self._ledger.finish([ending.result for ending in endings])

    def _keep(self, ending: Ending) -> bool:
        """Save a trial's parameters. Return False if the trial no longer belongs to this worker."""
        assert ending.best is not None
        database, trial_id, best = self._ledger.database, ending.result.trial_id, ending.best
        try:
            database.patiently(
                lambda: self._artifacts.save_parameters(database.storage, trial_id, best.arrays, best.metadata)
            )
        except UpdateFinishedTrialError:
            return False
        return True

    def _tell(self, endings: Sequence[Ending], counted: set[int]) -> None:
        for ending in endings:
            if ending.result.trial_id in counted:
                result = ending.result
                message = "%s: trial %d %s: %s"
                values = self._name, ending.number, result.outcome.name, result.attributes
                _log.debug(message, *values, extra={"trial": ending.number})
            else:
                number = ending.number
                _log.warning("%s: lost trial %d to another worker", self._name, number, extra={"trial": number})


def _is_always_kept(ending: Ending) -> bool:
    return ending.best is not None and ending.best.is_always_kept


def _value(ending: Ending) -> float:
    assert ending.result.value is not None  # only a diverged trial has none, and it is not a candidate
    return ending.result.value
