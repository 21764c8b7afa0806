"""How many trials per second an Optuna objective reaches that does nothing, and how long a `suggest` takes.

    python -m benchmarks.objective_rate
    python -m benchmarks.objective_rate --tiny

Each trial is a process of its own, which imports Optuna and the objective; its values are drawn by the worker and
stored in an embedded PostgreSQL before the objective has them. Plain Optuna runs the same function in one process on
the same server. The objective asks for four values and measures how long each call takes.
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import optuna

from benchmarks.measurement import RESULTS, machine, print_table, run_script, say, write_result
from benchmarks.scratch import scratch_folder, scratch_postgres
from hpsearch.artifacts.store import open_store
from hpsearch.scripts.keeper.client import Keeper
from hpsearch.signals import StopSignal
from hpsearch.store.connection.database import Database, open_database
from hpsearch.study.study_file import parse_definition
from hpsearch.worker.options import WorkerSettings
from hpsearch.worker.programs.attempts import Attempts, attempt_folders
from hpsearch.worker.programs.preparation import prepare_program
from hpsearch.worker.programs.program_worker import ProgramWorker

TITLE = "An objective that does nothing"
_OBJECTIVE = """
import time

def objective(trial):
    milliseconds = []
    for name in "abcd":
        begin = time.perf_counter()
        trial.suggest_float(name, 0, 1)
        milliseconds.append(1000 * (time.perf_counter() - begin))
    trial.set_user_attr("milliseconds", milliseconds)
    return sum(trial.params.values())
"""


@dataclass(frozen=True, kw_only=True)
class Rate:
    """One search, and how fast it was.

    Args:
        first_ms, later_ms: medians of a trial's first `suggest`, and of its other ones.
        processor_seconds: per trial, of all processes but PostgreSQL's.
    """

    name: str
    lanes: int
    trials: int
    seconds: float
    first_ms: float
    later_ms: float
    processor_seconds: float

    @property
    def trials_per_second(self) -> float:
        return self.trials / self.seconds


@contextmanager
def _timed() -> Iterator[Callable[[], tuple[float, float]]]:
    """Wall and processor seconds since the start; those of child processes count once they have ended."""

    def processor() -> float:
        uses = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
        return sum(use.ru_utime + use.ru_stime for use in uses)

    wall, used = time.perf_counter(), processor()
    yield lambda: (time.perf_counter() - wall, processor() - used)


def _rate(name: str, lanes: int, study: optuna.Study, took: tuple[float, float]) -> Rate:
    times = [trial.user_attrs["milliseconds"] for trial in study.get_trials(deepcopy=False)]
    return Rate(
        name=name,
        lanes=lanes,
        trials=len(times),
        seconds=took[0],
        first_ms=statistics.median(its[0] for its in times),
        later_ms=statistics.median(value for its in times for value in its[1:]),
        processor_seconds=took[1] / len(times),
    )


def of_hpsearch(database: Database, folder: Path, strategy: str, lanes: int, trials: int) -> Rate:
    document = {
        "name": f"{strategy}-{lanes}",
        "objective": {"function": "idle:objective"},
        "search": {"strategy": strategy, "num_points": trials},
    }
    study = prepare_program(database, parse_definition(document, source="benchmark"), folder).study
    artifacts = open_store(str(folder / "artifacts"))
    folders = attempt_folders(folder / "attempts", study, artifacts)
    options: dict[str, Any] = {"devices": [[]] * lanes, "base": os.environ, "place": folder, "upload_seconds": 0.0}
    with _timed() as took:
        with Keeper() as keeper, Attempts(study, keeper, artifacts, folders, **options) as attempts:
            settings = WorkerSettings(name="worker", num_siblings=1, poll_seconds=0.1)
            ProgramWorker(
                database=database,
                study=study,
                attempts=attempts,
                num_slots=lanes,
                device="cpu",
                stop=StopSignal(),
                settings=settings,
            ).run()
        passed = took()
    found = optuna.load_study(study_name=study.name, storage=database.storage)
    return _rate(f"hpsearch, {strategy}", lanes, found, passed)


def of_plain_optuna(url: str, trials: int) -> Rate:
    scope: dict[str, Any] = {}
    exec(_OBJECTIVE, scope)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(study_name="plain", storage=url, sampler=optuna.samplers.TPESampler(seed=0))
    with _timed() as took:
        study.optimize(scope["objective"], n_trials=trials)
        passed = took()
    return _rate("plain Optuna, tpe, one process", 1, study, passed)


def main() -> None:
    options = _options()
    described = machine()
    rates = []
    with scratch_folder() as folder, scratch_postgres(folder) as postgres:
        (folder / "idle.py").write_text(_OBJECTIVE)
        database = open_database(postgres.url)
        for strategy in options.strategies:
            for lanes in options.lanes:
                say(f"{strategy}, {lanes} lanes")
                rates.append(of_hpsearch(database, folder, strategy, lanes, options.trials))
        say("plain Optuna")
        rates.append(of_plain_optuna(postgres.url, options.trials))
        database.close()
    _print(rates)
    if not options.tiny or options.output:
        details = {"rates": [asdict(rate) | {"trials_per_second": rate.trials_per_second} for rate in rates]}
        path = options.output or RESULTS / "objective_rate.json"
        settings = {"trials": options.trials, "lanes": options.lanes, "strategies": options.strategies}
        write_result(path, title=TITLE, machine=described, settings=settings, details=details)


def _print(rates: list[Rate]) -> None:
    header = ["", "lanes", "trials", "trials/s", "first suggest, ms", "later ones, ms", "processor s/trial"]
    print_table(
        TITLE,
        header,
        [
            [
                rate.name,
                str(rate.lanes),
                str(rate.trials),
                f"{rate.trials_per_second:.2f}",
                f"{rate.first_ms:.1f}",
                f"{rate.later_ms:.1f}",
                f"{rate.processor_seconds:.2f}",
            ]
            for rate in rates
        ],
    )


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=60, help="of each search")
    parser.add_argument("--lanes", type=int, nargs="+", default=[1, len(os.sched_getaffinity(0))])
    parser.add_argument("--strategies", nargs="+", default=["random", "tpe", "gp"])
    parser.add_argument("--tiny", action="store_true", help="three trials of TPE; writes no result")
    parser.add_argument("--output", type=Path, metavar="FILE.json", help="default: benchmarks/results/NAME.json")
    options = parser.parse_args()
    if options.tiny:
        options.trials, options.lanes, options.strategies = 3, [1], ["tpe"]
    return options


if __name__ == "__main__":
    run_script(main)
