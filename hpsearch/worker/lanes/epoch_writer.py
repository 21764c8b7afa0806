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
import math
import threading
import time
from collections import deque
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from hpsearch.artifacts.best_parameters import FILTERS_FILE, FILTERS_PREFIX, Artifacts
from hpsearch.artifacts.record import artifact_record
from hpsearch.epoch_report import EpochReport
from hpsearch.errors import ArtifactError
from hpsearch.logs import get_logger
from hpsearch.signals import FLUSH_SECONDS, StopSignal, WorkerStopped
from hpsearch.store.claims.claim import Outcome, Result
from hpsearch.store.claims.holdings import Hold
from hpsearch.store.claims.ledger import Ledger
from hpsearch.training.filter_series import FilterSeries

_log = get_logger("worker")

# How long an epoch waits for the previous one to be written. A database that is merely slow thus slows the training
# down; one that is away does not.
SLOW_SECONDS = 1.0
MAX_BUFFERED_REPORTS = 200_000  # about 200 MB
FILTER_SECONDS = 10.0  # for the filters of trials that end together; those that are left are not stored
FILTER_PAUSE_SECONDS = 60.0  # after the store has refused filters
_LOOK_SECONDS = 0.5  # between two checks of the stop signal while the database is slow


@dataclass(frozen=True, kw_only=True)
class BestParameters:
    """A COMPLETE trial's best parameters, by name, and what is stored in the same file."""

    arrays: Mapping[str, NDArray[np.generic]]
    metadata: Mapping[str, str]


@dataclass(frozen=True, kw_only=True)
class FilterFile:
    """The filters of a trial that has ended, not empty, and what is stored in the same file."""

    series: FilterSeries
    metadata: Mapping[str, str]


@dataclass(frozen=True, kw_only=True)
class EpochEntry:
    """What is to be written after one epoch of all lanes.

    Args:
        held: all holds of the worker after the epoch.
        reports: trial id -> its epoch, without diverged ones; None if they are already recorded.
        results: of the trials that have ended; they are among `held`.
        parameters: trial id -> its best parameters, for each of these trials that may be among the study's best.
        filters: trial id -> its filters, for each of these trials that has any.
        num_restarts: number of server restarts known when the worker decided whose parameters to keep (holdings.py).
    """

    held: frozenset[Hold]
    reports: Mapping[int, EpochReport] | None
    results: Sequence[Result] = ()
    parameters: Mapping[int, BestParameters] = field(default_factory=dict)
    filters: Mapping[int, FilterFile] = field(default_factory=dict)
    num_restarts: int = 0


@dataclass(frozen=True, kw_only=True)
class Written:
    """The outcome of writing an entry.

    Args:
        lost: those of the entry's holds that no longer belong to this worker.
        counted: trials whose ends are in the database.
        worst_kept: the value of the worst of the best COMPLETE trials, which keep their parameters; None: it was not
            looked up, or there are fewer trials.
    """

    lost: frozenset[Hold] = frozenset()
    counted: frozenset[int] = frozenset()
    worst_kept: float | None = None

    def followed_by(self, later: Written) -> Written:
        """Return the combined outcome of this entry and a later one."""
        return Written(
            lost=self.lost | later.lost,
            counted=self.counted | later.counted,
            worst_kept=self.worst_kept if later.worst_kept is None else later.worst_kept,
        )


