"""Beyond the table: a device or a network that hangs. Its worker lives and could renew its leases for ever."""

from __future__ import annotations

import re

import pytest
from optuna.trial import TrialState

from tests.faults.arena import Arena
from tests.faults.driver import Faults

pytestmark = pytest.mark.faults


def test_a_worker_whose_device_hangs_gives_its_trial_back_and_ends(arena: Arena) -> None:
    arena.create(2)
    (hung,) = arena.workers(1, faults=Faults(lease_seconds=1.5), HPSEARCH_STALL_SECONDS="3")
    assert hung.wait() == 1
    assert "its device or its network hangs; this worker gives its trials back and ends" in hung.said
    (lost,) = [trial for trial in arena.trials() if trial.state is TrialState.FAIL]
    assert lost.user_attrs["fail_reason"].startswith("no progress for ")
    assert (arena.num_in("RUNNING"), arena.num_in("WAITING")) == (0, 2)
    arena.go()
    assert arena.worker().wait() == 0
    arena.judge()
    assert [trial.user_attrs["attempt"] for trial in arena.counted()] == [2, 1]


def foreign(arena: Arena, how: str) -> None:
    arena.create(1, model={"family": "tests.faults.foreign_network:Misbehaving", "options": {"how": how}})


def test_a_forward_pass_that_spins_for_ever_is_noticed_though_it_uses_the_processor(arena: Arena) -> None:
    foreign(arena, "spin")
    spinning = arena.worker(faults=Faults(lease_seconds=1.5), HPSEARCH_STALL_SECONDS="3")
    assert spinning.wait() == 1
    assert "its device or its network hangs; this worker gives its trials back and ends" in spinning.said
    (lost,) = [trial for trial in arena.trials() if trial.state is TrialState.FAIL]
    assert lost.user_attrs["fail_reason"].startswith("no progress for ")


def test_the_trials_of_a_network_that_raises_say_what_and_where(arena: Arena) -> None:
    foreign(arena, "raise")
    assert arena.worker().wait() == 1
    (lost,) = [trial for trial in arena.trials() if trial.state is TrialState.FAIL]
    reason = lost.user_attrs["fail_reason"]
    assert reason.startswith("its worker failed: ValueError: no such layer in postgresql://")
    assert re.search(r"\(foreign_network\.py:\d+\)$", reason)
    assert "hunter2secret" not in reason
    assert "second line" not in reason
