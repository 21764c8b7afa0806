"""System attributes are written as Optuna's storage writes them, and only while the trial has not ended."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from hpsearch.store.claims.claim import Outcome, Result
from hpsearch.store.claims.ledger import Ledger
from hpsearch.store.connection.database import Database
from hpsearch.store.studies import StoredStudy

READ = "SELECT key, value_json FROM trial_system_attributes WHERE trial_id = :id ORDER BY trial_system_attribute_id"


def test_they_are_those_that_optuna_writes(
    database: Database, new_study: Callable[..., StoredStudy], execute: Callable[..., Any]
) -> None:
    ledger = Ledger(database=database, study_id=new_study(2).study_id, owner=1)
    first, second = (claim.trial_id for claim in ledger.claim(2))
    for trial_id, write in ((first, ledger.set_system_attribute), (second, database.storage.set_trial_system_attr)):
        write(trial_id, "a", "old")
        write(trial_id, "b", '{"name": "\u00e9"}')
        write(trial_id, "a", ["new", 1, None])
    assert execute(READ, id=first) == execute(READ, id=second)
    assert database.storage.get_trial(first).system_attrs == {"a": ["new", 1, None], "b": '{"name": "\u00e9"}'}


def test_a_trial_that_has_ended_or_is_gone_accepts_none(
    database: Database, new_study: Callable[..., StoredStudy], execute: Callable[..., Any]
) -> None:
    ledger = Ledger(database=database, study_id=new_study(2).study_id, owner=1)
    (claim,) = ledger.claim(1)
    ledger.finish([Result(trial_id=claim.trial_id, outcome=Outcome.COMPLETE, loss=0.5)])
    for trial_id in (claim.trial_id, 10**6):
        assert not ledger.set_system_attribute(trial_id, "a", 1)
        assert execute(READ, id=trial_id) == []
