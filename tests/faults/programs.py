"""An arena whose study runs a program, a script or an objective, that reports at a word, and what is left of it."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Row

from hpsearch.store.connection.database import open_database
from hpsearch.study.study_file import parse_definition
from hpsearch.worker.programs.preparation import prepare_program
from tests.faults.arena import Arena
from tests.faults.driver import Faults
from tests.faults.processes import HpsearchProcess, Screen, wait_until

KEEPER = b"hpsearch.scripts.keeper.service"  # in the command line of a keeper and its guardians

# Reports the steps 1, 2, ... and tells of each in `told`; from the second step on it waits while there is a `gate`.
# The file `begun` in its folder survives an attempt: what an earlier one has begun, this one goes on with.
STEPS = """
step=1
[ -e "$HPSEARCH_FOLDER/begun" ] && step=$(cat "$HPSEARCH_FOLDER/begun")
while [ $step -le ${2:-3} ]; do
    while [ $step -gt 1 ] && [ -e gate ]; do sleep 0.02; done
    echo "{\\"step\\": $step, \\"value\\": 0.$((9 - step))$1$HPSEARCH_ATTEMPT}" > "$HPSEARCH_REPORTS"
    echo "$HPSEARCH_TRIAL $HPSEARCH_ATTEMPT $step" >> told
    step=$((step + 1))
    echo $step > "$HPSEARCH_FOLDER/begun"
done
echo done
"""


# The same steps as an objective.
OBJECTIVE_STEPS = """
import os, signal, subprocess, sys, time
from pathlib import Path


def objective(trial):
    x, attempt = trial.suggest_float("x", 0, 0.05), os.environ["HPSEARCH_ATTEMPT"]
    begun = Path(os.environ["HPSEARCH_FOLDER"], "begun")
    PREFIX
    for step in range(int(begun.read_text()) if begun.exists() else 1, 4):
        while step > 1 and Path("gate").exists():
            time.sleep(0.02)
        value = (9 - step) / 10 + x
        trial.report(value, step - 1)
        with open("told", "a") as told:
            told.write(f"{trial.number} {attempt} {step}\\n")
        begun.write_text(str(step + 1))
    return value
