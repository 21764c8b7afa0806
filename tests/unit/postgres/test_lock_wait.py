"""Waiting for a lock that another process holds."""

from __future__ import annotations

import itertools
from types import SimpleNamespace

import pytest

from hpsearch.errors import StorageError
from hpsearch.postgres import lock_wait
from hpsearch.postgres.lock_wait import wait_for_lock


@pytest.fixture(autouse=True)
def naps(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The pauses between two requests. Each look at the clock takes a second."""
    found: list[float] = []
    moments = itertools.count()
    monkeypatch.setattr(lock_wait, "time", SimpleNamespace(monotonic=lambda: next(moments), sleep=found.append))
    return found


def test_a_lock_is_asked_for_until_it_is_free(naps: list[float]) -> None:
    answers = iter([False, False, True])
    wait_for_lock(lambda: next(answers), seconds=10, activity="creating the tables", hint="try again")
    assert len(naps) == 2


def test_a_lock_that_stays_taken_is_an_error_that_says_by_what_and_for_how_long() -> None:
    with pytest.raises(StorageError) as caught:
        wait_for_lock(lambda: False, seconds=10, activity="creating the tables", hint="try again")
    assert str(caught.value) == "another process has been creating the tables for 10 s"
    assert caught.value.hint == "try again"
