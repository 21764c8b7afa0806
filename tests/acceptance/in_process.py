"""The command line in the tests' own process: what it prints and its exit code, without the seconds of a new Python."""

from __future__ import annotations

import contextlib
import io
import os
import signal
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from hpsearch.cli import run_commands
from hpsearch.cli.main import run_command_line

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGALRM)


def hpsearch_here(
    *arguments: str | Path, folder: Path, environment: Mapping[str, str]
) -> subprocess.CompletedProcess[str]:
    """Run `hpsearch ARGUMENTS` in a folder; `worker` trains in this process, `run` and `confirm` start real workers.

    Args:
        environment: in place of all variables HPSEARCH_*, beside the others.
    """
    out, err = io.StringIO(), io.StringIO()
    with (
        pytest.MonkeyPatch.context() as patch,
        _signal_handlers_kept(),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
        contextlib.chdir(folder),
    ):
        for name in [name for name in os.environ if name.startswith("HPSEARCH_")]:
            patch.delenv(name)
        for name, value in environment.items():
            patch.setenv(name, value)
        patch.setattr(run_commands, "_leave_without_teardown", lambda: None)
        code = run_command_line([str(argument) for argument in arguments])
    return subprocess.CompletedProcess(arguments, code, out.getvalue(), err.getvalue())


@contextlib.contextmanager
def _signal_handlers_kept() -> Iterator[None]:
    handlers = {number: signal.getsignal(number) for number in _SIGNALS}
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
