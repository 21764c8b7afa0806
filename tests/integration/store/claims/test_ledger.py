"""The ledger: claims, leases and fences; every point counted exactly once, whatever dies whenever."""

from __future__ import annotations

import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from copy import deepcopy
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any

import optuna
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from optuna.trial import TrialState
from sqlalchemy import Connection, create_engine, text

from hpsearch.epoch_report import EpochReport, Validation
from hpsearch.postgres.embedded import EmbeddedPostgres
from hpsearch.store.claims import ledger_sql
from hpsearch.store.claims import requeue as requeue_module
from hpsearch.store.claims.claim import Claim, Outcome, Result
from hpsearch.store.claims.holdings import Hold
from hpsearch.store.claims.lease import PRESENCE_NAMESPACE, LeaseWatch
from hpsearch.store.claims.ledger import Ledger
from hpsearch.store.claims.requeue import MAX_CRASHES
from hpsearch.store.connection.database import Database, DatabaseOperation, open_database
from hpsearch.store.registration import register_study
from hpsearch.store.rows.counts import PointCounts
from hpsearch.store.studies import StoredStudy
from hpsearch.study.study_file import parse_definition
from tests.integration.lost_commits import Backup

Statements = Callable[[], AbstractContextManager[list[str]]]
NewStudy = Callable[..., StoredStudy]
Epoch = Callable[..., EpochReport]


@pytest.fixture
def workers(database: Database, new_study: NewStudy) -> Callable[..., list[Ledger]]:
    """Makes a study and the ledgers of so many workers on it; their numbers are 1, 2, ..."""

    def make(number: int, points: int | dict[str, Any] = 3, **options: Any) -> list[Ledger]:
        study = new_study(points)
        return [Ledger(database=database, study_id=study.study_id, owner=i + 1, **options) for i in range(number)]

    return make


def complete(claim: Claim, value: float = 0.25, **attributes: Any) -> Result:
    return Result(trial_id=claim.trial_id, outcome=Outcome.COMPLETE, loss=value, attributes=attributes)


def pruned(claim: Claim, value: float | None = 0.75) -> Result:
    return Result(trial_id=claim.trial_id, outcome=Outcome.PRUNED, loss=value)


def trials_of(ledger: Ledger) -> list[optuna.trial.FrozenTrial]:
    return ledger.database.storage.get_all_trials(ledger.study_id)


def reap_all(reaper: Ledger) -> int:
    """Reap as one that takes every lease but its own for stale at the first look."""
    return replace(reaper, lease_seconds=0.0).reap()


class Clock:
    """A monotonic clock that goes when it is told to."""

    def __init__(self) -> None:
        self.seconds = 1000.0

    def __call__(self) -> float:
        return self.seconds


def renewals(ledger: Ledger) -> dict[int, datetime]:
    """When the leases of one worker were renewed, by trial."""
    sql = text("SELECT trial_id, renewed_at FROM hpsearch_points WHERE owner = :owner")
    with ledger.database.engine.begin() as connection:
        return {row.trial_id: row.renewed_at for row in connection.execute(sql, {"owner": ledger.owner})}


# Claims


def test_claims_come_in_point_order_with_parameters_and_start_the_trials(workers: Any) -> None:
    first, second = workers(2, {"learning_rate": [0.1, 0.2, 0.3], "shuffle": [True]})
    before = datetime.now(UTC).replace(tzinfo=None)
    claims = first.claim(2)
    assert [(c.point, c.number, c.attempt) for c in claims] == [(0, 0, 1), (1, 1, 1)]
    assert [c.parameters for c in claims] == [
        {"learning_rate": 0.1, "shuffle": True},
        {"learning_rate": 0.2, "shuffle": True},
    ]
    assert [c.point for c in second.claim(2)] == [2]
    assert first.claim(1) == second.claim(1) == []
    trials = trials_of(first)
    assert [trial.state for trial in trials] == [TrialState.RUNNING] * 3
    for trial in trials:  # naive UTC, as Optuna has it
        assert trial.datetime_start is not None
        assert abs(trial.datetime_start - before) < timedelta(minutes=1)


def test_one_claim_brings_points_of_one_cohort_only(workers: Any) -> None:
    first, second = workers(2, {"learning_rate": [0.1, 0.2], "batch_size": [20, 500]})  # cohorts 20 500 20 500
    assert [c.point for c in first.claim(9)] == [0, 2]
    assert first.claim(9, cohort="batch 20") == []
    assert [c.point for c in second.claim(9, cohort="batch 500")] == [1, 3]


def test_cohort_of_another_claimer_in_the_same_moment_is_passed_over(workers: Any) -> None:
    """While one worker's claim is not committed, another takes the next cohort rather than nothing."""
    first, second = workers(2, {"learning_rate": [0.1, 0.2], "batch_size": [20, 500]})
    with first.database.engine.begin() as connection:
        connection.execute(
            text("SELECT trial_id FROM hpsearch_points WHERE cohort = 'batch 20' AND study_id = :study FOR UPDATE"),
            {"study": first.study_id},
        )
        assert [c.point for c in second.claim(9)] == [1, 3]


def test_points_with_parameters_still_to_be_drawn_go_to_any_cohort(workers: Any) -> None:
    search = {"strategy": "random", "num_points": 3, "learning_rate": {"low": 0.1, "high": 0.2}}
    first, second = workers(2, search)
    claims = first.claim(2, cohort="whichever")
    assert [c.point for c in claims] == [0, 1]
    assert [c.parameters for c in claims] == [{}, {}]
    assert [c.point for c in second.claim(2)] == [2]


