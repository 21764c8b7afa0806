"""`run --on ray` on a real Ray cluster of several nodes on this machine, with nodes and actors that are killed."""

from __future__ import annotations

import contextlib
import gc
import json
import logging
import os
import secrets
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import optuna
import psutil
import pytest
from optuna.trial import FrozenTrial, TrialState

from hpsearch.errors import InputError, SurroundingsError
from hpsearch.launch.ray_launcher import connect, ray_workers
from hpsearch.launch.supervisor import Supervisor
from hpsearch.launch.worker_command import WorkerCommand, WorkersFailedError
from hpsearch.store.connection.database import open_database
from hpsearch.store.progress import Progress
from hpsearch.store.rows.counts import PointCounts
from hpsearch.study.study_file import parse_definition
from hpsearch.worker.options import WorkerOptions

pytestmark = [
    pytest.mark.long,
    pytest.mark.filterwarnings(
        # Ray's own, of its cluster for tests and its driver: files and processes that it leaves to the process's end.
        "ignore:unclosed file:ResourceWarning",
        "ignore:subprocess .* is still running:ResourceWarning",
    ),
]
NUM_POINTS = 4
NUM_EPOCHS = 3
# Trials do not end before the test creates the file `gate`. The check of a network uses 11 images, a minibatch 257.
NETWORK = """
import time
from pathlib import Path

from torch import nn


class Gated(nn.Module):
    def __init__(self, *, image_shape, num_classes, gate):
        super().__init__()
        self.scores = nn.Linear(image_shape[0] * image_shape[1], num_classes)
        self.gate = gate

    def forward(self, images):
        while len(images) > 100 and not Path(self.gate).exists():
            time.sleep(0.05)
        return self.scores(images.flatten(start_dim=1))
"""
STUDY = f"""
[data]
dataset = "digits"
[model]
family = "gated:Gated"
[training]
batch_size = 257
max_epochs = {NUM_EPOCHS}
[search]
learning_rate = {[round(0.01 * (index + 1), 2) for index in range(NUM_POINTS)]}
[stopping]
rule = "none"
"""


