"""Workers on a Ray cluster, as far as no Ray is needed: the actor, what nodes offer, and what they cannot reach."""

from __future__ import annotations

import os
import platform
import signal
import subprocess
import sys
import types
from dataclasses import dataclass
from pathlib import Path

import pytest
from sqlalchemy import make_url

from hpsearch.errors import ArtifactError, InputError
from hpsearch.launch.ray_launcher import RayNode, check_placement, check_reachable, connect, is_this_machine, share_of
from hpsearch.launch.ray_worker import RayWorker
from hpsearch.launch.worker_command import WorkerCommand
from hpsearch.study.program import CommandSettings
from hpsearch.worker.options import WorkerOptions


def nodes(*resources: tuple[int, int], host: str = "elsewhere", address: str = "192.0.2.1") -> list[RayNode]:
    """Nodes of so many CPUs and GPUs, as `ray.nodes()` describes them."""
    return [
        {"NodeManagerHostname": host, "NodeManagerAddress": address, "Resources": {"CPU": cpus, "GPU": gpus}}
        for cpus, gpus in resources
    ]


HERE = nodes((1, 0), host=platform.node(), address="127.0.0.1")
THERE = nodes((1, 0))


@pytest.mark.parametrize(
    ("resources", "device", "wanted", "expected"),
    [
        ([(8, 4), (8, 2), (2, 0)], "auto", None, (6, 1, 1)),  # a GPU each
        ([(8, 4)], "auto", 8, (8, 1, 1)),  # four will wait for their place
        ([(8, 4), (6, 0)], "cpu", None, (2, 6, 0)),  # one per node, as large as the smaller one allows
        ([(4, 0), (4, 0)], "auto", 4, (4, 2, 0)),
        ([(3, 0), (3, 0)], "auto", 3, (3, 1, 0)),  # two processors each would leave no place for the third
        ([(0, 0), (2, 0)], "auto", None, (1, 2, 0)),  # a head without processors takes none
        ([(2, 0)], "auto", 5, (5, 1, 0)),
        ([(0, 0)], "auto", None, (1, 1, 0)),  # a cluster that grows when it is asked
    ],
)
def test_each_worker_gets_a_gpu_or_its_part_of_the_processors(
    resources: list[tuple[int, int]], device: str, wanted: int | None, expected: tuple[int, int, int]
) -> None:
    assert share_of(nodes(*resources), device, wanted) == expected


@pytest.mark.parametrize(
    ("resources", "keys", "expected"),
    [
        ([(8, 4), (8, 3)], {"gpus": 2}, (3, 1, 2)),  # the third GPU of the second node is left
        ([(32, 4)], {"per_gpu": 3, "cpus": 2}, (4, 6, 1)),
        ([(8, 1)], {"cpus": 16}, (1, 8, 1)),  # what it would like, and what the node has
        ([(8, 4), (64, 4)], {"cpus": 16}, (8, 2, 1)),
        ([(8, 4), (6, 0)], {"gpus": 0, "cpus": 2}, (2, 6, 0)),
        ([(8, 0)], {}, (1, 8, 0)),
    ],
)
def test_a_worker_of_programs_gets_the_gpus_of_a_trial(
    resources: list[tuple[int, int]], keys: dict[str, int], expected: tuple[int, int, int]
) -> None:
    program = CommandSettings(run=("train",), **keys)
    assert share_of(nodes(*resources), "auto", None, program) == expected


@pytest.mark.parametrize("resources", [[(8, 1), (8, 1)], [(8, 0)]])
def test_a_cluster_without_the_gpus_of_a_trial_is_refused(resources: list[tuple[int, int]]) -> None:
    with pytest.raises(InputError, match="a trial needs 2 GPUs, and no node of the Ray cluster has so many"):
        share_of(nodes(*resources), "auto", None, CommandSettings(run=("train",), gpus=2))


def test_a_cluster_is_this_machine_only_if_all_its_nodes_are() -> None:
    assert is_this_machine(HERE)
    assert not is_this_machine(THERE)
    assert not is_this_machine(HERE + THERE)
    assert not is_this_machine(nodes((1, 0), host=platform.node()))  # another machine of the same name


@pytest.mark.parametrize(
    "url",
    ["postgresql:///db", "postgresql:///db?host=/tmp", "postgresql://localhost/db", "postgresql://u@127.0.0.1:5432/db"],
)
def test_a_database_of_this_machine_is_refused_where_workers_are_on_others(url: str) -> None:
    check_reachable(HERE, make_url(url), is_embedded=False)
    with pytest.raises(InputError, match=r"the nodes of the Ray cluster \(elsewhere\) cannot reach a PostgreSQL at "):
        check_reachable(THERE, make_url(url), is_embedded=False)


