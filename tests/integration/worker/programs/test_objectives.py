"""Optuna objectives by the real worker: a process per trial, a real PostgreSQL, all endings."""

from __future__ import annotations

import os
import textwrap
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.trial import FrozenTrial, TrialState

from hpsearch.artifacts.store import open_store
from hpsearch.data.files.lookup import DataLocations
from hpsearch.errors import HpsearchError, InputError
from hpsearch.results.confirmation.plan import plan_confirmation, prepare_confirmation
from hpsearch.results.status import read_status
from hpsearch.scripts.keeper.client import Keeper
from hpsearch.signals import StopSignal
from hpsearch.store.claims.claim import Claim
from hpsearch.store.claims.ledger import Ledger
from hpsearch.store.connection.database import Database, DatabaseAwayError
from hpsearch.store.rows.counts import PointCounts
from hpsearch.store.studies import StoredStudy, load_study
from hpsearch.study.study_file import parse_definition
from hpsearch.worker.options import WorkerSettings
from hpsearch.worker.programs.asked_parameters import AskedParameters, AskedTrial
from hpsearch.worker.programs.attempts import Attempts, attempt_folders
from hpsearch.worker.programs.ended_trials import ProgramsFailError
from hpsearch.worker.programs.objective_check import check_objective
from hpsearch.worker.programs.preparation import CannotStartError, describe_program, prepare_program
from hpsearch.worker.programs.program_worker import ProgramWorker

STRATEGIES = ["random", "qmc", "tpe", "gp", "cmaes"]


@dataclass(kw_only=True)
class Bench:
    """One study of an objective, and workers on it in this process.

    Args:
        folder: in which the workers are started; the module `mine` is there.
    """

    database: Database
    folder: Path
    study: StoredStudy

    def worker(self, attempts: Attempts, *, lanes: int, stop: StopSignal, name: str) -> ProgramWorker:
        return ProgramWorker(
            database=self.database,
            study=self.study,
            attempts=attempts,
            num_slots=lanes,
            device="cpu",
            stop=stop,
            settings=WorkerSettings(name=name, num_siblings=1, poll_seconds=0.1),
        )

    def work(self, *, lanes: int = 2, stop: StopSignal | None = None, name: str = "worker") -> int:
        """Work until the study is finished, or until `stop`."""
        artifacts = open_store(str(self.folder / "artifacts"))
        folders = attempt_folders(self.folder / "attempts", self.study, artifacts)
        with (
            Keeper() as keeper,
            Attempts(
                self.study,
                keeper,
                artifacts,
                folders,
                devices=[[]] * lanes,
                base=os.environ,
                place=self.folder,
                upload_seconds=0.0,
            ) as attempts,
        ):
            return self.worker(attempts, lanes=lanes, stop=stop or StopSignal(), name=name).run()

    @property
    def trials(self) -> list[FrozenTrial]:
        return optuna.load_study(study_name=self.study.name, storage=self.database.storage).trials

    @property
    def counts(self) -> PointCounts:
        return Ledger(database=self.database, study_id=self.study.study_id).counts()


NewBench = Callable[..., Bench]


@pytest.fixture
def new_bench(database: Database, tmp_path: Path) -> NewBench:
    def create(
        code: str,
        strategy: str = "random",
        num_points: int = 3,
        objective: Mapping[str, Any] | None = None,
        **sections: Any,
    ) -> Bench:
        (tmp_path / "mine.py").write_text("import optuna\n\n" + textwrap.dedent(code))
        document = {
            "name": f"study-{len(optuna.get_all_study_names(database.storage))}",
            "seed": 3,
            "objective": {"function": "mine:objective", "grace_seconds": 1.0, **(objective or {})},
            "search": {"strategy": strategy, "num_points": num_points},
            **sections,
        }
        definition = parse_definition(document, source="test")
        return Bench(database=database, folder=tmp_path, study=prepare_program(database, definition, tmp_path).study)

    return create


