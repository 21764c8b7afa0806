"""Fault table, rows 22 and 23: the database loses what it has acknowledged; its clock jumps."""

from __future__ import annotations

import signal
from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import datetime
from typing import Any

import pytest
from optuna.trial import TrialState

from tests.faults.arena import Arena
from tests.faults.driver import Faults
from tests.faults.processes import HpsearchProcess, wait_until

pytestmark = pytest.mark.faults

# Leases as in earnest, at a tenth of their length.
FAST = Faults(lease_seconds=3.0, absence_seconds=1.5)
SLOW = replace(FAST, epoch_seconds=0.1)
RANDOM: Mapping[str, Any] = {"strategy": "random", "num_points": 6, "learning_rate": {"log10": [0, -2]}}
ROUNDS: Mapping[str, Any] = {"strategy": "coarse-to-fine", "learning_rate": {"log10": [-1, -2]}, "budget_points": 6}


def test_row_22_commits_lost_in_a_crash(arena: Arena) -> None:
    """The server is killed as soon as a result is acknowledged; what it had not written to the disk is gone."""
    arena.create(8, max_epochs=12)
    workers = arena.workers(2, faults=SLOW)
    arena.server.commit_asynchronously(True)
    arena.go()
    wait_until(lambda: arena.counted(), "a result is acknowledged", told=arena.told)
    for worker in workers:  # on a busy machine they could finish the study, and leave, before the crash
        worker.send(signal.SIGSTOP)
    arena.server.restart()
    for worker in workers:
        worker.send(signal.SIGCONT)
    assert arena.counted() == [], "the crash has undone it"
    assert [worker.wait() for worker in workers] == [0, 0], arena.told()
    arena.judge(has_lost_commits=True)
    assert "the database has lost acknowledged writes" in arena.told()
    points = arena.ask("SELECT crashes FROM hpsearch_points")
    assert {row.crashes for row in points} == {0}, "nobody has crashed"


def before_anything_is_claimed(arena: Arena) -> None:
    pass


def in_mid_trial(arena: Arena) -> None:
    arena.wait_for_training(1, min_epochs=2)  # rounds may have but one point


def after_a_result(arena: Arena) -> None:
    wait_until(lambda: arena.counted(), "a result", told=arena.told)


def at_the_end(arena: Arena) -> None:
    wait_until(lambda: len(arena.counted()) >= 5, "most results", told=arena.told)


SEARCHES: Mapping[str, Mapping[str, Any]] = {"grid": {}, "random": RANDOM, "rounds": ROUNDS}
# When the copy is taken, when it is put back, and the kind of search.
LOSSES = [
    (before_anything_is_claimed, at_the_end, "grid"),
    (in_mid_trial, after_a_result, "random"),
    (after_a_result, at_the_end, "rounds"),
    *(
        pytest.param(*loss, marks=pytest.mark.slow)
        for loss in (
            (before_anything_is_claimed, at_the_end, "random"),
            (before_anything_is_claimed, at_the_end, "rounds"),
            (in_mid_trial, after_a_result, "grid"),
            (in_mid_trial, after_a_result, "rounds"),
            (before_anything_is_claimed, in_mid_trial, "grid"),
            (before_anything_is_claimed, in_mid_trial, "random"),
            (before_anything_is_claimed, in_mid_trial, "rounds"),
            (after_a_result, at_the_end, "grid"),
            (after_a_result, at_the_end, "random"),
        )
    ),
]


@pytest.mark.parametrize(("copied", "restored", "kind"), LOSSES, ids=lambda part: getattr(part, "__name__", part))
def test_row_22_older_data_put_back(
    copied: Callable[[Arena], None], restored: Callable[[Arena], None], kind: str, arena: Arena
) -> None:
    """A failover to a standby that lags behind, or a restored backup: claims, epochs, results, rounds, parameters."""
    search = SEARCHES[kind]
    arena.create(6, max_epochs=8, **({"search": search} if search else {}))
    often = replace(SLOW, checkpoint_seconds=0.2)
    if copied is before_anything_is_claimed:
        arena.server.keep_copy()
    workers = start(arena, often)
    if copied is not before_anything_is_claimed:
        copied(arena)
        arena.server.keep_copy()
    restored(arena)
    arena.server.put_copy_back()
    assert [worker.wait() for worker in workers] == [0, 0], arena.told()
    assert arena.worker(faults=FAST).wait() == 0, "what was undone after the workers had left, another one does"
    if kind == "rounds":
        (points,) = arena.ask("SELECT count(*) AS number FROM hpsearch_points")
        arena.num_points = points.number
    arena.judge(has_lost_commits=True)
    for trial in arena.counted():
        assert list(trial.params) == ["learning_rate"]
        assert trial.state is TrialState.COMPLETE
        assert len(trial.intermediate_values) == 8


def start(arena: Arena, faults: Faults) -> list[HpsearchProcess]:
    return [arena.worker(faults=faults, lanes=lanes) for lanes in (1, 2)]


# Row 23. A jump of an hour is longer than any lease, absence or outage.

HOUR = 3600.0


@pytest.mark.parametrize("jump", [HOUR, -3 * HOUR], ids=["forward", "back"])
def test_row_23_clock_jumps_under_living_workers(jump: float, arena: Arena) -> None:
    """Nobody is reaped, though another worker looks again and again before anybody can renew."""
    arena.server.shift_clock(0.0)
    arena.create(2)
    rare = replace(FAST, lease_seconds=9.0, absence_seconds=4.5)  # renewed every three seconds
    workers = arena.workers(2, faults=rare)
    looker = arena.worker(faults=rare)
    wait_until(lambda: "joins study" in looker.said, "a third one has joined", told=arena.told)
    before, leases = clock_of(arena), leases_of(arena)
    arena.server.shift_clock(jump)
    assert abs((clock_of(arena) - before).total_seconds() - jump) < HOUR / 2
    wait_until(lambda: not leases & leases_of(arena), "both have renewed their leases, or lost them", told=arena.told)
    arena.go()
    assert [worker.wait() for worker in (*workers, looker)] == [0, 0, 0], arena.told()
    arena.judge()
    assert [trial.state for trial in arena.trials()] == [TrialState.COMPLETE] * 2, "nobody was taken for dead"


@pytest.mark.parametrize("jump", [HOUR, -3 * HOUR], ids=["forward", "back"])
def test_row_23_clock_jumps_and_a_worker_dies(jump: float, arena: Arena) -> None:
    """Its point is another's after `absence`, as ever."""
    arena.server.shift_clock(0.0)
    arena.create(2)
    dead, other = arena.workers(2, faults=FAST)
    arena.server.shift_clock(jump)
    dead.kill()
    arena.go()
    assert other.wait() == 0, arena.told()
    arena.judge()
    assert sorted(trial.user_attrs["attempt"] for trial in arena.counted()) == [1, 2]


def clock_of(arena: Arena) -> datetime:
    (row,) = arena.ask("SELECT now() AS now")
    assert isinstance(row.now, datetime)
    return row.now


def leases_of(arena: Arena) -> set[tuple[Any, ...]]:
    return {tuple(row) for row in arena.ask("SELECT trial_id, renewed_at FROM hpsearch_points WHERE owner IS NOT NULL")}
