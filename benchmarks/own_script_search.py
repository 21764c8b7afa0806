"""The same grid over the same script by hpsearch, by plain Optuna and by Ray Tune, also with a worker that is killed.

    python -m benchmarks.own_script_search            # 16 points of a second, 3 rounds
    python -m benchmarks.own_script_search --tiny     # trials of 0.2 seconds, 1 round

The script waits, so that the cores of this machine hardly matter; two trials run at once. What a person writes is in
benchmarks/own_script/. Each run starts with empty folders and ends with the process (for Optuna: with both of its
processes). In a second run, a worker is killed with SIGKILL in the middle: for hpsearch its worker (`run` starts
another), for Optuna one of its processes, for Ray the process of a trial. Points without a result at the end are lost;
starts of the script above the number of points were made twice.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import optuna
import psutil
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend

from benchmarks.logical_lines import count_lines
from benchmarks.measurement import (
    RESULTS,
    Measurement,
    interleave,
    machine,
    print_table,
    run_script,
    say,
    write_result,
)
from hpsearch.errors import HpsearchError

FILES = Path(__file__).with_name("own_script")
NUM_POINTS = 16
AT_ONCE = 2
TITLE = "The same search over the same script"
LIMIT_SECONDS = 600.0
_REPOSITORY = Path(__file__).parents[1]


@dataclass(frozen=True, kw_only=True)
class Run:
    """One search from its start to its end.

    Args:
        counted: points with a result.
        starts: of the script.
    """

    seconds: float
    counted: int
    starts: int


@dataclass(frozen=True, kw_only=True)
class Contender:
    """One way to search.

    Args:
        file: what a person writes.
        commands: processes to start at once.
        count: the number of points with a result, from the folder of the search and the last output.
        is_worker: whether a process of the search is one that a person would call a worker.
    """

    name: str
    file: str
    commands: Sequence[Sequence[str]]
    count: Callable[[Path, str], int]
    is_worker: Callable[[psutil.Process], bool]

    @property
    def num_lines(self) -> int:
        """Lines that hold code or a setting."""
        text = (FILES / self.file).read_text(encoding="utf-8")
        if self.file.endswith(".py"):
            return count_lines(text)
        return sum(bool(line.strip()) and not line.lstrip().startswith("#") for line in text.splitlines())

    def run(self, trial_seconds: float, *, kills: bool) -> Run:
        """Search once.

        Raises:
            HpsearchError: it did not end, or failed without a kill.
        """
        with tempfile.TemporaryDirectory(prefix="own-script-") as name:
            folder = Path(name)
            folder.chmod(0o755)  # PostgreSQL's user enters it, too
            for file in FILES.iterdir():
                if file.is_file():
                    shutil.copy(file, folder)
            starts = folder / "starts"
            variables = {
                **{name: text for name, text in os.environ.items() if not name.startswith("HPSEARCH_")},
                "HPSEARCH_HOME": str(folder / "home"),
                "PYTHONPATH": str(_REPOSITORY),
                "RAY_USAGE_STATS_ENABLED": "0",
                "RAY_TMPDIR": str(folder / "ray"),
                "STARTS": str(starts),
                "SECONDS_OF_A_TRIAL": str(trial_seconds),
            }
            begun = time.perf_counter()
            with contextlib.ExitStack() as stack:
                processes = [stack.enter_context(_started(command, folder, variables)) for command in self.commands]
                if kills:
                    self._kill_in_the_middle(processes, starts)
                output = [process.communicate(timeout=LIMIT_SECONDS) for process in processes]
            seconds = time.perf_counter() - begun
            failed = [process.returncode for process in processes if process.returncode]
            if failed and not kills:
                raise HpsearchError(f"{self.name} ended with {failed[0]}: {output[0][1][-2000:]}")
            counted = self.count(folder, output[0][0])
            return Run(seconds=seconds, counted=counted, starts=len(starts.read_text().splitlines()))

    def _kill_in_the_middle(self, processes: Sequence[subprocess.Popen[str]], starts: Path) -> None:
        deadline = time.monotonic() + LIMIT_SECONDS
        while not starts.exists() or len(starts.read_text().splitlines()) < NUM_POINTS // 2:
            if time.monotonic() > deadline:
                raise HpsearchError(f"{self.name} has not come to its middle")
            time.sleep(0.05)
        roots = [psutil.Process(process.pid) for process in processes]
        everything = [*roots, *(child for root in roots for child in root.children(recursive=True))]
        for process in everything:
            with contextlib.suppress(psutil.Error):
                if self.is_worker(process):
                    process.send_signal(signal.SIGKILL)
                    return
        raise HpsearchError(f"{self.name} has no worker to kill")


@contextlib.contextmanager
def _started(command: Sequence[str], folder: Path, variables: dict[str, str]):  # type: ignore[no-untyped-def]
    with subprocess.Popen(
        command, cwd=folder, env=variables, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            yield process
        finally:
            if process.poll() is None:
                process.terminate()


def _hpsearch_points(folder: Path, output: str) -> int:
    return int(json.loads(output)["points"]["complete"])


def _optuna_points(folder: Path, output: str) -> int:
    storage = JournalStorage(JournalFileBackend(str(folder / "own-script.log")))
    study = optuna.load_study(study_name="own-script", storage=storage)
    complete = [trial for trial in study.trials if trial.state is optuna.trial.TrialState.COMPLETE]
    return len({tuple(sorted(trial.params.items())) for trial in complete})


def _ray_points(folder: Path, output: str) -> int:
    found = set()
    for file in folder.glob("ray-results/*/*/result.json"):
        for line in file.read_text().splitlines():
            result = json.loads(line)
            if "loss" in result:
                found.add((result["config"]["lr"], result["config"]["width"]))
    return len(found)


def _runs_script(process: psutil.Process) -> bool:
    """Whether this process has started the script directly."""
    return any("train.py" in child.cmdline() for child in process.children())


CONTENDERS = (
    Contender(
        name="hpsearch",
        file="search.toml",
        commands=[[sys.executable, "-m", "hpsearch", "run", "search.toml", "--json", "--lanes", str(AT_ONCE)]],
        count=_hpsearch_points,
        is_worker=lambda process: re.search(r"\bworker own-script\b", " ".join(process.cmdline())) is not None,
    ),
    Contender(
        name="Optuna",
        file="optuna_search.py",
        commands=[[sys.executable, "optuna_search.py"]] * AT_ONCE,
        count=_optuna_points,
        is_worker=_runs_script,
    ),
    Contender(
        name="Ray Tune",
        file="ray_search.py",
        commands=[[sys.executable, "ray_search.py"]],
        count=_ray_points,
        is_worker=_runs_script,
    ),
)


def main(arguments: Sequence[str] | None = None) -> None:
    options = _options(arguments)
    described = machine()
    rounds, seconds = (1, 0.2) if options.tiny else (options.rounds, 1.0)
    runs: dict[str, list[Run]] = {}
    named = options.contenders.split(",")
    contenders = [each for each in CONTENDERS if each.name in named and (each.name != "Ray Tune" or _has_ray())]

    def searcher(contender: Contender, *, kills: bool) -> Callable[[], float]:
        key = f"{contender.name}, a worker killed" if kills else contender.name

        def search() -> float:
            run = contender.run(seconds, kills=kills)
            runs.setdefault(key, []).append(run)
            say(f"{key}: {run.seconds:.1f} s, {run.counted} points of {NUM_POINTS}, {run.starts} starts")
            return run.seconds

        return search

    ways = {f"{each.name} {kills}": searcher(each, kills=kills) for kills in (False, True) for each in contenders}
    interleave(ways, rounds, warm_ups=0, on_round=lambda number: say(f"round {number} of {rounds} is done"))
    lines = {each.name: each.num_lines for each in contenders}
    _print(runs, lines)
    output = options.output or (None if options.tiny else RESULTS / "own_script_search.json")
    if output is not None:
        write_result(
            output,
            title=TITLE,
            machine=described,
            settings={"points": NUM_POINTS, "at_once": AT_ONCE, "trial_seconds": seconds, "rounds": rounds},
            measurements=[
                Measurement(name=name, unit="s", values=tuple(run.seconds for run in its)) for name, its in runs.items()
            ],
            details={"lines": lines, "runs": {name: [asdict(run) for run in its] for name, its in runs.items()}},
        )


def _print(runs: dict[str, list[Run]], lines: dict[str, int]) -> None:
    rows = []
    for name, its in runs.items():
        seconds = sorted(run.seconds for run in its)
        lost = [NUM_POINTS - run.counted for run in its]
        again = [run.starts - NUM_POINTS for run in its]
        spread = f"{seconds[len(seconds) // 2]:.1f} ({seconds[0]:.1f} to {seconds[-1]:.1f})"
        rows.append([name, str(lines.get(name, "")), spread, _listed(lost), _listed(again), str(len(its))])
    print_table(TITLE, ["", "lines", "seconds", "points lost", "starts above 16", "n"], rows)


def _listed(numbers: Sequence[int]) -> str:
    return ", ".join(map(str, numbers))


def _has_ray() -> bool:
    if importlib.util.find_spec("ray") is None:
        say("*** Ray Tune is not installed and therefore left out: pip install 'hpsearch[bench]' ***")
        return False
    return True


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.own_script_search", description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--contenders", default=",".join(each.name for each in CONTENDERS))
    parser.add_argument("--tiny", action="store_true", help="does it still run?")
    parser.add_argument("--output", type=Path)
    return parser.parse_args(arguments)


if __name__ == "__main__":
    run_script(main)
