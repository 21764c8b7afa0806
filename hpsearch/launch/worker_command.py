"""How a worker process of this machine is started: its arguments, its variables, its password and its log.

Imports nothing heavy: `run` starts its first worker before it imports what it needs itself.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from io import FileIO
from pathlib import Path
from typing import Protocol

from hpsearch import environment
from hpsearch.errors import ArtifactError, HpsearchError
from hpsearch.home import make_folder
from hpsearch.logs import HINT_PREFIX, find_final_error, find_message
from hpsearch.safe_text import mask_passwords
from hpsearch.signals import STOP_SECONDS
from hpsearch.study.program import ProgramSettings
from hpsearch.worker.options import WorkerOptions

LOG_LIMIT_BYTES = 16 * 2**20  # of a worker's log; one older part of the same size is kept
_LOG_END_BYTES = 2**16
_LOG_HEADING = "--- worker started"
_PROGRAM = Path(__file__).parents[1] / "__main__.py"


class WorkersFailedError(HpsearchError):
    """Local workers cannot start, or die more often than they are restarted."""

    def __init__(self, message: str, *, hint: str, exit_code: int) -> None:
        super().__init__(message, hint=hint)
        self.exit_code = exit_code  # of the worker: it says what was wrong


class WorkerProcess(Protocol):
    """A running worker as its launcher sees it: subprocess.Popen, or an actor (ray_launcher.py)."""

    def poll(self) -> int | None: ...
    def send_signal(self, number: int, /) -> None: ...
    def wait(self, timeout: float | None = None) -> int: ...
    def kill(self) -> None: ...


def stop_seconds(program: ProgramSettings | None) -> float:
    """How long a worker may take to stop.

    Args:
        program: of its study, if its trials are programs: they have their own grace, and what is written before and
            after takes seconds, too.
    """
    return STOP_SECONDS if program is None else max(STOP_SECONDS, program.grace_seconds + 5.0)


def end_workers(processes: Collection[WorkerProcess], seconds: float = STOP_SECONDS) -> None:
    """End these workers: SIGTERM first, then SIGKILL for those that do not stop in time, or at a second Ctrl-C."""
    deadline = time.monotonic() + seconds
    try:
        for process in processes:
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
        for process in processes:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(timeout=max(0.1, deadline - time.monotonic()))
    finally:
        for process in processes:
            if process.poll() is None:
                process.kill()
                process.wait()


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
        consent: hash of the program that the workers may run; None: they train networks.
        stop_seconds: how long a worker may take to stop.
    """

    study_name: str
    storage_url: str | None = field(repr=False)
    options: WorkerOptions
    num_workers: int
    threads: int
    log_folder: Path
    consent: str | None = None
    stop_seconds: float = STOP_SECONDS
    _num_read: dict[int, int] = field(default_factory=dict)  # by worker index: bytes of the log, for lane_changes

    def log_file(self, index: int) -> Path:
        """The log file of worker number `index`."""
        return self.log_folder / f"{self.study_name}-worker-{index}.log"

    def start(self, index: int, pipe: int | None = None) -> subprocess.Popen[bytes]:
        """Start worker number `index` (0, 1, ...); its output goes to its log file.

        Args:
            pipe: descriptor of a worker that is to prepare the study first (worker/preparation_request.py).
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
            from hpsearch.store.connection.address import parse_url, without_password

            url = parse_url(self.storage_url)
            password = url.password
            variables[environment.STORAGE] = without_password(url).render_as_string()
        variables.pop(environment.COMMANDS, None)
        if self.consent is not None:
            variables[environment.COMMANDS] = self.consent
        variables.pop(environment.LIFE_SIGN, None)  # names one process's file; several workers would overwrite it
        variables.pop(environment.METRICS, None)
        if self.options.artifacts is not None:
            variables[environment.ARTIFACTS] = self.options.artifacts
        if self.options.metrics is not None:
            variables[environment.METRICS] = str(self.options.metrics.of_worker(index))
        if pipe is not None:
            variables[environment.PREPARATION_PIPE] = str(pipe)
        with self._open_log(index) as log, _password_file(password) as descriptors:
            for descriptor in descriptors:
                variables[environment.STORAGE_PASSWORD_FILE] = f"/dev/fd/{descriptor}"
            return subprocess.Popen(
                # -P and the file's path: no module is imported from the current folder by mistake.
                [sys.executable, "-P", str(_PROGRAM), *arguments],
                env=variables,
                pass_fds=descriptors if pipe is None else (*descriptors, pipe),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,  # Ctrl-C reaches only the supervisor, which ends the workers in order
            )

    def last_words(self, index: int) -> str:
        """Return the error at the end of a worker's log, or the log's last line."""
        return self.final_error(index) or mask_passwords((self._lines(index) or ["its log is empty"])[-1])

    def final_error(self, index: int) -> str | None:
        """Return the error message with which a worker ended, with all its lines; None if it ended without one."""
        lines = self._lines(index)
        found = [(number, error) for number, line in enumerate(lines) if (error := find_final_error(line)) is not None]
        if not found:
            return None
        number, error = found[-1]
        more = itertools.takewhile(lambda line: not line.startswith(HINT_PREFIX), lines[number + 1 :])
        is_text = not lines[number].startswith("{")
        return mask_passwords("\n".join([error, *more] if is_text else [error]))

    def _lines(self, index: int) -> list[str]:
        """Return the end of what a worker has written to its log since its last start."""
        text = _end_of(self._older_log(index)) + _end_of(self.log_file(index))
        _, heading, text = text.rpartition(_LOG_HEADING)
        return text.strip().splitlines()[1 if heading else 0 :]

    def lane_changes(self, index: int) -> list[str]:
        """Return what a worker has logged about its number of lanes since the last call, or since its start."""
        try:
            with self.log_file(index).open("rb") as log:
                size = log.seek(0, os.SEEK_END)
                # A log that another process has shortened is read from its new end.
                start = min(self._num_read.get(index, max(0, size - _LOG_END_BYTES)), size)
                log.seek(start)
                whole, newline, _ = log.read().rpartition(b"\n")  # a line that is not complete is read next time
        except OSError:  # a problem with a log must not end the training
            return []
        is_first = index not in self._num_read
        self._num_read[index] = start + len(whole) + len(newline)
        news = whole.rpartition(_LOG_HEADING.encode())[2] if is_first else whole
        lines = news.decode(errors="replace").splitlines()
        return [mask_passwords(message) for line in lines if (message := find_message(line, "lanes")) is not None]

    def shorten_log(self, index: int) -> None:
        """Move a worker's log to a second file once it is long. Call this periodically."""
        path = self.log_file(index)
        with contextlib.suppress(OSError):  # a problem with a log must not end the training
            if path.stat().st_size > LOG_LIMIT_BYTES:
                # Copied and truncated, not renamed: the worker keeps appending to this file (O_APPEND).
                shutil.copyfile(path, self._older_log(index))
                os.truncate(path, 0)
                self._num_read[index] = 0

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
