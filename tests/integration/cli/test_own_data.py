"""Data of one's own from the command line: created, trained by a worker, tested, and found again elsewhere."""

from __future__ import annotations

import json
import subprocess
import sys
import uuid
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tests.acceptance.in_process import hpsearch_here

Command = Callable[..., "subprocess.CompletedProcess[str]"]

LOADERS = """
import numpy as np
from pathlib import Path

def images(part):
    with Path("asked-for").open("a") as file:
        print(part, file=file)
    generator = np.random.default_rng({"train": 1, "validation": 2, "test": 3}[part])
    label = generator.integers(0, 2, {"train": 300, "validation": 80, "test": 60}[part])
    levels = generator.integers(0, 200, (len(label), 6, 6))
    levels[:, :3] += 50 * label[:, None, None]  # the upper half of one class is brighter
    return levels.astype("uint8"), label

def targets(part):
    x = np.random.default_rng(len(part)).normal(size=(200, 3))
    return x, 1000 + 50 * x[:, 0]
"""


def write_study(path: Path, dataset: str) -> Path:
    path.write_text(
        f'name = "own"\n[data]\ndataset = "{dataset}"\n[model]\nfamily = "logistic"\n[training]\nmax_epochs = 2\n'
        "[search]\nlearning_rate = [0.1, 0.01]\n"
    )
    return path


def write_idx(folder: Path, seed: int = 0) -> Path:
    folder.mkdir(parents=True)
    generator = np.random.default_rng(seed)
    for part, number in (("train", 120), ("t10k", 20)):
        arrays = {"images-idx3": generator.integers(0, 256, (number, 5, 4)), "labels-idx1": np.arange(number) % 4}
        for name, array in arrays.items():
            header = bytes([0, 0, 8, array.ndim]) + b"".join(size.to_bytes(4, "big") for size in array.shape)
            (folder / f"{part}-{name}-ubyte").write_bytes(header + array.astype(np.uint8).tobytes())
    return folder


@pytest.fixture
def command(tables_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Command:
    monkeypatch.setattr(sys, "path", [*sys.path])

    def run(*arguments: str | Path, folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
        variables = {"HPSEARCH_HOME": str(tmp_path / "home"), "HPSEARCH_STORAGE": tables_url, **environment}
        return hpsearch_here(*arguments, folder=folder, environment=variables)

    return run


def succeeded(done: subprocess.CompletedProcess[str]) -> str:
    assert done.returncode == 0, done.stderr
    return done.stdout


def train(command: Command, folder: Path, **environment: str) -> None:
    succeeded(command("worker", "own", "--lanes", "1", "--device", "cpu", folder=folder, **environment))


def test_a_loader_is_asked_for_its_test_part_by_the_test_command_alone(command: Command, tmp_path: Path) -> None:
    name = f"loaders_{uuid.uuid4().hex}"
    (tmp_path / f"{name}.py").write_text(LOADERS)
    study = write_study(tmp_path / "study.toml", f"{name}:images")
    succeeded(command("check", study, folder=tmp_path))
    succeeded(command("data", "describe", study, folder=tmp_path))
    succeeded(command("create", study, folder=tmp_path))
    train(command, tmp_path)
    asked_for = tmp_path / "asked-for"
    assert set(asked_for.read_text().split()) == {"train", "validation"}
    asked_for.unlink()
    succeeded(command("test", "own", "--device", "cpu", folder=tmp_path))
    assert sorted(asked_for.read_text().split()) == ["test", "train", "validation"]
    record = json.loads(succeeded(command("status", "own", "--json", folder=tmp_path)))["test_openings"][0]
    assert record["num_images"] == 60
    assert set(record["test_checksums"]) == {f"source {name}.py", "test images", "test labels"}


def test_a_regression_from_a_loader_is_judged_in_the_targets_own_unit(command: Command, tmp_path: Path) -> None:
    name = f"loaders_{uuid.uuid4().hex}"
    (tmp_path / f"{name}.py").write_text(LOADERS)
    study = write_study(tmp_path / "study.toml", f"{name}:targets")
    study.write_text('metric = "rmse"\n' + study.read_text())
    succeeded(command("create", study, folder=tmp_path))
    train(command, tmp_path)
    status = json.loads(succeeded(command("status", "own", "--json", folder=tmp_path)))
    assert 0 < status["best"]["value"] < 50  # the standard deviation: what naming the mean would give
    succeeded(command("test", "own", "--device", "cpu", folder=tmp_path))


def test_a_worker_with_an_edited_loader_is_refused_by_the_name_of_the_file(command: Command, tmp_path: Path) -> None:
    name = f"loaders_{uuid.uuid4().hex}"
    (tmp_path / f"{name}.py").write_text(LOADERS)
    succeeded(command("create", write_study(tmp_path / "study.toml", f"{name}:images"), folder=tmp_path))
    (tmp_path / f"{name}.py").write_text(LOADERS + "# edited\n")
    done = command("worker", "own", "--lanes", "1", folder=tmp_path)
    assert done.returncode == 3
    assert f"was created with other data: source {name}.py differ on this machine" in done.stderr


def test_a_study_is_resumed_from_any_folder_and_on_another_machine(command: Command, tmp_path: Path) -> None:
    """The data lies beside the study file; on the other machine it is in HPSEARCH_DATA."""
    here, there = tmp_path / "here", tmp_path / "there"
    for folder in (here, there):
        folder.mkdir()
    write_idx(here / "photos")
    study = write_study(here / "study.toml", "photos")
    succeeded(command("create", study, folder=there))
    stored = json.loads(succeeded(command("status", "own", "--json", folder=there)))
    assert stored["dataset"] == str(here / "photos")
    assert "same definition" in succeeded(command("create", study, folder=here))
    local = tmp_path / "local"
    local.mkdir()
    (here / "photos").rename(local / "photos")
    assert command("worker", "own", "--lanes", "1", folder=there).returncode == 3
    train(command, there, HPSEARCH_DATA=str(local))
    assert "same definition" in succeeded(command("create", study, folder=there, HPSEARCH_DATA=str(local)))
    succeeded(command("test", "own", "--device", "cpu", folder=there, HPSEARCH_DATA=str(local)))


def test_other_data_of_the_same_name_on_another_machine_is_refused(command: Command, tmp_path: Path) -> None:
    study = write_study(tmp_path / "study.toml", "photos")
    write_idx(tmp_path / "photos")
    succeeded(command("create", study, folder=tmp_path))
    (tmp_path / "photos").rename(tmp_path / "away")
    write_idx(tmp_path / "local" / "photos", seed=1)
    done = command("worker", "own", "--lanes", "1", folder=tmp_path, HPSEARCH_DATA=str(tmp_path / "local"))
    assert done.returncode == 3
    assert "was created with other data: train-images-idx3-ubyte differ on this machine" in done.stderr


def test_data_that_is_nowhere_names_the_places_that_were_looked_at(command: Command, tmp_path: Path) -> None:
    study = write_study(tmp_path / "study.toml", "photos/mine")
    done = command("create", study, folder=tmp_path, HPSEARCH_DATA=str(tmp_path))
    assert done.returncode == 3
    place = tmp_path / "photos" / "mine"
    assert f"(looked at: {place}, beside the study file, {place})" in done.stderr
