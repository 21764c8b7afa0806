"""Fault table, row 24: a second embedded PostgreSQL is asked for on the same folder, from another namespace."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar, Literal

import psutil
import pytest

from hpsearch.postgres.embedded import EmbeddedPostgres
from hpsearch.postgres.programs import PostgresPrograms
from tests.faults.processes import wait_until

pytestmark = pytest.mark.faults

# Joins the server of argv[1] within argv[2] seconds, or prints why not; stays until a line arrives, and leaves.
CLIENT = """
import sys
from pathlib import Path
from hpsearch.errors import StorageError
from hpsearch.postgres.embedded import EmbeddedPostgres
try:
    postgres = EmbeddedPostgres.start(Path(sys.argv[1]), limit_seconds=float(sys.argv[2]))
except StorageError as error:
    sys.exit(f"refused: {error}")
print("joined", flush=True)
sys.stdin.readline()
postgres.stop()
"""
HERE: tuple[str, ...] = ()
# As a container: PostgreSQL itself looks for the processes of another server in shared memory of its own IPC namespace.
PID_NAMESPACE = ("unshare", "--pid", "--ipc", "--fork", "--kill-child", "--mount-proc")
PID_AND_HOST_NAMESPACE = (*PID_NAMESPACE, "--uts")
OTHER_HOST = (*PID_AND_HOST_NAMESPACE, "sh", "-c", 'hostname another-host; exec "$@"', "sh")
Kind = Literal["ours", "of an older hpsearch"]


class Client:
    """A process that uses the folder's server, in a namespace of its own if `prefix` says so."""

    started: ClassVar[list[Client]] = []

    def __init__(self, folder: Path, prefix: tuple[str, ...] = HERE, limit_seconds: float = 120.0) -> None:
        self.process = subprocess.Popen(
            [*prefix, sys.executable, "-c", CLIENT, str(folder), str(limit_seconds)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.started.append(self)

    def joined(self) -> Client:
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == "joined\n", self.process.communicate()
        return self

    def refusal(self) -> str:
        said, error = self.process.communicate(timeout=240)
        assert said == ""
        return error

    def leave(self) -> None:
        self.process.communicate("\n", timeout=240)
        assert self.process.returncode == 0

    def tree(self) -> list[psutil.Process]:
        process = psutil.Process(self.process.pid)
        return [process, *process.children(recursive=True)]

    @classmethod
    def end_all(cls) -> None:
        """Whatever became of the test: a client that goes on would hold the server for the tests that follow."""
        for client in cls.started:
            if client.process.poll() is None:
                kill(client.tree())
            client.process.communicate()
        cls.started.clear()


@pytest.fixture(scope="module")
def made_once(open_folder: Path) -> Path:
    folder = open_folder / "row-24"
    EmbeddedPostgres.start(folder).stop()
    return folder


@pytest.fixture
def folder(made_once: Path) -> Iterator[Path]:
    """A folder whose server is stopped, and has no log; nothing of a test is left afterwards."""
    if os.geteuid() != 0:
        if os.environ.get("CI"):
            pytest.fail("only root can make a PID namespace")
        pytest.skip("only root can make a PID namespace")
    (made_once / "server.log").unlink(missing_ok=True)
    yield made_once
    Client.end_all()
    kill(server_processes(made_once))
    EmbeddedPostgres.start(made_once).stop()


def server_processes(folder: Path) -> list[psutil.Process]:
    """All processes of servers on the folder, of whatever namespace."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(OSError):  # it has ended, or is a zombie
            if (folder / "data").samefile(f"/proc/{process.pid}/cwd"):
                found.append(process)
    return found


def send(number: signal.Signals, processes: list[psutil.Process]) -> None:
    """To each; a child of the postmaster may have ended by itself since they were listed."""
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.send_signal(number)


def kill(processes: list[psutil.Process]) -> None:
    """SIGKILL, and wait until they are gone."""
    send(signal.SIGKILL, processes)
    wait_until(lambda: not any(is_alive(process) for process in processes), "the server's processes end")


def num_servers_started(folder: Path) -> int:
    return (folder / "server.log").read_text().count("starting PostgreSQL")


def start_as_before(folder: Path) -> None:
    """Start the server without a lock, as hpsearch did before it had one."""
    programs = PostgresPrograms.find(folder.parent)
    options = "-h '' -p 5432 -k .. -c unix_socket_permissions=0700"
    arguments = ("start", "-w", "-t", "100", "-D", "data", "-l", "server.log", "-o", options)
    assert programs.run("pg_ctl", *arguments, folder=folder, timeout_seconds=110).returncode == 0


@pytest.mark.parametrize("kind", ["ours", pytest.param("of an older hpsearch", marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    ("first", "second"),
    [
        (HERE, PID_NAMESPACE),
        (PID_NAMESPACE, HERE),
        (PID_NAMESPACE, PID_AND_HOST_NAMESPACE),
        (HERE, OTHER_HOST),
    ],
    ids=["here and there", "there and here", "two namespaces", "another host name"],
)
def test_row_24_second_server_while_the_first_is_stopped(
    first: tuple[str, ...], second: tuple[str, ...], kind: Kind, folder: Path
) -> None:
    if kind == "of an older hpsearch":
        start_as_before(folder)
    client = Client(folder, first).joined()
    stopped = [*server_processes(folder), *client.tree()]
    send(signal.SIGSTOP, stopped)
    refusal = Client(folder, second, limit_seconds=4).refusal()
    assert refusal.startswith("refused: the PostgreSQL in"), refusal
    assert "does not answer" in refusal
    send(signal.SIGCONT, stopped)
    other = Client(folder, second).joined()
    assert num_servers_started(folder) == 1
    other.leave()
    client.leave()


@pytest.mark.parametrize("where", [HERE, PID_NAMESPACE], ids=["here", "there"])
def test_row_24_server_killed_under_living_clients(where: tuple[str, ...], folder: Path) -> None:
    """Its clients hold no lock of the server's: whoever comes next starts one."""
    client = Client(folder, where).joined()
    kill(server_processes(folder))
    other = Client(folder).joined()
    assert num_servers_started(folder) == 2
    client.leave()
    other.leave()


def test_row_24_one_process_of_a_killed_server_is_left(folder: Path) -> None:
    """A session that is stopped may still write when it goes on: no second server before its end."""
    client = Client(folder).joined()
    postmaster = next(
        process for process in server_processes(folder) if process.parent() not in server_processes(folder)
    )
    child = next(iter(postmaster.children()))
    child.send_signal(signal.SIGSTOP)
    postmaster.kill()
    refusal = Client(folder, PID_NAMESPACE, limit_seconds=4).refusal()
    assert "holds the folder" in refusal
    child.kill()
    other = Client(folder, PID_NAMESPACE).joined()
    assert num_servers_started(folder) == 2
    other.leave()
    client.leave()


def test_row_24_all_processes_of_the_server_and_nobody_else_hold_its_lock(folder: Path) -> None:
    client = Client(folder).joined()

    def all_hold_it_and_nobody_else() -> bool:
        """Looked at again and again: a child of the postmaster may begin or end between the two lists."""
        holders = {process.pid for process in psutil.process_iter() if holds(process, folder / "server.lock")}
        return len(holders) > 3 and holders == {process.pid for process in server_processes(folder)}

    wait_until(all_hold_it_and_nobody_else, "the server's processes, and no other, hold its lock", seconds=20)
    client.leave()


def holds(process: psutil.Process, path: Path) -> bool:
    try:
        return any(descriptor.samefile(path) for descriptor in Path(f"/proc/{process.pid}/fd").iterdir())
    except OSError:
        return False


def is_alive(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
