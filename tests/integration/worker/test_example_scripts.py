"""The studies of examples/own_scripts/, run as they stand there, and the unchanged PyTorch script."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from hpsearch.cli.main import run_command_line

EXAMPLES = Path(__file__).parents[3] / "examples" / "own_scripts"


@pytest.fixture(autouse=True)
def _surroundings(tables_url: str, open_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(EXAMPLES)
    monkeypatch.setenv("HPSEARCH_STORAGE", tables_url)
    monkeypatch.setenv("HPSEARCH_HOME", str(open_folder / "examples"))


def searched(study: str, capfd: pytest.CaptureFixture[str], *more: str) -> dict[str, Any]:
    capfd.readouterr()
    assert run_command_line(["run", study, "--json", *more]) == 0
    document: dict[str, Any] = json.loads(capfd.readouterr().out)
    assert document["points"]["complete"] == 4
    return document


@pytest.mark.parametrize(
    ("study", "best"),
    [
        ("arguments", {"learning_rate": 1.0, "momentum": 0.0}),
        ("keys", {"optimizer.name": "plain", "optimizer.learning_rate": 1.0}),
        ("variables", {"divisor": 2, "offset": 0}),
        ("file", {"learning_rate": 1.0, "momentum": 0.0}),
    ],
)
def test_each_way_of_passing_values_finds_the_best_of_four_points(
    study: str, best: dict[str, Any], capfd: pytest.CaptureFixture[str]
) -> None:
    assert searched(f"{study}.toml", capfd)["best"]["params"] == best


def test_the_pytorch_script_knows_nothing_of_hpsearch_and_is_searched(capfd: pytest.CaptureFixture[str]) -> None:
    assert "import hpsearch" not in (EXAMPLES / "train_pytorch.py").read_text()
    options = ["--set", "search.learning_rate=[0.1, 0.01]", "--set", "search.hidden=[16, 64]"]
    document = searched("pytorch.toml", capfd, *options)
    assert document["epochs"] == 4 * 20
    assert document["best"]["value"] < 0.3


@pytest.mark.slow
def test_the_reporting_script_goes_on_from_the_state_in_its_folder(tmp_path: Path) -> None:
    """As the next attempt does, whose folder is a copy of the last one's."""

    def epochs_of(number: int) -> list[str]:
        done = subprocess.run(
            [sys.executable, "train_pytorch_reporting.py", f"--epochs={number}"],
            env={**os.environ, "HPSEARCH_FOLDER": str(tmp_path)},
            capture_output=True,
            text=True,
            check=True,
        )
        return [line.partition(":")[0] for line in done.stdout.splitlines()]

    assert epochs_of(2) == ["epoch 1", "epoch 2"]
    assert epochs_of(3) == ["epoch 3"]
