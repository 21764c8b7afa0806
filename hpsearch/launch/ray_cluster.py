"""The Ray cluster that `run --on ray` uses: connects to it or starts one, lists its nodes, and sizes the workers.

Ray is an optional dependency, imported only when a cluster is requested.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import platform
import re
import signal
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import psutil
import sqlalchemy

from hpsearch.errors import InputError, SurroundingsError
from hpsearch.logs import get_logger
from hpsearch.wording import first_line

_log = get_logger("ray")
_LOCAL_OBJECT_STORE_BYTES = 128 * 2**20  # hpsearch stores nothing in it; Ray would take 30 % of the memory
_ANSWER_SECONDS = 10.0
_ADDRESS = re.compile(r"ray|ray://[^/\s]+:\d+")


@dataclass(frozen=True, kw_only=True)
class RayNode:
    """A node of the cluster with its total resources."""

    host: str
    address: str
    num_cpus: int
    num_gpus: int


@dataclass(frozen=True, kw_only=True)
class WorkerShare:
    """The number of workers and the resources that each of them requests from Ray."""

    num_workers: int
    num_cpus: int
    num_gpus: int

    def describe(self) -> str:
        cpus = f"{self.num_cpus} {'CPU' if self.num_cpus == 1 else 'CPUs'}"
        return f"{cpus} and 1 GPU" if self.num_gpus else cpus


@dataclass(frozen=True, kw_only=True)
class RayCluster:
    """A connection to a cluster.

    Args:
        ray: Ray's module; it need not be installed if no cluster is used.
        nodes: the nodes that are alive.
    """

    ray: Any
    nodes: tuple[RayNode, ...]

    @property
    def is_this_machine(self) -> bool:
        """Whether every node is this machine: only then can workers use its files and its sockets."""
        own = {found.address for addresses in psutil.net_if_addrs().values() for found in addresses}
        return all(node.host == platform.node() and node.address in own for node in self.nodes)

    def share(self, device: str, num_workers: int | None) -> WorkerShare:
        """Return what each worker gets: a GPU if the cluster has any, else its part of the processors.

        Args:
            device: `auto` or `cpu`.
            num_workers: None: one per GPU, or one per node with processors.
        """
        num_gpus = sum(node.num_gpus for node in self.nodes) if device == "auto" else 0
        if num_gpus:
            return WorkerShare(num_workers=num_workers or num_gpus, num_cpus=1, num_gpus=1)
        cpus = [node.num_cpus for node in self.nodes if node.num_cpus > 0] or [1]
        number = num_workers or len(cpus)
        # The largest number of processors per worker with which all workers can be placed at once.
        fitting = (n for n in range(max(cpus), 0, -1) if sum(cpu // n for cpu in cpus) >= number)
        return WorkerShare(num_workers=number, num_cpus=next(fitting, 1), num_gpus=0)

    def check_reachable(self, url: sqlalchemy.URL, *, is_embedded: bool) -> None:
        """Refuse a database that workers on other machines cannot reach.

        Raises:
            InputError: the embedded one, a local socket or a loopback address, while the cluster has other machines.
        """
        if self.is_this_machine:
            return
        hosts = ", ".join(sorted({node.host for node in self.nodes}))
        host = str(url.host or url.query.get("host") or "")
        what = "the embedded PostgreSQL" if is_embedded else f"a PostgreSQL at {host or 'a local socket'}"
        if is_embedded or not host or host.startswith("/") or host in ("localhost", "127.0.0.1", "::1"):
            raise InputError(
                f"{what} cannot be reached from the nodes of the Ray cluster ({hosts})",
                hint="name a server that they reach: --storage postgresql://USER:PASSWORD@HOST:5432/DATABASE",
            )


def check_address(address: str) -> str:
    """Return the address if it is `ray` or `ray://HOST:PORT`. Raises InputError for anything else."""
    if not _ADDRESS.fullmatch(address):
        raise InputError(
            f"--on must be ray or ray://HOST:PORT, got {address!r}",
            hint="ray: the cluster of RAY_ADDRESS, one that runs here, or one of this machine's own",
        )
    return address


@contextlib.contextmanager
def connect(address: str) -> Iterator[RayCluster]:
    """Connect to a cluster for the duration of the context.

    Args:
        address: `ray://HOST:PORT`, or `ray`: the cluster that RAY_ADDRESS names or that this machine is part of; if
            there is none, one is started on this machine and stopped at the end.
    Raises:
        InputError: not an address, or Ray is not installed.
        SurroundingsError: no cluster answers.
    """
    check_address(address)
    try:
        import ray
    except ModuleNotFoundError as error:
        raise InputError("--on ray needs Ray, which is not installed", hint="pip install 'hpsearch[ray]'") from error
    handler = signal.getsignal(signal.SIGTERM)
    try:
        _initialize(ray, address)
        signal.signal(signal.SIGTERM, handler)  # Ray installs its own handler, which ends the process abruptly
        yield RayCluster(ray=ray, nodes=_nodes(ray))
    finally:
        ray.shutdown()
        signal.signal(signal.SIGTERM, handler)


def _initialize(ray: Any, address: str) -> None:
    named = address if address != "ray" else os.environ.get("RAY_ADDRESS")
    if named and named.startswith("ray://") and importlib.util.find_spec("grpc") is None:
        raise InputError(
            f"{named} needs Ray's client, which plain `ray` does not bring", hint="pip install 'ray[client]'"
        )
    if named:
        _check_answers(named)
    quiet = {"log_to_driver": False, "logging_level": "ERROR"}  # stderr belongs to the progress display
    try:
        ray.init(address=named or "auto", **quiet)
        return
    except (ConnectionError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
        if named or not isinstance(error, ConnectionError):
            raise _silence(named or "this machine", error) from error
    _log.info("no Ray cluster is running: starting one on this machine")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # sends no usage statistics
    ray.init(address="local", include_dashboard=False, object_store_memory=_LOCAL_OBJECT_STORE_BYTES, **quiet)


def _check_answers(address: str) -> None:
    """Fail early if nothing listens at the address: Ray itself would retry for minutes, and in one case for ever."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not port.isdecimal():
        return  # `auto`, `local`
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_ANSWER_SECONDS).close()
    except OSError as error:
        raise _silence(address, error) from error


def _silence(address: str, error: Exception) -> SurroundingsError:
    return SurroundingsError(
        f"no Ray cluster answers at {address}: {first_line(error)}",
        hint="is it running (ray status), with the Ray, the Python and the token (RAY_AUTH_TOKEN_PATH) of here?",
    )


def _nodes(ray: Any) -> tuple[RayNode, ...]:
    return tuple(
        RayNode(
            host=node["NodeManagerHostname"],
            address=node["NodeManagerAddress"],
            num_cpus=int(node["Resources"].get("CPU", 0)),
            num_gpus=int(node["Resources"].get("GPU", 0)),
        )
        for node in ray.nodes()
        if node["Alive"]
    )
