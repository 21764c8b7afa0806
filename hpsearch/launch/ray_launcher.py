"""Workers as Ray actors, for the same Supervisor that manages local processes.

Ray places the actors and recreates those that die with their process or their node. Everything else works as on one
machine: the workers coordinate through the database alone, and the supervisor restarts a worker whose program ends with
an error, a limited number of times.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import sqlalchemy

from hpsearch import environment
from hpsearch.errors import InputError, SurroundingsError
from hpsearch.home import home_folder
from hpsearch.launch.ray_cluster import RayCluster, WorkerShare, check_address, connect
from hpsearch.launch.ray_worker import RayWorker, RayWorkerState
from hpsearch.launch.supervisor import WorkerCommand
from hpsearch.logs import get_logger

_log = get_logger("ray")
_PLACE_SECONDS = 30.0  # how long a worker may wait for a place before a warning is logged
_KILL_SECONDS = 5.0
# Useless for a worker on another node: the storage URL is complete, and the rest describes how `run` itself runs.
_NOT_PASSED_ON = {
    environment.STORAGE_PASSWORD_FILE,
    environment.SUPERVISOR_PID,
    environment.SUPERVISED_WORKERS,
    environment.ON,
}


class RayProcess:
    """An actor and its worker, with the interface of a process. Only `wait` and `kill` wait for the actor."""

    def __init__(self, ray: Any, actor: Any, index: int, needs: str) -> None:
        self._ray = ray
        self._actor = actor
        self._index = index
        self._needs = needs
        self._started = time.monotonic()
        self._is_placed = False
        self._pending: Any = actor.look.remote()
        self.state = RayWorkerState(code=None, last_words="it has not started", log="(none)")

    def poll(self) -> int | None:
        """Return the worker's exit code, or None while it runs, waits for a place, or is created again."""
        if self.state.code is None:
            ready, _ = self._ray.wait([self._pending], timeout=0)
            if ready:
                self._take_in(self._pending)
                self._pending = self._actor.look.remote()
            elif not self._is_placed and time.monotonic() - self._started > _PLACE_SECONDS:
                _log.warning("worker %d still waits for a place in the cluster: %s", self._index, self._needs)
                self._started = time.monotonic()
        return self.state.code

    def send_signal(self, _number: int, /) -> None:
        """Ask the worker to stop. Only SIGTERM is ever sent.

        An actor that has never answered holds no trial yet and is removed.
        """
        if self._is_placed:
            self._actor.terminate.remote()
        else:
            self._end(code=0)

    def wait(self, timeout: float | None = None) -> int:
        """Wait for the worker's end. Raises subprocess.TimeoutExpired."""
        if self.state.code is None and timeout is not None:
            answer = self._actor.wait.remote(timeout)
            ready, _ = self._ray.wait([answer], timeout=timeout + 1.0)  # the actor's own wait ends first
            if ready:
                self._take_in(answer)
        if self.state.code is None:
            raise subprocess.TimeoutExpired("worker", timeout or 0.0)
        return self.state.code

    def kill(self) -> None:
        """Kill the worker, and wait for the actor for at most _KILL_SECONDS."""
        self._ray.wait([self._actor.kill.remote()], timeout=_KILL_SECONDS)
        self._end(code=-9)

    def _take_in(self, answer: Any) -> None:
        """Update the state from an answer. An actor that cannot live at all ends with SurroundingsError's exit code."""
        try:
            self.state = self._ray.get(answer)
            self._is_placed = True
        except (self._ray.exceptions.RayError, ConnectionError) as error:
            words = _last_line(error)
            self.state = RayWorkerState(code=SurroundingsError.exit_code, last_words=words, log="Ray's own")
        if self.state.code is not None:
            self._end(self.state.code)

    def _end(self, code: int) -> None:
        """Release the actor's place in the cluster."""
        self.state = RayWorkerState(code=code, last_words=self.state.last_words, log=self.state.log)
        self._ray.kill(self._actor, no_restart=True)


@dataclass(frozen=True, kw_only=True)
class RayLauncher:
    """Starts workers as actors.

    Args:
        command: how a node starts its worker. Its URL goes to the actors as an argument, which Ray does not show;
            `runtime_env` would show it on Ray's dashboard.
        share: the number of workers and the resources of each.
    """

    cluster: RayCluster
    command: WorkerCommand
    share: WorkerShare
    _processes: dict[int, RayProcess] = field(default_factory=dict)  # the latest process of each worker index

    @property
    def lanes(self) -> str:
        return self.command.lanes

    @property
    def num_workers(self) -> int:
        return self.share.num_workers

    def start(self, index: int) -> RayProcess:
        """Start worker number `index` (0, 1, ...) as an actor, on a node that Ray chooses."""
        ray = self.cluster.ray
        actor = ray.remote(RayWorker).options(
            num_cpus=self.share.num_cpus,
            num_gpus=self.share.num_gpus,
            max_restarts=-1,  # bounded by the point: one that kills its workers is given up
            max_task_retries=-1,
            scheduling_strategy="SPREAD",
        )
        handle = actor.remote(self.command, index, self._environment())
        self._processes[index] = RayProcess(ray, handle, index, f"it needs {self.share.describe()}")
        return self._processes[index]

    def _environment(self) -> dict[str, str]:
        """Return the HPSEARCH_ variables of this process that a worker needs."""
        here = {key: value for key, value in os.environ.items() if key.startswith(environment.PREFIX)}
        if self.cluster.is_this_machine:
            here[environment.HOME] = str(home_folder())  # the embedded PostgreSQL is there
        return {key: value for key, value in here.items() if key not in _NOT_PASSED_ON}

    def last_words(self, index: int) -> str:
        return self._processes[index].state.last_words

    def final_error(self, index: int) -> str:
        """Return the last words.

        A worker's exit code is that of an hpsearch error only if they are its message (ray_worker.py).
        """
        return self.last_words(index)

    def shorten_log(self, index: int) -> None:
        """Does nothing: an actor shortens the log on its own node."""

    def log_file(self, index: int) -> str:
        return self._processes[index].state.log


def check_placement(address: str, device: str) -> None:
    """Raise InputError if the address is not that of a cluster, or a cluster cannot give a worker this device."""
    check_address(address)
    if device not in ("auto", "cpu"):
        raise InputError(f"--device {device} cannot be had with --on {address}", hint="Ray gives each worker its GPU")


@contextlib.contextmanager
def ray_workers(
    address: str, command: WorkerCommand, *, num_workers: int | None, url: sqlalchemy.URL
) -> Iterator[RayLauncher]:
    """Connect to a Ray cluster that can run the study of `command`, and yield its launcher.

    Args:
        num_workers: None: one per GPU of the cluster, or one per node.
        url: of the study's database.
    Raises:
        InputError: Ray is not installed, or the cluster's nodes cannot reach the database.
        SurroundingsError: no cluster answers.
    """
    with connect(address) as cluster:
        cluster.check_reachable(url, is_embedded=command.storage_url is None)
        share = cluster.share(command.options.device, num_workers)
        device = command.options.device if share.num_gpus else "cpu"  # use only GPUs that Ray has assigned
        options = replace(command.options, device=device)
        command = replace(command, options=options, num_workers=share.num_workers, threads=share.num_cpus)
        yield RayLauncher(cluster=cluster, command=command, share=share)


def _last_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
