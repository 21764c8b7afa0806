"""The Python API with a real PostgreSQL and real workers: run, look, export, and the same point as an objective."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import optuna
import pytest
import tomli_w
from optuna.trial import TrialState
from safetensors import safe_open

import hpsearch
from hpsearch.api import Study
from hpsearch.data.files.lookup import DataLocations
from hpsearch.errors import (
    DefinitionMismatchError,
    InputError,
    NothingCompleteError,
    StudyNotFoundError,
    UncountedPointsError,
)
from hpsearch.results.confirmation.plan import plan_confirmation, prepare_confirmation
from hpsearch.store.claims.ledger import Ledger
from hpsearch.store.claims.requeue import MAX_CRASHES
from hpsearch.store.connection.database import Database
from hpsearch.store.progress import Progress
from hpsearch.study.study_file import parse_definition
from tests.acceptance.in_process import hpsearch_here

DOCUMENT: dict[str, Any] = {
    "name": "small",
    "data": {"dataset": "digits"},
    "model": {"hidden_units": 8},
    "training": {"batch_size": 100, "max_epochs": 3},
    "search": {"learning_rate": {"log10": [-1, -2]}, "lambda_2": [0.0, 0.001]},
    "stopping": {"rule": "none"},
}


@pytest.fixture
def artifacts(tmp_path: Path) -> Path:
    return tmp_path / "artifacts"


@pytest.fixture
def trained(tables_url: str, artifacts: Path, tmp_path: Path) -> Study:
    create_here(tables_url, tmp_path)
    train_here(tables_url, artifacts, "small")
    return hpsearch.load("small", tables_url, artifacts=artifacts)


def create_here(storage: str | None, folder: Path) -> None:
    """`hpsearch.run` starts a worker process, which takes seconds: here where it is not what is tested."""
    (folder / "small.toml").write_text(tomli_w.dumps(DOCUMENT))
    _command("create", folder / "small.toml", storage=storage)


def train_here(storage: str | None, artifacts: Path, name: str) -> None:
    _command("worker", name, "--lanes", "1", "--artifacts", artifacts, storage=storage)


def _command(*arguments: str | Path, storage: str | None) -> None:
    environment = {"HPSEARCH_HOME": os.environ["HPSEARCH_HOME"]} | ({"HPSEARCH_STORAGE": storage} if storage else {})
    done = hpsearch_here(*arguments, folder=Path.cwd(), environment=environment)
    assert done.returncode == 0, done.stderr


def test_a_notebook_can_run_a_study_look_at_it_and_write_it_out(
    tables_url: str,
    artifacts: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Within an event loop, in a thread that may set no signal handler. All in one test: a run takes seconds."""
    monkeypatch.setenv("HPSEARCH_STORAGE", tables_url)
    monkeypatch.setenv("HPSEARCH_ARTIFACTS", str(artifacts))
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)]
    optuna_level = optuna.logging.get_verbosity()

    async def cell() -> Study:
        return await asyncio.to_thread(hpsearch.run, DOCUMENT, lanes=1)

    study = asyncio.run(cell())
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)] == handlers
    assert optuna.logging.get_verbosity() == optuna_level
    said = capsys.readouterr()
    assert said.out == ""
    assert "study 'small' created: 4 points, 1 worker with 1 lane each" in said.err
    assert "4 complete" in said.err

    assert study.name == "small"
    assert study.definition == parse_definition(DOCUMENT, source="test")
    assert study.summary.points.complete == 4
    assert study.best.value == min(trial.value for trial in study.summary.trials)
    trials, curves = study.trials_dataframe(), study.curves_dataframe()
    assert list(trials["epochs"]) == [3] * 4
    assert len(curves) == 12
    assert trials.loc[0, "value"] == curves[curves["number"] == trials.loc[0, "number"]]["zero_one"].min()

    parameters = study.best_parameters()
    assert parameters["hidden.weight"].shape == (8, 784)
    study.export(tmp_path / "best.json")
    assert json.loads((tmp_path / "best.json").read_text())["value"] == study.best.value
    study.export(tmp_path / "best.toml")
    assert tomllib.loads((tmp_path / "best.toml").read_text())["trial"] == study.best.number
    study.export(str(tmp_path / "best.safetensors"))
    assert (tmp_path / "best.safetensors").stat().st_size > 8 * 784 * 4
    study.report(tmp_path / "report.html")
    assert "small" in (tmp_path / "report.html").read_text()
    assert study.confirmation is None

    again = hpsearch.load("small", tables_url, artifacts=artifacts)
    assert repr(again) == "<hpsearch.Study 'small'>"
    assert again.best == study.best
    assert again.best_parameters().keys() == parameters.keys()
    with again:
        plain = again.optuna_study()
        assert (plain.best_value, len(plain.trials)) == (study.best.value, 4)


