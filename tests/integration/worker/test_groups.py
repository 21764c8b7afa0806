"""Studies whose rows come in groups (data.group): groups are the units of comparisons, of confirm and of test."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import tomli_w

import hpsearch
from hpsearch.search.narrowing.closed_round import KnownPoint
from hpsearch.search.proportions import SIGNIFICANCE_LEVEL
from hpsearch.search.significance import sign_flip_p_value
from hpsearch.store.connection.database import Database, open_storage
from hpsearch.store.rows.correct_images import read_correctness
from hpsearch.store.rows.example_losses import read_example_losses
from hpsearch.store.studies import load_study
from hpsearch.worker.rounds import TrialComparison
from tests.acceptance.in_process import hpsearch_here

NUM_FAMILIES = 60
DOCUMENT: dict[str, Any] = {
    "name": "families",
    "data": {"dataset": "families.csv", "target": "ill", "group": "family"},
    "model": {"family": "logistic"},
    "training": {"batch_size": 20, "max_epochs": 3},
    "search": {"learning_rate": [0.001, 0.1]},
    "stopping": {"rule": "none"},
}


@pytest.fixture
def folder(tmp_path: Path, tables_url: str, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    random = np.random.default_rng(0)
    family = np.repeat(np.arange(NUM_FAMILIES), random.integers(2, 15, NUM_FAMILIES))
    own = random.normal(size=(NUM_FAMILIES, 3))[family]
    ill = own[:, 0] + random.normal(size=len(family)) > 0
    columns = {f"x{i}": own[:, i] + random.normal(size=len(family)) / 3 for i in range(3)}
    frame = pd.DataFrame({**columns, "family": [f"f{number}" for number in family], "ill": np.where(ill, "yes", "no")})
    frame.to_csv(tmp_path / "families.csv", index=False)
    return tmp_path


def hps(folder: Path, storage: str, *arguments: str, code: int = 0) -> str:
    environment = {
        "HPSEARCH_HOME": os.environ["HPSEARCH_HOME"],
        "HPSEARCH_STORAGE": storage,
        "HPSEARCH_ARTIFACTS": str(folder / "artifacts"),
    }
    done = hpsearch_here(*arguments, folder=folder, environment=environment)
    assert done.returncode == code, done.stderr
    return done.stdout if code == 0 else done.stderr


def create(folder: Path, storage: str, document: dict[str, Any]) -> None:
    (folder / "study.toml").write_text(tomli_w.dumps(document))
    hps(folder, storage, "create", "study.toml")
    hps(folder, storage, "worker", document["name"], "--lanes", "2")


def test_a_study_of_groups_from_the_search_to_the_test(folder: Path, tables_url: str) -> None:
    create(folder, tables_url, DOCUMENT)
    with open_storage(tables_url) as database:
        sizes = load_study(database, "families").group_sizes
        assert sizes is not None
        assert 5 <= len(sizes) <= NUM_FAMILIES // 4
        study = hpsearch.load("families", tables_url, artifacts=folder / "artifacts")
        trials = {trial.number: trial for trial in study._status().summary.complete}
        ids = [trial.trial_id for trial in trials.values()]
        assert read_correctness(database, ids) == {}
        losses = read_example_losses(database, ids)
        for trial in trials.values():
            assert losses[trial.trial_id].shape == (len(sizes),)
            assert losses[trial.trial_id].mean(dtype=np.float64) == pytest.approx(trial.value, abs=1e-6)
            in_errors = losses[trial.trial_id] * np.mean(sizes)
            assert np.allclose(in_errors, np.rint(in_errors), atol=1e-4)  # numbers of misclassified rows
        compare_as_rounds_do(database, load_study(database, "families").study_id, ids)

    status = json.loads(hps(folder, tables_url, "status", "families", "--json"))
    estimate = status["chosen"]["estimate"]
    assert (estimate["num_images"], estimate["units"], estimate["interval"]) == (len(sizes), "groups", None)
    assert f"{len(sizes)} groups" in hps(folder, tables_url, "status", "families")

    hps(folder, tables_url, "confirm", "families", "--seeds", "2", "--top", "2", "--workers", "1")
    confirmed = json.loads(hps(folder, tables_url, "status", "families", "--json"))["confirmation"]
    assert (confirmed["num_images"], confirmed["units"]) == (len(sizes), "groups")
    for configuration in confirmed["configurations"]:
        low, high = configuration["interval"]
        assert low < configuration["mean"] < high <= 1

    opening = json.loads(hps(folder, tables_url, "test", "families", "--json"))
    num_groups = opening["chosen"]["num_groups"]
    assert 3 <= num_groups <= NUM_FAMILIES // 4
    low, high = opening["test_value_interval"]
    assert opening["test_error_interval"] == [low, high]
    assert 0 <= low < opening["test_value"] < high <= 1
    again = hps(folder, tables_url, "status", "families")
    assert f"rows in {num_groups} groups" in again
    hps(folder, tables_url, "report", "families", "--output", "report.html")
    page = (folder / "report.html").read_text()
    assert f"in {num_groups} groups" in page
    assert f"the intervals are over {len(sizes)} groups" in page


def compare_as_rounds_do(database: Database, study_id: int, ids: list[int]) -> None:
    one, other = (KnownPoint({}, 0.1 * number, None, trial_id) for number, trial_id in enumerate(ids))
    differ = TrialComparison(database, study_id)
    assert not differ(one, one)
    losses = read_example_losses(database, ids)
    p_value = sign_flip_p_value(losses[ids[0]].astype(np.float64) - losses[ids[1]])
    assert differ(one, other) == (p_value < SIGNIFICANCE_LEVEL)
    assert differ.note == ""
    # The other trial is worse in all of six groups, or of five, whose differences have the same sign too easily.
    for num_worse, is_found in ((6, True), (5, False)):
        worse = losses[ids[0]] + (np.arange(len(losses[ids[0]])) < num_worse)
        planted = {ids[0]: losses[ids[0]], ids[1]: worse}
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("hpsearch.worker.rounds.read_example_losses", lambda _, keys, found=planted: found)
            assert TrialComparison(database, study_id)(one, other) == is_found


def test_validations_of_one_trial_are_not_compared_by_rows_of_groups(folder: Path, tables_url: str) -> None:
    (folder / "study.toml").write_text(tomli_w.dumps({**DOCUMENT, "stopping": {"rule": "significance"}}))
    told = hps(folder, tables_url, "create", "study.toml", code=2)
    assert "stopping.rule significance takes rows as independent" in told


@pytest.mark.parametrize("metric", ["nll", "auc"])
def test_other_metrics_keep_numbers_of_groups_too(metric: str, folder: Path, tables_url: str) -> None:
    create(folder, tables_url, {**DOCUMENT, "metric": metric})
    with open_storage(tables_url) as database:
        stored = load_study(database, "families")
        study = hpsearch.load("families", tables_url, artifacts=folder / "artifacts")
        for trial in study._status().summary.complete:
            losses = read_example_losses(database, [trial.trial_id])[trial.trial_id]
            assert len(losses) == len(stored.group_sizes or ())
            assert losses.mean(dtype=np.float64) == pytest.approx(trial.loss, abs=1e-5)
