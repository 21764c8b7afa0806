"""A worker on a node of a Ray cluster: the actor that starts an ordinary worker process there, and waits for its end.

Ray loads this module on the nodes; it does not import Ray.
"""

from __future__ import annotations

import contextlib
import os
import platform
import subprocess
import threading
from collections.abc import Mapping
from dataclasses import dataclass, replace

from hpsearch.errors import HpsearchError, SurroundingsError
from hpsearch.home import log_folder
from hpsearch.launch.worker_command import WorkerCommand

_LOOK_SECONDS = 1.0  # between two looks at the size of a worker's log


@dataclass(frozen=True, kw_only=True)
class WorkerEnd:
    """How a worker has ended.

    Args:
        code: its exit code, negative for a signal.
        last_words: the end of its log.
        final_error: the error message with which it ended, if any.
        log: HOST:PATH of the log.
    """

    code: int
    last_words: str
    final_error: str | None = None
    log: str = "(none)"


class RayWorker:
    """The actor. It starts worker number `index` immediately, and does not import Ray.

    Args:
        variables: HPSEARCH_ variables of the machine on which `run` was started; they override the node's own.
        place: the folder in which `run` was started, if trials are programs: they are started in the same one here.
    """

    def __init__(
        self, command: WorkerCommand, index: int, variables: Mapping[str, str], place: str | None = None
    ) -> None:
        os.environ.update(variables)
        self._command = replace(command, log_folder=log_folder())  # of this node
        self._index = index
        self._log_lock = threading.Lock()  # one thread of the actor shortens the log that another one reads
        self._process: subprocess.Popen[bytes] | HpsearchError
        try:
            if place is not None:
                _enter(place)
            self._process = self._command.start(index)
        except HpsearchError as error:  # raised through Ray, the error would lose its exit code
            self._process = error

    def is_placed(self) -> bool:
        """Answer, which an actor without a place in the cluster does not."""
        return True

    def wait_for_end(self) -> WorkerEnd:
        """Wait until the worker has ended, and keep its log short."""
        command, index = self._command, self._index
        log = f"{platform.node()}:{command.log_file(index)}"
        if isinstance(self._process, HpsearchError):
            words = str(self._process)
            return WorkerEnd(code=self._process.exit_code, last_words=words, final_error=words, log=log)
        while True:
            with contextlib.suppress(subprocess.TimeoutExpired):
                code = self._process.wait(timeout=_LOOK_SECONDS)
                words, error = command.last_words(index), command.final_error(index)
                return WorkerEnd(code=code, last_words=words, final_error=error, log=log)
            with self._log_lock:
                command.shorten_log(index)

    def lane_changes(self) -> list[str]:
        """Return what the worker has logged about its number of lanes since the last call."""
        with self._log_lock:
            return self._command.lane_changes(self._index)

    def send_signal(self, number: int) -> None:
        """Send a signal to the worker, if it runs."""
        if isinstance(self._process, subprocess.Popen):
            self._process.send_signal(number)


def _enter(folder: str) -> None:
    try:
        os.chdir(folder)
    except OSError as error:
        raise SurroundingsError(
            f"there is no folder {folder} on node {platform.node()}, in which the study's program is to be started: "
            f"{error.strerror}",
            hint="start `run` in a folder that all nodes of the cluster share",
        ) from error
