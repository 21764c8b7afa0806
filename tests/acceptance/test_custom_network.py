"""A network of a user's own, from the study file beside it to the module that takes the best parameters home."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import subprocess
import sys
from importlib.metadata import packages_distributions
from pathlib import Path

import optuna
import pytest
import torch
from optuna.trial import TrialState
from sqlalchemy import create_engine, text

from hpsearch.cli.main import run_command_line
from hpsearch.data.catalog import load_selection_data
from hpsearch.data.files.lookup import DataLocations
from hpsearch.study.settings import DataSettings

pytestmark = pytest.mark.acceptance

ROOT = Path(__file__).parents[2]
STUDY = "two-hidden-layers"


class Commands:
    """Runs the installed `hpsearch` script, whose sys.path lacks the current folder that `python -m` would add."""

    def __init__(self, home: Path, database_url: str) -> None:
        own = {key: value for key, value in os.environ.items() if not key.startswith("HPSEARCH_")}
        self.environment = {
            **own,
            "HPSEARCH_HOME": str(home),
            "HPSEARCH_STORAGE": database_url,
            "NO_COLOR": "1",
            "COLUMNS": "160",
        }

    def within(self, *arguments: str | Path, folder: Path) -> subprocess.CompletedProcess[str]:
        """The same in this process, without the seconds that a Python with torch takes to start."""
        out, err = io.StringIO(), io.StringIO()
        with (
            pytest.MonkeyPatch.context() as patch,
            contextlib.redirect_stdout(out),
            contextlib.redirect_stderr(err),
            contextlib.chdir(folder),
        ):
            patch.setattr(os, "environ", dict(self.environment))
            patch.setattr(sys, "path", list(sys.path))
            code = run_command_line([str(argument) for argument in arguments])
        for name in [name for name in sys.modules if name.startswith("networks_of_mine")]:
            del sys.modules[name]
        return subprocess.CompletedProcess(arguments, code, out.getvalue(), err.getvalue())

    def __call__(self, *arguments: str | Path, folder: Path) -> subprocess.CompletedProcess[str]:
        script = Path(sys.executable).with_name("hpsearch")
        return subprocess.run(
            [script, *map(str, arguments)],
            env=self.environment,
            cwd=folder,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=240,
            check=False,
        )


@pytest.fixture
def hpsearch(tmp_path: Path, database_url: str) -> Commands:
    return Commands(tmp_path / "home", database_url)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A user's folder: the example's network under a name that nothing else has, and its study."""
    own = tmp_path / "work"
    (own / "networks_of_mine").mkdir(parents=True)
    source = (ROOT / "examples" / "two_hidden_layers.py").read_text()
    (own / "networks_of_mine" / "layers.py").write_text(source)
    study = (ROOT / "examples" / "two_hidden_layers.toml").read_text()
    (own / "study.toml").write_text(study.replace("examples.two_hidden_layers:", "networks_of_mine.layers:"))
    return own


def test_the_example_runs_and_its_best_parameters_reproduce_the_best_value(
    hpsearch: Commands, tmp_path: Path, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = hpsearch("run", "examples/two_hidden_layers.toml", "--lanes", "3", folder=ROOT)
    assert done.returncode == 0, done.stderr
    assert "6 of 6 points done" in done.stdout
    study = optuna.load_study(study_name=STUDY, storage=database_url)
    assert {trial.params["options.width"] for trial in study.trials} == {16, 64}
    best = study.best_trial

    done = hpsearch.within(
        "export", STUDY, "-o", tmp_path / "best.json", "--model", tmp_path / "best.safetensors", folder=ROOT
    )
    assert done.returncode == 0, done.stderr
    exported = json.loads((tmp_path / "best.json").read_text())
    assert exported["settings"]["model"]["options"] == {"width": best.params["options.width"]}

    # The document's own lines load the module.
    block = (ROOT / "docs" / "custom-networks.md").read_text().split("```python\n")[1].split("```")[0]
    names: dict[str, torch.nn.Module] = {}
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(ROOT)
    exec(block, names)
    data = load_selection_data(DataSettings(dataset="digits"), locations=DataLocations.from_environment())
    images = torch.from_numpy(data.validation.images).reshape(-1, 1, *data.example_shape)
    with torch.no_grad():
        wrong = names["network"](images).argmax(dim=1) != torch.from_numpy(data.validation.labels)
    assert float(wrong.double().mean()) == best.value < 0.1


def test_no_file_of_the_current_folder_takes_the_place_of_a_module(hpsearch: Commands, folder: Path) -> None:
    """Neither in the command nor in its workers; networks of that folder are found all the same."""
    names = {*sys.stdlib_module_names, *packages_distributions(), "hpsearch", "sitecustomize", "usercustomize"}
    for name in names - {""}:
        if name.isidentifier():
            (folder / f"{name}.py").write_text(f"raise SystemExit('the file {name}.py was imported')\n")
    done = hpsearch("run", "study.toml", "--lanes", "6", "--set", "training.max_epochs=1", folder=folder)
    assert done.returncode == 0, done.stderr
    assert "6 of 6 points done" in done.stdout


def test_a_worker_without_the_module_says_so_and_takes_no_point(
    hpsearch: Commands, folder: Path, tmp_path: Path, database_url: str
) -> None:
    done = hpsearch.within("create", "study.toml", folder=folder)
    assert done.returncode == 0, done.stderr
    done = hpsearch("worker", STUDY, folder=tmp_path)
    assert done.returncode == 2
    assert "there is no module 'networks_of_mine'" in done.stderr
    assert "run hpsearch in the folder that holds networks_of_mine" in done.stderr
    trials = optuna.load_study(study_name=STUDY, storage=database_url).trials
    assert [trial.state for trial in trials] == [TrialState.WAITING] * 6
    engine = create_engine(database_url)
    with engine.connect() as connection:
        assert connection.execute(text("SELECT max(attempt), max(crashes) FROM hpsearch_points")).one() == (1, 0)
    engine.dispose()


@pytest.mark.parametrize("command", ["run", "create"])
def test_a_network_that_lanes_cannot_train_is_refused_before_anything_is_created(
    command: str, hpsearch: Commands, folder: Path, database_url: str
) -> None:
    network = folder / "networks_of_mine" / "layers.py"
    network.write_text(re.sub(r"nn\.LayerNorm", "nn.BatchNorm1d", network.read_text()))
    done = hpsearch.within(command, "study.toml", folder=folder)
    assert done.returncode == 2
    assert "model.family networks_of_mine.layers:TwoHiddenLayers: norm is a BatchNorm1d" in done.stderr
    assert "hint: use GroupNorm or LayerNorm" in done.stderr
    assert "Traceback" not in done.stderr
    assert optuna.get_all_study_names(database_url) == []
