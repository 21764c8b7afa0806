"""Fault table, rows 8 to 14: the database restarts, is away, hangs, is cut off, is empty."""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import optuna
import psutil
import pytest
import tomli_w
from optuna.trial import TrialState

from hpsearch.store.claims.ledger import Ledger
from hpsearch.store.connection.database import open_database
from tests.faults.arena import Arena
from tests.faults.driver import Faults
from tests.faults.network import GuestNetwork, missing_for_networks
from tests.faults.postgres import FaultyPostgres
from tests.faults.processes import wait_until

NewArena = Callable[..., Arena]

pytestmark = pytest.mark.faults

# Leases as in earnest, at a fifth of their length.
FAST = Faults(lease_seconds=6.0, absence_seconds=3.0)
SLOW = replace(FAST, epoch_seconds=0.1)


def no_trial_failed(arena: Arena) -> bool:
    return all(trial.state is not TrialState.FAIL for trial in arena.trials())


def while_workers_train(arena: Arena) -> None:
    arena.create(6, max_epochs=20)
    workers = arena.workers(2, faults=SLOW, lanes=2)
    arena.go()
    for _ in range(3):
        num_epochs = len(arena.trained())
        wait_until(lambda least=num_epochs + 4: len(arena.trained()) >= least, "the workers train")
        arena.server.restart()
    assert [worker.wait() for worker in workers] == [0, 0], arena.told()


def while_a_worker_starts(arena: Arena) -> None:
    """Its connections are lost in the middle of its look at the schema."""
    arena.create(6)
    assert arena.worker(faults=replace(FAST, cut_before_sql="FROM hpsearch_schema")).wait() == 0, arena.told()


@pytest.mark.parametrize(
    "scenario", [while_workers_train, while_a_worker_starts], ids=lambda scenario: scenario.__name__
)
def test_row_08_database_restarted(scenario: Callable[[Arena], None], arena: Arena) -> None:
    scenario(arena)
    arena.judge()
    assert no_trial_failed(arena), arena.told()
    assert len(arena.trials()) == 6


def test_row_09_database_away_for_a_while(arena: Arena) -> None:
    """For longer than the leases last; whoever comes back first must not take the others for dead."""
    arena.create(4, max_epochs=60)
    short = replace(SLOW, lease_seconds=2.0, absence_seconds=20.0)
    workers = arena.workers(2, faults=short)
    arena.server.stop()
    stopped = [len(arena.trained(worker)) for worker in workers]
    arena.go()
    # Some three seconds: an epoch takes a tenth of one.
    for worker, before in zip(workers, stopped, strict=True):
        wait_until(lambda w=worker, b=before: len(arena.trained(w)) >= b + 30, "workers train on without a database")
        worker.send(signal.SIGSTOP)
    arena.server.start()
    assert reap(arena) == 0
    for worker in workers:
        worker.send(signal.SIGCONT)
    assert [worker.wait() for worker in workers] == [0, 0]
    arena.judge()
    assert no_trial_failed(arena), arena.told()
    num_epochs = sum(len(line["epochs"]) for line in arena.trained())
    assert num_epochs == 4 * 60, "no epoch was trained twice or lost"


def reap(arena: Arena) -> int:
    """What a worker that is back first and has something to train takes from the others."""
    database = open_database(arena.storage_url)
    (study,) = arena.ask("SELECT study_id FROM studies")
    ledger = Ledger(database=database.brief(), study_id=study.study_id, lease_seconds=2.0, absence_seconds=20.0)
    num_taken = ledger.reap()
    database.close()
    return num_taken


def test_row_10_database_away_for_too_long(arena: Arena) -> None:
    arena.create(3)
    impatient = replace(SLOW, outage_seconds=1.0)
    (worker,) = arena.workers(1, faults=impatient)
    arena.server.stop()
    arena.go()
    assert worker.wait() == 3
    errors = [line for line in worker.said.splitlines() if line.startswith(("error:", "hint:"))]
    assert len(errors) == 2, worker.said
    assert "has been away for 1 s" in errors[0]
    assert "Traceback" not in worker.said
    arena.server.start()
    assert arena.worker(faults=FAST).wait() == 0
    arena.judge()


def test_row_11_database_restarted_again_and_again_during_commits(arena: Arena) -> None:
    arena.create(300, max_epochs=1)
    workers = arena.workers(2, faults=replace(FAST, epoch_seconds=0.05), lanes=3, num_epochs=0)
    arena.go()
    num_restarts = 0
    while num_restarts < 10 and (num_acknowledged := len(arena.acknowledged())) <= 290:
        wait_until(lambda least=num_acknowledged + 5: len(arena.acknowledged()) >= least, "results are acknowledged")
        arena.server.restart()
        num_restarts += 1
    assert num_restarts >= 3, "the study is over too soon, even for a machine that is slow to restart the database"
    assert [worker.wait() for worker in workers] == [0, 0]
    arena.judge()  # what was acknowledged is a subset of what is stored; nothing is counted twice
    assert no_trial_failed(arena), arena.told()


