"""What live progress says: time left, speed, one line."""

from __future__ import annotations

from hpsearch.console.progress_view import EpochRate, describe
from hpsearch.store.progress import Progress, RunningTrial
from hpsearch.store.rows.counts import PointCounts


def progress(counts: PointCounts, *running: RunningTrial, epochs_of_counted: int = 40) -> Progress:
    return Progress(
        counts=counts,
        epochs=50,
        epochs_of_counted=epochs_of_counted,
        best_value=0.0198,
        best_trial=7,
        running=running,
    )


def test_the_time_left_takes_open_points_to_be_as_long_as_the_counted_ones() -> None:
    counts = PointCounts(waiting=2, running=1, complete=3, pruned=1)  # 10 epochs per counted point
    assert progress(counts, RunningTrial(number=4, epoch=4, value=0.1)).remaining_seconds(2.0) == (30 - 4) / 2.0


def test_a_trial_that_runs_longer_than_the_others_makes_no_time_negative() -> None:
    counts = PointCounts(running=1, complete=4)
    assert progress(counts, RunningTrial(number=4, epoch=99, value=0.1)).remaining_seconds(1.0) == 0.0


def test_nothing_is_said_of_the_time_left_while_nothing_is_known() -> None:
    assert progress(PointCounts(waiting=2)).remaining_seconds(1.0) is None
    assert progress(PointCounts(waiting=2, complete=1)).remaining_seconds(0.0) is None


def test_the_rate_is_that_of_the_last_minute() -> None:
    rate = EpochRate()
    assert rate.update(0.0, 0) == 0.0
    assert rate.update(10.0, 20) == 2.0
    assert rate.update(100.0, 110) == 1.0  # the sample at 0 s is too old
    assert rate.update(110.0, 120) == 1.0


def test_the_line_tells_states_best_speed_and_time_left() -> None:
    line = describe(progress(PointCounts(waiting=1, complete=3, pruned=1, failed=1)), 2.0)
    assert line == (
        "3 complete, 1 pruned, 0 running, 1 waiting · 1 FAILED · best 1.98 % (trial 7) · 2.00 epochs/s · about 5 s left"
    )
    assert "left" not in describe(progress(PointCounts(complete=4)), 2.0)