def test_claim_of_nothing_takes_nothing(workers: Any) -> None:
    (ledger,) = workers(1)
    assert ledger.claim(0) == []
    assert ledger.counts() == PointCounts(waiting=3)


def test_claimers_at_once_get_each_point_exactly_once(tables_url: str, new_study: NewStudy) -> None:
    study = new_study({"seed": list(range(40)), "batch_size": [20, 500]})
    barrier = threading.Barrier(6)

    def work(owner: int) -> list[int]:
        own = open_database(tables_url)
        ledger = Ledger(database=own, study_id=study.study_id, owner=owner)
        barrier.wait(240)
        points: list[int] = []
        while ledger.counts().waiting:
            points += [claim.point for claim in ledger.claim(1 + owner % 3)]
        own.close()
        return points

    with ThreadPoolExecutor(6) as pool:
        claimed = list(pool.map(work, range(1, 7)))
    assert sorted(point for points in claimed for point in points) == list(range(80))


# Records


def test_record_writes_one_epoch_of_all_lanes_and_renews_the_leases(workers: Any, execute: Any, epoch: Epoch) -> None:
    (ledger,) = workers(1)
    one, two, three = ledger.claim(3)
    before = renewals(ledger)
    held = ledger.record({one.trial_id: epoch(1, 0.0), two.trial_id: epoch(1, 0.4)})
    assert held == {one.trial_id, two.trial_id, three.trial_id}
    assert [trial.intermediate_values for trial in trials_of(ledger)] == [{1: 0.0}, {1: 0.4}, {}]
    assert execute("SELECT * FROM hpsearch_epochs WHERE trial_id = :id", id=two.trial_id) == [
        (two.trial_id, 1, 0.25, 0.8, 0.125, 0.5)
    ]
    assert all(renewed_at > before[trial_id] for trial_id, renewed_at in renewals(ledger).items())


def test_best_validation_of_the_epoch_is_its_value(workers: Any) -> None:
    (ledger,) = workers(1)
    (claim,) = ledger.claim(1)
    validations = tuple(
        Validation(iteration=i, loss=zero_one, nll=nll)
        for i, (zero_one, nll) in enumerate([(0.5, 1.0), (0.3, 0.9), (0.3, 0.8), (0.4, 0.1)], start=1)
    )
    report = EpochReport(epoch=1, validations=validations, train_nll=1.0, learning_rate=0.1, seconds=1.0)
    ledger.record({claim.trial_id: report})
    assert trials_of(ledger)[0].intermediate_values == {1: 0.3}


def test_report_that_is_there_already_is_kept(workers: Any, epoch: Epoch) -> None:
    (ledger,) = workers(1)
    (claim,) = ledger.claim(1)
    ledger.record({claim.trial_id: epoch(1, 0.5)})
    ledger.record({claim.trial_id: epoch(1, 0.1)})
    ledger.record({claim.trial_id: epoch(2, 0.2)})
    assert trials_of(ledger)[0].intermediate_values == {1: 0.5, 2: 0.2}


@pytest.mark.parametrize("num_lanes", [1, 7, 64])
def test_statements_per_epoch_do_not_depend_on_the_number_of_lanes(
    workers: Any, statements: Statements, epoch: Epoch, num_lanes: int
) -> None:
    (ledger,) = workers(1, num_lanes)
    claims = ledger.claim(num_lanes)
    assert len(claims) == num_lanes
    with statements() as seen:
        ledger.record({claim.trial_id: epoch() for claim in claims})
    assert len(seen) == 1
    with statements() as seen:
        ledger.record(
            {claim.trial_id: epoch(2) for claim in claims},
            [(claim.trial_id, "completed_rung_0", 0.5) for claim in claims],
        )
    assert len(seen) == 2
    with statements() as seen:
        ledger.finish([complete(claim, a=1, b="x") for claim in claims])
    assert len(seen) == 2
    with statements() as seen:
        ledger.reap()
    assert len(seen) == 1


def test_release_and_reaping_take_the_same_number_of_statements_for_any_number_of_lanes(
    workers: Any, statements: Statements
) -> None:
    def count(num_lanes: int) -> tuple[int, int]:
        worker, reaper = workers(2, num_lanes)
        worker.claim(num_lanes)
        with statements() as releasing:
            assert worker.release("stopped") == num_lanes
        worker.claim(num_lanes)
        with statements() as reaping:
            assert reap_all(reaper) == num_lanes
        return len(releasing), len(reaping)

    assert count(2) == count(50)


def test_rung_attributes_are_what_optuna_keeps(workers: Any, epoch: Epoch) -> None:
    (ledger,) = workers(1)
    one, two = ledger.claim(2)
    ledger.record({}, [(one.trial_id, "completed_rung_0", 0.5), (two.trial_id, "completed_rung_1", 0.25)])
    ledger.record({}, [(one.trial_id, "completed_rung_0", 0.9)])
    assert [trial.system_attrs for trial in trials_of(ledger)] == [
        {"completed_rung_0": 0.5},
        {"completed_rung_1": 0.25},
        {},
    ]


def test_diverged_report_never_reaches_the_database(workers: Any, epoch: Epoch) -> None:
    (ledger,) = workers(1)
    (claim,) = ledger.claim(1)
    with pytest.raises(AssertionError):
        ledger.record({claim.trial_id: replace(epoch(), train_nll=float("nan"))})
    assert trials_of(ledger)[0].intermediate_values == {}


# Results


