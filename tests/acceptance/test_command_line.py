"""The `hpsearch` command as a person meets it: real processes, a real PostgreSQL, exit codes, stdout and stderr."""

from __future__ import annotations

import functools
import json
import os
import re
import shlex
import signal
import socket
import struct
import subprocess
import sys
import time
import tomllib
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
import yaml
from optuna.storages import RDBStorage
from optuna.trial import TrialState
from safetensors.numpy import load_file
from sqlalchemy import Engine

from hpsearch.cli.main import run_command_line
from tests.acceptance.in_process import hpsearch_here
from tests.databases import new_database

pytestmark = pytest.mark.acceptance

ROOT = Path(__file__).parents[2]

STUDY = """
name = "small"
[data]
dataset = "digits"
[model]
hidden_units = 10
[training]
batch_size = 20
max_epochs = 3
[search]
learning_rate = { log10 = [0, -2] }
lambda_2 = { log10 = [-3, -4], zero = true }
[stopping]
rule = "none"
"""
# Three points of seconds each, to be disturbed in the middle.
LONG_EPOCHS = 100
LONG = ("--set", "search.lambda_2=[0.0]", "--set", f"training.max_epochs={LONG_EPOCHS}")


class Shell:
    """Runs `hpsearch` with a database, a home and data folders of its own."""

    def __init__(self, folder: Path, database_url: str) -> None:
        self.folder = folder
        self.database_url = database_url
        self.study_file = folder / "small.toml"
        self.study_file.write_text(STUDY)
        self.environment = {
            **{key: value for key, value in os.environ.items() if not key.startswith("HPSEARCH_")},
            "HPSEARCH_HOME": str(folder / "home"),
            "HPSEARCH_STORAGE": database_url,
            "XDG_CACHE_HOME": str(folder / "cache"),
            "NO_COLOR": "1",
            "COLUMNS": "160",
        }

    def start(self, *arguments: str | Path, **environment: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", "hpsearch", *map(str, arguments)],
            env={**self.environment, **environment},
            cwd=self.folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            stdin=subprocess.DEVNULL,
            text=True,
            # A shell's background job ignores SIGINT and hands that on; Ctrl-C must mean something here.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )

    def __call__(self, *arguments: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
        process = self.start(*arguments, **environment)
        out, err = process.communicate(timeout=240)
        return subprocess.CompletedProcess(process.args, process.returncode, out, err)

    def within(self, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
        """The same in this process, without the seconds that a Python with torch takes to start."""
        return hpsearch_here(*arguments, folder=self.folder, environment=self.environment)

    def ok(self, *arguments: str | Path, **environment: str) -> str:
        """Run it, require success, and return stdout."""
        done = self(*arguments, **environment)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def told(self, *arguments: str | Path) -> str:
        """The same within this process: require success, return stdout."""
        done = self.within(*arguments)
        assert done.returncode == 0, done.stderr
        return done.stdout

    @functools.cached_property
    def storage(self) -> RDBStorage:
        return RDBStorage(self.database_url)

    def study(self, name: str = "small") -> optuna.Study:
        return optuna.load_study(study_name=name, storage=self.storage)

    def counted(self, name: str = "small") -> list[optuna.trial.FrozenTrial]:
        states = (TrialState.COMPLETE, TrialState.PRUNED)
        return sorted(self.study(name).get_trials(states=states), key=lambda trial: trial.user_attrs["point"])


@pytest.fixture
def shell(tmp_path: Path, database_url: str) -> Shell:
    return Shell(tmp_path, database_url)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, postgres_admin: Engine) -> Iterator[Shell]:
    """A study that `run` has finished without an option; tests only look at it."""
    with new_database(postgres_admin) as url:
        shell = Shell(tmp_path_factory.mktemp("finished"), url)
        done = shell("run", shell.study_file)
        assert done.returncode == 0, done.stderr
        assert "1 worker with the fastest number of lanes" in done.stderr
        yield shell


def wait_until(condition: Callable[[], Any], seconds: float = 240.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.1)


def children_of(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def test_run_trains_every_point_once_and_prints_the_best_table(shell: Shell) -> None:
    done = shell("run", shell.study_file, "--workers", "2", "--lanes", "3")
    assert done.returncode == 0, done.stderr
    assert "9 of 9 points done" in done.stdout
    assert "study 'small' created: 9 points, 2 workers" in done.stderr
    trials = shell.counted()
    assert [trial.user_attrs["point"] for trial in trials] == list(range(9))
    assert all(list(trial.intermediate_values) == [1, 2, 3] for trial in trials)
    assert len({tuple(trial.params.items()) for trial in trials}) == 9


def test_how_many_lanes_pay_is_learned_and_remembered(finished: Shell) -> None:
    known = [json.loads(file.read_text()) for file in (finished.folder / "home" / "lanes").glob("*.json")]
    assert any("speed" in document for document in known)
    assert "lanes: " in (finished.folder / "home" / "logs" / "small-worker-0.log").read_text()


def test_running_a_finished_study_again_does_nothing_and_says_so(finished: Shell) -> None:
    before = [trial.datetime_complete for trial in finished.study().trials]
    again = finished.within("run", finished.study_file)
    assert again.returncode == 0
    assert "finished: all 9 points are done, nothing to run" in again.stderr
    assert [trial.datetime_complete for trial in finished.study().trials] == before


def test_a_finished_study_is_told_even_where_its_data_is_not(shell: Shell, tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (60, 28, 28), np.uint8)
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "train-images-idx3-ubyte").write_bytes(struct.pack(">IIII", 0x803, 60, 28, 28) + images.tobytes())
    (folder / "train-labels-idx1-ubyte").write_bytes(struct.pack(">II", 0x801, 60) + bytes(range(10)) * 6)
    sets = ("--set", f"data.dataset={folder}", "--set", "training.max_epochs=1")
    shell.told("create", shell.study_file, *sets)
    shell.told("worker", "small", "--lanes", "9")
    (folder / "train-images-idx3-ubyte").unlink()
    assert "nothing to run" in shell.within("run", shell.study_file, *sets).stderr


def test_the_views_tell_the_same_best_point(finished: Shell) -> None:
    best = finished.study().best_trial
    status = json.loads(finished.told("status", "small", "--json"))
    assert status["points"] == {
        "total": 9, "waiting": 0, "running": 0, "complete": 9, "pruned": 0, "failed": 0
    }  # fmt: skip
    assert status["best"]["value"] == best.value
    assert f"{100 * best.value:.2f} %" in finished.told("status", "small")
    assert [line["name"] for line in json.loads(finished.told("status", "--json"))] == ["small"]
    assert "small" in finished.told("status")
    assert f"{100 * best.value:.2f} %" in finished.told("status", "--watch")  # finished: shows it once

    document = json.loads(finished.told("export", "small"))
    assert json.loads(finished.told("export", "small", "-o", "-"))["parameters"] == document["parameters"]
    assert document["value"] == best.value
    learning_rate = document["parameters"]["learning_rate"]
    for name in ("best.json", "best.toml", "best.yaml", "best.env"):
        finished.told("export", "small", "-o", name)
    assert json.loads((finished.folder / "best.json").read_text())["parameters"] == document["parameters"]
    assert tomllib.loads((finished.folder / "best.toml").read_text())["parameters"] == document["parameters"]
    assert yaml.safe_load((finished.folder / "best.yaml").read_text())["parameters"] == document["parameters"]
    variables = dict(
        word.split("=", 1) for word in shlex.split((finished.folder / "best.env").read_text(), comments=True)
    )
    assert float(variables["HPSEARCH_LEARNING_RATE"]) == learning_rate

    finished.told("export", "small", "-o", "best.json", "--model", "best.safetensors")
    assert load_file(finished.folder / "best.safetensors")["hidden.weight"].shape == (10, 784)
    finished.told("report", "small", "-o", "report.html")
    assert "small" in (finished.folder / "report.html").read_text()


@pytest.mark.long
def test_a_killed_worker_is_replaced_and_each_point_counts_once(shell: Shell) -> None:
    process = shell.start("run", shell.study_file, *LONG, "--workers", "2", "--lanes", "1")
    wait_until(lambda: len(children_of(process.pid)) == 2)
    wait_until(lambda: any(trial.intermediate_values for trial in shell_trials(shell)))
    os.kill(children_of(process.pid)[0], signal.SIGKILL)
    _, err = process.communicate(timeout=240)
    assert process.returncode == 0, err
    assert "died (signal 9): starting it again" in err
    trials = shell.counted()
    assert [trial.user_attrs["point"] for trial in trials] == list(range(3))
    assert all(len(trial.intermediate_values) == LONG_EPOCHS for trial in trials)


@pytest.mark.long
def test_everything_killed_and_run_again_does_exactly_the_remainder(shell: Shell) -> None:
    arguments = ("run", shell.study_file, *LONG, "--lanes", "1")
    process = shell.start(*arguments)
    wait_until(lambda: any(trial.state is TrialState.COMPLETE for trial in shell_trials(shell)))
    for pid in [process.pid, *children_of(process.pid)]:
        os.kill(pid, signal.SIGKILL)
    process.communicate()
    finished = {trial.number: trial.datetime_complete for trial in shell.counted()}
    assert 0 < len(finished) < 3
    shell.ok(*arguments)
    trials = shell.counted()
    assert [trial.user_attrs["point"] for trial in trials] == list(range(3))
    assert all(trial.datetime_complete == finished.get(trial.number, trial.datetime_complete) for trial in trials)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["ctrl-c", "sigterm"])
def test_an_interrupted_study_is_resumed_by_the_same_command(number: signal.Signals, shell: Shell) -> None:
    arguments = ("run", shell.study_file, *LONG, "--lanes", "2")
    process = shell.start(*arguments)
    wait_until(lambda: any(trial.intermediate_values for trial in shell_trials(shell)))
    workers = children_of(process.pid)
    process.send_signal(number)
    _, err = process.communicate(timeout=240)
    assert process.returncode == 130
    assert "the same command resumes the study" in err
    assert "Traceback" not in err
    assert not any(Path(f"/proc/{pid}").exists() for pid in workers)
    assert not [trial for trial in shell.study().trials if trial.state is TrialState.RUNNING]
    shell.ok(*arguments)
    assert len(shell.counted()) == 3


def test_workers_end_when_their_supervisor_is_killed(shell: Shell) -> None:
    process = shell.start("run", shell.study_file, "--lanes", "1", "--set", "training.max_epochs=100000")
    wait_until(lambda: any(trial.intermediate_values for trial in shell_trials(shell)))
    (worker,) = children_of(process.pid)
    process.kill()
    process.communicate()
    wait_until(lambda: _is_zombie(worker) or not Path(f"/proc/{worker}").exists())
    wait_until(lambda: all(trial.state is not TrialState.RUNNING for trial in shell.study().trials))


def test_worker_joins_a_created_study_and_leaves_when_it_is_done(shell: Shell) -> None:
    assert "created: 9 points" in shell.within("create", shell.study_file).stdout
    assert "was there already" in shell.within("create", shell.study_file).stdout
    shell.ok("worker", "small", "--lanes", "4")
    assert len(shell.counted()) == 9


def test_sigterm_gives_the_trials_back_within_seconds_and_exits_0(shell: Shell) -> None:
    shell.told("create", shell.study_file, "--set", "training.max_epochs=100000")
    process = shell.start("worker", "small", "--lanes", "1")
    wait_until(lambda: any(trial.intermediate_values for trial in shell_trials(shell)))
    process.terminate()
    started = time.monotonic()
    process.communicate(timeout=240)
    assert process.returncode == 0
    assert time.monotonic() - started < 30  # ten are promised, of a machine that runs nothing else
    assert json.loads(shell.told("status", "small", "--json"))["points"]["waiting"] == 9


def test_without_a_storage_the_embedded_postgresql_serves_and_keeps_the_study(shell: Shell, open_folder: Path) -> None:
    home = open_folder / "embedded-home"
    del shell.environment["HPSEARCH_STORAGE"]
    shell.environment["HPSEARCH_HOME"] = str(home)
    shell.ok("run", shell.study_file, "--lanes", "9", "--set", "training.max_epochs=1")
    assert json.loads(shell.told("status", "small", "--json"))["finished"] is True
    assert not (home / "postgres" / "data" / "postmaster.pid").exists()  # the last one to leave stopped it


def test_a_command_that_is_told_to_end_stops_its_embedded_postgresql(shell: Shell, open_folder: Path) -> None:
    home = open_folder / "embedded-home"
    del shell.environment["HPSEARCH_STORAGE"]
    shell.environment["HPSEARCH_HOME"] = str(home)
    shell.within("create", shell.study_file)
    process = shell.start("status", "small", "--watch")
    assert process.stdout is not None
    assert process.stdout.readline().startswith("study small")
    assert (home / "postgres" / "data" / "postmaster.pid").exists()
    process.terminate()
    _, err = process.communicate(timeout=240)
    assert process.returncode == 130, err
    assert not (home / "postgres" / "data" / "postmaster.pid").exists()


@pytest.mark.browser
def test_dashboard_serves_the_study_on_loopback_only(shell: Shell) -> None:
    shell.told("create", shell.study_file)
    process = shell.start("dashboard", "--port", "0")  # a free one
    try:
        assert process.stdout is not None
        url = re.fullmatch(r"(http://127\.0\.0\.1:\d+)/dashboard\n", process.stdout.readline())
        assert url is not None
        with urllib.request.urlopen(f"{url[1]}/api/studies") as answer:
            assert [study["study_name"] for study in json.load(answer)["study_summaries"]] == ["small"]
    finally:
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=240)
    assert process.returncode == 130


