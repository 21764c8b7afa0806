"""A worker's presence: its lock lives and dies with it, and its leases are renewed meanwhile."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
from sqlalchemy import text
from sqlalchemy.exc import OperationalError

from hpsearch.errors import StorageError
from hpsearch.store.claims.lease import PRESENCE_NAMESPACE
from hpsearch.store.claims.ledger import Ledger
from hpsearch.store.connection.answer_limit import answer_limit
from hpsearch.store.connection.database import Database
from hpsearch.store.rows.counts import PointCounts
from hpsearch.store.studies import StoredStudy
from hpsearch.worker import lease_keeper as presence_module
from hpsearch.worker.health.watchdog import Watchdog
from hpsearch.worker.lease_keeper import Presence

# Claims two points of study argv[2] in the database argv[1], tells its number, and never ends.
WORKER = """
import sys
from hpsearch.store.connection.database import open_database
from hpsearch.store.claims.ledger import Ledger
from hpsearch.worker.lease_keeper import Presence
database = open_database(sys.argv[1])
with Presence(Ledger(database=database, study_id=int(sys.argv[2]))) as presence:
    presence.ledger.claim(2)
    print(presence.ledger.owner, flush=True)
    sys.stdin.read()
"""
RENEWALS = "SELECT renewed_at FROM hpsearch_points WHERE owner = :owner ORDER BY point"
HOLDERS = """
    SELECT pid FROM pg_locks WHERE locktype = 'advisory' AND objsubid = 2 AND granted
    AND classid = CAST(:namespace AS oid) AND objid = CAST(:owner AS oid)
    AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
"""


@pytest.fixture
def ledger(database: Database, new_study: Callable[..., StoredStudy]) -> Ledger:
    # Long leases: the thread has nothing to do unless a test wants it to.
    return Ledger(database=database, study_id=new_study(3).study_id, lease_seconds=3600.0)


@pytest.fixture
def holders(execute: Any) -> Callable[[int], list[int]]:
    """The server processes that hold a worker's lock."""

    def find(owner: int) -> list[int]:
        return [row.pid for row in execute(HOLDERS, namespace=PRESENCE_NAMESPACE, owner=owner)]

    return find


def kill_session(execute: Any, pid: int) -> None:
    execute("SELECT pg_terminate_backend(:pid, 10000)", pid=pid)  # returns once it is gone


def wait_until_missed(database: Database, owner: int) -> None:
    """Until the server has noticed that the session with this worker's lock is gone."""
    key = {"namespace": PRESENCE_NAMESPACE, "owner": owner}
    with answer_limit(240.0), database.engine.connect() as connection:
        connection.execute(text("SELECT pg_advisory_xact_lock(:namespace, :owner)"), key)


def test_lock_is_held_while_the_worker_lives_and_gone_when_it_leaves(
    ledger: Ledger, holders: Callable[[int], list[int]]
) -> None:
    with Presence(ledger) as presence:
        owner = presence.ledger.owner
        assert 0 < owner < 2**31
        assert len(holders(owner)) == 1
    assert holders(owner) == []