def test_a_confirmed_point_is_written_out(
    trained: Study, tables_url: str, artifacts: Path, tmp_path: Path, database: Database
) -> None:
    with pytest.raises(InputError, match="study 'small' has not been confirmed"):
        trained.export(tmp_path / "confirmed.json", point="confirmed")
    with pytest.raises(InputError, match="point must be 'best' or 'confirmed', got 'worst'"):
        trained.export(tmp_path / "confirmed.json", point="worst")  # type: ignore[arg-type]
    plan = plan_confirmation(database, "small", top=2, num_seeds=2)
    prepare_confirmation(database, plan, locations=DataLocations.from_environment())
    train_here(tables_url, artifacts, "small-confirm")
    confirmation = trained.confirmation
    assert confirmation is not None
    assert confirmation.chosen is not None
    trained.export(tmp_path / "confirmed.json", point="confirmed")
    document = json.loads((tmp_path / "confirmed.json").read_text())
    assert (document["study"], document["trial"]) == ("small-confirm", confirmation.chosen.trial.number)
    trained.export(tmp_path / "confirmed.safetensors", point="confirmed")
    with safe_open(tmp_path / "confirmed.safetensors", framework="numpy") as file:
        assert file.metadata()["study"] == "small-confirm"


def test_an_interrupted_run_leaves_a_study_that_the_same_call_resumes_and_does_not_train_again(
    tables_url: str, artifacts: Path
) -> None:
    # Seconds of training: who interrupts it looks at it once a second.
    long = {**DOCUMENT, "training": {"batch_size": 20, "max_epochs": 200}, "search": {"learning_rate": [0.01]}}

    def interrupt(progress: Progress) -> None:
        if progress.epochs:
            raise KeyboardInterrupt

    where: dict[str, Any] = {"storage": tables_url, "artifacts": artifacts, "lanes": 1}
    with pytest.raises(KeyboardInterrupt):
        hpsearch.run(long, **where, progress=interrupt)
    left = hpsearch.load("small", tables_url).summary
    assert left.points.waiting == 1
    seen: list[Progress] = []
    study = hpsearch.run(long, **where, progress=seen.append)
    assert seen[-1].counts.complete == 1
    assert study.best.num_epochs == 200
    assert list(study.curves_dataframe().query(f"number == {study.best.number}")["epoch"]) == list(range(1, 201))

    seen.clear()
    before = study.summary.trials
    hpsearch.run(long, **where, progress=seen.append)
    assert seen == []
    assert study.summary.trials == before
    with pytest.raises(DefinitionMismatchError, match=r"training\.batch_size"):
        hpsearch.run({**long, "training": {"batch_size": 50}}, **where)


def test_the_objective_gives_the_workers_curve_for_the_same_point(trained: Study) -> None:
    plain = optuna.create_study()
    for trial in trained.summary.trials:
        plain.enqueue_trial(trial.point_parameters)
    plain.optimize(hpsearch.objective(DOCUMENT, device="cpu"), n_trials=4)
    with trained:
        of_workers = {json.dumps(trial.params, sort_keys=True): trial for trial in trained.optuna_study().trials}
    for trial in plain.trials:
        worker = of_workers[json.dumps(trial.params, sort_keys=True)]
        assert trial.intermediate_values == worker.intermediate_values
        assert trial.value == worker.value
        same = worker.user_attrs.keys() - {"point", "attempt", "seconds", "worker"}
        assert {name: trial.user_attrs[name] for name in same} == {name: worker.user_attrs[name] for name in same}


