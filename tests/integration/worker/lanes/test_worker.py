"""The worker on a real PostgreSQL: every point is trained, reported and counted once, whatever happens on the way."""

from __future__ import annotations

import contextlib
import itertools
import struct
import threading
import weakref
from collections.abc import Callable, Hashable, Iterator
from concurrent import futures
from dataclasses import fields, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
import sqlalchemy
import torch
from optuna.trial import TrialState
from safetensors.numpy import load_file

from benchmarks.reference_loop import validate
from hpsearch.artifacts.best_parameters import open_artifacts
from hpsearch.cgroups import MemoryGroups
from hpsearch.data.files.lookup import DataLocations
from hpsearch.data.resident import ResidentData
from hpsearch.device.pin import PinnedDevice
from hpsearch.epoch_report import EpochReport
from hpsearch.errors import ArtifactError, DeviceError, StorageError
from hpsearch.results.stored_parameters import read_parameters
from hpsearch.results.summary import read_summary
from hpsearch.signals import StopSignal, WorkerStopped
from hpsearch.store.checkpoints import Checkpoints
from hpsearch.store.claims.ledger import Ledger
from hpsearch.store.claims.requeue import MAX_CRASHES
from hpsearch.store.connection.database import Database, DatabaseAwayError
from hpsearch.store.progress import read_progress
from hpsearch.store.registration import _set_attributes
from hpsearch.store.rows.correct_images import Correctness, read_correctness
from hpsearch.store.rows.counts import PointCounts
from hpsearch.store.studies import DEFINITION_ATTRIBUTE
from hpsearch.study.definition import StudyDefinition
from hpsearch.study.settings import TrialSettings
from hpsearch.study.study_file import parse_definition
from hpsearch.training.lanes.cohort import Cohort
from hpsearch.training.networks.build import build_network
from hpsearch.worker import ledger_access
from hpsearch.worker.cohorts import BuildCohort, Cohorts
from hpsearch.worker.health.life_sign import LifeSign, WorkerState
from hpsearch.worker.health.metrics import WorkerMetrics
from hpsearch.worker.lanes import epoch_writer as epoch_writer_module
from hpsearch.worker.lanes import worker as worker_module
from hpsearch.worker.lanes.epoch_writer import EpochEntry, EpochWriter, Written
from hpsearch.worker.lanes.intake import HELD_PER_LANE, MOST_PASSED
from hpsearch.worker.lanes.lane_count import FixedLanes, LaneChoice, LearnedLanes
from hpsearch.worker.lanes.measured_lane_counts import KnownLanes, LaneCase, LaneMemory, StudyMix
from hpsearch.worker.lanes.worker import Worker
from hpsearch.worker.lease_keeper import Presence
from hpsearch.worker.ledger_access import LedgerAccess
from hpsearch.worker.options import WorkerSettings
from hpsearch.worker.preparation import PreparedStudy, prepare_study
from tests.integration.lost_commits import Backup
from tests.integration.stop_signals import BeforeEpoch

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """A busy machine is no slow database; tests of slow ones are impatient of their own accord."""
    monkeypatch.setattr(epoch_writer_module, "SLOW_SECONDS", 60.0)


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


class Bench:
    """Prepares one study and starts workers on it, in this process."""

    def __init__(self, database: Database, definition: StudyDefinition, folder: Path) -> None:
        self.database = database
        self.folder = folder
        locations = DataLocations(local=None, cache=folder / "cache", allow_download=False)
        self.prepared: PreparedStudy = prepare_study(database, definition, locations=locations)
        self.data = ResidentData.place(self.prepared.data, CPU)
        self.ledger = Ledger(database=database, study_id=self.prepared.study.study_id)

    def worker(
        self,
        *,
        lanes: int | LaneChoice = 4,
        stop: StopSignal | None = None,
        build_cohort: BuildCohort = Cohort,
        pinned: PinnedDevice | None = None,
        metrics: WorkerMetrics | None = None,
        **settings: Any,
    ) -> Worker:
        stopping = self.prepared.study.definition.stopping
        return Worker(
            database=self.database,
            study=self.prepared.study,
            cohorts=Cohorts(stopping, self.data, CPU, build_cohort),
            pinned=pinned or PinnedDevice(None),
            lanes=FixedLanes(lanes) if isinstance(lanes, int) else lanes,
            artifacts=open_artifacts(self.folder / "artifacts"),
            stop=stop or StopSignal(),
            settings=WorkerSettings(name="tester", poll_seconds=0.01, **settings),
            metrics=metrics or WorkerMetrics(),
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
            "search": {
                "learning_rate": [0.2, 0.1, 0.02],
                "lambda_2": [0.0, 0.001],
            },  # above 0.3 it is chaotic: rounding decides
            "stopping": {"rule": "none"},
        }
        for section, values in sections.items():
            document[section] = {**document.get(section, {}), **values}
        return Bench(database, parse_definition(document, source="test"), tmp_path)

    return make


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
    artifact_id = worker.artifacts.parameters_id(best)
    assert artifact_id is not None
    parameters = load_file(Path(worker.artifacts.place) / artifact_id)
    images, labels = study.data.validation_images.numpy(), study.data.validation_labels.numpy()
    hidden = np.tanh(images @ parameters["hidden.weight"].T + parameters["hidden.bias"])
    scores = hidden @ parameters["output.weight"].T + parameters["output.bias"]
    assert np.mean(scores.argmax(axis=1) != labels) == best.value


def test_a_loser_is_pruned_by_optunas_own_rule(bench: Callable[..., Bench]) -> None:
    pruning = {"pruner": "median", "startup_trials": 1, "warmup_epochs": 1}
    search = {"learning_rate": [0.2, 1e-6], "lambda_2": [0.0]}
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
    with_it = bench(model=model, search={"learning_rate": [0.1, 1e9, 0.02], "lambda_2": [0.0]})
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
    thief = replace(study.ledger, owner=99, lease_seconds=0.0)

    def steal() -> None:
        num_stolen = 0
        while num_stolen < 2:  # the epoch before may just be written, which renews the leases
            num_stolen += thief.reap()

    study.worker(lanes=2, stop=BeforeEpoch(2, steal)).run()
    counted = study.counted()
    assert [trial.user_attrs["attempt"] for trial in counted] == [2, 2, 1, 1, 1, 1]
    assert all(list(trial.intermediate_values) == [1, 2, 3, 4] for trial in counted)


@pytest.mark.parametrize("epoch", [1, 3, 5, 8])
@pytest.mark.parametrize("search", [{}, {"strategy": "random", "num_points": 6}], ids=["grid", "random"])
def test_a_database_that_forgets_all_that_was_claimed_and_trained_costs_time_and_nothing_else(
    epoch: int, search: dict[str, Any], bench: Callable[..., Bench], database: Database
) -> None:
    """The worker claims trials again that it has in its lanes, and whose epochs are still to be written."""
    study = bench(search=search)
    backup = Backup(database)
    study.worker(lanes=2, stop=BeforeEpoch(epoch, backup.put_back)).run()
    for trial in study.counted():
        assert list(trial.intermediate_values) == [1, 2, 3, 4]
        assert len(trial.params) >= 2
    assert study.ledger.counts() == PointCounts(complete=6)


def test_a_worker_leaves_a_study_whose_number_is_another_studys_now(
    bench: Callable[..., Bench], database: Database
) -> None:
    """The study was created after the backup that was put back, and another one since."""
    study = bench()
    worker = study.worker(lanes=2)
    another = parse_definition({"name": "another", "search": {"learning_rate": [0.3]}}, source="test")

    def replace_study() -> None:
        with database.engine.begin() as connection:
            attributes = {DEFINITION_ATTRIBUTE: another.canonical_json()}
            _set_attributes(connection, study.prepared.study.study_id, attributes)
        worker._ledger.holdings.note_server(datetime(2020, 1, 1, tzinfo=UTC))

    worker.stop = BeforeEpoch(2, replace_study)
    with pytest.raises(StorageError, match="is another study now") as caught:
        worker.run()
    assert caught.value.exit_code == 3
    assert study.ledger.counts().running == 0


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
    has_joined = threading.Event()
    second = study.worker(lanes=2, stop=BeforeEpoch(1, has_joined.set))
    thread = threading.Thread(target=second.run)

    def let_the_second_join() -> None:
        thread.start()
        assert has_joined.wait(240)

    first = study.worker(lanes=2, stop=BeforeEpoch(2, let_the_second_join))
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


# The number of lanes


class WholeShare:
    """As many lanes as the worker may take points; notes how many that were."""

    def __init__(self) -> None:
        self.shares: list[int] = []

    def num_lanes(self, settings: TrialSettings, share: Callable[[], int]) -> int:
        self.shares.append(share())
        return self.shares[-1]

    def review(self, settings: TrialSettings, num_busy: int, seconds: float, share: Callable[[], int | None]) -> int:
        return self.shares[-1] if self.shares else num_busy

    def note_shortage(self, settings: TrialSettings, most: int) -> None:
        pytest.fail("memory sufficed")

    def note_idle(self) -> None:
        pass


def test_workers_that_start_together_share_the_points_out(bench: Callable[..., Bench]) -> None:
    study = bench()
    running: list[int] = []
    stop = BeforeEpoch(1, lambda: running.append(study.ledger.counts().running))
    study.worker(lanes=WholeShare(), stop=stop, num_siblings=4).run()
    assert running == [2]  # of six: the fourth worker will find none, but no other one is left without
    study.counted()


