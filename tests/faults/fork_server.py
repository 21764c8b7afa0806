"""Starts hpsearch processes in milliseconds: it has imported everything, and forks.

A process with torch takes two seconds to start, and the rows of the fault table start some seventy of them. Those are
processes like all others: they run the command line from its first line to the interpreter's end, in an environment, a
session and a folder of their own.

Reads one JSON request per line and answers each with one line: {"start": Job} with the pid, {"poll": pid} with the
exit code or null. It starts no thread and opens no database.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
from typing import Any

# What hpsearch and Optuna import late, once for all.
import optuna.storages._rdb.storage  # noqa: F401
import sklearn.datasets  # noqa: F401

import hpsearch.cli.run_commands
import hpsearch.cli.view_commands  # noqa: F401
from tests.faults.driver import Faults, drive


def serve() -> dict[str, Any]:
    """Answer requests until there are no more. Returns in the children only: what to do."""
    for line in sys.stdin:
        request = json.loads(line)
        if "start" in request:
            pid = os.fork()
            if pid == 0:
                job: dict[str, Any] = request["start"]
                return job
            answer: int | None = pid
        else:
            answer = _exit_code(request["poll"])
        print(json.dumps(answer), flush=True)
    os._exit(0)


def _exit_code(pid: int) -> int | None:
    """As subprocess has it: negative for a signal; None while the process lives."""
    ended, status = os.waitpid(pid, os.WNOHANG)
    return os.waitstatus_to_exitcode(status) if ended else None


def _become(job: dict[str, Any]) -> None:
    """Shed what is left of the fork server."""
    os.setsid()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
    for name, flags, descriptor in (
        (os.devnull, os.O_RDONLY, 0),
        (job["stdout"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 1),
        (job["stderr"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 2),
    ):
        opened = os.open(name, flags | os.O_NOCTTY, 0o644)
        os.dup2(opened, descriptor)
        os.close(opened)
    if job["are_closed"]:
        os.close(1)
        os.close(2)
        sys.stdout = sys.stderr = None  # type: ignore[assignment]  # as Python has it
    if job["encoding"] is not None:
        sys.stdout.reconfigure(encoding=job["encoding"])  # type: ignore[union-attr]
        sys.stderr.reconfigure(encoding=job["encoding"], errors="backslashreplace")  # type: ignore[union-attr]
    os.chdir(job["folder"])
    os.environ.clear()
    os.environ.update(job["environment"])
    time.tzset()
    random.seed()  # or all would wait the same random times


if __name__ == "__main__":
    todo = serve()
    _become(todo)
    drive(Faults(**todo["faults"]), todo["arguments"])
