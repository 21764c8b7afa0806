"""A whole study, from the start of a process to its end: `hpsearch run` against what people use today.

    python -m benchmarks.whole_study                 # MNIST, 16 points, 3 rounds
    python -m benchmarks.whole_study --tiny          # digits, 4 points, 1 round: does it still run?

All train the same sixteen points (whole_study.toml) in the same order on the same two-part MNIST, on all cores:

    hpsearch          one worker, lanes, embedded PostgreSQL
    optuna            plain Optuna and the usual PyTorch loop, one process, embedded PostgreSQL
    optuna-parallel   the same in as many processes as cores, a thread each
    ray               Ray Tune with ASHA and the same loop, as many actors as cores, a thread each

Each run has a home of its own that is empty before, so making and starting the database counts, as do imports and
reading the images. Pruning differs: trials that run at the same time see less of each other, and ASHA has rules of its
own. So the table shows how many trial-epochs each one trained, too.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from benchmarks.measurement import (
    RESULTS,
    Measurement,
    interleave,
    machine,
    print_measurements,
    print_table,
    ratio,
    run_script,
    say,
    write_result,
)
from benchmarks.scratch import scratch_folder
from benchmarks.usual_study import StudyResult, load_images
from hpsearch.errors import HpsearchError, InputError
from hpsearch.study.definition import StudyDefinition
from hpsearch.study.study_file import load_definition

STUDY_FILE = Path(__file__).with_name("whole_study.toml")
CONTENDERS = ("hpsearch", "optuna", "optuna-parallel", "ray")
TINY = (
    "data.dataset=digits",
    "model.hidden_units=20",
    "training.max_epochs=2",
    "search.learning_rate=[0.1, 0.01]",
    "search.lambda_2=[0.0, 0.0001]",
)
TITLE = "A whole study, start to finish as a process"
LIMIT_SECONDS = 3600.0  # of one contender's run
_REPOSITORY = Path(__file__).parents[1]


@dataclass(frozen=True, kw_only=True)
class Contender:
    """One way to run the study.

    Args:
        command: a program whose last line on stdout `parse` reads.
    """

    name: str
    command: Sequence[str]
    parse: Callable[[str], StudyResult]
    num_points: int
    runs: list[tuple[float, StudyResult]] = field(default_factory=list)

    def run(self) -> float:
        """Run the study once in an empty home; returns seconds from the process's start to its end.

        Raises:
            HpsearchError: the program failed, or did not count every point.
        """
        with scratch_folder() as home:
            started = time.perf_counter()
            output = run_program(self.name, self.command, environment_of(home))
            seconds = time.perf_counter() - started
        result = self.parse(output)
        if result.num_points != self.num_points:
            raise HpsearchError(f"{self.name} counted {result.num_points} points of {self.num_points}")
        self.runs.append((seconds, result))
        say(f"{self.name}: {seconds:.1f} s, {result.trial_epochs} trial-epochs, error {result.best_error:.4f}")
        return seconds

    def as_json(self) -> dict[str, object]:
        return {"command": list(self.command), "runs": [{"seconds": s, **asdict(result)} for s, result in self.runs]}


def main(arguments: Sequence[str] | None = None) -> None:
    options = _options(arguments)
    overrides = [*(TINY if options.tiny else ()), *options.overrides]
    if options.dataset is not None:
        overrides.append(f"data.dataset={options.dataset}")
    definition = load_definition(STUDY_FILE, overrides)
    names = available_contenders(options.contenders)
    load_images(definition)  # downloaded, if need be, and checked before anything is timed
    contenders = [_contender(name, definition, overrides) for name in names]
    described = machine()
    rounds = 1 if options.tiny else options.rounds
    seconds = interleave(
        {contender.name: contender.run for contender in contenders},
        rounds,
        warm_ups=0,  # a process that starts is what is measured
        on_round=lambda number: say(f"round {number} of {rounds} is done"),
    )
    measurements = _measurements(contenders, seconds)
    _print(contenders, measurements)
    output = options.output or (None if options.tiny else RESULTS / "whole_study.json")
    if output is not None:
        write_result(
            output,
            title=TITLE,
            machine=described,
            settings={"study": definition.document(), "rounds": rounds},
            measurements=measurements,
            details={contender.name: contender.as_json() for contender in contenders},
        )


def available_contenders(names: str | None) -> list[str]:
    """The contenders that were named, or all that can run here; says loudly if that is not all of them.

    Raises:
        InputError: an unknown name, or Ray was named and is not installed.
    """
    has_ray = importlib.util.find_spec("ray") is not None
    chosen = list(CONTENDERS) if names is None else names.split(",")
    unknown = [name for name in chosen if name not in CONTENDERS]
    if unknown:
        raise InputError(f"--contenders: no {unknown[0]!r}", hint=f"choose from {','.join(CONTENDERS)}")
    if "ray" in chosen and not has_ray:
        hint = "pip install --constraint constraints.txt --editable '.[bench]'"
        if names is not None:
            raise InputError("--contenders: ray is not installed", hint=hint)
        say(f"*** Ray Tune is not installed and therefore left out: {hint} ***")
        chosen.remove("ray")
    return chosen


def _contender(name: str, definition: StudyDefinition, overrides: Sequence[str]) -> Contender:
    cores = str(len(os.sched_getaffinity(0)))
    study = [str(STUDY_FILE), *(word for override in overrides for word in ("--set", override))]
    module, *arguments = {
        "hpsearch": ["hpsearch", "run", *study, "--json", "--device", "cpu"],
        "optuna": ["benchmarks.usual_optuna", *study],
        "optuna-parallel": ["benchmarks.usual_optuna", *study, "--processes", cores],
        "ray": ["benchmarks.usual_ray", *study, "--processes", cores],
    }[name]
    return Contender(
        name=name,
        command=[sys.executable, "-m", module, *arguments],
        parse=_parse_summary if name == "hpsearch" else StudyResult.parse,
        num_points=definition.num_points,
    )


def _parse_summary(output: str) -> StudyResult:
    """What `hpsearch run --json` prints."""
    summary = json.loads(output)
    return StudyResult(
        num_points=summary["points"]["complete"] + summary["points"]["pruned"],
        trial_epochs=summary["epochs"],
        best_error=summary["best"]["value"],
        best_point=summary["best"]["params"],
    )


def run_program(
    name: str, command: Sequence[str], environment: dict[str, str], limit_seconds: float = LIMIT_SECONDS
) -> str:
    """Run a program to its end; returns what it wrote on stdout.

    Raises:
        HpsearchError: it failed, or took longer than the limit.
    """
    with subprocess.Popen(
        command, env=environment, cwd=_REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            stdout, stderr = process.communicate(timeout=limit_seconds)
        except BaseException as error:
            # It ends its workers and its database, whose folder is about to be removed. Not SIGINT, which a shell
            # lets its background jobs ignore.
            process.terminate()
            process.communicate()
            if isinstance(error, subprocess.TimeoutExpired):
                raise HpsearchError(f"{name} did not end within {limit_seconds:.0f} s") from error
            raise
    if process.returncode != 0:
        words = stderr.strip().splitlines()[-20:]
        raise HpsearchError(f"{name} ended with {process.returncode}:\n  " + "\n  ".join(words))
    return stdout


def environment_of(home: Path) -> dict[str, str]:
    """Nobody's settings but the place of the data: a database that they name would be used."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith("HPSEARCH_")}
    if "HPSEARCH_DATA" in os.environ:
        kept["HPSEARCH_DATA"] = os.environ["HPSEARCH_DATA"]
    return {**kept, "HPSEARCH_HOME": str(home)}


