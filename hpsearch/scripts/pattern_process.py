"""A process that searches scripts' output for reports, so that no pattern can stop the worker.

Python's `re` holds the interpreter's lock: a pattern such as `(a+)+$` would stop all threads of the worker, and with
them its leases. `PatternProcess` is the worker's side, `serve` runs in the process.
"""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import threading
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Final, Self

from hpsearch.scripts.report_lines import Malformed, PatternMatcher, Report

_PATTERN_SECONDS: Final = 2.0
# Wall time for what may take `_PATTERN_SECONDS` of processor time: a busy machine is not a slow pattern.
_WALL_FACTOR: Final = 10
_START_SECONDS: Final = 60.0
# `-I -S`: neither the user's folder nor site-packages' start-up files. The package itself comes last in the path.
_PROGRAM: Final = (
    "import sys; sys.path.append(sys.argv[1]); from hpsearch.scripts.pattern_process import serve; serve()"
)
_ROOT: Final = str(Path(__file__).parents[2])


class PatternTooSlow(Exception):  # noqa: N818  # an outcome, not an error of hpsearch
    """The pattern took longer than the time limit. The process was ended; the next call starts another."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PatternReports:
    """What was found in a block of lines.

    Args:
        found: in the order of the lines.
        num_matches: including those in earlier blocks of the same attempt.
    """

    found: tuple[Report | Malformed, ...]
    num_matches: int


class PatternProcess:
    """The process that applies patterns; one per worker. Safe for several threads, one at a time.

    The process starts with the first call. It ends when this object is closed or this process ends.

    Args:
        seconds: processor time per block of lines.
    """

    def __init__(self, *, seconds: float = _PATTERN_SECONDS) -> None:
        self._seconds = seconds
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._socket: socket.socket | None = None
        self._answers: BinaryIO | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def pid(self) -> int | None:
        """None while no process runs."""
        return self._process.pid if self._process else None

    def search(self, pattern: str, lines: bytes, *, num_matches: int = 0) -> PatternReports:
        """Search lines of one attempt's output for reports.

        Args:
            pattern: one that `check_pattern` accepts.
            lines: complete lines with their ends. Those of more than 4 KB are ignored.
            num_matches: the last answer's, of the same attempt.
        Raises:
            PatternTooSlow: the pattern took longer than the time limit, or the process ended twice for another reason.
            OSError: the process cannot be started.
        """
        header = {"pattern": pattern, "num_bytes": len(lines), "num_matches": num_matches, "seconds": self._seconds}
        request = _as_line(header) + lines
        with self._lock:
            # A second try if the process was killed from outside: that says nothing about the pattern.
            answer = self._try(request) or self._try(request)
        if answer is None:
            raise PatternTooSlow(f"the process that applies the pattern {pattern!r} has ended twice")
        return PatternReports(
            found=tuple(_from_stored(entry) for entry in answer["found"]), num_matches=answer["num_matches"]
        )

    def close(self) -> None:
        """End the process. The next call of `search` would start another."""
        with self._lock:
            self._end()

    def _try(self, request: bytes) -> dict[str, Any] | None:
        """Return None if the process has ended, but not at the time limit."""
        try:
            if self._process is None:
                self._start()
            assert self._socket is not None
            self._socket.settimeout(self._seconds * _WALL_FACTOR)
            self._socket.sendall(request)
            return self._answer()
        except TimeoutError as error:
            self._end()
            raise PatternTooSlow("the process that applies patterns does not answer") from error
        except (EOFError, BrokenPipeError, ConnectionResetError) as error:
            if self._end() == -signal.SIGVTALRM:
                raise PatternTooSlow(f"the pattern took over {self._seconds:g} s") from error
            return None

    def _start(self) -> None:
        own, other = socket.socketpair()
        self._socket, self._answers = own, own.makefile("rb")
        with other:
            self._process = subprocess.Popen(
                [sys.executable, "-I", "-S", "-c", _PROGRAM, _ROOT],
                stdin=other.fileno(),
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                env={},  # no password
                start_new_session=True,  # Ctrl-C is for the worker
            )
        own.settimeout(_START_SECONDS)
        self._answer()  # it is ready: its start is no part of a pattern's time

    def _answer(self) -> dict[str, Any]:
        assert self._answers is not None
        line = self._answers.readline()
        if not line.endswith(b"\n"):
            raise EOFError("the process has ended")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def _end(self) -> int | None:
        """Returns the exit code, or None if no process was running."""
        for file in (self._answers, self._socket):
            if file is not None:
                file.close()
        exit_code = None
        if self._process is not None:
            self._process.kill()  # without effect on the exit code if it has ended by itself
            exit_code = self._process.wait()
        self._process = self._socket = self._answers = None
        return exit_code


def serve() -> None:
    """Answer requests on standard input, which is a socket, until the worker closes it."""
    connection = socket.socket(fileno=0)
    requests = connection.makefile("rb")
    signal.signal(signal.SIGVTALRM, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGVTALRM])  # the worker's thread may have blocked it
    connection.sendall(_as_line({}))
    while header_line := requests.readline():
        header = json.loads(header_line)
        lines = requests.read(header["num_bytes"])
        # Its signal ends this process even in the middle of a match, when Python would run no handler.
        signal.setitimer(signal.ITIMER_VIRTUAL, header["seconds"])
        answer = _as_line(_found_in(lines, header["pattern"], header["num_matches"]))
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        connection.sendall(answer)


def _found_in(lines: bytes, pattern: str, num_matches: int) -> dict[str, Any]:
    matcher = PatternMatcher(pattern, num_matches=num_matches)
    found = [entry for line in lines.splitlines() if (entry := matcher.read(line)) is not None]
    return {"found": [_as_stored(entry) for entry in found], "num_matches": matcher.num_matches}


def _as_stored(entry: Report | Malformed) -> list[int | float] | str:
    return [entry.step, entry.value] if isinstance(entry, Report) else entry.text


def _from_stored(entry: list[Any] | str) -> Report | Malformed:
    return Malformed(text=entry) if isinstance(entry, str) else Report(step=entry[0], value=entry[1])


def _as_line(document: dict[str, Any]) -> bytes:
    return json.dumps(document).encode() + b"\n"
