"""The Python API with a real PostgreSQL and real workers: run, look, export, and the same point as an objective."""

from __future__ import annotations

import asyncio
import json
import signal
import tomllib
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.trial import TrialState

import hpsearch
from hpsearch.api import Study
from hpsearch.errors import DefinitionMismatchError, NothingCompleteError, StudyNotFoundError, UncountedPointsError
from hpsearch.service.database import Database
from hpsearch.service.ledger import MAX_CRASHES, Ledger
from hpsearch.service.progress import Progress
from hpsearch.study import parse_definition

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
def trained(tables_url: str, artifacts: Path) -> Study:
    return hpsearch.run(DOCUMENT, lanes=1, storage=tables_url, artifacts=artifacts, progress=False)


def test_a_study_is_run_looked_at_and_written_out(
    trained: Study, tables_url: str, artifacts: Path, tmp_path: Path
) -> None:
    """One after the other, in one test: a study takes seconds."""
    assert trained.name == "small"
    assert trained.definition == parse_definition(DOCUMENT, source="test")
    assert trained.summary.points.complete == 4
    assert trained.best.value == min(trial.value for trial in trained.summary.trials)
    trials, curves = trained.trials_dataframe(), trained.curves_dataframe()
    assert list(trials["epochs"]) == [3] * 4
    assert len(curves) == 12
    assert trials.loc[0, "value"] == curves[curves["number"] == trials.loc[0, "number"]]["zero_one"].min()

    parameters = trained.best_parameters()
    assert parameters["hidden.weight"].shape == (8, 784)
    trained.export(tmp_path / "best.json")
    assert json.loads((tmp_path / "best.json").read_text())["value"] == trained.best.value
    trained.export(tmp_path / "best.toml")
    assert tomllib.loads((tmp_path / "best.toml").read_text())["trial"] == trained.best.number
    trained.export(str(tmp_path / "best.safetensors"))
    assert (tmp_path / "best.safetensors").stat().st_size > 8 * 784 * 4
    trained.report(tmp_path / "report.html")
    assert "small" in (tmp_path / "report.html").read_text()

    again = hpsearch.load("small", tables_url, artifacts=artifacts)
    assert repr(again) == "<hpsearch.Study 'small'>"
    assert again.best == trained.best
    assert again.best_parameters().keys() == parameters.keys()
    with again:
        plain = again.optuna_study()
        assert (plain.best_value, len(plain.trials)) == (trained.best.value, 4)


def test_progress_is_told_to_a_function_and_a_finished_study_is_not_trained_again(
    trained: Study, tables_url: str, artifacts: Path
) -> None:
    seen: list[Progress] = []
    wider = {**DOCUMENT, "name": "other", "search": {"learning_rate": [0.1]}}
    hpsearch.run(wider, lanes=1, storage=tables_url, artifacts=artifacts, progress=seen.append)
    assert seen[-1].counts.complete == 1
    seen.clear()
    before = trained.summary.trials
    hpsearch.run(DOCUMENT, storage=tables_url, artifacts=artifacts, progress=seen.append)
    assert seen == []
    assert trained.summary.trials == before
    with pytest.raises(DefinitionMismatchError, match=r"training\.batch_size"):
        hpsearch.run({**DOCUMENT, "training": {"batch_size": 50}}, storage=tables_url, artifacts=artifacts)