def test_finish_counts_trials_as_optuna_has_them(workers: Any, epoch: Epoch) -> None:
    (ledger,) = workers(1)
    one, two, three = ledger.claim(3)
    ledger.record({two.trial_id: epoch(1, 0.75)})
    results = [
        complete(one, 0.25, stop_reason="patience", epochs=3, ratio=0.5, none=None),
        pruned(two),
        pruned(three, None),
    ]
    assert ledger.finish(results) == {one.trial_id, two.trial_id, three.trial_id}
    assert ledger.counts() == PointCounts(complete=1, pruned=2)
    study = optuna.load_study(
        study_name=ledger.database.storage.get_study_name_from_id(ledger.study_id),
        storage=ledger.database.url.render_as_string(hide_password=False),
    )
    best, loser, diverged = study.trials
    assert study.best_trial == best
    assert (best.state, best.value) == (TrialState.COMPLETE, 0.25)
    assert best.user_attrs == {
        "point": 0, "attempt": 1, "stop_reason": "patience", "epochs": 3, "ratio": 0.5, "none": None
    }  # fmt: skip
    assert best.duration is not None
    assert timedelta(0) <= best.duration < timedelta(minutes=1)
    assert (loser.state, loser.value, loser.intermediate_values) == (TrialState.PRUNED, 0.75, {1: 0.75})
    assert (diverged.state, diverged.value) == (TrialState.PRUNED, None)
    assert ledger.best_loss() == 0.25
    assert study.get_trials(states=(TrialState.COMPLETE,)) == [best]


def test_finish_takes_values_from_zero_to_one(workers: Any) -> None:
    (ledger,) = workers(1)
    one, two, _ = ledger.claim(3)
    assert ledger.best_loss() is None
    ledger.finish([complete(one, 1.0)])
    assert ledger.best_loss() == 1.0
    ledger.finish([complete(two, 0.0)])
    assert ledger.best_loss() == 0.0
    assert ledger.finish([]) == set()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf"), None])
def test_complete_trial_needs_a_finite_value(value: float | None) -> None:
    with pytest.raises(AssertionError):
        Result(trial_id=1, outcome=Outcome.COMPLETE, loss=value)


def test_finishing_twice_counts_once(workers: Any) -> None:
    (ledger,) = workers(1)
    (claim,) = ledger.claim(1)
    assert ledger.finish([complete(claim, 0.25)]) == {claim.trial_id}
    assert ledger.finish([complete(claim, 0.5, late=True)]) == {claim.trial_id}  # it stands counted
    trial = trials_of(ledger)[0]
    assert (trial.value, trial.user_attrs) == (0.25, {"point": 0, "attempt": 1})


# Fences


def test_worker_that_lost_its_lease_writes_nothing_more(workers: Any, execute: Any, epoch: Epoch) -> None:
    loser, reaper = workers(2)
    claims = loser.claim(2)
    loser.record({claim.trial_id: epoch(1) for claim in claims})
    assert reap_all(reaper) == 2
    everything = """
        SELECT (SELECT json_agg(t ORDER BY trial_id) FROM trials t)::text,
            (SELECT json_agg(p ORDER BY point) FROM hpsearch_points p)::text,
            (SELECT json_agg(v ORDER BY trial_value_id) FROM trial_values v)::text,
            (SELECT count(*) FROM hpsearch_epochs), (SELECT count(*) FROM trial_intermediate_values),
            (SELECT count(*) FROM trial_user_attributes), (SELECT count(*) FROM trial_system_attributes)
    """
    before = execute(everything)
    assert (
        loser.record({claim.trial_id: epoch(2) for claim in claims}, [(claims[0].trial_id, "completed_rung_0", 0.1)])
        == set()
    )
    assert loser.finish([complete(claims[0]), pruned(claims[1])]) == set()
    assert loser.renew() == 0
    assert loser.release("stopped") == 0
    assert execute(everything) == before
    assert [claim.point for claim in reaper.claim(9)] == [0, 1, 2]


def test_nobody_writes_on_a_trial_that_another_worker_holds(workers: Any, epoch: Epoch) -> None:
    holder, other = workers(2)
    (claim,) = holder.claim(1)
    assert other.record({claim.trial_id: epoch()}) == set()
    assert other.record({}, [(claim.trial_id, "completed_rung_0", 0.5)]) == set()
    assert other.finish([complete(claim)]) == set()
    trial = trials_of(holder)[0]
    assert (trial.state, trial.intermediate_values, trial.system_attrs) == (TrialState.RUNNING, {}, {})
    assert holder.finish([complete(claim)]) == {claim.trial_id}


def test_a_lease_is_good_until_somebody_else_takes_it(workers: Any, epoch: Epoch) -> None:
    (ledger,) = workers(1)
    (claim,) = ledger.claim(1)
    assert reap_all(ledger) == 0
    assert ledger.record({claim.trial_id: epoch()}) == {claim.trial_id}
    assert ledger.finish([complete(claim)]) == {claim.trial_id}


# Release


def test_stopped_worker_gives_its_points_back_without_a_crash(workers: Any, execute: Any, epoch: Epoch) -> None:
    stopped, other = workers(2)
    one, two = stopped.claim(2)
    stopped.record({one.trial_id: epoch(1), two.trial_id: epoch(1)})
    stopped.finish([complete(two)])
    assert stopped.release("its worker was stopped") == 1
    assert stopped.release("its worker was stopped") == 0
    assert stopped.counts() == PointCounts(waiting=2, complete=1)
    assert execute("SELECT attempt, crashes FROM hpsearch_points ORDER BY point") == [(2, 0), (1, 0), (1, 0)]
    failed, _, _, again = trials_of(stopped)
    assert (failed.state, failed.user_attrs["fail_reason"]) == (TrialState.FAIL, "its worker was stopped")
    assert failed.intermediate_values == {1: 0.5}
    assert (again.state, again.number, again.params) == (TrialState.WAITING, 3, failed.params)
    assert again.user_attrs == {"point": 0, "attempt": 2}
    assert again.distributions == failed.distributions
    assert again.intermediate_values == {}
    claim = other.claim(1)[0]
    assert (claim.point, claim.attempt, claim.number) == (0, 2, 3)
    assert claim.parameters == one.parameters


