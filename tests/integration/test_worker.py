"""The worker on a real PostgreSQL: every point is trained, reported and counted once, whatever happens on the way."""

from __future__ import annotations

import contextlib
import struct
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
import torch
from optuna.trial import TrialState
from safetensors.numpy import load_file

from hpsearch.data.catalog import DataLocations
from hpsearch.data.resident import ResidentData
from hpsearch.service.artifacts import ArtifactFolder
from hpsearch.service.database import Database, open_database
from hpsearch.service.ledger import MAX_CRASHES, Ledger
from hpsearch.service.prepare import PreparedStudy, prepare_study
from hpsearch.service.signals import StopSignal
from hpsearch.service.worker import Worker
from hpsearch.study import StudyDefinition, parse_definition

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def idx_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """240 images of 28x28: 200 to train on, 40 to validate; bright rows tell the class, noise makes errors."""
    folder = tmp_path_factory.mktemp("idx")
    generator = np.random.default_rng(7)
    labels = np.arange(240) % 10
    images = generator.integers(0, 160, size=(240, 28, 28))
    for image, label in zip(images, labels, strict=True):
        image[label * 2 : label * 2 + 2] += 60
    header = struct.pack(">IIII", 0x803, 240, 28, 28)
    (folder / "train-images-idx3-ubyte").write_bytes(header + images.astype(np.uint8).tobytes())
    label_header = struct.pack(">II", 0x801, 240)
    (folder / "train-labels-idx1-ubyte").write_bytes(label_header + labels.astype(np.uint8).tobytes())
    return folder


@pytest.fixture
def database(database_url: str) -> Iterator[Database]:
    database = open_database(database_url)
    yield database
    database.close()


class Bench:
    """Prepares one study and starts workers on it, in this process."""

    def __init__(self, database: Database, definition: StudyDefinition, folder: Path) -> None:
        self.database = database
        self.folder = folder
        locations = DataLocations(local=None, cache=folder / "cache", allow_download=False)
        self.prepared: PreparedStudy = prepare_study(database, definition, locations=locations)
        self.data = ResidentData.place(self.prepared.data, CPU)
        self.ledger = Ledger(database=database, study_id=self.prepared.study.study_id)

    def worker(self, *, lanes: int = 4, stop: StopSignal | None = None) -> Worker:
        return Worker(
            database=self.database,
            study=self.prepared.study,
            data=self.data,
            device=CPU,
            num_lanes=lanes,
            artifacts=ArtifactFolder(self.folder / "artifacts"),
            stop=stop or StopSignal(),
            name="tester",
            poll_seconds=0.01,
        )

    @property
    def study(self) -> optuna.Study:
        return self.database.load_study(self.prepared.study.name)

    def counted(self) -> list[optuna.trial.FrozenTrial]:
        """The trials that count, by point; fails if a point has two."""
        states = (TrialState.COMPLETE, TrialState.PRUNED)
        trials = sorted(self.study.get_trials(states=states), key=lambda trial: trial.user_attrs["point"])
        points = [trial.user_attrs["point"] for trial in trials]
        assert points == list(range(self.prepared.study.definition.num_points))
        return trials


@pytest.fixture
def bench(database: Database, idx_folder: Path, tmp_path: Path) -> Callable[..., Bench]:
    def make(**sections: dict[str, Any]) -> Bench:
        document: dict[str, Any] = {
            "name": f"study-{len(optuna.get_all_study_names(database.storage))}",
            "data": {"dataset": str(idx_folder)},
            "model": {"hidden_units": 8},
            "training": {"batch_size": 10, "max_epochs": 4},
            "search": {"learning_rate": [0.5, 0.1, 0.02], "lambda_2": [0.0, 0.001]},
            "stopping": {"rule": "none"},
        }
        for section, values in sections.items():
            document[section] = {**document.get(section, {}), **values}
        return Bench(database, parse_definition(document, source="test"), tmp_path)

    return make


class BeforeEpoch(StopSignal):
    """Does something right before the worker's epoch number `epoch` (from 1); stops the worker if not told what."""

    def __init__(self, epoch: int, action: Callable[[], Any] | None = None) -> None:
        super().__init__()
        self._epochs_to_go = epoch
        self._action = action or self.set

    @contextlib.contextmanager
    def interruptible(self) -> Iterator[None]:
        self._epochs_to_go -= 1
        if self._epochs_to_go == 0:
            self._action()
        with super().interruptible():
            yield


def test_every_point_is_trained_once_with_one_value_per_epoch(bench: Callable[..., Bench]) -> None:
    study = bench()
    assert study.worker().run() == 6
    for trial in study.counted():
        assert trial.state is TrialState.COMPLETE
        assert list(trial.intermediate_values) == [1, 2, 3, 4]
        assert trial.value == min(trial.intermediate_values.values())
        assert trial.user_attrs["stop_reason"] == "max-epochs"
    assert study.ledger.counts().complete == 6
    assert study.study.best_value == min(trial.value or 1.0 for trial in study.counted())


