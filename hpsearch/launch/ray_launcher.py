"""Workers on a Ray cluster, for the same Supervisor that manages local processes.

Each worker is an actor (ray_worker.py) that runs an ordinary worker process on its node. Ray places the actors, and
creates an actor again, possibly on another node, when its process or its node dies; the points that its worker held
become free when their leases expire. Everything else works as on one machine: the workers coordinate through the
database alone, and the supervisor restarts a worker whose program ends with an error, a limited number of times.

Ray is an optional dependency, imported only when a cluster is requested.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import platform
import re
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import psutil
import sqlalchemy

from hpsearch import environment
from hpsearch.errors import InputError, SurroundingsError
from hpsearch.home import home_folder
from hpsearch.launch.ray_worker import RayWorker, WorkerEnd
from hpsearch.launch.worker_command import WorkerCommand
from hpsearch.logs import get_logger
from hpsearch.study.program import ProgramSettings
from hpsearch.wording import first_line

_log = get_logger("ray")
_ADDRESS = re.compile(r"ray|ray://[^/\s]+:\d+")
RayNode = Mapping[str, Any]  # an element of `ray.nodes()`
_LOOPBACK = ("localhost", "127.0.0.1", "::1")
_LOCAL_OBJECT_STORE_BYTES = 128 * 2**20  # hpsearch stores nothing in it; Ray would take 30 % of the memory
_ANSWER_SECONDS = 10.0
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
    """A worker in its actor, with the interface of a process.

    Args:
        actor: a handle of a RayWorker.
        name: of the worker and what it needs, for the log.
    """

    def __init__(self, ray: Any, actor: Any, name: str) -> None:
        self._ray = ray
        self._actor = actor
        self._name = name
        self._placed = actor.is_placed.remote()
        self._ended = actor.wait_for_end.remote()
        self._lane_changes = actor.lane_changes.remote()
        self._waits_since = time.monotonic()
        self.end: WorkerEnd | None = None

    def poll(self) -> int | None:
        """Return the worker's exit code, or None while it runs, waits for a place, or is created again."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            return self.wait(timeout=0.0)
        if time.monotonic() - self._waits_since > _PLACE_SECONDS and not self._is_ready(self._placed):
            _log.warning("%s still waits for a place in the cluster", self._name)
            self._waits_since = time.monotonic()
        return None

    def wait(self, timeout: float | None = None) -> int:
        """Wait for the worker's end. Raises subprocess.TimeoutExpired."""
        if self.end is None:
            if not self._is_ready(self._ended, timeout):
                raise subprocess.TimeoutExpired(self._name, timeout or 0.0)
            try:
                self._finish(self._ray.get(self._ended))
            except (self._ray.exceptions.RayError, ConnectionError) as error:  # the actor cannot live at all
                words = str(error).strip().splitlines() or [type(error).__name__]
                code = SurroundingsError.exit_code
                self._finish(WorkerEnd(code=code, last_words=words[-1], final_error=words[-1], log="Ray's own"))
        assert self.end is not None
        return self.end.code

    def lane_changes(self) -> list[str]:
        """Return what the worker has logged about its lanes, if its node has answered the last call's question by now.

        What it logs last, when it ends, is not fetched any more.
        """
        try:
            if self.end is not None or not self._is_ready(self._lane_changes):
                return []
            answered, self._lane_changes = self._lane_changes, self._actor.lane_changes.remote()
            return list(self._ray.get(answered))
        except (self._ray.exceptions.RayError, ConnectionError):  # `poll` tells what has become of the actor
            return []

    def send_signal(self, number: int, /) -> None:
        """Send a signal to the worker; remove an actor that has no place yet, and thus no worker."""
        if self._is_ready(self._placed):
            self._actor.send_signal.remote(number)
        else:
            self._finish(WorkerEnd(code=0, last_words="it has not started"))

    def kill(self) -> None:
        """Kill the worker. Waits for an actor that does not answer for at most _KILL_SECONDS."""
        self._is_ready(self._actor.send_signal.remote(signal.SIGKILL), _KILL_SECONDS)
        self._finish(WorkerEnd(code=-signal.SIGKILL, last_words="it was killed"))

    def _is_ready(self, answer: Any, timeout: float | None = 0.0) -> bool:
        ready, _ = self._ray.wait([answer], timeout=timeout)
        return bool(ready)

    def _finish(self, end: WorkerEnd) -> None:
        """Note the worker's end, and release the actor's place in the cluster."""
        self.end = end
        self._ray.kill(self._actor, no_restart=True)


