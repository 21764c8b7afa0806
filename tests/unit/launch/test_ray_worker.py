"""A worker inside an actor, without Ray: started, looked at, ended."""

from __future__ import annotations

import os
import platform
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from hpsearch.errors import ArtifactError
from hpsearch.launch.ray_worker import RayWorker
from hpsearch.launch.supervisor import WorkerCommand
from hpsearch.worker.options import WorkerOptions


@dataclass(frozen=True, kw_only=True)
class FakeCommand(WorkerCommand):
    """Starts `program` in place of a worker."""

    program: str

    def start(self, index: int) -> subprocess.Popen[bytes]:
        with self._open_log(index) as log:
            return subprocess.Popen([sys.executable, "-S", "-c", self.program], stdout=log, stderr=log)


@pytest.fixture(autouse=True)
def _variables_are_put_back(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """An actor has a process of its own, and changes its environment."""
    monkeypatch.setattr(os, "environ", {**os.environ, "HPSEARCH_HOME": str(tmp_path)})


def worker(folder: Path, program: str, **environment: str) -> RayWorker:
    command = FakeCommand(
        study_name="s",
        storage_url=None,
        options=WorkerOptions(device="cpu", lanes=1, artifacts=str(folder)),
        num_workers=1,
        threads=1,
        log_folder=Path("/of/another/machine"),
        program=program,
    )
    return RayWorker(command, 0, environment)


FOR_EVER = "import signal; signal.pause()"


def test_a_worker_that_ended_tells_its_code_its_last_words_and_where_its_log_is(tmp_path: Path) -> None:
    state = worker(tmp_path, "print('error: the disk is full'); raise SystemExit(3)").wait(240)
    assert (state.code, state.last_words) == (3, "the disk is full")
    assert state.log == f"{platform.node()}:{tmp_path}/logs/s-worker-0.log"


def test_a_worker_that_runs_has_no_code_and_ends_when_it_is_asked_to(tmp_path: Path) -> None:
    running = worker(tmp_path, FOR_EVER)
    assert running.look().code is None
    assert running.wait(0.01).code is None
    running.terminate()
    assert running.wait(240).code == -signal.SIGTERM
    running.terminate()  # nothing is there any more


def test_a_worker_that_does_not_listen_is_killed(tmp_path: Path) -> None:
    deaf = worker(tmp_path, f"import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); {FOR_EVER}")
    deaf.kill()
    assert deaf.look().code == -signal.SIGKILL


def test_variables_of_where_run_was_started_win_over_the_nodes_own(tmp_path: Path) -> None:
    state = worker(tmp_path, "pass", HPSEARCH_HOME=str(tmp_path / "other")).wait(240)
    assert str(tmp_path / "other" / "logs") in state.log


def test_a_node_that_cannot_start_a_worker_says_why(tmp_path: Path) -> None:
    (tmp_path / "logs").write_text("no folder")
    refused = worker(tmp_path, "pass")
    state = refused.wait(240)
    assert state.code == ArtifactError.exit_code
    assert "cannot write the workers' logs into" in state.last_words
    refused.terminate()
    refused.kill()
