"""Where the knee is: the most workers with which, and with all fewer, the database kept up."""

from __future__ import annotations

from benchmarks.report_rate import Step, knee


def step(workers: int, *, calls: int, p99_ms: float = 10.0, period_seconds: float | None = 1.0) -> Step:
    """Ten seconds of a load."""
    return Step(
        kind="paced" if period_seconds else "full speed",
        workers=workers,
        lanes=8,
        seconds=10.0,
        period_seconds=period_seconds,
        calls=calls,
        latencies_ms=(1.0, p99_ms, 2 * p99_ms),
        server_cores=0.5,
        client_cores=0.5,
        syncs=1.0,
    )


def test_reports_are_calls_times_lanes() -> None:
    assert step(100, calls=1000).reports_per_second == 800


def test_a_load_is_kept_up_with_if_what_was_due_came_in_and_nobody_waited_for_a_period() -> None:
    assert step(100, calls=1000).is_kept_up
    assert not step(100, calls=900).is_kept_up
    assert not step(100, calls=1000, p99_ms=1001.0).is_kept_up


def test_the_knee_lies_below_the_first_load_that_was_not_kept_up_with() -> None:
    steps = [step(300, calls=3000), step(10, calls=100), step(200, calls=1500), step(1, calls=500, period_seconds=None)]
    assert knee(steps) == {"kept_up_workers": 10, "failed_workers": 200, "highest_reports_per_second": 400}


def test_without_a_failed_load_the_knee_is_beyond_what_was_tried() -> None:
    assert knee([step(10, calls=100)]) == {
        "kept_up_workers": 10,
        "failed_workers": None,
        "highest_reports_per_second": None,
    }
