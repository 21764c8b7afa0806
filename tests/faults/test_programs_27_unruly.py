"""Fault table, row 27: a script that forks, ignores SIGTERM, floods its output, exits 0 after SIGTERM."""

from __future__ import annotations

import signal
from dataclasses import replace
from pathlib import Path

import pytest
from optuna.trial import TrialState

from tests.faults.driver import Faults
from tests.faults.processes import wait_until
from tests.faults.programs import STEPS, ProgramArena, both

pytestmark = [pytest.mark.faults, pytest.mark.slow]  # lanes and programs share the code below the worker

FAST = Faults(lease_seconds=600.0, absence_seconds=0.5)


@both
def test_row_27_descendants_end_with_their_script(programs: ProgramArena) -> None:
    programs.create_programs(2, before="brood", grace_seconds=0.2)
    worker = programs.worker(faults=FAST, lanes=2)
    assert worker.wait() == 0, worker.said
    assert programs.scripts() == []
    programs.judge()
    assert {trial.state for trial in programs.trials()} == {TrialState.COMPLETE}


@both
@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL], ids=["stopped", "killed"])
def test_row_27_descendants_end_with_their_worker(programs: ProgramArena, how: signal.Signals) -> None:
    programs.create_programs(2, before="brood", grace_seconds=0.2)
    programs.hold()
    worker = programs.worker(faults=FAST, lanes=2)
    programs.wait_for_steps(2)
    worker.send(how)
    assert worker.wait() == (0 if how is signal.SIGTERM else -how)
    programs.wait_for_no_strangers(20.0)
    programs.go()
    assert programs.worker(faults=FAST, lanes=2).wait() == 0
    programs.judge()


@both
def test_row_27_an_endless_output_costs_neither_the_lease_nor_the_memory(programs: ProgramArena) -> None:
    """It is printed by one of two scripts, in no lines at all; the other one's reports come through."""
    is_command = programs.kind == "command"
    programs.create_programs(
        2, before="flood", grace_seconds=0.2, **({"pattern": "no match=(x)"} if is_command else {})
    )
    programs.hold()
    worker = programs.worker(faults=replace(FAST, lease_seconds=3.0), lanes=2)
    programs.wait_for_steps(2)
    before = _megabytes(worker.pid)
    (row,) = programs.ask("SELECT max(renewed_at) AS at FROM hpsearch_points")
    wait_until(
        lambda: programs.ask("SELECT max(renewed_at) AS at FROM hpsearch_points")[0].at > row.at,
        "the lease is renewed",
        told=programs.told,
    )
    assert _megabytes(worker.pid) - before < 50
    programs.go()
    assert worker.wait() == 0, worker.said
    programs.judge()
    assert {trial.state for trial in programs.trials()} == {TrialState.COMPLETE}


def _megabytes(pid: int) -> float:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * 4096 / 1e6


def test_row_27_exit_0_after_sigterm_is_no_result(programs: ProgramArena) -> None:
    """Of a trial that is pruned it is the end; of one that is given back it is nothing."""
    polite = 'trap \'echo "{\\"step\\": 9, \\"value\\": 0}" > "$HPSEARCH_REPORTS"; exit 0\' TERM\n' + STEPS
    programs.create_programs(1, polite)
    programs.hold()
    worker = programs.worker(faults=FAST)
    programs.wait_for_steps(1)
    worker.send(signal.SIGTERM)
    assert worker.wait() == 0
    (given_back,) = [trial for trial in programs.trials() if trial.state is TrialState.FAIL]
    assert list(given_back.intermediate_values) == [1], "what it reports after the signal is no report"
    programs.go()
    assert programs.worker(faults=FAST).wait() == 0
    programs.judge()