@dataclass(frozen=True, kw_only=True)
class RayLauncher:
    """Starts workers as actors.

    Args:
        ray: Ray's module.
        command: how a node starts its worker; each worker requests its `threads` as CPUs. Its URL goes to the actors as
            an argument, which Ray does not show; `runtime_env` would show it on Ray's dashboard.
        num_gpus: GPUs that each worker requests.
        variables: HPSEARCH_ variables for the workers.
    """

    ray: Any
    command: WorkerCommand
    num_gpus: int
    variables: Mapping[str, str]
    _processes: dict[int, RayProcess] = field(default_factory=dict)  # the latest process of each worker index

    def start(self, index: int) -> RayProcess:
        """Start worker number `index` (0, 1, ...) as an actor, on a node that Ray chooses."""
        actor_class = self.ray.remote(RayWorker).options(
            num_cpus=self.command.threads,
            num_gpus=self.num_gpus,
            max_concurrency=3,  # one call waits for the worker's end, others send it a signal and read its log
            max_restarts=-1,  # bounded by the point: one that kills its workers is given up
            max_task_retries=-1,
            scheduling_strategy="SPREAD",
        )
        place = None if self.command.consent is None else str(Path.cwd())
        actor = actor_class.remote(self.command, index, self.variables, place)
        name = f"worker {index} ({self.command.threads} CPUs, {self.num_gpus} GPUs)"
        self._processes[index] = RayProcess(self.ray, actor, name)
        return self._processes[index]

    def last_words(self, index: int) -> str:
        return self._end(index).last_words

    def final_error(self, index: int) -> str | None:
        return self._end(index).final_error

    def log_file(self, index: int) -> str:
        return self._end(index).log

    def lane_changes(self, index: int) -> list[str]:
        return self._processes[index].lane_changes()

    def shorten_log(self, index: int) -> None:
        """Does nothing: an actor shortens the log on its own node."""

    def _end(self, index: int) -> WorkerEnd:
        end = self._processes[index].end
        assert end is not None  # asked only about workers that have ended
        return end


def check_placement(address: str, device: str) -> None:
    """Raise InputError if the address is not that of a cluster, or a cluster cannot give a worker this device."""
    if not _ADDRESS.fullmatch(address):
        raise InputError(
            f"--on must be ray or ray://HOST:PORT, got {address!r}",
            hint="ray means the cluster of RAY_ADDRESS, one that runs on this machine, or a new one",
        )
    if device not in ("auto", "cpu"):
        raise InputError(f"--device {device} cannot be used with --on {address}", hint="Ray gives each worker its GPU")


