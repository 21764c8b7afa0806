"""SQL statements per worker and epoch, against the number of lanes: they must not grow with it.

    python -m benchmarks.sql_statements
    python -m benchmarks.sql_statements --tiny

A real worker trains a study of 64 tiny networks (logistic regression on digits) on a PostgreSQL of its own, with 1, 8
and 64 lanes, with a pruner that compares trials and without one. All statements are counted that its connections
execute, Optuna's storage included, from the beginning of one epoch to the beginning of the next.

Most epochs are quiet: no trial ends. An epoch that ends trials also finishes them, keeps the parameters of the best,
and claims others. What that costs is shown per trial, because each trial ends once, whatever the number of lanes.

Not counted as statements: BEGIN and COMMIT of each transaction, and the SELECT 1 with which the connection pool makes
sure that the server is there; each transaction has one of each.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import statistics
import threading
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import optuna
import torch
from sqlalchemy import event

from benchmarks.measurement import RESULTS, machine, print_table, run_script, write_result
from benchmarks.scratch import scratch_folder, scratch_postgres
from hpsearch.artifacts.best_parameters import open_artifacts
from hpsearch.data.files.lookup import DataLocations
from hpsearch.data.resident import ResidentData
from hpsearch.device.pin import PinnedDevice
from hpsearch.search.pruners import build_pruner
from hpsearch.signals import StopSignal
from hpsearch.store.claims.ledger import Ledger
from hpsearch.store.connection.database import Database, open_database
from hpsearch.study.definition import StudyDefinition
from hpsearch.study.study_file import parse_definition
from hpsearch.worker.cohorts import Cohorts
from hpsearch.worker.lanes.lane_count import FixedLanes
from hpsearch.worker.lanes.worker import Worker
from hpsearch.worker.options import WorkerSettings
from hpsearch.worker.preparation import prepare_study

TITLE = "SQL statements per worker and epoch"
LANES = (1, 8, 64)
PRUNINGS: dict[str, dict[str, Any]] = {
    "none": {"pruner": "none"},
    "median": {"pruner": "median", "warmup_epochs": 3},  # the first trials end before it begins
}
# Leases are renewed by a clock, not by epochs: not within a measurement.
LEASE_SECONDS = 3600.0


@dataclass(kw_only=True)
class StatementLog:
    """Every statement and every transaction of a database's two engines."""

    statements: list[str] = field(default_factory=list)
    num_transactions: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @contextlib.contextmanager
    def listening(self, database: Database) -> Iterator[StatementLog]:
        engines = (database.engine, database.storage.engine)
        for engine in engines:
            event.listen(engine, "before_cursor_execute", self._note_statement)
            event.listen(engine, "commit", self._note_commit)
        try:
            yield self
        finally:
            for engine in engines:
                event.remove(engine, "before_cursor_execute", self._note_statement)
                event.remove(engine, "commit", self._note_commit)

    def _note_statement(self, _connection: Any, _cursor: Any, statement: str, *_rest: Any) -> None:
        with self._lock:
            self.statements.append(" ".join(statement.split()))

    def _note_commit(self, _connection: Any) -> None:
        with self._lock:
            self.num_transactions += 1


@dataclass(frozen=True, kw_only=True)
class Mark:
    """What had been executed, and how many trials had ended, when an epoch began."""

    num_statements: int
    num_transactions: int
    num_finished: int


class EpochMarks(StopSignal):
    """A worker's stop signal that also notes when its epochs begin: it is asked then."""

    def __init__(self, log: StatementLog) -> None:
        super().__init__()
        self.marks: list[Mark] = []
        self.worker: Worker | None = None
        self._log = log

    @contextlib.contextmanager
    def interruptible(self, expected_seconds: float | None = None) -> Iterator[None]:
        assert self.worker is not None
        self.note()
        with super().interruptible(expected_seconds):
            yield

    def note(self) -> None:
        assert self.worker is not None
        self.marks.append(
            Mark(
                num_statements=len(self._log.statements),
                num_transactions=self._log.num_transactions,
                num_finished=self.worker.num_finished,
            )
        )


