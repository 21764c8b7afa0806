"""Worker and database disagree about what is held, in either direction: after commits that were lost, above all."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import optuna
import pytest
from optuna.trial import FrozenTrial, TrialState

from hpsearch.epoch_report import EpochReport
from hpsearch.store.claims.claim import Claim, Outcome, Result
from hpsearch.store.claims.holdings import Holdings
from hpsearch.store.claims.ledger import UNDONE, Ledger, new_claim_token
from hpsearch.store.connection.database import Database
from hpsearch.store.rows.counts import PointCounts
from hpsearch.store.studies import StoredStudy
from tests.integration.lost_commits import Backup

Epoch = Callable[..., EpochReport]


@pytest.fixture
def ledger(database: Database, new_study: Callable[..., StoredStudy]) -> Ledger:
    return Ledger(database=database, study_id=new_study(3).study_id, owner=1)


def another(ledger: Ledger, owner: int = 2) -> Ledger:
    return replace(ledger, owner=owner, holdings=Holdings())


def result(claim: Claim, *, num_epochs: int = 0, num_parameters: int | None = None) -> Result:
    return Result(
        trial_id=claim.trial_id,
        outcome=Outcome.COMPLETE,
        loss=0.25,
        claim=claim.token,
        num_epochs=num_epochs,
        num_parameters=num_parameters,
    )


def trials_of(ledger: Ledger) -> list[FrozenTrial]:
    return ledger.database.storage.get_all_trials(ledger.study_id)


def crashes(execute: Any) -> set[int]:
    return {row.crashes for row in execute("SELECT crashes FROM hpsearch_points")}


@pytest.mark.parametrize("reconcile", [lambda ledger: ledger.renew(), lambda ledger: ledger.record({})])
def test_a_result_that_was_undone_is_given_back_and_counted_again(
    ledger: Ledger, database: Database, epoch: Epoch, reconcile: Callable[[Ledger], object], execute: Any
) -> None:
    claim, other = ledger.claim(2)
    ledger.record({claim.trial_id: epoch()})
    backup = Backup(database)
    assert ledger.finish([result(claim, num_epochs=1)]) == {claim.trial_id}
    backup.put_back()
    assert ledger.counts() == PointCounts(waiting=1, running=2)
    reconcile(ledger)
    assert ledger.counts() == PointCounts(waiting=2, running=1)
    assert ledger.record({other.trial_id: epoch()}) == {other.trial_id}
    assert trials_of(ledger)[0].user_attrs["fail_reason"] == UNDONE
    (again,) = [c for c in ledger.claim(3) if c.point == claim.point]
    assert ledger.finish([result(again)]) == {again.trial_id}
    assert crashes(execute) == {0}


def test_what_was_given_up_while_the_database_was_away_is_given_back_for_that_reason(
    ledger: Ledger, caplog: pytest.LogCaptureFixture
) -> None:
    first, second, third = ledger.claim(3)
    ledger.holdings.owe([first.hold], "no room")
    ledger.holdings.drop([second.hold])
    assert ledger.renew() == 1
    assert ledger.counts() == PointCounts(waiting=2, running=1)
    assert ledger.holdings.now() == {third.hold}
    assert [trial.user_attrs.get("fail_reason") for trial in trials_of(ledger)[:3]] == ["no room", UNDONE, None]
    assert caplog.messages == [f"the database has lost acknowledged writes: points [{second.point}] start again"]


def test_epochs_that_were_undone_leave_no_gap(ledger: Ledger, database: Database, epoch: Epoch, execute: Any) -> None:
    claim, other = ledger.claim(2)
    ledger.record({claim.trial_id: epoch(1)})
    backup = Backup(database)
    ledger.record({claim.trial_id: epoch(2), other.trial_id: epoch(1)})
    backup.put_back()
    assert ledger.record({claim.trial_id: epoch(3), other.trial_id: epoch(2)}) == set()
    assert ledger.counts() == PointCounts(waiting=3)
    assert [list(trial.intermediate_values) for trial in trials_of(ledger)[:2]] == [[1], []]
    assert ledger.holdings.now() == frozenset()
    assert crashes(execute) == {0}


def test_a_result_is_not_counted_without_its_last_epoch(
    ledger: Ledger, database: Database, epoch: Epoch, execute: Any
) -> None:
    claim, whole = ledger.claim(2)
    ledger.record({claim.trial_id: epoch(1), whole.trial_id: epoch(1)})
    backup = Backup(database)
    ledger.record({claim.trial_id: epoch(2)})
    backup.put_back()
    assert ledger.finish([result(claim, num_epochs=2), result(whole, num_epochs=1)]) == {whole.trial_id}
    assert ledger.counts() == PointCounts(waiting=2, complete=1)
    assert crashes(execute) == {0}


def test_a_result_is_not_counted_without_its_parameters(
    database: Database, new_study: Callable[..., StoredStudy], epoch: Epoch
) -> None:
    search = {"strategy": "random", "num_points": 1, "learning_rate": {"low": 0.1, "high": 0.2}}
    ledger = Ledger(database=database, study_id=new_study(search).study_id, owner=1)
    (claim,) = ledger.claim(1)
    backup = Backup(database)
    name = database.storage.get_study_name_from_id(ledger.study_id)
    trial = optuna.Trial(optuna.load_study(study_name=name, storage=database.storage), claim.trial_id)
    trial.suggest_float("learning_rate", 0.1, 0.2)
    backup.put_back()
    assert ledger.record({claim.trial_id: epoch()}) == {claim.trial_id}
    assert ledger.finish([result(claim, num_epochs=1, num_parameters=1)]) == set()
    assert ledger.counts() == PointCounts(waiting=1)


def test_a_claim_that_was_undone_is_dropped_and_the_trial_is_free_for_others(
    ledger: Ledger, database: Database, epoch: Epoch
) -> None:
    backup = Backup(database)
    (claim,) = ledger.claim(1)
    backup.put_back()
    other = another(ledger)
    (theirs,) = other.claim(1)
    assert theirs.trial_id == claim.trial_id
    other.record({theirs.trial_id: epoch(1, 0.5)})
    assert ledger.record({claim.trial_id: epoch(1, 0.9)}) == set()
    assert ledger.finish([result(claim)]) == set()
    assert other.finish([result(theirs, num_epochs=1)]) == {theirs.trial_id}
    assert trials_of(ledger)[0].intermediate_values == {1: 0.5}


def test_what_an_undone_claim_has_brought_is_not_written_for_the_claim_after_it(
    ledger: Ledger, database: Database, epoch: Epoch
) -> None:
    """The same worker claims the same trial again, while epochs of the first claim are still to be written."""
    backup = Backup(database)
    (first,) = ledger.claim(1)
    backup.put_back()
    (second,) = ledger.claim(1)
    assert second.trial_id == first.trial_id
    assert ledger.record({first.trial_id: epoch(1, 0.9)}, held=[first.hold]) == set()
    assert ledger.finish([result(first)]) == set()
    assert ledger.record({second.trial_id: epoch(1, 0.5)}) == {second.trial_id}
    assert trials_of(ledger)[0].intermediate_values == {1: 0.5}


def test_a_requeue_that_was_undone_takes_the_new_trial_from_its_worker(
    ledger: Ledger, database: Database, epoch: Epoch
) -> None:
    """The id of the new trial is given again."""
    one, two = ledger.claim(2)
    other = another(ledger)
    other.claim(1)
    backup = Backup(database)
    ledger.release("stopped")
    (theirs,) = other.claim(1)
    backup.put_back()
    assert ledger.renew() == 0, "both are given back once more"
    assert ledger.counts() == PointCounts(waiting=2, running=1)
    assert theirs.trial_id in {trial._trial_id for trial in trials_of(ledger)}
    assert theirs.trial_id not in other.record({theirs.trial_id: epoch()})
    assert one.point != two.point


def test_a_claim_under_way_is_no_surplus(ledger: Ledger) -> None:
    """The renewal of another thread sees its points before the claimer does."""
    token = new_claim_token()
    ledger.holdings.expect(token)
    elsewhere = another(ledger, owner=ledger.owner)
    claims = elsewhere.claim(2, token=token)
    assert ledger.renew() == 2
    ledger.holdings.take(token, [claim.trial_id for claim in claims])
    assert ledger.renew() == 2
    assert ledger.counts() == PointCounts(waiting=1, running=2)


def test_points_in_this_workers_name_that_it_knows_nothing_of_are_given_back(ledger: Ledger) -> None:
    another(ledger, owner=ledger.owner).claim(2)
    assert ledger.renew() == 0
    assert ledger.counts() == PointCounts(waiting=3)
    assert [trial.state for trial in trials_of(ledger)].count(TrialState.FAIL) == 2