CONDITIONAL = """
    def objective(trial):
        assert isinstance(trial, optuna.Trial)
        kind = trial.suggest_categorical("kind", ["near", "far"])
        x = trial.suggest_float("x", -1, 1) if kind == "near" else trial.suggest_float("far_x", 1e-2, 10, log=True)
        n = trial.suggest_int("n", 1, 3)
        assert trial.params == {"kind": kind, "n": n, "x" if kind == "near" else "far_x": x}
        assert trial.distributions.keys() == trial.params.keys()
        trial.set_user_attr("number", trial.number)
        trial.set_user_attr("seen", dict(trial.params))
        return x * x + n
"""


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_every_point_is_counted_once_with_the_values_that_its_objective_saw(new_bench: NewBench, strategy: str) -> None:
    bench = new_bench(CONDITIONAL, strategy, 12 if strategy in ("tpe", "gp", "cmaes") else 5)
    assert bench.work(lanes=3) == bench.study.definition.num_points
    for trial in bench.trials:
        assert trial.state is TrialState.COMPLETE
        assert trial.user_attrs["seen"] == trial.params
        assert trial.user_attrs["number"] == trial.number
        x = trial.params["x" if trial.params["kind"] == "near" else "far_x"]
        assert trial.value == pytest.approx(x * x + trial.params["n"], abs=1e-12)