@dataclass(frozen=True, kw_only=True)
class Count:
    """What one study took.

    Args:
        quiet: statements of each epoch in which no trial ended.
        quiet_transactions: likewise.
        busiest: the statements of the epoch that took most: one in which many trials end.
        num_statements: of the whole study, from the worker's first to its last.
        example: the statements of one quiet epoch.
    """

    pruner: str
    lanes: int
    num_epochs: int
    num_trials: int
    quiet: list[int]
    quiet_transactions: list[int]
    busiest: list[str]
    num_statements: int
    example: list[str]

    @property
    def per_quiet_epoch(self) -> float:
        return statistics.median(self.quiet)

    @property
    def per_trial(self) -> float:
        """Statements for the beginning and the end of a trial: all that quiet epochs do not explain."""
        return (self.num_statements - self.per_quiet_epoch * self.num_epochs) / self.num_trials

    def as_json(self) -> dict[str, Any]:
        return {
            "pruner": self.pruner,
            "lanes": self.lanes,
            "worker_epochs": self.num_epochs,
            "trials": self.num_trials,
            "statements": self.num_statements,
            "quiet_epochs": dict(Counter(self.quiet)),
            "statements_per_quiet_epoch": self.per_quiet_epoch,
            "statements_of_the_busiest_epoch": len(self.busiest),
            "the_busiest_epoch": dict(Counter(self.busiest).most_common()),
            "transactions_per_quiet_epoch": statistics.median(self.quiet_transactions),
            "statements_per_trial_besides": self.per_trial,
            "a_quiet_epoch": self.example,
        }


def main() -> None:
    options = _options()
    described = machine()
    torch.set_num_threads(1)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    lanes = (1, 4) if options.tiny else LANES
    num_rates = 2 if options.tiny else 8
    with scratch_folder() as folder, scratch_postgres(folder) as postgres:
        database = open_database(postgres.url)
        try:
            studies = {pruner: study_definition(pruner, num_rates) for pruner in PRUNINGS}
            counts = [
                count_statements(database, studies[pruner], number, folder) for pruner in PRUNINGS for number in lanes
            ]
            plain = count_plain_optuna(database, studies["median"])
        finally:
            database.close()
    _print(counts, plain)
    output = options.output or (None if options.tiny else RESULTS / "sql_statements.json")
    if output is not None:
        details = {
            "studies": [count.as_json() for count in counts],
            "is_flat": {pruner: is_flat(counts, pruner) for pruner in PRUNINGS},
            "plain_optuna_statements_per_trial_and_epoch": plain,
        }
        settings = {"study": studies["none"].document(), "lanes": list(lanes)}
        write_result(output, title=TITLE, machine=described, settings=settings, details=details)


def study_definition(pruner: str, num_rates: int) -> StudyDefinition:
    """Tiny networks: a grid of num_rates * num_rates points, six epochs each."""
    return parse_definition(
        {
            "name": pruner,
            "data": {"dataset": "digits"},
            "model": {"family": "logistic"},
            "training": {"batch_size": 200, "max_epochs": 6},
            "search": {
                "learning_rate": [0.5 / 2**step for step in range(num_rates)],
                "lambda_2": [1e-6 * 2**step for step in range(num_rates)],
            },
            "stopping": {"rule": "none"},
            "pruning": PRUNINGS[pruner],
        },
        source="benchmark",
    )


