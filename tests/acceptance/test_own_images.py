"""Images of one's own, from the folder to the exported model: the study of docs/data-images.md, and cifar10.toml."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file

from hpsearch.data.catalog import load_selection_data
from hpsearch.data.files.lookup import DataLocations
from hpsearch.study.settings import DataSettings
from tests.acceptance.in_process import hpsearch_here

pytestmark = pytest.mark.acceptance

ROOT = Path(__file__).parents[2]
Shell = Callable[..., subprocess.CompletedProcess[str]]
COLOURS = {"blueberry": (40, 40, 200), "cherry": (200, 30, 40), "lime": (60, 200, 50)}


@pytest.fixture
def shell(tmp_path: Path, database_url: str, monkeypatch: pytest.MonkeyPatch) -> Shell:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    environment = {
        "HPSEARCH_HOME": str(tmp_path / "home"),
        "HPSEARCH_STORAGE": database_url,
        "HPSEARCH_DEVICE": "cpu",
        "HPSEARCH_LANES": "3",
        "NO_COLOR": "1",
    }

    def run(*arguments: str | Path, code: int = 0) -> subprocess.CompletedProcess[str]:
        done = hpsearch_here(*arguments, folder=tmp_path, environment=environment)
        assert done.returncode == code, done.stderr
        return done

    return run


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """90 noisy photos of three fruits of all sizes, as JPEG and PNG."""
    generator = np.random.default_rng(0)
    for number in range(90):
        name, colour = list(COLOURS.items())[number % 3]
        size = generator.integers(30, 60, 2)
        pixels = np.clip(np.asarray(colour) + generator.normal(0, 60, (*size, 3)), 0, 255).astype(np.uint8)
        path = tmp_path / "photos" / name / f"{number}.{'jpg' if number % 2 else 'png'}"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)
    return tmp_path / "photos"


@pytest.mark.timeout(600)
def test_the_documents_study_trains_confirms_tests_and_exports(shell: Shell, photos: Path, tmp_path: Path) -> None:
    document = (ROOT / "docs" / "data-images.md").read_text()
    study = document.split("```toml\n")[1].split("```")[0]
    (tmp_path / "photos.toml").write_text(study)
    commands = re.findall(r"^    hpsearch (.*)$", document, flags=re.MULTILINE)
    assert [command.split()[0] for command in commands] == ["run", "confirm", "test", "export"]
    done = {command.split()[0]: shell(*command.split()) for command in commands}
    assert "3 of 3 points done" in done["run"].stdout
    test = re.search(r"(\d+) of (\d+)", done["test"].stdout)
    assert test
    assert int(test[2]) == 90 // 7  # and 13 for validation
    exported = json.loads((tmp_path / "photos.json").read_text())
    assert exported["settings"]["model"]["kernels"] == [8, 16]
    assert (8, 3, 5, 5) in [weights.shape for weights in load_file(tmp_path / "photos.safetensors").values()]
    status = json.loads(shell("status", "photos", "--json").stdout)
    assert status["best"]["value"] < 0.4  # two of three would be wrong by chance

    shell("report", "photos", "-o", "report.html")
    assert photos.is_dir()


@pytest.mark.timeout(600)
def test_a_folder_that_changed_is_refused_by_a_worker_that_joins(shell: Shell, photos: Path, tmp_path: Path) -> None:
    study = (ROOT / "docs" / "data-images.md").read_text().split("```toml\n")[1].split("```")[0]
    (tmp_path / "photos.toml").write_text(study)
    shell("create", "photos.toml")
    for path in photos.glob("*/*.png"):
        Image.new("RGB", (32, 32), "white").save(path)
    refused = shell("worker", "photos", code=3)
    assert "study 'photos' was created with other data: files" in refused.stderr


def test_a_study_without_a_test_part_is_not_tested(shell: Shell, photos: Path, tmp_path: Path) -> None:
    study = (ROOT / "docs" / "data-images.md").read_text().split("```toml\n")[1].split("```")[0]
    (tmp_path / "photos.toml").write_text(study.replace("[data]\n", "[data]\ntest = 0\n"))
    shell("create", "photos.toml")
    refused = shell("test", "photos", code=2)
    assert "study 'photos' has no test part: data.test = 0" in refused.stderr
    assert photos.is_dir()


@pytest.mark.timeout(600)
def test_the_shipped_study_trains_on_the_images_of_cifar(shell: Shell, cifar_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "cifar10-jpeg").symlink_to(cifar_folder)
    small = ("training.max_epochs=1", "search.learning_rate=[0.01]", "search.lambda_2=[0.0]")
    shell("run", ROOT / "studies" / "cifar10.toml", *(word for change in small for word in ("--set", change)))
    locations = DataLocations(local=None, cache=tmp_path / "another-cache")
    data = load_selection_data(DataSettings(dataset=str(cifar_folder)), locations=locations)
    assert (data.example_shape, len(data.train), len(data.validation)) == ((3, 32, 32), 834, 166)
    assert data.class_names[:2] == ("airplane", "automobile")
    tested = shell("test", "cifar10")
    assert re.search(r"of 200\b", tested.stdout)