def test_the_embedded_database_serves_this_machine_only() -> None:
    url = make_url("postgresql:///db?host=/tmp")
    check_reachable(HERE, url, is_embedded=True)
    with pytest.raises(InputError, match="cannot reach the embedded PostgreSQL") as caught:
        check_reachable(THERE, url, is_embedded=True)
    assert "--storage" in str(caught.value.hint)


def test_a_server_with_a_name_is_believed_to_be_reachable() -> None:
    check_reachable(THERE, make_url("postgresql://u:p@db.example:5432/studies"), is_embedded=False)


@pytest.mark.parametrize("address", ["ray", "ray://head:10001", "ray://10.0.0.1:10001"])
def test_an_address_is_ray_or_a_client_address(address: str) -> None:
    check_placement(address, "auto")


@pytest.mark.parametrize("address", ["", "slurm", "ray://head", "ray://:10001", "http://head:8265", "RAY"])
def test_anything_else_is_no_address(address: str) -> None:
    with pytest.raises(InputError, match="--on must be ray or ray://HOST:PORT, got"):
        check_placement(address, "auto")


def test_ray_chooses_the_gpu_itself() -> None:
    check_placement("ray", "cpu")
    with pytest.raises(InputError, match="--device cuda:1 cannot be used with --on ray"):
        check_placement("ray", "cuda:1")


@pytest.mark.parametrize(("address", "missing"), [("ray", "ray"), ("ray://127.0.0.1:10001", "grpc")])
def test_the_package_that_is_missing_is_named(address: str, missing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", types.ModuleType("ray"))
    monkeypatch.setitem(sys.modules, missing, None)  # as if it were not installed
    message = f"--on {address} needs {missing}, which is not installed"
    with pytest.raises(InputError, match=message) as caught, connect(address):
        pytest.fail("connected")
    assert caught.value.hint == "pip install 'hpsearch[ray]'"


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


def worker(folder: Path, program: str, *, place: str | None = None, **environment: str) -> RayWorker:
    command = FakeCommand(
        study_name="s",
        storage_url=None,
        options=WorkerOptions(device="cpu", lanes=1, artifacts=str(folder)),
        num_workers=1,
        threads=1,
        log_folder=Path("/of/another/machine"),
        program=program,
    )
    return RayWorker(command, 0, environment, place)


FOR_EVER = "import signal; signal.pause()"


def test_a_worker_that_ended_tells_its_code_its_error_and_where_its_log_is(tmp_path: Path) -> None:
    end = worker(tmp_path, "print('error: the disk is full'); raise SystemExit(3)").wait_for_end()
    assert (end.code, end.last_words, end.final_error) == (3, "the disk is full", "the disk is full")
    assert end.log == f"{platform.node()}:{tmp_path}/logs/s-worker-0.log"


def test_an_exit_code_of_the_users_code_comes_without_an_error(tmp_path: Path) -> None:
    end = worker(tmp_path, "print('bye'); raise SystemExit(2)").wait_for_end()
    assert (end.code, end.last_words, end.final_error) == (2, "bye", None)


def test_a_signal_reaches_the_worker(tmp_path: Path) -> None:
    running = worker(tmp_path, FOR_EVER)
    running.send_signal(signal.SIGTERM)
    assert running.wait_for_end().code == -signal.SIGTERM
    running.send_signal(signal.SIGTERM)  # nothing is there any more


def test_variables_of_where_run_was_started_win_over_the_nodes_own(tmp_path: Path) -> None:
    end = worker(tmp_path, "pass", HPSEARCH_HOME=str(tmp_path / "other")).wait_for_end()
    assert str(tmp_path / "other" / "logs") in end.log


def test_a_node_that_cannot_start_a_worker_says_why(tmp_path: Path) -> None:
    (tmp_path / "logs").write_text("no folder")
    refused = worker(tmp_path, "pass")
    end = refused.wait_for_end()
    assert end.code == ArtifactError.exit_code
    assert "cannot write the workers' logs into" in str(end.final_error)
    refused.send_signal(signal.SIGTERM)


def test_a_node_without_the_folder_of_a_program_says_so(tmp_path: Path) -> None:
    end = worker(tmp_path, "pass", place=str(tmp_path / "code")).wait_for_end()
    assert end.code == 3
    assert f"there is no folder {tmp_path / 'code'}" in str(end.final_error)
