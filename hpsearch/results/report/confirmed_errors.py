"""The plot of a confirmation: mean errors over fresh seeds with their intervals, and the errors in the search."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import plotly.graph_objects as go

from hpsearch.metric import Metric
from hpsearch.results.report.plot_style import BEST, COMPLETE, PRUNED, Plot, plot_text, scatter, styled
from hpsearch.results.status import StudyStatus


def confirmed_errors(status: StudyStatus) -> Plot:
    """One row per compared configuration, the best on top, numbered as in the table."""
    confirmation, metric = status.confirmation, status.summary.metric
    if confirmation is None or confirmation.comparison is None:
        return Plot(caption="There is nothing to compare yet.")
    ranked = [confirmation.configurations[index] for index in confirmation.order()]
    configurations = [configuration for configuration in ranked if configuration.mean is not None]
    means = [configuration.mean for configuration in configurations if configuration.mean is not None]
    shown = [
        (metric.value_of(mean.mean), metric.interval_of(mean.interval or (mean.mean, mean.mean))) for mean in means
    ]
    seeds = [(t.value, row) for row, each in enumerate(configurations, start=1) for t in each.trials]
    searched = [(each.search_error, row) for row, each in enumerate(configurations, start=1)]
    others = "" if metric.is_reported else " and other examples"
    pale = {"size": 7, "color": PRUNED, "opacity": 0.35}
    diamond = {"size": 10, "symbol": "diamond-open", "color": PRUNED, "line": {"width": 2}}
    is_tied = [configuration.is_tied for configuration in configurations]
    bars = {
        "type": "data",
        "symmetric": False,
        "array": [metric.shown(high - value) for value, (_, high) in shown],
        "arrayminus": [metric.shown(value - low) for value, (low, _) in shown],
        "color": COMPLETE,
        "thickness": 2,
    }
    seed_marks = _marks("one seed", seeds, metric, pale)
    mean_marks = _marks(
        "mean over seeds",
        [(value, row) for row, (value, _) in enumerate(shown, start=1)],
        metric,
        {"size": 11, "color": [BEST if tied else COMPLETE for tied in is_tied]},
        f"mean %{{x{metric.hover}, %{{text}}",
        error_x=bars,
        text=["tied with the best" if tied else "significantly worse" for tied in is_tied],
    )
    figure = styled(
        go.Figure([seed_marks, mean_marks, _marks("in the search", searched, metric, diamond)]),
        height=150 + 44 * len(means),
        xaxis={"title": {"text": metric.axis_title}},
        yaxis={
            "tickvals": list(range(1, len(means) + 1)),
            "ticktext": [f"{row}: {plot_text(each.label)}" for row, each in enumerate(configurations, start=1)],
            "range": [len(means) + 0.5, 0.5],  # reversed: the first row is on top
            "showgrid": False,
        },
    )
    return Plot(
        caption=f"Means with the 95 % interval of each, over other seeds{others}; faint: single seeds. The "
        f"values in the search are the {metric.best_word} of many, so they tend to be too good. Whether two points "
        "differ follows from their paired difference in the table, not from whether these intervals overlap.",
        figure=figure,
    )


def _marks(
    name: str,
    values: Iterable[tuple[float | None, int]],
    metric: Metric,
    marker: Mapping[str, Any],
    hover: str = "",
    **options: Any,
) -> go.Scatter:
    """Marks at values in numbered rows; without those that are not known."""
    places = [(metric.shown(value), row) for value, row in values if value is not None]
    return scatter(name, places, hover or f"{name}: %{{x{metric.hover}", marker=dict(marker), **options)
