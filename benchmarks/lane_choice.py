"""`--lanes auto` against fixed numbers of lanes, on ten studies: what does the choice cost, and is it a good one?

    python -m benchmarks.lane_choice                       # all studies of benchmarks/lane_studies, 3 rounds
    python -m benchmarks.lane_choice --beside              # the same beside a process that takes one core
    python -m benchmarks.lane_choice --studies 03,08 --rounds 1
    python -m benchmarks.lane_choice --previous ../old     # also auto of another checkout, with its own .venv

Each run is `hpsearch run STUDY.toml --lanes N`, from the start of the process to its end, in a home whose PostgreSQL
exists; another checkout has a home of its own. A first run with 8 lanes is not counted: it fills the caches. `auto`
knows nothing when it begins: what earlier runs have remembered is removed before. `auto again` is a second study in the
same home. A run that takes LIMIT_RATIO times as long as the fastest of its study is ended, and counts with that time
(the previous auto: four times as long). What took DROP_RATIO times as long as the best fixed number is not run in the
next rounds, except `auto`: a fixed number will not be the best, and the previous auto has lost.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.measurement import (
    RESULTS,
    Measurement,
    machine,
    print_measurements,
    ratio,
    run_script,
    say,
    write_result,
)
from benchmarks.scratch import scratch_folder
from benchmarks.whole_study import environment_of, run_program
from hpsearch.errors import HpsearchError, InputError

STUDIES = Path(__file__).with_name("lane_studies")
FIXED = (1, 2, 4, 8, 16, 32)
AUTO, AGAIN, PREVIOUS = "auto", "auto again", "previous auto"
WARM_UP_LANES = 8
LIMIT_RATIO = 2.0
LIMIT_RATIO_OF_PREVIOUS = 4.0
DROP_RATIO = 1.4
FIRST_LIMIT_SECONDS = 900.0
TITLE = "--lanes auto against fixed numbers of lanes"


@dataclass(kw_only=True)
class Study:
    """One study file, and the fastest run of it so far.

    Args:
        previous: another checkout, whose `hpsearch run` is the contender `previous auto`.
    """

    path: Path
    home: Path
    previous: Path | None = None
    fixed: Sequence[int] = FIXED
    overrides: Sequence[str] = ()
    epochs: dict[str, int] = field(default_factory=dict)  # trial-epochs that each contender trained
    _fastest: float = FIRST_LIMIT_SECONDS / LIMIT_RATIO
    _num_runs: int = 0

    @property
    def name(self) -> str:
        return self.path.stem

    def measure(self, rounds: int) -> dict[str, list[float]]:
        """Run the contenders in turns, from one place further each round; returns the seconds of each, by rounds.

        A contender that is dropped has fewer values than the others.
        """
        # Not the slowest first: the limit of the others comes from the fastest.
        names = [AUTO, AGAIN, *(str(number) for number in sorted(self.fixed, reverse=True))]
        if self.previous is not None:
            names.append(PREVIOUS)
        self.run(str(WARM_UP_LANES))
        seconds: dict[str, list[float]] = {name: [] for name in names}
        for index in range(rounds):
            # `auto again` stays behind `auto`: it knows what that one has learned.
            for name in [*names[2 + index :], *names[: 2 + index]]:
                seconds[name].append(self.run(name))
            best = min(min(values) for name, values in seconds.items() if name.isdecimal())
            names = [name for name in names if name in (AUTO, AGAIN) or min(seconds[name]) <= DROP_RATIO * best]
        return seconds

    def run(self, contender: str) -> float:
        """Run the study once; returns seconds from the process's start to its end, at most the limit."""
        self._num_runs += 1
        is_auto = contender in (AUTO, AGAIN, PREVIOUS)
        python, home = sys.executable, self.home
        if contender == PREVIOUS:
            assert self.previous is not None
            python, home = python_of(self.previous), _home_of_previous(self.home)
        if contender in (AUTO, PREVIOUS):
            shutil.rmtree(home / "lanes", ignore_errors=True)
        words = ["--lanes", "auto" if is_auto else contender]
        for override in (f"name={self.name}-{self._num_runs}", *self.overrides):
            words += ["--set", override]
        command = [python, "-P", "-m", "hpsearch", "run", str(self.path), "--json", "--device", "cpu", *words]
        limit = (LIMIT_RATIO_OF_PREVIOUS if contender == PREVIOUS else LIMIT_RATIO) * self._fastest
        started = time.perf_counter()
        try:
            summary = json.loads(run_program(contender, command, environment_of(home), limit))
        except HpsearchError as error:
            if "did not end within" not in str(error):
                raise
            say(f"{self.name}, {contender}: more than {limit:.1f} s")
            return limit
        seconds = time.perf_counter() - started
        self._fastest = min(self._fastest, seconds)
        self.epochs[contender] = summary["epochs"]
        say(f"{self.name}, {contender}: {seconds:.1f} s, {summary['epochs']} trial-epochs")
        return seconds


