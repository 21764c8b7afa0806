"""When and how a worker checkpoints its lanes, and how a trial is resumed.

Between two epochs, when the interval has passed, the lanes' tensors are copied on the device. A background thread
copies them to the host, writes a file per trial and records the files, after the epochs that they contain: the curve of
a recorded checkpoint is always in the database. Only one checkpoint is in progress at a time. A failure does not end
the worker: it costs the epochs since the previous checkpoint.

The last states of the best trials that max_epochs ended are kept in the same way, so that they can go on when the study
gets more epochs (store/claims/continuing.py).
"""

from __future__ import annotations

import heapq
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any, cast, final

from hpsearch.errors import ArtifactError
from hpsearch.logs import get_logger
from hpsearch.search.stopping import StopDecision, StopReason
from hpsearch.signals import LAST_CHECKPOINT_SECONDS
from hpsearch.store.checkpoints import Checkpoints, ResumeOutcome, StoredCheckpoint
from hpsearch.store.claims.claim import Claim
from hpsearch.store.connection.database import DatabaseAwayError
from hpsearch.study.definition import StudyDefinition
from hpsearch.training.device_memory import is_out_of_memory
from hpsearch.training.filter_series import FilterSeries
from hpsearch.training.lanes.checkpoint import PendingCheckpoint, TrialCheckpoint
from hpsearch.training.lanes.cohort import Cohort
from hpsearch.wording import first_line
from hpsearch.worker.health.metrics import WorkerMetrics
from hpsearch.worker.lanes.trial import TrialInTraining

_log = get_logger("checkpoints")

_FILES_AT_ONCE = 16  # trials whose files are held in memory at once, and recorded by one statement


# Trial id -> its last epoch, its history (`TrialInTraining.state`) and its filters.
States = Mapping[int, tuple[int, dict[str, Any], FilterSeries]]


@dataclass(frozen=True, kw_only=True)
class EndedTrials:
    """The last states of trials that have ended, copied before their lanes were given away."""

    pending: PendingCheckpoint
    states: States


