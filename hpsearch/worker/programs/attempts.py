"""The attempts of one worker: their folders, processes, reports and output, behind one object.

    start -> news (reports, ends) -> tell, end -> news -> stored_outputs -> keep_folder, forget

The keeper's process starts and ends programs (scripts/keeper/client.py); a thread reads what they report and print
(scripts/streams.py). Nothing here asks the database.
"""

from __future__ import annotations

import io
import json
import os
import select
import threading
import uuid
from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from pathlib import Path
from signal import SIGKILL, SIGTERM
from typing import Any, final

from hpsearch.artifacts.place import is_bucket
from hpsearch.artifacts.store import ArtifactStore
from hpsearch.atomic_file import replacement_of
from hpsearch.errors import InputError
from hpsearch.logs import get_logger
from hpsearch.scripts.attempt_folders import AttemptFolder, AttemptFolders
from hpsearch.scripts.keeper.client import Ended, Keeper, KeeperLost, NotStarted, StartRequest
from hpsearch.scripts.objectives.channels import Channels
from hpsearch.scripts.objectives.messages import Message
from hpsearch.scripts.output import OutputRecord
from hpsearch.scripts.report_buffer import Batch
from hpsearch.scripts.stored_folders import StoredFolders
from hpsearch.scripts.streams import Streams
from hpsearch.store.claims.claim import Claim
from hpsearch.store.studies import StoredStudy
from hpsearch.study.program import CommandSettings
from hpsearch.worker.programs.example_results import ExampleResults
from hpsearch.worker.programs.folder_uploads import FolderUploads
from hpsearch.worker.programs.program_call import ProgramCall, point_of

__all__ = ["Attempts", "Ended", "News", "NotStarted"]

_log = get_logger("worker")
_TAIL_LINES = 10


@dataclass(frozen=True, kw_only=True)
class News:
    """What has happened since the last look.

    Args:
        batches: trial id -> what its program has reported.
        ended: programs of which nothing is left; their last reports are among the batches.
        refused: programs that could not be started.
        orphaned: those of the ended that ended with their keeper, which is not their fault.
        messages: (trial id, message) pairs of objectives.
    """

    batches: Mapping[int, Batch]
    ended: Sequence[Ended] = ()
    refused: Sequence[NotStarted] = ()
    orphaned: Collection[int] = ()
    messages: Sequence[tuple[int, Message]] = ()


@dataclass(kw_only=True)
class _Attempt:
    claim: Claim
    folder: AttemptFolder
    devices: Sequence[str]
    argv: Sequence[str]
    began_with_files: bool
    output: OutputRecord | None = None  # once the program has ended
    stored: Future[str] | None = None  # the artifact id of the output
    is_ending: bool = False
    has_lost_keeper: bool = False


class _NewsEvent(threading.Event):
    """An event that also makes a descriptor readable, so that one call waits for reports and for the keeper."""

    def __init__(self) -> None:
        super().__init__()
        self.descriptor = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)

    def set(self) -> None:
        super().set()
        os.eventfd_write(self.descriptor, 1)

    def clear(self) -> None:
        super().clear()
        try:
            os.eventfd_read(self.descriptor)
        except BlockingIOError:
            return


