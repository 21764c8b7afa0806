"""Studies of an older hpsearch: this one goes on where it stopped, changes nothing before that, and reads its files.

earlier_studies/make.py has made them.
"""

from __future__ import annotations

import json
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
from optuna.trial import FrozenTrial, TrialState
from safetensors.numpy import load_file
from sqlalchemy import create_engine, text

import hpsearch
from hpsearch.errors import InputError
from hpsearch.training.lanes.checkpoint import TrialCheckpoint
from tests.acceptance.earlier_studies.make import (
    COMMON,
    CONFIRMATION,
    CONFIRMED,
    DUMP,
    EXPORTED,
    HALF_CONFIRMED,
    SEARCHES,
)
from tests.acceptance.in_process import hpsearch_here

pytestmark = pytest.mark.acceptance


def revision(archive: Path) -> str:
    return archive.name.removesuffix(".tar.xz")


EARLIER = sorted((Path(__file__).parent / "earlier_studies").glob("*.tar.xz"))
with_confirmations = pytest.mark.parametrize(
    "folder", [archive for archive in EARLIER if "94285cf" not in archive.name], ids=revision, indirect=True
)
COUNTED = (TrialState.COMPLETE, TrialState.PRUNED)
Command = Callable[..., str]


@pytest.fixture(params=EARLIER, ids=revision)
def folder(request: pytest.FixtureRequest, tmp_path: Path, database_url: str) -> Path:
    """The studies' files; their database is the test's."""
    with tarfile.open(request.param) as tar:
        for member in tar:
            if (file := tar.extractfile(member)) is not None:
                (tmp_path / member.name).parent.mkdir(exist_ok=True)
                (tmp_path / member.name).write_bytes(file.read())
    engine = create_engine(database_url)
    with engine.begin() as connection:
        connection.exec_driver_sql((tmp_path / DUMP).read_text().replace("%", "%%"))
    engine.dispose()
    return tmp_path


@pytest.fixture
def ask(folder: Path, database_url: str) -> Callable[..., list[Any]]:
    def run(sql: str, **values: Any) -> list[Any]:
        engine = create_engine(database_url)
        with engine.begin() as connection:
            rows = list(connection.execute(text(sql), values))
        engine.dispose()
        return rows

    return run


@pytest.fixture
def command(folder: Path, database_url: str) -> Command:
    """Runs `hpsearch ARGUMENTS` beside the studies' files and returns what it prints."""
    environment = {
        "HPSEARCH_STORAGE": database_url,
        "HPSEARCH_HOME": str(folder / "home"),
        "HPSEARCH_ARTIFACTS": str(folder / "artifacts"),
        "HPSEARCH_DEVICE": "cpu",
        "NO_COLOR": "1",
    }

    def run(*arguments: str, code: int = 0, of_stderr: bool = False) -> str:
        done = hpsearch_here(*arguments, folder=folder, environment=environment)
        assert done.returncode == code, done.stderr
        return done.stderr if of_stderr else done.stdout

    return run


def common(document: Any, earlier: Any) -> Any:
    """The document without the keys that the earlier one lacks: keys may join, and none changes."""
    if isinstance(earlier, dict):
        return {key: common(document[key], earlier[key]) for key in earlier}
    if isinstance(earlier, list) and len(earlier) == len(document):
        return [common(*pair) for pair in zip(document, earlier, strict=True)]
    return document


def counted(url: str, study: str) -> dict[int, FrozenTrial]:
    """The trials that count, by point."""
    trials = optuna.load_study(study_name=study, storage=url).get_trials(states=COUNTED)
    by_point = {trial.user_attrs["point"]: trial for trial in trials}
    assert len(by_point) == len(trials), "a point was counted twice"
    return by_point


