"""The plot of a confirmation: mean errors over fresh seeds with their intervals, and the errors in the search."""

from __future__ import annotations

import plotly.graph_objects as go

from hpsearch.results.confirmation.outcome import Confirmation
from hpsearch.results.report.figures import Panel
from hpsearch.results.report.plot_style import BEST, COMPLETE, PRUNED, percent, plot_text, styled


def confirmation_panel(confirmation: Confirmation) -> Panel:
    """One row per configuration, the best on top, numbered as in the table."""
    title = "Confirmation over fresh seeds"
    if confirmation.comparison is None:
        return Panel(name="confirmation", title=title, caption="There is nothing to compare yet.")
    rows = [index for index in confirmation.order() if index in confirmation.compared]
    figure = go.Figure([_seeds(confirmation, rows), _means(confirmation, rows), _search(confirmation, rows)])
    labels = [f"{n}: {plot_text(confirmation.configurations[i].label)}" for n, i in enumerate(rows, start=1)]
    places = list(range(1, len(rows) + 1))
    styled(
        figure,
        height=150 + 44 * len(rows),
        xaxis={"title": {"text": "validation error (%)"}},
        yaxis={
            "tickvals": places,
            "ticktext": labels,
            "range": [len(rows) + 0.5, 0.5],  # reversed: the first row is on top
            "showgrid": False,
        },
    )
    return Panel(
        name="confirmation",
        title=title,
        caption="Means with the 95 % interval of each, over other seeds and other images; faint: single seeds. The "
        "search's own numbers are the lowest of many, so they tend to be too low. Whether two differ is told by their "
        "paired difference in the table and not by whether these intervals overlap.",
        figure=figure,
    )


def _means(confirmation: Confirmation, rows: list[int]) -> go.Scatter:
    means = [mean for index in rows if (mean := confirmation.mean_of(index)) is not None]
    return go.Scatter(
        x=[percent(mean.mean) for mean in means],
        y=list(range(1, len(means) + 1)),
        error_x={
            "type": "data",
            "symmetric": False,
            "array": [percent(mean.interval[1] - mean.mean) for mean in means],
            "arrayminus": [percent(mean.mean - mean.interval[0]) for mean in means],
            "color": COMPLETE,
            "thickness": 2,
        },
        name="mean over seeds",
        mode="markers",
        marker={"size": 11, "color": [BEST if index in confirmation.tied else COMPLETE for index in rows]},
        text=["tied with the lowest" if index in confirmation.tied else "told apart from it" for index in rows],
        hovertemplate="mean %{x:.2f} %, %{text}<extra></extra>",
    )


def _seeds(confirmation: Confirmation, rows: list[int]) -> go.Scatter:
    points = [
        (percent(trial.value), place)
        for place, index in enumerate(rows, start=1)
        for trial in confirmation.configurations[index].trials
        if trial.value is not None
    ]
    return go.Scatter(
        x=[error for error, _ in points],
        y=[place for _, place in points],
        name="one seed",
        mode="markers",
        marker={"size": 7, "color": PRUNED, "opacity": 0.35},
        hovertemplate="one seed: %{x:.2f} %<extra></extra>",
    )


def _search(confirmation: Confirmation, rows: list[int]) -> go.Scatter:
    points = [
        (percent(error), place)
        for place, index in enumerate(rows, start=1)
        if (error := confirmation.configurations[index].search_error) is not None
    ]
    return go.Scatter(
        x=[error for error, _ in points],
        y=[place for _, place in points],
        name="in the search",
        mode="markers",
        marker={"size": 10, "symbol": "diamond-open", "color": PRUNED, "line": {"width": 2}},
        hovertemplate="in the search: %{x:.2f} %<extra></extra>",
    )
