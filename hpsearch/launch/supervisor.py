"""Local workers: N processes on this machine, supervised until the study is finished or the user interrupts.

The workers coordinate through the database alone. The supervisor starts them, restarts a worker that died, forwards
Ctrl-C as SIGTERM, and reads progress. Workers notice when their supervisor is gone and give their trials back.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from io import FileIO
from pathlib import Path
from typing import NoReturn, Protocol

from hpsearch import environment
from hpsearch.errors import ArtifactError, HpsearchError, InputError, SurroundingsError
from hpsearch.home import make_folder
from hpsearch.logs import find_final_error, get_logger
from hpsearch.safe_text import mask_passwords
from hpsearch.signals import STOP_SECONDS
from hpsearch.store.claims.ledger import PointCounts
from hpsearch.store.connection.address import parse_url, without_password
from hpsearch.store.connection.database import Database
from hpsearch.store.progress import Progress, read_progress
from hpsearch.store.studies import StoredStudy
from hpsearch.worker.options import WorkerOptions

_log = get_logger("supervisor")

MAX_RESTARTS = 5  # per worker, counted anew when a point is counted or given up
LOG_LIMIT_BYTES = 16 * 2**20  # of a worker's log; one older part of the same size is kept
_LOG_END_BYTES = 2**16
_LOG_HEADING = "--- worker started"
_PROGRAM = Path(__file__).parents[1] / "__main__.py"


class WorkersFailedError(HpsearchError):
    """Local workers cannot start, or die more often than they are restarted."""

    def __init__(self, message: str, *, hint: str, exit_code: int) -> None:
        super().__init__(message, hint=hint)
        self.exit_code = exit_code  # of the worker: it says what was wrong


# How long torch's threads spin before they sleep: about 50 microseconds. A minibatch has dozens of synchronisations.
# Threads that sleep immediately made an epoch 1.7 times slower; threads that spin for milliseconds, which is their
# default, made it up to seven times slower when other work needed the cores (docs/lab-notes.md).
SPIN_COUNT = "2000"


@dataclass(frozen=True, kw_only=True)
class WorkerCommand:
    """How to start one worker of a study.

    Args:
        storage_url: its password appears in no worker's arguments or variables: a file that only the worker has open
            holds it. A URL without a password leaves the worker with the file that STORAGE_PASSWORD_FILE names. None:
            the embedded PostgreSQL, which the workers join as clients of their own.
        options: options of each worker; each pins its own GPU.
        num_workers: number of workers that are started; passed to them, because they share the machine's memory and the
            points.
        threads: CPU threads per worker.
        log_folder: one log file per worker.
    """

    study_name: str
    storage_url: str | None = field(repr=False)
    options: WorkerOptions
    num_workers: int
    threads: int
    log_folder: Path

    @property
    def lanes(self) -> str:
        return self.options.lanes_text

    def log_file(self, index: int) -> Path:
        """The log file of worker number `index`."""
        return self.log_folder / f"{self.study_name}-worker-{index}.log"

    def start(self, index: int, pipe: tuple[int, int] | None = None) -> subprocess.Popen[bytes]:
        """Start worker number `index` (0, 1, ...); its output goes to its log file.

        Args:
            pipe: descriptors of a worker that is to prepare the study first (worker/preparation_request.py).
        """
        arguments = ["worker", self.study_name, *self.options.as_arguments()]
        variables = {
            **os.environ,
            "OMP_NUM_THREADS": str(self.threads),
            environment.SUPERVISOR_PID: str(os.getpid()),
            environment.SUPERVISED_WORKERS: str(self.num_workers),
        }
        if not variables.keys() & {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"}:
            variables["GOMP_SPINCOUNT"] = SPIN_COUNT
        password = None
        if self.storage_url is not None:
            url = parse_url(self.storage_url)
            password = url.password
            variables[environment.STORAGE] = without_password(url).render_as_string()
        variables.pop(environment.LIFE_SIGN, None)  # names one process's file; several workers would overwrite it
        variables.pop(environment.METRICS, None)
        if self.options.artifacts is not None:
            variables[environment.ARTIFACTS] = self.options.artifacts
        if self.options.metrics is not None:
            variables[environment.METRICS] = str(self.options.metrics.of_worker(index))
        if pipe is not None:
            variables[environment.PREPARATION_PIPE] = "{},{}".format(*pipe)
        with self._open_log(index) as log, _password_file(password) as descriptors:
            for descriptor in descriptors:
                variables[environment.STORAGE_PASSWORD_FILE] = f"/dev/fd/{descriptor}"
            return subprocess.Popen(
                # -P and the file's path: no module is imported from the current folder by mistake.
                [sys.executable, "-P", str(_PROGRAM), *arguments],
                env=variables,
                pass_fds=(*descriptors, *(pipe or ())),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,  # Ctrl-C reaches only the supervisor, which ends the workers in order
            )

    def last_words(self, index: int) -> str:
        """Return the error at the end of a worker's log, or the log's last line."""
        return self.final_error(index) or mask_passwords((self._lines(index) or ["its log is empty"])[-1])

    def final_error(self, index: int) -> str | None:
        """Return the error message with which a worker ended; None if it ended without one."""
        errors = [error for line in self._lines(index) if (error := find_final_error(line)) is not None]
        return mask_passwords(errors[-1]) if errors else None

    def _lines(self, index: int) -> list[str]:
        """Return the end of what a worker has written to its log since its last start."""
        text = _end_of(self._older_log(index)) + _end_of(self.log_file(index))
        _, heading, text = text.rpartition(_LOG_HEADING)
        return text.strip().splitlines()[1 if heading else 0 :]

    def shorten_log(self, index: int) -> None:
        """Move a worker's log to a second file once it is long. Call this periodically."""
        path = self.log_file(index)
        with contextlib.suppress(OSError):  # a problem with a log must not end the training
            if path.stat().st_size > LOG_LIMIT_BYTES:
                # Copied and truncated, not renamed: the worker keeps appending to this file (O_APPEND).
                shutil.copyfile(path, self._older_log(index))
                os.truncate(path, 0)

    def _older_log(self, index: int) -> Path:
        return self.log_folder / f"{self.log_file(index).name}.1"

    def _open_log(self, index: int) -> FileIO:
        try:
            make_folder(self.log_folder)
            log = self.log_file(index).open("ab", buffering=0)
        except OSError as error:
            raise ArtifactError(
                f"cannot write the workers' logs into {self.log_folder}: {error.strerror}",
                hint="set HPSEARCH_HOME to a folder of yours",
            ) from error
        with contextlib.suppress(OSError):  # a full disk costs lines, not the worker
            log.write(f"{_LOG_HEADING} {datetime.now(UTC):%Y-%m-%d %H:%M:%S} UTC\n".encode())
        return log


