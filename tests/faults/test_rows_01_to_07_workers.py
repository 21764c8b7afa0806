"""Fault table, rows 1 to 7: workers die, hang, are stopped."""

from __future__ import annotations

import signal
from collections.abc import Callable
from dataclasses import replace

import pytest
from optuna.trial import TrialState

from tests.faults.arena import Arena
from tests.faults.driver import Faults
from tests.faults.processes import HpsearchProcess, wait_until

pytestmark = pytest.mark.faults

# Leases of ten minutes: it is its absence that gives a dead worker away, or else the test runs out of time.
FAST = Faults(lease_seconds=600.0, absence_seconds=0.5)
SLOW = replace(FAST, epoch_seconds=0.1)
# Ten are promised, of a machine of one's own. What would break the promise waits for a minute.
LEAVE_SECONDS = 30.0


def test_row_01_worker_killed_in_mid_trial(arena: Arena) -> None:
    arena.create(4)
    first, second = arena.workers(2, faults=FAST)
    first.kill()
    arena.go()
    assert second.wait() == 0
    arena.judge()
    (lost,) = [trial for trial in arena.trials() if trial.state is TrialState.FAIL]
    assert lost.user_attrs["fail_reason"] == "its worker died or lost the database"
    assert list(lost.intermediate_values) == [1]


def test_row_02_worker_killed_before_its_first_heartbeat(arena: Arena) -> None:
    arena.create(3)
    first = arena.worker(faults=replace(FAST, kill_before_epoch=1), lanes=2)
    assert first.wait() == -signal.SIGKILL
    assert arena.num_in("RUNNING") == 2
    assert not any(trial.intermediate_values for trial in arena.trials())
    assert arena.worker(faults=FAST).wait() == 0
    arena.judge()
    assert [trial.user_attrs["attempt"] for trial in arena.counted()] == [2, 2, 1]


def test_row_03_worker_killed_between_fail_and_requeue(arena: Arena) -> None:
    """The reaper dies after it has set a dead worker's trial to FAIL and before the point WAITs again."""
    arena.create(2)
    assert arena.worker(faults=replace(FAST, kill_before_epoch=2)).wait() == -signal.SIGKILL
    reaper = arena.worker(faults=replace(FAST, kill_before_sql="INSERT INTO trials"))
    assert reaper.wait() == -signal.SIGKILL
    wait_until(lambda: not arena.sessions(), "the server has noticed that the reaper is gone")
    # One transaction: the point still stands as the dead worker left it, and is not lost between two states. (It has
    # trained the other one before it could tell that the first one's worker is dead.)
    assert [arena.num_in(state) for state in ("RUNNING", "FAIL", "WAITING", "COMPLETE")] == [1, 0, 0, 1]
    assert arena.worker(faults=FAST).wait() == 0
    arena.judge()
    assert len(arena.trials()) == 3


def test_row_04_all_workers_killed(arena: Arena) -> None:
    arena.create(6, max_epochs=3)
    workers = arena.workers(2, faults=FAST, num_epochs=4)  # each has finished a trial and is in its second one
    for worker in workers:
        worker.kill()
    before = {trial.number: (trial.value, trial.datetime_complete) for trial in arena.counted()}
    assert len(before) == 2
    rest = arena.worker(faults=FAST)
    assert rest.wait() == 0
    arena.judge()
    after = {trial.number: (trial.value, trial.datetime_complete) for trial in arena.counted()}
    assert before.items() <= after.items()
    assert len({key for line in arena.trained(rest) for key in line["epochs"]}) == 4, "it trained just the remainder"


def test_row_05_two_die_at_the_end_of_the_study(arena: Arena) -> None:
    arena.create(3)
    workers = arena.workers(3, faults=FAST)
    assert arena.num_in("WAITING") == 0
    for worker in workers[:2]:
        worker.kill()
    arena.go()
    assert workers[2].wait() == 0, "the third stays to take over what the others dropped"
    arena.judge()
    assert sorted(trial.user_attrs["attempt"] for trial in arena.counted()) == [1, 2, 2]


