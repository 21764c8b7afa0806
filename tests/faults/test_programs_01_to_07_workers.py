"""Fault table, rows 1 to 7, for studies whose trials are programs: workers die, hang, are stopped."""

from __future__ import annotations

import signal
import time
from dataclasses import replace

import pytest
from optuna.trial import TrialState

from tests.faults.driver import Faults
from tests.faults.processes import wait_until
from tests.faults.programs import STEPS, ProgramArena, Told, both, command_line, send

pytestmark = pytest.mark.faults

# Leases of ten minutes: it is its absence that gives a dead worker away, or else the test runs out of time.
FAST = Faults(lease_seconds=600.0, absence_seconds=0.5)
# Ten are promised, of a machine of one's own.
LEAVE_SECONDS = 30.0


@both
def test_row_01_worker_killed_in_mid_trial(programs: ProgramArena) -> None:
    """Another one goes on where the script has saved its state, and takes the reports over."""
    programs.create_programs(4)
    programs.hold()
    first, second = (programs.worker(faults=FAST) for _ in range(2))
    programs.wait_for_steps(2)
    first.kill()
    programs.go()
    assert second.wait() == 0
    programs.judge()
    (lost,) = [trial for trial in programs.trials() if trial.state is TrialState.FAIL]
    assert lost.user_attrs["fail_reason"] == "its worker died or lost the database"
    assert list(lost.intermediate_values) == [1]
    (again,) = [trial for trial in programs.counted() if trial.user_attrs["attempt"] == 2]
    steps = [told for told in programs.steps if told.trial in (lost.number, again.number)]
    assert steps == [Told(lost.number, 1, 1), Told(again.number, 2, 2), Told(again.number, 2, 3)]
    assert again.intermediate_values[1] == lost.intermediate_values[1]
    assert again.value == again.intermediate_values[3]
    assert again.user_attrs["best_value"] == again.value
    assert (again.user_attrs["epochs"], again.user_attrs["best_epoch"]) == (3, 3)


def test_the_first_report_of_a_step_wins_when_a_script_starts_over(programs: ProgramArena) -> None:
    """The best value may be one that the killed attempt has reported."""
    forgetful = STEPS.replace('[ -e "$HPSEARCH_FOLDER/begun" ]', "false").replace("$((9 - step))", "$((4 + step))")
    programs.create_programs(1, forgetful)
    programs.hold()
    first = programs.worker(faults=FAST)
    programs.wait_for_steps(1)
    first.kill()
    programs.go()
    assert programs.worker(faults=FAST).wait() == 0
    programs.wait_for_no_strangers()
    (again,) = programs.counted()
    assert [told.step for told in programs.steps] == [1, 1, 2, 3]
    # The last digit of a value is the attempt's.
    assert again.intermediate_values == {1: 0.5101, 2: 0.6102, 3: 0.7102}
    assert (again.value, again.user_attrs["best_epoch"]) == (0.5101, 1)


def test_a_trial_whose_worker_died_after_its_last_step_ends_by_that_step(programs: ProgramArena) -> None:
    """The next attempt's script reports nothing that counts; it is ended as the first one should have been."""
    endless = STEPS + "touch over; while :; do sleep 0.1; done"
    programs.create_programs(1, endless, max_steps=3)
    first = programs.worker(faults=replace(FAST, kill_before_sql="UPDATE hpsearch_points SET owner = NULL"))
    assert first.wait() == -signal.SIGKILL
    assert programs.worker(faults=FAST).wait() == 0
    programs.judge()
    (again,) = programs.counted()
    assert (again.user_attrs["attempt"], again.user_attrs["stop_reason"]) == (2, "max-steps")


