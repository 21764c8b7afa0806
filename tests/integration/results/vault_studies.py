"""Studies whose test set can be opened: made-up images, and parameters that nobody trained, in a real PostgreSQL."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from sqlalchemy.dialects.postgresql import insert

from benchmarks.reference_loop import validate
from hpsearch.artifacts.best_parameters import Artifacts, open_artifacts
from hpsearch.data.catalog import load_selection_data
from hpsearch.data.files.lookup import DataLocations
from hpsearch.data.resident import ResidentData
from hpsearch.epoch_report import EpochReport
from hpsearch.results.confirmation.plan import plan_confirmation, prepare_confirmation
from hpsearch.results.openings.record import VaultRecord
from hpsearch.results.openings.stored_openings import select_openings
from hpsearch.results.vault.final_test import VaultRequest, open_vault
from hpsearch.store.claims.claim import Outcome, Result
from hpsearch.store.claims.ledger import Ledger
from hpsearch.store.connection import tables
from hpsearch.store.connection.database import Database
from hpsearch.store.registration import register_study
from hpsearch.store.studies import StoredStudy, load_study
from hpsearch.study.study_file import parse_definition
from hpsearch.training.networks.build import build_network
from hpsearch.worker.cohorts import cohort_name

TRAIN, TEST = "train", "t10k"
SIDE = 12


@pytest.fixture
def locations(tmp_path: Path) -> DataLocations:
    return DataLocations(local=None, cache=tmp_path / "cache", allow_download=False)


@pytest.fixture
def artifacts(tmp_path: Path) -> Artifacts:
    return open_artifacts(tmp_path / "artifacts")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder of IDX files: 120 training and 40 test images."""
    folder = tmp_path / "data"
    folder.mkdir()
    for part, number, seed in ((TRAIN, 120, 1), (TEST, 40, 2)):
        write_part(folder, part, *images_of(number, seed))
    return folder


def images_of(number: int, seed: int, side: int = SIDE) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Noise in which a bright row tells the digit."""
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, 10, number).astype(np.uint8)
    images = generator.integers(0, 90, (number, side, side)).astype(np.uint8)
    images[np.arange(number), labels] += 60
    return images, labels


def write_part(folder: Path, part: str, images: NDArray[np.uint8], labels: NDArray[np.uint8]) -> None:
    for name, array in ((f"{part}-images-idx3-ubyte", images), (f"{part}-labels-idx1-ubyte", labels)):
        header = bytes([0, 0, 8, array.ndim]) + b"".join(size.to_bytes(4, "big") for size in array.shape)
        (folder / name).write_bytes(header + array.tobytes())


@dataclass(frozen=True, kw_only=True)
class Searched:
    """A study whose points have been evaluated with parameters that nobody trained, for the number does not matter."""

    database: Database
    study: StoredStudy
    artifacts: Artifacts
    locations: DataLocations

    def end_next(self, study: StoredStudy | None = None, *, seed: int, keep: bool, value: float | None = None) -> int:
        """Complete the next point with parameters drawn from a seed, as a worker would write it; returns its trial.

        Args:
            value: to be written in place of its validation error.
        """
        study = study or self.study
        ledger = Ledger(database=self.database, study_id=study.study_id, owner=1)
        (claim,) = ledger.claim(1)
        data = load_selection_data(study.definition.data, locations=self.locations)
        settings = study.definition.resolve(claim.parameters)
        network = build_network(settings.model, data.example_shape, data.num_outputs)
        # Logistic regression begins at 0: noise makes something that is right now and then.
        generator = torch.Generator().manual_seed(seed)
        parameters = {
            name: initial + 0.1 * torch.randn(initial.shape, generator=generator)
            for name, initial in network.initial_parameters(seed=seed).items()
        }
        resident = ResidentData.place(data, torch.device("cpu"))
        losses, correct = validate(network, parameters, resident, iteration=1)
        value = losses.loss if value is None else value
        best = replace(losses, loss=value)
        report = EpochReport(epoch=1, validations=(best,), train_nll=1.0, learning_rate=0.1, seconds=1.0)
        ledger.record({claim.trial_id: report})
        if keep:
            metadata = {
                "study": study.name,
                "definition_sha256": study.definition.sha256,
                "trial": str(claim.number),
                "settings": settings.model_dump_json(),
            }
            arrays = {name: value.numpy() for name, value in parameters.items()}
            self.artifacts.save_parameters(ledger.set_system_attribute, claim.trial_id, arrays, metadata)
        attributes = {"best_validation_nll": losses.nll, "best_epoch": 1}
        result = Result(trial_id=claim.trial_id, outcome=Outcome.COMPLETE, loss=value, attributes=attributes)
        assert ledger.finish([result])
        row = {"trial_id": claim.trial_id, "num_images": len(correct), "bits": np.packbits(correct).tobytes()}
        with self.database.engine.begin() as connection:
            connection.execute(insert(tables.correctness).values(**row).on_conflict_do_nothing())
        return claim.number

    def open(self, **request: Any) -> VaultRecord:
        return open_vault(
            self.database,
            self.study.name,
            self.artifacts,
            VaultRequest(**{"device": "cpu", **request}),
            locations=self.locations,
        )

    def openings(self) -> tuple[VaultRecord, ...]:
        return read_openings(self.database, self.study)

    def artifact(self) -> Path:
        (path,) = Path(self.artifacts.place).iterdir()
        return path


def read_openings(database: Database, study: StoredStudy) -> tuple[VaultRecord, ...]:
    """All openings of this study's test set, in order."""
    return database.transaction(lambda connection: select_openings(connection, study)[0])


def read_earlier_openings(database: Database, study: StoredStudy) -> tuple[VaultRecord, ...]:
    """Openings by deleted studies of the same name, in order of time."""
    return database.transaction(lambda connection: select_openings(connection, study)[1])


Search = Callable[..., Searched]


@pytest.fixture
def search(
    database: Database,
    artifacts: Artifacts,
    locations: DataLocations,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Search:
    """search(dataset, complete=..., **sections): a study of two points; the first `complete` of them have ended.

    In a home of its own, for that remembers openings.
    """
    monkeypatch.setenv("HPSEARCH_HOME", str(tmp_path / "home"))

    def make(dataset: str, *, complete: int = 2, keep: bool = True, **sections: Any) -> Searched:
        document = {
            "name": "searched",
            "data": {"dataset": dataset},
            "model": {"family": "logistic"},
            "training": {"max_epochs": 2},
            "search": {"learning_rate": [0.1, 0.2]},
            "stopping": {"rule": "none"},
        }
        definition = parse_definition({**document, **sections}, source="test")
        checksums = load_selection_data(definition.data, locations=locations).checksums
        study = register_study(database, definition, dataset_checksums=checksums, cohort_of=cohort_name).study
        searched = Searched(database=database, study=study, artifacts=artifacts, locations=locations)
        for number in range(complete):
            searched.end_next(seed=number, keep=keep and number == 0, value=None if number == 0 else 1.0)
        return searched

    return make


def confirm(
    searched: Searched, *, complete: int = 2, keep: bool = True, seeds: tuple[int, ...] = (10, 11)
) -> StoredStudy:
    """Ask for the two best points over one fresh seed; so many of the companion's trials have ended.

    Args:
        seeds: that draw their parameters.
    """
    plan = plan_confirmation(searched.database, "searched", top=2, num_seeds=1)
    prepare_confirmation(searched.database, plan, locations=searched.locations)
    companion = load_study(searched.database, "searched-confirm")
    for number in range(complete):
        searched.end_next(companion, seed=seeds[number], keep=keep)
    return companion
