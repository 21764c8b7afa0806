"""The first worker of a launch: it starts at once, prepares the study, and then trains like the others.

The process that launches workers never loads torch. Its first worker does so while the database is opened; then it
checks the data and the networks, and registers the study (worker/preparation_request.py).
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from multiprocessing import Pipe
from typing import TYPE_CHECKING

from hpsearch.data.files.download import DownloadProgress
from hpsearch.errors import HpsearchError, InputError, SurroundingsError
from hpsearch.launch.worker_command import WorkerCommand, WorkersFailedError, end_workers
from hpsearch.study.definition import StudyDefinition
from hpsearch.worker.preparation_request import PreparationRequest, request_preparation

if TYPE_CHECKING:
    from hpsearch.store.registration import Registration


class FirstWorker(AbstractContextManager["FirstWorker"]):
    """Worker number 0, which waits for a study to prepare. If it still runs at the end of the context, it is ended.

    Args:
        joins: it trains after it has prepared the study; otherwise it leaves.
        checks: it looks at the data before the study is created.
    """

    def __init__(self, command: WorkerCommand, *, joins: bool, checks: bool = True) -> None:
        self._command = command
        self._checks = checks
        self.joins = joins
        self._has_begun = False
        self._pipe, of_worker = Pipe()
        with of_worker:
            self.process = command.start(0, of_worker.fileno())

    def prepare(self, definition: StudyDefinition, progress: DownloadProgress | None) -> Registration:
        """Let the worker check the data and the networks of a study, and register it.

        Raises:
            HpsearchError: as `prepare_study` raises; or the worker has died.
        """
        self._has_begun = True
        request = PreparationRequest(definition=definition, joins=self.joins, checks=self._checks)
        registration = request_preparation(self._pipe, request, progress)
        if registration is None:
            raise self._death()
        return registration

    def _death(self) -> WorkersFailedError:
        code = self.process.wait()
        how = "was stopped" if code == 0 else f"died (signal {-code})" if code < 0 else f"ended (exit code {code})"
        is_verdict = code in (InputError.exit_code, SurroundingsError.exit_code)
        return WorkersFailedError(
            f"worker 0 {how} before the study was prepared: {self._command.last_words(0)}",
            hint=f"its log: {self._command.log_file(0)}",
            exit_code=code if is_verdict and self._command.final_error(0) else HpsearchError.exit_code,
        )

    def __exit__(self, *_: object) -> None:
        self._pipe.close()
        if not self._has_begun:  # before the request, a worker holds nothing that it could give back
            self.process.kill()
        end_workers([self.process], self._command.stop_seconds)