def test_each_worker_has_a_number_of_its_own(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    draws = iter([6, 6, 6, 7])
    monkeypatch.setattr(presence_module.secrets, "randbelow", lambda _: next(draws))
    with Presence(ledger) as first, Presence(ledger) as second:
        assert (first.ledger.owner, second.ledger.owner) == (7, 8)


def test_connections_are_given_back(ledger: Ledger) -> None:
    for _ in range(20):  # more than the pool holds
        with Presence(ledger):
            pass
    assert ledger.database.engine.pool.checkedout() == 0


def test_killed_worker_is_missed_and_its_points_are_taken_over(
    ledger: Ledger, tables_url: str, execute: Any, holders: Callable[[int], list[int]]
) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", WORKER, tables_url, str(ledger.study_id)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert process.stdout is not None
    owner = int(process.stdout.readline())
    reaper = Ledger(
        database=ledger.database,
        study_id=ledger.study_id,
        owner=99,
        absence_seconds=0.0,
        lease_seconds=3600.0,
    )
    assert len(holders(owner)) == 1
    assert reaper.reap() == 0
    process.kill()
    process.communicate(timeout=240)
    wait_until_missed(ledger.database, owner)
    assert reaper.reap() == 2
    assert reaper.counts() == PointCounts(waiting=3)


def test_cut_session_is_replaced_and_the_leases_are_renewed_in_the_same_turn(
    ledger: Ledger, execute: Any, holders: Callable[[int], list[int]]
) -> None:
    with Presence(ledger) as presence:
        owner = presence.ledger.owner
        presence.ledger.claim(1)
        (pid,) = holders(owner)
        before = execute(RENEWALS, owner=owner)
        kill_session(execute, pid)
        assert holders(owner) == []
        presence.renew(presence.ledger)
        (other_pid,) = holders(owner)
        assert other_pid != pid
        assert execute(RENEWALS, owner=owner) != before
        presence.renew(presence.ledger)
        assert holders(owner) == [other_pid]
    assert holders(owner) == []


def test_lock_that_an_old_session_still_holds_does_not_keep_the_leases_from_being_renewed(
    ledger: Ledger, execute: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """A half-open connection: the worker has lost it, the server has not noticed."""
    with Presence(ledger) as presence:
        owner = presence.ledger.owner
        presence.ledger.claim(1)
        old = presence._session._connection
        presence._session._connection = None
        presence.renew(presence.ledger)
        assert "old session is still open" in caplog.text
        assert execute("SELECT owner FROM hpsearch_points WHERE owner IS NOT NULL") == [(owner,)]
        assert old is not None
        old.close()


@dataclass(frozen=True, kw_only=True)
class WatchedLedger(Ledger):
    """Tells when the thread has renewed, and can be made to fail."""

    renewed: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))
    errors: Iterator[Exception] = field(default_factory=lambda: iter(()))

    def renew(self) -> int:
        try:
            for error in self.errors:
                raise error
            return super().renew()
        finally:
            self.renewed.release()


def watched(ledger: Ledger, *errors: Exception, lease_seconds: float = 0.03) -> WatchedLedger:
    return WatchedLedger(
        database=ledger.database, study_id=ledger.study_id, lease_seconds=lease_seconds, errors=iter(errors)
    )


def test_thread_renews_the_leases_again_and_again(ledger: Ledger, execute: Any) -> None:
    watching = watched(ledger)
    with Presence(watching) as presence:
        presence.ledger.claim(1)
        for _ in range(3):
            before = execute(RENEWALS, owner=presence.ledger.owner)
            while watching.renewed.acquire(blocking=False):  # those that ended before
                pass
            for _ in range(2):  # the first may have begun before
                assert watching.renewed.acquire(timeout=240)
            assert execute(RENEWALS, owner=presence.ledger.owner) != before


def test_thread_outlives_errors(ledger: Ledger, execute: Any, caplog: pytest.LogCaptureFixture) -> None:
    watching = watched(ledger, StorageError("away"), OperationalError("SELECT", {}, Exception("cut\nhere")))
    with Presence(watching) as presence:
        presence.ledger.claim(1)
        for _ in range(4):
            assert watching.renewed.acquire(timeout=240)
        assert execute("SELECT count(*) FROM hpsearch_points WHERE renewed_at IS NOT NULL") == [(1,)]
    assert "could not renew the leases: away" in caplog.text
    assert "could not renew the leases: (builtins.Exception) cut\n" in caplog.text


def test_leaving_ends_the_thread(ledger: Ledger) -> None:
    with Presence(ledger) as presence:
        assert presence._thread.is_alive()
    assert not presence._thread.is_alive()


@dataclass(frozen=True, kw_only=True)
class SlowLedger(Ledger):
    """A thread that renews takes its time."""

    has_begun: threading.Event = field(default_factory=threading.Event)
    may_end: threading.Event = field(default_factory=threading.Event)

    def renew(self) -> int:
        self.has_begun.set()
        assert self.may_end.wait(240)
        return super().renew()