@contextlib.contextmanager
def _password_file(password: str | None) -> Iterator[tuple[int, ...]]:
    """Yield the descriptor of an in-memory file with the password, for a child to inherit; none without a password."""
    if password is None:
        yield ()
        return
    descriptor = os.memfd_create("hpsearch-password")
    try:
        os.write(descriptor, password.encode())
        yield (descriptor,)
    finally:
        os.close(descriptor)


def _end_of(path: Path) -> str:
    """Return the last part of a log, whatever its size."""
    if not path.exists():
        return ""
    with path.open("rb") as log:
        log.seek(max(0, path.stat().st_size - _LOG_END_BYTES))
        return log.read().decode(errors="replace")


class WorkerProcess(Protocol):
    """A running worker as the supervisor sees it: subprocess.Popen, or an actor (ray_launcher.py)."""

    def poll(self) -> int | None: ...
    def send_signal(self, number: int, /) -> None: ...
    def wait(self, timeout: float | None = None) -> int: ...
    def kill(self) -> None: ...


class WorkerLauncher(Protocol):
    """Starts workers and gives access to their output: WorkerCommand here, or RayLauncher on other machines."""

    @property
    def lanes(self) -> str: ...
    def start(self, index: int) -> WorkerProcess: ...
    def last_words(self, index: int) -> str: ...
    def final_error(self, index: int) -> str | None: ...
    def log_file(self, index: int) -> Path | str: ...
    def shorten_log(self, index: int) -> None: ...


@dataclass(kw_only=True)
class Supervisor:
    """Keeps `num_workers` workers running until the study is finished.

    Args:
        processes: by worker index; those that run already are taken over.
    """

    database: Database
    study: StoredStudy
    command: WorkerLauncher
    num_workers: int
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
                progress = read_progress(self.database, self.study.study_id)
                on_progress(progress)
                if progress.is_finished:
                    return progress
                self._look_after_workers(progress.counts)
                time.sleep(self.poll_seconds)
        finally:
            self.stop()

    def stop(self) -> None:
        """End all workers: SIGTERM first, then SIGKILL for those that do not stop in time, or at a second Ctrl-C."""
        deadline = time.monotonic() + STOP_SECONDS
        try:
            for process in self.processes.values():
                if process.poll() is None:
                    process.send_signal(signal.SIGTERM)
            for process in self.processes.values():
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(timeout=max(0.1, deadline - time.monotonic()))
        finally:
            for process in self.processes.values():
                if process.poll() is None:
                    process.kill()
                    process.wait()

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
            is_verdict = code in (InputError.exit_code, SurroundingsError.exit_code)
            if is_verdict and self.command.final_error(index) is not None:
                self._give_up(index, "cannot work", code)
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