@pytest.fixture(scope="module", autouse=True)
def _nothing_of_ray_stays_in_this_process() -> Iterator[None]:
    """Ray adds folders to `sys.path` and an attribute to all log records, which later tests would see."""
    factory, path = logging.getLogRecordFactory(), list(sys.path)
    yield
    logging.setLogRecordFactory(factory)
    sys.path[:] = path


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A head that takes no workers, and two nodes for one each."""
    token = tmp_path_factory.mktemp("ray") / "token"  # of its own: Ray would take, or make, one in the user's home
    token.write_text(secrets.token_hex(32))
    (token.parent / "gated.py").write_text(NETWORK)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_AUTH_MODE", "token")
        patch.setenv("RAY_AUTH_TOKEN_PATH", str(token))
        patch.setenv("PYTHONPATH", str(token.parent))
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        from ray._raylet import Config  # slow, and of an extra
        from ray.cluster_utils import Cluster

        # Ray remembers how it authenticates. If this is the second cluster of this process, it was asked in between.
        Config.initialize("{}")

        quick = {
            "health_check_initial_delay_ms": 0,
            "health_check_period_ms": 1000,
            "health_check_failure_threshold": 3,
        }
        head = {"num_cpus": 0, "include_dashboard": False, "_system_config": quick}  # a lost node is noticed soon
        try:
            cluster = Cluster(initialize_head=True, head_node_args=head)
        except RuntimeError as error:  # on a busy machine Ray's own patience for its head may end
            if "Failed to start GCS" not in str(error):
                raise
            cluster = Cluster(initialize_head=True, head_node_args=head)
        for _ in range(2):
            cluster.add_node(num_cpus=1)
        yield cluster
        cluster.shutdown()
        del cluster
        gc.collect()  # closes what Ray left open where its warnings are ignored, and not at the session's end


class Run:
    """`hpsearch run --on ray` of a study of its own in a process of its own."""

    def __init__(self, folder: Path, database_url: str, address: str, *, lanes: str = "1") -> None:
        self.name = f"on-ray-{uuid.uuid4().hex[:8]}"
        self.database_url = database_url
        self.gate = folder / "gate"
        study_file = folder / "study.toml"
        study_file.write_text(f'name = "{self.name}"\n{STUDY}[model.options]\ngate = "{self.gate}"\n')
        self.error_file = folder / "stderr"
        with self.error_file.open("wb") as errors:
            self.process = subprocess.Popen(
                [
                    sys.executable,
                    "-m",
                    "hpsearch",
                    "run",
                    study_file,
                    "--on",
                    "ray",
                    "--workers",
                    "2",
                    "--lanes",
                    lanes,
                ],
                env={
                    **os.environ,
                    "HPSEARCH_STORAGE": database_url,
                    "HPSEARCH_HOME": str(folder / "home"),
                    "RAY_ADDRESS": address,
                },
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
            )

    def wait_until(self, condition: Callable[[], Any], what: str) -> None:
        deadline = time.monotonic() + 420  # on a busy machine Ray takes minutes to notice a lost node
        while not condition():
            assert self.process.poll() is None, f"{what}: ended before: {self.error_file.read_text()}"
            assert time.monotonic() < deadline, f"{what}: {self.error_file.read_text()}"
            time.sleep(0.3)

    def workers(self) -> dict[int, int]:
        """Process ids of workers -> those of their actors."""
        found = {}
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                if process.cmdline()[3:5] == ["worker", self.name]:
                    found[process.pid] = process.ppid()
        return found

    def wait_for_workers(self, known: set[int]) -> dict[int, int]:
        """Wait until two workers train that are not known yet."""
        self.wait_until(lambda: len(self.workers().keys() - known) == 2, "two workers have started")
        self.wait_until(lambda: len(self.trials(TrialState.RUNNING)) == 2, "both workers train")
        return self.workers()

    def trials(self, *states: TrialState) -> list[FrozenTrial]:
        try:
            study = optuna.load_study(study_name=self.name, storage=self.database_url)
        except KeyError:  # not created yet
            return []
        return study.get_trials(states=states)

    def finish(self) -> tuple[int, str]:
        out, _ = self.process.communicate(timeout=240)
        return self.process.returncode, out


@pytest.fixture
def run(tmp_path: Path, database_url: str, cluster: Any) -> Iterator[Run]:
    run = Run(tmp_path, database_url, cluster.address)
    yield run
    if run.process.poll() is None:
        run.process.kill()
        run.process.communicate(timeout=240)


def raylet_of(worker: int) -> int:
    """The process that stands for the node that a worker runs on."""
    return next(parent.pid for parent in psutil.Process(worker).parents() if parent.name() == "raylet")


def node_of(cluster: Any, worker: int) -> Any:
    raylet = raylet_of(worker)
    return next(
        node
        for node in cluster.worker_nodes
        if raylet in [info.process.pid for infos in node.all_processes.values() for info in infos]
    )


@pytest.mark.timeout(1200)
def test_every_point_counts_once_though_an_actor_is_killed_and_a_node_is_lost(run: Run, cluster: Any) -> None:
    first = run.wait_for_workers(set())
    assert len({raylet_of(worker) for worker in first}) == 2  # spread

    (killed, actor), (lost, _) = first.items()
    lost_node, spare = node_of(cluster, lost), cluster.add_node(num_cpus=1)
    os.kill(actor, signal.SIGKILL)
    cluster.remove_node(lost_node, allow_graceful=False)
    run.wait_until(lambda: not psutil.pid_exists(killed), "a worker ends with its actor")
    second = run.wait_for_workers(set(first))
    assert spare in [node_of(cluster, worker) for worker in second]

    run.gate.touch()
    code, out = run.finish()
    assert code == 0, run.error_file.read_text()
    assert f"{NUM_POINTS} of {NUM_POINTS} points done" in out
    counted = run.trials(TrialState.COMPLETE)
    assert sorted(trial.user_attrs["point"] for trial in counted) == list(range(NUM_POINTS))
    assert all(len(trial.intermediate_values) == NUM_EPOCHS for trial in counted)


def test_the_lines_about_lanes_come_from_the_nodes(tmp_path: Path, database_url: str, cluster: Any) -> None:
    run = Run(tmp_path, database_url, cluster.address, lanes="auto")
    try:
        told = run.error_file.read_text
        run.wait_until(lambda: "worker 0: " in told() and "worker 1: " in told(), "both workers tell their lanes")
        run.gate.touch()
        code, _ = run.finish()
    finally:
        if run.process.poll() is None:
            run.process.kill()
            run.process.communicate(timeout=240)
    assert code == 0, told()
    lines = [line for line in told().splitlines() if line.startswith("worker ")]
    assert all(" lane" in line for line in lines)


def test_sigterm_gives_the_trials_back_and_leaves_no_worker(run: Run) -> None:
    workers = run.wait_for_workers(set())
    run.process.send_signal(signal.SIGTERM)
    code, _ = run.finish()
    assert code == 130
    assert "the same command resumes the study" in run.error_file.read_text()
    assert not [worker for worker in workers if psutil.pid_exists(worker)]
    assert run.trials(TrialState.RUNNING) == []
    # Given back by the workers, and not reaped from dead ones by others.
    logs = "".join(log.read_text() for log in (run.error_file.parent / "home" / "logs").iterdir())
    assert logs.count("given back") == 2


def command(folder: Path, url: str) -> WorkerCommand:
    return WorkerCommand(
        study_name="nobody-created-it",
        storage_url=url,
        options=WorkerOptions(device="cpu", lanes=1, artifacts=str(folder)),
        num_workers=1,
        threads=1,
        log_folder=folder,
    )


def test_a_worker_that_cannot_work_ends_the_run_with_its_error_and_its_code(
    cluster: Any, database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", cluster.address)
    database = open_database(database_url)
    study: Any = type("Study", (), {"study_id": 1, "definition": parse_definition({"name": "s"}, source="test")})
    counts = PointCounts(waiting=1)
    progress = Progress(counts=counts, epochs=0, epochs_of_counted=0, best_value=None, best_trial=None, running=())
    monkeypatch.setattr("hpsearch.launch.supervisor.read_progress", lambda *_: progress)
    handler = signal.getsignal(signal.SIGTERM)
    with ray_workers("ray", command(tmp_path, database_url), num_workers=1, url=database.url) as launcher:
        supervisor = Supervisor(database=database, study=study, command=launcher, num_workers=1)
        with pytest.raises(WorkersFailedError, match=r"worker 0 cannot work: .*nobody-created-it") as caught:
            supervisor.run(lambda _: None)
    assert caught.value.exit_code == InputError.exit_code
    assert "nobody-created-it-worker-0.log" in str(caught.value.hint)
    assert signal.getsignal(signal.SIGTERM) is handler
    database.close()


def test_programs_run_on_the_nodes_with_the_consent_and_in_the_folder_of_the_run(
    database_url: str, tmp_path: Path, cluster: Any
) -> None:
    """The script is found by its relative path, and no node was started with HPSEARCH_COMMANDS."""
    (tmp_path / "script.sh").write_text('echo "value $1"')
    (tmp_path / "study.toml").write_text(
        'name = "programs-on-ray"\n[command]\nrun = ["sh", "script.sh", "{size}"]\npattern = "value ([0-9]+)"\n'
        "gpus = 0\n[search]\nsize = [1, 2, 3, 4]\n"
    )
    done = subprocess.run(
        [sys.executable, "-m", "hpsearch", "run", "study.toml", "--on", "ray", "--workers", "2", "--json"],
        env={
            **os.environ,
            "HPSEARCH_STORAGE": database_url,
            "HPSEARCH_HOME": str(tmp_path / "home"),
            "RAY_ADDRESS": cluster.address,
        },
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["points"]["complete"] == 4


def test_a_cluster_that_does_not_answer_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    with pytest.raises(SurroundingsError, match=r"no Ray cluster answers at 127.0.0.1:1"), connect("ray"):
        pytest.fail("connected")