# Bad input: one line and a hint, the right exit code, nothing created


@pytest.fixture(scope="module")
def closed_port() -> Iterator[int]:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        yield listener.getsockname()[1]  # bound, but nobody listens


BAD_DEFINITIONS = [
    (["training.learning_rat=1"], "unknown key training.learning_rat", 'did you mean "learning_rate"?'),
    (["training.learning_rate=-1"], "training.learning_rate must be finite and > 0, got -1", None),
    (["training.learning_rate=nan"], "training.learning_rate must be finite and > 0, got nan", None),
    (["training.learning_rate=fast"], "training.learning_rate must be finite and > 0, got 'fast'", None),
    (["training.batch_size=0"], "training.batch_size must be a whole number >= 1, got 0", None),
    (["training.batch_size=2000"], "training.batch_size must be in 1..1285", None),
    (["data.max_resident_bytes=1000"], "data.max_resident_bytes = 1000 holds 0", "at least 62880"),
    (["training.max_epochs=0"], "training.max_epochs must be a whole number >= 1, got 0", None),
    (["search.learning_rate=[]"], "search.learning_rate has no values", None),
    (["search.learning_rate=[0.1, 0.1]"], "search.learning_rate has the value 0.1 twice", None),
    (["search.max_points=5"], "the grid has 9 points, more than the limit of 5", None),
    (["data.dataset=minst"], "minst", "mnist"),
    (
        ["model.family=mpl"],
        "model.family must be one of logistic, mlp, cnn, package.module:factory, got 'mpl'",
        "did you mean",
    ),
    (["model.activation=tan"], "model.activation must be one of tanh, sigmoid, relu", None),
    (["training.optimizer=sdg"], "training.optimizer must be one of sgd, momentum, adam", None),
    (["training.schedule=cosine"], "training.schedule must be one of constant", None),
    (["search.strategy=annealing"], "search.strategy must be one of grid, listed, coarse-to-fine, random", None),
    (["pruning.pruner=mean"], "pruning.pruner must be one of none, median", None),
    (["name=../.."], "name must be 1 to 100 letters", None),
    (["name=" + "x" * 500], "name must be 1 to 100 letters", None),
    (["name=<script>"], "name must be 1 to 100 letters", None),
]


