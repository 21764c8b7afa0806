"""Number formats, colours and axes, shared by all plots and tables of a report.

Complete trials are blue, the best one is orange, pruned trials are grey and running trials green. Each colour has a
contrast of at least 4.5 to 1 on white.
"""

from __future__ import annotations

import html
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import plotly.graph_objects as go

from hpsearch.metric import Metric
from hpsearch.study.space import ParameterValue
from hpsearch.wording import parameters_label, value_label

INK = "#1f2933"
GRID = "#e4e8ec"
BEST = "#c2410c"
COMPLETE = "#2b6cb0"
PRUNED = "#64707d"
RUNNING = "#0f766e"
# Low errors are dark, so that the best cells of a map attract attention.
ERROR_SCALE = [[0.0, "#0b3c6f"], [0.25, "#2b6cb0"], [0.6, "#8ab4dc"], [1.0, "#eef4fa"]]
FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"

_LOG_SPAN = 5.0  # smallest ratio of largest to smallest value for a logarithmic axis


@dataclass(frozen=True, kw_only=True)
class Plot:
    """A plot of a report.

    Args:
        caption: what the plot shows, or why there is none.
        figure: None if there is nothing to plot.
    """

    caption: str
    figure: go.Figure | None = None


def distinct_labels(values: Sequence[float]) -> list[str]:
    """A label for each of these distinct numbers, with enough digits to make the labels distinct."""
    for digits in range(4, 17):
        labels = [value_label(value, digits) for value in values]
        if len(set(labels)) == len(labels):
            return labels
    return [repr(value) for value in values]


def plot_text(text: str) -> str:
    """Escape a text for plotly, which interprets a subset of HTML in titles, labels and hover texts."""
    return html.escape(text, quote=False)


def point_text(parameters: Mapping[str, ParameterValue]) -> str:
    """Parameters as a hover text: `learning_rate 0.1, lambda_2 1e-5`."""
    return plot_text(parameters_label(parameters))


def scatter(name: str, places: Iterable[tuple[Any, Any]], hover: str, **options: Any) -> go.Scatter:
    """Marks, or a line with `mode="lines"`, at these coordinates (x, y), with a hover text in plotly's format."""
    coordinates = list(places)
    return go.Scatter(
        x=[x for x, _ in coordinates],
        y=[y for _, y in coordinates],
        name=name,
        hovertemplate=f"{hover}<extra></extra>",
        **{"mode": "markers", **options},
    )


def styled(figure: go.Figure, *, height: int = 420, **layout: Any) -> go.Figure:
    """Give a figure the report's fonts, colours and margins, and return it."""
    figure.update_layout(
        template="plotly_white",
        title=None,
        font={"family": FONT, "size": 13, "color": INK},
        height=height,
        margin={"l": 64, "r": 16, "t": 40, "b": 56},
        hoverlabel={"bgcolor": "white", "bordercolor": PRUNED, "font": {"color": INK, "family": FONT}},
        modebar={"bgcolor": "white", "color": PRUNED, "activecolor": INK},
        legend={"orientation": "h", "x": 0, "xanchor": "left", "y": 1.02, "yanchor": "bottom"},
    )
    axis = {"showline": True, "ticks": "outside", "zeroline": False}
    axis |= {"gridcolor": GRID, "linecolor": PRUNED, "tickcolor": PRUNED}
    figure.update_xaxes(axis)
    figure.update_yaxes(axis)
    figure.update_layout(**layout)
    return figure


def counting_axis(title: str, first: int, last: int) -> dict[str, Any]:
    """An axis for epochs or trials, with ticks at whole numbers even if there are few."""
    few = {"dtick": 1, "range": [first - 0.5, last + 0.5]} if last - first < 12 else {}
    return {"title": {"text": title}, **few}


def value_axis(metric: Metric, values: Iterable[float]) -> dict[str, Any]:
    """An axis for values of a metric. It is logarithmic if they differ much, to keep low ones distinguishable."""
    return {"title": {"text": metric.axis_title}, **number_axis(values)}


def number_axis(values: Iterable[float]) -> dict[str, Any]:
    """An axis for numbers. It is logarithmic if all are positive and their ratio is at least `_LOG_SPAN`."""
    numbers = [value for value in values if math.isfinite(value)]
    if not numbers or min(numbers) <= 0 or max(numbers) < _LOG_SPAN * min(numbers):
        return {"type": "linear"}
    ticks = round_numbers(min(numbers), max(numbers))
    return {"type": "log", "tickvals": ticks, "ticktext": [value_label(tick) for tick in ticks]}


def round_numbers(low: float, high: float) -> list[float]:
    """Ticks 1, 2, 5, 10, 20 ... from low to high, and one beyond each end; over many decades only powers of 10."""
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    steps: Sequence[int] = (1, 2, 5) if last - first <= 3 else (1,)
    numbers = [float(f"{step}e{exponent}") for exponent in range(first, last + 1) for step in steps]
    below = [number for number in numbers if number < low]
    above = [number for number in numbers if number > high]
    inside = [number for number in numbers if low <= number <= high]
    return below[-1:] + inside + above[:1]


@dataclass(frozen=True, kw_only=True)
class ValueColours:
    """A colour scale for values of a metric: darker is better. It is logarithmic if lower values are better.

    On a linear scale one trial that learnt nothing, with an error of 90 %, would give all others the same colour. Where
    no value is as much as twice another one, both scales look alike, and a linear one has more ticks.

    Args:
        low, high: ends of the scale, as `Metric.shown`; lower values, such as 0, are shown as `low`.
    """

    metric: Metric
    low: float
    high: float

    @classmethod
    def of(cls, metric: Metric, values: Iterable[float]) -> ValueColours:
        """A scale from the lowest to the highest of these values (`Metric.shown`)."""
        values = sorted(values)
        if metric.sign < 0:
            low, high = (values[0], values[-1]) if values else (0.0, 1.0)
            return cls(metric=metric, low=low, high=high if high > low else low + 1e-9)
        positive = [value for value in values if value > 0] or [1.0]
        low = positive[0] / 2 if 0 in values else positive[0]
        return cls(metric=metric, low=low, high=positive[-1] if positive[-1] > low else 2 * low)

    @property
    def is_log(self) -> bool:
        return self.metric.sign > 0 and (self.metric.is_share or self.high >= 2 * self.low)

    def place(self, value: float) -> float:
        """The position of a value on the scale of `layout`."""
        return math.log10(max(value, self.low)) if self.is_log else value

    @property
    def layout(self) -> dict[str, Any]:
        """A plotly colour axis with its bar."""
        unit = " (%)" if self.metric.is_share else ""
        bar: dict[str, Any] = {
            "title": {"text": f"{self.metric.label}{unit}", "side": "right"},
            "outlinewidth": 0,
            "thickness": 14,
        }
        scale: dict[str, Any] = {"cmin": self.place(self.low), "cmax": self.place(self.high), "colorbar": bar}
        if not self.is_log:
            return {"colorscale": ERROR_SCALE, "reversescale": self.metric.sign < 0, **scale}
        ticks = round_numbers(self.low, self.high)
        bar |= {"tickvals": [math.log10(tick) for tick in ticks], "ticktext": [value_label(tick) for tick in ticks]}
        return {"colorscale": ERROR_SCALE, **scale}
