"""Checkpoints: where a point can be taken up again when the worker that trains it is gone.

A point has one checkpoint at most: a file in the artifact store, and a row (hpsearch_checkpoints) that names it. It
stays when the point is queued again, so that the next attempt goes on from it, on any worker:

    save      each file whole, under a name of its own; then one fenced statement that makes the rows name them
    find      what an earlier attempt has left for a point that was just claimed
    load      the file
    resume    the earlier attempt's curve becomes the new attempt's beginning
    discard   what is left of points that are counted or given up

The row decides. A file is written before a row names it and removed only when none does any more, so that whoever is
killed in between leaves a file too much (docs/service.md tells how to find those) and never a row too much. The content
of a checkpoint is the training's affair; here it is bytes.
"""

from __future__ import annotations

import io
import threading
import uuid
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from enum import Enum, auto
from typing import Any, TypeVar, final

from optuna.artifacts.exceptions import ArtifactNotFound
from sqlalchemy import Connection

from hpsearch.artifacts.best_parameters import Artifacts
from hpsearch.logs import get_logger
from hpsearch.store import checkpoints_sql as statements
from hpsearch.store.claims.ledger import Ledger

_log = get_logger("checkpoints")
T = TypeVar("T")

CHECKPOINT_PREFIX = "checkpoint-"  # of the files' names
RESUMED_FROM_ATTRIBUTE = "resumed_from_trial"  # user attributes of a trial that did not begin at its first epoch
RESUMED_AT_ATTRIBUTE = "resumed_at_epoch"


@dataclass(frozen=True, kw_only=True)
class StoredCheckpoint:
    """A checkpoint that an earlier attempt at a point has left.

    Args:
        epoch: the last one that it contains, 1-based.
        source_trial_id, source_number: of the trial that wrote it.
    """

    epoch: int
    artifact_id: str
    num_bytes: int
    source_trial_id: int
    source_number: int


class ResumeOutcome(Enum):
    """What became of the wish to go on from a checkpoint."""

    RESUMED = auto()  # the trial's curve is that of the earlier attempt up to the checkpoint
    INCOMPLETE = auto()  # the earlier attempt's curve has gaps: nothing was written, the trial must begin anew
    LOST = auto()  # the trial is no longer this worker's