def test_two_workers_share_the_points(new_bench: NewBench) -> None:
    bench = new_bench(CONDITIONAL, "tpe", 10)
    finished: list[int] = []
    threads = [threading.Thread(target=lambda n=n: finished.append(bench.work(name=f"worker-{n}"))) for n in "ab"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(finished) == 10
    assert {trial.user_attrs["worker"] for trial in bench.trials} == {"worker-a", "worker-b"}
    assert bench.counts == PointCounts(complete=10)


def test_all_of_a_trial_is_there(new_bench: NewBench) -> None:
    bench = new_bench(
        """
        import warnings

        def objective(trial: optuna.Trial) -> float:
            assert trial.relative_params == {}
            assert trial.datetime_start is not None
            assert trial.user_attrs == {}
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                a = trial.suggest_uniform("a", 0, 1)
                b = trial.suggest_loguniform("b", 1e-3, 1)
                c = trial.suggest_discrete_uniform("c", 0, 1, 0.25)
            assert trial.suggest_float("a", 0, 1) == a
            assert trial.suggest_float("one", 2, 2) == 2
            assert trial.suggest_categorical("none", [None, True, 1.5, "x"]) in (None, True, 1.5, "x")
            assert trial.suggest_int("steps", 0, 10, step=5) in (0, 5, 10)
            assert c in (0, 0.25, 0.5, 0.75, 1)
            trial.set_user_attr("epochs", "mine")
            trial.set_user_attr("worker", "mine, too")
            trial.set_user_attr("note", {"list": [1, None]})
            assert trial.user_attrs["epochs"] == "mine"
            return a + b
        """,
        num_points=2,
    )
    bench.work()
    for trial in bench.trials:
        assert trial.value == trial.params["a"] + trial.params["b"]
        assert trial.params.keys() == {"a", "b", "c", "one", "none", "steps"}
        assert trial.user_attrs["note"] == {"list": [1, None]}
        assert trial.user_attrs["objective:epochs"] == "mine"
        assert trial.user_attrs["objective:worker"] == "mine, too"
        assert (trial.user_attrs["epochs"], trial.user_attrs["worker"]) == (0, "worker")
        assert trial.user_attrs["stop_detail"] == f"the objective returned {trial.value:g}"


def test_the_study_can_be_read_and_nothing_else(new_bench: NewBench) -> None:
    bench = new_bench(
        """
        import pytest

        def objective(trial):
            study = trial.study
            trial.suggest_float("x", 0, 1)
            assert study.study_name == "study-0"
            assert study.direction == optuna.study.StudyDirection.MAXIMIZE
            assert study.directions == [optuna.study.StudyDirection.MAXIMIZE]
            assert study.user_attrs == {"owner": "me"}
            if trial.number == 0:
                with pytest.raises(ValueError, match="No trials are completed yet"):
                    study.best_value
            else:
                assert study.best_value == trial.number - 1
                assert study.best_params.keys() == {"x"}
            for name in ("trials", "best_trial", "get_trials", "optimize", "ask", "stop", "set_user_attr"):
                with pytest.raises(AttributeError, match=f"hpsearch: an objective has no access to study.{name}"):
                    getattr(study, name)
            with pytest.raises(AttributeError, match="hpsearch: an objective has no access to study.enqueue_trial"):
                study.enqueue_trial({"x": 1})
            with pytest.raises(RuntimeError, match="hpsearch: .* no access to system attributes, such as constraints"):
                trial.set_constraint("c", 1.0)
            assert not hasattr(study, "trials_dataframe")
            return trial.number
        """,
        objective={"direction": "maximize"},
    )
    optuna.load_study(study_name=bench.study.name, storage=bench.database.storage).set_user_attr("owner", "me")
    bench.work(lanes=1)
    assert [trial.value for trial in bench.trials] == [0, 1, 2]


def test_reports_are_recorded_and_the_returned_value_counts(new_bench: NewBench) -> None:
    bench = new_bench(
        """
        def objective(trial):
            x = trial.suggest_float("x", 0, 1)
            for step in range(4):
                trial.report(10 + step, step)
                assert not trial.should_prune()
            return x
        """
    )
    bench.work()
    for trial in bench.trials:
        assert trial.value == trial.params["x"]
        assert trial.intermediate_values == {1: 10, 2: 11, 3: 12, 4: 13}  # hpsearch counts steps from 1
        assert (trial.user_attrs["epochs"], trial.user_attrs["best_epoch"]) == (4, 4)  # returned after step 4


def test_a_trial_that_raises_trial_pruned_has_its_last_report(new_bench: NewBench) -> None:
    bench = new_bench(
        """
        def objective(trial):
            trial.suggest_float("x", 0, 1)
            if trial.number > 0:
                trial.report(0.75, 0)
                trial.report(0.25, 1)
            raise optuna.TrialPruned()
        """,
        num_points=2,
    )
    bench.work()
    assert [trial.state for trial in bench.trials] == [TrialState.PRUNED] * 2
    assert sorted(trial.value or 0 for trial in bench.trials) == [0, 0.25]


def test_the_pruner_has_seen_the_last_report_when_should_prune_answers(new_bench: NewBench) -> None:
    bench = new_bench(
        """
        def objective(trial):
            x = trial.suggest_float("x", 0, 1)
            for step in range(20):
                trial.report(trial.number, step)
                if trial.should_prune():
                    raise optuna.TrialPruned()
            return trial.number
        """,
        num_points=5,
        pruning={"pruner": "median", "startup_trials": 2, "warmup_epochs": 3},
    )
    bench.work(lanes=1)
    states = [trial.state for trial in bench.trials]
    assert states == [TrialState.COMPLETE] * 2 + [TrialState.PRUNED] * 3
    assert {len(trial.intermediate_values) for trial in bench.trials[2:]} <= {3, 4}
    assert bench.trials[4].value == 4


@pytest.mark.parametrize(
    ("ending", "reason"),
    [
        ("raise ValueError('a\\nb')", "raised ValueError: a b (mine.py:6); its last lines:"),
        ("return 1.0, 2.0", "returned 2 values: hpsearch searches for one value; it printed nothing"),
        ("return 'best'", "returned 'best', which is not a number; it printed nothing"),
        ("return None", "returned None, which is not a number; it printed nothing"),
        ("import sys; sys.exit(0)", "raised SystemExit: 0 (mine.py:6)"),
        ("import os; os._exit(0)", "ended before its objective returned; it printed nothing"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", "was ended by signal 9; it printed nothing"),
        ("trial.suggest_int('x', 0, 1)", "raised ValueError: Cannot set different distribution kind"),
        ("open('/no/such/file')", "raised FileNotFoundError: [Errno 2] No such file or directory: '/no/such/file' ("),
    ],
)
def test_an_objective_that_fails_is_a_failed_attempt(new_bench: NewBench, ending: str, reason: str) -> None:
    code = f"""
        def objective(trial):
            trial.suggest_float("x", 0, 1)
            {ending}
            return 1.0
    """
    bench = new_bench(
        code,
        num_points=1,
        objective={"max_attempts": 2},
    )
    bench.work()
    first, second = bench.trials
    assert first.state is second.state is TrialState.FAIL
    assert first.params == second.params  # of the same point
    assert reason in first.user_attrs["fail_reason"]
    assert bench.counts == PointCounts(failed=1)


LISTED = """
    import hpsearch.trial

    def objective(trial):
        kind = trial.suggest_categorical("kind of layer", ["near", "far"])
        x = trial.suggest_float("x", -1, 1) if kind == "near" else trial.suggest_float("far_x", 1e-2, 10, log=True)
        trial.set_user_attr("seen", [kind, x, trial.params, hpsearch.trial.seed()])
        return x
"""


def test_listed_points_are_given_to_the_objective(new_bench: NewBench) -> None:
    points = [{"kind of layer": "near", "x": 0.25}, {"kind of layer": "far", "far_x": 3.0, "seed": 17}]
    bench = new_bench(LISTED, search={"strategy": "listed", "points": points})
    bench.work()
    assert bench.counts == PointCounts(complete=2)
    assert [trial.user_attrs["seen"] for trial in bench.trials] == [
        ["near", 0.25, {"kind of layer": "near", "x": 0.25}, 3],
        ["far", 3.0, {"kind of layer": "far", "far_x": 3.0}, 17],
    ]
    assert [trial.params for trial in bench.trials] == points


def test_a_listed_value_that_no_objective_asks_for_is_warned_of_once(
    new_bench: NewBench, caplog: pytest.LogCaptureFixture
) -> None:
    points = [{"kind of layer": "near", "x": x, "y": 1} for x in (0.25, 0.5)]
    bench = new_bench(LISTED, search={"strategy": "listed", "points": points})
    bench.work()
    assert bench.counts == PointCounts(complete=2)
    assert caplog.text.count("its listed point has y, which the objective has not asked for") == 1


@pytest.mark.parametrize(
    ("point", "reason"),
    [
        ({"kind of layer": "near"}, "the objective asks for 'x', which its listed point does not have; it has kind of"),
        ({"kind of layer": "near", "x": 2.0}, "the listed point has x = 2.0, and the objective allows -1 to 1"),
        (
            {"kind of layer": "middle", "x": 0.5},
            "the listed point has kind of layer = 'middle', and the objective allows 'near', 'far'",
        ),
        ({"kind of layer": "near", "x": "wide"}, "the listed point has x = 'wide', and the objective allows -1 to 1"),
    ],
)
def test_a_listed_point_that_does_not_suit_the_objective_fails(
    new_bench: NewBench, point: dict[str, Any], reason: str
) -> None:
    bench = new_bench(LISTED, search={"strategy": "listed", "points": [point]}, objective={"max_attempts": 1})
    bench.work()
    (trial,) = bench.trials
    assert f"raised ValueError: {reason}" in trial.user_attrs["fail_reason"]
    assert bench.counts == PointCounts(failed=1)


def test_an_objective_is_confirmed_over_fresh_seeds(new_bench: NewBench, monkeypatch: pytest.MonkeyPatch) -> None:
    bench = new_bench(LISTED, num_points=4)
    bench.work()
    monkeypatch.chdir(bench.folder)
    nowhere = DataLocations(local=None, cache=Path("/nonexistent"), allow_download=False)
    plan = plan_confirmation(bench.database, bench.study.name, top=2, num_seeds=3)
    assert prepare_confirmation(bench.database, plan, locations=nowhere).is_created
    companion = replace(bench, study=load_study(bench.database, plan.definition.name))
    companion.work()
    assert companion.counts == PointCounts(complete=6)
    best = sorted(bench.trials, key=lambda trial: trial.value or 0.0)[:2]
    assert {trial.value for trial in companion.trials} == {trial.value for trial in best}
    assert len({trial.user_attrs["seen"][-1] for trial in companion.trials} - {3}) == 3
    confirmation = read_status(bench.database, bench.study.name).confirmation
    assert confirmation is not None
    assert [each.parameters for each in confirmation.configurations] == [trial.params for trial in best]


def test_an_objective_with_a_seed_of_its_own_cannot_be_confirmed(new_bench: NewBench) -> None:
    bench = new_bench("def objective(trial):\n        return trial.suggest_int('seed', 0, 9)", num_points=1)
    bench.work()
    with pytest.raises(InputError, match="its objective asks for a parameter 'seed'"):
        plan_confirmation(bench.database, bench.study.name, top=1, num_seeds=2)


def test_an_objective_that_always_fails_ends_its_worker(new_bench: NewBench) -> None:
    bench = new_bench("def objective(trial):\n        raise ValueError('no')", num_points=9)
    with pytest.raises(ProgramsFailError, match="5 attempts in a row failed; the objective") as raised:
        bench.work()
    assert "mine:objective" in str(raised.value)
    assert "raised ValueError: no (mine.py:4)" in str(raised.value)
    assert bench.counts.waiting + bench.counts.failed == 9


@pytest.mark.parametrize("shown", ["nan", "inf", "-inf"])
def test_a_value_that_is_not_finite_is_diverged(new_bench: NewBench, shown: str) -> None:
    bench = new_bench(
        f"""
        def objective(trial):
            trial.report(0.5, 0)
            return float("{shown}")
        """,
        num_points=1,
    )
    bench.work()
    (trial,) = bench.trials
    assert (trial.state, trial.value) == (TrialState.PRUNED, 0.5)
    assert trial.user_attrs["stop_reason"] == "diverged"
    assert trial.user_attrs["stop_detail"] == f"diverged: the objective returned {shown}"


def test_numbers_of_any_kind_are_values(new_bench: NewBench) -> None:
    bench = new_bench(
        """
        import numpy

        def objective(trial):
            return [numpy.float32(0.5), 7, True, numpy.array(2.0)][trial.number]
        """,
        num_points=4,
    )
    bench.work()
    assert [trial.value for trial in bench.trials] == [0.5, 7, 1, 2]


def test_an_attempt_that_was_killed_gets_the_same_values_again(new_bench: NewBench) -> None:
    bench = new_bench(
        """
        import os, signal

        def objective(trial):
            x = trial.suggest_float("x", 0, 1)
            kind = trial.suggest_categorical("kind", ["a", "b"])
            if os.environ["HPSEARCH_ATTEMPT"] == "1":
                os.kill(os.getpid(), signal.SIGKILL)
            late = trial.suggest_int("late", 1, 1000)
            assert trial.suggest_categorical("kind", ["a", "b"]) == kind
            return x
        """,
        "tpe",
        num_points=2,
    )
    bench.work()
    by_point: dict[int, list[FrozenTrial]] = {}
    for trial in bench.trials:
        by_point.setdefault(trial.user_attrs["point"], []).append(trial)
    for first, second in by_point.values():
        assert first.state is TrialState.FAIL
        assert second.state is TrialState.COMPLETE
        assert first.params == {name: second.params[name] for name in ("x", "kind")}
        assert second.value == first.params["x"]
        assert "late" in second.params


def test_a_stop_gives_the_trial_back_with_its_values(new_bench: NewBench) -> None:
    bench = new_bench(
        """
        import time
        from pathlib import Path

        def objective(trial):
            x = trial.suggest_float("x", 0, 1)
            if not Path("again").exists():
                Path("asked").touch()
                time.sleep(600)
            return x
        """,
        num_points=1,
    )
    stop = StopSignal()

    def stop_when_asked() -> None:
        while not (bench.folder / "asked").exists():
            time.sleep(0.02)
        (bench.folder / "again").touch()
        stop.set()

    thread = threading.Thread(target=stop_when_asked)
    thread.start()
    assert bench.work(stop=stop) == 0
    thread.join()
    assert bench.work() == 1
    first, second = bench.trials
    assert (first.state, second.state) == (TrialState.FAIL, TrialState.COMPLETE)
    assert second.value == second.params["x"] == first.params["x"]


def test_a_worker_that_loses_a_trial_ends_its_objective_and_the_next_one_has_the_same_values(
    new_bench: NewBench, execute: Callable[..., Any]
) -> None:
    bench = new_bench(
        """
        import time
        from pathlib import Path

        def objective(trial):
            x = trial.suggest_float("x", 0, 1)
            if not Path("asked").exists():
                Path("asked").touch()
                while True:
                    trial.report(1.0, len(trial.distributions))
                    time.sleep(0.1)
            return x
        """,
        num_points=1,
    )

    def take_away() -> None:
        while not (bench.folder / "asked").exists():
            time.sleep(0.02)
        execute("UPDATE hpsearch_points SET owner = NULL, claim = NULL WHERE NOT is_counted")

    thread = threading.Thread(target=take_away)
    thread.start()
    bench.work(lanes=2)  # the second slot is free: the worker takes the point itself
    thread.join()
    first, second = bench.trials
    assert (first.state, second.state) == (TrialState.FAIL, TrialState.COMPLETE)
    assert second.value == first.params["x"] == second.params["x"]


def test_an_objective_waits_while_the_database_is_away(new_bench: NewBench, monkeypatch: pytest.MonkeyPatch) -> None:
    bench = new_bench(CONDITIONAL, num_points=2)
    suggest, begin = AskedParameters.suggest, AskedParameters.begin
    failures = iter(range(2))

    def away_at_first(*arguments: Any) -> float:
        value = suggest(*arguments)
        if next(failures, None) is not None:  # after it was stored: the answer is lost
            raise DatabaseAwayError("away", hint="wait")
        return value

    begins: list[Claim] = []

    def begin_once(self: AskedParameters, ledger: Ledger, claim: Claim) -> AskedTrial:
        begins.append(claim)
        return begin(self, ledger, claim)

    monkeypatch.setattr(AskedParameters, "suggest", away_at_first)
    monkeypatch.setattr(AskedParameters, "begin", begin_once)
    bench.work(lanes=1)
    assert bench.counts == PointCounts(complete=2)
    assert len(begins) == 2
    assert all(trial.user_attrs["seen"] == trial.params for trial in bench.trials)


@pytest.mark.parametrize("name", ["", "a\\0b", "\\ud800", "x" * 513])
def test_names_that_the_database_cannot_hold_fail_the_trial_and_not_the_worker(new_bench: NewBench, name: str) -> None:
    bench = new_bench(
        f"""
        def objective(trial):
            trial.set_user_attr("{name}", 1)
            trial.suggest_float("{name}", 0, 1)
            return 1.0
        """,
        num_points=1,
        objective={"max_attempts": 1},
    )
    bench.work()
    (trial,) = bench.trials
    assert (
        "raised ValueError: a parameter's name must be a text of 1 to 490 characters" in trial.user_attrs["fail_reason"]
    )


def test_an_attempt_that_takes_too_long_is_ended(new_bench: NewBench) -> None:
    bench = new_bench(
        """
        import time

        def objective(trial):
            trial.report(0.5, 0)
            time.sleep(600)
        """,
        num_points=1,
        objective={"timeout_minutes": 0.05},
    )
    bench.work()
    (trial,) = bench.trials
    assert (trial.state, trial.value) == (TrialState.COMPLETE, 0.5)
    assert trial.user_attrs["stop_reason"] == "timeout"


def test_a_thread_that_goes_on_after_the_value_is_ended(new_bench: NewBench) -> None:
    bench = new_bench(
        """
        import threading, time

        def objective(trial):
            threading.Thread(target=time.sleep, args=(600,)).start()
            return 0.5
        """,
        num_points=1,
        objective={"grace_seconds": 0.2},
    )
    bench.work()
    (trial,) = bench.trials
    assert (trial.state, trial.value) == (TrialState.COMPLETE, 0.5)


def test_the_module_that_is_gone_ends_the_worker_and_spends_no_attempt(new_bench: NewBench) -> None:
    bench = new_bench("def objective(trial):\n        return 1.0", num_points=1)
    (bench.folder / "mine.py").rename(bench.folder / "mine.gone")
    with pytest.raises(CannotStartError, match="objective cannot be started: there is no module 'mine'"):
        bench.work()
    (bench.folder / "mine.gone").rename(bench.folder / "mine.py")
    bench.work()
    assert bench.counts == PointCounts(complete=1)


def test_an_objective_has_no_way_to_the_database(
    new_bench: NewBench, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The database's name is unique; the search has it letter by letter, so that it does not find itself."""
    name = str(database.url.database)
    monkeypatch.setenv("HPSEARCH_STORAGE", database.url.render_as_string(hide_password=False))
    monkeypatch.setenv("PGDATABASE", name)
    bench = new_bench(
        """
        import os, re, subprocess, sys
        from pathlib import Path

        def memory():
            with open("/proc/self/mem", "rb") as file:
                for line in Path("/proc/self/maps").read_text().splitlines():
                    ends, mode, *_ = line.split()
                    first, last = (int(end, 16) for end in ends.split("-"))
                    if mode.startswith("rw") and "vvar" not in line:
                        file.seek(first)
                        yield file.read(last - first)

        def objective(trial):
            trial.suggest_float("x", 0, 1)
            letters = Path("needle").read_bytes().split()
            needle = re.compile(b"".join(b"[" + letter + b"]" for letter in letters))
            assert not [m for m in ("psycopg2", "hpsearch.store", "hpsearch.worker") if m in sys.modules]
            assert not [n for n in os.environ if n.startswith(("PG", "HPSEARCH_STORAGE"))]
            for file in ("environ", "cmdline"):
                assert not needle.search(Path(f"/proc/self/{file}").read_bytes())
            assert any(b"def objective" in part for part in memory())  # the search finds what is there
            assert not any(needle.search(part) for part in memory())
            links = {}
            for number in os.listdir("/proc/self/fd"):
                try:
                    links[int(number)] = os.readlink(f"/proc/self/fd/{number}")
                except FileNotFoundError:
                    pass
            assert set(links) <= {0, 1, 2, 3}, links
            assert links[3].startswith("socket:")
            inherited = subprocess.run(["ls", "/proc/self/fd"], capture_output=True, text=True, close_fds=False)
            assert set(inherited.stdout.split()) <= {"0", "1", "2", "3"}
            shown = subprocess.run(["ls", "-l", "/proc/self/fd"], capture_output=True, text=True, close_fds=False)
            assert shown.stdout.count("socket:") == 0, shown.stdout
            return 1.0
        """,
        num_points=1,
    )
    (bench.folder / "needle").write_text(" ".join(name))
    bench.work()
    assert [trial.user_attrs.get("fail_reason") for trial in bench.trials] == [None]


@pytest.mark.parametrize(
    ("code", "message"),
    [
        (None, "there is no module 'mine' in "),
        (
            "import no_such_library",
            "importing mine from .* failed: ModuleNotFoundError: .*no_such_library.* .mine.py:1",
        ),
        ("1 / 0", r"importing mine from .* failed: ZeroDivisionError: division by zero \(mine.py:1\)"),
        ("x = (", r"importing mine from .* failed: SyntaxError: "),
        ("def other(trial): ...", "mine.py has no function 'objective'"),
        ("objective = 3", "mine.py has no function 'objective'"),
        ("def objective(trial, data): ...", r"must take the trial as its only argument, and takes \(trial, data\)"),
        ("def objective(): ...", r"must take the trial as its only argument, and takes \(\)"),
        ("import sys; sys.exit(3)", "importing mine from .* failed: SystemExit: 3"),
        ("import os; print('bye', flush=True); os._exit(3)", "importing it ended the process; its last line: bye"),
        ("import time; time.sleep(60)", "importing it takes longer than 2 seconds"),
    ],
)
def test_a_function_that_cannot_be_called_is_refused_before_the_study_exists(
    tmp_path: Path, code: str | None, message: str
) -> None:
    if code is not None:
        (tmp_path / "mine.py").write_text(code)
    objective = parse_definition(
        {
            "name": "a",
            "objective": {"function": "mine:objective"},
            "search": {"strategy": "random", "num_points": 1},
        },
        source="test",
    ).objective
    assert objective is not None
    assert describe_program(objective) == "the objective mine:objective"
    with pytest.raises(InputError, match=f"objective.function mine:objective: .*{message}"):
        check_objective(objective, tmp_path, seed=0, seconds=2.0 if "sleep" in (code or "") else 60.0)


@pytest.mark.parametrize(
    "code",
    [
        "def objective(trial, *, data=3): ...",
        "class Objective:\n    def __call__(self, trial): ...\nobjective = Objective()",
        "import functools\ndef full(data, trial): ...\nobjective = functools.partial(full, 3)",
        "objective = lambda trial: 1.0\nimport argparse\nargparse.ArgumentParser().parse_args()",
    ],
)
def test_whatever_can_be_called_with_a_trial_is_accepted(tmp_path: Path, code: str) -> None:
    (tmp_path / "mine.py").write_text(code)
    document = {
        "name": "a",
        "objective": {"function": "mine:objective"},
        "search": {"strategy": "random", "num_points": 1},
    }
    objective = parse_definition(document, source="test").objective
    assert objective is not None
    check_objective(objective, tmp_path, seed=0)


def test_errors_have_their_exit_codes() -> None:
    assert (InputError.exit_code, CannotStartError.exit_code, HpsearchError.exit_code) == (2, 3, 1)
