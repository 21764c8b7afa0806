"""`hpsearch confirm` as a person meets it: a small search on digits, confirmed, widened, joined, reported."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import optuna
import pytest
from optuna.trial import TrialState

from tests.acceptance.in_process import hpsearch_here

pytestmark = pytest.mark.acceptance

STUDY = """
name = "small"
[data]
dataset = "digits"
[model]
hidden_units = 10
[training]
batch_size = 20
max_epochs = 8
[search]
learning_rate = [0.1, 0.03, 0.0001]
[stopping]
rule = "none"
"""
Shell = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def shell(tmp_path: Path, database_url: str) -> Shell:
    (tmp_path / "small.toml").write_text(STUDY)
    environment = {
        "HPSEARCH_HOME": str(tmp_path / "home"),
        "HPSEARCH_STORAGE": database_url,
        "HPSEARCH_DEVICE": "cpu",
        "HPSEARCH_LANES": "4",
        "NO_COLOR": "1",
    }

    def run(*arguments: str, code: int = 0) -> subprocess.CompletedProcess[str]:
        done = hpsearch_here(*arguments, folder=tmp_path, environment=environment)
        assert done.returncode == code, done.stderr
        return done

    return run


@pytest.mark.timeout(600)
def test_from_a_search_to_a_confirmed_point(shell: Shell, database_url: str, tmp_path: Path) -> None:
    shell("create", "small.toml")
    refused = shell("confirm", "small", code=1)
    assert "study 'small' has no complete trial yet: 3 waiting" in refused.stderr
    shell("worker", "small", "--lanes", "3")

    told = shell("confirm", "small", "--top", "2", "--seeds", "2")
    assert "2 points with 2 seeds each, 4 of 4 trainings are new" in told.stderr
    assert "study 'small-confirm' created: 4 points, 1 worker" in told.stderr
    assert "study small, confirmed in small-confirm" in told.stdout
    assert "corrected for its selection as the lowest" in told.stdout
    companion = optuna.load_study(study_name="small-confirm", storage=database_url)
    assert [trial.state for trial in companion.trials] == [TrialState.COMPLETE] * 4
    assert len({trial.params["seed"] for trial in companion.trials}) == 2

    chosen = json.loads(shell("status", "small", "--json").stdout)["confirmation"]["chosen"]
    shell("export", "small", "--point", "confirmed", "-o", "two.json", "--model", "two.safetensors")
    exported = json.loads((tmp_path / "two.json").read_text())
    assert (exported["study"], exported["trial"]) == ("small-confirm", chosen["trial"])
    assert (tmp_path / "two.safetensors").stat().st_size > 4 * 784 * 10

    # More points and seeds: what is there is not trained again.
    more = shell("confirm", "small", "--top", "3", "--seeds", "3", "--json")
    assert "study 'small-confirm' widened: 9 points" in more.stderr
    content = json.loads(more.stdout)
    companion = optuna.load_study(study_name="small-confirm", storage=database_url)
    assert len(companion.trials) == 9
    assert content["finished"]
    assert content["num_images"] == 256
    assert [point["seeds"] for point in content["configurations"]] == [3, 3, 3]
    worst = next(point for point in content["configurations"] if point["params"] == {"learning_rate": 0.0001})
    assert not worst["tied"]
    assert worst["difference_interval"][0] > 0
    # The means are those of the trials that Optuna has.
    for point in content["configurations"]:
        rate = point["params"]["learning_rate"]
        values = [trial.value for trial in companion.trials if trial.params["learning_rate"] == rate]
        assert point["mean"] == pytest.approx(sum(v for v in values if v is not None) / 3)
        assert point["num_parameters"] == 784 * 10 + 10 + 10 * 10 + 10
        assert point["epochs"] == 8
    chosen = content["chosen"]
    assert chosen["configuration"] in content["tied"]
    # Its model is there for the vault, whichever trial of the companion was the best when it ended.
    for trial in companion.trials:
        assert [key for key in trial.system_attrs if key.startswith("artifacts:")]

    again = shell("confirm", "small", "--top", "3", "--seeds", "3", "--json")
    assert json.loads(again.stdout) == content
    assert "nothing to run" in again.stderr

    assert json.loads(shell("status", "small", "--json").stdout)["confirmation"] == content
    assert "confirmed over 3 seeds in small-confirm: learning_rate 0." in shell("status", "small").stdout
    shell("report", "small", "-o", "report.html")
    page = (tmp_path / "report.html").read_text()
    assert 'data-plot="confirmation"' in page
    assert "trials of study small-confirm" in page
    itself = shell("confirm", "small-confirm", code=2)
    assert "is itself the confirmation of study 'small'" in itself.stderr

    fewer = shell("confirm", "small", "--top", "1", "--seeds", "1")
    assert "--top 1: study 'small-confirm' has more points than these already; it keeps them all" in fewer.stderr
    assert "3 points with 3 seeds each, 0 of 9 trainings are new" in fewer.stderr


def test_wrong_numbers_and_names_are_usage_errors(shell: Shell) -> None:
    assert "no study 'nope'" in shell("confirm", "nope", code=2).stderr
    for option in ("--top", "--seeds"):
        assert option in shell("confirm", "small", option, "0", code=2).stderr
