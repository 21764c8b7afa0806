"""The search map: the best value over two searched dimensions, or over the only one.

Listed values give a heat map with one cell per pair of values; values that are drawn or narrowed give a scatter plot.
The dimensions are learning rate and lambda if both are searched, since their effects depend on each other; otherwise
the first two numeric dimensions.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import plotly.graph_objects as go

from hpsearch.metric import Metric
from hpsearch.results.report.plot_style import (
    BEST,
    COMPLETE,
    PRUNED,
    Plot,
    ValueColours,
    distinct_labels,
    plot_text,
    point_text,
    round_numbers,
    scatter,
    styled,
    value_axis,
)
from hpsearch.results.status import StudyStatus
from hpsearch.results.trial_summary import TrialSummary
from hpsearch.store.rows.trial_state import StoredState
from hpsearch.study.definition import StudyDefinition
from hpsearch.study.space import Dimension
from hpsearch.wording import value_label

_LAMBDAS = ("lambda_1", "lambda_2")
_MAX_WRITTEN_COLUMNS = 20  # numbers in narrower cells would overlap; the hover text has them
_RING = {"symbol": "circle-open", "size": 18, "color": BEST, "line": {"color": BEST, "width": 3}}


@dataclass(frozen=True, kw_only=True)
class MapAxis:
    """One searched dimension as an axis of the map.

    Args:
        is_listed: its values come from a list, and each has its own row or column.
        has_log_grid: the study file gives its values on a logarithmic scale.
        values: the values that occur, ascending.
    """

    name: str
    is_listed: bool
    has_log_grid: bool
    values: tuple[float, ...]

    @classmethod
    def of(cls, dimension: Dimension, definition: StudyDefinition, trials: Iterable[TrialSummary]) -> MapAxis:
        is_chosen = definition.is_drawn or definition.search.strategy == "coarse-to-fine"
        is_anywhere = is_chosen and (dimension.is_log or dimension.is_continuous)
        values = {float(trial.point_parameters[dimension.name]) for trial in trials}
        return cls(
            name=dimension.name, is_listed=not is_anywhere, has_log_grid=dimension.is_log, values=tuple(sorted(values))
        )

    def value(self, trial: TrialSummary) -> float:
        return float(trial.point_parameters[self.name])

    def place(self, trial: TrialSummary) -> float:
        """The trial's coordinate on a numeric axis. On a logarithmic axis 0 is replaced by a small value."""
        value = self.value(trial)
        return self._stand_in_for_zero if self._is_log and value == 0 else value

    @property
    def labels(self) -> list[str]:
        return distinct_labels(self.values)

    @property
    def numeric_layout(self) -> dict[str, Any]:
        """A numeric axis: logarithmic if the study file says so, or if the values span at least a decade."""
        if not self._is_log:
            return {**self._title, "type": "linear"}
        ticks = round_numbers(self._positive[0], self._positive[-1])
        labels = [value_label(tick) for tick in ticks]
        if 0 in self.values:
            ticks, labels = [self._stand_in_for_zero, *ticks], ["0", *labels]
        return {**self._title, "type": "log", "tickvals": ticks, "ticktext": labels}

    @property
    def category_layout(self) -> dict[str, Any]:
        """An axis with one row or column per value, in order. Without a type plotly would parse labels as numbers."""
        order = {"categoryorder": "array", "categoryarray": self.labels}
        return {**self._title, **order, "type": "category", "showgrid": False}

    @property
    def _title(self) -> dict[str, Any]:
        return {"title": {"text": plot_text(self.name)}}

    @property
    def _positive(self) -> list[float]:
        return [value for value in self.values if value > 0]

    @property
    def _is_log(self) -> bool:
        positive = self._positive
        if not positive or self.values[0] < 0:
            return False
        return self.has_log_grid or positive[-1] >= 10 * positive[0]

    @property
    def _stand_in_for_zero(self) -> float:
        """The value that replaces 0 on a logarithmic axis: one decade below the lowest decade."""
        return float(10.0 ** (math.floor(math.log10(self._positive[0])) - 1))


def search_map(status: StudyStatus) -> Plot:
    """The plot of the best value over the study's leading dimensions, two or one."""
    definition = status.summary.study.definition
    chosen = leading_dimensions(definition)
    if not chosen:
        kind = "is a number" if definition.search.dimensions else "exists: the study has a single point"
        return Plot(caption=f"No map: no searched dimension {kind}.")
    trials = [trial for trial in status.summary.trials if _is_placed(trial, chosen)]
    metric = status.summary.metric
    axes = [MapAxis.of(dimension, definition, trials) for dimension in chosen]
    if len(axes) == 1:
        caption, figure = _line(axes[0], trials, metric)
    elif all(axis.is_listed for axis in axes):
        caption, figure = _heat_map(axes[0], axes[1], trials, metric)
    else:
        caption, figure = _scatter(axes[0], axes[1], trials, metric)
    others = [d.name for d in definition.search.dimensions if d not in chosen]
    if others:
        caption += f" Also searched, but not drawn: {', '.join(others)}."
    return Plot(caption=caption, figure=figure)


def leading_dimensions(definition: StudyDefinition) -> list[Dimension]:
    """The one or two dimensions to draw; none if no searched dimension is numeric."""
    numeric = {d.name: d for d in definition.search.dimensions if all(map(_is_number, d.values))}
    searched_lambda = next((name for name in numeric if name in _LAMBDAS), None)
    if "learning_rate" in numeric and searched_lambda:
        return [numeric["learning_rate"], numeric[searched_lambda]]
    return list(numeric.values())[:2]


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_placed(trial: TrialSummary, dimensions: Sequence[Dimension]) -> bool:
    """Whether a trial is the current one of its point and has values for the drawn dimensions."""
    return trial.is_listed and all(d.name in trial.point_parameters for d in dimensions)