def main(arguments: Sequence[str] | None = None) -> None:
    options = _options(arguments)
    described = machine()
    measurements: list[Measurement] = []
    epochs: dict[str, dict[str, int]] = {}
    fixed, overrides = ((1, 8), ("training.max_epochs=1",)) if options.tiny else (options.fixed, ())
    rounds = 1 if options.tiny else options.rounds
    name = "lane_choice_beside.json" if options.beside else "lane_choice.json"
    output = options.output or (None if options.tiny else RESULTS / name)
    with _beside(is_wanted=options.beside):
        for path in _chosen("10" if options.tiny else options.studies):
            with scratch_folder() as home:
                create_database(home, sys.executable, path)
                if options.previous is not None:
                    create_database(_home_of_previous(home), python_of(options.previous), path)
                study = Study(path=path, home=home, previous=options.previous, fixed=fixed, overrides=overrides)
                seconds = study.measure(rounds)
            found = summarise(study.name, seconds, study.epochs)
            print_measurements(study.name, found)
            measurements += found
            epochs[study.name] = study.epochs
            if output is not None:  # after each study: the whole takes an hour or two
                write_result(
                    output,
                    title=TITLE,
                    machine=described,
                    settings={"rounds": rounds, "beside a process that takes one core": options.beside},
                    measurements=measurements,
                    details={"trial-epochs": epochs},
                )


def summarise(study: str, seconds: dict[str, list[float]], epochs: dict[str, int]) -> list[Measurement]:
    """Seconds of each contender, trial-epochs per second of `auto`, and `auto` over the best fixed number."""
    measured = {name: Measurement(name=f"{study}, {name}", unit="s", values=tuple(v)) for name, v in seconds.items()}
    complete = [name for name in seconds if name.isdecimal() and len(seconds[name]) == len(seconds[AUTO])]
    best = min(complete, key=lambda name: measured[name].median)
    ratios = [ratio(f"{study}, {name} / best fixed ({best})", seconds[name], seconds[best]) for name in (AUTO, AGAIN)]
    if PREVIOUS in seconds:
        ratios.append(
            ratio(f"{study}, {PREVIOUS} / {AUTO}", seconds[PREVIOUS], seconds[AUTO][: len(seconds[PREVIOUS])])
        )
    rate = tuple(epochs[AUTO] / each for each in seconds[AUTO])
    return [*measured.values(), Measurement(name=f"{study}, rate of auto", unit="trial-epochs/s", values=rate), *ratios]


def python_of(checkout: Path) -> str:
    return str(checkout / ".venv/bin/python")


def _home_of_previous(home: Path) -> Path:
    """Where the other checkout has its PostgreSQL: its tables may be of another version."""
    return home / "previous"


def create_database(home: Path, python: str, study: Path) -> None:
    """Run the smallest study on the data of this one, which creates the home's PostgreSQL and reads the images."""
    dataset = tomllib.loads(study.read_text())["data"]["dataset"]
    smallest = ["--set", f"data.dataset={dataset}", "--set", "training.max_epochs=1", "--lanes", "1", "--device", "cpu"]
    command = [python, "-P", "-m", "hpsearch", "run", str(STUDIES / "02-one-point.toml"), "--json", *smallest]
    run_program("the smallest study", command, environment_of(home))


@contextmanager
def _beside(*, is_wanted: bool) -> Iterator[None]:
    """A process that takes one core, meanwhile."""
    if not is_wanted:
        yield
        return
    # It ends with this process, also if that one is killed: else it would disturb all that is measured afterwards.
    busy = f"import os\nwhile os.getppid() == {os.getpid()}:\n    for _ in range(1_000_000): pass"
    with subprocess.Popen([sys.executable, "-c", busy]) as other:
        try:
            yield
        finally:
            other.kill()


def _chosen(names: str | None) -> list[Path]:
    """The study files whose names begin with one of these.

    Raises:
        InputError: one of them names no study.
    """
    files = sorted(STUDIES.glob("*.toml"))
    if names is None:
        return files
    chosen = {name: [file for file in files if file.stem.startswith(name)] for name in names.split(",")}
    for name, its in chosen.items():
        if not its:
            raise InputError(
                f"--studies: no study begins with {name!r}", hint=f"they are {', '.join(f.stem for f in files)}"
            )
    return [file for its in chosen.values() for file in its]


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--studies", metavar="NAME,NAME", help="how the names of their files begin")
    parser.add_argument("--fixed", type=int, nargs="+", metavar="N", default=FIXED, help="the fixed numbers of lanes")
    parser.add_argument("--beside", action="store_true", help="run a process that takes one core meanwhile")
    parser.add_argument("--previous", type=Path, metavar="FOLDER", help="a checkout with a .venv to compare auto with")
    parser.add_argument("--tiny", action="store_true", help="one study on digits, one epoch; writes no result")
    parser.add_argument("--output", type=Path, metavar="FILE.json", help="default: benchmarks/results/lane_choice.json")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    run_script(main)