def count_statements(database: Database, definition: StudyDefinition, lanes: int, folder: Path) -> Count:
    """Train the whole study with one worker of so many lanes."""
    named = definition.model_copy(update={"name": f"{definition.name}-{lanes}"})
    prepared = prepare_study(database, named, locations=DataLocations.from_environment())
    log = StatementLog()
    marks = EpochMarks(log)
    cpu = torch.device("cpu")
    marks.worker = Worker(
        database=database,
        study=prepared.study,
        cohorts=Cohorts(definition.stopping, ResidentData.place(prepared.data, cpu), cpu),
        pinned=PinnedDevice(None),
        lanes=FixedLanes(lanes),
        artifacts=open_artifacts(folder / "artifacts"),
        stop=marks,
        settings=WorkerSettings(name="benchmark"),
    )
    ledger = Ledger(database=database, study_id=prepared.study.study_id, lease_seconds=LEASE_SECONDS)
    with log.listening(database):
        num_trials = marks.worker.run(ledger)
        marks.note()
    assert num_trials == named.num_points
    turns = list(itertools.pairwise(marks.marks))
    quiet = [(start, end) for start, end in turns if start.num_finished == end.num_finished]

    def between(turn: tuple[Mark, Mark]) -> list[str]:
        return log.statements[turn[0].num_statements : turn[1].num_statements]

    return Count(
        pruner=definition.pruning.pruner,
        lanes=lanes,
        num_epochs=len(turns),
        num_trials=num_trials,
        quiet=[len(between(turn)) for turn in quiet],
        quiet_transactions=[end.num_transactions - start.num_transactions for start, end in quiet],
        busiest=max(map(between, turns), key=len),
        num_statements=len(log.statements),
        example=between(quiet[-1]),
    )


def count_plain_optuna(database: Database, definition: StudyDefinition) -> float:
    """Statements per trial and epoch of Optuna's own `report` and `should_prune`, on the same number of trials."""
    study = optuna.create_study(
        study_name="plain-optuna",
        storage=database.storage,
        sampler=optuna.samplers.RandomSampler(seed=0),
        pruner=build_pruner(definition.pruning, definition.training.max_epochs),
    )
    log = StatementLog()
    num_epochs = 0
    for number in range(definition.num_points):
        trial = study.ask()
        is_pruned = False
        for epoch in range(1, definition.training.max_epochs + 1):
            with log.listening(database):
                trial.report(1 / (number + epoch), epoch)
                is_pruned = trial.should_prune()
            num_epochs += 1
            if is_pruned:
                break
        state = optuna.trial.TrialState.PRUNED if is_pruned else optuna.trial.TrialState.COMPLETE
        study.tell(trial, 1 / (number + epoch), state)
    return len(log.statements) / num_epochs


def is_flat(counts: list[Count], pruner: str) -> bool:
    """Whether quiet epochs take the same number of statements with every number of lanes."""
    return len({count.per_quiet_epoch for count in counts if count.pruner == pruner}) == 1


def _print(counts: list[Count], plain: float) -> None:
    rows = []
    for count in counts:
        quiet = f"{min(count.quiet)} to {max(count.quiet)}" if len(set(count.quiet)) > 1 else ""
        rows.append(
            [
                f"pruner {count.pruner}, {count.lanes} lanes",
                str(count.num_epochs),
                f"{count.per_quiet_epoch:g}",
                quiet,
                f"{statistics.median(count.quiet_transactions):g}",
                f"{count.per_quiet_epoch / count.lanes:.3g}",
                f"{count.per_trial:.1f}",
                str(len(count.busiest)),
            ]
        )
    header = [
        "",
        "epochs",
        "statements per epoch",
        "range",
        "transactions",
        "per lane",
        "per trial besides",
        "busiest epoch",
    ]
    print_table(f"{TITLE} (epochs in which no trial ends: median)", header, rows)
    for pruner in PRUNINGS:
        print(f"pruner {pruner}: {'flat' if is_flat(counts, pruner) else 'NOT FLAT'}")
    print(f"plain Optuna, report and should_prune: {plain:.1f} statements per trial and epoch")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiny", action="store_true", help="4 points, 1 and 4 lanes; writes no result")
    parser.add_argument("--output", type=Path, metavar="FILE.json", help="default: benchmarks/results/...")
    return parser.parse_args()


if __name__ == "__main__":
    run_script(main)
