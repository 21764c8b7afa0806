"""A study in a database that holds many others: is it as fast as in a new one?

    python -m benchmarks.filled_database                       # 2,000 points of one epoch, after 10 such studies
    python -m benchmarks.filled_database --previous ../old     # also another checkout, with its own .venv
    python -m benchmarks.filled_database --tiny

Each run is `hpsearch run`, from the start of the process to its end, with 32 lanes on the embedded PostgreSQL: in a
home whose database holds one study of one point, and in a copy of one that holds the other studies. The statistics of
PostgreSQL are those that such a database has: its server lives as long as a run, and seldom long enough to analyze a
table.
"""

from __future__ import annotations

import argparse
import itertools
import json
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks.lane_choice import STUDIES, create_database, python_of
from benchmarks.measurement import (
    RESULTS,
    Measurement,
    interleave,
    machine,
    print_measurements,
    ratio,
    run_script,
    say,
    write_result,
)
from benchmarks.scratch import scratch_folder
from benchmarks.whole_study import environment_of, run_program
from hpsearch.errors import HpsearchError
from hpsearch.wording import counted

STUDY = STUDIES / "08-one-epoch.toml"
NEW, FILLED, PREVIOUS = "new", "filled", "filled, previous"
TITLE = "A study in a database that holds many others"


def main(arguments: Sequence[str] | None = None) -> None:
    options = _options(arguments)
    described = machine()
    num_points, num_others, rounds = (20, 1, 1) if options.tiny else (2_000, options.others, options.rounds)
    numbers = itertools.count()

    def run(home: Path, python: str = sys.executable) -> float:
        words = ["--json", "--device", "cpu", "--lanes", "32", "--set", f"search.num_points={num_points}"]
        command = [python, "-P", "-m", "hpsearch", "run", str(STUDY), *words, "--set", f"name=study-{next(numbers)}"]
        started = time.perf_counter()
        summary = json.loads(run_program("hpsearch run", command, environment_of(home)))
        seconds = time.perf_counter() - started
        if summary["epochs"] != num_points:
            raise HpsearchError(f"{summary['epochs']} of {num_points} points were trained")
        say(f"{home.name}: {seconds:.1f} s")
        return seconds

    def run_in_copy(home: Path, python: str = sys.executable) -> float:
        copy = home.with_name(f"{home.name}-{next(numbers)}")
        subprocess.run(["cp", "-a", str(home), str(copy)], check=True)  # with the owners of its files
        return run(copy, python)

    with scratch_folder() as folder:
        new, filled, of_previous = (folder / name for name in ("new", "filled", "previous"))
        for home in (new, filled):
            create_database(home, sys.executable, STUDY)
        for _ in range(num_others):
            run(filled)
        contenders = {NEW: lambda: run_in_copy(new), FILLED: lambda: run_in_copy(filled)}
        if options.previous is not None:
            python = python_of(options.previous)
            create_database(of_previous, python, STUDY)
            for _ in range(num_others):
                run(of_previous, python)
            contenders[PREVIOUS] = lambda: run_in_copy(of_previous, python)
        seconds = interleave(contenders, rounds, warm_ups=0)
    measured = [Measurement(name=name, unit="s", values=tuple(values)) for name, values in seconds.items()]
    ratios = [ratio(f"{FILLED} / {NEW}", seconds[FILLED], seconds[NEW])]
    if PREVIOUS in seconds:
        ratios.append(ratio(f"{PREVIOUS} / {FILLED}", seconds[PREVIOUS], seconds[FILLED]))
    others = counted(num_others, "other run")
    print_measurements(f"{num_points} points of one epoch, after {others} of it", [*measured, *ratios])
    output = options.output or (None if options.tiny else RESULTS / "filled_database.json")
    if output is not None:
        settings = {"points": num_points, "other studies": num_others, "rounds": rounds}
        write_result(output, title=TITLE, machine=described, settings=settings, measurements=[*measured, *ratios])


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--others", type=int, default=10, metavar="N", help="how many studies the database holds")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--previous", type=Path, metavar="FOLDER", help="a checkout with a .venv to compare with")
    parser.add_argument("--tiny", action="store_true", help="20 points after one study; writes no result")
    parser.add_argument("--output", type=Path, metavar="FILE.json")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    run_script(main)
