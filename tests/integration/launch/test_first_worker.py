"""The first worker of a launch prepares the study for a launcher that never loads torch, and then trains it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hpsearch.errors import DataError, DefinitionMismatchError, InputError
from hpsearch.launch.first_worker import FirstWorker
from hpsearch.launch.options import Launch, LaunchOptions, check_launch
from hpsearch.launch.worker_command import WorkersFailedError
from hpsearch.store.connection.database import Database
from hpsearch.store.progress import is_finished
from hpsearch.study.definition import StudyDefinition
from hpsearch.study.study_file import parse_definition
from hpsearch.worker.options import WorkerOptions

STUDY: dict[str, Any] = {
    "name": "small",
    "data": {"dataset": "digits", "train_samples": 200},
    "model": {"family": "logistic"},
    "training": {"batch_size": 50, "max_epochs": 1},
    "search": {"learning_rate": [0.1, 0.01]},
}
COMMAND = """
import json, sys
from hpsearch.cli.main import run_command_line
code = run_command_line(sys.argv[2:])
print(json.dumps([code, [name for name in sys.argv[1].split() if name in sys.modules]]), file=sys.__stderr__)
"""


def definition(**changes: Any) -> StudyDefinition:
    return parse_definition({**STUDY, **changes}, source="test")


@pytest.fixture
def launch(tables_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Launch:
    monkeypatch.setenv("HPSEARCH_HOME", str(tmp_path))
    worker = WorkerOptions(device="cpu", lanes=1, artifacts=str(tmp_path / "artifacts"))
    return check_launch(LaunchOptions(storage=tables_url, worker=worker))


def test_it_prepares_the_study_and_trains_it(launch: Launch, database: Database) -> None:
    with launch.first_worker("small") as first:
        registration = first.prepare(definition(), None)
        assert (registration.is_new, registration.num_points, registration.changes) == (True, 2, ())
        assert first.process.wait(120) == 0
    assert is_finished(database, registration.study)
    with launch.first_worker("small") as first:
        wider = first.prepare(definition(search={"learning_rate": [0.1, 0.01, 0.001]}), None)
    assert (wider.is_new, wider.num_points, wider.num_added) == (False, 3, 1)
    assert wider.changes != ()
    assert first.process.poll() is not None, "the end of the context has ended it"


def test_a_worker_that_only_prepares_leaves(launch: Launch, database: Database) -> None:
    with FirstWorker(launch.command("small"), joins=False) as first:
        registration = first.prepare(definition(), None)
        assert first.process.wait(60) == 0
    assert not is_finished(database, registration.study)


@pytest.mark.parametrize(
    ("changes", "kind", "message", "hint"),
    [
        ({"data": {"dataset": "/nowhere"}}, DataError, "/nowhere", None),
        ({"training": {"batch_size": 5000}}, InputError, "batch_size must be in 1..", None),
        ({"seed": 5}, DefinitionMismatchError, "exists with another definition", "resume it with its own definition"),
    ],
)
def test_what_is_wrong_is_raised_as_if_it_had_been_found_here(
    launch: Launch,
    changes: dict[str, Any],
    kind: type[Exception],
    message: str,
    hint: str | None,
) -> None:
    with FirstWorker(launch.command("small"), joins=False) as first:
        first.prepare(definition(), None)
    with launch.first_worker("small") as first, pytest.raises(kind, match=message) as caught:
        first.prepare(definition(**changes), None)
    assert type(caught.value) is kind
    assert hint is None or hint in str(caught.value.hint)  # type: ignore[attr-defined]


def test_a_worker_that_is_not_needed_leaves_and_has_created_nothing(
    launch: Launch, execute: Callable[..., Any]
) -> None:
    with launch.first_worker("small") as first:
        pass
    assert first.process.returncode == -signal.SIGKILL, "it holds nothing that it could give back"
    assert execute("SELECT * FROM studies") == []


def test_a_worker_that_dies_before_it_has_answered_is_an_error(launch: Launch) -> None:
    with launch.first_worker("small") as first:
        first.process.kill()
        with pytest.raises(WorkersFailedError, match=r"worker 0 died \(signal 9\) before the study") as caught:
            first.prepare(definition(), None)
    assert "small-worker-0.log" in str(caught.value.hint)


# Loaded by no command of a process that does not train.
NEVER = "torch plotly sklearn scipy ray boto3 jinja2 prometheus_client alembic optuna.storages._rdb.models"
# Each takes some hundredths of a second, numpy and Optuna several tenths; `status` shows a study without them.
NOT_FOR_STATUS = (
    "numpy optuna tqdm colorlog wsgiref hpsearch.store.claims hpsearch.store.registration hpsearch.search.narrowing "
    "hpsearch.results.confirmation.comparison"
)


def test_a_launcher_loads_neither_torch_nor_what_draws(tables_url: str, tmp_path: Path) -> None:
    """Nor does `status` load Optuna or numpy: it reads the tables by its own statements."""
    file = tmp_path / "small.toml"
    file.write_text('name = "small"\n[data]\ndataset = "digits"\n[model]\nfamily = "logistic"\n[search]\nseed = [1]\n')
    overrides = ["--set", "training.max_epochs=1", "--device", "cpu", "--artifacts", str(tmp_path / "artifacts")]
    run = ["run", str(file), *overrides]
    views = (["status"], ["status", "small"], ["status", "small", "--json"])
    commands = [(run, NEVER), (run, NEVER), *((view, f"{NEVER} {NOT_FOR_STATUS}") for view in views)]
    for arguments, heavy in commands:
        done = subprocess.run(
            [sys.executable, "-c", COMMAND, heavy, *arguments],
            capture_output=True,
            text=True,
            check=True,
            env={**os.environ, "HPSEARCH_STORAGE": tables_url, "HPSEARCH_HOME": str(tmp_path)},
        )
        assert json.loads(done.stderr.splitlines()[-1]) == [0, []], arguments