class EpochWriter(AbstractContextManager["EpochWriter"]):
    """Context manager: the thread that writes one worker's epochs. Its methods are for one thread.

    Args:
        ledger: in the worker's name.
        name: name of the worker, for the log.
        keeps_all: keep the parameters even if other trials are better.
        num_kept: keep the parameters of this many of the best trials. With several workers a few more may be kept.
    """

    def __init__(
        self,
        ledger: Ledger,
        artifacts: Artifacts,
        stop: StopSignal,
        name: str,
        *,
        keeps_all: bool = False,
        num_kept: int = 1,
    ) -> None:
        # An event of its own, so that the thread can be made to give up after its worker has left.
        self._abandoned = threading.Event()
        self._ledger = replace(ledger, database=replace(ledger.database, abandoned=self._abandoned))
        self._artifacts = artifacts
        self._stop = stop
        self._name = name
        self._keeps_all = keeps_all
        self._num_kept = num_kept
        self._no_filters_until = -math.inf  # after the store has refused some
        self._are_filters_refused = False  # by the store, the last time
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="epoch writer")
        # Entries that were handed over, with the number of reports that each of them keeps in memory.
        self._queue: deque[tuple[Future[Written], int]] = deque()
        self._is_behind = False
        self._failure: BaseException | None = None  # of an entry; no later entry is written

    def __exit__(self, *_: object) -> None:
        # Does not wait here for a write that hangs; a write that waits for the database gives up. Python waits for the
        # thread before the process ends, unless the process is killed first.
        self._abandoned.set()
        self._thread.shutdown(wait=all(write.done() for write, _ in self._queue), cancel_futures=True)

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
        return sum(num_reports for _, num_reports in self._queue)

    @property
    def last_write(self) -> Future[Written] | None:
        """A future that is done when everything handed over so far has been written; None if nothing is outstanding."""
        return self._queue[-1][0] if self._queue else None

    def hand_over(self, entry: EpochEntry) -> None:
        """Write this entry in the background, after all entries that were handed over before."""
        self._queue.append((self._thread.submit(self._write, entry), len(entry.reports or ())))

    def collect(self) -> Written:
        """Return the outcome of the written entries, after a short wait for outstanding ones.

        Raises:
            StorageError: the database was away for too long.
            ArtifactError: the best parameters could not be saved.
        """
        # Do not wait for a database that is away. Wait for one that answers: otherwise a single slow moment would never
        # end.
        is_answering = not self._is_behind or not self._queue or self._queue[0][0].done()
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
            _log.warning("%s: the database does not answer: the last epochs may not be recorded", self._name)
        return self._take()

    def _await(self, seconds: float) -> bool:
        """Wait for all entries for at most `seconds`; return whether they are written."""
        return self.last_write is None or bool(wait([self.last_write], timeout=seconds).done)

    def _note_behind(self, is_behind: bool) -> None:
        if is_behind and not self._is_behind:
            what = "the database or the artifact store does not answer: training continues, reports are kept in memory"
            _log.warning("%s: %s", self._name, what)
        elif self._is_behind and not is_behind:
            _log.info("%s: all outstanding epochs are written", self._name)
        self._is_behind = is_behind

    def _take(self) -> Written:
        """Return the outcome of the finished entries, in order. After an error, all later entries are dropped."""
        written = Written()
        while self._queue and self._queue[0][0].done():
            try:
                written = written.followed_by(self._queue.popleft()[0].result())
            except BaseException:
                wait([write for write, _ in self._queue if not write.cancel()])
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
        results = [result for result in entry.results if result.trial_id in held]
        if entry.num_restarts != self._ledger.holdings.num_restarts:
            results = self._without_lost_bests(results, entry.parameters)
        self._keep_filters({r.trial_id: entry.filters[r.trial_id] for r in results if r.trial_id in entry.filters})
        counted, worst_kept = self._finish(results, entry.parameters)
        held -= {result.trial_id for result in entry.results} - counted
        lost = frozenset(hold for hold in entry.held if hold[0] not in held)
        self._ledger.holdings.drop(lost)  # a refused end ends the hold, too: others train the point
        return Written(lost=lost, counted=frozenset(counted), worst_kept=worst_kept)

    def _without_lost_bests(self, results: Sequence[Result], parameters: Mapping[int, BestParameters]) -> list[Result]:
        """Leave out trials that are now the study's best but come without parameters.

        This happens when the database has lost a better result.

        They count as lost and are given back with the next renewal.
        """
        best = self._ledger.best_loss()
        return [
            result
            for result in results
            if result.outcome is not Outcome.COMPLETE
            or result.trial_id in parameters
            or (best is not None and _loss(result) >= best)
        ]

    def _finish(
        self, results: Sequence[Result], parameters: Mapping[int, BestParameters]
    ) -> tuple[set[int], float | None]:
        """Count the trials, the best ones first: once enough are counted, worse trials need no parameters."""
        candidates = [result for result in results if result.trial_id in parameters]
        others = [result for result in results if result.trial_id not in parameters]
        best = self._ledger.best_losses(self._num_kept) if candidates else []
        counted: set[int] = set()
        for loss, equals in itertools.groupby(sorted(candidates, key=_loss), key=_loss):
            is_worse = len(best) == self._num_kept and loss > best[-1]
            if is_worse and not self._keeps_all:
                others += equals
                continue
            # The file and its record must exist before the trials are finished: Optuna accepts no attributes
            # afterwards.
            its = list(equals)
            try:
                accepted = self._ledger.finish([r for r in its if self._keep(r.trial_id, parameters[r.trial_id])])
            except ArtifactError as error:
                if self._keeps_all or not best or loss <= best[0]:
                    raise  # without the study's best parameters a result is worth little
                _log.warning("%s: %s; the trial is counted without them", self._name, error)
                others += its
                continue
            counted |= accepted
            best = sorted([*best, *(loss for _ in accepted)])[: self._num_kept]
        worst_kept = best[-1] if len(best) == self._num_kept else None
        return counted | self._ledger.finish(others), worst_kept

    def _keep_filters(self, filters: Mapping[int, FilterFile]) -> None:
        """Store the filters of trials that end.

        A store that refuses them, or that is slow, costs only pictures: the ends of the trials do not wait for them.
        """
        deadline, artifact_ids = time.monotonic() + FILTER_SECONDS, dict[int, str]()
        for trial_id, kept in filters.items():
            if self._stop.is_set() or time.monotonic() > deadline or time.monotonic() < self._no_filters_until:
                break
            try:
                artifact_id = self._artifacts.write(kept.series.arrays(), kept.metadata, "filters", FILTERS_PREFIX)
            except ArtifactError as error:
                if not self._are_filters_refused:  # a disk may stay full for the whole search
                    _log.warning("%s: %s; the trials are counted without them", self._name, error)
                self._are_filters_refused = True
                self._no_filters_until = time.monotonic() + FILTER_PAUSE_SECONDS
                break
            if self._are_filters_refused:
                _log.info("%s: filters are stored again", self._name)
                self._are_filters_refused = False
            artifact_ids[trial_id] = artifact_id
        if artifact_ids:  # one statement for all of them, before they are finished
            records = [(i, *artifact_record(artifact_id, FILTERS_FILE)) for i, artifact_id in artifact_ids.items()]
            held = self._ledger.record({}, records)
            for trial_id in artifact_ids.keys() - held:
                self._artifacts.remove(artifact_ids[trial_id])

    def _keep(self, trial_id: int, best: BestParameters) -> bool:
        """Save a trial's parameters. Return False if the trial no longer belongs to this worker."""
        note = self._ledger.set_system_attribute
        return self._artifacts.save_parameters(note, trial_id, best.arrays, best.metadata) is not None


def _loss(result: Result) -> float:
    assert result.loss is not None  # only a diverged trial has none, and it is not COMPLETE
    return result.loss