def _measurements(contenders: Sequence[Contender], seconds: dict[str, list[float]]) -> list[Measurement]:
    """Wall time, and wall time per trial-epoch, of each; and both as ratios over hpsearch's."""
    per_epoch = {c.name: [s / result.trial_epochs for s, result in c.runs] for c in contenders}
    measurements = []
    for what, values in (("wall", seconds), ("wall per trial-epoch", per_epoch)):
        measurements += [Measurement(name=f"{name}, {what}", unit="s", values=tuple(v)) for name, v in values.items()]
    if "hpsearch" in seconds:
        for what, values in (("wall", seconds), ("wall per trial-epoch", per_epoch)):
            others = [name for name in values if name != "hpsearch"]
            measurements += [ratio(f"{name} / hpsearch, {what}", values[name], values["hpsearch"]) for name in others]
    return measurements


def _print(contenders: Sequence[Contender], measurements: Sequence[Measurement]) -> None:
    rows = []
    for contender in contenders:
        results = [result for _, result in contender.runs]
        epochs = sorted({result.trial_epochs for result in results})
        errors = sorted({result.best_error for result in results})
        best = min(results, key=lambda result: result.best_error)
        point = ", ".join(f"{key}={value}" for key, value in best.best_point.items())
        rows.append([contender.name, _range(epochs, "d"), _range([100 * error for error in errors], ".2f"), point])
    print_table("What each one did", ["", "trial-epochs", "best validation error, %", "at"], rows)
    print_measurements(TITLE, measurements)


def _range(values: Sequence[float], form: str) -> str:
    """`64`, or `48 to 52` where rounds differ."""
    return " to ".join(dict.fromkeys(format(value, form) for value in (values[0], values[-1])))


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--contenders", metavar="NAME,NAME", help=f"some of {','.join(CONTENDERS)}")
    parser.add_argument("--dataset", help="another data set than MNIST: digits, say")
    parser.add_argument("--set", dest="overrides", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--tiny", action="store_true", help="digits, 4 points, 2 epochs, 1 round; writes no result")
    parser.add_argument("--output", type=Path, metavar="FILE.json", help="default: benchmarks/results/whole_study.json")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    run_script(main)
