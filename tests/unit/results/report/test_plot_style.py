"""Labels, axes and colours."""

from __future__ import annotations

import math
import re
from importlib.resources import files

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpsearch.metric import METRICS, ZERO_ONE
from hpsearch.results.report import plot_style
from hpsearch.results.report.plot_style import (
    ValueColours,
    counting_axis,
    distinct_labels,
    number_axis,
    plot_text,
    round_numbers,
)

positive = st.floats(min_value=1e-12, max_value=1e12)


@given(st.lists(st.floats(allow_nan=False, allow_infinity=False), unique=True, max_size=8))
def test_no_two_values_share_a_label(values: list[float]) -> None:
    assert len(set(distinct_labels(values))) == len(values)


@given(positive, st.floats(min_value=1.0, max_value=1e6))
def test_ticks_enclose_what_is_drawn(low: float, ratio: float) -> None:
    high = low * ratio
    ticks = round_numbers(low, high)
    assert ticks == sorted(set(ticks))
    assert ticks[0] <= low or math.isclose(ticks[0], low)
    assert ticks[-1] >= high or math.isclose(ticks[-1], high)
    assert len(ticks) <= 15


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        ([], "linear"),
        ([2.0, 3.0], "linear"),
        ([2.0, 90.0], "log"),
        ([0.0, 90.0], "linear"),
        ([1.0], "linear"),
    ],
)
def test_an_axis_is_logarithmic_where_positive_values_differ_much(values: list[float], kind: str) -> None:
    assert number_axis(values)["type"] == kind


def test_few_epochs_are_counted_one_by_one() -> None:
    assert counting_axis("epoch", 1, 1) == {"title": {"text": "epoch"}, "dtick": 1, "range": [0.5, 1.5]}
    assert "dtick" not in counting_axis("epoch", 1, 200)


@given(st.lists(st.floats(min_value=0, max_value=100).map(ZERO_ONE.shown), min_size=1))
def test_every_error_lies_on_the_colour_scale(errors: list[float]) -> None:
    colours = ValueColours.of(ZERO_ONE, errors)
    low, high = colours.layout["cmin"], colours.layout["cmax"]
    assert low < high
    for error in errors:
        assert low <= colours.place(error) <= high


def test_plot_text_shows_markup_as_it_stands() -> None:
    assert plot_text('<a href="x">&</a>') == '&lt;a href="x"&gt;&amp;&lt;/a&gt;'


COLOURS = ["INK", "BEST", "COMPLETE", "PRUNED", "RUNNING"]


@pytest.mark.parametrize("name", COLOURS)
def test_every_colour_can_be_read_on_white(name: str) -> None:
    """WCAG 2.1, level AA for text: a contrast of 4.5 to 1."""
    assert 1.05 / (_luminance(getattr(plot_style, name)) + 0.05) >= 4.5


@pytest.mark.parametrize("name", COLOURS)
def test_page_and_plots_have_the_same_colours(name: str) -> None:
    style = files("hpsearch.results.report").joinpath("templates/report.css").read_text()
    (colour,) = re.findall(rf"--{name.lower()}: (#\w+);", style)
    assert colour == getattr(plot_style, name)


def _luminance(colour: str) -> float:
    """Relative luminance of #rrggbb."""
    channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_the_best_value_has_the_darkest_colour_whatever_the_direction() -> None:
    for name, values, is_log in (
        ("auc", [0.7, 0.9], False),
        ("rmse", [52.0, 56.0], False),
        ("rmse", [5.0, 56.0], True),
    ):
        colours = ValueColours.of(METRICS[name], values)
        layout = colours.layout
        assert colours.is_log == is_log
        assert layout.get("reversescale", False) == (name == "auc")  # the scale is dark at its lower end
        assert (layout["cmin"], layout["cmax"]) == tuple(map(colours.place, values))
    flat = ValueColours.of(METRICS["r2"], [0.5, 0.5])
    assert flat.low < flat.high
