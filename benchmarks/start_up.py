"""How long a command takes before it does its work: processor time, and the time from Enter to the first epoch.

    python -m benchmarks.start_up
    python -m benchmarks.start_up --tiny

Each command is a process of its own, as a shell starts it, and all commands take turns. Processor time is that of the
process and its children until it ends; it depends little on other work on the machine, but not nothing: run this on an
idle one. `status` and the joining worker find a running server. The wall time of `run` ends when the first trial, of
one epoch, is recorded: the epoch itself takes some milliseconds.
"""

from __future__ import annotations

import argparse
import os
import re
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from datetime import UTC
from pathlib import Path
from typing import Any

from sqlalchemy import text

from benchmarks.measurement import (
    RESULTS,
    Measurement,
    interleave,
    machine,
    print_measurements,
    run_script,
    say,
    write_result,
)
from benchmarks.scratch import scratch_folder, scratch_postgres
from hpsearch import environment
from hpsearch.store.connection.database import open_database, open_storage

TITLE = "Start-up of the commands"
HPSEARCH = [sys.executable, "-m", "hpsearch"]
STUDY = """
name = "{name}"
[data]
dataset = "digits"
train_samples = 200
[model]
family = "logistic"
[training]
max_epochs = 1
batch_size = 100
[search]
seed = [1, 2, 3, 4]
"""


class Commands:
    """The commands, run in a scratch folder against a scratch server.

    Args:
        url: of the server that `status` and the worker find.
    """

    def __init__(self, folder: Path, url: str) -> None:
        self._folder = folder
        self._url = url
        self._num_studies = 0
        self._home = folder / "home"
        self.study("trained")
        self._seconds("run", str(folder / "trained.toml"), url=url)

    def study(self, name: str) -> Path:
        """A study file for a new study of four trials of one epoch each."""
        path = self._folder / f"{name}.toml"
        path.write_text(STUDY.format(name=name))
        return path

    def usage_error(self) -> float:
        return self._seconds("run", "--no-such-option", code=2)

    def input_error(self) -> float:
        return self._seconds("run", str(self.study("bad")), "--set", "model.famly=mlp", code=2)

    def help(self) -> float:
        return self._seconds("--help")

    def command_help(self) -> float:
        return self._seconds("run", "--help")

    def status(self) -> float:
        return self._seconds("status", "trained", url=self._url)

    def worker_joins(self) -> float:
        """From the start of a worker's process to its line in the log that it joins; processor seconds."""
        name = self._next_name()
        self._seconds("create", str(self.study(name)), url=self._url)
        worker = subprocess.Popen(
            [*HPSEARCH, "worker", name, "--device", "cpu", "--lanes", "4"],
            env=self._environment(self._url),
            stderr=subprocess.PIPE,
            text=True,
        )
        assert worker.stderr is not None
        for line in worker.stderr:
            if " joins study " in line:
                times = Path(f"/proc/{worker.pid}/stat").read_text().rpartition(")")[2].split()
                ticks = int(times[11]) + int(times[12])  # utime and stime (proc(5))
                worker.communicate()
                return ticks / os.sysconf("SC_CLK_TCK")
        raise AssertionError("the worker has not joined")

    def first_epoch(self, *, is_new_home: bool) -> float:
        """Wall seconds from the start of `run` to the end of its first trial, on the embedded server."""
        name = self._next_name()
        home = self._folder / name if is_new_home else self._home
        options = ["--device", "cpu", "--lanes", "4", "--workers", "1"]
        started = time.time()
        self._seconds("run", str(self.study(name)), *options, home=home)
        os.environ[environment.HOME] = str(home)
        with open_storage(None) as database:
            ended = database.transaction(lambda connection: connection.execute(_FIRST_END, {"name": name}).scalar_one())
        return float(ended.replace(tzinfo=UTC).timestamp()) - started

    def _next_name(self) -> str:
        self._num_studies += 1
        return f"study-{self._num_studies}"

    def _environment(self, url: str | None, home: Path | None = None) -> dict[str, str]:
        own = {environment.HOME: str(home or self._home), environment.STORAGE: url or ""}
        return {**os.environ, **own}

    def _seconds(self, *arguments: str, code: int = 0, url: str | None = None, home: Path | None = None) -> float:
        """Processor seconds of a command and its children."""
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        done = subprocess.run([*HPSEARCH, *arguments], env=self._environment(url, home), capture_output=True, text=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        assert done.returncode == code, done.stderr
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


_FIRST_END = text("""
    SELECT min(datetime_complete) FROM trials JOIN studies USING (study_id) WHERE study_name = :name
""")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--tiny", action="store_true", help="one round, no result written: does it still run?")
    parser.add_argument("--output", type=Path, default=None)
    arguments = parser.parse_args()
    rounds = 1 if arguments.tiny else arguments.rounds
    described = machine()
    with ExitStack() as stack:
        folder = stack.enter_context(scratch_folder())
        server = stack.enter_context(scratch_postgres(folder / "server"))
        open_database(server.url).close()
        commands = Commands(folder, server.url)
        goals: dict[str, tuple[str, float, Callable[[], float]]] = {
            "usage error": ("s of processor", 0.5, commands.usage_error),
            "input error": ("s of processor", 0.5, commands.input_error),
            "hpsearch --help": ("s of processor", 0.25, commands.help),
            "hpsearch run --help": ("s of processor", 0.5, commands.command_help),
            "status, on a running server": ("s of processor", 0.8, commands.status),
            "worker, until it joins": ("s of processor", 3.0, commands.worker_joins),
            "run, until the first epoch, known home": ("s", 3.5, lambda: commands.first_epoch(is_new_home=False)),
            "run, until the first epoch, new home": ("s", 6.0, lambda: commands.first_epoch(is_new_home=True)),
        }
        values = interleave(
            {name: call for name, (_, _, call) in goals.items()},
            rounds,
            warm_ups=0 if arguments.tiny else 1,
            on_round=lambda number: say(f"round {number} of {rounds}"),
        )
    measurements = [
        Measurement(name=f"{name} (at most {goal:g})", unit=unit, values=tuple(values[name]))
        for name, (unit, goal, _) in goals.items()
    ]
    print_measurements(TITLE, measurements)
    output = arguments.output or (None if arguments.tiny else RESULTS / "start_up.json")
    if output is not None:
        settings: dict[str, Any] = {"rounds": rounds, "study": re.sub(r"\s+", " ", STUDY).strip()}
        write_result(output, title=TITLE, machine=described, settings=settings, measurements=measurements)


if __name__ == "__main__":
    run_script(main)