def test_one_lane_and_many_lanes_give_the_same_curves(bench: Callable[..., Bench]) -> None:
    one, many = bench(), bench()
    one.worker(lanes=1).run()
    many.worker(lanes=5).run()
    for single, batched in zip(one.counted(), many.counted(), strict=True):
        assert single.params == batched.params
        # One of 40 validation images is 0.025: rounding may tip over one image at most.
        assert single.intermediate_values == pytest.approx(batched.intermediate_values, abs=0.0251)
        nll = "best_validation_nll"
        assert single.user_attrs[nll] == pytest.approx(batched.user_attrs[nll], rel=1e-4)


def test_the_best_trials_parameters_are_kept_and_reproduce_its_value(bench: Callable[..., Bench]) -> None:
    study = bench()
    worker = study.worker()
    worker.run()
    best = study.study.best_trial
    path = worker.artifacts.parameters_path(best)
    assert path is not None
    parameters = load_file(path)
    images, labels = study.data.validation_images.numpy(), study.data.validation_labels.numpy()
    hidden = np.tanh(images @ parameters["hidden.weight"] + parameters["hidden.bias"])
    scores = hidden @ parameters["output.weight"] + parameters["output.bias"]
    assert np.mean(scores.argmax(axis=1) != labels) == best.value


def test_a_loser_is_pruned_by_optunas_own_rule(bench: Callable[..., Bench]) -> None:
    pruning = {"pruner": "median", "startup_trials": 1, "warmup_epochs": 1}
    search = {"learning_rate": [0.5, 1e-6], "lambda_2": [0.0]}
    study = bench(pruning=pruning, search=search)
    study.worker(lanes=1).run()
    winner, loser = study.counted()
    assert winner.state is TrialState.COMPLETE
    assert loser.state is TrialState.PRUNED
    assert loser.user_attrs["stop_reason"] == "pruned"
    assert list(loser.intermediate_values) == [1, 2]
    assert loser.value == loser.intermediate_values[2]


def test_asha_rungs_reach_the_database(bench: Callable[..., Bench]) -> None:
    study = bench(pruning={"pruner": "successive-halving", "reduction_factor": 2})
    study.worker(lanes=2).run()
    assert all("completed_rung_0" in trial.system_attrs for trial in study.counted())


def test_a_diverging_trial_ends_alone(bench: Callable[..., Bench]) -> None:
    model = {"activation": "relu"}  # tanh would saturate and stay finite
    with_it = bench(model=model, search={"learning_rate": [0.1, 1e30, 0.02], "lambda_2": [0.0]})
    with_it.worker(lanes=3).run()
    good, diverged, other = with_it.counted()
    assert diverged.state is TrialState.PRUNED
    assert diverged.user_attrs["stop_reason"] == "diverged"
    assert diverged.user_attrs["stop_detail"].startswith("diverged at epoch ")
    assert all(np.isfinite(value) for value in diverged.intermediate_values.values())
    without = bench(model=model, search={"learning_rate": [0.1, 0.2, 0.02], "lambda_2": [0.0]})
    without.worker(lanes=3).run()
    calm = without.counted()
    assert good.intermediate_values == calm[0].intermediate_values
    assert other.intermediate_values == calm[2].intermediate_values
    assert good.user_attrs["best_validation_nll"] == calm[0].user_attrs["best_validation_nll"]


def test_a_stopped_worker_gives_back_and_another_does_exactly_the_rest(bench: Callable[..., Bench]) -> None:
    study = bench()
    finished = study.worker(lanes=2, stop=BeforeEpoch(6)).run()
    counts = study.ledger.counts()
    assert (finished, counts.complete, counts.running, counts.waiting) == (2, 2, 0, 4)
    assert study.worker().run() == 4
    study.counted()
    given_back = [t for t in study.study.trials if t.state is TrialState.FAIL]
    assert [t.user_attrs["fail_reason"] for t in given_back] == ["its worker was stopped"] * 2


def test_a_worker_that_lost_a_lease_drops_the_trial_and_goes_on(
    bench: Callable[..., Bench], database: Database
) -> None:
    study = bench()
    thief = replace(study.ledger, owner=99)

    def steal() -> None:
        with database.engine.begin() as connection:
            connection.exec_driver_sql("UPDATE hpsearch_points SET lease_expires_at = now() - interval '1 s'")
        assert thief.reap() == 2

    study.worker(lanes=2, stop=BeforeEpoch(2, steal)).run()
    counted = study.counted()
    assert [trial.user_attrs["attempt"] for trial in counted] == [2, 2, 1, 1, 1, 1]
    assert all(list(trial.intermediate_values) == [1, 2, 3, 4] for trial in counted)