@contextlib.contextmanager
def ray_workers(
    address: str,
    command: WorkerCommand,
    *,
    num_workers: int | None,
    url: sqlalchemy.URL,
    program: ProgramSettings | None = None,
) -> Iterator[RayLauncher]:
    """Connect to a Ray cluster that can run the study of `command`, and yield its launcher.

    Args:
        num_workers: None: one per GPU of the cluster (of a program: per number of GPUs that a trial needs), or one per
            node.
        url: of the study's database.
        program: what trials run; None: hpsearch's own networks.
    Raises:
        InputError: Ray is not installed, the cluster's nodes cannot reach the database, or none has as many GPUs as a
            trial needs.
        SurroundingsError: no cluster answers.
    """
    with connect(address) as ray:
        nodes = [node for node in ray.nodes() if node["Alive"]]
        check_reachable(nodes, url, is_embedded=command.storage_url is None)
        options = command.options
        number, num_cpus, num_gpus = share_of(nodes, options.device, num_workers, program, options.lanes)
        options = replace(options, device=options.device if num_gpus else "cpu")  # use only GPUs that Ray has assigned
        if program is not None and not num_gpus and options.lanes is None:
            options = replace(options, lanes=max(1, num_cpus // program.cpus))
        command = replace(command, options=options, num_workers=number, threads=num_cpus)
        yield RayLauncher(ray=ray, command=command, num_gpus=num_gpus, variables=_variables(nodes))


def check_reachable(nodes: Sequence[RayNode], url: sqlalchemy.URL, *, is_embedded: bool) -> None:
    """Refuse a database that workers on other machines cannot reach.

    Raises:
        InputError: the embedded one, a local socket or a loopback address, while the cluster has other machines.
    """
    host = str(url.host or url.query.get("host") or "a local socket")
    is_local = is_embedded or host in ("a local socket", *_LOOPBACK) or host.startswith("/")
    if is_local and not is_this_machine(nodes):
        what = "the embedded PostgreSQL" if is_embedded else f"a PostgreSQL at {host}"
        hosts = ", ".join(sorted({node["NodeManagerHostname"] for node in nodes}))
        raise InputError(
            f"the nodes of the Ray cluster ({hosts}) cannot reach {what}",
            hint="name a server that they reach: --storage postgresql://USER:PASSWORD@HOST:5432/DATABASE",
        )


def is_this_machine(nodes: Sequence[RayNode]) -> bool:
    """Whether every node is this machine: only then can workers use its files and its sockets."""
    own = {found.address for addresses in psutil.net_if_addrs().values() for found in addresses}
    return all(n["NodeManagerHostname"] == platform.node() and n["NodeManagerAddress"] in own for n in nodes)


def share_of(
    nodes: Sequence[RayNode],
    device: str,
    num_workers: int | None,
    program: ProgramSettings | None = None,
    lanes: int | None = None,
) -> tuple[int, int, int]:
    """Return the number of workers, and the CPUs and GPUs of each: GPUs if there are any, else its part of the CPUs.

    Args:
        device: `auto` or `cpu`.
        num_workers: None: one per GPU, or per number of GPUs that a trial of a program needs, or one per node with
            processors.
        program: what trials run; its `cpus` of all lanes are requested, as far as nodes have them for all their GPUs.
        lanes: of each worker; None: `per_gpu`.
    Raises:
        InputError: no node has as many GPUs as a trial needs.
    """
    gpus, cpus = ([int(node["Resources"].get(kind, 0)) for node in nodes] for kind in ("GPU", "CPU"))
    wanted = 1 if program is None or program.gpus is None else program.gpus
    if device == "auto" and wanted and (any(gpus) or (program is not None and program.gpus)):
        places = [number // wanted for number in gpus]
        if not any(places):
            raise InputError(
                f"a trial needs {wanted} GPUs, and no node of the Ray cluster has so many",
                hint=f"without GPUs: --set {'command' if program is None else program.section}.gpus=0",
            )
        own = 1 if program is None else program.cpus * (lanes or program.per_gpu)
        room = min(cpu // place for cpu, place in zip(cpus, places, strict=True) if place)
        return num_workers or sum(places), max(1, min(own, room)), wanted
    number = num_workers or sum(cpu > 0 for cpu in cpus) or 1
    # The largest number of processors per worker with which all workers can be placed at once.
    fitting = (n for n in range(max(cpus), 0, -1) if sum(cpu // n for cpu in cpus) >= number)
    return number, next(fitting, 1), 0


def _variables(nodes: Sequence[RayNode]) -> dict[str, str]:
    """Return the HPSEARCH_ variables of this process that a worker needs."""
    here = {key: value for key, value in os.environ.items() if key.startswith(environment.PREFIX)}
    if is_this_machine(nodes):
        here[environment.HOME] = str(home_folder())  # the embedded PostgreSQL is there
    return {key: value for key, value in here.items() if key not in _NOT_PASSED_ON}


@contextlib.contextmanager
def connect(address: str) -> Iterator[Any]:
    """Connect to a cluster for the duration of the context, and yield Ray's module.

    Args:
        address: `ray://HOST:PORT`, or `ray`: the cluster that RAY_ADDRESS names or that this machine is part of; if
            there is none, one is started on this machine and stopped at the end.
    Raises:
        InputError: Ray is not installed.
        SurroundingsError: no cluster answers.
    """
    named = os.environ.get("RAY_ADDRESS") if address == "ray" else address
    try:
        import ray

        if named and named.startswith("ray://"):
            importlib.import_module("grpc")  # used by Ray's client, but not installed by plain `ray`
    except ModuleNotFoundError as error:
        raise InputError(
            f"--on {address} needs {error.name}, which is not installed", hint="pip install 'hpsearch[ray]'"
        ) from error
    handler = signal.getsignal(signal.SIGTERM)
    try:
        _initialize(ray, named)
        signal.signal(signal.SIGTERM, handler)  # Ray installs its own handler, which ends the process abruptly
        yield ray
    finally:
        ray.shutdown()
        signal.signal(signal.SIGTERM, handler)


def _initialize(ray: Any, named: str | None) -> None:
    quiet = {"log_to_driver": False, "logging_level": "ERROR"}  # stderr belongs to the progress display
    try:
        if named:
            _check_answers(named)
        ray.init(address=named or "auto", **quiet)
    except (OSError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
        if named or not isinstance(error, ConnectionError):
            raise SurroundingsError(
                f"no Ray cluster answers at {named or 'this machine'}: {first_line(error)}",
                hint="check that it runs (ray status), and that its versions of Ray and Python and its token "
                "(RAY_AUTH_TOKEN_PATH) are those of this machine",
            ) from error
        _log.info("no Ray cluster is running: starting one on this machine")
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # sends no usage statistics
        ray.init(address="local", include_dashboard=False, object_store_memory=_LOCAL_OBJECT_STORE_BYTES, **quiet)


def _check_answers(address: str) -> None:
    """Fail early if nothing listens at the address: Ray itself would retry for minutes, and in one case for ever."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if port.isdecimal():  # not `auto` or `local`
        socket.create_connection((host.strip("[]"), int(port)), timeout=_ANSWER_SECONDS).close()
