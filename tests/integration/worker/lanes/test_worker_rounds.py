"""Workers on a search that grows while they are at it: rounds that follow each other, and users who widen a grid."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import optuna
import pytest
import torch
from optuna.trial import FrozenTrial, TrialState

from hpsearch.artifacts.best_parameters import open_artifacts
from hpsearch.data.files.lookup import DataLocations
from hpsearch.data.resident import ResidentData
from hpsearch.device.pin import PinnedDevice
from hpsearch.results.summary import read_summary
from hpsearch.signals import StopSignal
from hpsearch.store.connection.database import Database, open_database
from hpsearch.store.progress import is_finished
from hpsearch.store.rows.correct_images import read_correctness
from hpsearch.study.study_file import parse_definition
from hpsearch.worker.cohorts import Cohorts
from hpsearch.worker.lanes.lane_count import FixedLanes
from hpsearch.worker.lanes.worker import Worker
from hpsearch.worker.options import WorkerSettings
from hpsearch.worker.preparation import PreparedStudy, prepare_study
from hpsearch.worker.rounds import Advance, advance

ROUNDS: dict[str, Any] = {
    "strategy": "coarse-to-fine",
    "learning_rate": {"log10": [-1, -2]},
    "lambda_2": {"log10": [-3, -3], "zero": True},
    "budget_points": 9,
}


class Bench:
    """One study on digits, networks of eight hidden units, and workers in this process."""

    def __init__(self, url: str, folder: Path) -> None:
        self.url = url
        self.folder = folder
        self.database = open_database(url)

    def prepare(self, search: dict[str, Any], **document: Any) -> PreparedStudy:
        written = {
            "name": "a",
            "data": {"dataset": "digits"},
            "model": {"hidden_units": 8},
            "training": {"batch_size": 257, "max_epochs": 2},
            "stopping": {"rule": "none"},
            "search": search,
            **document,
        }
        locations = DataLocations(local=None, cache=self.folder / "cache", allow_download=False)
        return prepare_study(self.database, parse_definition(written, source="test"), locations=locations)

    def worker(
        self, prepared: PreparedStudy, database: Database | None = None, stop: StopSignal | None = None
    ) -> Worker:
        cpu = torch.device("cpu")
        data = ResidentData.place(prepared.data, cpu)
        return Worker(
            database=database or self.database,
            study=prepared.study,
            cohorts=Cohorts(prepared.study.definition.stopping, data, cpu),
            pinned=PinnedDevice(None),
            lanes=FixedLanes(2),
            artifacts=open_artifacts(self.folder / "artifacts"),
            stop=stop or StopSignal(),
            settings=WorkerSettings(name="tester", poll_seconds=0.01),
        )

    def trials(self) -> list[FrozenTrial]:
        return self.database.load_study("a").get_trials(deepcopy=False)


@pytest.fixture
def bench(tables_url: str, tmp_path: Path) -> Iterator[Bench]:
    bench = Bench(tables_url, tmp_path)
    yield bench
    bench.database.close()


def test_workers_go_on_from_round_to_round_and_leave_together_at_the_end(bench: Bench) -> None:
    prepared = bench.prepare(ROUNDS)

    def work(_: int) -> int:
        own = open_database(bench.url)
        number = bench.worker(prepared, own).run()
        own.close()
        return number

    with ThreadPoolExecutor(3) as pool:
        trained = list(pool.map(work, range(3)))
    summary = read_summary(bench.database, "a")
    assert sum(trained) == summary.points.complete == summary.points.total == 9
    assert len(summary.rounds) >= 2
    assert summary.is_finished
    assert len({tuple(sorted(t.point_parameters.items())) for t in summary.trials}) == 9
    assert len(read_correctness(bench.database, [t.trial_id for t in summary.trials])) == 9


def test_worker_that_starts_between_two_rounds_opens_the_next(bench: Bench) -> None:
    """All others died exactly there."""
    prepared = bench.prepare({**ROUNDS, "budget_points": 4})
    bench.worker(prepared).run()
    prepared = bench.prepare(ROUNDS)
    assert not is_finished(bench.database, prepared.study)
    assert bench.worker(prepared).run() == 5
    assert is_finished(bench.database, prepared.study)
    assert bench.worker(prepared).run() == 0


def test_worker_that_joins_late_finds_the_round_that_is_open(bench: Bench) -> None:
    prepared = bench.prepare({**ROUNDS, "budget_points": 4})
    bench.worker(prepared).run()
    prepared = bench.prepare(ROUNDS)
    assert advance(bench.database, prepared.study.study_id) is Advance.OPENED
    assert bench.worker(prepared).run() == 5


def test_batch_size_does_not_grow_beyond_the_images(bench: Bench) -> None:
    """10 is the largest of the grid, and 1,000 more than there are: no worker must meet a point that cannot be."""
    prepared = bench.prepare({"strategy": "coarse-to-fine", "batch_size": {"log10": [3, 2]}})
    num_images = len(prepared.data.train.labels)
    assert 1_000 < num_images < 10_000
    bench.worker(prepared).run()
    trials = bench.trials()
    assert {trial.state for trial in trials} == {TrialState.COMPLETE}
    assert max(trial.params["batch_size"] for trial in trials) <= num_images


class AtEpoch(StopSignal):
    """Does something right before the worker's epoch number `epoch` (from 1)."""

    def __init__(self, epoch: int, action: Callable[[], object]) -> None:
        super().__init__()
        self._epochs_to_go = epoch
        self._action = action

    @contextlib.contextmanager
    def interruptible(self, expected_seconds: float | None = None) -> Iterator[None]:
        self._epochs_to_go -= 1
        if self._epochs_to_go == 0:
            self._action()
        with super().interruptible(expected_seconds):
            yield


def test_running_worker_takes_up_what_its_study_was_widened_by(bench: Bench) -> None:
    """It has the old definition in memory, in which neither the activation nor the rate stands."""
    search = {"learning_rate": [0.1, 0.05], "activation": ["tanh"]}
    wider = {"learning_rate": [0.2, 0.1, 0.05], "activation": ["relu", "tanh"]}
    prepared = bench.prepare(search)
    worker = bench.worker(prepared, stop=AtEpoch(2, lambda: bench.prepare(wider)))
    assert worker.run() == 6
    study = bench.database.load_study("a")
    assert {(t.params["learning_rate"], t.params["activation"]) for t in study.trials} == {
        (rate, activation) for rate in wider["learning_rate"] for activation in wider["activation"]
    }
    assert len(study.trials) == 6
    assert set(optuna.importance.get_param_importances(study)) == {"learning_rate", "activation"}


@pytest.mark.parametrize(("kept", "number"), [("all", 4), ("best", 1)])
def test_parameters_of_all_complete_trials_are_kept_if_that_is_asked_for(bench: Bench, kept: str, number: int) -> None:
    """The first trial is the best, so that none of the others may be; one after the other, in two lanes of equals."""
    search = {"learning_rate": [0.2, 0.001, 0.0008, 0.0006]}
    prepared = bench.prepare(search, keep_parameters=kept)
    worker = replace(bench.worker(prepared), lanes=FixedLanes(1))
    worker.run()
    recorded = [trial for trial in bench.trials() if worker.artifacts.parameters_id(trial) is not None]
    assert len(recorded) == number
    assert bench.database.load_study("a").best_trial.number in {trial.number for trial in recorded}
