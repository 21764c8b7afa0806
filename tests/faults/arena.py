"""Where a fault happens: a PostgreSQL of its own, one study, processes at work on it, and the judge of it all."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy import NullPool, Row, create_engine, text

from hpsearch.data.files.lookup import DataLocations
from hpsearch.store.connection.database import open_database
from hpsearch.study.study_file import parse_definition
from hpsearch.worker.preparation import prepare_study
from tests.faults.driver import Faults
from tests.faults.postgres import FaultyPostgres
from tests.faults.processes import ROOT, ForkServer, HpsearchProcess, Screen, wait_until

COUNTED = (TrialState.COMPLETE, TrialState.PRUNED)


@dataclass(frozen=True, kw_only=True)
class Acknowledged:
    """A result whose commit the database has confirmed to a worker."""

    trial_id: int
    state: str
    value: float | None


class Arena:
    """A server with one study on it, and the processes that were started here."""

    def __init__(self, folder: Path, server: FaultyPostgres, fork_server: ForkServer, *, study: str = "faults") -> None:
        self.folder = folder
        self.server = server
        self.study_name = study
        self.processes: list[HpsearchProcess] = []
        self.epochs_log = folder / "epochs.jsonl"
        self.acknowledged_log = folder / "acknowledged.jsonl"
        self.artifacts = folder / "artifacts"
        self._gate = folder / "gate"
        self.storage_url = server.url
        self.num_points = 0
        self._fork_server = fork_server
        self._engine = create_engine(server.url, poolclass=NullPool)
        self.environment = {
            **{k: v for k, v in os.environ.items() if not k.startswith(("HPSEARCH_", "PG", "TZ"))},
            "HPSEARCH_HOME": str(folder / "home"),
            "HPSEARCH_ARTIFACTS": str(self.artifacts),
            "PYTHONPATH": str(ROOT),
            "OMP_NUM_THREADS": "1",
            "NO_COLOR": "1",
            "COLUMNS": "160",
        }

    def create(self, num_points: int = 4, *, max_epochs: int = 5, **sections: Mapping[str, Any]) -> None:
        """Create the study: so many learning rates, epochs of a few milliseconds, no stopping rule."""
        document = self.document(num_points, max_epochs=max_epochs, **sections)
        definition = parse_definition(document, source="test")
        locations = DataLocations(local=None, cache=self.folder / "cache", allow_download=False)
        database = open_database(self.storage_url)
        try:
            prepare_study(database, definition, locations=locations)
        finally:
            database.close()
        self.num_points = definition.num_points

    def document(self, num_points: int, *, max_epochs: int, **sections: Mapping[str, Any]) -> dict[str, Any]:
        document: dict[str, Any] = {
            "name": self.study_name,
            "data": {"dataset": "digits"},
            "model": {"hidden_units": 8},
            "training": {"batch_size": 257, "max_epochs": max_epochs},
            "search": {"learning_rate": learning_rates(num_points)},
            "stopping": {"rule": "none"},
        }
        for section, values in sections.items():
            document[section] = {**document.get(section, {}), **values}
        return document

    # Processes

    def start(
        self, *arguments: str, faults: Faults | None = None, screen: Screen | None = None, **environment: str
    ) -> HpsearchProcess:
        """Start one command."""
        faults = faults or Faults()
        logs = {"acknowledged": str(self.acknowledged_log), "epochs": str(self.epochs_log)}
        process = HpsearchProcess(
            self._fork_server,
            arguments,
            faults=dataclasses.replace(faults, **logs),
            environment={**self.environment, "HPSEARCH_STORAGE": self.storage_url, **environment},
            folder=self.folder,
            name=f"{len(self.processes)}-{arguments[0]}",
            screen=screen,
        )
        self.processes.append(process)
        return process

    def worker(self, *, faults: Faults | None = None, lanes: int = 1, **environment: str) -> HpsearchProcess:
        arguments = ("worker", self.study_name, "--lanes", str(lanes), "--device", "cpu")
        return self.start(*arguments, faults=faults, **environment)

    def workers(
        self, number: int, *, faults: Faults, lanes: int = 1, num_epochs: int = 1, **environment: str
    ) -> list[HpsearchProcess]:
        """Start workers that train so many epochs each and are in the middle of the next one until `go`.

        Returns when all of them are, and what they have trained is recorded.
        """
        self._gate.touch()
        held = dataclasses.replace(faults, hold=str(self._gate), hold_from_epoch=num_epochs + 1)
        workers = [self.worker(faults=held, lanes=lanes, **environment) for _ in range(number)]

        def are_held() -> bool:
            trained = [self.trained(worker) for worker in workers]
            if len(self.owners()) < number or any(len(lines) < num_epochs for lines in trained):
                return False
            epochs = {
                (int(trial), epoch) for lines in trained for line in lines for trial, epoch in line["epochs"].items()
            }
            return epochs <= {
                (row.trial_id, row.epoch) for row in self.ask("SELECT trial_id, epoch FROM hpsearch_epochs")
            }

        wait_until(are_held, f"{number} workers have trained {num_epochs} epochs", told=self.told)
        return workers

    def go(self) -> None:
        """Let the workers go on."""
        self._gate.unlink()

    def close(self) -> None:
        for process in self.processes:
            if process.is_alive:
                process.kill()
        self._engine.dispose()

    # A look at what is there

    def ask(self, sql: str, **values: Any) -> Sequence[Row[Any]]:
        """Run one statement in a session of its own."""
        with self._engine.begin() as connection:
            result = connection.execute(text(sql), values)
            return result.all() if result.returns_rows else []

    def configure(self, *statements: str) -> None:
        """Run statements outside a transaction."""
        with self._engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            for statement in statements:
                connection.execute(text(statement))

    def study(self) -> optuna.Study:
        return optuna.load_study(study_name=self.study_name, storage=self.server.url)

    def trials(self) -> list[FrozenTrial]:
        return self.study().get_trials(deepcopy=False)

    def counted(self) -> list[FrozenTrial]:
        """The trials that count, by point."""
        return sorted(
            (trial for trial in self.trials() if trial.state in COUNTED), key=lambda trial: trial.user_attrs["point"]
        )

    def num_in(self, *states: str) -> int:
        """Trials in these states."""
        (row,) = self.ask(
            "SELECT count(*) AS number FROM trials WHERE state::text = ANY(CAST(:states AS text[]))",
            states=list(states),
        )
        return int(row.number)

    def owners(self, *, min_epochs: int = 0) -> set[int]:
        """Workers that hold a point; `min_epochs`: of whose trial so many epochs are recorded."""
        rows = self.ask(
            """
            SELECT DISTINCT p.owner FROM hpsearch_points p WHERE p.owner IS NOT NULL
                AND (SELECT count(*) FROM hpsearch_epochs e WHERE e.trial_id = p.trial_id) >= :epochs
            """,
            epochs=min_epochs,
        )
        return {row.owner for row in rows}

    def wait_for_training(self, num_workers: int = 1, *, min_epochs: int = 1) -> None:
        """Wait until so many workers are in the middle of a trial."""
        wait_until(
            lambda: len(self.owners(min_epochs=min_epochs)) >= num_workers,
            f"{num_workers} workers in the middle of a trial",
            told=self.told,
        )

    def acknowledged(self) -> list[Acknowledged]:
        return [Acknowledged(**line) for line in read_lines(self.acknowledged_log)]

    def trained(self, process: HpsearchProcess | None = None) -> list[dict[str, Any]]:
        """The epochs that were trained, in order; of one process, or of all."""
        lines = read_lines(self.epochs_log)
        return [line for line in lines if process is None or line["pid"] == process.pid]

    def curves(self) -> dict[int, Sequence[Row[Any]]]:
        """Point -> all that is recorded of its counted trial's epochs, bit for bit."""
        return {
            trial.user_attrs["point"]: self.ask(
                """
                SELECT e.epoch, i.intermediate_value, e.train_nll, e.validation_nll, e.learning_rate
                FROM hpsearch_epochs e JOIN trial_intermediate_values i ON (i.trial_id, i.step) = (e.trial_id, e.epoch)
                WHERE e.trial_id = :trial ORDER BY e.epoch
                """,
                trial=trial._trial_id,
            )
            for trial in self.counted()
        }

    def told(self) -> str:
        """What all processes have written to stderr, for messages of failed tests."""
        return "\n".join(f"--- {process.arguments} {process.pid}:\n{process.where}" for process in self.processes)

    # The judge

    def judge(
        self, *, given_up: Iterable[int] = (), has_lost_commits: bool = False, may_have_gaps: bool = False
    ) -> None:
        """The promise: every point is counted exactly once and nothing acknowledged is lost.

        Args:
            may_have_gaps: a program goes on from what it has saved; what it has reported just before may be lost.
            given_up: points that ended as FAIL after all their attempts, and rightly so.
            has_lost_commits: the server itself has lost what it had acknowledged.
        """
        for process in self.processes:
            process.wait()
        acknowledged = [] if has_lost_commits else self.acknowledged()
        judge_study(
            self.server.url,
            self.study_name,
            self.num_points,
            acknowledged=acknowledged,
            given_up=given_up,
            may_have_gaps=may_have_gaps,
        )
        wait_until(lambda: not self.sessions(), "the server has sessions of processes that have ended")

    def sessions(self) -> Sequence[Row[Any]]:
        """The server's sessions of hpsearch processes; the arena's own have another name."""
        return self.ask("SELECT pid FROM pg_stat_activity WHERE application_name = 'hpsearch'")


