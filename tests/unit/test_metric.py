"""Metrics as text: shares in percent as they always were, other values in their own unit with a few digits."""

from __future__ import annotations

import pytest

from hpsearch.metric import METRICS, ZERO_ONE, Metric, Task


@pytest.mark.parametrize(
    ("metric", "value", "deviation", "text"),
    [
        ("zero-one", 0.082, None, "8.20 %"),
        ("zero-one", 0.082, 0.0042, "8.20 % +- 0.42"),
        ("zero-one", None, None, "-"),
        ("auc", 0.93124, 0.0123, "0.9312 +- 0.0123"),
        ("rmse", 47512.34, 312.9, "47,512 +- 313"),
        ("rmse", 51.234567, None, "51.23"),
        ("nll", 0.0, None, "0.000"),
        ("nll", 0.28893, 0.00074, "0.2889 +- 0.0007"),
        ("mae", 1.5e9, None, "1.5e+09"),
    ],
)
def test_values_as_text(metric: str, value: float | None, deviation: float | None, text: str) -> None:
    assert METRICS[metric].text(value, deviation) == text


def test_intervals_as_text() -> None:
    assert ZERO_ONE.interval_text((0.0543, 0.1221)) == "5.43 to 12.21 %"
    assert METRICS["rmse"].interval_text((46512.3, 48513.7)) == "46,512 to 48,514"
    assert METRICS["auc"].interval_of((0.1, 0.25)) == (0.75, 0.9)


@pytest.mark.parametrize("metric", METRICS.values(), ids=lambda metric: metric.name)
def test_a_lower_loss_is_a_better_value(metric: Metric) -> None:
    better, worse = metric.value_of(0.25), metric.value_of(0.5)
    assert (better < worse) == (metric.direction == "minimize")
    assert (metric.loss_of(better), metric.loss_of(worse)) == (0.25, 0.5)
    assert metric.sign * better < metric.sign * worse
    assert metric.training_loss == ("MSE" if metric.task is Task.REGRESSION else "NLL")