def test_point_may_be_given_back_any_number_of_times(workers: Any) -> None:
    (ledger,) = workers(1, 1)
    for attempt in range(1, 3 * MAX_CRASHES):
        assert ledger.claim(1)[0].attempt == attempt
        ledger.release("stopped")
    assert ledger.counts() == PointCounts(waiting=1)


def test_drawn_parameters_stay_with_the_point(workers: Any, execute: Any) -> None:
    search = {"strategy": "random", "num_points": 1, "learning_rate": {"low": 0.1, "high": 0.2}}
    (ledger,) = workers(1, search)
    (claim,) = ledger.claim(1)
    study = optuna.load_study(
        study_name=ledger.database.storage.get_study_name_from_id(ledger.study_id),
        storage=ledger.database.storage,
    )
    rate = optuna.Trial(study, claim.trial_id).suggest_float("learning_rate", 0.1, 0.2)
    ledger.release("stopped")
    assert ledger.claim(1)[0].parameters == {"learning_rate": rate}


# Reaping


def presence(database: Database, owner: int) -> Connection:
    """Open a session that holds a worker's lock."""
    connection = database.engine.connect()
    connection.execute(
        text("SELECT pg_advisory_lock(:namespace, :owner)"), {"namespace": PRESENCE_NAMESPACE, "owner": owner}
    )
    connection.commit()
    return connection


def test_waiting_points_of_a_cohort_are_counted(workers: Any) -> None:
    (ledger,) = workers(1, {"learning_rate": [0.1, 0.2, 0.3], "batch_size": [20, 500]})
    ledger.claim(1)
    assert [ledger.num_waiting(cohort) for cohort in ("batch 20", "batch 500", "another")] == [2, 3, 0]
    (drawing,) = workers(1, {"strategy": "random", "num_points": 3, "learning_rate": {"low": 0.1, "high": 0.2}})
    assert drawing.num_waiting("whichever") == 3


def test_living_workers_are_counted_but_for_those_at_other_studies(
    workers: Any, database: Database, new_study: NewStudy
) -> None:
    first, _ = workers(2)
    assert first.num_workers() == 0
    elsewhere = Ledger(database=database, study_id=new_study().study_id, owner=3)
    sessions = [presence(database, owner) for owner in (1, 2, 3)]
    first.claim(1)
    assert first.num_workers() == 3  # the third has nothing to do yet
    elsewhere.claim(1)
    assert (first.num_workers(), elsewhere.num_workers()) == (2, 2)
    for session in sessions:
        session.invalidate()
        session.close()


LEASE, ABSENCE = 30.0, 15.0
# What an observer sees, five seconds after what it saw before: whether the worker's session is there, and whether the
# lease was renewed.
HERE, GONE, RENEWED, RENEWED_GONE = (True, False), (False, False), (True, True), (False, True)


@pytest.mark.parametrize(
    ("seen", "is_stale"),
    [
        ([HERE], False),
        ([GONE], False),  # just claimed: its session may be on its way
        ([HERE] * 6, False),
        ([HERE] * 7, True),  # unchanged for a lease: its worker hangs
        ([GONE] * 3, False),
        ([GONE] * 4, True),  # not renewed for as long as ABSENCE_SECONDS, and nobody there all the time
        ([HERE, HERE, HERE, GONE], False),
        ([HERE, HERE, HERE, GONE, GONE, GONE, GONE], True),
        ([GONE, GONE, HERE, GONE, GONE, GONE], False),
        ([GONE, GONE, RENEWED_GONE, GONE, GONE], False),
        ([HERE] * 5 + [RENEWED] + [HERE] * 5, False),
        ([HERE] * 5 + [RENEWED] + [HERE] * 6, True),
    ],
)
def test_a_lease_is_stale_that_an_observer_saw_unchanged_for_too_long(
    workers: Any, seen: list[tuple[bool, bool]], is_stale: bool
) -> None:
    clock = Clock()
    worker, reaper = workers(2, lease_seconds=LEASE, absence_seconds=ABSENCE)
    reaper = replace(reaper, lease_watch=LeaseWatch(clock))
    worker.claim(2)
    for number, (is_here, is_renewed) in enumerate(seen, start=1):
        if is_renewed:
            worker.renew()
        session = presence(worker.database, worker.owner) if is_here else None
        if number < len(seen):
            reaper.watch_leases()
            clock.seconds += 5
        else:
            assert reaper.reap() == (2 if is_stale else 0)
        if session is not None:
            session.invalidate()
            session.close()


def test_an_observer_that_was_blind_for_a_while_begins_anew(workers: Any) -> None:
    """It was stopped, or the server hung for all: that nobody has renewed meanwhile says nothing."""
    clock = Clock()
    worker, reaper = workers(2, lease_seconds=LEASE, absence_seconds=ABSENCE)
    reaper = replace(reaper, lease_watch=LeaseWatch(clock))
    worker.claim(1)
    reaper.watch_leases()
    clock.seconds += 3600
    assert reaper.reap() == 0
    clock.seconds += ABSENCE
    assert reaper.reap() == 1


