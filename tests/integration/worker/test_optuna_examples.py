"""Optuna's own examples run as they are: hpsearch calls their `objective` where they call `study.optimize`."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
from optuna.trial import FrozenTrial, TrialState

from hpsearch.artifacts.store import open_store
from hpsearch.scripts.keeper.client import Keeper
from hpsearch.signals import StopSignal
from hpsearch.store.connection.database import Database
from hpsearch.study.study_file import parse_definition
from hpsearch.worker.options import WorkerSettings
from hpsearch.worker.programs.attempts import Attempts, attempt_folders
from hpsearch.worker.programs.preparation import prepare_program
from hpsearch.worker.programs.program_worker import ProgramWorker

EXAMPLES = Path(__file__).parent / "optuna_examples"


def search(
    database: Database, folder: Path, example: str, num_points: int, direction: str, **more: Any
) -> list[FrozenTrial]:
    """Search with TPE over an example, in a folder that holds nothing but a copy of it and its data."""
    shutil.copy(EXAMPLES / f"{example}.py", folder)
    document = {
        "name": example,
        "objective": {"function": f"{example}:objective", "direction": direction},
        "search": {"strategy": "tpe", "num_points": num_points},
        **more,
    }
    study = prepare_program(database, parse_definition(document, source="test"), folder).study
    artifacts = open_store(str(folder / "artifacts"))
    folders = attempt_folders(folder / "attempts", study, artifacts)
    options: dict[str, Any] = {"devices": [[]] * 2, "base": os.environ, "place": folder, "upload_seconds": 0.0}
    with Keeper() as keeper, Attempts(study, keeper, artifacts, folders, **options) as attempts:
        worker = ProgramWorker(
            database=database,
            study=study,
            attempts=attempts,
            num_slots=2,
            device="cpu",
            stop=StopSignal(),
            settings=WorkerSettings(name="worker", num_siblings=1, poll_seconds=0.1),
        )
        assert worker.run() == num_points
    return optuna.load_study(study_name=example, storage=database.storage).trials


@pytest.mark.slow
def test_sklearn_simple(database: Database, tmp_path: Path) -> None:
    trials = search(database, tmp_path, "sklearn_simple", 4, "maximize")
    assert [trial.state for trial in trials] == [TrialState.COMPLETE] * 4
    for trial in trials:
        assert 0.3 < (trial.value or 0) <= 1
        other = {"SVC": "svc_c", "RandomForest": "rf_max_depth"}[trial.params["classifier"]]
        assert trial.params.keys() == {"classifier", other}


def test_pruning(database: Database, tmp_path: Path) -> None:
    pruning = {"pruner": "median", "startup_trials": 2, "warmup_epochs": 5}
    trials = search(database, tmp_path, "pruning", 6, "minimize", pruning=pruning)
    assert {trial.state for trial in trials} <= {TrialState.COMPLETE, TrialState.PRUNED}
    for trial in trials:
        if trial.state is TrialState.COMPLETE:
            assert trial.value == trial.intermediate_values[100]  # the example returns what it has reported last
        else:
            assert trial.value == trial.intermediate_values[max(trial.intermediate_values)]


@pytest.mark.slow
def test_pytorch_simple(database: Database, tmp_path: Path) -> None:
    """On images that are easy to tell apart, in the files of FashionMNIST, where torchvision looks for them.

    torchvision itself is no dependency of the tests: its builds must match torch's. A stand-in reads the files.
    """
    shutil.copytree(EXAMPLES / "stand_in" / "torchvision", tmp_path / "torchvision")
    write_fashion_mnist(tmp_path / "FashionMNIST" / "raw")
    trials = search(database, tmp_path, "pytorch_simple", 2, "maximize")
    assert [trial.state for trial in trials] == [TrialState.COMPLETE] * 2
    for trial in trials:
        assert trial.value == trial.intermediate_values[10]
        layers = trial.params["n_layers"]
        assert trial.params.keys() == {
            *("n_layers", "optimizer", "lr"),
            *(f"{kind}_l{i}" for kind in ("n_units", "dropout") for i in range(layers)),
        }


def write_fashion_mnist(folder: Path) -> None:
    """Images [num, 28, 28] whose bright row tells the class, as IDX files."""
    folder.mkdir(parents=True)
    generator = np.random.default_rng(1)
    for part, num in (("train", 640), ("t10k", 256)):
        labels = np.arange(num) % 10
        images = generator.integers(0, 64, size=(num, 28, 28), dtype=np.uint8)
        images[np.arange(num), labels] = 255
        sizes = b"".join(size.to_bytes(4, "big") for size in images.shape)
        (folder / f"{part}-images-idx3-ubyte").write_bytes(b"\x00\x00\x08\x03" + sizes + images.tobytes())
        header = b"\x00\x00\x08\x01" + num.to_bytes(4, "big")
        (folder / f"{part}-labels-idx1-ubyte").write_bytes(header + labels.astype(np.uint8).tobytes())
