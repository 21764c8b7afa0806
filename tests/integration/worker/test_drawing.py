"""Points that samplers draw, in a real PostgreSQL and by the real worker: one test per promise, for each strategy."""

from __future__ import annotations

import contextlib
import threading
from collections import Counter
from collections.abc import Callable, Iterator
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
from hpsearch.search.samplers import build_sampler, explore
from hpsearch.signals import StopSignal
from hpsearch.store.claims import cohort_names
from hpsearch.store.claims.claim import Claim, Outcome, Result
from hpsearch.store.claims.ledger import Ledger
from hpsearch.store.connection.database import Database
from hpsearch.study.study_file import parse_definition
from hpsearch.training.lanes.cohort import Cohort
from hpsearch.training.lanes.cohort_shape import CohortShape
from hpsearch.worker.cohorts import BuildCohort, Cohorts
from hpsearch.worker.drawing import Drawing
from hpsearch.worker.lanes import epoch_writer as epoch_writer_module
from hpsearch.worker.lanes.lane_count import FixedLanes
from hpsearch.worker.lanes.worker import Worker
from hpsearch.worker.options import WorkerSettings
from hpsearch.worker.preparation import PreparedStudy, prepare_study

CPU = torch.device("cpu")
STRATEGIES = ["random", "qmc", "tpe", "gp", "cmaes"]
SEARCH: dict[str, Any] = {
    "optimizer": ["sgd", "momentum"],
    "learning_rate": {"log10": [-1, -3]},
    "momentum": {"low": 0.5, "high": 0.95},
    "lambda_2": {"log10": [-3, -5], "zero": True},
    "hidden_units": {"low": 4, "high": 6},
}


@pytest.fixture(autouse=True)
def _patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """A busy machine is no slow database: a worker that did not wait for its writes would not learn from them."""
    monkeypatch.setattr(epoch_writer_module, "SLOW_SECONDS", 60.0)


class Bench:
    """One study on 200 of the bundled digits, and workers on it in this process."""

    def __init__(self, database: Database, folder: Path, strategy: str, num_points: int, **more: Any) -> None:
        search = {key: value for key, value in {**SEARCH, **more}.items() if value is not None}
        self.database = database
        self.folder = folder
        document = {
            "name": f"study-{len(optuna.get_all_study_names(database.storage))}",
            "seed": 5,
            "data": {"dataset": "digits", "train_samples": 200},
            "model": {"family": "mlp"},
            "training": {"batch_size": 50, "max_epochs": 1},
            "stopping": {"rule": "none"},
            "search": {"strategy": strategy, "num_points": num_points, **search},
        }
        locations = DataLocations(local=None, cache=folder / "cache", allow_download=False)
        self.prepared: PreparedStudy = prepare_study(
            database, parse_definition(document, source="test"), locations=locations
        )
        self.study = self.prepared.study

    def worker(self, *, lanes: int = 1, stop: StopSignal | None = None, build: BuildCohort = Cohort) -> Worker:
        return Worker(
            database=self.database,
            study=self.study,
            cohorts=Cohorts(self.study.definition.stopping, ResidentData.place(self.prepared.data, CPU), CPU, build),
            pinned=PinnedDevice(None),
            lanes=FixedLanes(lanes),
            artifacts=open_artifacts(self.folder / "artifacts"),
            stop=stop or StopSignal(),
            settings=WorkerSettings(name="tester", poll_seconds=0.01),
        )

    def ledger(self, owner: int) -> Ledger:
        return Ledger(database=self.database, study_id=self.study.study_id, owner=owner)

    def trials(self) -> list[FrozenTrial]:
        return self.database.load_study(self.study.name).get_trials()

    def counted(self) -> list[FrozenTrial]:
        """The trials that count, by point; fails if a point has two or none."""
        counted = [trial for trial in self.trials() if trial.state in (TrialState.COMPLETE, TrialState.PRUNED)]
        counted.sort(key=lambda trial: trial.user_attrs["point"])
        assert [trial.user_attrs["point"] for trial in counted] == list(range(self.study.definition.num_points))
        return counted


@pytest.fixture
def bench(database: Database, tmp_path: Path) -> Iterator[Callable[..., Bench]]:
    def make(strategy: str, num_points: int = 14, **search: Any) -> Bench:
        return Bench(database, tmp_path, strategy, num_points, **search)

    level = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    yield make
    optuna.logging.set_verbosity(level)


