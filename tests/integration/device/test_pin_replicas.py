"""Identical replicas share out the GPUs of a machine: real processes that are killed, a real PostgreSQL."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import create_engine, text

from hpsearch.postgres.embedded import EmbeddedPostgres
from hpsearch.store.connection.database import open_database
from hpsearch.store.studies import StoredStudy

pytestmark = pytest.mark.faults

PROGRAM = Path(__file__).with_name("gpu_replicas.py")
ROOT = Path(__file__).parents[3]
WAIT_SECONDS = 240.0
GPUS = [f"cuda:{index} (NVIDIA Fake, GPU-00000000-0000-0000-0000-{index:012d})" for index in range(4)]
# The advisory locks of 64 bits that are held, and the title of the session that holds each.
HELD = """
    SELECT l.classid, l.objid, s.application_name AS title FROM pg_locks l JOIN pg_stat_activity s USING (pid)
    WHERE l.locktype = 'advisory' AND l.objsubid = 1 AND l.granted
      AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())
"""


class Replicas:
    """The processes, and what they have told so far (gpu_replicas.py)."""

    def __init__(self, url: str, study_id: int, num_gpus: int, folder: Path) -> None:
        self._program = subprocess.Popen(
            [sys.executable, str(PROGRAM), url, str(study_id), str(num_gpus), str(folder)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
            text=True,
        )
        self._told: queue.Queue[dict[str, Any]] = queue.Queue()
        self._events: list[dict[str, Any]] = []
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def start(self, wanted: str = "auto", **rules: bool) -> int:
        """Start one; returns its pid."""
        assert self._program.stdin is not None
        known = len(self.pids)
        self._program.stdin.write(json.dumps({"wanted": wanted, **rules}) + "\n")
        self._program.stdin.flush()
        self.wait_until(lambda: len(self.pids) > known)
        return self.pids[-1]

    def kill(self, pid: int) -> None:
        os.kill(pid, signal.SIGKILL)

    def stop(self, pid: int) -> int:
        """Returns its exit code."""
        os.kill(pid, signal.SIGTERM)
        return self.code(pid)

    def code(self, pid: int) -> int:
        """Its exit code, once it has ended."""
        self.wait_until(lambda: bool(self.told(pid, "ended")))
        code: int = self.told(pid, "ended")[0]["code"]
        return code

    def wait_until(self, is_so: Callable[[], bool]) -> None:
        """Read what the replicas tell until it is so."""
        deadline = time.monotonic() + WAIT_SECONDS
        while not is_so():
            try:
                self._events.append(self._told.get(timeout=max(0.0, deadline - time.monotonic())))
            except queue.Empty:
                pytest.fail("waited in vain; they told:\n" + "\n".join(map(str, self._events)))

    @property
    def pids(self) -> list[int]:
        return [event["pid"] for event in self._events if event["event"] == "started"]

    def told(self, pid: int | None, kind: str) -> list[dict[str, Any]]:
        return [e for e in self._events if e["event"] == kind and pid in (None, e["pid"])]

    def logged(self, pid: int) -> list[str]:
        return [event["message"] for event in self.told(pid, "log")]

    def pinned(self) -> dict[int, str]:
        """The device of each that came to one."""
        return {event["pid"]: event["device"] for event in self.told(None, "pinned")}

    def waiting(self) -> dict[int, str]:
        """What each said that found no GPU free."""
        return {e["pid"]: e["message"] for e in self.told(None, "log") if e["message"].startswith("no GPU is free")}

    def close(self) -> None:
        for pid in set(self.pids) - {event["pid"] for event in self.told(None, "ended")}:
            with contextlib.suppress(ProcessLookupError):
                self.kill(pid)
        assert self._program.stdin is not None
        assert self._program.stdout is not None
        self._program.stdin.close()
        self._program.wait()
        self._reader.join()
        self._program.stdout.close()

    def _read(self) -> None:
        assert self._program.stdout is not None
        for line in self._program.stdout:
            self._told.put(json.loads(line))


@pytest.fixture
def study(new_study: Callable[..., StoredStudy]) -> StoredStudy:
    return new_study(3)


@pytest.fixture
def machine(tables_url: str, study: StoredStudy, tmp_path: Path) -> Iterator[Callable[[int], Replicas]]:
    """A machine with so many GPUs."""
    with contextlib.ExitStack() as stack:

        def build(num_gpus: int) -> Replicas:
            replicas = Replicas(tables_url, study.study_id, num_gpus, tmp_path)
            stack.callback(replicas.close)
            return replicas

        yield build


def test_eight_replicas_on_four_gpus_take_one_each_and_four_say_why_they_wait(
    machine: Callable[[int], Replicas], execute: Any
) -> None:
    replicas = machine(4)
    for _ in range(8):
        replicas.start()
    replicas.wait_until(lambda: len(replicas.pinned()) == len(replicas.waiting()) == 4)

    assert sorted(replicas.pinned().values()) == GPUS
    assert not replicas.pinned().keys() & replicas.waiting().keys()
    last = list(replicas.waiting().values())[-1]
    assert last.endswith("; it waits until one is free or the study is finished")
    for pid, device in replicas.pinned().items():
        assert f"{device} by testhost:{pid}" in last
    held = execute(HELD)
    assert len(held) == len({(row.classid, row.objid) for row in held}) == 4


def test_the_gpu_of_a_killed_worker_is_taken_by_one_that_waits_long_before_a_lease_would_end(
    machine: Callable[[int], Replicas],
) -> None:
    replicas = machine(2)
    for _ in range(3):
        replicas.start()
    replicas.wait_until(lambda: len(replicas.pinned()) == 2 and len(replicas.waiting()) == 1)
    (waiter,) = replicas.waiting()
    victim, device = next(iter(replicas.pinned().items()))
    replicas.kill(victim)
    replicas.wait_until(lambda: waiter in replicas.pinned())
    assert replicas.pinned()[waiter] == device
    assert f"{device} is free now" in replicas.logged(waiter)


def test_one_that_leaves_frees_its_gpu(machine: Callable[[int], Replicas], execute: Any) -> None:
    replicas = machine(1)
    first = replicas.start()
    replicas.wait_until(lambda: first in replicas.pinned())
    assert replicas.stop(first) == 0
    assert execute(HELD) == []
    second = replicas.start()
    replicas.wait_until(lambda: second in replicas.pinned())


def test_no_two_are_ever_on_one_gpu_whoever_is_killed(machine: Callable[[int], Replicas], execute: Any) -> None:
    """Each holds the lock of a file that the kernel frees at its death, before the server can know of it."""
    replicas = machine(4)
    dead: set[int] = set()
    for _ in range(8):
        replicas.start()
    for _ in range(6):
        replicas.wait_until(lambda: len(replicas.pinned().keys() - dead) == 4)
        victim = random.choice(sorted(replicas.pinned().keys() - dead))
        dead.add(victim)
        replicas.kill(victim)
        replicas.start()
        held = execute(HELD)
        assert len(held) == len({(row.classid, row.objid) for row in held})
    replicas.wait_until(lambda: len(replicas.pinned().keys() - dead) == 4)
    assert replicas.told(None, "doubled") == []
    assert sorted(device for pid, device in replicas.pinned().items() if pid not in dead) == GPUS


def test_a_named_gpu_is_waited_for_though_another_is_free(machine: Callable[[int], Replicas]) -> None:
    replicas = machine(2)
    first = replicas.start("cuda:1")
    replicas.wait_until(lambda: first in replicas.pinned())
    second = replicas.start("cuda:1")
    replicas.wait_until(lambda: second in replicas.waiting())
    assert replicas.waiting()[second] == (
        f"no GPU is free for this worker: {GPUS[1]} by testhost:{first}; it waits until one is free or the study is "
        "finished"
    )
    assert replicas.stop(first) == 0
    replicas.wait_until(lambda: second in replicas.pinned())
    assert replicas.pinned()[second] == GPUS[1]


def test_one_that_is_not_to_wait_leaves_with_exit_code_3(machine: Callable[[int], Replicas]) -> None:
    replicas = machine(1)
    first = replicas.start()
    replicas.wait_until(lambda: first in replicas.pinned())
    second = replicas.start(waits=False)
    assert replicas.code(second) == 3
    (error,) = replicas.told(second, "error")
    assert error["message"] == f"no GPU is free for this worker: {GPUS[0]} by testhost:{first}"
    assert "--wait-for-gpu" in error["hint"]


def test_one_that_waits_leaves_in_peace_when_the_study_is_finished(
    machine: Callable[[int], Replicas], study: StoredStudy, execute: Any
) -> None:
    replicas = machine(1)
    first = replicas.start()
    replicas.wait_until(lambda: first in replicas.pinned())
    second = replicas.start()
    replicas.wait_until(lambda: second in replicas.waiting())
    execute("UPDATE hpsearch_points SET is_counted = true WHERE study_id = :study", study=study.study_id)
    execute("UPDATE trials SET state = 'COMPLETE' WHERE study_id = :study", study=study.study_id)
    assert replicas.code(second) == 0
    assert second not in replicas.pinned()


def test_one_that_waits_leaves_when_it_is_told_to_stop(machine: Callable[[int], Replicas]) -> None:
    replicas = machine(1)
    first = replicas.start()
    replicas.wait_until(lambda: first in replicas.pinned())
    second = replicas.start()
    replicas.wait_until(lambda: second in replicas.waiting())
    assert replicas.stop(second) == 0
    assert second not in replicas.pinned()


def test_those_that_say_so_share_a_gpu_evenly_and_tell_with_whom(machine: Callable[[int], Replicas]) -> None:
    replicas = machine(2)
    sharers = []
    for _ in range(4):
        sharers.append(replicas.start(is_shared=True))
        replicas.wait_until(lambda: sharers[-1] in replicas.pinned())
    assert sorted(replicas.pinned().values()) == [GPUS[0], GPUS[0], GPUS[1], GPUS[1]]
    assert replicas.logged(sharers[0]) == [f"{GPUS[0]} is shared, with nobody yet"]
    assert replicas.logged(sharers[2]) == [f"{GPUS[0]} is shared, with testhost:{sharers[0]}"]

    alone = replicas.start(waits=False)  # and with nobody who did not say so
    assert replicas.code(alone) == 3
    assert replicas.told(None, "doubled") == []


def test_nobody_shares_the_gpu_of_one_that_did_not_say_so(machine: Callable[[int], Replicas]) -> None:
    replicas = machine(1)
    first = replicas.start()
    replicas.wait_until(lambda: first in replicas.pinned())
    assert replicas.code(replicas.start(is_shared=True, waits=False)) == 3


def test_locks_are_taken_again_after_the_server_was_restarted(open_folder: Path, tmp_path: Path) -> None:
    folder = open_folder / "restarted"
    with EmbeddedPostgres.start(folder) as server:
        open_database(server.url).close()
        replicas = Replicas(server.url, 1, 2, tmp_path)
        try:
            holders = [replicas.start(), replicas.start()]
            replicas.wait_until(lambda: len(replicas.pinned()) == 2)
            assert server.postmaster_pid is not None
            os.kill(server.postmaster_pid, signal.SIGQUIT)  # as a crash: every connection is cut
            replicas.wait_until(
                lambda: all(any("could not check the lock" in m for m in replicas.logged(pid)) for pid in holders)
            )
            with EmbeddedPostgres.start(folder):
                replicas.wait_until(
                    lambda: all(any("pinned again" in m for m in replicas.logged(pid)) for pid in holders)
                )
                engine = create_engine(server.url)
                with engine.connect() as connection:
                    titles = [row.title for row in connection.execute(text(HELD))]
                engine.dispose()
                assert sorted(title.split()[2] for title in titles) == sorted(f"testhost:{pid}" for pid in holders)
                assert [replicas.stop(pid) for pid in holders] == [0, 0]
        finally:
            replicas.close()
