"""One worker of a study inside a Ray actor: a child process that the actor starts, monitors and ends.

This class does not import Ray: ray_launcher.py turns it into an actor, on a node that Ray chooses. When the actor dies,
Ray creates it again, possibly on another node, and the new actor starts the worker again. The points that the old
worker held become free when their leases expire, as with any worker that dies.
"""

from __future__ import annotations

import contextlib
import os
import platform
import signal
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, replace

from hpsearch.errors import HpsearchError, InputError, SurroundingsError
from hpsearch.home import log_folder
from hpsearch.launch.supervisor import WorkerCommand


@dataclass(frozen=True, kw_only=True)
class RayWorkerState:
    """The state of a worker.

    Args:
        code: its exit code, negative for a signal; None while it runs.
        last_words: the end of its log, once it has ended.
        log: HOST:PATH of the log.
    """

    code: int | None
    last_words: str
    log: str


class RayWorker:
    """Starts worker number `index` immediately; Ray creates it again on another node if this one dies.

    Args:
        environment: HPSEARCH_ variables of the machine on which `run` was started; they override the node's own.
    """

    def __init__(self, command: WorkerCommand, index: int, environment: Mapping[str, str]) -> None:
        os.environ.update(environment)
        self._command = replace(command, log_folder=log_folder())  # of this node
        self._index = index
        self._refusal: HpsearchError | None = None
        self._process: subprocess.Popen[bytes] | None = None
        try:
            self._process = self._command.start(index)
        except HpsearchError as error:  # raised through Ray, the error would lose its exit code
            self._refusal = error

    def look(self) -> RayWorkerState:
        """Return the worker's state, and shorten its log if it is long."""
        self._command.shorten_log(self._index)
        code = self._refusal.exit_code if self._refusal else self._running().poll()
        return self._state(code)

    def terminate(self) -> None:
        """Ask the worker to give its trials back and leave."""
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)

    def wait(self, seconds: float) -> RayWorkerState:
        """Return the worker's state after its end, or after `seconds`."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            if self._process is not None:
                self._process.wait(timeout=seconds)
        return self.look()

    def kill(self) -> None:
        """Kill the worker and wait for its end."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def _running(self) -> subprocess.Popen[bytes]:
        assert self._process is not None
        return self._process

    def _state(self, code: int | None) -> RayWorkerState:
        words = str(self._refusal or "")
        if code is not None and self._process is not None:
            words = self._command.last_words(self._index)
            if (
                code in (InputError.exit_code, SurroundingsError.exit_code)
                and self._command.final_error(self._index) is None
            ):
                code = HpsearchError.exit_code  # the user's code has ended the process, with an exit code of its own
        log = f"{platform.node()}:{self._command.log_file(self._index)}"
        return RayWorkerState(code=code, last_words=words, log=log)
