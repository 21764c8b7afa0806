"""Checkpoints: where a point can be resumed after the worker that trained it is gone.

A point has at most one checkpoint: a file in the artifact store, and a row (hpsearch_checkpoints) that names it. The
checkpoint stays when the point is requeued, so that the next attempt continues from it, on any worker:

    save      write each file completely, under a new name; then one fenced statement makes the rows name them
    find      what an earlier attempt has left for a point that was just claimed
    load      read the file
    resume    copy the earlier attempt's curve to the new attempt
    discard   remove checkpoints of points that are counted or given up
    keep_ends keep the last states of trials that max_epochs ended, for a study that is given more epochs

The row is authoritative. A file is written before a row names it and removed only when no row names it any more. A
crash in between leaves an orphaned file (docs/service.md explains how to find those), never a row without a file. This
module does not interpret the content of a checkpoint: it stores bytes.
"""

from __future__ import annotations

import io
import threading
import uuid
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import Enum, auto
from typing import final

from sqlalchemy import Connection

from hpsearch.artifacts.best_parameters import Artifacts
from hpsearch.logs import get_logger
from hpsearch.store import checkpoints_sql as statements
from hpsearch.store.claims.ledger import Ledger
from hpsearch.store.rows.columns import as_columns
from hpsearch.store.rows.trial_state import RESUMED_AT_ATTRIBUTE

_log = get_logger("checkpoints")
_WrittenFile = tuple[int, int, str, int]  # trial id, epoch, artifact id, number of bytes

CHECKPOINT_PREFIX, END_STATE_PREFIX = "checkpoint-", "end-state-"  # of the file names
RESUMED_FROM_ATTRIBUTE = "resumed_from_trial"  # user attributes of a resumed trial


@dataclass(frozen=True, kw_only=True)
class StoredCheckpoint:
    """A checkpoint that an earlier attempt at a point has left.

    Args:
        epoch: the last epoch that it contains, 1-based.
        artifact_id: name of its file in the artifact store.
        source_trial_id, source_number: id and number of the trial that wrote it.
    """

    epoch: int
    artifact_id: str
    num_bytes: int
    source_trial_id: int
    source_number: int


class ResumeOutcome(Enum):
    """The outcome of an attempt to resume from a checkpoint."""

    RESUMED = auto()  # the trial has the curve of the earlier attempt up to the checkpoint
    INCOMPLETE = auto()  # the earlier attempt's curve has gaps: nothing was written, the trial must start anew
    LOST = auto()  # the trial no longer belongs to this worker


