"""Fault table, rows 8 to 17, for studies whose trials are programs: the database goes away, points are poisonous."""

from __future__ import annotations

import signal
import time
from dataclasses import replace

import pytest
from optuna.trial import TrialState

from tests.faults.driver import Faults
from tests.faults.processes import wait_until
from tests.faults.programs import ProgramArena, both, send

pytestmark = [pytest.mark.faults, pytest.mark.slow]  # lanes and programs share the code below the worker

FAST = Faults(lease_seconds=600.0, absence_seconds=0.5)
SHORT = replace(FAST, lease_seconds=3.0, absence_seconds=1.0)


@both
def test_row_08_database_restarted(programs: ProgramArena) -> None:
    """No program is ended, and no attempt fails."""
    programs.create_programs(4)
    programs.hold()
    workers = [programs.worker(faults=FAST, lanes=2) for _ in range(2)]
    programs.wait_for_steps(4)
    programs.server.restart()
    programs.go()
    assert [worker.wait() for worker in workers] == [0, 0]
    programs.judge()
    assert {trial.state for trial in programs.trials()} == {TrialState.COMPLETE}
    assert len(programs.steps) == 12


@both
def test_row_09_programs_go_on_while_the_lease_lives(programs: ProgramArena) -> None:
    """What they report and how they end meanwhile is written once the database is back."""
    programs.create_programs(3)
    programs.hold()
    worker = programs.worker(faults=FAST, lanes=2)
    programs.wait_for_steps(2)
    programs.server.stop()
    programs.go()
    wait_until(lambda: len(programs.steps) == 6, "both end meanwhile", told=programs.told)
    wait_until(lambda: programs.scripts() == [], "both have ended")
    time.sleep(3.0)  # long enough for the worker to ask in vain
    programs.server.start()
    assert worker.wait() == 0
    programs.judge()
    assert {trial.state for trial in programs.trials()} == {TrialState.COMPLETE}


@both
def test_row_09_programs_are_ended_when_the_lease_could_not_be_renewed(programs: ProgramArena) -> None:
    """Nobody else is there to take the points: the worker itself gives them back and goes on with them."""
    programs.create_programs(2)
    programs.hold()
    worker = programs.worker(faults=SHORT, lanes=2)
    programs.wait_for_steps(2)
    programs.server.stop()
    wait_until(lambda: "its programs are ended" in worker.said, "it is cut off", told=programs.told)
    wait_until(lambda: programs.scripts() == [], "its programs are ended", told=programs.told)
    programs.go()
    time.sleep(2.0)
    assert worker.is_alive
    programs.server.start()
    assert worker.wait() == 0
    programs.judge()
    assert [trial.user_attrs["attempt"] for trial in programs.counted()] == [2, 2]
    reasons = [t.user_attrs["fail_reason"] for t in programs.trials() if t.state is TrialState.FAIL]
    assert reasons == ["its worker was cut off from the database for the length of a lease"] * 2
    assert [row.crashes for row in programs.ask("SELECT crashes FROM hpsearch_points")] == [0, 0]


@both
def test_row_10_database_down_beyond_the_limit(programs: ProgramArena) -> None:
    programs.create_programs(2)
    programs.hold()
    worker = programs.worker(faults=replace(SHORT, outage_seconds=4.0), lanes=2)
    programs.wait_for_steps(2)
    programs.server.stop()
    assert worker.wait() == 3, worker.said
    errors = [line for line in worker.said.splitlines() if line.startswith(("error: ", "Traceback"))]
    assert len(errors) == 1, worker.said
    assert "has been away for" in errors[0]
    programs.wait_for_no_strangers()
    programs.server.start()
    programs.go()
    assert programs.worker(faults=FAST, lanes=2).wait() == 0
    programs.judge()


@both
def test_row_15_a_point_that_always_fails_is_given_up_and_named(programs: ProgramArena) -> None:
    study = programs.study_file(4, before="poison")
    launch = programs.start("run", str(study), "--workers", "2", "--lanes", "1", faults=FAST)
    assert launch.wait() == 1, launch.said
    programs.judge(given_up=[1])
    failed = [trial for trial in programs.trials() if trial.state is TrialState.FAIL]
    assert len(failed) == 3
    why = {"command": "ended with exit code 7", "objective": "raised AssertionError: no such layer: 11 (mine.py:"}
    assert why[programs.kind] in failed[-1].user_attrs["fail_reason"]
    assert "no such layer: 11" in failed[-1].user_attrs["fail_reason"]
    told = launch.stdout.read_text() + launch.said
    assert ("number" if programs.kind == "command" else "x") in told
    assert "no such layer: 11" in told


@both
def test_all_attempts_fail(programs: ProgramArena) -> None:
    """The launch ends with the command and its last lines; no worker is started again, and the points wait."""
    study = programs.study_file(4, before="broken")
    launch = programs.start("run", str(study), "--workers", "1", "--lanes", "1", faults=FAST)
    assert launch.wait() == 1, launch.said
    programs.wait_for_no_strangers()
    assert "5 attempts in a row failed" in launch.said
    what = {"command": "sh script.sh 1", "objective": "the objective: mine:objective"}
    assert what[programs.kind] in launch.said
    assert "ModuleNotFoundError: torch" in launch.said
    assert "starting it again" not in launch.said
    assert programs.num_in("WAITING") == 4
    assert programs.num_in("RUNNING", "COMPLETE") == 0


@both
def test_row_17_clock_and_time_zone_skew(programs: ProgramArena) -> None:
    """A living worker's program is not ended, whatever the clocks say."""
    programs.create_programs(4)
    programs.hold()
    short = replace(FAST, lease_seconds=3.0, absence_seconds=2.0)
    late = programs.worker(faults=replace(short, clock_offset_seconds=-90_000.0), TZ="Pacific/Kiritimati")
    early = programs.worker(faults=replace(short, clock_offset_seconds=90_000.0), PGTZ="America/Caracas")
    programs.wait_for_steps(2)
    time.sleep(4.0)
    programs.go()
    assert [late.wait(), early.wait()] == [0, 0]
    programs.judge()
    assert {trial.state for trial in programs.trials()} == {TrialState.COMPLETE}


@both
def test_the_keeper_is_killed(programs: ProgramArena) -> None:
    """Its programs are ended with it. That is no fault of theirs, so eight of them at once do not end the study."""
    programs.create_programs(8)
    programs.hold()
    worker = programs.worker(faults=FAST, lanes=8)
    programs.wait_for_steps(8)
    scripts = set(programs.scripts())
    keeper = programs.keeper_of(worker)
    assert keeper is not None
    send(keeper, signal.SIGKILL)
    wait_until(lambda: not scripts & set(programs.scripts()), "what it has left is ended", told=programs.told)
    programs.go()
    assert worker.wait() == 0, worker.said
    programs.judge()
    reasons = {t.user_attrs["fail_reason"] for t in programs.trials() if t.state is TrialState.FAIL}
    assert reasons == {"its keeper was killed"}
