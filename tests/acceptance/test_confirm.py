"""`hpsearch confirm` as a person meets it: a small search on digits, confirmed, widened, joined, reported."""

from __future__ import annotations

import contextlib
import io
import json
import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import optuna
import pytest
from optuna.trial import TrialState

from hpsearch.cli.main import run_command_line

pytestmark = pytest.mark.acceptance

STUDY = """
name = "small"
[data]
dataset = "digits"
[model]
hidden_units = 10
[training]
batch_size = 20
max_epochs = 2
[search]
learning_rate = [0.1, 0.03, 0.0001]
[stopping]
rule = "none"
"""
Shell = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def shell(tmp_path: Path, database_url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Shell]:
    """Runs `hpsearch` in this process, which spares the seconds that a Python with torch takes; workers are real."""
    (tmp_path / "small.toml").write_text(STUDY)
    for name in [name for name in os.environ if name.startswith("HPSEARCH_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HPSEARCH_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HPSEARCH_STORAGE", database_url)
    monkeypatch.setenv("HPSEARCH_DEVICE", "cpu")
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.chdir(tmp_path)
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}

    def run(*arguments: str, code: int = 0) -> subprocess.CompletedProcess[str]:
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            found = run_command_line(list(arguments))
        assert found == code, err.getvalue()
        return subprocess.CompletedProcess(arguments, found, out.getvalue(), err.getvalue())

    yield run
    for number, handler in handlers.items():
        signal.signal(number, handler)


@pytest.mark.timeout(600)
def test_from_a_search_to_a_confirmed_point(shell: Shell, database_url: str, tmp_path: Path) -> None:
    shell("create", "small.toml")
    refused = shell("confirm", "small", code=1)
    assert "study 'small' has no complete trial yet: 3 waiting" in refused.stderr
    shell("run", "small.toml")

    told = shell("confirm", "small", "--top", "2", "--seeds", "2")
    assert "2 points with 2 seeds each, 4 of 4 trainings are new" in told.stderr
    assert "study small, confirmed in small-confirm" in told.stdout
    assert "corrected for its having been picked as the lowest" in told.stdout
    companion = optuna.load_study(study_name="small-confirm", storage=database_url)
    assert [trial.state for trial in companion.trials] == [TrialState.COMPLETE] * 4
    assert len({trial.params["seed"] for trial in companion.trials}) == 2

    # More points and seeds: what is there is not trained again.
    content = json.loads(shell("confirm", "small", "--top", "3", "--seeds", "3", "--json").stdout)
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
        assert point["epochs"] == 2
    chosen = content["chosen"]
    assert chosen["configuration"] in content["tied"]
    # Its model is there for the vault, whichever trial of the companion was the best when it ended.
    for trial in companion.trials:
        assert [key for key in trial.system_attrs if key.startswith("artifacts:")]

    again = shell("confirm", "small", "--top", "3", "--seeds", "3", "--json")
    assert json.loads(again.stdout) == content
    assert "nothing to run" in again.stderr

    shell("report", "small", "-o", "report.html")
    page = (tmp_path / "report.html").read_text()
    assert 'data-plot="confirmation"' in page
    assert "trials of study small-confirm" in page
    itself = shell("confirm", "small-confirm", code=2)
    assert "is itself the confirmation of study 'small'" in itself.stderr


def test_wrong_numbers_and_names_are_usage_errors(shell: Shell) -> None:
    assert "no study 'nope'" in shell("confirm", "nope", code=2).stderr
    for option in ("--top", "--seeds"):
        assert option in shell("confirm", "small", option, "0", code=2).stderr