class BrokenData:
    """Stands before the real data and fails in every epoch."""

    def __init__(self, data: ResidentData) -> None:
        self._data = data

    def __getattr__(self, name: str) -> Any:
        if name == "chunks":
            raise RuntimeError("the device fell off the bus")
        return getattr(self._data, name)


def test_a_point_that_always_fails_is_given_up_and_the_study_ends(bench: Callable[..., Bench]) -> None:
    study = bench(search={"learning_rate": [0.1], "lambda_2": [0.0]})
    study.data = BrokenData(study.data)  # type: ignore[assignment]
    for _ in range(MAX_CRASHES):
        with pytest.raises(RuntimeError, match="fell off the bus"):
            study.worker().run()
    assert study.ledger.counts().failed == 1
    assert study.worker().run() == 0  # nothing is left, and it says so by ending


@pytest.mark.parametrize("strategy", ["random", "tpe"])
def test_drawn_points_are_counted_once_and_the_same_for_any_worker(strategy: str, bench: Callable[..., Bench]) -> None:
    search = {
        "strategy": strategy,
        "num_points": 7,
        "learning_rate": {"log10": [0, -2]},
        "lambda_2": {"log10": [-3, -5], "zero": True},
        "hidden_units": [4, 8],
    }
    first, second = bench(search=search), bench(search=search)
    first.worker(lanes=1).run()
    second.worker(lanes=1, stop=BeforeEpoch(9)).run()
    second.worker(lanes=1).run()
    assert len(first.counted()) == len(second.counted()) == 7
    assert all(set(t.params) >= {"learning_rate", "lambda_2_is_zero", "hidden_units"} for t in first.counted())
    if strategy == "random":  # TPE's draws depend on what was known at the time
        assert first.counted()[0].params == second.counted()[0].params


def test_points_of_other_shape_train_in_cohorts_of_their_own(bench: Callable[..., Bench]) -> None:
    study = bench(search={"hidden_units": [4, 8, 16], "batch_size": [10, 20], "lambda_2": [0.0]})
    study.worker(lanes=8).run()
    assert {(t.params["hidden_units"], t.params["batch_size"]) for t in study.counted()} == {
        (units, size) for units in (4, 8, 16) for size in (10, 20)
    }


def test_a_drawn_point_of_another_shape_waits_for_the_cohort_to_drain(bench: Callable[..., Bench]) -> None:
    search = {"strategy": "random", "num_points": 6, "hidden_units": [4, 8], "learning_rate": [0.1, 0.2]}
    search["lambda_2"] = [0.0, 0.001]
    study = bench(search=search)
    study.worker(lanes=3).run()
    assert {trial.params["hidden_units"] for trial in study.counted()} == {4, 8}


def test_own_stopping_rule_ends_a_trial_as_complete(bench: Callable[..., Bench]) -> None:
    stopping = {"rule": "no-improvement-in-n", "n": 2}
    study = bench(stopping=stopping, training={"max_epochs": 50}, search={"learning_rate": [1e-7], "lambda_2": [0.0]})
    study.worker().run()
    (trial,) = study.counted()
    assert trial.state is TrialState.COMPLETE
    assert trial.user_attrs["stop_reason"] == "no-improvement"
    assert list(trial.intermediate_values.values()) == [trial.value] * 3  # the rate is too small to change anything


def test_a_running_study_can_be_joined_by_a_second_worker(bench: Callable[..., Bench]) -> None:
    study = bench()
    second = study.worker(lanes=2)
    thread = threading.Thread(target=second.run)
    first = study.worker(lanes=2, stop=BeforeEpoch(2, thread.start))
    first.run()
    thread.join()
    assert first.num_finished + second.num_finished == 6
    assert second.num_finished >= 1
    study.counted()


def test_a_worker_that_keeps_dying_does_not_cost_a_point_that_makes_progress(
    bench: Callable[..., Bench], database: Database
) -> None:
    study = bench(search={"learning_rate": [0.1], "lambda_2": [0.0]}, training={"max_epochs": 8})

    def die() -> None:
        raise RuntimeError("out of memory, because of somebody else")

    for num_epochs in range(2, 2 + MAX_CRASHES):  # each attempt gets one epoch farther than the one before
        with pytest.raises(RuntimeError):
            study.worker(stop=BeforeEpoch(num_epochs, die)).run()
    assert study.ledger.counts().failed == 0
    study.worker().run()
    (trial,) = study.counted()
    assert trial.user_attrs["attempt"] == MAX_CRASHES + 1
