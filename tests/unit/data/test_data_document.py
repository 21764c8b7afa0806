"""The study files and programs of docs/data.md work, on small sets in the form of the published ones."""

from __future__ import annotations

import hashlib
import re
import sys
import tomllib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import optuna
import pytest

import hpsearch
from hpsearch import api
from hpsearch.data.files.idx_layout import EMNIST_LAYOUTS, MNIST_LAYOUT, QMNIST_LAYOUT
from hpsearch.data.files.lookup import DataLocations
from hpsearch.data.files.published import PublishedFile, PublishedSet
from hpsearch.data.files.published_archive import EMNIST
from hpsearch.data.forms import cifar, idx_files
from hpsearch.data.registry import catalog_names
from hpsearch.data.test_split import load_test_split
from tests.unit.data.forms.test_cifar import Cifar10
from tests.unit.data.forms.test_idx_archives import files_of, write_folder, write_zip

TEXT = (Path(__file__).parents[3] / "docs" / "data.md").read_text()
BLOCKS = re.findall(r"```toml\n(.*?)```", TEXT, re.DOTALL)
STUDIES = {tomllib.loads(block)["data"]["dataset"]: block for block in BLOCKS}
PROGRAMS = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
SMALL = ["training.max_epochs=1", "training.batch_size=10"]


def put_idx(layout_name: str, folder: Path, publish: Callable[..., None]) -> None:
    layout = {"fashion-mnist": MNIST_LAYOUT, "qmnist": QMNIST_LAYOUT}[layout_name]
    files = files_of(layout, 10)
    sums = {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}
    entries = {name: PublishedFile(packed_md5="", sha256=sha256) for name, sha256 in sums.items()}
    publish(PublishedSet(name=layout_name, mirrors=(), files=entries, layout=layout))
    write_folder(folder, files)


@pytest.fixture
def put(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, publish: Callable[..., None]) -> Callable[[str], None]:
    """Puts a small set in the place of a published one, or the loader into the working directory."""
    monkeypatch.setenv("HPSEARCH_DATA", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])

    def put_data(dataset: str) -> None:
        if dataset == "loaders:moons":
            (tmp_path / "loaders.py").write_text(PROGRAMS[0])
        elif dataset == "cifar10":
            small = Cifar10()
            small.write_archive(tmp_path / "cifar-10-python.tar.gz")
            monkeypatch.setattr(cifar, "_NAMED", {"cifar10": (cifar._CIFAR10, small.publish())})
        elif dataset == "emnist-letters":
            path = write_zip(tmp_path / "gzip.zip", files_of(EMNIST_LAYOUTS["letters"], 26))
            monkeypatch.setattr(idx_files, "EMNIST", replace(EMNIST, md5=hashlib.md5(path.read_bytes()).hexdigest()))
        else:
            put_idx(dataset, tmp_path, publish)

    return put_data


@pytest.mark.parametrize("dataset", STUDIES)
def test_each_study_file_trains_and_has_a_test_part(put: Callable[[str], None], tmp_path: Path, dataset: str) -> None:
    put(dataset)
    path = tmp_path / "study.toml"
    path.write_text(STUDIES[dataset])
    definition = api.load_study_file(path, SMALL)
    objective = hpsearch.objective(definition, device="cpu")
    assert 0 <= objective(optuna.trial.FixedTrial({"learning_rate": 0.01})) <= 1
    data: Any = objective._selection
    held_out = load_test_split(definition.data, DataLocations.from_environment(), lambda: True, data.record)
    assert held_out.images.shape[1] == data.validation.images.shape[1]


def test_every_section_of_the_catalogue_has_a_study_file() -> None:
    assert set(STUDIES) == {"fashion-mnist", "qmnist", "emnist-letters", "cifar10", "loaders:moons"}
    listed = set(re.findall(r'"([a-z0-9-]+)"', TEXT.split("From a notebook")[0]))
    assert {name for name in catalog_names() if ":" not in name} <= listed


def test_the_arrays_of_the_notebook_have_a_definition(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HPSEARCH_HOME", str(tmp_path))
    names: dict[str, Any] = {}
    exec(compile(PROGRAMS[1], "data.md", "exec"), names)
    definition = api._read_definition(names["definition"])
    assert Path(definition.data.dataset).parent == tmp_path / "arrays"