def test_workers_that_came_by_themselves_share_the_points_out_too(
    bench: Callable[..., Bench], database: Database
) -> None:
    study, elsewhere = bench(), bench()
    alone, together = WholeShare(), WholeShare()
    with Presence(elsewhere.ledger) as busy:
        busy.ledger.claim(1)  # it trains another study and wants no point of this one
        study.worker(lanes=alone, stop=BeforeEpoch(1)).run()
        with Presence(study.ledger):
            study.worker(lanes=together, stop=BeforeEpoch(1)).run()
    assert (alone.shares, together.shares) == ([6], [3])


def test_a_cohort_opens_no_more_lanes_than_it_has_points(bench: Callable[..., Bench]) -> None:
    study = bench(search={"batch_size": [10, 20], "learning_rate": [0.1, 0.2, 0.05], "lambda_2": [0.0]})
    lanes = WholeShare()
    study.worker(lanes=lanes).run()
    study.counted()
    assert lanes.shares == [3, 3]


def test_learned_lanes_train_a_study_and_are_remembered(
    bench: Callable[..., Bench], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    groups = MemoryGroups(machine="m", num_kills={1: 0})
    monkeypatch.setattr("hpsearch.worker.lanes.lanes_in_use.memory_groups", lambda: groups)
    study = bench(training={"max_epochs": 12})
    memory = LaneMemory(tmp_path / "lanes")
    in_use: list[int] = []

    class Watching(StopSignal):
        @contextlib.contextmanager
        def interruptible(self, expected_seconds: float | None = None) -> Iterator[None]:
            in_use.append(len(list((memory.folder / "in-use").glob("*.json"))))
            with super().interruptible(expected_seconds):
                yield

    stop = Watching()
    lanes = LearnedLanes(memory=memory, data=study.data, device=CPU, stop=stop)
    assert study.worker(lanes=lanes, stop=stop).run() == 6
    assert {tuple(trial.user_attrs["lanes"]) for trial in study.counted()} == {(6,)}
    settings = study.prepared.study.definition.resolve({"learning_rate": 0.2, "lambda_2": 0.0})
    assert list(memory.recall(LaneCase.of(settings, study.data, CPU, 1, StudyMix())).seconds) == [6]
    assert in_use == [0, *[1] * 12]  # first the device is measured
    assert list((memory.folder / "in-use").glob("*")) == []


def test_a_worker_that_is_stopped_while_it_measures_gives_its_point_back(
    bench: Callable[..., Bench], tmp_path: Path
) -> None:
    study = bench()
    stop = BeforeEpoch(1)  # the measurement is the first thing that can be interrupted
    lanes = LearnedLanes(memory=LaneMemory(tmp_path / "lanes"), data=study.data, device=CPU, stop=stop)
    assert study.worker(lanes=lanes, stop=stop).run() == 0
    assert study.ledger.counts() == PointCounts(waiting=6)


class Scheduled(FixedLanes):
    """Has these numbers of lanes, epoch by epoch."""

    schedule: list[int]
    shares: list[int | None]

    def num_lanes(self, settings: TrialSettings, share: Callable[[], int]) -> int:
        return self.number

    def review(self, settings: TrialSettings, num_busy: int, seconds: float, share: Callable[[], int | None]) -> int:
        self.shares.append(share())
        return self.schedule.pop(0) if self.schedule else self.number


def scheduled(first: int, schedule: list[int]) -> Scheduled:
    lanes = Scheduled(first)
    object.__setattr__(lanes, "schedule", schedule)
    object.__setattr__(lanes, "shares", [])
    return lanes


def test_a_cohort_grows_between_epochs_and_trials_tell_with_how_many_they_were_trained(
    bench: Callable[..., Bench],
) -> None:
    study = bench()
    lanes = scheduled(2, [2, 4, 6, 6])
    study.worker(lanes=lanes).run()
    told = sorted(trial.user_attrs["lanes"] for trial in study.counted())
    assert told == [[2, 4, 6]] * 2 + [[4, 6]] * 2 + [[6, 4, 2]] * 2
    assert lanes.shares[:3] == [6, 6, 6]


def test_lanes_that_are_too_many_are_not_refilled(bench: Callable[..., Bench]) -> None:
    study = bench()
    study.worker(lanes=scheduled(4, [2] * 20)).run()
    assert sorted(trial.user_attrs["lanes"] for trial in study.counted()) == [[2]] * 2 + [[4]] * 4


def test_the_curves_do_not_depend_on_changes_of_the_number_of_lanes(bench: Callable[..., Bench]) -> None:
    constant, changing = bench(), bench()
    constant.worker(lanes=1).run()
    changing.worker(lanes=scheduled(1, [3, 2, 5, 6])).run()
    for one, other in zip(constant.counted(), changing.counted(), strict=True):
        assert one.intermediate_values == pytest.approx(other.intermediate_values, abs=0.051)
        assert (one.params, one.user_attrs["epochs"]) == (other.params, other.user_attrs["epochs"])


def test_without_the_database_the_number_of_lanes_is_not_asked_for(
    bench: Callable[..., Bench], monkeypatch: pytest.MonkeyPatch
) -> None:
    study = bench()
    lanes = scheduled(2, [2, 2])
    monkeypatch.setattr(LedgerAccess, "is_away", property(lambda _: len(lanes.shares) < 2))
    study.worker(lanes=lanes).run()
    study.counted()
    assert lanes.shares[:2] == [None, None]


def test_held_over_points_open_no_more_lanes_than_their_own_cohort_has(bench: Callable[..., Bench]) -> None:
    search = {"strategy": "random", "num_points": 8, "batch_size": [10, 20], "learning_rate": [0.1, 0.2]}
    study = bench(search=search)
    busy: dict[int, int] = {}

    class BySize(WholeShare):
        def num_lanes(self, settings: TrialSettings, share: Callable[[], int]) -> int:
            return 6 if settings.training.batch_size == 10 else 2

    class Watching(StopSignal):
        @contextlib.contextmanager
        def interruptible(self, expected_seconds: float | None = None) -> Iterator[None]:
            for lane in worker._lanes.values():
                size = lane.settings.training.batch_size
                busy[size] = max(busy.get(size, 0), len(worker._lanes))
            with super().interruptible(expected_seconds):
                yield

    worker = study.worker(lanes=BySize(), stop=Watching())
    worker.run()
    study.counted()
    assert busy[20] == 2


def test_points_of_another_cohort_are_not_among_those_that_lanes_are_opened_for(bench: Callable[..., Bench]) -> None:
    search = {"strategy": "random", "num_points": 8, "batch_size": [10, 20], "learning_rate": [0.1, 0.2]}
    study = bench(search=search)
    lanes = WholeShare()
    study.worker(lanes=lanes).run()
    sizes = [trial.params["batch_size"] for trial in study.counted()]
    num_others = sum(size != sizes[0] for size in sizes)
    assert lanes.shares == [8 - num_others, num_others]


def test_points_that_a_sampler_draws_fill_the_lanes_as_long_as_few_wait_for_another_cohort(
    bench: Callable[..., Bench],
) -> None:
    """With tpe a point's cohort is known only when it is drawn; those of another cohort wait for the next one."""
    num_lanes, num_points = 4, 24
    search = {"strategy": "tpe", "num_points": num_points, "batch_size": [10, 20], "learning_rate": [0.1, 0.2]}
    study = bench(search=search, training={"batch_size": 10, "max_epochs": 2})
    seen: list[tuple[int, int]] = []  # lanes that are busy, trials that are held in all

    class Watching(StopSignal):
        @contextlib.contextmanager
        def interruptible(self, expected_seconds: float | None = None) -> Iterator[None]:
            seen.append((len(worker._lanes), len(worker._intake.held())))
            with super().interruptible(expected_seconds):
                yield

    worker = study.worker(lanes=num_lanes, stop=Watching())
    worker.run()
    study.counted()
    assert max(held for _, held in seen) <= HELD_PER_LANE * num_lanes
    assert max(held - busy for busy, held in seen) > 0
    # Before, lanes stayed empty from the first point of another cohort on: on average 2 were busy.
    assert sum(busy for busy, _ in seen) / len(seen) > 0.75 * num_lanes


@pytest.fixture
def plant_draws(monkeypatch: pytest.MonkeyPatch) -> Callable[[dict[int, dict[str, Any]]], None]:
    """Make the sampler draw these parameters for these trials, by number, and those of -1 for all others."""

    def plant(drawn: dict[int, dict[str, Any]]) -> None:
        def build(*_: Any, trial_number: int, **__: Any) -> optuna.samplers.BaseSampler:
            its = {**drawn[-1], **drawn.get(trial_number, {})}
            return optuna.samplers.PartialFixedSampler(its, optuna.samplers.RandomSampler(seed=trial_number))

        monkeypatch.setattr("hpsearch.worker.drawing.build_sampler", build)

    return plant


@pytest.mark.filterwarnings("ignore:.*PartialFixedSampler is experimental")
def test_a_point_of_another_cohort_does_not_wait_until_the_end_of_the_study(
    bench: Callable[..., Bench], plant_draws: Callable[[dict[int, dict[str, Any]]], None]
) -> None:
    """A sampler that has settled draws points of the open cohort only, and its lanes do not end together."""
    search = {"strategy": "tpe", "num_points": 40, "batch_size": [10, 20], "learning_rate": [0.1, 0.2]}
    study = bench(search=search, training={"batch_size": 10, "max_epochs": 2})
    plant_draws({-1: {"batch_size": 10}, 1: {"batch_size": 20}})
    num_lanes = 2

    class Staggered(Cohort):
        """Ends one of the first trials after one epoch, so that a lane ends after each epoch from then on."""

        is_new = True

        def train_epoch(self) -> dict[Hashable, EpochReport]:
            reports = super().train_epoch()
            if self.is_new:
                self.is_new = False
                key, report = reports.popitem()
                reports[key] = replace(report, is_schedule_exhausted=True)
            return reports

    study.worker(lanes=num_lanes, build_cohort=Staggered).run()
    ended = sorted(study.counted(), key=lambda trial: (trial.datetime_complete, trial.number))
    place = [trial.params["batch_size"] for trial in ended].index(20)
    assert num_lanes < place <= (MOST_PASSED + 1) * num_lanes


def test_lanes_that_have_just_ended_are_no_reason_to_look_for_lost_trials(
    bench: Callable[..., Bench], monkeypatch: pytest.MonkeyPatch
) -> None:
    """That takes two queries; with trials of one epoch, there was no turn without them."""
    looks: list[None] = []
    reap = Ledger.reap

    def counted_reap(ledger: Ledger) -> int:
        looks.append(None)
        return reap(ledger)

    monkeypatch.setattr(Ledger, "reap", counted_reap)
    study = bench()
    study.worker(lanes=1).run()
    study.counted()
    assert 1 <= len(looks) <= 2  # at the start, and where a turn found nothing


def test_a_sampler_that_learns_has_five_generations_at_least(bench: Callable[..., Bench]) -> None:
    study = bench(search={"strategy": "tpe", "num_points": 20, "learning_rate": {"low": 0.1, "high": 0.2}})
    lanes = WholeShare()
    study.worker(lanes=lanes).run()
    study.counted()
    assert lanes.shares == [4] * 5


@pytest.mark.parametrize("pruner", ["none", "median"])
def test_a_pruner_that_compares_trials_has_three_generations_at_least(pruner: str, bench: Callable[..., Bench]) -> None:
    search = {"learning_rate": [0.1, 0.2, 0.3, 0.4], "lambda_2": [0.0, 0.1]}
    study = bench(search=search, pruning={"pruner": pruner})
    lanes = WholeShare()
    study.worker(lanes=lanes).run()
    # The part is one of all points: the last generation is no smaller because few are left.
    assert lanes.shares == ([8] if pruner == "none" else [3, 3, 2])


# Writing in the background


class Early(EpochWriter):
    """Writes each epoch before the next one begins, as if nothing overlapped."""

    def hand_over(self, entry: EpochEntry) -> None:
        super().hand_over(entry)
        assert self.last_write is not None
        futures.wait([self.last_write])


class Late(EpochWriter):
    """Writes each epoch only when the worker wants to know what became of it: as late as can be."""

    _is_awaited = threading.Event()

    def hand_over(self, entry: EpochEntry) -> None:
        self._is_awaited.clear()
        super().hand_over(entry)

    def _await(self, seconds: float) -> bool:
        self._is_awaited.set()
        return super()._await(seconds)

    def _write(self, entry: EpochEntry) -> Written:
        assert self._is_awaited.wait(240)
        return super()._write(entry)


def curves(study: Bench) -> list[Any]:
    """All that a study's counted trials say, but for times."""
    return [
        (t.params, t.state, t.value, t.intermediate_values, {k: v for k, v in t.user_attrs.items() if k != "seconds"})
        for t in study.counted()
    ]


@pytest.mark.parametrize(
    "sections",
    [
        {"stopping": {"rule": "no-improvement-in-n", "n": 1}, "training": {"max_epochs": 6}},
        {"pruning": {"pruner": "median", "startup_trials": 1}},
        {"pruning": {"pruner": "successive-halving", "reduction_factor": 2}},
        {  # enough points for the sampler to look at those before, and trials that end one by one
            "search": {"strategy": "tpe", "num_points": 16, "learning_rate": {"log10": [0, -3]}, "lambda_2": [0.0]},
            "stopping": {"rule": "no-improvement-in-n", "n": 1},
        },
        {"training": {"batch_size": 10, "max_epochs": 2}, "search": {"hidden_units": [4, 8], "lambda_2": [0.0]}},
    ],
    ids=["own rule", "median", "asha", "tpe", "cohorts"],
)
def test_results_are_the_same_whether_an_epoch_is_written_early_or_late(
    sections: dict[str, Any], bench: Callable[..., Bench], monkeypatch: pytest.MonkeyPatch
) -> None:
    studies = []
    for kind in (Early, Late):
        monkeypatch.setattr(worker_module, "EpochWriter", kind)
        study = bench(**sections)
        study.worker(lanes=2).run()
        studies.append(curves(study))
    assert studies[0] == studies[1]


class Watched(Cohort):
    """Calls something before and after each epoch."""

    def __init__(self, before: Callable[[], Any], after: Callable[[], Any], *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._before = before
        self._after = after

    def train_epoch(self) -> dict[Hashable, EpochReport]:
        self._before()
        reports = super().train_epoch()
        self._after()
        return reports


def test_a_database_that_does_not_answer_keeps_no_epoch_from_being_trained(
    bench: Callable[..., Bench], database: Database
) -> None:
    study = bench()
    locker = database.engine.connect()
    begun = itertools.count(1)
    ended = itertools.count(1)

    def before() -> None:
        if next(begun) == 1:  # not for ever, so that a worker that waits fails and does not hang
            locker.exec_driver_sql("SET idle_in_transaction_session_timeout = '30s'")
            locker.exec_driver_sql("SELECT point FROM hpsearch_points WHERE owner IS NOT NULL FOR UPDATE")

    def after() -> None:
        if next(ended) == 2:
            with database.engine.connect() as reader:
                recorded.append(reader.exec_driver_sql("SELECT count(*) FROM hpsearch_epochs").scalar_one())
            locker.rollback()

    recorded: list[int] = []

    def build(*arguments: Any, **options: Any) -> Cohort:
        return Watched(before, after, *arguments, **options)

    study.worker(lanes=2, build_cohort=build).run()
    locker.close()
    assert recorded == [0]  # after two epochs
    assert all(list(trial.intermediate_values) == [1, 2, 3, 4] for trial in study.counted())


def test_a_lane_is_free_in_the_epoch_after_its_trials_last_one(
    bench: Callable[..., Bench], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker_module, "EpochWriter", Late)
    study = bench()
    busy: list[int] = []
    stop = WatchedStop(lambda: busy.append(len(worker._lanes)))
    worker = study.worker(lanes=2, stop=stop)
    worker.run()
    study.counted()
    assert busy == [2] * 12  # 6 trials of 4 epochs


class WatchedStop(StopSignal):
    """Calls something before every epoch."""

    def __init__(self, action: Callable[[], Any]) -> None:
        super().__init__()
        self._action = action

    @contextlib.contextmanager
    def interruptible(self, expected_seconds: float | None = None) -> Iterator[None]:
        self._action()
        with super().interruptible(expected_seconds):
            yield


def test_a_pruned_lane_costs_nothing_in_the_next_epoch(
    bench: Callable[..., Bench], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker_module, "EpochWriter", Late)
    study = bench(pruning={"pruner": "successive-halving", "reduction_factor": 2}, training={"max_epochs": 8})
    epochs_in_lanes: list[int] = []
    worker = study.worker(lanes=3, stop=WatchedStop(lambda: epochs_in_lanes.append(len(worker._lanes))))
    worker.run()
    trials = study.counted()
    assert {trial.state for trial in trials} == {TrialState.COMPLETE, TrialState.PRUNED}
    assert sum(epochs_in_lanes) == sum(len(trial.intermediate_values) for trial in trials)


def test_a_stopped_worker_records_what_it_has_trained(
    bench: Callable[..., Bench], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker_module, "EpochWriter", Late)
    study = bench()
    assert study.worker(lanes=2, stop=BeforeEpoch(6)).run() == 2
    given_back = [t for t in study.study.trials if t.state is TrialState.FAIL]
    assert [list(trial.intermediate_values) for trial in given_back] == [[1], [1]]
    assert study.ledger.counts() == PointCounts(waiting=4, complete=2)


def test_a_failing_worker_records_what_it_has_trained(
    bench: Callable[..., Bench], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker_module, "EpochWriter", Late)
    study = bench()

    def die() -> None:
        raise RuntimeError("on purpose")

    with pytest.raises(RuntimeError, match="on purpose"):
        study.worker(lanes=2, stop=BeforeEpoch(6, die)).run()
    assert study.ledger.counts() == PointCounts(waiting=4, complete=2)
    failed = [t for t in study.study.trials if t.state is TrialState.FAIL]
    assert [list(trial.intermediate_values) for trial in failed] == [[1], [1]]


def test_an_error_of_the_background_ends_the_worker_like_its_own(bench: Callable[..., Bench]) -> None:
    study = bench()
    worker = study.worker(lanes=6)
    Path(worker.artifacts.place).rename(study.folder / "away")
    with pytest.raises(ArtifactError, match="cannot write the best parameters"):
        worker.run()
    counts = study.ledger.counts()
    assert (counts.running, counts.waiting) == (0, 6)
    (study.folder / "away").rename(Path(worker.artifacts.place))
    assert study.worker().run() == 6
    study.counted()


def test_an_error_after_an_error_of_the_background_still_gives_the_trials_back(
    bench: Callable[..., Bench], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(worker_module, "EpochWriter", Late)
    stopping = {"rule": "no-improvement-in-n", "n": 1}
    study = bench(stopping=stopping, search={"learning_rate": [1e-7, 0.2], "lambda_2": [0.0]})

    def die() -> None:
        Path(worker.artifacts.place).rename(study.folder / "away")
        raise RuntimeError("on purpose")

    worker = study.worker(lanes=2, stop=BeforeEpoch(3, die))  # the first one has just ended
    with pytest.raises(RuntimeError, match="on purpose"):
        worker.run()
    assert study.ledger.counts() == PointCounts(waiting=2)
    assert "its last epoch was not recorded: cannot write the best parameters" in caplog.text


@pytest.mark.parametrize("num_points", [1, 12])
@pytest.mark.parametrize(("pruner", "expected"), [("none", 1), ("median", 2)])
def test_an_epochs_statements_do_not_depend_on_the_number_of_lanes(
    pruner: str,
    expected: int,
    num_points: int,
    bench: Callable[..., Bench],
    statements: Callable[[], contextlib.AbstractContextManager[list[str]]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(worker_module, "EpochWriter", Early)
    search = {"seed": list(range(num_points)), "learning_rate": [0.1], "lambda_2": [0.0]}
    study = bench(search=search, pruning={"pruner": pruner})
    marks: list[int] = []
    with statements() as seen:
        study.worker(lanes=num_points, stop=WatchedStop(lambda: marks.append(len(seen)))).run()
    study.counted()
    assert [after - before for before, after in itertools.pairwise(marks)] == [expected] * 3


# Out of memory


class Small(Cohort):
    """A device with room for so many lanes, or for none of some trial."""

    room = 8
    too_large: float | None = None  # the learning rate of a trial for which memory never suffices
    fails_in_admission = False
    first_failing_epoch = 1
    num_epochs = 0  # of all cohorts

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._rates: dict[Hashable, float] = {}

    def _take_lanes(self, trials: Any) -> None:
        super()._take_lanes(trials)
        self._rates |= {newcomer.key: newcomer.settings.training.learning_rate for newcomer, _ in trials}
        if self.fails_in_admission and len(self.keys) > self.room:
            torch.empty(2**50)

    def train_epoch(self) -> dict[Hashable, EpochReport]:
        type(self).num_epochs += 1
        is_full = len(self.keys) > self.room and self.num_epochs >= self.first_failing_epoch
        if is_full or self.too_large in [self._rates[key] for key in self.keys]:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB. GPU 0 has ...")
        return super().train_epoch()


def crashes(database: Database) -> int:
    with database.engine.connect() as connection:
        return int(connection.exec_driver_sql("SELECT sum(crashes) FROM hpsearch_points").scalar_one())


@pytest.mark.parametrize("fails_in_admission", [False, True])
def test_out_of_memory_halves_the_lanes_and_loses_no_trial(
    fails_in_admission: bool, bench: Callable[..., Bench], database: Database, caplog: pytest.LogCaptureFixture
) -> None:
    study = bench()

    class Roomy(Small):
        room = 3

    Roomy.fails_in_admission = fails_in_admission
    assert study.worker(lanes=6, build_cohort=Roomy).run() == 6
    assert all(list(trial.intermediate_values) == [1, 2, 3, 4] for trial in study.counted())
    assert crashes(database) == 0
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    tried = "tried to allocate 4194304.00 GiB" if fails_in_admission else "tried to allocate 20.00 GiB"
    assert caplog.messages == [
        f"tester: out of memory on cpu with 6 lanes ({tried}): 6 trials will be trained again, in at most 3 lanes"
    ]
    failed = [t for t in study.study.trials if t.state is TrialState.FAIL]
    assert {t.user_attrs["fail_reason"] for t in failed} == {"out of memory on cpu with 6 lanes"}


class Growing:
    """Two lanes, and from the first review on six."""

    def __init__(self) -> None:
        self.most, self.reviews = 6, list[int]()

    def num_lanes(self, settings: TrialSettings, share: Callable[[], int]) -> int:
        return min(self.most, 2)

    def review(self, settings: TrialSettings, num_busy: int, seconds: float, share: Callable[[], int | None]) -> int:
        self.reviews.append(num_busy)
        return self.most

    def note_shortage(self, settings: TrialSettings, most: int) -> None:
        self.most = most

    def note_idle(self) -> None:
        pass


def tight(room: int) -> type[Cohort]:
    """A cohort on a device with room for so many lanes, which refuses more before they enter."""

    class Tight(Cohort):
        def _take_lanes(self, trials: Any) -> None:
            if len(self.keys) + len(trials) > room:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
            super()._take_lanes(trials)

    return Tight


def test_trials_in_lanes_train_on_when_there_is_no_memory_for_more(
    bench: Callable[..., Bench], database: Database, caplog: pytest.LogCaptureFixture
) -> None:
    study, lanes = bench(), Growing()

    assert study.worker(lanes=lanes, build_cohort=tight(2)).run() == 6
    assert [trial.user_attrs["attempt"] for trial in study.counted()] == [1, 1, 3, 2, 2, 2]
    assert (lanes.most, set(lanes.reviews), crashes(database)) == (2, {2}, 0)
    refused = "tester: out of memory on cpu (tried to allocate 2.00 GiB): "
    assert caplog.messages == [
        f"{refused}4 trials given back, at most 3 lanes from now on",
        f"{refused}1 trial given back, at most 2 lanes from now on",
    ]
    failed = [t for t in study.study.trials if t.state is TrialState.FAIL]
    assert {t.user_attrs["fail_reason"] for t in failed} == {"out of memory on cpu beside other lanes"}
    assert not any(t.intermediate_values for t in failed)


@pytest.mark.parametrize("lanes", [1, 2, 6])
def test_lanes_that_find_no_room_at_once_are_halved_and_not_given_up(
    bench: Callable[..., Bench], lanes: int, caplog: pytest.LogCaptureFixture
) -> None:
    study = bench()

    study.worker(lanes=lanes, build_cohort=tight(3)).run()
    study.counted()
    assert [message.rpartition(", ")[2] for message in caplog.messages] == ["at most 3 lanes from now on"] * (lanes > 3)


def test_one_point_that_finds_no_room_does_not_cost_the_lanes_one_by_one(
    bench: Callable[..., Bench], caplog: pytest.LogCaptureFixture
) -> None:
    study = bench(search={"learning_rate": [0.1, 0.2], "lambda_2": [0.0], "seed": list(range(8))})

    class Stairs(Growing):
        """One lane more after each epoch, so that trials end one after the other."""

        def num_lanes(self, settings: TrialSettings, share: Callable[[], int]) -> int:
            return 1

        def review(
            self, settings: TrialSettings, num_busy: int, seconds: float, share: Callable[[], int | None]
        ) -> int:
            return min(self.most, num_busy + 1)

        def note_shortage(self, settings: TrialSettings, most: int) -> None:
            assert most <= self.most
            self.most = most

    class Picky(Cohort):
        def _take_lanes(self, trials: Any) -> None:
            is_large = any(newcomer.settings.training.learning_rate == 0.2 for newcomer, _ in trials)
            if is_large and self.keys:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
            super()._take_lanes(trials)

    lanes = Stairs()
    lanes.most = 8
    study.worker(lanes=lanes, build_cohort=Picky).run()
    study.counted()
    assert [message.partition("at most ")[2].split()[0] for message in caplog.messages] == ["5", "2", "1"]


def test_trials_are_refused_while_the_database_is_away(
    bench: Callable[..., Bench], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    study, lanes = bench(), Growing()

    give_back, outage = Ledger.give_back, [DatabaseAwayError("planted")]

    def away_at_first(*arguments: Any, **named: Any) -> list[int]:
        if outage:
            raise outage.pop()
        return give_back(*arguments, **named)

    monkeypatch.setattr(Ledger, "give_back", away_at_first)
    study.worker(lanes=lanes, build_cohort=tight(2)).run()
    study.counted()
    assert not outage
    failed = [t for t in study.study.trials if t.state is TrialState.FAIL]
    assert {t.user_attrs["fail_reason"] for t in failed} == {"out of memory on cpu beside other lanes"}
    assert not any("has lost" in message for message in caplog.messages)


def test_epochs_that_capture_graphs_say_nothing_of_the_number_of_lanes(bench: Callable[..., Bench]) -> None:
    study, lanes = bench(), Growing()
    lanes.most = 2

    class Captured(Cohort):
        num_epochs = 0

        def train_epoch(self) -> dict[Hashable, EpochReport]:
            reports = super().train_epoch()
            self.num_epochs += 1
            self.is_warm = self.num_epochs > 2
            return reports

    study.worker(lanes=lanes, build_cohort=Captured).run()
    study.counted()
    assert len(lanes.reviews) == 6  # three cohorts of two trials with four epochs


@pytest.mark.parametrize("runs_out", [False, True])
def test_the_memory_of_a_cohort_is_free_when_the_next_one_is_opened(
    bench: Callable[..., Bench], runs_out: bool
) -> None:
    study = bench(search={"batch_size": [10, 20], "learning_rate": [0.2, 0.1]})
    earlier: list[weakref.ref[Any]] = []
    num_alive: list[int] = []

    class Watched(Cohort):
        def __init__(self, *arguments: Any, **options: Any) -> None:
            num_alive.append(sum(stack() is not None for stack in earlier))
            super().__init__(*arguments, **options)
            earlier.append(weakref.ref(self._stack))

        def train_epoch(self) -> dict[Hashable, EpochReport]:
            if runs_out and len(self.keys) > 1:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
            return super().train_epoch()

    study.worker(lanes=2, build_cohort=Watched).run()
    study.counted()
    assert len(num_alive) > 1
    assert set(num_alive) == {0}


def test_lanes_are_halved_until_they_fit(bench: Callable[..., Bench], caplog: pytest.LogCaptureFixture) -> None:
    study = bench()

    class Narrow(Small):
        room = 1

    study.worker(lanes=6, build_cohort=Narrow).run()
    study.counted()
    assert ["6 lanes" in caplog.messages[0], "3 lanes" in caplog.messages[1]] == [True, True]
    assert len(caplog.messages) == 2


def test_what_was_reached_before_memory_ran_out_stands(
    bench: Callable[..., Bench], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker_module, "EpochWriter", Late)
    study = bench()

    class Later(Small):
        room = 1
        first_failing_epoch = 6  # two trials ended with the fourth

    study.worker(lanes=2, build_cohort=Later).run()
    failed = [t for t in study.study.trials if t.state is TrialState.FAIL]
    assert [(t.user_attrs["point"], list(t.intermediate_values)) for t in failed] == [(2, [1]), (3, [1])]
    assert [trial.user_attrs["attempt"] for trial in study.counted()] == [1, 1, 2, 2, 1, 1]


def test_a_point_that_never_fits_is_given_up_and_the_others_are_trained(
    bench: Callable[..., Bench], database: Database, caplog: pytest.LogCaptureFixture
) -> None:
    study = bench(search={"learning_rate": [0.2, 0.1, 0.02], "lambda_2": [0.0]})

    class Picky(Small):
        too_large = 0.1

    assert study.worker(lanes=3, build_cohort=Picky).run() == 2
    assert study.ledger.counts() == PointCounts(complete=2, failed=1)
    reasons = {t.user_attrs["fail_reason"] for t in study.study.trials if t.user_attrs["point"] == 1}
    alone = (
        "out of memory on cpu with one lane: tried to allocate 20.00 GiB; "
        "choose a smaller network or training.batch_size, or free the device"
    )
    assert alone in reasons
    assert [record.levelname for record in caplog.records].count("ERROR") == MAX_CRASHES
    assert f"tester: {alone}" in caplog.messages


@pytest.mark.filterwarnings("ignore:.*PartialFixedSampler is experimental")
def test_a_trial_that_waits_for_its_cohort_has_not_run_out_of_memory(
    bench: Callable[..., Bench], database: Database, plant_draws: Callable[[dict[int, dict[str, Any]]], None]
) -> None:
    search = {"strategy": "tpe", "num_points": 12, "batch_size": [10, 20], "learning_rate": [0.1, 0.2]}
    study = bench(search=search, training={"batch_size": 10, "max_epochs": 1})
    plant_draws({-1: {"batch_size": 10, "learning_rate": 0.2}, 1: {"batch_size": 20}, 2: {"learning_rate": 0.1}})

    class Picky(Small):
        too_large = 0.1

    study.worker(lanes=1, build_cohort=Picky).run()
    assert study.ledger.counts() == PointCounts(complete=11, failed=1)
    with database.engine.connect() as connection:
        rows = connection.exec_driver_sql("SELECT point FROM hpsearch_points WHERE crashes > 0").scalars()
        assert list(rows) == [2]


def test_a_device_without_room_for_any_trial_ends_the_worker_before_all_points_are_given_up(
    bench: Callable[..., Bench],
) -> None:
    study = bench()

    class Full(Small):
        room = 0

    with pytest.raises(DeviceError, match=r"out of memory on cpu with one lane.*4 times in a row") as caught:
        study.worker(lanes=1, build_cohort=Full).run()
    assert caught.value.exit_code == 3
    assert study.ledger.counts().waiting == 6
    study.worker(lanes=2).run()
    study.counted()


def test_lanes_that_ran_out_of_memory_are_remembered(bench: Callable[..., Bench], tmp_path: Path) -> None:
    study = bench()
    stop = StopSignal()
    memory = LaneMemory(tmp_path / "lanes")
    lanes = LearnedLanes(memory=memory, data=study.data, device=CPU, stop=stop)
    settings = study.prepared.study.definition.resolve({"learning_rate": 0.2, "lambda_2": 0.0})
    case = LaneCase.of(settings, study.data, CPU, 1, StudyMix())
    memory.remember(KnownLanes(case=case.words, seconds={1: 1.0, 2: 0.5, 4: 0.25, 6: 0.2}))

    class Roomy(Small):
        room = 3

    study.worker(lanes=lanes, stop=stop, build_cohort=Roomy).run()
    study.counted()
    assert memory.most_lanes(case) == 3


# Taking trials up again


def counted_curves(study: Bench) -> list[Any]:
    """What a study's counted trials say of their training: nothing of attempts, workers and times."""
    names = ("stop_reason", "epochs", "best_epoch", "best_validation_nll")
    return [
        (t.params, t.state, t.value, t.intermediate_values, [t.user_attrs[name] for name in names])
        for t in study.counted()
    ]


def counted_bits(study: Bench) -> list[bytes | None]:
    """Of each point's counted trial: which validation images it is right on; None of a pruned one."""
    trial_ids = [trial._trial_id for trial in study.counted()]
    bits = read_correctness(study.database, trial_ids)
    return [bits[trial_id].bits if trial_id in bits else None for trial_id in trial_ids]


@pytest.mark.parametrize("lanes", [1, 4])
def test_a_complete_trial_leaves_the_bits_that_its_value_is_made_of(
    bench: Callable[..., Bench], database: Database, lanes: int
) -> None:
    study = bench(pruning={"pruner": "successive-halving", "reduction_factor": 2})
    study.worker(lanes=lanes).run()

    trials, bits = study.counted(), counted_bits(study)
    assert {trial.state for trial in trials} == {TrialState.COMPLETE, TrialState.PRUNED}
    for trial, packed in zip(trials, bits, strict=True):
        assert (packed is None) == (trial.state is TrialState.PRUNED)
        if packed is not None:
            assert len(packed) == 5
            correct = np.unpackbits(np.frombuffer(packed, np.uint8), count=40)
            assert (40 - correct.sum()) / 40 == trial.value
    with database.engine.connect() as connection:
        rows = connection.exec_driver_sql("SELECT DISTINCT num_images FROM hpsearch_correctness").all()
    assert rows == [(40,)]


def test_the_bits_are_those_of_the_parameters_that_are_kept(bench: Callable[..., Bench]) -> None:
    study = bench()
    worker = study.worker()
    worker.run()
    best = study.study.best_trial
    definition = study.prepared.study.definition
    network = build_network(definition.resolve(best.params).model, (28, 28), 10)
    artifact_id = worker.artifacts.parameters_id(best)
    assert artifact_id is not None
    kept = load_file(Path(worker.artifacts.place) / artifact_id)
    parameters = {name: torch.from_numpy(value) for name, value in kept.items()}
    _, correct = validate(network, parameters, study.data, iteration=1)
    assert read_correctness(study.database, [best._trial_id]) == {best._trial_id: Correctness.of(correct.numpy())}


def test_patience_grows_with_significant_improvements_only(bench: Callable[..., Bench]) -> None:
    """A level that 40 images can never reach leaves each trial its first patience; a lenient one gives it more."""
    strict = bench(stopping={**SIGNIFICANCE, "significance_level": 1e-15}, training={"max_epochs": 12})
    lenient = bench(stopping={**SIGNIFICANCE, "significance_level": 0.5}, training={"max_epochs": 12})
    for study in (strict, lenient):
        study.worker().run()

    # 20 minibatches per epoch, validated after 12 and 20; the first is significant, and 2 * 11 buys nothing.
    assert {trial.user_attrs["epochs"] for trial in strict.counted()} == {1}
    assert {trial.user_attrs["stop_reason"] for trial in strict.counted()} == {"patience-exhausted"}
    assert max(trial.user_attrs["epochs"] for trial in lenient.counted()) > 2


class CountedEpochs(StopSignal):
    """Counts a worker's epochs."""

    def __init__(self) -> None:
        super().__init__()
        self.number = 0

    @contextlib.contextmanager
    def interruptible(self, expected_seconds: float | None = None) -> Iterator[None]:
        self.number += 1
        with super().interruptible(expected_seconds):
            yield


SIGNIFICANCE = {"rule": "significance", "patience": 24, "patience_increase": 2.0, "significance_level": 0.05}
RULES: list[dict[str, Any]] = [
    {},
    {"stopping": {"rule": "geometric-patience", "patience": 70, "patience_increase": 2.0}},
    {"training": {"optimizer": "adam", "schedule": "plateau", "schedule_patience": 1, "shuffle": True}},
    {"pruning": {"pruner": "successive-halving", "reduction_factor": 2}},
    {"stopping": {**SIGNIFICANCE, "patience": 70}},
]


@pytest.mark.parametrize("sections", RULES, ids=["plain", "patience", "adam", "asha", "significance"])
def test_a_stopped_worker_s_trials_go_on_where_they_were(bench: Callable[..., Bench], sections: dict[str, Any]) -> None:
    whole, parts = bench(**sections), bench(**sections)
    whole.worker(lanes=1).run()
    num_stops = 0
    while parts.ledger.counts().unfinished:
        parts.worker(lanes=1, stop=BeforeEpoch(3)).run()  # two epochs each
        num_stops += 1
    assert num_stops > 3
    assert counted_curves(parts) == counted_curves(whole)
    assert counted_bits(parts) == counted_bits(whole)
    resumed = [trial for trial in parts.counted() if "resumed_at_epoch" in trial.user_attrs]
    assert resumed
    assert all(trial.user_attrs["resumed_at_epoch"] < trial.user_attrs["epochs"] for trial in resumed)


def test_no_epoch_is_trained_twice_after_a_stop(bench: Callable[..., Bench]) -> None:
    study = bench()
    study.worker(lanes=6, stop=BeforeEpoch(4)).run()
    stop = CountedEpochs()
    assert study.worker(lanes=6, stop=stop).run() == 6
    assert stop.number == 1
    assert all(trial.user_attrs["resumed_at_epoch"] == 3 for trial in study.counted())


def test_epochs_that_were_taken_over_are_counted_once(bench: Callable[..., Bench], database: Database) -> None:
    study = bench()
    study.worker(lanes=6, stop=BeforeEpoch(4)).run()
    study.worker(lanes=6).run()
    assert read_progress(database, study.prepared.study.study_id).epochs == 6 * 4
    assert read_summary(database, study.prepared.study.name).num_epochs == 6 * 4


def test_a_failed_worker_s_trials_go_on_from_their_last_checkpoint(bench: Callable[..., Bench]) -> None:
    whole, parts = bench(), bench()
    whole.worker(lanes=6).run()

    def die() -> None:
        job = worker._checkpointer._job
        assert job is not None
        futures.wait([job])
        raise RuntimeError("on purpose")

    worker = parts.worker(lanes=6, stop=BeforeEpoch(4, die), checkpoint_seconds=1e-9)
    with pytest.raises(RuntimeError):
        worker.run()
    parts.worker(lanes=6).run()
    assert {trial.user_attrs.get("resumed_at_epoch") for trial in parts.counted()} <= {1, 2, 3}
    assert counted_curves(parts) == counted_curves(whole)


def test_counted_trials_leave_no_checkpoint(bench: Callable[..., Bench], database: Database) -> None:
    study = bench()
    worker = study.worker(lanes=3, checkpoint_seconds=1e-9)
    worker.run()
    study.counted()
    with database.engine.connect() as connection:
        assert connection.exec_driver_sql("SELECT count(*) FROM hpsearch_checkpoints").scalar_one() == 0
    assert not list(Path(worker.artifacts.place).glob("checkpoint-*"))


def test_what_a_killed_worker_left_is_removed_when_the_study_is_finished(
    bench: Callable[..., Bench], database: Database
) -> None:
    study = bench()
    study.worker(lanes=6, stop=BeforeEpoch(2)).run()
    killed = study.worker(lanes=6)
    killed.run()
    with database.engine.begin() as connection:  # a row that nobody came to discard
        connection.exec_driver_sql(
            "INSERT INTO hpsearch_checkpoints (study_id, point, trial_id, epoch, artifact_id, num_bytes, saved_at) "
            "SELECT study_id, point, trial_id, 1, 'checkpoint-left', 1, now() FROM hpsearch_points WHERE point = 0"
        )
    (Path(killed.artifacts.place) / "checkpoint-left").write_bytes(b"x")
    study.worker().run()
    with database.engine.connect() as connection:
        assert connection.exec_driver_sql("SELECT count(*) FROM hpsearch_checkpoints").scalar_one() == 0
    assert not list(Path(killed.artifacts.place).glob("checkpoint-*"))


def test_a_damaged_checkpoint_lets_its_trial_begin_anew(
    bench: Callable[..., Bench], caplog: pytest.LogCaptureFixture
) -> None:
    whole, study = bench(), bench()
    whole.worker(lanes=6).run()
    worker = study.worker(lanes=6, stop=BeforeEpoch(3))
    worker.run()
    first, second, *_ = sorted(Path(worker.artifacts.place).glob("checkpoint-*"))
    content = first.read_bytes()
    first.write_bytes(content[:-8] + b"\1" * 8)
    second.unlink()
    study.worker(lanes=6).run()
    assert counted_curves(study) == counted_curves(whole)
    assert sum("resumed_at_epoch" in trial.user_attrs for trial in study.counted()) == 4
    assert len([message for message in caplog.messages if "starts again" in message]) == 2


def test_a_checkpoint_that_cannot_be_written_does_not_stop_the_training(
    bench: Callable[..., Bench], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*_: Any, **__: Any) -> set[int]:
        raise RuntimeError("no room")

    monkeypatch.setattr(Checkpoints, "save", refuse)
    study = bench()
    study.worker(lanes=2, checkpoint_seconds=1e-9).run()
    study.counted()
    assert "tester: a checkpoint failed: no room" in caplog.messages


def test_a_device_without_room_for_a_copy_goes_without_a_checkpoint(
    bench: Callable[..., Bench], caplog: pytest.LogCaptureFixture
) -> None:
    class NoRoom(Cohort):
        def checkpoint(self, keys: Any) -> Any:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")

    study = bench()
    study.worker(lanes=2, checkpoint_seconds=1e-9, build_cohort=NoRoom).run()
    study.counted()
    assert "tester: checkpoint skipped: the device has no memory for a copy of the lanes" in caplog.messages


def test_a_trial_says_from_the_start_where_it_is_trained(bench: Callable[..., Bench]) -> None:
    study = bench()
    seen: list[dict[str, Any]] = []

    def look() -> None:
        seen.extend(t.user_attrs for t in study.study.get_trials(states=[TrialState.RUNNING]))

    pinned = PinnedDevice(None)
    pinned.description = "cuda:0 (test)"
    study.worker(lanes=2, stop=BeforeEpoch(1, look), pinned=pinned).run()
    assert [(attributes["worker"], attributes["device"]) for attributes in seen] == [("tester", "cuda:0 (test)")] * 2


# A database that is away


@contextlib.contextmanager
def away(database: Database) -> Iterator[None]:
    """A database that admits nobody for a while."""
    name = database.url.database
    engine = sqlalchemy.create_engine(database.url.set(database="postgres"), isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.exec_driver_sql(f"ALTER DATABASE {name} ALLOW_CONNECTIONS false")
        connection.exec_driver_sql(
            f"SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity WHERE datname = '{name}'"
        )
        try:
            yield
        finally:
            connection.exec_driver_sql(f"ALTER DATABASE {name} ALLOW_CONNECTIONS true")
    engine.dispose()


class Outage:
    """Takes the database away before one epoch and brings it back before a later one."""

    def __init__(self, database: Database, first: int, last: int) -> None:
        self._stack = contextlib.ExitStack()
        self._database = database
        self._epochs = itertools.count(1)
        self._first, self._last = first, last

    def __call__(self) -> None:
        epoch = next(self._epochs)
        if epoch == self._first:
            self._stack.enter_context(away(self._database))
        elif epoch == self._last:
            self._stack.close()


@pytest.mark.parametrize("sections", [{}, {"pruning": {"pruner": "median", "startup_trials": 1}}], ids=["", "median"])
def test_training_goes_on_while_the_database_is_away_and_nothing_is_lost(
    bench: Callable[..., Bench], database: Database, monkeypatch: pytest.MonkeyPatch, sections: dict[str, Any]
) -> None:
    monkeypatch.setattr(epoch_writer_module, "SLOW_SECONDS", 0.05)
    monkeypatch.setattr(ledger_access, "ASK_AGAIN_SECONDS", 0.05)
    study = bench(
        training={"max_epochs": 30}, search={"learning_rate": [0.2, 0.1, 0.02], "lambda_2": [0.0]}, **sections
    )
    study.worker(lanes=2, stop=WatchedStop(Outage(database, 3, 20))).run()
    for trial in study.counted():
        assert list(trial.intermediate_values) == list(range(1, trial.user_attrs["epochs"] + 1))
    assert {trial.user_attrs["attempt"] for trial in study.counted()} == {1}


def test_lanes_that_fall_free_while_the_database_is_away_are_filled_when_it_is_back(
    bench: Callable[..., Bench], database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(epoch_writer_module, "SLOW_SECONDS", 0.05)
    monkeypatch.setattr(ledger_access, "ASK_AGAIN_SECONDS", 0.05)
    rates = {"learning_rate": [1e-7, 0.2, 0.1, 0.02], "lambda_2": [0.0]}  # the first one stops after two epochs
    study = bench(stopping={"rule": "no-improvement-in-n", "n": 1}, training={"max_epochs": 12}, search=rates)
    busy: list[int] = []
    with contextlib.ExitStack() as stack:

        def note() -> None:
            busy.append(len(worker._lanes))
            if len(busy) == 2:
                stack.enter_context(away(database))
            elif len(busy) == 3:  # the worker may run out of lanes, and wait
                threading.Timer(1.0, stack.close).start()

        worker = study.worker(lanes=2, stop=WatchedStop(note))
        worker.run()
    study.counted()
    assert busy[:3] == [2, 2, 1]  # a free lane, and nobody to ask


def test_a_database_that_stays_away_ends_the_worker(
    bench: Callable[..., Bench], database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(epoch_writer_module, "SLOW_SECONDS", 0.05)
    study = bench(training={"max_epochs": 100_000})
    study.database = replace(database, outage_seconds=0.5)
    with contextlib.ExitStack() as stack:
        stop = BeforeEpoch(2, lambda: stack.enter_context(away(database)))
        with pytest.raises(StorageError, match="is away") as caught:
            study.worker(lanes=2, stop=stop).run()
        assert caught.value.exit_code == 3
    assert study.ledger.counts().running == 2  # until their leases run out


def test_a_worker_that_is_stopped_while_the_database_is_away_leaves_in_time(
    bench: Callable[..., Bench], database: Database, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(epoch_writer_module, "FLUSH_SECONDS", 0.1)
    monkeypatch.setattr("hpsearch.worker.upkeep.RELEASE_SECONDS", 0.1)
    study = bench()
    with contextlib.ExitStack() as stack:

        def stop_away() -> None:
            stack.enter_context(away(database))
            stop.set()

        stop = BeforeEpoch(2, stop_away)
        study.worker(lanes=2, stop=stop).run()
    assert any("its trials could not be given back" in message for message in caplog.messages)
    study.ledger.reap()
    assert study.ledger.counts().running == 2


def test_an_idle_worker_that_is_stopped_does_not_wait_for_a_database_that_is_away(
    bench: Callable[..., Bench], database: Database
) -> None:
    study = bench()
    holder = replace(study.ledger, owner=9)
    assert len(holder.claim(6)) == 6  # nothing is left for the worker
    with contextlib.ExitStack() as stack:

        class Stop(StopSignal):
            def wait(self, seconds: float) -> bool:  # of an idle worker
                stack.enter_context(away(database))
                threading.Timer(0.3, self.set).start()
                return super().wait(0)

        assert study.worker(stop=Stop()).run() == 0
    assert study.ledger.counts().running == 6


def test_a_trial_that_an_outage_has_interrupted_gets_its_lane_when_it_is_over(
    bench: Callable[..., Bench], monkeypatch: pytest.MonkeyPatch
) -> None:
    study = bench(training={"max_epochs": 200})
    study.worker(lanes=6, stop=BeforeEpoch(2)).run()
    real = Checkpoints.resume
    failures = iter([None])

    def resume(self: Checkpoints, *arguments: Any) -> Any:
        if len(worker._lanes) == 2:
            for _ in failures:
                raise DatabaseAwayError("away")
        return real(self, *arguments)

    monkeypatch.setattr(Checkpoints, "resume", resume)
    monkeypatch.setattr(ledger_access, "ASK_AGAIN_SECONDS", 0.01)
    busy: list[int] = []
    worker = study.worker(lanes=3, stop=WatchedStop(lambda: busy.append(len(worker._lanes))))
    worker.run()
    assert {trial.user_attrs["attempt"] for trial in study.counted()} == {2}
    assert busy[0] == 1
    assert 3 in busy[1:190]


def test_a_database_that_goes_while_a_cohort_is_opened_leaves_no_lane_behind(
    bench: Callable[..., Bench], database: Database
) -> None:
    study = bench()

    class Away(FixedLanes):
        def num_lanes(self, settings: TrialSettings, share: Callable[[], int]) -> int:
            raise DatabaseAwayError("away")

    with pytest.raises(DatabaseAwayError):
        study.worker(lanes=Away(2)).run()
    with database.engine.connect() as connection:
        assert connection.exec_driver_sql("SELECT sum(crashes) FROM hpsearch_points").scalar_one() == 0


def test_an_error_of_the_last_flush_still_gives_the_trials_back(
    bench: Callable[..., Bench], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(self: EpochWriter) -> Written:
        raise ArtifactError("no room")

    monkeypatch.setattr(EpochWriter, "flush", refuse)
    study = bench()
    with pytest.raises(ArtifactError):
        study.worker(lanes=2, stop=BeforeEpoch(2)).run()
    assert study.ledger.counts() == PointCounts(waiting=6)


def test_a_stop_while_an_epoch_is_taken_in_leaves_no_checkpoint_of_two_epochs(
    bench: Callable[..., Bench], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, study = bench(), bench()
    whole.worker(lanes=1).run()
    epochs = itertools.count(1)

    def interrupt(self: Worker, num_lanes: int, seconds: float) -> None:
        if next(epochs) == 2:
            raise WorkerStopped

    with monkeypatch.context() as patch:
        patch.setattr(Worker, "_note_epoch", interrupt)
        study.worker(lanes=1).run()
    study.worker(lanes=1).run()
    assert counted_curves(study) == counted_curves(whole)


def test_a_claim_whose_answer_was_lost_is_made_again_and_not_twice(
    bench: Callable[..., Bench], monkeypatch: pytest.MonkeyPatch
) -> None:
    study = bench()
    real = Ledger.claim
    lost = iter([None])

    def claim(self: Ledger, *arguments: Any, **options: Any) -> Any:
        claims = real(self, *arguments, **options)
        if worker._lanes:
            for _ in lost:
                raise DatabaseAwayError("the answer was lost")
        return claims

    monkeypatch.setattr(Ledger, "claim", claim)
    monkeypatch.setattr(ledger_access, "ASK_AGAIN_SECONDS", 0.0)
    worker = study.worker(lanes=2)
    assert worker.run() == 6
    assert {trial.user_attrs["attempt"] for trial in study.counted()} == {1}


def test_a_worker_whose_device_was_taken_gives_its_trials_back_without_a_crash(
    bench: Callable[..., Bench], database: Database
) -> None:
    study = bench()
    lost = threading.Event()

    class Taken(PinnedDevice):
        @property
        def is_lost(self) -> bool:
            return lost.is_set()

    study.worker(lanes=2, stop=BeforeEpoch(2, lost.set), pinned=Taken(None)).run()
    assert study.ledger.counts() == PointCounts(waiting=6)
    with database.engine.connect() as connection:
        assert connection.exec_driver_sql("SELECT sum(crashes) FROM hpsearch_points").scalar_one() == 0


def test_what_a_worker_does_is_counted(bench: Callable[..., Bench], tmp_path: Path) -> None:
    study = bench()
    life_sign = LifeSign(tmp_path / "alive")
    metrics = WorkerMetrics(study="s", worker="w", life_sign=life_sign)
    states: list[WorkerState] = []
    stop = WatchedStop(lambda: states.append(life_sign.latest.state))
    with life_sign:
        study.worker(lanes=2, stop=stop, metrics=metrics, checkpoint_seconds=1e-9).run()
    sample = metrics.registry.get_sample_value
    assert sample("hpsearch_trial_epochs_total") == 24
    assert sample("hpsearch_trials_ended_total", {"outcome": "complete"}) == 6
    assert sample("hpsearch_lanes") == 2
    assert sample("hpsearch_reports_buffered") in (0, 2)
    assert sample("hpsearch_database_seconds_count", {"operation": "record"}) == 12
    assert (sample("hpsearch_checkpoints_total", {"result": "written"}) or 0) > 0
    assert states == [WorkerState.STARTING] + [WorkerState.TRAINING] * 11
    assert life_sign.latest.state == WorkerState.IDLE


# More epochs


def given_more(study: Bench, max_epochs: int) -> Bench:
    """The same study with more epochs, as the next `hpsearch run` sees it."""
    definition = study.prepared.study.definition.with_max_epochs(max_epochs)
    return Bench(study.database, definition, study.folder)


@pytest.mark.parametrize("kept", [20, 2, 0])
def test_trials_that_go_on_have_the_curves_of_uninterrupted_ones(kept: int, bench: Callable[..., Bench]) -> None:
    """Whether their last state was kept, or they begin anew."""
    diagnosed = partial(Cohort, is_diagnosed=True)
    whole = bench(training={"max_epochs": 7, "optimizer": "momentum"})
    whole.worker(build_cohort=diagnosed).run()
    study = bench(training={"max_epochs": 3, "optimizer": "momentum"})
    definition = study.prepared.study.definition.model_copy(update={"keep_end_states": kept})
    study = Bench(study.database, definition, study.folder)
    study.worker(build_cohort=diagnosed).run()
    best_first = sorted(study.counted(), key=lambda trial: (trial.value, trial._trial_id))
    more = given_more(study, 7)
    assert more.prepared.registration.num_continued == 6
    more.worker(build_cohort=diagnosed).run()
    summary, expected = (read_summary(s.database, s.prepared.study.name, with_curves=True) for s in (more, whole))
    by_point = {trial.point: trial for trial in expected.complete}
    resumed = set()
    for trial in summary.complete:
        other = by_point[trial.point]
        curves = [[epoch._replace(seconds=0.0) for epoch in each.curve] for each in (trial, other)]
        assert curves[0] == curves[1]
        assert trial.attributes["verdict"] == other.attributes["verdict"]
        assert trial.value == other.value
        if trial.attributes.get("resumed_at_epoch") == 3:
            resumed.add(trial.attributes["continues_trial"])
    assert resumed == {trial.number for trial in best_first[:kept]}
    assert {trial.number: trial.value for trial in summary.trials if trial.is_superseded} == {
        trial.number: trial.value for trial in best_first
    }
    assert not list((study.folder / "artifacts").glob("checkpoint-*"))


def test_a_worker_that_was_there_before_trains_to_the_new_number_of_epochs(bench: Callable[..., Bench]) -> None:
    study = bench(training={"max_epochs": 2})
    before = study.worker()
    study.worker().run()
    given_more(study, 5)
    before._worst_kept = 0.0  # a result that counted before the study was given more epochs
    before.run()
    trials = read_summary(study.database, study.prepared.study.name).complete
    assert [trial.num_epochs for trial in trials] == [5] * 6
    assert before.artifacts.parameters_id(trials[0].frozen()) is not None


@pytest.mark.parametrize("strategy", ["random", "tpe", "cmaes"])
def test_drawn_points_go_on_with_their_parameters(strategy: str, bench: Callable[..., Bench]) -> None:
    search = {"strategy": strategy, "num_points": 6, "lambda_2": [1e-4, 1e-3], "learning_rate": {"log10": [-1, -2]}}
    study = bench(training={"max_epochs": 2}, search=search)
    study.worker().run()
    more = given_more(study, 4)
    more.worker().run()
    trials = read_summary(more.database, more.prepared.study.name).trials
    by_number = {trial.number: trial for trial in trials}
    assert len(trials) == 12
    for trial in trials:
        if (number := trial.attributes.get("continues_trial")) is not None:
            assert trial.parameters == by_number[number].parameters
            assert trial.is_complete


def test_parameters_from_before_a_study_was_given_more_epochs_are_read(bench: Callable[..., Bench]) -> None:
    study = bench(training={"max_epochs": 2})
    worker = study.worker()
    worker.run()
    best = read_summary(study.database, study.prepared.study.name).require_best()
    more = given_more(study, 4)
    stored = more.prepared.study
    assert read_parameters(stored, best, worker.artifacts)
    assert stored.definition.sha256 != study.prepared.study.definition.sha256
    more.worker().run()
    assert read_parameters(stored, best, worker.artifacts)
    after = read_summary(study.database, stored.name).require_best()
    assert read_parameters(stored, after, worker.artifacts)


def test_a_trial_that_goes_on_is_not_pruned(bench: Callable[..., Bench]) -> None:
    pruning = {"pruner": "median", "startup_trials": 1}
    study = bench(training={"max_epochs": 2}, pruning=pruning)
    study.worker(lanes=1).run()
    ended = {trial.number for trial in study.counted() if trial.state is TrialState.COMPLETE}
    more = given_more(study, 6)
    more.worker(lanes=1).run()
    trials = read_summary(more.database, more.prepared.study.name).trials
    went_on = {trial.attributes["continues_trial"]: trial for trial in trials if "continues_trial" in trial.attributes}
    assert set(went_on) == ended
    assert all(trial.is_complete and trial.num_epochs == 6 for trial in went_on.values())


def test_end_states_are_those_of_the_best_within_number_and_size(
    bench: Callable[..., Bench], database: Database
) -> None:
    study = bench()
    study.worker(lanes=1).run()
    with database.engine.connect() as connection:
        rows = connection.exec_driver_sql(
            "SELECT trial_id, num_bytes, artifact_id FROM hpsearch_end_states ORDER BY trial_id"
        ).all()
    assert len(rows) == 6
    artifacts = open_artifacts(study.folder / "artifacts")
    checkpoints = Checkpoints(study.ledger, artifacts)
    by_value = [t._trial_id for t in sorted(study.counted(), key=lambda trial: (trial.value, trial._trial_id))]
    for limits, number in (((4, 2**40), 4), ((20, 2 * max(row.num_bytes for row in rows)), 2), ((0, 2**40), 0)):
        state = {by_value[-1]: (4, b"again")}
        checkpoints.keep_ends(state, num_states=limits[0], num_bytes=limits[1])
        with database.engine.connect() as connection:
            kept = connection.exec_driver_sql("SELECT trial_id, artifact_id FROM hpsearch_end_states").all()
        assert {row.trial_id for row in kept} == set(by_value[:number])
        files = {path.name for path in (study.folder / "artifacts").glob("end-state-*")}
        assert files == {row.artifact_id for row in kept}


def test_end_states_whose_commit_was_not_answered_keep_their_files(
    bench: Callable[..., Bench], database: Database
) -> None:
    """As after a repeat of the transaction: the rows are there already, and name these files."""
    study = bench()
    study.worker(lanes=1).run()
    checkpoints = Checkpoints(study.ledger, open_artifacts(study.folder / "artifacts"))
    transaction = Database.transaction

    class Twice(Database):
        def transaction(self, work: Any, *arguments: Any) -> Any:
            transaction(self, work, *arguments)
            return transaction(self, work, *arguments)

    twice = Twice(**{field.name: getattr(database, field.name) for field in fields(database) if field.init})
    checkpoints.ledger = replace(study.ledger, database=twice)
    trial = study.counted()[0]
    with database.engine.begin() as connection:
        connection.exec_driver_sql("DELETE FROM hpsearch_end_states")
    checkpoints.keep_ends({trial._trial_id: (4, b"state")}, num_states=20, num_bytes=2**30)
    with database.engine.connect() as connection:
        (artifact_id,) = connection.exec_driver_sql("SELECT artifact_id FROM hpsearch_end_states").scalars()
    assert (study.folder / "artifacts" / artifact_id).read_bytes() == b"state"


def test_an_end_state_that_cannot_be_written_costs_a_line(
    bench: Callable[..., Bench], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    study = bench()
    worker = study.worker()
    monkeypatch.setattr(Checkpoints, "keep_ends", refuse)
    worker.run()
    assert study.ledger.counts().complete == 6
    assert "the last states of ended trials were not kept: " in caplog.text


# Diagnosis


@pytest.mark.parametrize("pruner", ["none", "median"])
def test_a_diagnosed_trial_has_due_epochs_and_its_last_one_on_record_and_a_verdict(
    pruner: str, bench: Callable[..., Bench], database: Database
) -> None:
    training = {"max_epochs": 30, "batch_size": 10}
    pruning = {"pruner": pruner, "startup_trials": 1}
    study = bench(training=training, stopping={"rule": "no-improvement-in-n", "n": 2}, pruning=pruning)
    study.worker(lanes=2, build_cohort=partial(Cohort, is_diagnosed=True)).run()
    ends = set()
    for trial in read_summary(database, study.prepared.study.name, with_curves=True).trials:
        due = {epoch for epoch in (1, 2, 3, 5, 8, 13, 21, 30) if epoch <= trial.num_epochs}
        assert set(trial.diagnoses) == due | {trial.num_epochs}
        ends.add(trial.num_epochs)
        last = trial.diagnoses[trial.num_epochs]
        assert bool(trial.attributes.get("verdict")) >= (trial.num_epochs >= 6)
        assert ("verdict_detail" in trial.attributes) == ("verdict" in trial.attributes)
        assert trial.attributes["update_ratio"] == pytest.approx(last.update_ratio, rel=1e-5)
        assert trial.attributes["gradient_norm"] == pytest.approx(last.gradient_norm, rel=1e-5)
    assert ends - {1, 2, 3, 5, 8, 13, 21, 30}, "no trial ended between two due epochs"


def test_a_diagnosis_survives_a_stop(bench: Callable[..., Bench], database: Database) -> None:
    """Stopped in the middle and resumed from checkpoints, the trials have the numbers and verdicts of others."""
    found = []
    for epoch in (None, 3):
        study = bench()
        diagnosed = partial(Cohort, is_diagnosed=True)
        if epoch is not None:
            study.worker(stop=BeforeEpoch(epoch), build_cohort=diagnosed).run()
        study.worker(build_cohort=diagnosed).run()
        trials = [t for t in read_summary(database, study.prepared.study.name, with_curves=True).trials if t.is_counted]
        trials.sort(key=lambda trial: trial.point or 0)
        assert any(trial.attributes.get("resumed_at_epoch") for trial in trials) == (epoch is not None)
        verdicts = [trial.attributes.get("verdict") for trial in trials]
        found.append([(trial.diagnoses, verdict) for trial, verdict in zip(trials, verdicts, strict=True)])
    for (diagnoses, verdict), (others, other) in zip(*found, strict=True):
        assert list(diagnoses) == list(others) == [1, 2, 3, 4]
        assert verdict == other
        for number in diagnoses:
            assert diagnoses[number].nll == pytest.approx(others[number].nll, rel=1e-4)


def test_a_diagnosis_needs_no_statement_of_its_own_in_an_epoch(
    bench: Callable[..., Bench],
    statements: Callable[[], contextlib.AbstractContextManager[list[str]]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(worker_module, "EpochWriter", Early)
    study, marks = bench(), list[int]()
    with statements() as seen:
        stop = WatchedStop(lambda: marks.append(len(seen)))
        study.worker(lanes=6, stop=stop, build_cohort=partial(Cohort, is_diagnosed=True)).run()
    study.counted()
    assert [after - before for before, after in itertools.pairwise(marks)] == [1] * 3
