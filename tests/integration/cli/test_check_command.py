"""`hpsearch check`, and what run and create do with the data: the commands themselves, on a real database."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hpsearch.cli.main import run_command_line
from hpsearch.results.status import read_status
from hpsearch.store.connection.database import Database

Written = Callable[..., Path]


@pytest.fixture(autouse=True)
def _home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HPSEARCH_HOME", str(tmp_path / "home"))


@pytest.fixture
def study_file(tmp_path: Path) -> Written:
    def write(dataset: str = "digits", *, shuffle: bool = False) -> Path:
        path = tmp_path / "study.toml"
        path.write_text(
            f'name = "checked"\n[data]\ndataset = "{dataset}"\n[model]\nfamily = "logistic"\n'
            f"[training]\nbatch_size = 20\nmax_epochs = 1\nshuffle = {str(shuffle).lower()}\n"
            "[search]\nlearning_rate = [0.1, 0.01]\n"
        )
        return path

    return write


def idx_folder(folder: Path, labels: np.ndarray, *, are_blank: bool = False) -> str:
    """Images whose bright rows tell the class, or images that are all the same."""
    folder.mkdir()
    images = np.random.default_rng(0).integers(0, 60, (len(labels), 28, 28))
    for image, label in zip(images, labels, strict=True):
        image[2 * label : 2 * label + 2] += 150
    if are_blank:
        images[:] = images[0]
    header = struct.pack(">IIII", 0x803, len(labels), 28, 28)
    (folder / "train-images-idx3-ubyte").write_bytes(header + images.astype(np.uint8).tobytes())
    label_header = struct.pack(">II", 0x801, len(labels))
    (folder / "train-labels-idx1-ubyte").write_bytes(label_header + labels.astype(np.uint8).tobytes())
    return str(folder)


def sorted_labels(number: int = 300) -> np.ndarray:
    return np.sort(np.arange(number) % 10)


def run(*arguments: str) -> int:
    return run_command_line(list(arguments))


def test_check_prints_every_finding_and_its_outcome_is_stored_with_the_study(
    study_file: Written, tables_url: str, database: Database, capsys: pytest.CaptureFixture[str]
) -> None:
    path = str(study_file())
    assert run("check", path, "--json") == 0
    document: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert document["verdict"] in ("passed", "skipped")
    assert {finding["subject"] for finding in document["findings"]} == {"data", "logistic"}
    assert run("check", path) == 0
    shown = capsys.readouterr()
    assert "\ndata\n" in shown.out
    assert "  passed   gradients        relative errors below" in shown.out
    assert "passed: gradients (logistic)" in shown.err
    assert run("create", path, "--storage", tables_url) == 0
    stored = read_status(database, "checked").as_json()["checks"]
    assert len(stored["findings"]) == len(document["findings"])
    assert run("status", "checked", "--storage", tables_url) == 0
    assert "\nchecked, 20" in capsys.readouterr().out


def test_without_check_only_the_data_is_looked_at_and_once(
    study_file: Written, tables_url: str, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = str(study_file())
    assert run("create", path, "--storage", tables_url) == 0
    first = read_status(database, "checked").as_json()["checks"]
    assert {finding["subject"] for finding in first["findings"]} == {"data"}

    def never(*_: object, **__: object) -> None:
        raise AssertionError("it was checked already")

    monkeypatch.setattr("hpsearch.worker.preparation.check_data_only", never)
    assert run("create", path, "--storage", tables_url) == 0
    assert run("check", path) == 0
    assert run("create", path, "--storage", tables_url) == 0  # stores the fuller report
    assert len(read_status(database, "checked").as_json()["checks"]["findings"]) > len(first["findings"])


def test_data_that_cannot_be_right_stops_the_study_before_it_is_created(
    study_file: Written, tables_url: str, database: Database, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = str(study_file(idx_folder(tmp_path / "blank", np.arange(300) % 10, are_blank=True)))
    for command in (["create", path], ["run", path, "--device", "cpu"]):
        assert run(*command, "--storage", tables_url) == 2
        told = capsys.readouterr().err
        assert "error: the data cannot be right: values: all images are the same" in told
        assert "--no-check trains all the same" in told
        assert run("status", "checked", "--storage", tables_url) == 2  # there is no such study
        capsys.readouterr()
    assert run("create", path, "--no-check", "--storage", tables_url) == 0
    assert read_status(database, "checked").as_json()["checks"] is None
    assert run("status", "checked", "--storage", tables_url) == 0
    assert "\nnot checked\n" in capsys.readouterr().out
    assert run("check", path) == 1
    told = capsys.readouterr()
    assert "study 'checked' has failed" in told.err
    assert "look at: the loader" in told.out


def test_run_warns_of_what_may_be_wrong_and_trains(
    study_file: Written, tables_url: str, database: Database, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    labels = np.concatenate([sorted_labels(500), np.arange(100) % 10])  # sorted, but for the validation images
    path = str(study_file(idx_folder(tmp_path / "sorted", labels)))
    assert run("run", path, "--storage", tables_url, "--device", "cpu", "--lanes", "1") == 0
    told = capsys.readouterr().err
    assert "check of data: order: 10 runs of equal labels among 500 training images" in told
    assert "hpsearch check STUDY.toml says more" in told
    status = read_status(database, "checked")
    assert status.summary.points.complete == 2
    assert status.as_json()["checks"]["verdict"] == "warning"


@pytest.mark.parametrize("seconds", ["0", "nan", "soon"])
def test_a_limit_that_is_no_number_of_seconds_is_refused(study_file: Written, seconds: str) -> None:
    assert run("check", str(study_file()), "--seconds", seconds) == 2


def test_a_limit_that_is_short_skips_the_rest(study_file: Written, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("check", str(study_file()), "--seconds", "1", "--json") == 0
    document = json.loads(capsys.readouterr().out)
    assert "skipped" in {finding["verdict"] for finding in document["findings"]}


def test_data_that_is_not_there_is_an_error_of_the_surroundings(study_file: Written, tmp_path: Path) -> None:
    assert run("check", str(study_file(str(tmp_path / "away")))) == 3


def test_a_study_that_exists_goes_on_whatever_its_data_is_like(
    study_file: Written, tables_url: str, database: Database, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = str(study_file(idx_folder(tmp_path / "blank", np.arange(300) % 10, are_blank=True)))
    assert run("create", path, "--no-check", "--storage", tables_url) == 0
    assert run("create", path, "--storage", tables_url) == 0
    assert "check of data: values: all images are the same" in capsys.readouterr().err
    assert read_status(database, "checked").as_json()["checks"]["verdict"] == "failed"


def test_a_wider_study_keeps_its_full_report(study_file: Written, tables_url: str, database: Database) -> None:
    path = study_file()
    assert run("check", str(path)) == 0
    assert run("create", str(path), "--storage", tables_url) == 0
    path.write_text(path.read_text().replace("[0.1, 0.01]", "[0.1, 0.01, 0.001]"))
    assert run("create", str(path), "--storage", tables_url) == 0
    assert read_status(database, "checked").as_json()["checks"]["has_networks"]