def test_row_12_one_connection_killed(arena: Arena) -> None:
    arena.create(4, max_epochs=15)
    workers = arena.workers(2, faults=SLOW)
    arena.go()
    killed: set[int] = set()
    while len(killed) < 8 and any(worker.is_alive for worker in workers):
        for row in arena.sessions():
            arena.ask("SELECT pg_terminate_backend(:pid, 10000)", pid=row.pid)
            killed.add(row.pid)
    assert len(killed) >= 4, "two of each worker at least"
    assert [worker.wait() for worker in workers] == [0, 0]
    arena.judge()
    assert no_trial_failed(arena), arena.told()
    assert not re.search("error:|traceback", arena.told(), re.IGNORECASE)


# Row 13. A worker that the server no longer answers gives up waiting within its grace, which is its lease, and trains
# on; what it finds to be another's when it is answered again, it writes nothing more to.

CUT_OFF = replace(SLOW, lease_seconds=2.0, absence_seconds=1.0, answer_seconds=0.7)


def test_row_13_server_hangs(arena: Arena) -> None:
    arena.create(4, max_epochs=20)
    workers = arena.workers(2, faults=CUT_OFF)
    arena.server.hang()
    hung = [len(arena.trained(worker)) for worker in workers]
    arena.go()
    for worker, before in zip(workers, hung, strict=True):
        wait_until(lambda w=worker: "has not answered for" in w.said, "the worker gives up a statement that hangs")
        wait_until(lambda w=worker, b=before: len(arena.trained(w)) >= b + 5, "it trains on")
    arena.server.resume()
    assert [worker.wait() for worker in workers] == [0, 0]
    arena.judge()


def test_row_13_sessions_hang(arena: Arena) -> None:
    """The server processes of one worker hang, the server does not: it goes on in new sessions."""
    arena.create(2, max_epochs=20)
    (worker,) = arena.workers(1, faults=CUT_OFF)
    sessions = [psutil.Process(row.pid) for row in arena.sessions()]
    for session in sessions:
        stop_between_transactions(arena, session)
    arena.go()
    assert worker.wait() == 0
    for session in sessions:
        session.resume()
    arena.judge()


def stop_between_transactions(arena: Arena, session: psutil.Process) -> None:
    """SIGSTOP a server process that holds no row lock: those of one that does, nobody can take from it."""
    while True:
        session.suspend()
        (state,) = arena.ask(
            "SELECT xact_start IS NULL AS is_idle FROM pg_stat_activity WHERE pid = :pid", pid=session.pid
        )
        if state.is_idle:
            return
        session.resume()


@pytest.fixture
def guest_network() -> Iterator[GuestNetwork]:
    missing = missing_for_networks()
    if missing is not None:
        if os.environ.get("CI"):
            pytest.fail(missing)
        pytest.skip(missing)
    network = GuestNetwork(os.getpid())
    yield network
    network.remove()


def test_row_13_network_cut(guest_network: GuestNetwork, stopped_server: FaultyPostgres, new_arena: NewArena) -> None:
    stopped_server.configure(listen_addresses=guest_network.host_address)
    stopped_server.trust(guest_network.network)
    arena = new_arena()
    arena.create(4, max_epochs=20)
    url = stopped_server.tcp_url(guest_network.host_address, connect_timeout="1")
    there = replace(CUT_OFF, network_namespace=guest_network.name)
    (far,) = arena.workers(1, faults=there, HPSEARCH_STORAGE=url)
    guest_network.cut()
    arena.go()
    (held,) = [trial for trial in arena.trials() if trial.state is TrialState.RUNNING]
    near = arena.worker(faults=CUT_OFF)
    assert near.wait() == 0, "another worker does all that the lost one leaves"
    assert "has not answered" in far.said, "it has given up waiting on its own"
    guest_network.heal()
    assert far.wait() == 0
    arena.judge()
    assert arena.trials()[held.number].state is TrialState.FAIL
    assert "lost trial" in far.said


def test_row_14_eight_cold_starts_on_an_empty_database(arena: Arena, tmp_path: Path) -> None:
    arena.storage_url = arena.server.create_database("empty")
    study_file = tmp_path / "study.toml"
    study_file.write_text(tomli_w.dumps(arena.document(3, max_epochs=1)))
    barrier = tmp_path / "barrier"
    starts = [arena.start("create", str(study_file), faults=replace(FAST, wait_for=str(barrier))) for _ in range(8)]
    barrier.touch()
    assert [start.wait() for start in starts] == [0] * 8, arena.told()
    assert sorted(start.stdout.read_text() for start in starts) == [
        "study 'faults' created: 3 points\n",
        *["study 'faults' was there already, with the same definition: 3 points\n"] * 7,
    ]
    study = optuna.load_study(study_name="faults", storage=arena.storage_url)
    assert [(trial.number, trial.state) for trial in study.trials] == [(i, TrialState.WAITING) for i in range(3)]