class Checkpointer(AbstractContextManager["Checkpointer"]):
    """Context manager: one worker's checkpoints. For use by one thread.

    Args:
        interval_seconds: between two checkpoints of all lanes; 0 takes only the last one, when the worker is stopped.
        name: name of the worker, for the log.
    """

    def __init__(self, checkpoints: Checkpoints, interval_seconds: float, name: str, metrics: WorkerMetrics) -> None:
        self._checkpoints = checkpoints
        self._metrics = metrics
        self._interval_seconds = interval_seconds
        self._name = name
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoints")
        self._job: Future[None] | None = None
        self._discarded: Future[None] | None = None  # the last one that was started
        self._kept: Future[None] | None = None  # the last end states
        self._taken_at = time.monotonic()
        self._known: set[int] = set()  # trials that may have a checkpoint
        self._found: dict[int, StoredCheckpoint] = {}  # checkpoints from which newly claimed trials may resume

    def __exit__(self, *_: object) -> None:
        outstanding = [job for job in (self._job, self._discarded, self._kept) if job is not None]
        is_idle = not wait(outstanding, timeout=LAST_CHECKPOINT_SECONDS).not_done
        self._thread.shutdown(wait=is_idle, cancel_futures=True)

    def take_if_due(self, cohort: Cohort, lanes: Mapping[int, TrialInTraining], written: Future[Any] | None) -> None:
        """Start a checkpoint of these lanes if the interval has passed and the previous checkpoint is finished.

        Args:
            written: done when the epochs that these lanes have trained are recorded; None if they are.
        """
        if self._interval_seconds <= 0 or time.monotonic() - self._taken_at < self._interval_seconds:
            return
        if self._job is None or self._job.done():
            self._begin(cohort, lanes, written)

    def take_last(self, cohort: Cohort, lanes: Mapping[int, TrialInTraining]) -> None:
        """Checkpoint these lanes now; all of their epochs are recorded. Waits at most `LAST_CHECKPOINT_SECONDS`."""
        deadline = time.monotonic() + LAST_CHECKPOINT_SECONDS
        if self._job is not None:
            wait([self._job], timeout=LAST_CHECKPOINT_SECONDS)
        if self._job is None or self._job.done():
            job = self._begin(cohort, lanes, None)
            if job is None or wait([job], timeout=max(0.0, deadline - time.monotonic())).done:
                return
        _log.warning("%s: the last checkpoint took too long; the trials will resume from the previous one", self._name)

    def copy(self, cohort: Cohort, trial_ids: Collection[int]) -> PendingCheckpoint | None:
        """Copy the state of these lanes on the device; None if it has no memory for that."""
        try:
            return cohort.checkpoint(list(trial_ids))
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            _log.warning("%s: checkpoint skipped: the device has no memory for a copy of the lanes", self._name)
            return None

    def keep_ends(self, ends: EndedTrials, written: Future[Any] | None, *, num_states: int, num_bytes: int) -> None:
        """Store the last states of trials, in the background, after their ends were written.

        Args:
            num_states, num_bytes: limits for the whole study.
        """
        self._kept = self._thread.submit(self._keep_ends, ends, written, num_states, num_bytes)

    def discard(self, trial_ids: Collection[int]) -> None:
        """Remove the checkpoints of counted trials, in the background."""
        obsolete = self._known.intersection(trial_ids)
        if obsolete:
            self._known -= obsolete
            self._discarded = self._thread.submit(self._discard, obsolete)  # a remote store may take long

    def discard_left_over(self) -> None:
        """Remove, in the background, the checkpoints of counted points that killed workers have left."""
        self._discarded = self._thread.submit(self._discard, None)

    def look_up(self, claims: Sequence[Claim], *, is_brief: bool) -> None:
        """Find the checkpoints from which these claims can resume. One statement; none for first attempts.

        Args:
            is_brief: do not wait for a database that is away.
        """
        again = [claim.trial_id for claim in claims if claim.attempt > 1]
        if again:
            self._found.update((self._checkpoints.brief() if is_brief else self._checkpoints).find(again))

    def resume(
        self, lane: TrialInTraining, cohort: Cohort, *, is_brief: bool
    ) -> tuple[ResumeOutcome | None, TrialInTraining]:
        """Admit a trial to the cohort at an earlier attempt's checkpoint, and give it that attempt's curve.

        Args:
            lane: of a newly claimed trial.
            is_brief: do not wait for a database that is away.
        Returns:
            RESUMED, and the trial with the earlier attempt's history: it is in the cohort. Otherwise the cohort has not
                changed: LOST, or None for a trial that must start from its first epoch.
        Raises:
            DatabaseAwayError: the cohort has not changed, and the call can be repeated.
        """
        claim = lane.claim
        stored = self._found.pop(claim.trial_id, None)
        content = None if stored is None else self._checkpoints.load(stored)
        if stored is None or content is None:
            return None, lane
        self._known.add(claim.trial_id)
        try:
            checkpoint = TrialCheckpoint.from_bytes(content)
            resumed = lane.resumed(checkpoint.extra, checkpoint.extra_arrays)
            _check_epoch(checkpoint, resumed, stored)
            cohort.admit(claim.trial_id, lane.settings, checkpoint)
        except ArtifactError as error:
            self._log_new_beginning(lane, str(error))
            return None, lane
        checkpoints = self._checkpoints.brief() if is_brief else self._checkpoints
        try:
            outcome = checkpoints.resume(claim.trial_id, stored)
            if outcome is ResumeOutcome.RESUMED and resumed.rungs:
                rungs = [(claim.trial_id, key, value) for key, value in resumed.rungs.items()]
                checkpoints.ledger.record({}, rungs)
        except DatabaseAwayError:
            cohort.release(claim.trial_id)
            self._found[claim.trial_id] = stored
            raise
        if outcome is ResumeOutcome.RESUMED:
            self._metrics.checkpoints["restored"].inc()
            fields = {"trial": claim.number, "epoch": resumed.num_epochs}
            _log.info("%s: trial %d resumes after epoch %d", self._name, *fields.values(), extra=fields)
            return outcome, resumed
        cohort.release(claim.trial_id)
        if outcome is ResumeOutcome.INCOMPLETE:
            self._log_new_beginning(lane, "its curve was not recorded")
            return None, lane
        return outcome, lane

    def _log_new_beginning(self, lane: TrialInTraining, reason: str) -> None:
        number = lane.claim.number
        _log.warning("%s: trial %d starts again: %s", self._name, number, reason, extra={"trial": number})

    def _begin(
        self, cohort: Cohort, lanes: Mapping[int, TrialInTraining], written: Future[Any] | None
    ) -> Future[None] | None:
        self._taken_at = time.monotonic()
        self._known.update(lanes)
        states = {trial_id: (lane.num_epochs, lane.state(), lane.filters) for trial_id, lane in lanes.items()}
        pending = self.copy(cohort, list(lanes))
        if pending is None:
            return None
        self._job = self._thread.submit(self._write, pending, states, written)
        return self._job

    # In the checkpoint thread

    def _write(
        self,
        pending: PendingCheckpoint,
        states: States,
        written: Future[Any] | None,
    ) -> None:
        try:
            if written is not None:
                written.result()
            for items in _contents(pending, states):
                self._save(items)
        except Exception as error:
            # If the trouble lasts, the worker's own writes fail and end it.
            _log.warning("%s: a checkpoint failed: %s", self._name, first_line(error))
            self._metrics.checkpoints["failed"].inc()

    def _save(self, items: Mapping[int, tuple[int, bytes]]) -> None:
        """Save checkpoints. A trial that has ended meanwhile is no failure; `save` logs a store that refuses a file."""
        self._metrics.checkpoints["written"].inc(len(self._checkpoints.save(items)))

    def _keep_ends(self, ends: EndedTrials, written: Future[Any] | None, num_states: int, num_bytes: int) -> None:
        try:
            if written is not None:
                written.result()
            for items in _contents(ends.pending, ends.states):
                self._checkpoints.keep_ends(items, num_states=num_states, num_bytes=num_bytes)
        except Exception as error:
            _log.warning("%s: the last states of ended trials were not kept: %s", self._name, first_line(error))

    def _discard(self, trial_ids: Collection[int] | None) -> None:
        try:
            self._checkpoints.discard(trial_ids)
        except Exception as error:
            _log.info("%s: checkpoints of finished trials could not be removed: %s", self._name, first_line(error))


