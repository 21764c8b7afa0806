"""Looks, before a study is created, whether its objective can be imported and called: in a process of its own."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import IO

from hpsearch.errors import InputError
from hpsearch.scripts.script_environment import script_environment
from hpsearch.study.command_line import Value, render_environment
from hpsearch.study.program import ObjectiveSettings

CHECK_SECONDS = 120.0  # the import of a large library from a cold disk takes a minute
_TAIL_BYTES = 2000


def check_objective(objective: ObjectiveSettings, place: Path, *, seed: int, seconds: float = CHECK_SECONDS) -> None:
    """Import the objective's module in a process of its own, as a trial does, and look at the function.

    The module runs with the environment of a trial that has no GPU. What it prints is shown only if it fails.

    Args:
        place: the folder that `cwd` is relative to.
        seed: of the study, for the variables in `env`.
    Raises:
        InputError: it cannot be imported, has no such function, or the function does not take one argument.
    """
    folder = place / (objective.cwd or "")
    if not folder.is_dir():
        raise InputError(f"objective.cwd: there is no folder {folder}", hint="start hpsearch beside it")
    with tempfile.TemporaryDirectory(prefix="hpsearch-check-") as temporary:
        result, printed = Path(temporary, "result"), Path(temporary, "output")
        environment = _environment(objective, Path(temporary), seed)
        argv = [sys.executable, "-m", "hpsearch.scripts.objectives.process", objective.function, str(result)]
        with printed.open("wb") as output:
            how = _run(argv, folder, environment, output, seconds)
        if how is None and result.exists():
            how = json.loads(result.read_text())["error"]
        elif how is None:
            how = f"importing it ended the process{_last_line(printed)}"
    if how is not None:
        raise InputError(
            f"objective.function {objective.function}: {how}",
            hint="its module is looked for in the folder in which hpsearch is started, or in objective.cwd",
        )


def _run(argv: list[str], folder: Path, environment: dict[str, str], output: IO[bytes], seconds: float) -> str | None:
    """Run a process and end all that it leaves in its session; return what went wrong, None if it ended by itself."""
    process = subprocess.Popen(
        argv,
        cwd=folder,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        return f"importing it takes longer than {seconds:g} seconds"
    finally:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    return None


def _environment(objective: ObjectiveSettings, temporary: Path, seed: int) -> dict[str, str]:
    paths = {"folder": str(temporary), "parameters": str(temporary / "parameters.json"), "python": sys.executable}
    values: dict[str, Value] = {"seed": seed, "trial": 0, "attempt": 1, **paths}
    return script_environment(
        os.environ,
        pass_environment=objective.pass_environment,
        own={},
        settings=render_environment(dict(objective.env), values),
        cpus=objective.cpus,
        devices=(),
        temporary=temporary,
    )


def _last_line(printed: Path) -> str:
    lines = printed.read_bytes()[-_TAIL_BYTES:].decode(errors="replace").split("\n")
    last = next((line.strip() for line in reversed(lines) if line.strip()), "")
    return f"; its last line: {last}" if last else ""