def test_a_renewal_changes_what_a_lease_bears_whatever_the_clock_says(workers: Any, execute: Any) -> None:
    """The clock was put back, or stands still within a transaction: equal times would look like no renewal."""
    (ledger,) = workers(1)
    (claim,) = ledger.claim(1)
    execute("UPDATE hpsearch_points SET renewed_at = now() + interval '3 hours' WHERE owner = 1")
    seen = {renewals(ledger)[claim.trial_id]}
    for renew in (ledger.renew, lambda: ledger.record({}), ledger.renew):
        renew()
        seen.add(renewals(ledger)[claim.trial_id])
    assert len(seen) == 4


def test_presence_in_another_database_or_of_another_worker_does_not_count(workers: Any, database_url: str) -> None:
    worker, reaper = workers(2, absence_seconds=0.0)
    worker.claim(1)
    neighbour = create_engine(database_url)
    values = {"namespace": PRESENCE_NAMESPACE, "owner": worker.owner}
    with neighbour.connect() as connection, presence(worker.database, 77) as other:
        connection.execute(text("SELECT pg_advisory_lock(:namespace, :owner)"), values)
        assert reaper.reap() == 1
        other.invalidate()
    neighbour.dispose()


def test_reaping_counts_a_crash_and_requeues_the_point(workers: Any, execute: Any) -> None:
    worker, reaper = workers(2)
    worker.claim(1)
    assert reap_all(reaper) == 1
    assert reap_all(reaper) == 0
    assert execute("SELECT attempt, crashes, owner, claim FROM hpsearch_points WHERE point = 0") == [(2, 1, None, None)]
    assert trials_of(worker)[0].user_attrs["fail_reason"] == "its worker died or lost the database"


def test_point_that_kills_its_workers_is_given_up_in_the_end(workers: Any) -> None:
    ledgers = workers(MAX_CRASHES + 1, 1)
    for ledger in ledgers[:-1]:
        assert len(ledger.claim(1)) == 1
        assert reap_all(ledgers[-1]) == 1
    assert ledgers[-1].counts() == PointCounts(failed=1)
    assert ledgers[-1].counts().unfinished == 0
    assert ledgers[-1].claim(1) == []
    assert reap_all(ledgers[-1]) == 0
    assert [trial.state for trial in trials_of(ledgers[0])] == [TrialState.FAIL] * MAX_CRASHES


def test_the_reason_of_a_failed_trial_is_stored_without_passwords_and_control_characters(workers: Any) -> None:
    """Other programs show it as it is: Optuna's command line, a notebook."""
    (ledger,) = workers(1)
    ledger.claim(1)
    ledger.release("its worker failed: \x1b[31mno answer from postgresql://u:s3cret@h/d\x07")
    reason = trials_of(ledger)[0].user_attrs["fail_reason"]
    assert reason == r"its worker failed: \x1b[31mno answer from postgresql://u:***@h/d\x07"


def test_worker_that_fails_counts_its_crashes_itself(workers: Any) -> None:
    (ledger,) = workers(1, 1)
    for _ in range(MAX_CRASHES):
        ledger.claim(1)
        assert ledger.release("its worker failed", is_crash=True) == 1
    assert ledger.counts() == PointCounts(failed=1)


def test_poisonous_point_takes_no_neighbour_with_it(workers: Any) -> None:
    """Every worker that trains point 2 dies, with all its lanes: the others are counted all the same."""
    (ledger,) = workers(1, 6)
    deaths = 0
    while ledger.counts().unfinished:
        claims = ledger.claim(4) + ledger.claim(2)
        if 2 in [claim.point for claim in claims]:
            ledger.release("its worker died", is_crash=True)
            deaths += 1
        else:
            ledger.finish([complete(claim) for claim in claims])
    assert deaths == MAX_CRASHES
    assert ledger.counts() == PointCounts(complete=5, failed=1)


def test_point_on_its_last_attempt_comes_alone_and_last(workers: Any) -> None:
    first, second = workers(2, 4)
    for _ in range(MAX_CRASHES - 1):
        assert [claim.point for claim in first.claim(2)] == [0, 1]
        first.release("its worker died", is_crash=True)
    (two,) = first.claim(1)
    assert two.point == 2
    assert [claim.point for claim in first.claim(9)] == [3]  # 0 and 1 wait for a worker with nothing else
    assert first.claim(9) == []
    (alone,) = second.claim(9)
    assert alone.point == 0
    assert second.claim(9) == []  # nothing beside it
    second.finish([complete(alone)])
    assert [claim.point for claim in second.claim(9)] == [1]


def wait_until_blocked(connection: Connection, key: int) -> None:
    """Return when some session waits for the advisory lock `key`."""
    waiting = text("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND objid = :key AND NOT granted")
    deadline = time.monotonic() + 240
    while connection.execute(waiting, {"key": key}).scalar_one() == 0:
        assert time.monotonic() < deadline


