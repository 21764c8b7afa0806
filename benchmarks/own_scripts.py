"""What the service costs beside a script: 200 short programs in 8 slots, against GNU parallel.

    python -m benchmarks.own_scripts
    python -m benchmarks.own_scripts --tiny

Each program sleeps for 0.2 seconds and prints one value. Both contenders take turns, with the same programs, which note
when they begin and end; what counts is the time from the first begin to the last end. A worker's start is not counted,
nor what it writes after its last program: `parallel` has neither.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

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
from benchmarks.scratch import scratch_folder, scratch_postgres
from hpsearch import environment
from hpsearch.errors import InputError

TITLE = "Short programs in many slots"
HPSEARCH = [sys.executable, "-m", "hpsearch"]
SLOTS = 8
MOST = 1.25  # times as long as GNU parallel
SCRIPT = "date +%s.%N >> {log}; sleep {seconds}; echo value={number}; date +%s.%N >> {log}"
STUDY = """
name = "{name}"
[command]
run = ["sh", "-c", '''{script}''']
pattern = "value=([0-9]+)"
gpus = 0
[search]
number = {numbers}
[stopping]
rule = "none"
"""


class Contest:
    """Runs the same programs by both contenders.

    Args:
        url: of a scratch server.
        number: of programs.
        seconds: that each of them sleeps.
    """

    def __init__(self, folder: Path, url: str, *, number: int, seconds: float) -> None:
        self._folder = folder
        self._url = url
        self._number = number
        self._seconds = seconds
        self._num_runs = 0

    def by_hpsearch(self) -> float:
        """Wall seconds of one worker with 8 slots, from the first begin to the last end."""
        name, log = self._next()
        script = SCRIPT.format(log=log, seconds=self._seconds, number="{number}")
        study = self._folder / f"{name}.toml"
        study.write_text(STUDY.format(name=name, script=script, numbers=list(range(1, self._number + 1))))
        self._hpsearch("create", str(study))
        self._hpsearch("worker", name, "--commands", "--lanes", str(SLOTS))
        return self._span(log)

    def by_parallel(self) -> float:
        """The same by GNU parallel."""
        _, log = self._next()
        script = SCRIPT.format(log=log, seconds=self._seconds, number="$1")
        numbers = [str(number) for number in range(1, self._number + 1)]
        # The script as an argument of its own, as hpsearch gives it; parallel starts a shell for the line in any case.
        (self._folder / "script.sh").write_text(script)
        line = ["parallel", "--will-cite", f"-j{SLOTS}", f"sh {self._folder / 'script.sh'} {{}}", ":::", *numbers]
        subprocess.run(line, check=True, capture_output=True)
        return self._span(log)

    def _next(self) -> tuple[str, Path]:
        self._num_runs += 1
        name = f"run-{self._num_runs}"
        return name, self._folder / f"{name}.log"

    def _span(self, log: Path) -> float:
        times = [float(line) for line in log.read_text().split()]
        assert len(times) == 2 * self._number, f"{len(times)} lines of {self._number} programs"
        return max(times) - min(times)

    def _hpsearch(self, *arguments: str) -> None:
        own = {environment.HOME: str(self._folder / "home"), environment.STORAGE: self._url}
        done = subprocess.run(
            [*HPSEARCH, *arguments],
            env={**os.environ, **own},
            cwd=self._folder,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tiny", action="store_true", help="one round of a few programs, no result written")
    parser.add_argument("--output", type=Path, default=None)
    arguments = parser.parse_args()
    if shutil.which("parallel") is None:
        raise InputError("GNU parallel is not here", hint="apt-get install parallel")
    number, seconds, rounds = (16, 0.05, 1) if arguments.tiny else (200, 0.2, arguments.rounds)
    described = machine()
    with ExitStack() as stack:
        folder = stack.enter_context(scratch_folder())
        server = stack.enter_context(scratch_postgres(folder / "server"))
        contest = Contest(folder, server.url, number=number, seconds=seconds)
        values = interleave(
            {"hpsearch": contest.by_hpsearch, "GNU parallel": contest.by_parallel},
            rounds,
            warm_ups=0 if arguments.tiny else 1,
            on_round=lambda number: say(f"round {number} of {rounds}"),
        )
    measurements = [
        *(Measurement(name=name, unit="s", values=tuple(seconds)) for name, seconds in values.items()),
        ratio(f"hpsearch over GNU parallel (at most {MOST})", of=values["hpsearch"], over=values["GNU parallel"]),
    ]
    print_measurements(TITLE, measurements)
    output = arguments.output or (None if arguments.tiny else RESULTS / "own_scripts.json")
    if output is not None:
        settings = {"rounds": rounds, "programs": number, "seconds": seconds, "slots": SLOTS}
        write_result(output, title=TITLE, machine=described, settings=settings, measurements=measurements)


if __name__ == "__main__":
    run_script(main)