def test_row_06_worker_stopped_for_longer_than_its_lease_and_then_resumed(arena: Arena) -> None:
    arena.create(20)
    short = replace(FAST, lease_seconds=1.5, absence_seconds=0.5)
    (frozen,) = arena.workers(1, faults=short)
    frozen.send(signal.SIGSTOP)
    (held,) = [trial for trial in arena.trials() if trial.state is TrialState.RUNNING]
    other = arena.worker(faults=replace(short, epoch_seconds=0.1))  # the resumed one finds points left
    wait_until(lambda: arena.trials()[held.number].state is TrialState.FAIL, "its point is taken from it")
    frozen.send(signal.SIGCONT)
    arena.go()
    wait_until(
        lambda: {trial for line in arena.trained(frozen) for trial in line["epochs"]} - {str(held._trial_id)},
        "the resumed worker goes on with another point",
    )
    other.send(signal.SIGTERM)
    assert other.wait() == 0
    assert frozen.wait() == 0
    arena.judge()
    lost = arena.trials()[held.number]
    assert (lost.state, lost.intermediate_values) == (TrialState.FAIL, held.intermediate_values)
    assert "lost trial" in frozen.said


def goes_on_from_its_checkpoint(arena: Arena) -> None:
    arena.create(2, max_epochs=50)
    worker = arena.worker(faults=SLOW, lanes=2)
    arena.wait_for_training(1, min_epochs=3)
    worker.send(signal.SIGTERM)
    assert worker.wait(LEAVE_SECONDS) == 0
    assert (arena.num_in("RUNNING"), arena.num_in("WAITING")) == (0, 2)
    given_back = [trial for trial in arena.trials() if trial.state is TrialState.FAIL]
    assert [trial.user_attrs["fail_reason"] for trial in given_back] == ["its worker was stopped"] * 2
    after = arena.worker(faults=FAST, lanes=2)
    assert after.wait() == 0
    num_given_back = sum(len(trial.intermediate_values) for trial in given_back)
    num_trained = sum(len(line["epochs"]) for line in arena.trained(after))
    assert num_trained == 100 - num_given_back, "no epoch is trained twice"


def exits_at_once_in_an_epoch_when_asked_again(arena: Arena) -> None:
    arena.create(1)
    (worker,) = arena.workers(1, faults=FAST)
    arena.server.hang()  # or it might have left before it is asked again
    insist(worker)
    arena.server.resume()
    assert arena.worker(faults=FAST).wait() == 0


def exits_at_once_at_a_hung_database_when_asked_again(arena: Arena) -> None:
    arena.create(2, max_epochs=2)
    (worker,) = arena.workers(1, faults=FAST)
    arena.server.hang()
    arena.go()
    wait_until(lambda: len(arena.trained(worker)) == 2, "its trial has ended, and it wants another one")
    insist(worker)
    arena.server.resume()
    assert arena.worker(faults=FAST).wait() == 0


def leaves_in_time_while_the_database_is_away(arena: Arena) -> None:
    leave_in_time(arena, harm=arena.server.stop, mend=arena.server.start)


def leaves_in_time_while_the_database_hangs(arena: Arena) -> None:
    leave_in_time(arena, harm=arena.server.hang, mend=arena.server.resume)


def leave_in_time(arena: Arena, *, harm: Callable[[], None], mend: Callable[[], None]) -> None:
    """One worker that trains and one that has nothing to do, both of which would wait for the database for a minute."""
    arena.create(1, max_epochs=400)  # forty seconds for the other one to join
    faults = replace(SLOW, lease_seconds=2.0, absence_seconds=1.0)
    training = arena.worker(faults=faults)
    arena.wait_for_training(1, min_epochs=2)
    idle = arena.worker(faults=faults)
    wait_until(lambda: "joins study" in idle.said, "the other one has joined")
    harm()
    for worker in (training, idle):
        worker.send(signal.SIGTERM)
    for worker in (training, idle):
        assert worker.wait(LEAVE_SECONDS) == 0, worker.said
    mend()
    assert arena.worker(faults=replace(faults, epoch_seconds=0.0)).wait() == 0


def insist(worker: HpsearchProcess) -> None:
    """SIGTERM again and again; the worker must not get as far as a clean end."""

    def has_ended() -> bool:
        worker.send(signal.SIGTERM)
        return not worker.is_alive

    wait_until(has_ended, "it exits at the second signal")
    assert worker.wait() == 128 + signal.SIGTERM


@pytest.mark.parametrize(
    "scenario",
    [
        goes_on_from_its_checkpoint,
        exits_at_once_in_an_epoch_when_asked_again,
        exits_at_once_at_a_hung_database_when_asked_again,
        leaves_in_time_while_the_database_is_away,
        leaves_in_time_while_the_database_hangs,
    ],
    ids=lambda scenario: scenario.__name__,
)
def test_row_07_sigterm(scenario: Callable[[Arena], None], arena: Arena) -> None:
    scenario(arena)
    arena.judge()