@final
class Attempts(AbstractContextManager["Attempts"]):
    """Context manager: the programs of one worker. Its methods are for one thread.

    Args:
        keeper: started before anything heavy was loaded.
        folders: of the study, on this machine.
        devices: for each slot the UUIDs of its GPUs; one entry per program that may run at once.
        base: the worker's environment.
        place: the folder in which the worker was started.
        upload_seconds: between two uploads of an attempt's folder to a bucket.
        secrets: values that no record of an output may show.
        call: how the program of a trial is called.
    """

    def __init__(
        self,
        study: StoredStudy,
        keeper: Keeper,
        artifacts: ArtifactStore,
        folders: AttemptFolders,
        *,
        devices: Sequence[Sequence[str]],
        base: Mapping[str, str],
        place: Path,
        upload_seconds: float,
        secrets: Collection[str] = (),
    ) -> None:
        self.call = ProgramCall(definition=study.definition, base=base, place=place)
        self._program = self.call.program
        self._keeper = keeper
        self._artifacts = artifacts
        self._folders = folders
        self._free = list(devices)
        self._secrets = secrets
        self._uploads = FolderUploads(folders, seconds=upload_seconds) if is_bucket(artifacts.place) else None
        self._attempts: dict[int, _Attempt] = {}
        self._counted: dict[int, int] = {}  # point -> attempt, whose folders may still be there
        self._best_point: int | None = None
        self._event = _NewsEvent()
        self._channels = Channels()
        self._is_leaving = False  # the trials' ends wait for no file any more
        self._stack = ExitStack()

    def __enter__(self) -> Attempts:
        self._streams = self._stack.enter_context(Streams(news=self._event))
        self._writer = ThreadPoolExecutor(max_workers=1, thread_name_prefix="outputs")
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()
        self._channels.close()
        if self._uploads is not None:
            self._uploads.close()
        self._writer.shutdown(wait=False, cancel_futures=True)

    @property
    def num_free(self) -> int:
        """How many programs more may be started now."""
        return len(self._free)

    def start(self, claim: Claim) -> None:
        """Start the program of a claimed point; `news` tells when it has reported, ended, or could not be started.

        Raises:
            ArtifactError: its folders cannot be made.
            InputError: a value makes an argument that no process can be given.
            OSError: this machine has no descriptors or memory to spare; nothing is left behind.
        """
        folder = self._folders.begin(claim.point, claim.attempt)
        folder.write_parameters(point_of(claim))
        attempt = _Attempt(
            claim=claim,
            folder=folder,
            devices=self._free[0],
            argv=self.call.argv(claim, folder),
            began_with_files=any(folder.folder.iterdir()),
        )
        pattern = self._program.pattern if isinstance(self._program, CommandSettings) else None
        output = self._streams.open(claim.trial_id, folder.reports, pattern=pattern, secrets=self._secrets)
        try:
            self._request_start(attempt, output)
        except BaseException:
            self._streams.close(claim.trial_id)
            self._channels.finish(claim.trial_id)
            raise
        finally:
            os.close(output)
        del self._free[0]
        self._attempts[claim.trial_id] = attempt
        if self._uploads is not None:
            self._uploads.note_start(claim.trial_id)

    def _request_start(self, attempt: _Attempt, output: int) -> None:
        claim = attempt.claim
        variables = self.call.environment(claim, attempt.folder, attempt.devices)
        channel = self._channels.open(claim.trial_id) if self.call.is_objective else None
        try:
            self._keeper.start(
                StartRequest(
                    key=claim.trial_id,
                    argv=attempt.argv,
                    environment=variables,
                    folder=str(self.call.folder),
                    output=output,
                    extra=None if channel is None else channel.fileno(),
                    grace_seconds=self._program.grace_seconds,
                )
            )
        except ValueError as error:
            line = " ".join(attempt.argv)
            raise InputError(f"trial {claim.number} cannot be started: {error}: {line!r:.300}") from error
        finally:
            if channel is not None:
                channel.close()

    def describe(self, claim: Claim) -> str:
        """The call of a trial on one line, for messages."""
        attempt = self._attempts.get(claim.trial_id)
        return self.call.describe(claim, None if attempt is None else attempt.argv)

    def news(self, timeout: float) -> News:
        """Wait for news for at most `timeout` seconds, and return what there is."""
        if timeout > 0:
            select.select([self._event.descriptor, self._keeper.fileno(), self._channels.fileno()], [], [], timeout)
        self._event.clear()
        ended, refused = [], []
        for event in self._keeper.poll():
            match event:
                case Ended():
                    self._close(event.key)
                    ended.append(event)
                case NotStarted():
                    self._close(event.key)
                    refused.append(event)
                case KeeperLost():
                    _log.warning("the keeper of the programs was killed: what it has left is ended")
                    for attempt in self._attempts.values():
                        attempt.has_lost_keeper = True
        batches = {key: batch for key, batch in self._streams.collect().items() if key in self._attempts}
        if self._uploads is not None:
            self._uploads.upload_now_and_then(batches, {key: self._attempts[key].claim for key in batches})
        cut_off = {end.key for end in ended if end.signal in (SIGKILL, SIGTERM)}
        orphaned = {key for key in cut_off if self._attempts[key].has_lost_keeper}
        return News(batches=batches, ended=ended, refused=refused, orphaned=orphaned, messages=self._channels.collect())

    def answer(self, trial_id: int, message: Message) -> None:
        """Answer what the process of an objective has asked."""
        self._channels.answer(trial_id, message)

    def tell(self, trial_id: int, step: int, *, stop: bool) -> None:
        """Answer a program that asks whether it should stop.

        Args:
            step: up to which its reports were seen.
        """
        try:
            with replacement_of(self._attempts[trial_id].folder.verdict, is_synced=False) as file:
                file.write(json.dumps({"step": step, "stop": stop}).encode())
        except OSError as error:  # the program goes on without an answer
            _log.warning("cannot answer the program of trial id %d: %s", trial_id, error.strerror or error)

    def end(self, trial_id: int, grace_seconds: float) -> None:
        """End a program and all that descends from it. Calling it again changes nothing."""
        attempt = self._attempts[trial_id]
        if not attempt.is_ending and attempt.output is None:
            attempt.is_ending = True
            self._keeper.end(trial_id, grace_seconds)

    def tail(self, trial_id: int) -> str:
        """The last lines that an ended program has printed."""
        output = self._attempts[trial_id].output
        return "" if output is None else "\n".join(output.tail(_TAIL_LINES))

    def store_output(self, trial_id: int) -> None:
        """Begin to store what an ended program has printed, in the background."""
        attempt = self._attempts[trial_id]
        if attempt.stored is None and attempt.output is not None and attempt.output.num_bytes:
            attempt.stored = self._writer.submit(self._store, attempt.output)
            attempt.stored.add_done_callback(lambda _: self._event.set())

    def stored_outputs(self, trial_ids: Collection[int]) -> dict[int, str]:
        """Return trial id -> artifact id of the output, for those of these ended programs that printed anything.

        An output that cannot be stored is logged, and its trial goes on without it.
        """
        found = {}
        for trial_id in trial_ids:
            stored = self._attempts[trial_id].stored
            if stored is not None and stored.done() and (artifact_id := stored.result()):
                found[trial_id] = artifact_id
        return found

    def is_storing(self, trial_id: int) -> bool:
        """Whether the output of an ended program is being stored."""
        stored = self._attempts[trial_id].stored
        return not self._is_leaving and stored is not None and not stored.done()

    def keep_folder(self, claim: Claim, *, is_best: bool) -> None:
        """Remove the folders that a counted trial makes needless: its point's, or those of the best one before."""
        self._counted[claim.point] = claim.attempt
        if is_best:
            self._best_point = claim.point
            self._folders.remove_earlier(claim.point, claim.attempt)
            if self._uploads is not None:
                self._uploads.upload(claim)
        if self._program.keep_folders == "best":
            keep = () if self._best_point is None else (self._best_point,)
            needless = {point: attempt for point, attempt in self._counted.items() if point not in keep}
            self._folders.remove_others(needless, keep)
            for point in needless:
                del self._counted[point]

    def remove_folders(self, needless: Collection[int]) -> None:
        """Remove the folders of these counted points on this machine: another one may have counted them.

        A point that was given up keeps its folder: it may be tried again, or looked into.
        """
        if self._program.keep_folders == "best":
            self._folders.remove_points(needless)

    def results_of(self, claim: Claim) -> ExampleResults:
        """A reader of the files in which this attempt says which examples it got right."""
        return ExampleResults(claim.number, self.call.folder, self._attempts[claim.trial_id].folder.control)

    def began_with_files(self, trial_id: int) -> bool:
        """Whether the folder of this attempt had files of an earlier one when it began."""
        return self._attempts[trial_id].began_with_files

    def begin_anew(self, claim: Claim) -> None:
        """Let the next attempt at this point begin with an empty folder."""
        self._folders.remove(claim.point, claim.attempt)

    def forget(self, trial_id: int) -> None:
        """Forget a program that has ended; its output is no longer known."""
        self._attempts.pop(trial_id, None)
        if self._uploads is not None:
            self._uploads.forget(trial_id)

    def is_uploaded(self, trial_id: int) -> bool:
        """Begin to upload the folder of an ended program whose point is given back; return whether that is over.

        Without a bucket there is nothing to wait for.
        """
        return self._uploads is None or self._uploads.upload_last(self._attempts[trial_id].claim).done()

    def is_uploading(self, trial_id: int) -> bool:
        """Whether the last upload of an ended program's folder has begun and is not over."""
        return self._uploads is not None and self._uploads.is_uploading(trial_id)

    def wait_for_uploads(self, seconds: float) -> None:
        """Upload the folders of all programs that have ended, and wait for that and for outputs, but not longer."""
        ended = [attempt for attempt in self._attempts.values() if attempt.output]
        files: list[Future[Any]] = [one.stored for one in ended if one.stored]
        if self._uploads is not None:
            files += [self._uploads.upload_last(one.claim) for one in ended]
        wait(files, timeout=seconds)
        self._is_leaving = True

    def _close(self, trial_id: int) -> None:
        """Take in the output of a program of which nothing is left, and free its slot."""
        attempt = self._attempts[trial_id]
        attempt.output = self._streams.close(trial_id)
        self._channels.finish(trial_id)
        self._free.append(attempt.devices)

    def _store(self, output: OutputRecord) -> str:
        artifact_id = str(uuid.uuid4())  # the dashboard serves no other
        try:
            self._artifacts.write(artifact_id, io.BytesIO(output.text().encode()))
        except OSError as error:
            _log.warning("cannot write an output into %s: %s", self._artifacts.place, error.strerror or error)
            return ""
        return artifact_id


def attempt_folders(root: Path, study: StoredStudy, artifacts: ArtifactStore) -> AttemptFolders:
    """The folders of a study's attempts on this machine, and in the bucket of its artifacts if it has one."""
    assert study.definition.program is not None
    key, stored = study.program_key, None
    if is_bucket(artifacts.place):
        stored = StoredFolders(artifacts, key, limit_bytes=study.definition.program.folder_limit)
    return AttemptFolders(root, key, stored=stored)