@both
@pytest.mark.slow
def test_row_02_worker_killed_before_its_first_heartbeat(programs: ProgramArena) -> None:
    programs.create_programs(3)
    programs.hold()
    # The statement that records, and renews the leases, is the first one after the claim.
    first = programs.worker(faults=replace(FAST, kill_before_sql="reports AS"), lanes=2)
    assert first.wait() == -signal.SIGKILL
    assert programs.num_in("RUNNING") == 2
    programs.go()
    assert programs.worker(faults=FAST).wait() == 0
    programs.judge()
    assert [trial.user_attrs["attempt"] for trial in programs.counted()] == [2, 2, 1]


@both
@pytest.mark.slow
def test_row_03_worker_killed_between_fail_and_requeue(programs: ProgramArena) -> None:
    programs.create_programs(2)
    programs.hold()
    first = programs.worker(faults=FAST)
    programs.wait_for_steps(1)
    first.kill()
    programs.go()
    reaper = programs.worker(faults=replace(FAST, kill_before_sql="INSERT INTO trials"))
    assert reaper.wait() == -signal.SIGKILL
    wait_until(lambda: not programs.sessions(), "the server has noticed that the reaper is gone")
    assert programs.num_in("FAIL", "WAITING") == 0
    assert programs.worker(faults=FAST).wait() == 0
    programs.judge()


@both
@pytest.mark.slow
def test_row_04_all_workers_killed(programs: ProgramArena) -> None:
    programs.create_programs(6)
    workers = [programs.worker(faults=FAST) for _ in range(2)]
    wait_until(lambda: programs.num_in("COMPLETE") >= 2, "two trials have ended", told=programs.told)
    programs.hold()
    for worker in workers:
        worker.kill()
    programs.go()
    before = {trial.number: (trial.value, trial.datetime_complete) for trial in programs.counted()}
    assert programs.worker(faults=FAST).wait() == 0
    programs.judge()
    after = {trial.number: (trial.value, trial.datetime_complete) for trial in programs.counted()}
    assert before.items() <= after.items()
    (row,) = programs.ask("SELECT max(crashes) AS crashes FROM hpsearch_points")
    assert row.crashes <= 1


@both
def test_row_05_two_die_at_the_end_of_the_study(programs: ProgramArena) -> None:
    programs.create_programs(3)
    programs.hold()
    workers = [programs.worker(faults=FAST) for _ in range(3)]
    programs.wait_for_steps(3)
    assert programs.num_in("WAITING") == 0
    for worker in workers[:2]:
        worker.kill()
    programs.go()
    assert workers[2].wait() == 0, "the third stays to take over what the others dropped"
    programs.judge()
    assert sorted(trial.user_attrs["attempt"] for trial in programs.counted()) == [1, 2, 2]


@both
def test_row_06_worker_stopped_for_longer_than_its_lease_and_then_resumed(programs: ProgramArena) -> None:
    """The resumed worker ends its script and goes on with another point; one result counts."""
    programs.create_programs(8)
    programs.hold()
    short = replace(FAST, lease_seconds=1.5, absence_seconds=0.5)
    frozen = programs.worker(faults=short)
    programs.wait_for_steps(1)
    frozen.send(signal.SIGSTOP)
    (held,) = [trial for trial in programs.trials() if trial.state is TrialState.RUNNING]
    (script,) = programs.scripts_of(frozen)
    other = programs.worker(faults=short)
    wait_until(lambda: programs.trials()[held.number].state is TrialState.FAIL, "its point is taken from it")
    frozen.send(signal.SIGCONT)
    wait_until(lambda: not command_line(script), "the resumed worker ends its script", told=programs.told)
    programs.go()
    assert other.wait() == 0
    assert frozen.wait() == 0
    programs.judge()
    lost = programs.trials()[held.number]
    assert (lost.state, lost.intermediate_values) == (TrialState.FAIL, held.intermediate_values)
    (again,) = [trial for trial in programs.counted() if trial.user_attrs["point"] == held.user_attrs["point"]]
    assert sorted(again.intermediate_values) == [1, 2, 3]


