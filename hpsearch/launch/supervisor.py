"""Local workers: N processes on this machine, supervised until the study is finished or the user interrupts.

The workers coordinate through the database alone. The supervisor starts them, restarts a worker that died, forwards
Ctrl-C as SIGTERM, and reads progress. Workers notice when their supervisor is gone and give their trials back.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn, Protocol

from hpsearch.errors import HpsearchError, InputError, SurroundingsError
from hpsearch.launch.worker_command import WorkerProcess, WorkersFailedError, end_workers, stop_seconds
from hpsearch.logs import get_logger
from hpsearch.store.connection.database import Database
from hpsearch.store.progress import Progress, read_progress
from hpsearch.store.rows.counts import PointCounts
from hpsearch.store.studies import StoredStudy

_log = get_logger("supervisor")

_LOOK_SECONDS = 0.1  # between two looks whether a worker has ended
MAX_RESTARTS = 5  # per worker, counted anew when a point is counted or given up


class WorkerLauncher(Protocol):
    """Starts workers and gives access to their output: WorkerCommand here, or RayLauncher on other machines."""

    def start(self, index: int) -> WorkerProcess: ...
    def last_words(self, index: int) -> str: ...
    def final_error(self, index: int) -> str | None: ...
    def log_file(self, index: int) -> Path | str: ...
    def lane_changes(self, index: int) -> list[str]: ...
    def shorten_log(self, index: int) -> None: ...


@dataclass(kw_only=True)
class Supervisor:
    """Keeps `num_workers` workers running until the study is finished.

    Args:
        on_lanes: called with a worker's index and what it has logged about its number of lanes, once per change.
        processes: by worker index; those that run already are taken over.
    """

    database: Database
    study: StoredStudy
    command: WorkerLauncher
    num_workers: int
    on_lanes: Callable[[int, str], object] = lambda index, message: None
    poll_seconds: float = 1.0
    processes: dict[int, WorkerProcess] = field(default_factory=dict)
    _restarts: dict[int, int] = field(default_factory=dict)  # since a point was last counted or given up
    _num_settled: int = 0

    def run(self, on_progress: Callable[[Progress], None]) -> Progress:
        """Run until the study is finished, and return the last progress.

        Raises:
            KeyboardInterrupt: re-raised after the workers have given their trials back.
            HpsearchError: workers cannot start, or keep dying; the message shows the end of a log.
        """
        try:
            for index in range(self.num_workers):
                if index not in self.processes:
                    self.processes[index] = self.command.start(index)
            while True:
                left = self._left()
                progress = read_progress(self.database, self.study.study_id, self.study.definition.judged_by)
                on_progress(progress)
                self._tell_lanes()
                if progress.is_finished:
                    return progress
                self._look_after_workers(progress.counts)
                self._pause(left)
        finally:
            end_workers(self.processes.values(), stop_seconds(self.study.definition.program))

    @property
    def _verdicts(self) -> Collection[int]:
        """Exit codes of a worker that another one would end with, too. A program fails by itself, not its worker."""
        verdicts = (InputError.exit_code, SurroundingsError.exit_code)
        return (*verdicts, HpsearchError.exit_code) if self.study.definition.is_program else verdicts

    def _pause(self, left: Collection[WorkerProcess]) -> None:
        """Wait until it is time for the next look at the study, or until a worker has left, perhaps as the last one.

        Args:
            left: those that had left before the study was looked at.
        """
        ends_at = time.monotonic() + self.poll_seconds
        while (seconds := ends_at - time.monotonic()) > 0 and all(process in left for process in self._left()):
            time.sleep(min(_LOOK_SECONDS, seconds))

    def _left(self) -> list[WorkerProcess]:
        """The workers that have ended in peace; one that has died is started again at the next look."""
        return [process for process in self.processes.values() if process.poll() == 0]

    def _tell_lanes(self) -> None:
        for index in self.processes:
            for message in self.command.lane_changes(index):
                self.on_lanes(index, message)

    def _look_after_workers(self, counts: PointCounts) -> None:
        if counts.counted + counts.failed > self._num_settled:
            self._num_settled = counts.counted + counts.failed
            self._restarts.clear()
        for index, process in list(self.processes.items()):
            self.command.shorten_log(index)
            code = process.poll()
            if code is None or code == 0:
                continue
            # Without our error line, the code may come from the user's code, perhaps in one trial only: restart the
            # worker.
            if code in self._verdicts and self.command.final_error(index) is not None:
                self._give_up(index, "cannot work" if code != HpsearchError.exit_code else "gave up", code)
            self._restart(index, code)
        if self.processes and all(process.poll() == 0 for process in self.processes.values()):
            # All workers have ended, but a point is open or a round is due: a point was given back, or the study
            # widened, at the last moment. Start a worker for it.
            self._restart(0, 0)

    def _restart(self, index: int, code: int) -> None:
        restarts = self._restarts.get(index, 0) + 1
        cause = f"signal {-code}" if code < 0 else f"exit code {code}"
        if restarts > MAX_RESTARTS:
            what = f"died {restarts} times in a row ({cause})" if code else f"ended {restarts} times with work left"
            self._give_up(index, what, HpsearchError.exit_code)
        if code:
            _log.warning("worker %d died (%s): starting it again", index, cause)
        self._restarts[index] = restarts
        self.processes[index] = self.command.start(index)

    def _give_up(self, index: int, what: str, exit_code: int) -> NoReturn:
        raise WorkersFailedError(
            f"worker {index} {what}: {self.command.last_words(index)}",
            hint=f"its log: {self.command.log_file(index)}; the same command resumes the study",
            exit_code=exit_code,
        )