@final
class EndStates:
    """Chooses, among the trials that max_epochs has ended, those that may be among the study's best.

    A worker compares a trial with its own earlier ones only; the database then keeps the best of all workers.
    """

    def __init__(self, definition: StudyDefinition, checkpointer: Checkpointer) -> None:
        self._most = definition.keep_end_states if definition.is_continuable else 0
        self._num_bytes = definition.keep_end_bytes
        self._checkpointer = checkpointer
        self._best: list[float] = []  # negative values of this worker's best trials, a heap: the worst one first

    def copied(
        self, cohort: Cohort, lanes: Mapping[int, TrialInTraining], decisions: Mapping[int, StopDecision | None]
    ) -> EndedTrials | None:
        """Copy the states that are to be kept, while the trials still have their lanes; None if there are none."""
        ended = [
            (lane.best.loss, trial_id)
            for trial_id, decision in decisions.items()
            if decision is not None and decision.reason is StopReason.MAX_EPOCHS
            if (lane := lanes.get(trial_id)) is not None and lane.best is not None
        ]
        chosen = [trial_id for value, trial_id in sorted(ended) if self._is_among_best(value)]
        pending = self._checkpointer.copy(cohort, chosen) if chosen else None
        if pending is None:
            return None
        return EndedTrials(
            pending=pending, states={i: (lanes[i].num_epochs, lanes[i].state(), lanes[i].filters) for i in chosen}
        )

    def keep(self, ends: EndedTrials | None, written: Future[Any] | None) -> None:
        """Store these states in the background, after the trials' ends were written."""
        if ends is not None:
            self._checkpointer.keep_ends(ends, written, num_states=self._most, num_bytes=self._num_bytes)

    def _is_among_best(self, value: float) -> bool:
        if self._most == 0:
            return False
        if len(self._best) < self._most:
            heapq.heappush(self._best, -value)
            return True
        return -value > heapq.heappushpop(self._best, -value)


def _contents(pending: PendingCheckpoint, states: States) -> Iterator[dict[int, tuple[int, bytes]]]:
    """The files of these checkpoints, with the epochs that they contain: at most `_FILES_AT_ONCE` at a time."""
    items: dict[int, tuple[int, bytes]] = {}
    for key, checkpoint in pending.fetch_each():
        trial_id = cast("int", key)  # the key that was passed in
        epoch, state, filters = states[trial_id]
        whole = replace(checkpoint, extra=state, extra_arrays=filters.arrays())
        items[trial_id] = (epoch, whole.to_bytes())
        if len(items) == _FILES_AT_ONCE:
            yield items
            items = {}
    if items:
        yield items


def _check_epoch(checkpoint: TrialCheckpoint, lane: TrialInTraining, stored: StoredCheckpoint) -> None:
    """Require that tensors, history and row are of the same epoch."""
    epochs = {checkpoint.progress.num_epochs, lane.num_epochs, stored.epoch}
    if len(epochs) > 1:
        what = f"the parts of checkpoint {stored.artifact_id} are from different epochs: {sorted(epochs)}"
        raise ArtifactError(what, hint="the trial starts again")
