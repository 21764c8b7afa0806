"""Runs a study of a program in this process: a real database, a real keeper, real scripts."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from optuna.trial import FrozenTrial

from hpsearch.artifacts.store import open_store
from hpsearch.scripts.keeper.client import Keeper
from hpsearch.signals import StopSignal
from hpsearch.store.claims.ledger import Ledger
from hpsearch.store.connection.database import Database
from hpsearch.store.studies import StoredStudy
from hpsearch.study.study_file import parse_definition
from hpsearch.worker.options import WorkerSettings
from hpsearch.worker.programs.attempts import Attempts, attempt_folders
from hpsearch.worker.programs.preparation import prepare_program
from hpsearch.worker.programs.program_worker import ProgramWorker


class ProgramRunner:
    """A folder with a script, a study that calls it, and a worker.

    Args:
        base: the environment of the worker, as scripts inherit it.
    """

    def __init__(self, database: Database, folder: Path, base: Mapping[str, str]) -> None:
        self.database = database
        self.folder = folder
        self.base = dict(base)
        self.stop = StopSignal()
        self._num_studies = 0

    def create(
        self,
        script: str,
        values: Sequence[int] = (10,),
        *,
        run: Sequence[str] = ("sh", "script.sh", "{number}"),
        sections: Mapping[str, Any] | None = None,
        **command: Any,
    ) -> StoredStudy:
        """Create a study whose program is this shell script, called with a number."""
        (self.folder / "script.sh").write_text(script)
        self._num_studies += 1
        document = {
            "name": f"programs-{self._num_studies}",
            "command": {"run": list(run), "gpus": 0, "grace_seconds": 0.5, **command},
            "search": {"number": list(values)},
            "stopping": {"rule": "none"},
            **(sections or {}),
        }
        return prepare_program(self.database, parse_definition(document, source="test"), self.folder).study

    def work(self, study: StoredStudy, *, num_slots: int = 1, lease_seconds: float = 30.0) -> int:
        """Run the worker until it leaves; returns the number of trials that it has finished."""
        artifacts = open_store(self.folder / "artifacts")
        with Keeper() as keeper:
            attempts = Attempts(
                study,
                keeper,
                artifacts,
                attempt_folders(self.folder / "attempts", study, artifacts),
                devices=[()] * num_slots,
                base=self.base,
                place=self.folder,
                upload_seconds=0.0,
            )
            with attempts:
                worker = ProgramWorker(
                    database=self.database,
                    study=study,
                    attempts=attempts,
                    num_slots=num_slots,
                    device="cpu",
                    stop=self.stop,
                    settings=WorkerSettings(name="tester", poll_seconds=0.05),
                )
                ledger = Ledger(database=self.database, study_id=study.study_id, lease_seconds=lease_seconds)
                return worker.run(ledger)

    def run(self, script: str, values: Sequence[int] = (10,), *, num_slots: int = 1, **study: Any) -> list[FrozenTrial]:
        """Create a study, finish it, and return its trials."""
        created = self.create(script, values, **study)
        self.work(created, num_slots=num_slots)
        return self.trials(created)

    def trials(self, study: StoredStudy) -> list[FrozenTrial]:
        return self.database.load_study(study.name).get_trials(deepcopy=False)

    def stop_after(self, condition: Callable[[], object]) -> threading.Thread:
        """Ask the worker to stop once the condition holds."""

        def look() -> None:
            while not condition() and not done.wait(0.01):
                pass
            self.stop.set()

        done = threading.Event()
        thread = threading.Thread(target=look, daemon=True)
        thread.start()
        return thread


@pytest.fixture
def programs(database: Database, tmp_path: Path) -> ProgramRunner:
    base = {name: text for name, text in os.environ.items() if not name.startswith("HPSEARCH_")}
    base["PYTHONPATH"] = str(Path(__file__).parents[4])
    return ProgramRunner(database, tmp_path, base)
