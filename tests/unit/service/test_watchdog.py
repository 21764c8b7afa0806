"""A worker that gets on is not disturbed, however slow; one that hangs is noticed."""

from __future__ import annotations

import pytest

from hpsearch.service import watchdog as module
from hpsearch.service.watchdog import Watchdog


@pytest.fixture
def processor(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The processor seconds that this process seems to have used, to be set by a test."""
    used = [100.0]
    monkeypatch.setattr(module.time, "process_time", lambda: used[0])
    return used


def test_a_worker_without_progress_has_stalled_after_its_limit(processor: list[float]) -> None:
    watchdog = Watchdog(30.0, is_cpu=False)
    assert [watchdog.turn(10.0) for _ in range(4)] == [False, False, False, True]
    assert watchdog.quiet_seconds == 40.0


def test_progress_begins_the_limit_anew(processor: list[float]) -> None:
    watchdog = Watchdog(30.0, is_cpu=False)
    for _ in range(10):
        assert not watchdog.turn(25.0)
        watchdog.note_progress()


def test_an_epoch_may_take_ten_times_as_long_as_the_longest_so_far(processor: list[float]) -> None:
    watchdog = Watchdog(30.0, is_cpu=False)
    watchdog.note_progress(60.0)
    watchdog.note_progress(1.0)
    assert watchdog.limit_seconds == 600.0
    assert not watchdog.turn(600.0)
    assert watchdog.turn(1.0)


def test_a_computation_on_the_cpu_is_progress_and_a_deadlock_is_not(processor: list[float]) -> None:
    watchdog = Watchdog(30.0, is_cpu=True)
    for _ in range(10):
        processor[0] += 9.0
        assert not watchdog.turn(10.0)
    assert [watchdog.turn(10.0) for _ in range(4)] == [False, False, False, True]


def test_waiting_for_a_gpu_with_a_busy_processor_is_no_progress(processor: list[float]) -> None:
    watchdog = Watchdog(30.0, is_cpu=False)
    for _ in range(3):
        processor[0] += 10.0
        assert not watchdog.turn(10.0)
    processor[0] += 10.0
    assert watchdog.turn(10.0)