@final
class Checkpoints:
    """One worker's access to the checkpoints of one study.

    `save` is for one thread at a time, which may be another one than that which claims, resumes and discards. A call
    that raises StorageError may be made again.

    Args:
        ledger: in the worker's name.
        artifacts: kept in a place that all workers of the study share.
    """

    def __init__(self, ledger: Ledger, artifacts: Artifacts) -> None:
        self.ledger = ledger
        self._artifacts = artifacts
        self._store = artifacts.store
        # Files of which it is not known whether a row names them: the database went away on the way.
        self._doubtful: set[str] = set()
        self._trouble: str | None = None  # why the last file could not be written
        # What is being recorded while its point is counted, `discard` must see.
        self._recording = threading.Lock()

    def brief(self) -> Checkpoints:
        """The same checkpoints, to find and to resume without waiting for a database that is away."""
        return Checkpoints(replace(self.ledger, database=self.ledger.database.brief()), self._artifacts)

    def save(self, items: Mapping[int, tuple[int, bytes]]) -> set[int]:
        """Write checkpoints and have them take the place of earlier ones.

        A file that cannot be written is no error: it is logged, once per cause, and the earlier checkpoint stays
        valid. Within an attempt a newer checkpoint is never replaced by an older one. Two statements in one
        transaction, however many there are; one more transaction if an earlier save had been broken off.

        Args:
            items: trial id -> (last epoch that it contains, content).
        Returns:
            The trials whose checkpoint is recorded. For the others the worker had lost the lease, a newer one was
            there, or the store refuses.
        Raises:
            StorageError: the database is away. What was recorded is then not known; the next call puts it right.
        """
        if self._doubtful:
            self._record([])  # before new files pile up
        files = self._write(items)
        return self._record(files) if files else set()

    def find(self, trial_ids: Iterable[int]) -> dict[int, StoredCheckpoint]:
        """What earlier attempts have left for the points of these trials, by the trials' ids. One statement."""
        values = {**self._values, "trial_ids": list(trial_ids)}
        rows = self._transaction(lambda connection: connection.execute(statements.FIND, values).all())
        return {
            row.trial_id: StoredCheckpoint(
                epoch=row.epoch,
                artifact_id=row.artifact_id,
                num_bytes=row.num_bytes,
                source_trial_id=row.source_trial_id,
                source_number=row.source_number,
            )
            for row in rows
        }

    def load(self, stored: StoredCheckpoint) -> bytes | None:
        """A checkpoint's content; None, with a line in the log, if it cannot be had: the trial begins anew then."""
        where = f"the checkpoint of trial {stored.source_number} (epoch {stored.epoch}, {stored.artifact_id})"
        place = self._store.place
        try:
            content = self._store.read(stored.artifact_id)
        except ArtifactNotFound:
            _log.warning("%s is not in %s: do all workers share that place? The trial begins anew", where, place)
            return None
        except OSError as error:
            _log.warning("%s in %s cannot be read (%s): the trial begins anew", where, place, error.strerror)
            return None
        if len(content) != stored.num_bytes:
            found, expected = len(content), stored.num_bytes
            _log.warning("%s has %d bytes, not %d: the trial begins anew", where, found, expected)
            return None
        return content

    def resume(self, trial_id: int, stored: StoredCheckpoint) -> ResumeOutcome:
        """Give a trial the curve of the earlier attempt up to this checkpoint. One fenced statement, safe to repeat.

        Reports and epochs are copied, and two user attributes say where the trial comes from. It does not matter if
        the earlier attempt had been resumed itself: it has the whole curve, too.

        To be called when the checkpoint's content has been loaded and found good: a trial that has got its curve
        cannot begin anew.
        """
        values = {
            **self._values,
            "trial_id": trial_id,
            "source_id": stored.source_trial_id,
            "source_number": stored.source_number,
            "epoch": stored.epoch,
            "from_key": RESUMED_FROM_ATTRIBUTE,
            "at_key": RESUMED_AT_ATTRIBUTE,
        }
        row = self._transaction(lambda connection: connection.execute(statements.RESUME, values).one_or_none())
        if row is None:
            return ResumeOutcome.LOST
        return ResumeOutcome.RESUMED if row.is_whole else ResumeOutcome.INCOMPLETE

    def discard(self, trial_ids: Collection[int] | None = None) -> int:
        """Remove checkpoints of points that are counted or given up; returns how many.

        Called after these trials have been counted, it leaves nothing of them, even if a `save` was under way in
        another thread. Two statements, however many there are; one if there is nothing.

        Args:
            trial_ids: the points' current trials; None: all points of the study, to remove also what workers have
                left that were killed before they came to it. Any worker may do so at any time.
        """
        values = {**self._values, "trial_ids": None if trial_ids is None else list(trial_ids)}
        with self._recording:
            needless = self._transaction(lambda c: list(c.execute(statements.NEEDLESS, values).scalars()))
        if not needless:
            return 0
        # Files first: if the rows went first and the answer were lost, nobody would know the files' names.
        self._remove(needless)
        values["artifact_ids"] = needless
        self._transaction(lambda connection: connection.execute(statements.DELETE, values))
        return len(needless)

    @property
    def _values(self) -> dict[str, Any]:
        return {"study": self.ledger.study_id, "owner": self.ledger.owner}

    def _transaction(self, work: Callable[[Connection], T]) -> T:
        return self.ledger.database.transaction(work)

    def _write(self, items: Mapping[int, tuple[int, bytes]]) -> list[dict[str, Any]]:
        """Write files until one is refused (the others would be, too); one dictionary for each that is there."""
        files: list[dict[str, Any]] = []
        for trial_id, (epoch, content) in items.items():
            artifact_id = f"{CHECKPOINT_PREFIX}{uuid.uuid4()}"
            try:
                self._store.write(artifact_id, io.BytesIO(content))
            except OSError as error:
                self._note_trouble(error.strerror or str(error))
                break
            files.append({"trial_id": trial_id, "epoch": epoch, "artifact_id": artifact_id, "size": len(content)})
        else:
            self._note_trouble(None)
        return files

    def _note_trouble(self, trouble: str | None) -> None:
        if trouble is not None and trouble != self._trouble:
            text = "cannot write a checkpoint into %s: %s. Training goes on; earlier checkpoints stay valid"
            _log.warning(text, self._store.place, trouble)
        elif trouble is None and self._trouble is not None:
            _log.info("checkpoints can be written into %s again", self._store.place)
        self._trouble = trouble

    def _record(self, files: list[dict[str, Any]]) -> set[int]:
        """Have the rows name these files; remove all doubtful and replaced files that no row names."""
        self._doubtful.update(file["artifact_id"] for file in files)
        columns = {f"{key}s": [file[key] for file in files] for key in ("trial_id", "epoch", "artifact_id", "size")}

        def work(connection: Connection) -> tuple[set[int], set[str]]:
            rows = connection.execute(statements.SAVE, {**self._values, **columns}).all()
            # Noted at once: if the commit's answer is lost, a second run no longer sees what the first replaced.
            self._doubtful.update(row.replaced_id for row in rows if row.replaced_id is not None)
            asked = {"artifact_ids": list(self._doubtful)}
            return {row.trial_id for row in rows}, set(connection.execute(statements.RECORDED, asked).scalars())

        with self._recording:
            recorded_trials, recorded_files = self._transaction(work)
        needless, self._doubtful = self._doubtful - recorded_files, set()
        self._remove(needless)
        return recorded_trials

    def _remove(self, artifact_ids: Iterable[str]) -> None:
        """Remove files as well as it goes: one too many does no harm."""
        for artifact_id in artifact_ids:
            try:
                self._store.remove(artifact_id)
            except ArtifactNotFound:
                pass  # in a folder that is not shared, it lies on another machine
            except OSError as error:
                _log.debug("cannot remove %s from %s: %s", artifact_id, self._store.place, error.strerror)
