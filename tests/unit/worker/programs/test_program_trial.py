"""A trial that is a program: what its reports decide, and how its end is counted."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from hpsearch.scripts.report_lines import Report
from hpsearch.search.stopping import StopDecision, StopReason, stopping_rule
from hpsearch.store.claims.claim import Claim, Outcome
from hpsearch.store.claims.earlier_attempt import EarlierReport
from hpsearch.study.program import CommandSettings
from hpsearch.study.settings import StoppingSettings
from hpsearch.worker.programs.program_trial import Ending, ProgramTrial


def trial(n: int | None = None, **settings: object) -> ProgramTrial:
    """A trial whose study ends after n reports without a new best, or has no rule."""
    stopping = StoppingSettings(rule="none") if n is None else StoppingSettings(rule="no-improvement-in-n", n=n)
    program = CommandSettings.model_validate({"run": ("train",), **settings})
    claim = Claim(trial_id=7, number=3, point=3, attempt=1, parameters={"width": 2}, token=1)
    return ProgramTrial(claim=claim, program=program, rule=stopping_rule(stopping, num_minibatches=1))


def reports(*values: float, first: int = 1) -> list[Report]:
    return [Report(step=step, value=value) for step, value in enumerate(values, start=first)]


def reason(its: ProgramTrial) -> StopReason | None:
    return None if its.decision is None else its.decision.reason


@pytest.mark.parametrize(
    ("settings", "value"),
    [
        ({}, 0.25),
        ({"value": "last"}, 0.5),
        ({"direction": "maximize"}, -0.75),
        ({"direction": "maximize", "value": "last"}, -0.5),
    ],
)
def test_the_value_is_the_best_or_the_last_report(settings: dict[str, object], value: float) -> None:
    its = trial(**settings)
    its.take_in(reports(0.75, 0.25, 0.5))
    result = its.result({})
    assert (result.outcome, result.loss) == (Outcome.COMPLETE, value)
    assert (result.attributes["epochs"], result.attributes["stop_reason"]) == (3, "finished")


def test_the_first_report_of_a_step_stays_and_steps_may_be_left_out() -> None:
    its = trial()
    its.take_in(
        [Report(step=2, value=0.5), Report(step=2, value=0.1), Report(step=1, value=0.1), *reports(0.4, first=9)]
    )
    assert [(report.step, report.loss) for report in its.unrecorded] == [(2, 0.5), (9, 0.4)]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_report_that_is_not_finite_ends_the_trial_as_diverged(value: float) -> None:
    its = trial()
    its.take_in(reports(0.5, value, 0.1))
    assert reason(its) is StopReason.DIVERGED
    assert its.failure(None, 15) is None
    assert (its.result({}).outcome, its.result({}).loss) == (Outcome.PRUNED, 0.5)


def test_own_patience_ends_a_trial_with_its_best() -> None:
    its = trial(n=2)
    its.take_in(reports(0.5, 0.6, 0.7, 0.1))
    assert reason(its) is StopReason.NO_IMPROVEMENT
    assert (its.result({}).outcome, its.result({}).loss) == (Outcome.COMPLETE, 0.5)  # what came later is no result


def test_the_last_step_ends_a_trial() -> None:
    its = trial(max_steps=2)
    its.take_in(reports(0.5, 0.6, 0.1))
    assert reason(its) is StopReason.MAX_STEPS
    assert its.last_step == 2


def test_nothing_that_is_reported_after_the_decision_counts() -> None:
    its = trial()
    its.take_in(reports(0.5))
    its.prune("median")
    its.take_in(reports(0.1, first=2))
    result = its.result({})
    assert (result.outcome, result.loss, result.attributes["epochs"]) == (Outcome.PRUNED, 0.5, 1)


@pytest.mark.parametrize(
    ("values", "exit_code", "signal", "why"),
    [
        ([0.5], 0, None, None),
        ([], 0, None, "ended without a report"),
        ([0.5], 3, None, "ended with exit code 3"),
        ([0.5], None, 9, "was ended by signal 9"),
    ],
)
def test_what_is_a_failed_attempt(
    values: list[float], exit_code: int | None, signal: int | None, why: str | None
) -> None:
    its = trial()
    its.take_in(reports(*values))
    assert its.failure(exit_code, signal) == why


@pytest.mark.parametrize("values", [[], [0.5]])
def test_a_trial_that_takes_too_long_is_complete_if_it_has_reported(values: list[float]) -> None:
    its = trial(timeout_minutes=1.0)
    its.take_in(reports(*values))
    its.check_time()
    assert its.decision is None
    its.started_at -= 61
    its.check_time()
    assert reason(its) is StopReason.TIMEOUT
    assert (its.failure(None, 15) is None) == bool(values)
    if values:
        assert its.result({}).outcome is Outcome.COMPLETE
        assert its.result({}).attributes["stop_reason"] == "timeout"


def test_an_attempt_goes_on_with_the_reports_of_the_one_before() -> None:
    its = trial(n=3)
    its.take_over([EarlierReport(step=1, loss=0.2, seconds=5.0), EarlierReport(step=4, loss=0.3, seconds=5.0)])
    its.take_in(reports(0.1, 0.1, 0.1, 0.1, first=1))  # it begins again: these steps are known
    its.take_in(reports(0.4, first=5))
    assert [report.step for report in its.unrecorded] == [5]
    assert its.recorded == 4
    its.take_in(reports(0.4, first=6))
    assert reason(its) is StopReason.NO_IMPROVEMENT  # three reports without a new best, one of them earlier
    assert its.result({}).loss == 0.2
    assert its.result({}).attributes["seconds"] >= 10


def test_further_values_become_attributes_if_they_are_plain_and_finite() -> None:
    its = trial()
    its.take_in([Report(step=1, value=0.5, more={"train": 0.25, "note": "x", "bad": math.nan, "deep": [1]})])
    found = {name: value for name, value in its.result({}).attributes.items() if name.startswith("reported:")}
    assert found == {"reported:train": 0.25, "reported:note": "x"}


def test_a_later_attempt_with_counted_matches_is_told_why_it_has_no_report() -> None:
    its = trial(pattern="err=(.*)")
    assert its.failure(0, None) == "ended without a report: its pattern has matched no line"
    its.claim = replace(its.claim, attempt=2)
    assert "needs a group `step` in its pattern" in (its.failure(0, None) or "")
    assert trial(pattern="(?P<step>.) (.)").program.counts_matches is False


@pytest.mark.parametrize(
    ("settings", "values", "step"),
    [
        ({}, (0.75, 0.25, 0.5), 2),
        ({"value": "last"}, (0.75, 0.25, 0.5), 3),
        ({"value": "last"}, (0.75, 0.5, 0.25), 3),
        ({"value": "last"}, (0.25, 0.5, 0.25), 3),
        ({"value": "last"}, (), 0),
    ],
)
def test_the_best_step_is_that_of_the_value_that_counts(
    settings: dict[str, object], values: tuple[float, ...], step: int
) -> None:
    its = trial(**settings)
    its.take_in(reports(*values))
    assert its.result({}).attributes["best_epoch"] == step


@pytest.mark.parametrize(("loss", "step"), [(0.25, 2), (0.5, 3), (7.0, 3)])
def test_a_returned_value_belongs_to_the_report_of_this_value_or_to_the_last_step(loss: float, step: int) -> None:
    its = trial()
    its.take_in(reports(0.75, 0.25, 0.5))
    its.end(Ending(decision=StopDecision(StopReason.FINISHED, "returned"), loss=loss))
    assert its.result({}).attributes["best_epoch"] == step