def test_a_thread_that_is_late_leaves_no_session_behind(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    """It would lock again, and the worker that has left would count as present."""
    monkeypatch.setattr(presence_module, "_UNLOCK_SECONDS", 0.01)
    slow = SlowLedger(database=ledger.database, study_id=ledger.study_id, lease_seconds=0.03)
    with Presence(slow) as presence:
        assert slow.has_begun.wait(240)
    slow.may_end.set()
    presence._thread.join(240)
    assert presence._session._connection is None
    wait_until_missed(ledger.database, presence.ledger.owner)
    assert ledger.database.engine.pool.checkedout() == 0


def test_worker_that_hangs_is_not_present_for_ever(ledger: Ledger, execute: Any) -> None:
    """Its session is open, but nobody renews (SIGSTOP): the lease alone decides."""
    presence = Presence(ledger)  # not entered: no thread
    presence.ledger.claim(1)
    reaper = Ledger(database=ledger.database, study_id=ledger.study_id, owner=99, absence_seconds=0.0)
    assert reaper.reap() == 0
    assert replace(reaper, lease_seconds=0.0).reap() == 1
    assert presence.ledger.renew() == 0
    presence._session.close()


def test_start_waits_for_a_database_that_is_away_for_a_moment(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    real = Presence._ask
    failures = iter([OperationalError("SELECT", {}, Exception("server closed the connection"))])

    def ask(self: Presence, *arguments: Any) -> bool:
        for failure in failures:
            raise failure
        return real(self, *arguments)

    monkeypatch.setattr(Presence, "_ask", ask)
    with Presence(ledger) as presence:
        assert presence.ledger.owner > 0


class Hung(Watchdog):
    """Says at its first turn that the device hangs."""

    def turn(self, seconds: float) -> bool:
        self._quiet_seconds += seconds
        return True


@pytest.fixture
def left(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """Set when the process of a hung worker would end."""
    left = threading.Event()
    monkeypatch.setattr(presence_module.os, "_exit", lambda code: left.set())
    return left


def test_a_hung_worker_gives_its_points_back_as_a_crash_and_ends(
    ledger: Ledger, left: threading.Event, execute: Any, caplog: pytest.LogCaptureFixture
) -> None:
    presence = Presence(replace(ledger, lease_seconds=0.3), watchdog=Hung(0.0))
    presence.ledger.claim(2)
    with presence:
        assert left.wait(240)
    assert presence.ledger.counts() == PointCounts(waiting=3)
    assert execute("SELECT crashes FROM hpsearch_points ORDER BY point") == [(1,), (1,), (0,)]
    assert "no progress for 0 s (--stall-seconds): its device or its network hangs" in caplog.text
    reasons = execute("SELECT value_json FROM trial_user_attributes WHERE key = 'fail_reason'")
    assert reasons == [('"no progress for 0 s (--stall-seconds): its device or its network hangs"',)] * 2


def test_a_hung_worker_ends_even_if_the_database_takes_nothing_back(
    ledger: Ledger, left: threading.Event, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: object, **__: object) -> int:
        raise StorageError("away")

    monkeypatch.setattr(Ledger, "release", fail)
    with Presence(replace(ledger, lease_seconds=0.03), watchdog=Hung(0.0)):
        assert left.wait(240)
    assert "could not give the trials back; their leases will expire: away" in caplog.text


def test_a_worker_that_gets_on_is_renewed(ledger: Ledger) -> None:
    watching = watched(ledger)
    with Presence(watching, watchdog=Watchdog(3600.0)):
        for _ in range(2):
            assert watching.renewed.acquire(timeout=240)


def test_what_else_a_worker_holds_is_kept_with_each_renewal_whatever_becomes_of_it(ledger: Ledger) -> None:
    watching = watched(ledger, StorageError("away"))
    kept = threading.Semaphore(0)
    with Presence(watching, keep=kept.release):
        for _ in range(2):
            assert kept.acquire(timeout=240)


def test_a_worker_that_is_cut_off_for_longer_than_a_lease_says_so_once(
    ledger: Ledger, caplog: pytest.LogCaptureFixture
) -> None:
    watching = watched(ledger, *[StorageError("away")] * 12)
    with Presence(watching):
        for _ in range(14):
            assert watching.renewed.acquire(timeout=240)
    assert caplog.text.count("cut off from the database for longer than a lease") == 1
