"""Uploads of attempts' folders to a bucket, in the background: the next attempt may be on another machine."""

from __future__ import annotations

import time
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import final

from hpsearch.errors import ArtifactError
from hpsearch.logs import get_logger
from hpsearch.scripts.attempt_folders import AttemptFolders
from hpsearch.scripts.report_buffer import Batch
from hpsearch.store.claims.claim import Claim

_log = get_logger("worker")


@final
class FolderUploads:
    """The uploads of one worker, one at a time. Its methods are for one thread.

    Args:
        seconds: between two uploads of a running attempt's folder; 0: only once it has ended.
    """

    def __init__(self, folders: AttemptFolders, *, seconds: float) -> None:
        self._folders = folders
        self._seconds = seconds
        self._executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="folders")
        self._running: Future[None] | None = None  # of an attempt that goes on
        self._begun_at: dict[int, float] = {}  # trial id -> when the attempt or its last upload began
        self._last: dict[int, Future[None]] = {}  # trial id -> of an attempt that has ended

    def note_start(self, trial_id: int) -> None:
        """An attempt has begun."""
        self._begun_at[trial_id] = time.monotonic()
        self._last.pop(trial_id, None)

    def upload(self, claim: Claim) -> Future[None]:
        """Begin to upload the folder of an attempt."""
        return self._executor.submit(self._try, claim)

    def upload_now_and_then(self, batches: Mapping[int, Batch], claims: Mapping[int, Claim]) -> None:
        """Begin to upload the folder of one program that has reported, if none is being uploaded.

        Args:
            claims: trial id -> claim.
        """
        if self._seconds <= 0 or (self._running is not None and not self._running.done()):
            return
        now = time.monotonic()
        for trial_id, batch in batches.items():
            if batch.reports and now - self._begun_at[trial_id] > self._seconds:
                self._begun_at[trial_id] = now
                self._running = self.upload(claims[trial_id])
                return

    def upload_last(self, claim: Claim) -> Future[None]:
        """Begin to upload the folder of a program that has ended; once."""
        if claim.trial_id not in self._last:
            self._last[claim.trial_id] = self.upload(claim)
        return self._last[claim.trial_id]

    def is_uploading(self, trial_id: int) -> bool:
        """Whether the last upload of an ended program's folder has begun and is not over."""
        return trial_id in self._last and not self._last[trial_id].done()

    def forget(self, trial_id: int) -> None:
        self._begun_at.pop(trial_id, None)
        self._last.pop(trial_id, None)

    def close(self) -> None:
        """Wait for nothing: a bucket that does not answer must not keep the worker."""
        self._executor.shutdown(wait=False, cancel_futures=True)

    def _try(self, claim: Claim) -> None:
        try:
            self._folders.upload(claim.point, claim.attempt)
        except ArtifactError as error:
            _log.warning("the folder of trial %d is not uploaded: %s", claim.number, error)
