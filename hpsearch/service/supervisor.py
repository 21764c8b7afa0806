"""Local workers: N processes on this machine, watched until the study is finished or somebody interrupts.

The workers coordinate through the database alone; the supervisor starts them, restarts one that died, passes Ctrl-C
on as SIGTERM, and reads progress. Workers notice when their supervisor is gone and give their trials back.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from hpsearch.errors import HpsearchError, InputError, SurroundingsError
from hpsearch.logs import get_logger
from hpsearch.service.database import Database
from hpsearch.service.progress import Progress, read_progress
from hpsearch.service.registry import StoredStudy

_log = get_logger("supervisor")

MAX_RESTARTS = 3  # per worker
STOP_SECONDS = 10.0  # what a worker gets between SIGTERM and SIGKILL
SUPERVISOR_VARIABLE = "HPSEARCH_SUPERVISOR_PID"


class WorkersFailedError(HpsearchError):
    """All local workers died more often than they are restarted."""


@dataclass(frozen=True, kw_only=True)
class WorkerCommand:
    """How to start one worker of a study.

    Args:
        storage_url: passed in the environment, never on the command line, where `ps` would show its password.
        threads: CPU threads per worker.
        log_folder: one file per worker.
    """

    study_name: str
    storage_url: str
    device: str
    lanes: str
    artifacts: Path
    threads: int
    log_folder: Path

    def log_file(self, index: int) -> Path:
        return self.log_folder / f"{self.study_name}-worker-{index}.log"

    def start(self, index: int) -> subprocess.Popen[bytes]:
        """Start worker number `index` (0, 1, ...); its output goes to its log file."""
        arguments = ["worker", self.study_name, "--device", self.device, "--lanes", self.lanes]
        environment = {
            **os.environ,
            "HPSEARCH_STORAGE": self.storage_url,
            "HPSEARCH_ARTIFACTS": str(self.artifacts),
            "OMP_NUM_THREADS": str(self.threads),
            SUPERVISOR_VARIABLE: str(os.getpid()),
        }
        self.log_folder.mkdir(parents=True, exist_ok=True)
        with self.log_file(index).open("ab") as log:
            return subprocess.Popen(
                [sys.executable, "-m", "hpsearch", *arguments],
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,  # Ctrl-C reaches the supervisor only, which ends them in order
            )


@dataclass(kw_only=True)
class Supervisor:
    """Keeps `num_workers` workers alive until the study is finished."""

    database: Database
    study: StoredStudy
    command: WorkerCommand
    num_workers: int
    poll_seconds: float = 0.5
    _processes: dict[int, subprocess.Popen[bytes]] = field(default_factory=dict)  # by worker index
    _restarts: dict[int, int] = field(default_factory=dict)

    def run(self, on_progress: Callable[[Progress], None]) -> Progress:
        """Run until no point is unfinished; returns the last progress.

        Raises:
            KeyboardInterrupt: passed on after the workers have given their trials back.
            HpsearchError: workers cannot start, or keep dying; the message shows the end of a log.
        """
        try:
            for index in range(self.num_workers):
                self._processes[index] = self.command.start(index)
            while True:
                progress = read_progress(self.database, self.study.study_id)
                on_progress(progress)
                if progress.counts.unfinished == 0:
                    return progress
                self._look_after_workers()
                time.sleep(self.poll_seconds)
        finally:
            self.stop()

    def stop(self) -> None:
        """End all workers: SIGTERM, and SIGKILL for those that do not listen."""
        for process in self._processes.values():
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
        deadline = time.monotonic() + STOP_SECONDS
        for process in self._processes.values():
            try:
                process.wait(timeout=max(0.1, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def _look_after_workers(self) -> None:
        for index, process in list(self._processes.items()):
            code = process.poll()
            if code is None or code == 0:
                continue
            if code in (InputError.exit_code, SurroundingsError.exit_code):
                raise WorkersFailedError(
                    f"worker {index} cannot work: {self._last_words(index)}",
                    hint=f"its log: {self.command.log_file(index)}",
                )
            self._restart(index, code)
        if self._processes and all(process.poll() == 0 for process in self._processes.values()):
            # All left in peace, yet a point is open: one was given back at the last moment. Take it up again.
            self._processes[0] = self.command.start(0)

    def _restart(self, index: int, code: int) -> None:
        restarts = self._restarts.get(index, 0) + 1
        cause = f"signal {-code}" if code < 0 else f"exit code {code}"
        if restarts > MAX_RESTARTS:
            raise WorkersFailedError(
                f"worker {index} died {restarts} times, the last time with {cause}: {self._last_words(index)}",
                hint=f"its log: {self.command.log_file(index)}",
            )
        _log.warning("worker %d died (%s): starting it again", index, cause)
        self._restarts[index] = restarts
        self._processes[index] = self.command.start(index)

    def _last_words(self, index: int) -> str:
        lines = (
            self.command.log_file(index).read_text(encoding="utf-8", errors="replace").strip().splitlines()
        )
        return lines[-1] if lines else "its log is empty"