@both
def test_row_07_sigterm_gives_the_trials_back_without_a_failed_attempt(programs: ProgramArena) -> None:
    programs.create_programs(2, before="polite")
    programs.hold()
    worker = programs.worker(faults=FAST, lanes=2)
    programs.wait_for_steps(2)
    started = time.monotonic()
    worker.send(signal.SIGTERM)
    assert worker.wait(LEAVE_SECONDS) == 0
    assert time.monotonic() - started < 10.0
    assert programs.scripts() == []
    assert (programs.num_in("RUNNING"), programs.num_in("WAITING")) == (0, 2)
    given_back = [trial for trial in programs.trials() if trial.state is TrialState.FAIL]
    assert [trial.user_attrs["fail_reason"] for trial in given_back] == ["its worker was stopped"] * 2
    assert [row.crashes for row in programs.ask("SELECT crashes FROM hpsearch_points")] == [0, 0]
    programs.go()
    assert programs.worker(faults=FAST, lanes=2).wait() == 0
    programs.judge()
    assert len(programs.steps) == 6, "no step is taken twice"


def test_row_07_reports_that_came_before_the_signal_are_recorded(programs: ProgramArena) -> None:
    """Those of the last second are not in the database yet when the signal comes."""
    programs.create_programs(1, STEPS.replace("[ $step -gt 1 ]", "[ $step -gt 3 ]"))
    programs.hold()
    worker = programs.worker(faults=FAST)
    wait_until(lambda: len(programs.steps) == 3, "it has reported three times", told=programs.told)
    time.sleep(0.2)  # until they have passed through the pipe
    worker.send(signal.SIGTERM)
    assert worker.wait(LEAVE_SECONDS) == 0
    assert programs.num_recorded() == 3


@both
def test_row_07_a_signal_to_all_processes_leaves_no_half_trained_result(programs: ProgramArena) -> None:
    """As Slurm and systemd send it: the scripts get it as soon as their worker, and exit with 0."""
    programs.create_programs(4, STEPS.replace("sleep 0.02", "sleep 0.001"), before="polite")
    programs.hold()
    worker = programs.worker(faults=FAST, lanes=4)
    programs.wait_for_steps(4)
    scripts = programs.scripts_of(worker)
    worker.send(signal.SIGTERM)
    for pid in scripts:
        send(pid, signal.SIGTERM)
    assert worker.wait(LEAVE_SECONDS) == 0
    assert (programs.num_in("COMPLETE"), programs.num_in("WAITING")) == (0, 4)


@both
@pytest.mark.slow
def test_row_07_the_second_signal_ends_the_worker_at_once(programs: ProgramArena) -> None:
    """Its script ignores SIGTERM, so the first signal would take the five seconds of grace."""
    programs.create_programs(1, before="deaf")
    programs.hold()
    worker = programs.worker(faults=FAST)
    programs.wait_for_steps(1)
    worker.send(signal.SIGTERM)
    wait_until(lambda: "ends 1 program" in worker.said, "it ends its program")
    started = time.monotonic()
    worker.send(signal.SIGTERM)
    assert worker.wait() == 128 + signal.SIGTERM
    assert time.monotonic() - started < 4.0
    programs.wait_for_no_strangers()
    programs.go()
    assert programs.worker(faults=FAST).wait() == 0
    programs.judge()


@both
@pytest.mark.slow
def test_row_07_sigterm_while_the_database_hangs(programs: ProgramArena) -> None:
    programs.create_programs(1, before="deaf")
    programs.hold()
    worker = programs.worker(faults=FAST)
    programs.wait_for_steps(1)
    programs.server.hang()
    worker.send(signal.SIGTERM)
    assert worker.wait(LEAVE_SECONDS) == 0, worker.said
    programs.server.resume()
    assert programs.scripts() == []
    programs.go()
    assert programs.worker(faults=FAST).wait() == 0
    programs.judge()
