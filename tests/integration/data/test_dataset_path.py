"""A data set named by a relative path: stored so that a worker in another folder finds it, and old studies go on."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hpsearch.data.files.lookup import DataLocations
from hpsearch.data.files.published import TRAIN_IMAGES, TRAIN_LABELS
from hpsearch.data.registry import with_absolute_dataset
from hpsearch.store.connection.database import Database
from hpsearch.store.registration import find_study, register_study
from hpsearch.store.studies import load_study
from hpsearch.study.definition import StudyDefinition
from hpsearch.study.study_file import parse_definition
from hpsearch.worker.cohorts import cohort_name
from hpsearch.worker.preparation import load_study_data, prepare_study

LOCATIONS = DataLocations.from_environment()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A user's folder with IDX files in `idx_notest`, which have no test files beside them."""
    generator = np.random.default_rng(1)
    (tmp_path / "idx_notest").mkdir()
    for name, array in ((TRAIN_IMAGES, generator.integers(0, 256, (60, 5, 4))), (TRAIN_LABELS, np.arange(60) % 10)):
        header = bytes([0, 0, 8, array.ndim]) + b"".join(size.to_bytes(4, "big") for size in array.shape)
        (tmp_path / "idx_notest" / f"{name}.gz").write_bytes(gzip.compress(header + array.astype(np.uint8).tobytes()))
    return tmp_path


def definition(**search: Any) -> StudyDefinition:
    document = {"name": "a", "data": {"dataset": "idx_notest"}, "search": search or {"learning_rate": [0.1]}}
    return parse_definition(document, source="study.toml")


def test_a_worker_in_another_folder_finds_the_data(
    database: Database, folder: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    study = prepare_study(database, definition(), locations=LOCATIONS).study
    assert study.definition.document()["data"]["dataset"] == str(folder / "idx_notest")
    monkeypatch.chdir(tmp_path_factory.mktemp("elsewhere"))
    assert load_study_data(load_study(database, "a"), locations=LOCATIONS).num_classes == 10


def test_a_study_that_was_stored_with_the_relative_path_goes_on(
    database: Database, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    checksums = prepare_study(database, definition(), locations=LOCATIONS).data.checksums
    old = definition().model_copy(update={"name": "old"})
    stored = register_study(database, old, dataset_checksums=checksums, cohort_of=cohort_name).study
    assert stored.definition.data.dataset == "idx_notest"
    assert find_study(database, with_absolute_dataset(old)) == stored
    wider = definition(learning_rate=[0.1, 0.2]).model_copy(update={"name": "old"})
    widened = prepare_study(database, wider, locations=LOCATIONS).registration
    assert (widened.num_added, widened.study.definition.data.dataset) == (1, "idx_notest")


def test_a_name_of_the_catalogue_and_a_path_of_nothing_stay_as_they_are(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    (folder / "digits").mkdir()
    for dataset in ("digits", "not-there", " ", "x" * 5000):
        given = parse_definition({"name": "a", "data": {"dataset": dataset}}, source="study.toml")
        assert with_absolute_dataset(given) == given


def test_a_study_of_another_machine_is_found_again_by_its_data_in_the_users_folder(
    database: Database, folder: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The folder moves away and stays reachable through HPSEARCH_DATA, as in a container."""
    monkeypatch.chdir(folder)
    created = prepare_study(database, definition(), locations=LOCATIONS).study
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    (folder / "idx_notest").rename(elsewhere / "idx_notest")
    monkeypatch.setenv("HPSEARCH_DATA", str(elsewhere))
    locations = DataLocations.from_environment()
    assert load_study_data(created, locations=locations).checksums == created.dataset_checksums
    assert find_study(database, with_absolute_dataset(definition())) == created
    wider = prepare_study(database, definition(learning_rate=[0.1, 0.2]), locations=locations).registration
    assert (wider.num_added, wider.study.definition.data.dataset) == (1, created.definition.data.dataset)