"""

BROOD = """
trap '' TERM HUP
setsid sleep 301 &
nohup sleep 302 >/dev/null 2>&1 &
(setsid sh -c '(trap "" TERM; sleep 303; sleep 304) & exit 0' &)
(sleep 305 & exit 0)
"""
FLOOD = '(echo begun > flooded; trap "" TERM; yes | tr -d "\\n")'

# What some programs do before their first step, as a script and as an objective.
PREFIXES = {
    "": ("", "pass"),
    # An objective that does not go on where an earlier attempt was killed.
    "forgetful": ("", "begun.unlink(missing_ok=True)"),
    # Ends with 0 when it gets SIGTERM.
    "polite": ("trap 'echo saved; exit 0' TERM\n", "signal.signal(signal.SIGTERM, lambda *_: os._exit(0))"),
    # Ignores SIGTERM.
    "deaf": ("trap '' TERM\n", "signal.signal(signal.SIGTERM, signal.SIG_IGN)"),
    # Fails at point 1.
    "poison": (
        '[ "$1" = 11 ] && { echo first; echo "no such layer: 11" >&2; exit 7; }\n',
        "assert 'point-000001' not in os.environ['HPSEARCH_FOLDER'], 'no such layer: 11'",
    ),
    # Leaves descendants behind that want to stay: in sessions of their own, deaf to signals, orphaned twice.
    "brood": (BROOD, f"subprocess.Popen(['sh', '-c', {BROOD!r}])"),
    # Prints without end, in no lines at all, at point 0; the other one's reports must come through.
    "flood": (
        '[ "$1" = 10 ] && { ' + FLOOD + " & }\n",
        f"'point-000000' in str(begun) and subprocess.Popen({FLOOD!r}, shell=True)",
    ),
    # Always fails.
    "broken": ('echo "$1: ModuleNotFoundError: torch" >&2; exit 1\n', "raise ModuleNotFoundError('torch')"),
}
# A test of both kinds; that of objectives is left to `make test-slow`, because the worker's loop is the same.
both = pytest.mark.parametrize(
    "programs", ["command", pytest.param("objective", marks=pytest.mark.slow)], indirect=True
)


@dataclass(frozen=True)
class Told:
    """One step that a script has taken."""

    trial: int
    attempt: int
    step: int


class ProgramArena(Arena):
    """A server with one study of a program on it, whose scripts and workers are started in the arena's folder.

    Args:
        kind: "command" or "objective".
    """

    def __init__(self, *args: Any, kind: str = "command", **options: Any) -> None:
        super().__init__(*args, **options)
        self.kind = kind
        self._mark = f"ARENA={uuid.uuid4().hex}"
        self.environment["ARENA"] = self._mark.removeprefix("ARENA=")

    def create_programs(
        self,
        num_points: int = 4,
        script: str = STEPS,
        *,
        before: str = "",
        run: Sequence[str] | None = None,
        sections: Mapping[str, Mapping[str, Any]] | None = None,
        **command: Any,
    ) -> None:
        """Create a study of so many points: the script is called with numbers of two digits, from 10 on.

        Args:
            script: of a command; an objective takes the same steps as the usual one.
            before: one of `PREFIXES`.
        """
        self.write_program(before, script)
        document = self.program_document(num_points, run=run, sections=sections, **command)
        database = open_database(self.storage_url)
        try:
            prepare_program(database, parse_definition(document, source="test"), self.folder)
        finally:
            database.close()
        self.num_points = num_points

    def write_program(self, before: str = "", script: str = STEPS) -> None:
        in_shell, in_python = PREFIXES[before]
        if self.kind == "command":
            (self.folder / "script.sh").write_text(in_shell + script)
        else:
            (self.folder / "mine.py").write_text(OBJECTIVE_STEPS.replace("PREFIX", in_python))

    def study_file(self, num_points: int, *, before: str = "") -> Path:
        """Write the program and a study file for `hpsearch run`, and return the path of the file."""
        self.write_program(before)
        self.num_points = num_points
        path, lines = self.folder / "study.toml", [f'name = "{self.study_name}"']
        for section, content in self.program_document(num_points).items():
            if isinstance(content, dict):
                lines += [f"[{section}]", *(f"{key} = {json.dumps(value)}" for key, value in content.items())]
        path.write_text("\n".join(lines))
        return path

    def program_document(
        self,
        num_points: int,
        *,
        run: Sequence[str] | None = None,
        sections: Mapping[str, Mapping[str, Any]] | None = None,
        **command: Any,
    ) -> dict[str, Any]:
        if self.kind == "command":
            program = {"command": {"run": list(run or ["sh", "script.sh", "{number}"]), "gpus": 0, **command}}
            search: dict[str, Any] = {"number": list(range(10, 10 + num_points))}
        else:
            program = {"objective": {"function": "mine:objective", "gpus": 0, **command}}
            search = {"strategy": "random", "num_points": num_points}
        return {
            "name": self.study_name,
            **program,
            "search": search,
            "stopping": {"rule": "none"},
            **(sections or {}),
        }

    def worker(self, *, faults: Faults | None = None, lanes: int = 1, **environment: str) -> HpsearchProcess:
        arguments = ("worker", self.study_name, "--commands", "--lanes", str(lanes))
        return self.start(*arguments, faults=faults, **environment)

    def start(
        self, *arguments: str, faults: Faults | None = None, screen: Screen | None = None, **environment: str
    ) -> HpsearchProcess:
        """As the arena's, without a log of epochs."""
        return super().start(*arguments, faults=faults, screen=screen, **environment)

    def hold(self) -> None:
        """From now on, scripts wait before their second step, until `go`."""
        (self.folder / "gate").touch()

    def wait_for_steps(self, number: int = 1) -> None:
        """Wait until so many steps are recorded."""
        wait_until(lambda: self.num_recorded() >= number, f"{number} steps are recorded", told=self.told)

    def num_recorded(self) -> int:
        (row,) = self.ask("SELECT count(*) AS number FROM hpsearch_epochs")
        return int(row.number)

    @property
    def steps(self) -> list[Told]:
        """The steps that scripts have taken, in order."""
        path = self.folder / "told"
        lines = path.read_text().splitlines() if path.exists() else []
        return [Told(*map(int, line.split())) for line in lines]

    def values(self, trial_id: int) -> dict[int, float]:
        """Step -> reported value, as recorded of a trial."""
        rows: Sequence[Row[Any]] = self.ask(
            "SELECT step, intermediate_value AS value FROM trial_intermediate_values WHERE trial_id = :trial",
            trial=trial_id,
        )
        return {row.step: row.value for row in rows}

    def scripts(self) -> list[int]:
        """The processes of scripts: those with the arena's mark in their environment, but for hpsearch's own."""
        own = {process.pid for process in self.processes}
        return [pid for pid in _processes() if pid not in own and self._is_script(pid)]

    def strangers(self) -> list[int]:
        """All processes that belong to the arena, but for those that the test has started.

        Keepers, guardians and scripts.
        """
        own = {process.pid for process in self.processes}
        return [pid for pid in _processes() if pid not in own and (self._is_script(pid) or self._is_here(pid))]

    def keeper_of(self, worker: HpsearchProcess) -> int | None:
        """The keeper of a worker, if it has one now."""
        found = [pid for pid in _processes() if KEEPER in command_line(pid) and parent_of(pid) == worker.pid]
        return found[0] if found else None

    def scripts_of(self, worker: HpsearchProcess) -> list[int]:
        """The main processes of a worker's scripts."""
        keeper = self.keeper_of(worker)
        guardians = [] if keeper is None else children_of(keeper)
        scripts = [pid for guardian in guardians for pid in children_of(guardian)]
        mark = b"script.sh" if self.kind == "command" else b"mine:objective"
        return [pid for pid in scripts if mark in command_line(pid)]

    def wait_for_no_strangers(self, seconds: float = 60.0) -> None:
        def none_is_left() -> bool:
            return not self.strangers()

        wait_until(none_is_left, "processes of scripts or keepers are left", seconds, told=self._describe)

    def judge(self, **options: Any) -> None:
        """The promise, and that no process is left."""
        super().judge(**{"may_have_gaps": True, **options})
        self.wait_for_no_strangers()

    def _describe(self) -> str:
        found = self.strangers()
        return "\n".join([*(f"{pid}: {_read(pid, 'cmdline')!r}" for pid in found), self.told()])

    def _is_script(self, pid: int) -> bool:
        return self._mark.encode() in _read(pid, "environ").split(b"\0")

    def _is_here(self, pid: int) -> bool:
        try:
            return Path(os.readlink(f"/proc/{pid}/cwd")).is_relative_to(self.folder)  # noqa: PTH115
        except OSError:
            return False


def children_of(pid: int) -> list[int]:
    """The children of a process of one thread."""
    return [int(child) for child in _read(pid, f"task/{pid}/children").split()]


def parent_of(pid: int) -> int:
    """The parent of a process; 0 if it is gone."""
    fields = _read(pid, "stat").rpartition(b")")[2].split()
    return int(fields[1]) if fields else 0


def command_line(pid: int) -> bytes:
    """The arguments of a process; empty if it is gone."""
    return _read(pid, "cmdline")


def send(pid: int, number: signal.Signals) -> None:
    """Send a signal to a process that may be gone."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


def _processes() -> list[int]:
    return [int(name) for name in os.listdir("/proc") if name.isdecimal() and int(name) != os.getpid()]  # noqa: PTH208


def _read(pid: int, name: str) -> bytes:
    try:
        return Path(f"/proc/{pid}/{name}").read_bytes()
    except OSError:
        return b""
