"""The plot of a confirmation: mean errors over fresh seeds with their intervals, and the errors in the search."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import plotly.graph_objects as go

from hpsearch import metric
from hpsearch.metric import in_percent
from hpsearch.results.report.plot_style import BEST, COMPLETE, PRUNED, Plot, plot_text, scatter, styled
from hpsearch.results.status import StudyStatus


def confirmed_errors(status: StudyStatus) -> Plot:
    """One row per compared configuration, the best on top, numbered as in the table."""
    confirmation = status.confirmation
    if confirmation is None or confirmation.comparison is None:
        return Plot(caption="There is nothing to compare yet.")
    ranked = [confirmation.configurations[index] for index in confirmation.order()]
    configurations = [configuration for configuration in ranked if configuration.mean is not None]
    means = [configuration.mean for configuration in configurations if configuration.mean is not None]
    seeds = [(t.value, row) for row, each in enumerate(configurations, start=1) for t in each.trials]
    searched = [(each.search_error, row) for row, each in enumerate(configurations, start=1)]
    pale = {"size": 7, "color": PRUNED, "opacity": 0.35}
    diamond = {"size": 10, "symbol": "diamond-open", "color": PRUNED, "line": {"width": 2}}
    is_tied = [configuration.is_tied for configuration in configurations]
    bars = {
        "type": "data",
        "symmetric": False,
        "array": [in_percent(mean.interval[1] - mean.mean) for mean in means],
        "arrayminus": [in_percent(mean.mean - mean.interval[0]) for mean in means],
        "color": COMPLETE,
        "thickness": 2,
    }
    mean_marks = _marks(
        "mean over seeds",
        [(mean.mean, row) for row, mean in enumerate(means, start=1)],
        {"size": 11, "color": [BEST if tied else COMPLETE for tied in is_tied]},
        "mean %{x:.2f} %, %{text}",
        error_x=bars,
        text=["tied with the lowest" if tied else "significantly worse" for tied in is_tied],
    )
    figure = styled(
        go.Figure([_marks("one seed", seeds, pale), mean_marks, _marks("in the search", searched, diamond)]),
        height=150 + 44 * len(means),
        xaxis={"title": {"text": f"{metric.NAME} (%)"}},
        yaxis={
            "tickvals": list(range(1, len(means) + 1)),
            "ticktext": [f"{row}: {plot_text(each.label)}" for row, each in enumerate(configurations, start=1)],
            "range": [len(means) + 0.5, 0.5],  # reversed: the first row is on top
            "showgrid": False,
        },
    )
    return Plot(
        caption="Means with the 95 % interval of each, over other seeds and other images; faint: single seeds. The "
        "errors in the search are the lowest of many, so they tend to be too low. Whether two points differ follows "
        "from their paired difference in the table, not from whether these intervals overlap.",
        figure=figure,
    )


def _marks(
    name: str, errors: Iterable[tuple[float | None, int]], marker: Mapping[str, Any], hover: str = "", **options: Any
) -> go.Scatter:
    """Marks at errors (fractions) in numbered rows; without those that are not known."""
    places = [(in_percent(error), row) for error, row in errors if error is not None]
    return scatter(name, places, hover or f"{name}: %{{x:.2f}} %", marker=dict(marker), **options)