def check_bounds(params: dict[str, Any]) -> None:
    assert params["optimizer"] in ("sgd", "momentum")
    assert ("momentum" in params) == (params["optimizer"] == "momentum")
    assert 0.5 <= params.get("momentum", 0.7) <= 0.95
    assert 1e-3 <= params["learning_rate"] <= 1e-1
    assert params["hidden_units"] in (4, 5, 6)
    assert ("lambda_2" in params) != params["lambda_2_is_zero"]
    assert 1e-5 <= params.get("lambda_2", 1e-4) <= 1e-3


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_two_workers_draw_every_point_once_and_within_its_bounds(strategy: str, bench: Callable[..., Bench]) -> None:
    study = bench(strategy)
    workers = [study.worker(lanes=2) for _ in range(2)]
    threads = [threading.Thread(target=worker.run) for worker in workers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    counted = study.counted()
    for trial in counted:
        check_bounds(trial.params)
        assert study.study.definition.resolve(trial.params).training.learning_rate == trial.params["learning_rate"]
    if strategy != "gp":  # which proposes the end of a range more than once, if it is the best
        assert len({trial.params["learning_rate"] for trial in counted}) == len(counted)
    assert len(study.trials()) == len(counted), "nobody had to do anything again"


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_the_same_seed_and_a_single_worker_give_the_same_points(strategy: str, bench: Callable[..., Bench]) -> None:
    first, second = bench(strategy), bench(strategy)
    first.worker().run()
    second.worker().run()
    assert [trial.params for trial in second.counted()] == [trial.params for trial in first.counted()]


@pytest.mark.parametrize("limit", [200, 5])
@pytest.mark.parametrize("strategy", ["random", "qmc"])
def test_points_of_one_cohort_are_claimed_together_before_they_are_drawn(
    strategy: str, limit: int, bench: Callable[..., Bench], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker opens each cohort once, and a point's cohort is the one of the parameters that are drawn later.

    So it does where not all points are named at once, and where points come back: drawn, or claimed and not drawn.
    """
    monkeypatch.setattr(cohort_names, "LIMIT", limit)
    study = bench(strategy, 24, batch_size=[10, 20, 40], hidden_units=[4, 6, 40])
    lost = study.ledger(owner=99)
    claims = lost.claim(6)
    assert len(Drawing(study.study).draw(lost, claims[:3])) == 3
    lost.release("it comes back")
    opened: list[CohortShape] = []

    def build(shape: CohortShape, *arguments: Any, **options: Any) -> Cohort:
        opened.append(shape)
        return Cohort(shape, *arguments, **options)

    study.worker(lanes=8, build=build).run()

    shapes = [CohortShape.of(study.study.definition.resolve(trial.params)) for trial in study.counted()]
    assert len(set(shapes)) > 3
    assert opened == list(dict.fromkeys(shapes)), "in the order of their first points"


def test_points_that_only_rates_tell_apart_are_not_drawn_twice(
    bench: Callable[..., Bench], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Drawing, "foresee", None)
    study = bench("random", 3, hidden_units=None)
    study.worker(lanes=2).run()
    assert len(study.counted()) == 3


class BeforeEpoch(StopSignal):
    """Stops a worker right before its epoch of this number, from 1."""

    def __init__(self, epoch: int) -> None:
        super().__init__()
        self._epochs_to_go = epoch

    @contextlib.contextmanager
    def interruptible(self, expected_seconds: float | None = None) -> Iterator[None]:
        self._epochs_to_go -= 1
        if self._epochs_to_go == 0:
            self.set()
        with super().interruptible(expected_seconds):
            yield


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_study_that_was_stopped_goes_on(strategy: str, bench: Callable[..., Bench]) -> None:
    """The eighth point had been drawn and is given back: it gets a trial with another number, the same parameters."""
    unbroken, broken = bench(strategy), bench(strategy)
    unbroken.worker().run()
    broken.worker(stop=BeforeEpoch(8)).run()
    assert sum(trial.state is TrialState.COMPLETE for trial in broken.trials()) == 7
    broken.worker().run()
    expected, params = ([trial.params for trial in study.counted()] for study in (unbroken, broken))
    assert broken.counted()[7].number == 14
    # TPE and the process read their history in the order of the trials, which is another one now.
    num_same = 8 if strategy in ("tpe", "gp") else 14
    assert params[:num_same] == expected[:num_same]


def draw(drawing: Drawing, ledger: Ledger, claim: Claim) -> dict[str, Any]:
    return dict(drawing.draw(ledger, [claim])[claim.trial_id])


def tell(ledger: Ledger, claim: Claim, value: float) -> None:
    result = Result(trial_id=claim.trial_id, outcome=Outcome.COMPLETE, loss=value)
    assert ledger.finish([result]) == {claim.trial_id}


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_points_that_are_given_back_keep_what_was_drawn(strategy: str, bench: Callable[..., Bench]) -> None:
    """By a worker that draws differently now: it knows of trials that have ended since."""
    study = bench(strategy)
    early, late = study.ledger(1), study.ledger(2)
    drawing = Drawing(study.study)
    drawn = {claim.point: draw(drawing, early, claim) for claim in early.claim(3)}
    for claim in late.claim(11):
        draw(drawing, late, claim)
        tell(late, claim, 0.1 + 0.01 * claim.point)
    early.release("stopped")
    again = late.claim(3)
    assert {claim.point: draw(Drawing(study.study), late, claim) for claim in again} == drawn


class DiesAtUnits:
    """A trial whose process is killed before it asks for the hidden units."""

    def __init__(self, trial: optuna.Trial) -> None:
        self._trial = trial
        self.suggest_float = trial.suggest_float
        self.suggest_categorical = trial.suggest_categorical

    def suggest_int(self, name: str, low: int, high: int, *, log: bool = False) -> int:
        raise KeyboardInterrupt


def test_half_a_candidate_of_cma_is_completed_with_its_own_other_half(bench: Callable[..., Bench]) -> None:
    """Its worker was killed while it drew; the point's next attempt has another number."""
    whole, broken = bench("cmaes"), bench("cmaes")
    (claim,) = whole.ledger(1).claim(1)
    expected = draw(Drawing(whole.study), whole.ledger(1), claim)

    ledger, definition = broken.ledger(1), broken.study.definition
    (claim,) = ledger.claim(1)
    study = broken.database.load_study(broken.study.name)
    study.sampler = build_sampler("cmaes", study_seed=5, trial_number=claim.number, space=explore(definition.draw))
    study.get_trials(deepcopy=False)
    with pytest.raises(KeyboardInterrupt):
        definition.draw(DiesAtUnits(optuna.Trial(study, claim.trial_id)))
    ledger.release("killed")
    (again,) = (claim for claim in ledger.claim(14) if claim.attempt == 2)
    assert again.parameters["learning_rate"] == expected["learning_rate"]
    assert again.number != claim.number
    assert "hidden_units" not in again.parameters
    assert draw(Drawing(broken.study), ledger, again)["hidden_units"] == expected["hidden_units"]


@pytest.mark.parametrize("strategy", ["random", "qmc"])
def test_points_drawn_together_get_what_each_would_get_alone(strategy: str, bench: Callable[..., Bench]) -> None:
    """But for those that another worker has taken over, of which nothing is written."""
    together, alone = bench(strategy), bench(strategy)
    ledger = together.ledger(1)
    claims = ledger.claim(14)
    ledger.give_back([claims[3].hold], "taken away")
    drawn = Drawing(together.study).draw(ledger, claims)
    assert claims[3].trial_id not in drawn
    other = alone.ledger(1)
    expected = {claim.point: draw(Drawing(alone.study), other, claim) for claim in other.claim(14)}
    del expected[claims[3].point]
    assert {claim.point: drawn[claim.trial_id] for claim in claims if claim.trial_id in drawn} == expected
    stored = {trial._trial_id: trial.params for trial in together.trials() if trial.params}
    assert stored == drawn
    assert Drawing(together.study).draw(ledger, claims) == drawn, "what is drawn is drawn"


def test_a_renewal_that_is_under_way_is_not_waited_for(bench: Callable[..., Bench]) -> None:
    """A worker renews its leases all the time, in another order: that must not end in a deadlock."""
    study = bench("random")
    ledger = study.ledger(1)
    claims = ledger.claim(14)
    with ledger.database.engine.begin() as connection:
        connection.exec_driver_sql("UPDATE hpsearch_points SET renewed_at = now() WHERE owner = 1")
        assert len(Drawing(study.study).draw(ledger, claims)) == 14


def test_a_sampler_that_learns_draws_one_point_at_a_time(bench: Callable[..., Bench]) -> None:
    study = bench("tpe")
    ledger = study.ledger(1)
    with pytest.raises(ValueError, match="one point at a time"):
        Drawing(study.study).draw(ledger, ledger.claim(2))


def test_points_given_back_are_candidates_of_cma_still(bench: Callable[..., Bench]) -> None:
    """Without them a generation that was interrupted would be drawn and trained anew."""
    study = bench("cmaes", num_points=5)
    ledger, drawing = study.ledger(1), Drawing(study.study)
    for claim in ledger.claim(4):
        draw(drawing, ledger, claim)
        study.database.storage.set_trial_system_attr(claim.trial_id, "completed_rung_0", 0.5)
    ledger.release("stopped")
    claims = {claim.point: claim for claim in ledger.claim(5)}
    for point in (0, 1, 2, 3):  # the population of two parameters is six, so these do not end it
        tell(ledger, claims[point], 0.1)
    draw(drawing, ledger, claims[4])
    notes = [
        trial.system_attrs.get("hpsearch:draw:cma") for trial in study.trials() if trial.state is not TrialState.FAIL
    ]
    assert Counter(note["generation"] for note in notes if note) == {0: 5}
    assert all("completed_rung_0" not in trial.system_attrs for trial in study.trials()[5:]), (
        "that was the attempt's own"
    )


def test_every_point_of_qmc_has_its_own_sample_whatever_became_of_its_attempts(bench: Callable[..., Bench]) -> None:
    study, untouched = bench("qmc", 8), bench("qmc", 8)
    ledger = study.ledger(1)
    ledger.claim(3)  # and dies before it draws
    ledger.release("killed")
    for some in (study, untouched):
        drawing = Drawing(some.study)
        ledger = some.ledger(1)
        for claim in ledger.claim(8):
            drawn = replace(claim, parameters=draw(drawing, ledger, claim))
            tell(ledger, drawn, 0.5)
    assert [trial.params for trial in study.counted()] == [trial.params for trial in untouched.counted()]
