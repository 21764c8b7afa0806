"""Trials and curves as DataFrames: one row each, columns and types as documented."""

from __future__ import annotations

import sys
from collections.abc import Callable

import pytest
from optuna.trial import TrialState

from hpsearch.results.data_frame import CURVE_COLUMNS, TRIAL_COLUMNS, curves_frame, trials_frame
from hpsearch.results.summary import StudySummary
from hpsearch.study.settings import ModelSettings, TrainingSettings


def test_there_is_a_row_per_trial_best_first_with_its_searched_keys(summary: StudySummary) -> None:
    frame = trials_frame(summary)
    assert list(frame["number"]) == [1, 0, 2]
    assert list(frame["state"]) == ["COMPLETE", "COMPLETE", "PRUNED"]
    assert list(frame["learning_rate"]) == [0.01, 0.1, 0.001]
    assert list(frame["value"]) == [0.02, 0.05, 0.9]
    assert frame.loc[0, "started_at"] == summary.trials[0].started_at
    assert list(frame["is_counted"]) == [True, True, True]


def test_columns_and_types_are_those_that_are_promised_even_without_trials(
    summary: StudySummary, make_summary: Callable[..., StudySummary]
) -> None:
    columns = {"zero_one" if name == "value" else name: kind for name, kind in CURVE_COLUMNS.items()}
    for each in (summary, make_summary([], {"learning_rate": [0.1]})):
        types = {name: str(kind) for name, kind in trials_frame(each).dtypes.items()}
        assert {name: kind for name, kind in types.items() if name != "learning_rate"} == TRIAL_COLUMNS
        assert list(types)[3:5] == ["value", "learning_rate"]
        assert {name: str(kind) for name, kind in curves_frame(each).dtypes.items()} == columns


def test_what_a_trial_has_not_is_missing_and_not_zero(
    make_trial: Callable[..., object], make_summary: Callable[..., StudySummary]
) -> None:
    trials = [
        make_trial(0, 0.1, {"optimizer": "momentum", "momentum": 0.9}),
        make_trial(1, 0.2, {"optimizer": "sgd"}),
        make_trial(2, None, {}, state=TrialState.FAIL, is_current=False),
    ]
    frame = trials_frame(make_summary(trials, {"optimizer": ["sgd", "momentum"], "momentum": [0.5, 0.9]}))
    assert list(frame["optimizer"]) == ["momentum", "sgd", None]
    assert list(frame["momentum"].isna()) == [False, True, True]
    assert list(frame["value"].isna()) == [False, False, True]
    assert frame["seconds"].isna().all()
    assert list(frame["is_counted"]) == [True, True, False]


def test_whole_numbers_stay_whole_and_a_lambda_that_is_off_is_zero(
    make_trial: Callable[..., object], make_summary: Callable[..., StudySummary]
) -> None:
    search = {"hidden_units": [50, 100], "lambda_2": {"log10": [-2, -3], "zero": True}}
    trials = [
        make_trial(0, 0.1, {"hidden_units": 50, "lambda_2": 0.0}),
        make_trial(1, 0.2, {"hidden_units": 100, "lambda_2": 0.01}),
    ]
    frame = trials_frame(make_summary(trials, search))
    assert (frame["hidden_units"].dtype, frame["lambda_2"].dtype) == ("int64", "float64")
    assert list(frame["lambda_2"]) == [0.0, 0.01]


def test_there_is_a_row_per_epoch_in_the_trials_order(summary: StudySummary) -> None:
    frame = curves_frame(summary)
    assert list(frame["number"]) == [1, 1, 0, 0, 2, 2]
    assert list(frame["epoch"]) == [1, 2] * 3
    assert list(frame["zero_one"]) == [0.9, 0.02, 0.9, 0.05, 0.9, 0.9]


def test_no_key_that_can_be_searched_has_the_name_of_another_column() -> None:
    searchable = {*ModelSettings.model_fields, *TrainingSettings.model_fields}
    assert not searchable & TRIAL_COLUMNS.keys()


def test_without_pandas_one_line_says_how_to_install_it(summary: StudySummary, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pandas", None)
    for make in (trials_frame, curves_frame):
        with pytest.raises(ImportError, match=r"pip install 'hpsearch\[pandas\]'"):
            make(summary)


def test_a_key_with_the_name_of_another_column_has_a_prefix(
    make_trial: Callable[..., object], make_summary: Callable[..., StudySummary]
) -> None:
    trials = [make_trial(0, 0.5, {"epochs": 3, "a": 1})]
    command = {"run": ["train", "{epochs}", "{a}"], "metric": "seconds"}
    summary = make_summary(trials, {"epochs": [3], "a": [1]}, command=command)
    frame = trials_frame(summary)
    assert (frame.loc[0, "params_epochs"], frame.loc[0, "a"], frame.loc[0, "epochs"]) == (3, 1, 2)
    assert list(curves_frame(summary)["value"]) == [0.9, 0.5]


def test_keys_whose_names_and_prefixed_names_are_taken_have_columns_of_their_own(
    make_trial: Callable[..., object], make_summary: Callable[..., StudySummary]
) -> None:
    searched = {"value": [3], "params_value": [4], "params_params_value": [5]}
    trials = [make_trial(0, 0.5, {name: values[0] for name, values in searched.items()})]
    command = {"run": ["train", *(f"{{{name}}}" for name in searched)]}
    frame = trials_frame(make_summary(trials, searched, command=command))
    names = ("params_params_params_value", "params_value", "params_params_value")
    assert [frame.loc[0, name] for name in names] == [3, 4, 5]
    assert frame.loc[0, "value"] == 0.5