@pytest.mark.parametrize(("overrides", "message", "hint"), BAD_DEFINITIONS, ids=lambda value: str(value)[:40])
def test_a_bad_definition_is_refused_in_one_line(
    overrides: list[str], message: str, hint: str | None, shell: Shell
) -> None:
    sets = [word for override in overrides for word in ("--set", override)]
    done = shell.within("run", shell.study_file, *sets)
    assert done.returncode == 2, done.stderr
    assert message in done.stderr
    assert hint is None or hint in done.stderr
    assert "Traceback" not in done.stderr
    assert len(done.stderr.strip().splitlines()) <= 3
    assert optuna.get_all_study_names(shell.database_url) == []


def test_a_changed_definition_under_the_same_name_is_refused_with_its_differences(shell: Shell) -> None:
    assert shell.within("create", shell.study_file).returncode == 0
    done = shell.within("run", shell.study_file, "--set", "training.batch_size=30")
    assert done.returncode == 2
    assert "training.batch_size: 20 in the study, 30 given" in done.stderr
    assert "choose another name" in done.stderr
    assert all(trial.state is TrialState.WAITING for trial in shell.study().trials)


def test_a_study_is_given_more_epochs_and_its_trials_go_on(shell: Shell) -> None:
    assert shell("run", shell.study_file).returncode == 0
    done = shell("run", shell.study_file, "--set", "training.max_epochs=5")
    assert done.returncode == 0, done.stderr
    assert "9 trials that max_epochs had ended will go on to epoch 5" in done.stderr
    status = json.loads(shell("status", "small", "--json").stdout)
    assert (status["points"]["complete"], status["budgets"], status["epochs"]) == (9, [3, 5], 45)
    fewer = shell.within("run", shell.study_file)
    assert fewer.returncode == 2
    assert "training.max_epochs: 5 in the study, 3 given (the number of epochs can only be raised)" in fewer.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["run", "nowhere.toml"], 2, "nowhere.toml: no such study file"),
        (["status", "nothing"], 2, "no study 'nothing'"),
        (["worker", "nothing"], 2, "no study 'nothing'"),
        (["run", "small.toml", "--lanes", "0"], 2, "--lanes must be auto or a whole number from 1 to 512"),
        (["run", "small.toml", "--workers", "0"], 2, "--workers"),
        (["run", "small.toml", "--device", "gpu"], 2, "unknown device 'gpu'"),
        (["run", "small.toml", "--device", "cuda:9"], 3, "cuda:9"),
        (["run", "small.toml", "--set", "x"], 2, "--set x: must be KEY=VALUE"),
        (["run", "small.toml", "--storage", "sqlite:///x.db"], 2, "storage must be PostgreSQL"),
        (["run", "small.toml", "--artifacts", "small.toml/below"], 3, "is not writable for user"),
        (["dashboard", "--host", "0.0.0.0"], 2, "has no login"),
        (["status", "--json", "--watch"], 2, "exclude each other"),
        (["data", "verify", "minst"], 2, "minst"),
        (["nonsense"], 2, "nonsense"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_a_bad_command_is_refused_in_one_line(arguments: list[str], code: int, message: str, shell: Shell) -> None:
    done = shell.within(*arguments)
    assert (done.returncode, done.stdout) == (code, ""), done.stderr
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert optuna.get_all_study_names(shell.database_url) == []


def test_an_unreachable_database_is_named_without_its_password(shell: Shell, closed_port: int) -> None:
    url = f"postgresql://me:s3cret@127.0.0.1:{closed_port}/studies"
    done = shell.within("status", "--storage", url)
    assert done.returncode == 3
    assert f"the database at 127.0.0.1:{closed_port}/studies does not answer (" in done.stderr
    assert "s3cret" not in done.stderr


def test_missing_data_names_folders_mirrors_and_the_command_that_helps(shell: Shell) -> None:
    # No proxy lets this process out: the mirrors cannot be reached wherever the test runs.
    blocked = {"http_proxy": "http://127.0.0.1:9", "https_proxy": "http://127.0.0.1:9"}
    done = shell("run", shell.study_file, "--set", "data.dataset=mnist", **blocked)
    assert done.returncode == 3
    assert "hpsearch data fetch mnist" in done.stderr
    assert "HPSEARCH_DATA" in done.stderr
    assert optuna.get_all_study_names(shell.database_url) == []


@pytest.mark.parametrize("command", ["export", "report"])
def test_taking_results_from_a_study_without_any_tells_the_counts(command: str, shell: Shell) -> None:
    assert shell.within("create", shell.study_file).returncode == 0
    done = shell.within(command, "small", "-o", "out.json" if command == "export" else "out.html")
    assert done.returncode == 1
    assert "9 waiting, 0 running, 0 complete" in done.stderr
    assert not list(shell.folder.glob("out.*"))


@pytest.mark.parametrize(("command", "option"), [("report", "-o"), ("export", "--model")])
def test_a_file_is_not_written_to_stdout(command: str, option: str, shell: Shell) -> None:
    done = shell.within(command, "small", option, "-")
    assert done.returncode == 2
    assert "this cannot be written to stdout" in done.stderr
    assert not (shell.folder / "-").exists()


def shell_trials(shell: Shell) -> list[optuna.trial.FrozenTrial]:
    """The study's trials, or none while the study is not there yet."""
    try:
        return shell.study().trials
    except KeyError:
        return []


def _is_zombie(pid: int) -> bool:
    try:
        return " Z " in Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError:  # reaped meanwhile
        return False


def test_empty_variables_are_as_good_as_none(
    database_url: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """`HPSEARCH_LOG_LEVEL= hpsearch status`, and each other name that our sources know."""
    sources = "".join(path.read_text() for path in (ROOT / "hpsearch").rglob("*.py"))
    names = set(re.findall(r"\bHPSEARCH_[A-Z_]*[A-Z]\b", sources)) - {"HPSEARCH_STORAGE", "HPSEARCH_HOME"}
    assert len(names) > 15
    for name in names:
        monkeypatch.setenv(name, "")
    monkeypatch.setenv("HPSEARCH_STORAGE", database_url)
    assert run_command_line(["create", str(ROOT / "studies" / "quickstart.toml"), "--set", "data.dataset=digits"]) == 0
    assert run_command_line(["status"]) == 0
    assert "quickstart" in capsys.readouterr().out
