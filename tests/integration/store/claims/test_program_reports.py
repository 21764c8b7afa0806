"""Reports of programs in the ledger: many in one statement, steps with gaps, and what the next attempt takes over."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from hpsearch.epoch_report import StepReport
from hpsearch.store.claims.claim import Claim, Outcome, Result
from hpsearch.store.claims.earlier_attempt import take_over_reports
from hpsearch.store.claims.ledger import Ledger
from hpsearch.store.connection.database import Database
from hpsearch.store.registration import register_study
from hpsearch.study.study_file import parse_definition

Execute = Callable[..., Any]


@pytest.fixture(params=["minimize", "maximize"])
def ledger(database: Database, request: pytest.FixtureRequest) -> Ledger:
    """The first worker of a study of two points."""
    document = {
        "name": "mine",
        "command": {"run": ["train", "{width}"], "direction": request.param},
        "search": {"width": [1, 2]},
    }
    definition = parse_definition(document, source="test")
    study = register_study(database, definition, dataset_checksums={}, cohort_of=lambda settings: "none").study
    assert len(study.program_key) == 16
    return Ledger(database=database, study_id=study.study_id, owner=1)


def claim_one(ledger: Ledger) -> Claim:
    (claim,) = ledger.claim(1)
    return claim


def reports(*steps: int) -> list[StepReport]:
    return [StepReport(step=step, loss=-1.5 + step, seconds=0.5) for step in steps]


def stored(execute: Execute, trial_id: int) -> list[tuple[int, float]]:
    """Steps with values, as Optuna reads them."""
    statement = "SELECT step, intermediate_value FROM trial_intermediate_values WHERE trial_id = :id ORDER BY step"
    return [tuple(row) for row in execute(statement, id=trial_id)]


def value(execute: Execute, loss: float) -> float:
    ((direction,),) = execute("SELECT CAST(direction AS text) FROM study_directions")
    return -loss if direction == "MAXIMIZE" else loss


def test_all_reports_of_all_trials_are_one_statement(
    ledger: Ledger, execute: Execute, statements: Callable[..., Any]
) -> None:
    one, other = ledger.claim(2)
    with statements() as seen:
        held = ledger.record_steps(
            {one.trial_id: reports(1, 5, 100), other.trial_id: reports(2)}, {one.trial_id: 0, other.trial_id: 0}
        )
    assert held == {one.trial_id, other.trial_id}
    assert len(seen) == 1
    assert stored(execute, one.trial_id) == [(s, value(execute, s - 1.5)) for s in (1, 5, 100)]
    assert stored(execute, other.trial_id) == [(2, value(execute, 0.5))]


def test_a_report_that_was_recorded_stays(ledger: Ledger, execute: Execute) -> None:
    claim = claim_one(ledger)
    for loss in (0.25, 0.5):
        ledger.record_steps({claim.trial_id: [StepReport(step=1, loss=loss, seconds=1.0)]}, {claim.trial_id: 0})
    assert stored(execute, claim.trial_id) == [(1, value(execute, 0.25))]


def test_a_trial_whose_last_step_the_database_has_lost_is_given_back(ledger: Ledger, execute: Execute) -> None:
    claim = claim_one(ledger)
    ledger.record_steps({claim.trial_id: reports(3)}, {claim.trial_id: 0})
    execute("DELETE FROM hpsearch_epochs WHERE trial_id = :id", id=claim.trial_id)
    assert ledger.record_steps({claim.trial_id: reports(7)}, {claim.trial_id: 3}) == set()
    assert ledger.counts().waiting == 2
    assert stored(execute, claim.trial_id)[-1][0] == 3


def test_the_next_attempt_takes_over_what_was_reported(ledger: Ledger, execute: Execute) -> None:
    claim = claim_one(ledger)
    ledger.record_steps({claim.trial_id: reports(2, 4)}, {claim.trial_id: 0})
    assert ledger.give_back([claim.hold], "its worker was stopped") == [claim.point]
    again = claim_one(ledger)
    assert (again.point, again.attempt) == (claim.point, 2)
    for _ in range(2):  # it is safe to repeat
        found = take_over_reports(ledger, again)
        assert found is not None
        assert [(r.step, r.loss, r.seconds) for r in found] == [(2, 0.5, 0.5), (4, 2.5, 0.5)]
    assert stored(execute, again.trial_id) == stored(execute, claim.trial_id)
    assert ledger.record_steps({again.trial_id: reports(9)}, {again.trial_id: 4}) == {again.trial_id}
    # The attempt after it has all of them.
    ledger.give_back([again.hold], "its worker was stopped")
    third = claim_one(ledger)
    found = take_over_reports(ledger, third)
    assert found is not None
    assert [report.step for report in found] == [2, 4, 9]


def test_nothing_is_taken_over_by_a_worker_that_has_lost_the_trial(ledger: Ledger) -> None:
    claim = claim_one(ledger)
    ledger.give_back([claim.hold], "stopped")
    again = claim_one(ledger)
    ledger.give_back([again.hold], "stopped")
    assert take_over_reports(ledger, again) is None


def test_an_attempt_that_reported_nothing_leaves_nothing(ledger: Ledger) -> None:
    claim = claim_one(ledger)
    ledger.give_back([claim.hold], "stopped")
    assert take_over_reports(ledger, claim_one(ledger)) == []


@pytest.mark.parametrize("max_attempts", [1, 2, 3])
def test_a_point_is_given_up_after_its_failed_attempts_however_far_they_got(
    ledger: Ledger, execute: Execute, max_attempts: int
) -> None:
    done = claim_one(ledger)
    ledger.finish([Result(trial_id=done.trial_id, outcome=Outcome.PRUNED, loss=None, claim=done.token)])
    for attempt in range(1, max_attempts + 1):
        claim = claim_one(ledger)
        assert claim.attempt == attempt
        ledger.record_steps({claim.trial_id: reports(10 * attempt)}, {claim.trial_id: 0})
        ledger.give_back([claim.hold], "exit code 1", max_attempts=max_attempts)
    assert ledger.counts().failed == 1
    reasons = execute("SELECT value_json FROM trial_user_attributes WHERE key = 'fail_reason'")
    assert [reason for (reason,) in reasons] == ['"exit code 1"'] * max_attempts


def test_an_attempt_that_was_stopped_is_no_failure(ledger: Ledger) -> None:
    for _ in range(5):
        claim = claim_one(ledger)
        ledger.give_back([claim.hold], "its worker was stopped")
    assert (ledger.counts().failed, ledger.counts().waiting) == (0, 2)


def test_a_result_is_counted_with_its_last_step(ledger: Ledger, execute: Execute) -> None:
    claim = claim_one(ledger)
    ledger.record_steps({claim.trial_id: reports(1, 8)}, {claim.trial_id: 0})
    result = Result(trial_id=claim.trial_id, outcome=Outcome.COMPLETE, loss=0.25, claim=claim.token, num_epochs=8)
    assert ledger.finish([result]) == {claim.trial_id}
    ((found,),) = execute("SELECT value FROM trial_values")
    assert found == value(execute, 0.25)
    assert ledger.best_losses(1) == [0.25]
