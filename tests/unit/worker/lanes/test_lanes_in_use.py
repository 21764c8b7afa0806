"""How many lanes each worker trains, as the next one finds it: what is left of those that were killed."""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from hpsearch.cgroups import MemoryGroups
from hpsearch.worker.lanes import lanes_in_use as module
from hpsearch.worker.lanes.lanes_in_use import FOREIGN_SECONDS, WorkersLanes

WORKER = """
import sys
from pathlib import Path
from hpsearch.cgroups import MemoryGroups
from hpsearch.worker.lanes import lanes_in_use

lanes_in_use.memory_groups = lambda: MemoryGroups(machine="m", num_kills={1: 3})
lanes = lanes_in_use.WorkersLanes(Path(sys.argv[1]))
lanes.note("a case", 64)
print("noted", flush=True)
sys.stdin.read()
"""


SetGroups = Callable[..., None]


@pytest.fixture(autouse=True)
def set_groups(monkeypatch: pytest.MonkeyPatch) -> SetGroups:
    """Make this process a member of groups; without any: of none that counts kills."""

    def set_them(num_kills: dict[int, int] | None = None, *, machine: str = "m") -> None:
        groups = None if num_kills is None else MemoryGroups(machine=machine, num_kills=num_kills)
        monkeypatch.setattr(module, "memory_groups", lambda: groups)

    set_them({1: 3})
    return set_them


def die(worker: WorkersLanes) -> None:
    """The kernel closes a process's files, whatever ends it."""
    assert worker._own is not None
    module.close_lock_file(worker._own[1])


def left_by_a_dead_worker(folder: Path, lanes: int = 64) -> None:
    worker = WorkersLanes(folder)
    worker.note("a case", lanes)
    die(worker)


def victims(folder: Path) -> list[tuple[str, int]]:
    return [(victim.case, victim.lanes) for victim in WorkersLanes(folder).remove_dead()]


@pytest.mark.parametrize(
    ("its", "ours", "is_victim"),
    [
        ({1: 3}, {1: 4}, True),
        ({1: 3}, {1: 3}, False),  # somebody else killed it
        ({1: 3}, {2: 0}, True),  # its container is gone: nothing else is known
        # Its session is gone, and the group of all sessions knows.
        ({1: 3, 9: 3}, {2: 0, 9: 4}, True),
        ({1: 3, 9: 3}, {2: 0, 9: 3}, False),
        ({1: 3, 9: 3}, {1: 3, 9: 4}, False),  # a process of another session was killed
    ],
)
def test_a_dead_worker_is_found_once_if_memory_may_have_killed_it(
    its: dict[int, int], ours: dict[int, int], is_victim: bool, tmp_path: Path, set_groups: SetGroups
) -> None:
    set_groups(its)
    left_by_a_dead_worker(tmp_path)
    set_groups(ours)
    assert victims(tmp_path) == ([("a case", 64)] if is_victim else [])
    assert victims(tmp_path) == [] == list(tmp_path.iterdir())


def test_a_worker_that_ended_with_its_machine_was_not_killed_for_memory(tmp_path: Path, set_groups: SetGroups) -> None:
    """Or it is another machine's, whose workers are to find the file."""
    left_by_a_dead_worker(tmp_path)
    set_groups({1: 4}, machine="another start")
    assert victims(tmp_path) == []
    (file,) = tmp_path.iterdir()
    long_ago = time.time() - FOREIGN_SECONDS - 60
    os.utime(file, (long_ago, long_ago))
    assert victims(tmp_path) == [] == list(tmp_path.iterdir())


def test_a_process_that_lives_is_no_victim_and_one_that_was_killed_is(tmp_path: Path, set_groups: SetGroups) -> None:
    command = [sys.executable, "-c", WORKER, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as worker:
        assert worker.stdout is not None
        assert worker.stdout.readline() == b"noted\n"
        set_groups({1: 4})
        assert victims(tmp_path) == []
        worker.send_signal(signal.SIGKILL)
        worker.wait()
    assert victims(tmp_path) == [("a case", 64)]


def test_workers_with_the_same_case_are_told_apart(tmp_path: Path, set_groups: SetGroups) -> None:
    alive, dead = WorkersLanes(tmp_path), WorkersLanes(tmp_path)
    dead.note("a case", 8)
    alive.note("a case", 64)
    die(dead)
    set_groups({1: 4})
    assert victims(tmp_path) == [("a case", 8)]
    die(alive)
    assert victims(tmp_path) == [("a case", 64)]


def test_only_the_last_number_counts_and_none_after_the_end(tmp_path: Path) -> None:
    worker = WorkersLanes(tmp_path)
    worker.note("a case", 64)
    worker.note("another case", 4)
    (file,) = tmp_path.iterdir()
    assert '"another case"' in file.read_text()
    worker.note("another case", 1)  # a single lane cannot be halved
    assert list(tmp_path.iterdir()) == []
    worker.note("a case", 2)
    worker.end()
    worker.end()
    assert list(tmp_path.iterdir()) == []


def test_without_a_group_that_counts_kills_nothing_is_noted_or_found(tmp_path: Path, set_groups: SetGroups) -> None:
    left_by_a_dead_worker(tmp_path)
    set_groups()
    assert victims(tmp_path) == []
    WorkersLanes(tmp_path / "folder").note("a case", 64)
    assert not (tmp_path / "folder").exists()


def test_a_damaged_file_is_removed(tmp_path: Path) -> None:
    (tmp_path / "worker.json").write_text("{")
    assert victims(tmp_path) == [] == list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_written_or_locked_costs_a_warning_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("")
    worker = WorkersLanes(tmp_path / "file" / "folder")
    for _ in range(2):
        worker.note("a case", 64)
        worker.end()
    assert ["cannot note in" in message for message in caplog.messages] == [True]  # once

    def no_locks(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", no_locks)
    worker = WorkersLanes(tmp_path / "folder")
    worker.note("a case", 64)
    worker.end()
    assert "No locks available" in caplog.text
    assert list((tmp_path / "folder").iterdir()) == []


def test_a_folder_of_another_user_is_as_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(*_: object, **__: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Path, "glob", forbidden)
    assert victims(tmp_path) == []
