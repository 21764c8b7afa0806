"""What surrounds a worker: a study whose points were given up, and a GPU whose worker is awaited after a restart."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from hpsearch.device.devices import Gpu
from hpsearch.device.gpu_lock import GpuLockSession
from hpsearch.device.pin import _take_one
from hpsearch.store.claims.lease import ABSENCE_SECONDS
from hpsearch.store.claims.ledger import Ledger
from hpsearch.store.connection.database import Database
from hpsearch.store.studies import StoredStudy
from hpsearch.worker.lanes.process import _tell_given_up

UUID = "GPU-5ee1c0de"


@pytest.mark.parametrize("state", ["FAIL", "COMPLETE"])
def test_a_worker_that_leaves_tells_of_points_that_were_given_up(
    database: Database,
    new_study: Callable[..., StoredStudy],
    execute: Any,
    caplog: pytest.LogCaptureFixture,
    state: str,
) -> None:
    study = new_study(3)
    _tell_given_up(database, study)
    assert caplog.messages == []  # not while points are open
    if state == "FAIL":
        execute(
            "INSERT INTO trial_user_attributes (trial_id, key, value_json) "
            "SELECT trial_id, 'fail_reason', '\"its worker died\"' FROM trials"
        )
    else:
        execute("UPDATE hpsearch_points SET is_counted = true")
    execute(f"UPDATE trials SET state = '{state}'")
    caplog.set_level("WARNING")
    _tell_given_up(database, study)
    told = f"3 of 3 points of study {study.name} were given up: their workers died or failed each time"
    assert caplog.messages == ([told] if state == "FAIL" else [])


def test_a_gpu_is_left_to_the_worker_that_trained_on_it_for_a_while_after_a_restart(
    database: Database, new_study: Callable[..., StoredStudy]
) -> None:
    """Its sessions are gone; nobody but the waiter's own clock tells how long."""
    seconds = 0.0
    gpu = Gpu(index=0, uuid=UUID, name="Test")
    ledger = Ledger(database=database, study_id=new_study(3).study_id, owner=7)
    session = GpuLockSession(database, "waiter", clock=lambda: seconds)
    try:
        assert not session.is_awaited(UUID)  # a fresh server: nobody trains
        ledger.claim(1, attributes={"device": f"cuda:0 (Test, {UUID})"})
        assert session.is_awaited(UUID)
        assert not session.is_awaited("GPU-0ther")
        assert _take_one(session, [gpu], is_shared=False) is None
        seconds = ABSENCE_SECONDS - 1
        assert session.is_awaited(UUID)
        ledger.renew()  # it lives: its sessions are on their way
        for _ in range(2):
            assert _take_one(session, [gpu], is_shared=False) is None
            seconds += ABSENCE_SECONDS / 2
        assert _take_one(session, [gpu], is_shared=False) is gpu
    finally:
        session.close()