def test_the_embedded_postgres_runs_only_while_a_study_is_asked(
    open_folder: Path, artifacts: Path, tmp_path: Path
) -> None:
    pid_file = open_folder / "home" / "postgres" / "data" / "postmaster.pid"
    create_here(None, tmp_path)
    train_here(None, artifacts, "small")
    study = hpsearch.load("small", artifacts=artifacts)
    assert pid_file.parent.exists()
    assert not pid_file.exists()
    best = study.best
    assert best.value is not None
    assert not pid_file.exists()
    with study:
        assert study.best.number == best.number
        assert pid_file.exists()
    assert not pid_file.exists()
    plain = study.optuna_study()
    assert pid_file.exists()
    assert plain.best_trial.number == best.number
    study.close()
    study.close()
    assert not pid_file.exists()


def test_nothing_of_a_study_that_has_no_result_is_made_up(tables_url: str, database: Database, new_study: Any) -> None:
    study = hpsearch.load(new_study(2).name, tables_url)
    assert study.summary.points.waiting == 2
    assert len(study.trials_dataframe()) == 2
    with pytest.raises(NothingCompleteError, match="2 waiting"):
        _ = study.best
    with pytest.raises(NothingCompleteError):
        study.best_parameters()
    with pytest.raises(StudyNotFoundError, match="no study 'nothing'"):
        hpsearch.load("nothing", tables_url)


def test_points_that_were_given_up_are_an_error_and_the_study_can_be_loaded(
    tables_url: str, database: Database, new_study: Any, artifacts: Path
) -> None:
    stored = new_study(1)
    ledger = Ledger(database=database, study_id=stored.study_id, owner=1)
    for _ in range(MAX_CRASHES):
        assert ledger.claim(1)
        ledger.release("its worker failed", is_crash=True)
    with pytest.raises(UncountedPointsError, match=r"1 of 1 points could not be trained.*learning_rate 0\.001"):
        hpsearch.run(stored.definition, storage=tables_url, artifacts=artifacts, progress=False)
    assert hpsearch.load(stored.name, tables_url).summary.points.failed == 1


def test_no_worker_touches_the_trials_of_a_plain_study_beside_its_own(
    database: Database, new_study: Any, execute: Any
) -> None:
    stored = new_study(1)
    plain = optuna.create_study(storage=database.storage, study_name="plain")
    running = plain.ask()
    execute("UPDATE trials SET datetime_start = now() - interval '1 day' WHERE trial_id = :id", id=running._trial_id)
    ledger = Ledger(database=database, study_id=stored.study_id, owner=1, lease_seconds=0.0)
    assert ledger.reap() == 0
    assert len(ledger.claim(5)) == 1
    assert [trial.state for trial in plain.get_trials()] == [TrialState.RUNNING]


FOREIGN_CONNECTION = """
import io, sys
import hpsearch, psycopg2
study = hpsearch.load("small", sys.argv[1])
print(study.summary.points.total)
connection = psycopg2.connect(sys.argv[1].replace("+psycopg2", ""))
file = io.StringIO()
connection.cursor().copy_expert("COPY (SELECT 1) TO STDOUT", file)
print(file.getvalue())
"""


def test_connections_of_other_code_stay_as_psycopg2_makes_them(tables_url: str, tmp_path: Path) -> None:
    """psycopg2's wait callback is the whole process's, and refuses `copy_expert`."""
    create_here(tables_url, tmp_path)
    done = subprocess.run(
        [sys.executable, "-c", FOREIGN_CONNECTION, tables_url], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["4", "1"]
