"""When and how a worker checkpoints its lanes, and how a trial is resumed.

Between two epochs, when the interval has passed, the lanes' tensors are copied on the device. A background thread
copies them to the host, writes a file per trial and records the files, after the epochs that they contain: the curve of
a recorded checkpoint is always in the database. Only one checkpoint is in progress at a time. A failure does not end
the worker: it costs the epochs since the previous checkpoint.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any, cast

from hpsearch.errors import ArtifactError
from hpsearch.logs import get_logger
from hpsearch.signals import LAST_CHECKPOINT_SECONDS
from hpsearch.store.checkpoints import Checkpoints, ResumeOutcome, StoredCheckpoint
from hpsearch.store.claims.ledger import Claim
from hpsearch.store.connection.database import DatabaseAwayError
from hpsearch.training.device_memory import is_out_of_memory
from hpsearch.training.lanes.checkpoint import PendingCheckpoint, TrialCheckpoint
from hpsearch.training.lanes.cohort import Cohort
from hpsearch.wording import first_line
from hpsearch.worker.health.metrics import WorkerMetrics
from hpsearch.worker.trial import TrialInTraining

_log = get_logger("checkpoints")

_FILES_AT_ONCE = 16  # trials whose files are held in memory at once, and recorded by one statement


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
        self._taken_at = time.monotonic()
        self._known: set[int] = set()  # trials that may have a checkpoint
        self._found: dict[int, StoredCheckpoint] = {}  # checkpoints from which newly claimed trials may resume

    def __exit__(self, *_: object) -> None:
        outstanding = [job for job in (self._job, self._discarded) if job is not None]
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
            resumed = lane.resumed(checkpoint.extra)
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
        states = {trial_id: (lane.num_epochs, lane.state()) for trial_id, lane in lanes.items()}
        try:
            pending = cohort.checkpoint(list(lanes))
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            _log.warning("%s: checkpoint skipped: the device has no memory for a copy of the lanes", self._name)
            return None
        self._job = self._thread.submit(self._write, pending, states, written)
        return self._job

    # In the checkpoint thread

    def _write(
        self,
        pending: PendingCheckpoint,
        states: Mapping[int, tuple[int, dict[str, Any]]],
        written: Future[Any] | None,
    ) -> None:
        try:
            if written is not None:
                written.result()
            items: dict[int, tuple[int, bytes]] = {}
            for key, checkpoint in pending.fetch_each():
                trial_id = cast("int", key)  # the key that was passed in
                epoch, state = states[trial_id]
                items[trial_id] = (epoch, replace(checkpoint, extra=state).to_bytes())
                if len(items) == _FILES_AT_ONCE:
                    self._save(items)
                    items = {}
            self._save(items)
        except Exception as error:
            # If the trouble lasts, the worker's own writes fail and end it.
            _log.warning("%s: a checkpoint failed: %s", self._name, first_line(error))
            self._metrics.checkpoints["failed"].inc()

    def _save(self, items: Mapping[int, tuple[int, bytes]]) -> None:
        """Save checkpoints. A trial that has ended meanwhile is no failure; `save` logs a store that refuses a file."""
        self._metrics.checkpoints["written"].inc(len(self._checkpoints.save(items)))

    def _discard(self, trial_ids: Collection[int] | None) -> None:
        try:
            self._checkpoints.discard(trial_ids)
        except Exception as error:
            _log.info("%s: checkpoints of finished trials could not be removed: %s", self._name, first_line(error))


def _check_epoch(checkpoint: TrialCheckpoint, lane: TrialInTraining, stored: StoredCheckpoint) -> None:
    """Require that tensors, history and row are of the same epoch."""
    epochs = {checkpoint.progress.num_epochs, lane.num_epochs, stored.epoch}
    if len(epochs) > 1:
        what = f"the parts of checkpoint {stored.artifact_id} are from different epochs: {sorted(epochs)}"
        raise ArtifactError(what, hint="the trial starts again")
