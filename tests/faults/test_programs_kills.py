"""Kills of script, keeper and worker in all orders: no process is left, no point is lost or counted twice."""

from __future__ import annotations

import itertools
import random
import signal
import time

import pytest

from tests.faults.driver import Faults
from tests.faults.processes import HpsearchProcess, wait_until
from tests.faults.programs import KEEPER, ProgramArena, command_line, send

pytestmark = pytest.mark.faults

FAST = Faults(lease_seconds=600.0, absence_seconds=0.3, poll_seconds=0.05)
ORDERS = list(itertools.permutations(("script", "keeper", "worker")))
POINTS_PER_ROUND = 6

# It takes a tenth of a second, and has a descendant that would outlive it.
_SCRIPT = """
(setsid sleep 306 &)
for step in 1 2 3; do
    echo "{\\"step\\": $step, \\"value\\": 0.$((9 - step))$1}" > "$HPSEARCH_REPORTS"
    sleep 0.03
done
"""


SLOW = [pytest.mark.slow, pytest.mark.timeout(1800)]


@pytest.mark.parametrize(
    ("programs", "rounds"),
    [("command", 10), pytest.param("command", 100, marks=SLOW), pytest.param("objective", 24, marks=SLOW)],
    indirect=["programs"],
)
def test_kills_in_all_orders(programs: ProgramArena, rounds: int) -> None:
    chance = random.Random(rounds)
    programs.create_programs(
        POINTS_PER_ROUND * rounds, _SCRIPT, before="forgetful", grace_seconds=0.3, max_attempts=1000
    )
    for number in range(rounds):
        worker = programs.worker(faults=FAST, lanes=2)
        wait_until(lambda worker=worker: programs.scripts_of(worker), "it has scripts", told=programs.told)
        time.sleep(chance.random() * 0.2)
        for victim in ORDERS[number % len(ORDERS)]:
            _kill(programs, worker, victim)
            time.sleep(chance.choice([0.0, 0.0, 0.002, 0.02, 0.1]))
        assert worker.wait() in (-signal.SIGKILL, 0), worker.said
        programs.wait_for_no_strangers()
    last = programs.worker(faults=FAST, lanes=4)
    assert last.wait() == 0, last.said
    programs.judge()
    assert len(programs.counted()) == POINTS_PER_ROUND * rounds


def _kill(programs: ProgramArena, worker: HpsearchProcess, victim: str) -> None:
    if victim == "worker":
        worker.send(signal.SIGKILL)
    elif victim == "keeper":
        keeper = programs.keeper_of(worker)
        if keeper is not None and KEEPER in command_line(keeper):
            send(keeper, signal.SIGKILL)
    else:
        for script in programs.scripts_of(worker)[:1]:
            send(script, signal.SIGKILL)