def _heat_map(x: MapAxis, y: MapAxis, trials: Sequence[TrialSummary], metric: Metric) -> tuple[str, go.Figure]:
    """Caption and heat map with one cell per pair of values, for the best trial of the pair."""
    # Trials are ordered, and the best trial of each cell, the first one, comes last here.
    cells = {(x.value(trial), y.value(trial)): trial for trial in reversed(trials)}
    rows = [[cells.get((column, row)) for column in x.values] for row in y.values]
    colours = ValueColours.of(metric, (_shown(trial, metric) for trial in trials if trial.is_complete))
    heat_map = go.Heatmap(
        x=x.labels,
        y=y.labels,
        z=[[_colour(cell, colours) for cell in row] for row in rows],
        text=[["" if cell is None else _ending(cell, metric) for cell in row] for row in rows],
        texttemplate="%{text}" if len(x.values) <= _MAX_WRITTEN_COLUMNS else None,
        customdata=[[_hover(cell, metric) for cell in row] for row in rows],
        hovertemplate="%{customdata}<extra></extra>",
        xgap=2,
        ygap=2,
        coloraxis="coloraxis",
    )
    figure = go.Figure(heat_map)
    if trials and trials[0].is_complete:
        column, row = x.values.index(x.value(trials[0])), y.values.index(y.value(trials[0]))
        edges = {"x0": column - 0.49, "x1": column + 0.49, "y0": row - 0.49, "y1": row + 0.49}
        figure.add_shape(type="rect", line={"color": BEST, "width": 3}, **edges)
    styled(
        figure,
        height=140 + 44 * max(4, len(y.values)),
        margin={"l": 64, "r": 16, "t": 16, "b": 56},
        xaxis=x.category_layout,
        yaxis=y.category_layout,
        coloraxis=colours.layout,
    )
    return f"The {metric.best_word} {metric.axis_title} of each pair of values; the best one is framed.", figure


def _scatter(x: MapAxis, y: MapAxis, trials: Sequence[TrialSummary], metric: Metric) -> tuple[str, go.Figure]:
    """Caption and scatter plot with one mark per trial, for values that are not listed."""
    complete = [trial for trial in trials if trial.is_complete][::-1]  # the best trials are drawn on top
    pruned = [trial for trial in trials if trial.stored_state is StoredState.PRUNED]
    colours = ValueColours.of(metric, (_shown(trial, metric) for trial in complete))
    dots = {
        "size": 12,
        "color": [_colour(trial, colours) for trial in complete],
        "line": {"color": COMPLETE, "width": 1},
        "coloraxis": "coloraxis",
    }
    crosses = {"symbol": "x-thin", "size": 8, "line": {"color": PRUNED, "width": 1.5}}
    figure = go.Figure(
        [
            _marks("pruned", pruned, x, y.place, crosses, metric),
            # The colour bar is the legend of these marks.
            _marks("complete", complete, x, y.place, dots, metric).update(showlegend=False),
            _marks("best", complete[-1:], x, y.place, _RING, metric),
        ]
    )
    styled(figure, height=480, xaxis=x.numeric_layout, yaxis=y.numeric_layout, coloraxis=colours.layout)
    return f"Each trial at its parameters; darker marks have a better {metric.validation_label}.", figure


def _line(x: MapAxis, trials: Sequence[TrialSummary], metric: Metric) -> tuple[str, go.Figure]:
    """Caption and plot of the value over the only numeric dimension."""
    complete, shown = [trial for trial in trials if trial.is_complete], partial(_shown, metric=metric)
    figure = go.Figure()
    if x.is_listed:
        best = sorted({x.place(trial): trial for trial in reversed(complete)}.values(), key=x.place)
        line = {"mode": "lines", "line": {"color": COMPLETE, "width": 1.5}, "hoverinfo": "skip", "hovertemplate": None}
        figure.add_trace(_marks("best of each value", best, x, shown, {}, metric).update(line))
    figure.add_trace(_marks("complete", complete, x, shown, {"size": 9, "color": COMPLETE}, metric))
    figure.add_trace(_marks("best", complete[:1], x, shown, _RING, metric))
    styled(figure, xaxis=x.numeric_layout, yaxis=value_axis(metric, map(shown, complete)))
    return f"The {metric.best_word} {metric.validation_label} of each complete trial.", figure


def _marks(
    name: str,
    trials: Sequence[TrialSummary],
    x: MapAxis,
    y: Callable[[TrialSummary], float],
    marker: dict[str, Any],
    metric: Metric,
) -> go.Scatter:
    return scatter(
        name,
        [(x.place(trial), y(trial)) for trial in trials],
        "%{customdata}",
        marker=marker,
        customdata=[_hover(trial, metric) for trial in trials],
        showlegend=bool(trials),
    )


def _shown(trial: TrialSummary, metric: Metric) -> float:
    """The value of a complete trial, as plots show it."""
    assert trial.value is not None  # callers pass complete trials
    return metric.shown(trial.value)


def _colour(trial: TrialSummary | None, colours: ValueColours) -> float | None:
    return colours.place(_shown(trial, colours.metric)) if trial is not None and trial.is_complete else None


def _ending(trial: TrialSummary, metric: Metric) -> str:
    return metric.text(trial.value).removesuffix(" %") if trial.is_complete else trial.stored_state.name.lower()


def _hover(trial: TrialSummary | None, metric: Metric) -> str:
    if trial is None:
        return "no trial"
    unit = " %" if trial.is_complete and metric.is_share else ""
    return f"trial {trial.number}: {_ending(trial, metric)}{unit}<br>{point_text(trial.point_parameters)}"