def learning_rates(number: int) -> list[float]:
    return [round(0.2 - 0.15 * i / number, 6) for i in range(number)]


def read_lines(path: Path) -> list[dict[str, Any]]:
    """JSON lines; none if the file is not there."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def judge_study(
    url: str,
    name: str,
    num_points: int,
    *,
    acknowledged: Sequence[Acknowledged],
    given_up: Iterable[int] = (),
    may_have_gaps: bool = False,
) -> None:
    """Judge one study as plain Optuna reads it, and our own tables beside it."""
    study = optuna.load_study(study_name=name, storage=url)
    trials = study.get_trials(deepcopy=False)
    unfinished = [trial for trial in trials if not trial.state.is_finished()]
    assert unfinished == [], "a trial is left WAITING or RUNNING"
    by_point: dict[int, list[FrozenTrial]] = {}
    for trial in trials:
        by_point.setdefault(trial.user_attrs["point"], []).append(trial)
    assert sorted(by_point) == list(range(num_points))
    for point, attempts in by_point.items():
        counted = [trial for trial in attempts if trial.state in COUNTED]
        assert len(counted) == (point not in given_up), f"point {point} is counted {len(counted)} times"
        numbers = [trial.user_attrs["attempt"] for trial in attempts]
        assert sorted(numbers) == list(range(1, len(attempts) + 1)), f"point {point} has the attempts {numbers}"
        for trial in attempts:
            _judge_curve(trial, may_have_gaps=may_have_gaps)
    engine = create_engine(url, poolclass=NullPool)
    with engine.connect() as connection:
        _judge_points(connection.execute(text(_POINTS), {"name": name}).all(), by_point, set(given_up))
    engine.dispose()
    _judge_acknowledged(acknowledged, trials)


def _judge_curve(trial: FrozenTrial, *, may_have_gaps: bool) -> None:
    """No epoch is missing; a counted trial has all that it says it has."""
    steps = sorted(trial.intermediate_values)
    assert may_have_gaps or steps == list(range(1, len(steps) + 1)), f"trial {trial.number} has the epochs {steps}"
    if trial.state is TrialState.COMPLETE:
        assert trial.user_attrs["epochs"] == steps[-1]
        assert trial.value == min(trial.intermediate_values.values())


_POINTS = """
    SELECT p.point, p.is_counted, p.owner, t.number, t.state,
        (SELECT count(*) FROM hpsearch_epochs e WHERE e.trial_id = p.trial_id) AS num_epochs
    FROM hpsearch_points p JOIN trials t USING (trial_id) JOIN studies s ON s.study_id = p.study_id
    WHERE s.study_name = :name
"""


def _judge_points(rows: Sequence[Row[Any]], by_point: Mapping[int, list[FrozenTrial]], given_up: set[int]) -> None:
    assert len(rows) == len(by_point)
    for row in rows:
        current = next(trial for trial in by_point[row.point] if trial.number == row.number)
        assert row.is_counted == (row.point not in given_up), f"point {row.point}"
        assert (current.state in COUNTED) == row.is_counted, f"point {row.point}"
        assert row.owner is None, f"point {row.point} is still held"
        assert row.num_epochs == len(current.intermediate_values), f"point {row.point}"


def _judge_acknowledged(acknowledged: Sequence[Acknowledged], trials: Sequence[FrozenTrial]) -> None:
    stored = {trial._trial_id: trial for trial in trials}
    for result in acknowledged:
        trial = stored[result.trial_id]
        assert (trial.state.name, trial.value) == (result.state, result.value), f"trial {trial.number} was acknowledged"
