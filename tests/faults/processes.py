"""hpsearch processes that a test starts, watches and ends: from the fork server, or by Python itself."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.faults.driver import Faults

ROOT = Path(__file__).parents[2]
WAIT_SECONDS = 240.0  # of a machine that has much else to do; a promise has a time of its own


def wait_until(
    condition: Callable[[], Any], what: str, seconds: float = WAIT_SECONDS, told: Callable[[], str] = str
) -> Any:
    """Look again and again until the condition holds; returns what it gave.

    Args:
        told: what to say beside `what` if it does not hold in time.
    """
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, f"waited {seconds:.0f} s in vain: {what}\n{told()}"
        time.sleep(0.02)
    return found


@dataclass(frozen=True, kw_only=True)
class Screen:
    """What a process writes to, where it is not a file of the test's for each stream.

    Args:
        are_closed: both streams are closed, as by `>&- 2>&-`.
        encoding: as PYTHONIOENCODING names it.
    """

    stdout: Path | None = None
    stderr: Path | None = None
    are_closed: bool = False
    encoding: str | None = None


class ForkServer:
    """The process that hpsearch processes are forked from."""

    def __init__(self) -> None:
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.faults.fork_server"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment,
            text=True,
            start_new_session=True,
        )
        self._lock = threading.Lock()

    def ask(self, request: Mapping[str, Any]) -> int | None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with self._lock:
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
            answer: int | None = json.loads(self._process.stdout.readline())
            return answer

    def close(self) -> None:
        self._process.communicate()


class HpsearchProcess:
    """One running command. `exit_code` is as subprocess has it: negative for a signal."""

    def __init__(
        self,
        fork_server: ForkServer,
        arguments: Sequence[str],
        *,
        faults: Faults,
        environment: Mapping[str, str],
        folder: Path,
        name: str,
        screen: Screen | None = None,
    ) -> None:
        self._fork_server = fork_server
        self._code: int | None = None
        self.arguments = arguments
        screen = screen or Screen()
        self.stdout, self.stderr = screen.stdout or folder / f"{name}.out", screen.stderr or folder / f"{name}.err"
        job = {
            "arguments": list(arguments),
            "faults": json.loads(faults.as_json()),
            "environment": dict(environment),
            "folder": str(folder),
            "stdout": str(self.stdout),
            "stderr": str(self.stderr),
            "are_closed": screen.are_closed,
            "encoding": screen.encoding,
        }
        pid = fork_server.ask({"start": job})
        assert pid is not None
        self.pid = pid

    def poll(self) -> int | None:
        if self._code is None:
            self._code = self._fork_server.ask({"poll": self.pid})
        return self._code

    @property
    def is_alive(self) -> bool:
        return self.poll() is None

    def wait(self, seconds: float = WAIT_SECONDS) -> int:
        """Its exit code once it has ended by itself."""
        deadline = time.monotonic() + seconds
        while (code := self.poll()) is None:
            if time.monotonic() > deadline:
                raise AssertionError(f"{self.arguments} is still there after {seconds:.0f} s:\n{self.where}")
            time.sleep(0.02)
        return code

    def send(self, number: signal.Signals) -> None:
        """Send a signal; nothing happens if it has ended. Its number is ours until `poll` has told of the end."""
        if self._code is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """SIGKILL, whatever state it is in, and wait until it is gone."""
        self.send(signal.SIGKILL)
        self.wait()

    @property
    def where(self) -> str:
        """What it has said and, if it is there, where its threads are just now."""
        if self.is_alive:
            self.send(signal.SIGUSR1)  # the driver has Python's faulthandler listen to it
            time.sleep(0.5)
        return self.said

    @property
    def said(self) -> str:
        """What it has written to stderr so far."""
        return self.stderr.read_text(errors="replace") if self.stderr.is_file() else ""