def test_a_notebook_can_run_a_study_and_show_its_progress(
    tables_url: str, artifacts: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Within a running event loop, in a thread that may set no signal handler, storage and artifacts by environment."""
    monkeypatch.setenv("HPSEARCH_STORAGE", tables_url)
    monkeypatch.setenv("HPSEARCH_ARTIFACTS", str(artifacts))
    document = {**DOCUMENT, "search": {"learning_rate": [0.1]}}
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)]
    optuna_level = optuna.logging.get_verbosity()

    async def cell() -> Study:
        in_loop = hpsearch.run(document, lanes=1)
        return await asyncio.to_thread(hpsearch.run, {**document, "name": "second"}, lanes=1) and in_loop

    study = asyncio.run(cell())
    assert study.summary.points.complete == 1
    assert study.best_parameters()
    assert any(artifacts.iterdir())
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)] == handlers
    assert optuna.logging.get_verbosity() == optuna_level
    said = capsys.readouterr()
    assert said.out == ""
    assert "study 'small' created: 1 point, 1 worker with 1 lane each" in said.err
    assert "1 complete" in said.err


def test_an_interrupted_run_leaves_a_study_that_the_same_call_resumes(tables_url: str, artifacts: Path) -> None:
    long = {**DOCUMENT, "training": {"batch_size": 20, "max_epochs": 100}, "search": {"learning_rate": [0.01]}}

    def interrupt(progress: Progress) -> None:
        if progress.epochs:
            raise KeyboardInterrupt

    where: dict[str, Any] = {"storage": tables_url, "artifacts": artifacts, "lanes": 1}
    with pytest.raises(KeyboardInterrupt):
        hpsearch.run(long, **where, progress=interrupt)
    left = hpsearch.load("small", tables_url).summary
    assert left.points.waiting == 1
    study = hpsearch.run(long, **where, progress=False)
    assert study.best.num_epochs == 100
    assert list(study.curves_dataframe().query(f"number == {study.best.number}")["epoch"]) == list(range(1, 101))


def test_the_objective_gives_the_workers_curve_for_the_same_point(trained: Study) -> None:
    plain = optuna.create_study()
    for trial in trained.summary.trials:
        plain.enqueue_trial(trial.point_parameters)
    plain.optimize(hpsearch.objective(DOCUMENT, device="cpu"), n_trials=4)
    with trained:
        of_workers = {json.dumps(trial.params): trial for trial in trained.optuna_study().trials}
    for trial in plain.trials:
        worker = of_workers[json.dumps(trial.params)]
        assert trial.intermediate_values == worker.intermediate_values
        assert trial.value == worker.value
        same = worker.user_attrs.keys() - {"point", "attempt", "seconds", "worker"}
        assert {name: trial.user_attrs[name] for name in same} == {name: worker.user_attrs[name] for name in same}


def test_the_embedded_postgres_runs_only_while_a_study_is_asked(open_folder: Path, artifacts: Path) -> None:
    pid_file = open_folder / "home" / "postgres" / "data" / "postmaster.pid"
    study = hpsearch.run({**DOCUMENT, "search": {"learning_rate": [0.1]}}, lanes=1, artifacts=artifacts, progress=False)
    assert pid_file.parent.exists()
    assert not pid_file.exists()
    assert study.best.value is not None
    assert not pid_file.exists()
    with study:
        assert study.best.number == 0
        assert pid_file.exists()
    assert not pid_file.exists()
    plain = study.optuna_study()
    assert pid_file.exists()
    assert plain.best_trial.number == 0
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
    with pytest.raises(UncountedPointsError, match=r"1 of 1 points could not be trained.*learning_rate=0\.001"):
        hpsearch.run(stored.definition, storage=tables_url, artifacts=artifacts, progress=False)
    assert hpsearch.load(stored.name, tables_url).summary.points.failed == 1


def test_no_worker_touches_the_trials_of_a_plain_study_beside_its_own(
    database: Database, new_study: Any, execute: Any
) -> None:
    stored = new_study(1)
    plain = optuna.create_study(storage=database.storage, study_name="plain")
    running = plain.ask()
    execute("UPDATE trials SET datetime_start = now() - interval '1 day' WHERE trial_id = :id", id=running._trial_id)
    ledger = Ledger(database=database, study_id=stored.study_id, owner=1)
    assert ledger.reap() == 0
    assert len(ledger.claim(5)) == 1
    assert [trial.state for trial in plain.get_trials()] == [TrialState.RUNNING]
