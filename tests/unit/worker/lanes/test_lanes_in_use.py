"""How many lanes each worker trains, as the next one finds it: what is left of those that were killed."""

from __future__ import annotations

import errno
import fcntl
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from hpsearch.cgroups import MemoryGroup
from hpsearch.worker.lanes import lanes_in_use as module
from hpsearch.worker.lanes.lanes_in_use import WorkersLanes

GROUP = MemoryGroup(machine="m", number=1, num_kills=3)
WORKER = """
import os, signal, sys
from pathlib import Path
from hpsearch.cgroups import MemoryGroup
from hpsearch.worker.lanes import lanes_in_use

lanes_in_use.memory_group = lambda: MemoryGroup(machine="m", number=1, num_kills=3)
lanes = lanes_in_use.WorkersLanes(Path(sys.argv[1]))
lanes.note("a case", 64)
print("noted", flush=True)
sys.stdin.read()
"""


@pytest.fixture(autouse=True)
def in_group(monkeypatch: pytest.MonkeyPatch) -> None:
    set_group(monkeypatch, GROUP)


def set_group(monkeypatch: pytest.MonkeyPatch, group: MemoryGroup | None) -> None:
    monkeypatch.setattr(module, "memory_group", lambda: group)


def die(worker: WorkersLanes) -> None:
    """The kernel closes a process's files, whatever ends it."""
    assert worker._own is not None
    module.close_lock_file(worker._own[1])


def left_by_a_dead_worker(folder: Path, lanes: int = 64) -> None:
    worker = WorkersLanes(folder)
    worker.note("a case", lanes)
    die(worker)


def victims(folder: Path) -> list[tuple[str, int]]:
    return [(victim.case, victim.lanes) for victim in WorkersLanes(folder).take_victims()]


@pytest.mark.parametrize(
    ("group", "told"),
    [
        (MemoryGroup(machine="m", number=1, num_kills=4), "was killed because memory ran out: half as many"),
        (MemoryGroup(machine="m", number=2, num_kills=0), "was killed with its container, perhaps because"),
        (GROUP, None),  # somebody else killed it
        (MemoryGroup(machine="later", number=2, num_kills=4), None),  # it ended with its machine
        (None, None),  # not Linux
    ],
)
def test_a_dead_worker_is_told_once_if_memory_may_have_killed_it(
    group: MemoryGroup | None,
    told: str | None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    left_by_a_dead_worker(tmp_path)
    set_group(monkeypatch, group)
    assert victims(tmp_path) == ([] if told is None else [("a case", 64)])
    assert (told or "") in caplog.text
    assert len(caplog.messages) == (told is not None)
    assert victims(tmp_path) == [] == list(tmp_path.iterdir())


def test_a_process_that_lives_is_no_victim_and_one_that_was_killed_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = [sys.executable, "-c", WORKER, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as worker:
        assert worker.stdout is not None
        assert worker.stdout.readline() == b"noted\n"
        set_group(monkeypatch, MemoryGroup(machine="m", number=1, num_kills=4))
        assert victims(tmp_path) == []
        worker.send_signal(signal.SIGKILL)
        worker.wait()
    assert victims(tmp_path) == [("a case", 64)]


def test_workers_with_the_same_case_are_told_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    alive, dead = WorkersLanes(tmp_path), WorkersLanes(tmp_path)
    dead.note("a case", 8)
    alive.note("a case", 64)
    die(dead)
    set_group(monkeypatch, MemoryGroup(machine="m", number=1, num_kills=4))
    assert victims(tmp_path) == [("a case", 8)]
    die(alive)
    assert victims(tmp_path) == [("a case", 64)]


def test_only_the_last_number_counts_and_none_after_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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


def test_without_a_group_that_counts_kills_nothing_is_noted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    set_group(monkeypatch, None)
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
    worker.note("a case", 64)
    worker.end()
    assert "cannot note in" in caplog.text

    def no_locks(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", no_locks)
    worker = WorkersLanes(tmp_path / "folder")
    worker.note("a case", 64)
    worker.end()
    assert "No locks available" in caplog.text
    assert list((tmp_path / "folder").iterdir()) == []
