"""Which images a trial is right on is written with its end: once, by whoever counts it, and by nobody else."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from hpsearch.store.claims.claim import Claim, Outcome, Result
from hpsearch.store.claims.ledger import Ledger
from hpsearch.store.connection.database import Database
from hpsearch.store.rows.correct_images import Correctness, read_correctness
from hpsearch.store.studies import StoredStudy

Statements = Callable[[], AbstractContextManager[list[str]]]
BITS = Correctness.of(np.array([1, 1, 0, 1, 0, 0, 0, 0, 1, 1], dtype=bool))


@pytest.fixture
def ledger(database: Database, new_study: Callable[..., StoredStudy]) -> Ledger:
    return Ledger(database=database, study_id=new_study(3).study_id, owner=1)


def complete(claim: Claim, correct: Correctness | None = BITS) -> Result:
    return Result(trial_id=claim.trial_id, outcome=Outcome.COMPLETE, loss=0.5, correct=correct)


def test_bits_are_packed_as_numpy_does() -> None:
    assert Correctness(num_images=10, bits=b"\xd0\xc0") == BITS


def test_finishing_writes_the_bits_of_those_that_have_some(
    ledger: Ledger, execute: Callable[..., Any], statements: Statements
) -> None:
    first, second, third = ledger.claim(3)
    other = Correctness(num_images=9, bits=b"\x00\x80")
    with statements() as seen:
        ledger.finish([complete(first), complete(second, None), complete(third, other)])

    assert len(seen) == 2  # no attributes here: the end, and all bits
    rows = execute("SELECT trial_id, num_images, bits FROM hpsearch_correctness ORDER BY trial_id")
    assert [(row.trial_id, row.num_images, bytes(row.bits)) for row in rows] == [
        (first.trial_id, 10, BITS.bits),
        (third.trial_id, 9, b"\x00\x80"),
    ]
    everything = [claim.trial_id for claim in (first, second, third)]
    assert read_correctness(ledger.database, everything) == {
        first.trial_id: BITS,
        third.trial_id: Correctness(num_images=9, bits=b"\x00\x80"),
    }
    assert read_correctness(ledger.database, [second.trial_id]) == read_correctness(ledger.database, []) == {}


def test_no_bits_cost_no_statement(ledger: Ledger, statements: Statements) -> None:
    (claim,) = ledger.claim(1)
    with statements() as seen:
        ledger.finish([complete(claim, None)])
    assert len(seen) == 1


def test_a_call_that_is_made_again_changes_nothing(ledger: Ledger) -> None:
    (claim,) = ledger.claim(1)
    other = Correctness(num_images=10, bits=b"\xff\xc0")
    assert ledger.finish([complete(claim)]) == ledger.finish([complete(claim, other)]) == {claim.trial_id}
    assert read_correctness(ledger.database, [claim.trial_id]) == {claim.trial_id: BITS}


def test_a_worker_that_lost_its_lease_writes_no_bits(ledger: Ledger, execute: Callable[..., Any]) -> None:
    (claim,) = ledger.claim(1)
    assert replace(ledger, owner=2, lease_seconds=0.0).reap() == 1

    assert ledger.finish([complete(claim)]) == set()
    assert execute("SELECT * FROM hpsearch_correctness") == []


def test_bits_go_with_their_study(ledger: Ledger) -> None:
    (claim,) = ledger.claim(1)
    ledger.finish([complete(claim)])
    ledger.database.storage.delete_study(ledger.study_id)
    assert read_correctness(ledger.database, [claim.trial_id]) == {}