def test_reaping_while_the_worker_finishes_counts_once(
    workers: Any, execute: Any, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The reaper has read the trial as RUNNING and stale; before it locks the point, its worker finishes it.

    To stop the reaper in between, its statement waits for a lock that this test holds.
    """
    worker, reaper = workers(2)
    (claim,) = worker.claim(1)
    execute(
        "CREATE FUNCTION wait_for_the_test() RETURNS boolean VOLATILE LANGUAGE plpgsql AS $$ BEGIN "
        "PERFORM pg_advisory_lock_shared(4711); PERFORM pg_advisory_unlock_shared(4711); RETURN true; END $$"
    )
    sql = ledger_sql.STALE_FOR_UPDATE.text
    trapped = sql.replace("NOT p.is_counted", "NOT p.is_counted AND wait_for_the_test()")
    monkeypatch.setattr(ledger_sql, "STALE_FOR_UPDATE", text(trapped))
    with database.engine.connect() as gate, ThreadPoolExecutor(1) as pool:
        gate.execute(text("SELECT pg_advisory_lock(4711)"))
        reaping = pool.submit(reap_all, reaper)
        wait_until_blocked(gate, 4711)
        assert worker.finish([complete(claim)]) == {claim.trial_id}
        gate.execute(text("SELECT pg_advisory_unlock(4711)"))
        assert reaping.result(timeout=240) == 0
    assert worker.counts() == PointCounts(waiting=2, complete=1)
    assert len(trials_of(worker)) == 3


@pytest.fixture
def restartable(open_folder: Any, request: pytest.FixtureRequest) -> Iterator[EmbeddedPostgres]:
    with EmbeddedPostgres.start(open_folder / "restartable") as server:
        yield server


def test_restarted_server_gives_its_workers_time_to_come_back(restartable: EmbeddedPostgres) -> None:
    database = open_database(restartable.url)
    definition = parse_definition({"name": "a", "search": {"seed": [0, 1]}}, source="test")
    study = register_study(database, definition, dataset_checksums={}, cohort_of=lambda _: "all").study
    clock = Clock()
    living, dead, reaper = (
        Ledger(database=database, study_id=study.study_id, owner=i, lease_watch=LeaseWatch(clock)) for i in (1, 2, 3)
    )
    living.claim(1)
    dead.claim(1)
    reaper.watch_leases()
    clock.seconds += ABSENCE
    restartable.stop()
    with EmbeddedPostgres.start(restartable.folder):
        assert reaper.reap() == 0  # neither has had its time
        clock.seconds += ABSENCE - 1
        living.renew()
        assert reaper.reap() == 0
        clock.seconds += 1
        assert reaper.reap() == 1  # the other one has had it
        assert living.counts() == PointCounts(waiting=1, running=1)
        database.close()


# A commit whose answer is lost


@dataclass(frozen=True, kw_only=True)
class AnswerLost(Database):
    """Runs every transaction twice, as `transaction` does when the connection breaks after the commit."""

    def transaction(self, work: Callable[[Connection], Any], operation: DatabaseOperation = "other") -> Any:
        super().transaction(work, operation)
        return super().transaction(work, operation)


def test_every_call_may_run_again_after_a_commit_whose_answer_was_lost(
    workers: Any, database: Database, epoch: Epoch
) -> None:
    unlucky = AnswerLost(engine=database.engine, optuna_storage=database.optuna_storage, url=database.url)
    worker, reaper = (replace(ledger, database=unlucky) for ledger in workers(2, 6))
    claims = worker.claim(3)
    assert [claim.point for claim in claims] == [0, 1, 2]
    assert worker.counts() == PointCounts(running=3, waiting=3)  # not six running, three of them in no lane
    assert len(worker.record({claim.trial_id: epoch() for claim in claims})) == 3
    assert worker.finish([complete(claims[0], mark="x")]) == {claims[0].trial_id}
    worker.release("stopped")
    assert worker.counts() == PointCounts(waiting=5, complete=1)
    worker.claim(2)
    reap_all(reaper)
    assert worker.counts() == PointCounts(waiting=5, complete=1)
    trials = trials_of(worker)
    assert len(trials) == 6 + 2 + 2
    assert trials[0].user_attrs["mark"] == "x"
    assert trials[0].intermediate_values == {1: 0.5}


# Any order of events


@dataclass
class ModelPoint:
    """What the ledger must know of a point."""

    point: int
    cohort: str
    trial_id: int = 0
    token: int = 0
    state: str = "WAITING"
    owner: int | None = None
    attempt: int = 1
    crashes: int = 0
    reached: int = 0  # the last epoch that this attempt recorded
    furthest: int = 0  # that any dead attempt had recorded

    def requeue(self, *, is_crash: bool) -> None:
        self.owner, self.token = None, 0
        is_crash = is_crash and self.reached <= self.furthest  # else it got on, and something else killed it
        self.furthest, self.reached = max(self.furthest, self.reached), 0
        self.crashes += is_crash
        if is_crash and self.crashes == MAX_CRASHES:
            self.state = "FAIL"
        else:
            self.state, self.attempt = "WAITING", self.attempt + 1


@dataclass
class ModelWorker:
    """A worker: its ledger, what that believes it holds, and the trials in its lanes with their epochs so far.

    A worker may go on with lanes that its ledger knows to be lost.
    """

    ledger: Ledger
    holds: set[Hold] = field(default_factory=set)
    lanes: dict[int, Claim] = field(default_factory=dict)
    epochs: dict[int, int] = field(default_factory=dict)


COHORTS = ("batch 20", "batch 500")
WORKERS = st.integers(0, 2)


class LedgerMachine(RuleBasedStateMachine):
    """Three workers, six points of two cohorts, and anything that may happen, against a model of the rules.

    The database may lose commits: it goes back to what it was at an earlier moment, while the workers do not.

    Source: the rules of ledger.py, and that a point on its last attempt is trained alone.
    """

    backup: Backup | None = None

    def __init__(self, database: Database, new_study: NewStudy) -> None:
        super().__init__()
        self.database = database
        self.new_study = new_study

    @initialize()
    def create(self) -> None:
        study = self.new_study({"learning_rate": [0.1, 0.2, 0.3], "batch_size": [20, 500]})
        self.workers = [
            ModelWorker(Ledger(database=self.database, study_id=study.study_id, owner=i)) for i in (1, 2, 3)
        ]
        self.points = [ModelPoint(point=i, cohort=COHORTS[i % 2]) for i in range(6)]
        self.reader = Ledger(database=self.database, study_id=study.study_id)

    def held_by(self, worker: ModelWorker) -> list[ModelPoint]:
        return [p for p in self.points if p.state == "RUNNING" and p.owner == worker.ledger.owner]

    def claimable(self, worker: ModelWorker, limit: int, cohort: str | None) -> list[int]:
        held = self.held_by(worker)
        last = MAX_CRASHES - 1
        if any(point.crashes >= last for point in held):
            return []
        waiting = [
            point
            for point in self.points
            if point.state == "WAITING" and cohort in (None, point.cohort) and (point.crashes < last or not held)
        ]
        if not waiting:
            return []
        first = min(waiting, key=lambda p: (p.crashes >= last, p.point))
        if first.crashes >= last:
            return [first.point][:limit]
        return [p.point for p in waiting if p.crashes < last and p.cohort == first.cohort][:limit]

    @rule(number=WORKERS, limit=st.integers(0, 3), cohort=st.sampled_from([None, *COHORTS]))
    def claim(self, number: int, limit: int, cohort: str | None) -> None:
        worker = self.workers[number]
        expected = self.claimable(worker, limit, cohort)
        claims = worker.ledger.claim(limit, cohort=cohort)
        assert [claim.point for claim in claims] == expected
        for claim in claims:
            point = self.points[claim.point]
            assert claim.attempt == point.attempt
            point.state, point.owner, point.trial_id = "RUNNING", worker.ledger.owner, claim.trial_id
            point.token = claim.token
            worker.holds = {hold for hold in worker.holds if hold[0] != claim.trial_id} | {claim.hold}
            worker.lanes[claim.trial_id] = claim
            worker.epochs[claim.trial_id] = 0

    @rule(number=WORKERS, drops_lost=st.booleans())
    def record(self, number: int, drops_lost: bool) -> None:
        worker = self.workers[number]
        reports, believed = {}, {claim.hold for claim in worker.lanes.values()}
        for trial_id in worker.lanes:
            worker.epochs[trial_id] += 1
            validation = Validation(iteration=1, loss=0.5, nll=1.0)
            reports[trial_id] = EpochReport(
                epoch=worker.epochs[trial_id],
                validations=(validation,),
                train_nll=1.0,
                learning_rate=0.1,
                seconds=1.0,
            )
        held = worker.ledger.record(reports, held=believed)
        stored = self.stored(worker)
        whole = {hold for hold in stored.keys() & believed if stored[hold].reached >= worker.epochs[hold[0]] - 1}
        assert held == {trial_id for trial_id, _ in whole}
        for hold in whole:
            stored[hold].reached = max(stored[hold].reached, worker.epochs[hold[0]])
        worker.holds -= believed - whole
        self.give_back(worker)
        if drops_lost:
            worker.lanes = {i: claim for i, claim in worker.lanes.items() if i in held}

    def stored(self, worker: ModelWorker) -> dict[Hold, ModelPoint]:
        return {(point.trial_id, point.token): point for point in self.held_by(worker)}

    def give_back(self, worker: ModelWorker) -> None:
        """What only the database has."""
        for hold, point in self.stored(worker).items():
            if hold not in worker.holds:
                point.requeue(is_crash=False)

    @rule(number=WORKERS)
    def renew(self, number: int) -> None:
        worker = self.workers[number]
        assert worker.ledger.renew() == len(self.stored(worker).keys() & worker.holds)
        self.give_back(worker)

    @rule(number=WORKERS, how_many=st.integers(1, 3), outcome=st.sampled_from(Outcome))
    def finish(self, number: int, how_many: int, outcome: Outcome) -> None:
        worker = self.workers[number]
        claims = list(worker.lanes.values())[:how_many]
        stored = self.stored(worker)
        accepted = worker.ledger.finish(
            [
                Result(
                    trial_id=claim.trial_id,
                    outcome=outcome,
                    loss=0.5,
                    claim=claim.token,
                    num_epochs=worker.epochs[claim.trial_id],
                )
                for claim in claims
            ]
        )
        counted = [
            claim
            for claim in claims
            if claim.hold in stored and stored[claim.hold].reached >= worker.epochs[claim.trial_id]
        ]
        assert accepted == {claim.trial_id for claim in counted}
        for claim in claims:
            del worker.lanes[claim.trial_id]
            worker.holds.discard(claim.hold)
            if claim in counted:
                stored[claim.hold].state, stored[claim.hold].owner = outcome.name, None
            elif claim.hold in stored:
                stored[claim.hold].requeue(is_crash=False)

    @rule(number=WORKERS, is_crash=st.booleans())
    def release(self, number: int, is_crash: bool) -> None:
        worker = self.workers[number]
        held = self.held_by(worker)
        assert worker.ledger.release("on purpose", is_crash=is_crash) == len(held)
        worker.lanes.clear()
        worker.holds.clear()
        for point in held:
            point.requeue(is_crash=is_crash)

    @rule(number=WORKERS)
    def reap(self, number: int) -> None:
        owner = self.workers[number].ledger.owner
        stale = [point for point in self.points if point.state == "RUNNING" and point.owner != owner]
        assert reap_all(self.workers[number].ledger) == len(stale)
        for point in stale:
            point.requeue(is_crash=True)

    @rule()
    def back_up(self) -> None:
        self.backup, self.points_then = Backup(self.database), deepcopy(self.points)

    @precondition(lambda self: self.backup is not None)
    @rule()
    def lose_commits(self) -> None:
        assert self.backup is not None
        self.backup.put_back()
        self.points = deepcopy(self.points_then)

    @invariant()
    def database_agrees(self) -> None:
        with self.database.engine.connect() as connection:
            values = {"study": self.reader.study_id}
            rows = connection.execute(_POINTS, values).all()
            trials = connection.execute(_TRIALS, values).all()
            curves = connection.execute(_CURVES, values).all()
        expected = [
            (p.point, p.state, p.owner, p.attempt, p.crashes, p.state in ("COMPLETE", "PRUNED")) for p in self.points
        ]
        assert [tuple(row) for row in rows] == expected
        assert [number for number, _, _ in trials] == list(range(len(trials)))
        assert all(row.epochs == list(range(1, len(row.epochs) + 1)) for row in curves), "a curve has a gap"
        counted = Counter(int(point) for _, state, point in trials if state in ("COMPLETE", "PRUNED"))
        assert all(number == 1 for number in counted.values())
        assert set(counted) == {p.point for p in self.points if p.state in ("COMPLETE", "PRUNED")}
        assert Counter(state for _, state, _ in trials if state != "FAIL") == Counter(
            p.state for p in self.points if p.state != "FAIL"
        )

    def teardown(self) -> None:
        """At the end all others leave, and one finishes the remainder: every point has its one result."""
        if not hasattr(self, "points"):
            return
        for worker in self.workers:
            worker.ledger.release("on purpose")
        last = replace(self.reader, owner=9)
        while claims := last.claim(4):
            last.finish([complete(claim) for claim in claims])
        given_up = sum(point.state == "FAIL" for point in self.points)
        counts = self.reader.counts()
        assert (counts.unfinished, counts.failed, counts.counted) == (0, given_up, 6 - given_up)


_POINTS = text("""
    SELECT p.point, CAST(t.state AS text), p.owner, p.attempt, p.crashes, p.is_counted
    FROM hpsearch_points p JOIN trials t USING (trial_id) WHERE p.study_id = :study ORDER BY p.point
""")
_CURVES = text("""
    SELECT array_agg(e.epoch ORDER BY e.epoch) AS epochs FROM hpsearch_epochs e JOIN trials t USING (trial_id)
    WHERE t.study_id = :study GROUP BY e.trial_id
""")
_TRIALS = text("""
    SELECT t.number, CAST(t.state AS text), a.value_json
    FROM trials t JOIN trial_user_attributes a ON a.trial_id = t.trial_id AND a.key = 'point'
    WHERE t.study_id = :study ORDER BY t.number
""")


def test_any_order_of_events_counts_every_point_once(database: Database, new_study: NewStudy) -> None:
    run_state_machine_as_test(
        lambda: LedgerMachine(database, new_study),
        settings=settings(
            max_examples=20,
            stateful_step_count=30,
            deadline=None,
            suppress_health_check=[HealthCheck.too_slow],
        ),
    )


def test_workers_at_once_with_hangs_and_reaping_count_every_point_once(
    tables_url: str, new_study: NewStudy, epoch: Epoch, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Threads with connections of their own; leases run out and are reaped in the midst of everything."""
    monkeypatch.setattr(requeue_module, "MAX_CRASHES", 10**6)
    study = new_study(100)
    barrier = threading.Barrier(4)

    def work(owner: int) -> tuple[list[int], int]:
        own = open_database(tables_url)
        ledger = Ledger(database=own, study_id=study.study_id, owner=owner)
        choose = random.Random(owner)
        lanes: dict[int, Claim] = {}
        counted: list[int] = []
        lanes |= {claim.trial_id: claim for claim in ledger.claim(2)}
        barrier.wait(240)
        num_reaped = reap_all(ledger) if owner == 1 else 0  # all hold claims, so it reaps some, however fast they are
        barrier.wait(240)
        while lanes or ledger.counts().unfinished:
            lanes |= {claim.trial_id: claim for claim in ledger.claim(choose.randint(1, 5))}
            if choose.random() < 0.1:  # takes all others for dead
                num_reaped += reap_all(ledger)
            if choose.random() < 0.7:  # else it goes on without having heard that it lost some
                held = ledger.record(dict.fromkeys(lanes, epoch()))
                lanes = {i: claim for i, claim in lanes.items() if i in held}
            done = choose.sample(sorted(lanes), choose.randint(0, len(lanes)))
            accepted = ledger.finish([complete(lanes[i]) for i in done])
            counted += [lanes[i].point for i in done if i in accepted]
            lanes = {i: claim for i, claim in lanes.items() if i not in done}
            if choose.random() < 0.1:
                ledger.release("on purpose")
                lanes.clear()
        own.close()
        return counted, num_reaped

    with ThreadPoolExecutor(4) as pool:
        outcomes = list(pool.map(work, range(1, 5)))
    assert sorted(point for counted, _ in outcomes for point in counted) == list(range(100))
    assert sum(num_reaped for _, num_reaped in outcomes) >= 6
    reader = open_database(tables_url)
    trials = reader.storage.get_all_trials(study.study_id)
    reader.close()
    assert {trial.state for trial in trials} == {TrialState.COMPLETE, TrialState.FAIL}
    counted = [trial.user_attrs["point"] for trial in trials if trial.state is TrialState.COMPLETE]
    assert sorted(counted) == list(range(100))
    assert [trial.number for trial in trials] == list(range(len(trials)))
