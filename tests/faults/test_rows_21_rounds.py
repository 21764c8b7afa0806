"""Fault table, row 21: workers die, or meet, between two rounds of a search."""

from __future__ import annotations

import signal
from dataclasses import replace
from typing import Any

import pytest

from tests.faults.arena import Arena
from tests.faults.driver import Faults

pytestmark = pytest.mark.faults

FAST = Faults(lease_seconds=600.0, absence_seconds=0.5)
SEARCH: dict[str, Any] = {"strategy": "coarse-to-fine", "learning_rate": {"log10": [-1, -2]}, "budget_points": 6}


def test_row_21_killed_between_two_rounds(arena: Arena) -> None:
    arena.create(max_epochs=2, search=SEARCH)
    for place in ("INSERT INTO hpsearch_rounds", "INSERT INTO hpsearch_points"):
        worker = arena.worker(faults=replace(FAST, kill_before_sql=place), lanes=2)
        assert worker.wait() == -signal.SIGKILL
        # What it had begun is undone: the first round is trained, and nothing says that there is another one.
        assert rounds(arena) == [(0, 2)]
        assert (arena.num_in("COMPLETE"), arena.num_in("WAITING", "RUNNING")) == (2, 0)
    # Right after: the round is open, and its points are claimed.
    assert arena.worker(faults=replace(FAST, kill_before_epoch=1), lanes=2).wait() == -signal.SIGKILL
    assert len(rounds(arena)) == 2
    assert arena.num_in("RUNNING") > 0
    assert arena.worker(faults=FAST, lanes=2).wait() == 0
    judge_rounds(arena)


def test_row_21_many_workers_between_two_rounds(arena: Arena) -> None:
    """Four train a point each and come to the end of the first round together."""
    arena.create(max_epochs=2, search={**SEARCH, "learning_rate": {"log10": [-1, -4]}, "budget_points": 10})
    workers = arena.workers(4, faults=FAST)
    arena.go()
    assert [worker.wait() for worker in workers] == [0] * 4, "none leaves between two rounds, none waits for ever"
    judge_rounds(arena)


def rounds(arena: Arena) -> list[tuple[int, int]]:
    return [tuple(row) for row in arena.ask("SELECT round, num_points FROM hpsearch_rounds ORDER BY round")]


def judge_rounds(arena: Arena) -> None:
    """Rounds are numbered without gaps, the last one ends the search, and each point belongs to one of them."""
    opened = rounds(arena)
    assert [number for number, _ in opened] == list(range(len(opened)))
    assert [num_points == 0 for _, num_points in opened] == [False] * (len(opened) - 1) + [True]
    assert len(opened) >= 3, "a grid, at least one round after it, and the end"
    arena.num_points = sum(num_points for _, num_points in opened)
    arena.judge()
    points = [tuple(sorted(trial.params.items())) for trial in arena.counted()]
    assert len(set(points)) == len(points) == arena.num_points
    by_round = [trial.user_attrs["round"] for trial in arena.counted()]
    assert [by_round.count(number) for number, _ in opened[:-1]] == [num_points for _, num_points in opened[:-1]]