@final
class Checkpoints:
    """One worker's access to the checkpoints of one study.

    Only one thread at a time may call `save`; it may be another thread than the one that claims, resumes and discards.
    A call that raises StorageError may be repeated.

    Args:
        ledger: in the worker's name.
        artifacts: in a place that all workers of the study share.
    """

    def __init__(self, ledger: Ledger, artifacts: Artifacts) -> None:
        self.ledger = ledger
        self._artifacts = artifacts
        self._store = artifacts.store
        # Files that a row may or may not name, because the database went away during the transaction.
        self._doubtful: set[str] = set()
        self._doubtful_ends: set[str] = set()
        self._trouble: str | None = None  # why the last file could not be written
        # `discard` must see the rows that `save` writes while their points are being counted.
        self._recording = threading.Lock()

    def brief(self) -> Checkpoints:
        """Return the same checkpoints for finding and resuming without waiting for a database that is away."""
        return Checkpoints(replace(self.ledger, database=self.ledger.database.brief()), self._artifacts)

    def save(self, items: Mapping[int, tuple[int, bytes]]) -> set[int]:
        """Write checkpoints and replace the earlier ones.

        A file that cannot be written is no error: it is logged, once per cause, and the earlier checkpoint stays valid.
        Within an attempt, an older checkpoint never replaces a newer one. Uses two statements in one transaction for
        any number of checkpoints, and one more transaction if an earlier save was interrupted.

        Args:
            items: trial id -> (last epoch that it contains, content).
        Returns:
            The trials whose checkpoint is recorded. For the others, the worker had lost the lease, a newer checkpoint
                existed, or the store refused the file.
        Raises:
            StorageError: the database is away. Whether the checkpoints were recorded is then unknown; the next call
                removes files that no row names.
        """
        if self._doubtful:
            self._record([])  # before more files accumulate
        files = self._write(items)
        return self._record(files) if files else set()

    def find(self, trial_ids: Iterable[int]) -> dict[int, StoredCheckpoint]:
        """Return the checkpoints of earlier attempts at the points of these trials, by trial id. One statement."""
        rows = [row._asdict() for row in self.ledger.rows(statements.FIND, trial_ids=list(trial_ids))]
        return {row.pop("trial_id"): StoredCheckpoint(**row) for row in rows}

    def load(self, stored: StoredCheckpoint) -> bytes | None:
        """Return a checkpoint's content, or None if it cannot be read.

        The reason is then logged, and the trial starts from its first epoch.
        """
        where = f"the checkpoint of trial {stored.source_number} (epoch {stored.epoch}, {stored.artifact_id})"
        place = self._store.place
        try:
            content = self._store.read(stored.artifact_id)
        except FileNotFoundError:
            _log.warning("%s is not in %s: do all workers share that place? The trial starts again", where, place)
            return None
        except OSError as error:
            _log.warning("%s in %s cannot be read (%s): the trial starts again", where, place, error.strerror)
            return None
        if len(content) != stored.num_bytes:
            found, expected = len(content), stored.num_bytes
            _log.warning("%s has %d bytes, not %d: the trial starts again", where, found, expected)
            return None
        return content

    def resume(self, trial_id: int, stored: StoredCheckpoint) -> ResumeOutcome:
        """Give a trial the curve of the earlier attempt up to this checkpoint. One fenced statement, safe to repeat.

        Reports and epochs are copied, and two user attributes say which trial and epoch they come from. The earlier
        attempt may have been resumed itself: it then has the whole curve, too.

        Call this only after the checkpoint's content was loaded and validated: a trial that has received its curve
        cannot start from its first epoch any more.
        """
        rows = self.ledger.rows(
            statements.RESUME,
            trial_id=trial_id,
            source_id=stored.source_trial_id,
            source_number=stored.source_number,
            epoch=stored.epoch,
            from_key=RESUMED_FROM_ATTRIBUTE,
            at_key=RESUMED_AT_ATTRIBUTE,
        )
        if not rows:
            return ResumeOutcome.LOST
        return ResumeOutcome.RESUMED if rows[0].is_whole else ResumeOutcome.INCOMPLETE

    def discard(self, trial_ids: Collection[int] | None = None) -> int:
        """Remove checkpoints of points that are counted or given up, and return their number.

        If it is called after these trials were counted, none of their checkpoints remain, even if a `save` was in
        progress in another thread. Two statements for any number of checkpoints; one if there are none.

        Args:
            trial_ids: the points' current trials; None: all points of the study, to also remove checkpoints of workers
                that were killed before they could discard them. Any worker may do that at any time.
        """
        with self._recording:
            rows = self.ledger.rows(statements.NEEDLESS, trial_ids=None if trial_ids is None else list(trial_ids))
        needless = [row.artifact_id for row in rows]
        if needless:
            # Files first: if the rows were deleted first and the answer were lost, nothing would know the files' names.
            self._remove(needless)
            self.ledger.rows(statements.DELETE, artifact_ids=needless)
        return len(needless)

    def keep_ends(self, items: Mapping[int, tuple[int, bytes]], *, num_states: int, num_bytes: int) -> None:
        """Keep the last states of counted trials, so that they can go on with more epochs (claims/continuing.py).

        Of all that the study has, the best trials' states stay. A state that cannot be written is logged and left out.

        Args:
            items: as for `save`.
            num_states, num_bytes: limits on the number and the size of the study's states.
        """
        columns = as_columns("trial_id epoch artifact_id num_bytes", self._write(items, END_STATE_PREFIX))
        # As in `_record`: files that a row may or may not name, until a transaction has answered.
        self._doubtful_ends.update(columns["artifact_id"])

        def work(connection: Connection) -> set[str]:
            connection.execute(statements.KEEP_ENDS, {**self.ledger.values, **columns})
            limits = {"num_states": num_states, "num_bytes": num_bytes}
            surplus = connection.execute(statements.DROP_SURPLUS_ENDS, {**self.ledger.values, **limits})
            self._doubtful_ends.update(surplus.scalars())
            asked = {"artifact_ids": list(self._doubtful_ends)}
            return set(connection.execute(statements.RECORDED_ENDS, asked).scalars())

        recorded = self.ledger.database.transaction(work)
        # Rows first: a state may have become a checkpoint meanwhile. A crash in between leaves orphaned files.
        needless, self._doubtful_ends = self._doubtful_ends - recorded, set()
        self._remove(needless)

    def _write(self, items: Mapping[int, tuple[int, bytes]], prefix: str = CHECKPOINT_PREFIX) -> list[_WrittenFile]:
        """Write files until one is refused, because the others would be refused too.

        Returns those that were written.
        """
        files: list[_WrittenFile] = []
        for trial_id, (epoch, content) in items.items():
            artifact_id = f"{prefix}{uuid.uuid4()}"
            try:
                self._store.write(artifact_id, io.BytesIO(content))
            except OSError as error:
                self._note_trouble(error.strerror or str(error))
                break
            files.append((trial_id, epoch, artifact_id, len(content)))
        else:
            self._note_trouble(None)
        return files

    def _note_trouble(self, trouble: str | None) -> None:
        if trouble is not None and trouble != self._trouble:
            text = "cannot write a checkpoint into %s: %s. Training continues; earlier checkpoints stay valid"
            _log.warning(text, self._store.place, trouble)
        elif trouble is None and self._trouble is not None:
            _log.info("checkpoints can be written into %s again", self._store.place)
        self._trouble = trouble

    def _record(self, files: Sequence[_WrittenFile]) -> set[int]:
        """Make the rows name these files, and remove all doubtful and replaced files that no row names."""
        columns = as_columns("trial_id epoch artifact_id num_bytes", files)
        self._doubtful.update(columns["artifact_id"])

        def work(connection: Connection) -> tuple[set[int], set[str]]:
            rows = connection.execute(statements.SAVE, {**self.ledger.values, **columns}).all()
            # Added at once: if the commit's answer is lost, a second run no longer sees what the first one replaced.
            self._doubtful.update(row.replaced_id for row in rows if row.replaced_id is not None)
            asked = {"artifact_ids": list(self._doubtful)}
            return {row.trial_id for row in rows}, set(connection.execute(statements.RECORDED, asked).scalars())

        with self._recording:
            recorded_trials, recorded_files = self.ledger.database.transaction(work)
        needless, self._doubtful = self._doubtful - recorded_files, set()
        self._remove(needless)
        return recorded_trials

    def _remove(self, artifact_ids: Iterable[str]) -> None:
        """Remove files where possible. An orphaned file does no harm."""
        for artifact_id in artifact_ids:
            try:
                self._store.remove(artifact_id)
            except FileNotFoundError:
                pass  # if the folder is not shared, the file is on another machine
            except OSError as error:
                _log.debug("cannot remove %s from %s: %s", artifact_id, self._store.place, error.strerror)
