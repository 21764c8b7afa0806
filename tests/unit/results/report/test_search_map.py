"""The search map: which dimensions it draws, and how."""

from __future__ import annotations

from typing import Any

import pytest
from optuna.trial import TrialState

from hpsearch.results.report.search_map import leading_dimensions, search_map
from hpsearch.results.status import StudyStatus
from hpsearch.results.summary import StudySummary
from hpsearch.study.study_file import parse_definition

RATE = {"log10": [-1, -2]}
LAMBDA = {"log10": [-3, -4], "zero": True}


@pytest.mark.parametrize(
    ("search", "names"),
    [
        ({}, []),
        ({"activation": ["tanh", "relu"]}, []),
        ({"shuffle": [True, False]}, []),
        ({"activation": ["tanh", "relu"], "hidden_units": [50, 100]}, ["hidden_units"]),
        (
            {"hidden_units": [50, 100], "batch_size": [20, 40], "max_epochs": [5]},
            ["hidden_units", "batch_size"],
        ),
        (
            {"hidden_units": [50], "lambda_2": LAMBDA, "lambda_1": LAMBDA, "learning_rate": RATE},
            ["learning_rate", "lambda_2"],
        ),
        ({"hidden_units": [50], "learning_rate": RATE}, ["hidden_units", "learning_rate"]),
    ],
)
def test_learning_rate_and_lambda_come_first_then_other_numbers(search: dict[str, Any], names: list[str]) -> None:
    definition = parse_definition({"name": "a", "search": search}, source="test")
    assert [dimension.name for dimension in leading_dimensions(definition)] == names


@pytest.fixture
def grid(make_summary: Any, make_trial: Any) -> StudySummary:
    """Two rates by three lambdas; one pair has two trials, one was pruned, one waits, one has no trial."""
    points = [
        (2, 0.02, 0.1, 0.0, TrialState.COMPLETE),
        (0, 0.03, 0.1, 1e-4, TrialState.COMPLETE),
        (1, 0.04, 0.1, 1e-4, TrialState.COMPLETE),
        (3, 0.9, 0.01, 1e-3, TrialState.COMPLETE),
        (4, 0.5, 0.01, 1e-4, TrialState.PRUNED),
        (5, None, 0.01, 0.0, TrialState.WAITING),
    ]
    trials = [
        make_trial(number, value, {"learning_rate": rate, "lambda_1": factor}, state=state)
        for number, value, rate, factor, state in points
    ]
    search = {"learning_rate": RATE, "lambda_1": LAMBDA, "activation": ["tanh", "relu"]}
    summary: StudySummary = make_summary(trials, search)
    return summary


def test_a_heat_map_shows_the_best_of_each_pair(grid: StudySummary) -> None:
    (cells,) = search_map(StudyStatus(summary=grid)).figure.data
    assert list(cells.x) == ["0.01", "0.1"]
    assert list(cells.y) == ["0", "0.0001", "0.001"]
    assert [list(row) for row in cells.text] == [["waiting", "2.00"], ["pruned", "3.00"], ["90.00", ""]]
    assert [[z is None for z in row] for row in cells.z] == [[True, False], [True, False], [False, True]]


def test_a_heat_map_has_words_for_axes_numbers_would_misplace(grid: StudySummary) -> None:
    layout = search_map(StudyStatus(summary=grid)).figure.layout
    assert layout.xaxis.type == layout.yaxis.type == "category"
    assert layout.xaxis.title.text == "learning_rate"
    assert layout.yaxis.title.text == "lambda_1"


def test_the_best_cell_is_framed(grid: StudySummary) -> None:
    (frame,) = search_map(StudyStatus(summary=grid)).figure.layout.shapes
    assert (frame.x0, frame.x1) == pytest.approx((0.51, 1.49))
    assert (frame.y0, frame.y1) == pytest.approx((-0.49, 0.49))


def test_dimensions_that_are_not_drawn_are_named(grid: StudySummary) -> None:
    assert "Also searched, but not drawn: activation." in search_map(StudyStatus(summary=grid)).caption


def test_drawn_values_are_scattered_with_zero_beside_the_logarithmic_axis(make_summary: Any, make_trial: Any) -> None:
    search = {"strategy": "random", "num_points": 3, "lambda_2": LAMBDA}
    search["learning_rate"] = {"low": 1e-4, "high": 0.1, "log": True}
    summary = make_summary([], search)
    trials = (
        make_trial(0, 0.02, {"learning_rate": 0.05, "lambda_2_is_zero": False, "lambda_2": 3e-4}),
        make_trial(1, 0.03, {"learning_rate": 0.001, "lambda_2_is_zero": True}),
        make_trial(2, 0.9, {"learning_rate": 2e-4, "lambda_2_is_zero": True}, state=TrialState.PRUNED),
        make_trial(3, None, {}, state=TrialState.WAITING),
    )
    figure = search_map(StudyStatus(summary=StudySummary(study=summary.study, trials=trials))).figure
    marks = {trace.name: list(zip(trace.x, trace.y, strict=True)) for trace in figure.data}
    assert marks == {
        "pruned": [(2e-4, 1e-5)],
        "complete": [(0.001, 1e-5), (0.05, 3e-4)],
        "best": [(0.05, 3e-4)],
    }
    assert figure.layout.xaxis.type == "log"
    # A single positive lambda spans no decade, but 0 beside it does not fit a linear axis either.
    assert dict(zip(figure.layout.yaxis.tickvals, figure.layout.yaxis.ticktext, strict=True))[1e-5] == "0"


def test_one_dimension_is_a_line_over_its_values(make_summary: Any, make_trial: Any) -> None:
    points = [(2, 0.02, 400, "tanh"), (1, 0.03, 25, "tanh"), (0, 0.04, 400, "relu")]
    trials = [
        make_trial(number, value, {"hidden_units": units, "activation": name}) for number, value, units, name in points
    ]
    search = {"hidden_units": [25, 400], "activation": ["tanh", "relu"]}
    panel = search_map(StudyStatus(summary=make_summary(trials, search)))
    line, complete, best = panel.figure.data
    assert (list(line.x), list(line.y)) == ([25.0, 400.0], [3.0, 2.0])
    assert len(complete.x) == 3
    assert list(best.x) == [400.0]
    assert panel.figure.layout.xaxis.type == "log"


@pytest.mark.parametrize(
    ("search", "reason"),
    [({}, "the study has a single point"), ({"activation": ["tanh", "relu"]}, "no searched dimension is a number")],
)
def test_a_study_without_numbers_has_a_sentence_in_place_of_a_map(
    make_summary: Any, make_trial: Any, search: dict[str, Any], reason: str
) -> None:
    panel = search_map(StudyStatus(summary=make_summary([make_trial(0, 0.1)], search)))
    assert panel.figure is None
    assert reason in panel.caption
