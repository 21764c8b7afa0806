"""How often a worker looks for lost trials: one that is busy rarely, one that is idle always."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from hpsearch.worker.upkeep import Reaper


class Access:
    """Notes which questions are asked."""

    def __init__(self, absence_seconds: float) -> None:
        self.ledger = SimpleNamespace(absence_seconds=absence_seconds)
        self.asked: list[str] = []

    def ask(self, question: Any, default: int) -> int:
        self.asked.append(question.__name__)
        return default


def looks(*, is_idle: bool, absence_seconds: float) -> list[str]:
    access: Any = Access(absence_seconds)
    reaper = Reaper(name="a worker")
    for _ in range(3):
        reaper.reap(access, is_idle=is_idle)
    return access.asked[2:]  # after the first look, which is always made


def test_a_busy_worker_looks_again_after_the_absence_of_a_worker_and_an_idle_one_at_once() -> None:
    assert looks(is_idle=False, absence_seconds=600.0) == []
    assert looks(is_idle=False, absence_seconds=0.0) == ["reap", "give_back_ended_outside"] * 2
    assert looks(is_idle=True, absence_seconds=600.0).count("reap") == 2