@pytest.mark.parametrize("name", SEARCHES)
def test_a_study_of_an_older_hpsearch_is_resumed(
    name: str, folder: Path, database_url: str, ask: Callable[..., list[Any]], command: Command
) -> None:
    before = counted(database_url, name)
    (left,) = ask(
        "SELECT point, epoch, artifact_id, c.trial_id FROM hpsearch_checkpoints c "
        "JOIN studies USING (study_id) WHERE study_name = :name",
        name=name,
    )
    curve = dict(
        ask(
            "SELECT step, intermediate_value FROM trial_intermediate_values WHERE trial_id = :trial AND step <= :epoch",
            trial=left.trial_id,
            epoch=left.epoch,
        )
    )
    file = folder / "artifacts" / left.artifact_id
    assert TrialCheckpoint.from_bytes(file.read_bytes()).progress.num_epochs == left.epoch == len(curve) >= 2
    assert before
    assert left.point not in before

    assert "was there already, with the same definition" in command("create", f"{name}.toml")
    command("worker", name, "--lanes", "2")

    after = counted(database_url, name)
    assert {point: after[point] for point in before} == before
    assert sorted(after) == list(range(len(after)))
    assert ask(
        "SELECT count(*), bool_and(is_counted) FROM hpsearch_points JOIN studies USING (study_id) "
        "WHERE study_name = :name",
        name=name,
    ) == [(len(after), True)]
    assert all(len(trial.intermediate_values) == COMMON["training"]["max_epochs"] for trial in after.values())
    resumed = after[left.point]
    assert resumed.user_attrs["resumed_at_epoch"] == left.epoch
    assert {epoch: resumed.intermediate_values[epoch] for epoch in curve} == curve
    assert not file.exists()
    assert '"finished": true' in command("status", name, "--json")


@with_confirmations
def test_a_confirmation_and_parameter_files_of_an_older_hpsearch_are_read(
    folder: Path, database_url: str, command: Command
) -> None:
    earlier = json.loads((folder / EXPORTED[0]).read_text())
    companion = f"{CONFIRMED}-confirm"
    assert "was there already, with the same definition" in command("create", f"{CONFIRMED}.toml")
    confirmation = json.loads(command("status", CONFIRMED, "--json"))["confirmation"]
    assert confirmation["finished"]
    assert common(confirmation, earlier["confirmation"]) == earlier["confirmation"]

    command("export", CONFIRMED, "--point", "confirmed", "-o", "now.json", "--model", "now.safetensors")
    now = json.loads((folder / "now.json").read_text())
    for document in (now, earlier):
        del document["exported_at"], document["versions"]["exported"]
    assert common(now, earlier) == earlier
    assert "was opened before: 2026-11-29" in command("test", CONFIRMED, code=2, of_stderr=True)

    study = hpsearch.load(CONFIRMED, database_url, artifacts=folder / "artifacts")
    for arrays in (load_file(folder / "now.safetensors"), study.best_parameters("confirmed")):
        for name, array in load_file(folder / EXPORTED[1]).items():
            assert np.array_equal(arrays[name], array)
    pictures = study.pictures()
    for trial in study.summary.complete:  # keep_parameters = "all"
        confusion = pictures.confusion(trial.number)
        assert 1 - np.trace(confusion) / confusion.sum() == pytest.approx(trial.value)
    assert len(pictures.wrong(number=5)) == 5
    with pytest.raises(InputError, match="keep_every"):
        pictures.filters()

    # Called again it trains nothing; with another seed, only that one.
    before = counted(database_url, companion)
    assert "nothing to run" in command("confirm", CONFIRMED, *CONFIRMATION, of_stderr=True)
    assert counted(database_url, companion) == before
    told = command("confirm", CONFIRMED, "--top", "2", "--seeds", "4", of_stderr=True)
    assert "2 points with 4 seeds each, 2 of 8 trainings are new" in told
    after = counted(database_url, companion)
    assert len(after) == len(before) + 2
    for point, trial in before.items():  # whose list of possible seeds has become longer
        for name in ("number", "values", "params", "intermediate_values", "user_attrs", "datetime_complete"):
            assert getattr(after[point], name) == getattr(trial, name)


@with_confirmations
def test_a_confirmation_that_an_older_hpsearch_left_half_way_goes_on(
    folder: Path, database_url: str, ask: Callable[..., list[Any]], command: Command
) -> None:
    companion = f"{HALF_CONFIRMED}-confirm"
    before = counted(database_url, companion)
    (left,) = ask(
        "SELECT point, epoch FROM hpsearch_checkpoints JOIN studies USING (study_id) WHERE study_name = :name",
        name=companion,
    )
    assert before
    assert left.point not in before
    assert not json.loads(command("status", HALF_CONFIRMED, "--json"))["confirmation"]["finished"]

    told = command("confirm", HALF_CONFIRMED, *CONFIRMATION, "--workers", "1", of_stderr=True)
    assert "0 of 6 trainings are new" in told
    after = counted(database_url, companion)
    assert {point: after[point] for point in before} == before
    assert sorted(after) == list(range(6))
    assert after[left.point].user_attrs["resumed_at_epoch"] == left.epoch
    confirmation = json.loads(command("status", HALF_CONFIRMED, "--json"))["confirmation"]
    assert confirmation["finished"]
    assert [each["seeds"] for each in confirmation["configurations"]] == [3, 3]
