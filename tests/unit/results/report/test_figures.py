"""The plots say what the summary says."""

from __future__ import annotations

import logging
from typing import Any

import optuna
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, distribution_to_json
from optuna.trial import TrialState

from hpsearch.results.report import figures
from hpsearch.results.report.figures import (
    best_trial_losses,
    learning_curves,
    optuna_study,
    parameter_importance,
    search_history,
)
from hpsearch.results.report.plot_style import BEST
from hpsearch.results.status import StudyStatus
from hpsearch.results.summary import StudySummary

RATES = {"learning_rate": {"log10": [-1, -3]}}


def test_history_shows_errors_in_percent_and_the_best_so_far(summary: StudySummary) -> None:
    figure = search_history(StudyStatus(summary=summary)).figure
    trials, best = figure.data[0], figure.data[1]
    assert dict(zip(trials.x, trials.y, strict=True)) == {0: 5.0, 1: 2.0}
    assert list(best.y) == [5.0, 2.0]
    assert best.line.color == BEST
    assert figure.layout.yaxis.title.text == "validation error (%)"


def test_optunas_copy_of_the_study_is_made_in_silence(summary: StudySummary, caplog: pytest.LogCaptureFixture) -> None:
    """Where hpsearch is a library, Optuna logs at a level that is the user's, and stays so."""
    logger = logging.getLogger("optuna")
    level = logger.level
    logger.addHandler(caplog.handler)
    logger.setLevel(logging.INFO)
    try:
        optuna_study(summary)
        assert caplog.text == ""
        optuna.create_study()
        assert "A new study created in memory" in caplog.text
    finally:
        logger.setLevel(level)
        logger.removeHandler(caplog.handler)


def test_history_begins_with_the_first_complete_trial(make_summary: Any, make_trial: Any) -> None:
    trials = [make_trial(1, 0.1, {"learning_rate": 0.1}), make_trial(0, None, state=TrialState.FAIL)]
    best = search_history(StudyStatus(summary=make_summary(trials, RATES))).figure.data[1]
    assert (list(best.x), list(best.y)) == ([1], [10.0])


def test_every_curve_is_drawn_once_the_best_last_and_in_its_colour(summary: StudySummary) -> None:
    curves = learning_curves(StudyStatus(summary=summary)).figure.data
    assert [list(curve.y) for curve in curves] == [[90.0, 90.0], [90.0, 5.0], [90.0, 2.0]]
    assert [curve.name for curve in curves] == ["pruned", "next 1", "best: trial 1"]
    assert curves[-1].line.color == BEST
    assert curves[-1].meta == "learning_rate 0.01"


def test_attempts_that_failed_have_no_curve(make_summary: Any, make_trial: Any) -> None:
    replaced = make_trial(1, None, {"learning_rate": 0.1}, state=TrialState.FAIL, curve=[0.3], is_current=False)
    given_up = make_trial(2, None, {"learning_rate": 0.01}, state=TrialState.FAIL, curve=[0.3])
    trials = [make_trial(0, 0.1, {"learning_rate": 0.1}), replaced, given_up]
    assert len(learning_curves(StudyStatus(summary=make_summary(trials, RATES))).figure.data) == 1


def test_too_many_curves_are_cut_to_the_best_and_this_is_said(
    make_summary: Any, make_trial: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(figures, "MAX_CURVES", 2)
    trials = [make_trial(i, 0.1 + i / 100, {"learning_rate": 0.1}) for i in range(3)]
    panel = learning_curves(StudyStatus(summary=make_summary(trials, RATES)))
    assert len(panel.figure.data) == 2
    assert "Only the first 2 of 3 trials are drawn" in panel.caption


def test_a_single_epoch_is_a_mark_rather_than_an_invisible_line(make_summary: Any, make_trial: Any) -> None:
    summary = make_summary([make_trial(0, 0.1, {"learning_rate": 0.1}, curve=[0.1])], RATES)
    assert learning_curves(StudyStatus(summary=summary)).figure.data[0].mode == "markers"
    assert best_trial_losses(StudyStatus(summary=summary)).figure.data[0].mode == "markers"


def test_losses_of_the_best_trial_are_its_own(summary: StudySummary) -> None:
    panel = best_trial_losses(StudyStatus(summary=summary))
    train, validation = panel.figure.data
    assert list(train.y) == [1.8, 0.04]
    assert list(validation.y) == pytest.approx([2.7, 0.06])
    assert panel.figure.layout.annotations[0].text == "best at epoch 2"


def test_importance_has_one_bar_per_parameter(summary: StudySummary) -> None:
    (bars,) = parameter_importance(StudyStatus(summary=summary)).figure.data
    assert list(bars.y) == ["learning_rate"]
    assert list(bars.x) == pytest.approx([1.0])


def test_optunas_doubts_about_an_importance_are_told(make_summary: Any, make_trial: Any) -> None:
    search = {"strategy": "random", "num_points": 3, "lambda_1": {"log10": [-2, -5], "zero": True}}
    summary = make_summary([], search)
    switch = CategoricalDistribution([False, True])
    trials = []
    for number, value, is_zero in ((0, 0.1, True), (1, 0.2, True), (2, 0.3, False)):
        drawn = {} if is_zero else {"lambda_1": 0.001}
        trial = make_trial(number, value, {"lambda_1_is_zero": is_zero, **drawn})
        trial.stored_distributions["lambda_1_is_zero"] = distribution_to_json(switch)
        if drawn:
            trial.stored_distributions["lambda_1"] = distribution_to_json(FloatDistribution(1e-5, 1e-2, log=True))
        trials.append(trial)
    summary = StudySummary(study=summary.study, trials=tuple(trials))
    panel = parameter_importance(StudyStatus(summary=summary))
    assert "may be inaccurate" in panel.caption
    assert "lambda_1 is 0" in panel.figure.data[0].y


@pytest.mark.parametrize(
    ("values", "rates", "reason"),
    [
        ([0.1], [0.1], "at least 2 complete trials, and there is 1"),
        ([0.1, 0.1], [0.1, 0.01], "all 2 complete trials have the same value"),
        ([0.1, 0.2], [0.1, 0.1], "no parameter has more than one value"),
    ],
)
def test_importance_is_a_sentence_where_there_is_nothing_to_compare(
    make_summary: Any, make_trial: Any, values: list[float], rates: list[float], reason: str
) -> None:
    trials = [
        make_trial(i, value, {"learning_rate": rate}) for i, (value, rate) in enumerate(zip(values, rates, strict=True))
    ]
    summary = make_summary(trials, RATES)
    panel = parameter_importance(StudyStatus(summary=summary))
    assert panel.figure is None
    assert reason in panel.caption
