"""Studies that an older hpsearch trained half-way: this one goes on where it stopped, and changes nothing before that.

earlier_studies/make.py has made them.
"""

from __future__ import annotations

import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy import create_engine, text

from hpsearch.training.lanes.checkpoint import TrialCheckpoint
from tests.acceptance.earlier_studies.make import COMMON, DUMP, SEARCHES
from tests.acceptance.in_process import hpsearch_here

pytestmark = pytest.mark.acceptance

EARLIER = sorted((Path(__file__).parent / "earlier_studies").glob("*.tar.xz"))
COUNTED = (TrialState.COMPLETE, TrialState.PRUNED)


@pytest.fixture(params=EARLIER, ids=lambda path: path.name.removesuffix(".tar.xz"))
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


def counted(url: str, study: str) -> dict[int, FrozenTrial]:
    """The trials that count, by point."""
    trials = optuna.load_study(study_name=study, storage=url).get_trials(states=COUNTED)
    by_point = {trial.user_attrs["point"]: trial for trial in trials}
    assert len(by_point) == len(trials), "a point was counted twice"
    return by_point


@pytest.mark.parametrize("name", SEARCHES)
def test_a_study_of_an_older_hpsearch_is_resumed(
    name: str, folder: Path, database_url: str, ask: Callable[..., list[Any]]
) -> None:
    environment = {
        "HPSEARCH_STORAGE": database_url,
        "HPSEARCH_HOME": str(folder / "home"),
        "HPSEARCH_ARTIFACTS": str(folder / "artifacts"),
    }

    def hpsearch(*arguments: str) -> str:
        done = hpsearch_here(*arguments, folder=folder, environment=environment)
        assert done.returncode == 0, done.stderr
        return done.stdout

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

    assert "was there already, with the same definition" in hpsearch("create", f"{name}.toml")
    hpsearch("worker", name, "--device", "cpu", "--lanes", "2")

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
    assert '"finished": true' in hpsearch("status", name, "--json")
