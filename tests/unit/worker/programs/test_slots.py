"""How many programs a worker runs at once."""

from __future__ import annotations

import pytest

from hpsearch.study.program import CommandSettings
from hpsearch.worker.programs import slots
from hpsearch.worker.programs.slots import num_slots


@pytest.fixture(autouse=True)
def _sixteen_processors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slots, "usable_processors", lambda: 16)


@pytest.mark.parametrize(
    ("lanes", "has_gpus", "num_workers", "number"),
    [
        (5, False, 1, 5),
        (5, True, 2, 5),
        (None, True, 1, 3),
        (None, False, 1, 4),
        (None, False, 2, 2),
        (None, False, 9, 1),
    ],
)
def test_lanes_decide_then_gpus_then_processors(
    lanes: int | None, has_gpus: bool, num_workers: int, number: int
) -> None:
    program = CommandSettings(run=("train",), per_gpu=3, cpus=4)
    assert num_slots(program, lanes, has_gpus=has_gpus, num_workers=num_workers) == number
