"""What a summary says about a study."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
from optuna.trial import TrialState

from hpsearch.errors import NothingCompleteError
from hpsearch.results.summary import StudySummary
from hpsearch.wording import format_time


def test_json_has_the_documented_keys(summary: StudySummary) -> None:
    definition = summary.study.definition
    assert json.loads(json.dumps(summary.as_json(), allow_nan=False)) == {
        "name": "by-hand",
        "strategy": "grid",
        "dataset": "mnist",
        "command": None,
        "metric": "zero-one",
        "direction": "minimize",
        "seed": 0,
        "definition_sha256": definition.sha256,
        "read_at": "2026-11-21T07:05:00Z",
        "finished": True,
        "points": {"total": 3, "waiting": 0, "running": 0, "complete": 2, "pruned": 1, "failed": 0},
        "rounds": [],
        "search_ended": None,
        "epochs": 6,
        "failed_attempts": 0,
        "given_up": {},
        "failures": [],
        "ended_outside": 0,
        "lost_points": 0,
        "foreign_trials": 0,
        "running": [],
        "best": {
            "trial": 1,
            "point": 1,
            "value": 0.02,
            "validation_nll": None,
            "best_epoch": 2,
            "epochs": 2,
            "params": {"learning_rate": 0.01},
            "verdict": None,
            "verdict_detail": None,
        },
        "still_improving": [],
        "budgets": [200],
        "verdicts": {"no verdict": 3},
        "checks": None,
        "test_openings": [],
        "earlier_test_openings": [],
        "test_intents": [],
        "earlier_test_intents": [],
    }


def test_json_says_where_running_trials_are_trained(make_summary: Any, make_trial: Any) -> None:
    running = {"state": TrialState.RUNNING, "curve": [0.9]}
    trials = [
        make_trial(2, None, **running),
        make_trial(1, None, {"learning_rate": 0.1}, worker="node7:4711", device="cuda:0 (Fake, GPU-1)", **running),
        make_trial(0, 0.5),
        make_trial(3, None, is_current=False, **running),  # somebody's own, through plain Optuna
    ]
    assert make_summary(trials, {"learning_rate": [0.1]}).as_json()["running"] == [
        {
            "trial": 1,
            "point": 1,
            "epochs": 1,
            "worker": "node7:4711",
            "device": "cuda:0 (Fake, GPU-1)",
            "params": {"learning_rate": 0.1},
        },
        {"trial": 2, "point": 2, "epochs": 1, "worker": None, "device": None, "params": {}},
    ]


def test_json_of_a_study_with_nothing_complete_has_no_best(make_summary: Any, make_trial: Any) -> None:
    said = make_summary([make_trial(0, None, state=TrialState.WAITING)]).as_json()
    assert said["best"] is None
    assert said["finished"] is False


@pytest.mark.parametrize(
    ("state", "hint"),
    [(TrialState.RUNNING, "hpsearch worker by-hand"), (TrialState.PRUNED, "every point was pruned")],
)
def test_asking_for_the_best_of_nothing_tells_the_counts_by_state(
    make_summary: Any, make_trial: Any, state: TrialState, hint: str
) -> None:
    trials = [make_trial(0, 0.9, state=state), make_trial(1, None, state=TrialState.FAIL)]
    with pytest.raises(NothingCompleteError) as caught:
        make_summary(trials).require_best()
    counts = "0 waiting, {} running, 0 complete, {} pruned, 1 given up".format(
        *((1, 0) if state is TrialState.RUNNING else (0, 1))
    )
    assert str(caught.value) == f"study 'by-hand' has no complete trial yet: {counts}"
    assert hint in str(caught.value.hint)


def test_a_complete_trial_that_stands_for_no_point_is_never_the_best(make_summary: Any, make_trial: Any) -> None:
    """Somebody may add trials to the study with plain Optuna."""
    summary = make_summary([make_trial(0, 0.01, is_current=False), make_trial(1, 0.5)])
    assert summary.require_best().number == 1
    assert [trial.number for trial in summary.complete] == [1]
    assert summary.points.total == 1


def test_a_switched_off_lambda_is_zero_in_the_point(make_trial: Any) -> None:
    trial = make_trial(0, 0.1, {"learning_rate": 0.1, "lambda_1_is_zero": True})
    assert trial.point_parameters == {"learning_rate": 0.1, "lambda_1": 0.0}


def test_times_are_told_in_utc() -> None:
    east = timezone(timedelta(hours=2))
    assert format_time(datetime(2026, 1, 1, 0, 30, 59, 999, tzinfo=east)) == "2025-12-31T22:30:59Z"
    assert format_time(datetime(2026, 1, 1, tzinfo=UTC)) == "2026-01-01T00:00:00Z"
