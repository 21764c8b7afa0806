"""Beyond the table: a device that hangs. Its worker lives and could renew its leases for ever."""

from __future__ import annotations

import pytest
from optuna.trial import TrialState

from tests.faults.arena import Arena
from tests.faults.driver import Faults

pytestmark = pytest.mark.faults


def test_a_worker_whose_device_hangs_gives_its_trial_back_and_ends(arena: Arena) -> None:
    arena.create(2)
    (hung,) = arena.workers(1, faults=Faults(lease_seconds=1.5), HPSEARCH_STALL_SECONDS="3")
    assert hung.wait() == 1
    assert "the device hangs; this worker gives its trials back and ends" in hung.said
    (lost,) = [trial for trial in arena.trials() if trial.state is TrialState.FAIL]
    assert lost.user_attrs["fail_reason"].startswith("no progress for ")
    assert (arena.num_in("RUNNING"), arena.num_in("WAITING")) == (0, 2)
    arena.go()
    assert arena.worker().wait() == 0
    arena.judge()
    assert [trial.user_attrs["attempt"] for trial in arena.counted()] == [2, 1]
