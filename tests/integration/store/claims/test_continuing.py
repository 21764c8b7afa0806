"""Trials that go on with more epochs: every point has one result at any time, and finished trials do not change."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import optuna
import pytest
from optuna.trial import TrialState

from hpsearch.epoch_report import EpochReport
from hpsearch.errors import DefinitionMismatchError, StorageError
from hpsearch.results.report.figures import optuna_study
from hpsearch.results.status import read_status
from hpsearch.results.summary import StudySummary, read_summary
from hpsearch.store.claims.claim import Claim, Outcome, Result
from hpsearch.store.claims.ledger import Ledger
from hpsearch.store.claims.requeue import MAX_CRASHES
from hpsearch.store.connection.database import Database
from hpsearch.store.progress import is_finished, read_progress
from hpsearch.store.registration import Registration, find_study, register_study
from hpsearch.store.rows.counts import PointCounts
from hpsearch.store.rows.curves import CurveReader
from hpsearch.store.rows.history import History
from hpsearch.study.definition import StudyDefinition
from hpsearch.study.settings import TrialSettings
from hpsearch.study.study_file import parse_definition
from hpsearch.worker.rounds import Advance, advance

Epoch = Callable[..., EpochReport]


def definition(max_epochs: int, **sections: Any) -> StudyDefinition:
    document = {"name": "growing", "search": {"learning_rate": [0.1, 0.2, 0.3]}, **sections}
    return parse_definition({**document, "training": {"max_epochs": max_epochs}}, source="test")


def register(database: Database, its: StudyDefinition) -> Registration:
    def cohort_of(settings: TrialSettings) -> str:
        return "all"

    return register_study(database, its, dataset_checksums={"images": "ab" * 32}, cohort_of=cohort_of)


class Growing:
    """A study whose trials are trained by hand."""

    def __init__(self, database: Database, epoch: Epoch, **sections: Any) -> None:
        self.database, self.epoch, self.sections = database, epoch, sections
        self.ledger = Ledger(database=database, study_id=self.give(2).study.study_id, owner=1)

    def give(self, max_epochs: int) -> Registration:
        return register(self.database, definition(max_epochs, **self.sections))

    def train(
        self, claim: Claim, to: int, value: float, reason: str = "max-epochs", ledger: Ledger | None = None
    ) -> None:
        ledger = ledger or self.ledger
        first = self.first_epoch(claim)
        for number in range(first, to + 1):
            ledger.record({claim.trial_id: self.epoch(number, loss=value)})
        outcome = Outcome.PRUNED if reason == "pruned" else Outcome.COMPLETE
        attributes = {"stop_reason": reason, "best_validation_nll": 0.5, "best_epoch": to}
        ledger.finish(
            [Result(trial_id=claim.trial_id, outcome=outcome, loss=value, attributes=attributes, num_epochs=to)]
        )

    def first_epoch(self, claim: Claim) -> int:
        return 1 + max(self.database.storage.get_trial(claim.trial_id).intermediate_values, default=0)

    @property
    def summary(self) -> StudySummary:
        return read_summary(self.database, "growing", with_curves=True)

    def frozen(self) -> dict[int, optuna.trial.FrozenTrial]:
        return {trial.number: trial for trial in self.database.storage.get_all_trials(self.ledger.study_id)}


@pytest.fixture
def study(database: Database, epoch: Epoch) -> Growing:
    """Two trials that the second epoch ended, and one that its own rule ended."""
    its = Growing(database, epoch)
    ends = zip(its.ledger.claim(3), (0.3, 0.2, 0.1), ("max-epochs", "max-epochs", "patience-exhausted"), strict=True)
    for claim, value, reason in ends:
        its.train(claim, 2, value, reason)
    return its


def test_trials_that_the_number_of_epochs_ended_go_on_and_no_others(study: Growing) -> None:
    before = study.frozen()
    registration = study.give(4)
    assert (registration.num_continued, registration.num_added) == (2, 0)
    assert study.ledger.counts() == PointCounts(waiting=2, complete=1)
    after = study.frozen()
    assert {number: after[number] for number in before} == before
    for number, continued in ((3, 0), (4, 1)):
        assert after[number].state is TrialState.WAITING
        assert after[number].params == after[continued].params
        attributes = after[number].user_attrs
        assert (attributes["continues_trial"], attributes["point"], attributes["attempt"]) == (continued, continued, 2)
    assert study.give(4).num_continued == 0
    assert find_study(study.database, definition(4)) is not None


def test_an_earlier_result_counts_until_the_transaction_that_records_the_new_one(study: Growing) -> None:
    study.give(4)
    (first, second) = study.ledger.claim(5)
    assert [first.is_continued, first.max_epochs, second.is_continued] == [True, 4, True]

    def seen() -> tuple[Any, ...]:
        summary, progress = study.summary, read_progress(study.database, study.ledger.study_id)
        history = History(study.ledger.study_id).read(study.database)
        complete = {trial.number: trial.value for trial in history if trial.state is TrialState.COMPLETE}
        assert {trial.number: trial.value for trial in summary.complete} == complete
        assert progress.best_value == min(complete.values())
        curves = CurveReader(study.database, study.ledger.study_id).read()
        assert {t.number: t.value for t in curves if t.state is TrialState.COMPLETE} == complete
        return complete, [trial.number for trial in summary.trials if trial.is_superseded]

    assert seen() == ({0: 0.3, 1: 0.2, 2: 0.1}, [])
    study.train(first, 4, 0.25)
    assert seen() == ({3: 0.25, 1: 0.2, 2: 0.1}, [0])
    study.train(second, 4, 0.05)
    assert seen() == ({3: 0.25, 4: 0.05, 2: 0.1}, [1, 0])
    assert study.summary.is_finished
    assert study.summary.points == PointCounts(complete=3)
    # Importances and the sampler of plain Optuna would count a point twice.
    assert {trial.number for trial in optuna_study(study.summary).trials} == {2, 3, 4}
    assert study.frozen()[0].value == 0.3


def test_a_study_can_be_given_more_epochs_twice(study: Growing) -> None:
    for epochs, value in ((4, 0.2), (8, 0.1)):
        assert study.give(epochs).num_continued == 2
        for claim in study.ledger.claim(5):
            study.train(claim, epochs, value)
    assert {trial.number for trial in study.summary.complete} == {2, 5, 6}
    assert study.summary.study.budgets == (2, 4, 8)
    assert study.summary.as_json()["budgets"] == [2, 4, 8]
    # Files and confirmations of the time before belong to the same study.
    assert study.summary.study.value_sha256 == definition(2).value_sha256 != study.summary.study.definition.value_sha256


def test_a_worker_that_dies_leaves_the_point_to_the_next_attempt(study: Growing) -> None:
    study.give(4)
    study.ledger.claim(1)
    study.ledger.release("stopped")
    (again, *_) = study.ledger.claim(5)
    attributes = study.frozen()[again.number].user_attrs
    assert (again.attempt, again.is_continued) == (3, True)
    assert (attributes["continues_trial"], attributes["point"]) == (0, 0)
    assert {trial.number for trial in study.summary.complete} == {0, 1, 2}
    study.train(again, 4, 0.01)
    assert study.summary.best is not None
    assert study.summary.best.number == again.number


def test_a_point_that_keeps_failing_has_its_earlier_result_back(study: Growing) -> None:
    study.give(4)
    other = replace(study.ledger, owner=2)
    (_, claim) = other.claim(2)
    study.train(claim, 4, 0.15, ledger=other)
    other.release("stopped")
    for _ in range(MAX_CRASHES):
        (claim,) = study.ledger.claim(1)
        assert (claim.point, claim.is_continued) == (0, True)
        study.ledger.release("its worker failed: boom", is_crash=True)
    assert study.ledger.counts() == PointCounts(complete=3)
    assert {trial.number: trial.value for trial in study.summary.complete} == {0: 0.3, 4: 0.15, 2: 0.1}
    assert study.summary.given_up == ()
    assert study.give(4).num_continued == 0
    assert is_finished(study.database, study.summary.study)


def test_a_trial_that_a_worker_ended_at_the_old_number_goes_on_at_the_next_run(study: Growing) -> None:
    """A worker that has read the study before may end a trial after the study was given more epochs."""
    study.give(4)
    (claim, *_) = study.ledger.claim(1)
    study.train(claim, 3, 0.3)  # as if the worker's own limit were 3
    (other,) = study.ledger.claim(1)
    study.train(other, 4, 0.3)
    assert find_study(study.database, definition(4)) is None
    assert not is_finished(study.database, study.summary.study)
    assert advance(study.database, study.ledger.study_id) is Advance.OPENED
    assert study.ledger.counts() == PointCounts(waiting=1, complete=2)
    (again,) = study.ledger.claim(1)
    study.train(again, 4, 0.3)
    assert is_finished(study.database, study.summary.study)
    assert study.give(4).num_continued == 0


def test_processes_that_start_together_continue_each_trial_once(study: Growing) -> None:
    barrier = threading.Barrier(4)

    def give(_: int) -> int:
        barrier.wait(timeout=60)
        return study.give(4).num_continued

    with ThreadPoolExecutor(4) as pool:
        assert sorted(pool.map(give, range(4))) == [0, 0, 0, 2]
    assert study.ledger.counts() == PointCounts(waiting=2, complete=1)


@pytest.mark.parametrize(
    ("sections", "reason"),
    [
        ({"pruning": {"pruner": "hyperband"}}, "hyperband has divided"),
        ({"search": {"max_epochs": [2, 3]}}, "max_epochs is searched"),
    ],
)
def test_where_epochs_are_divided_among_trials_none_goes_on(
    sections: dict[str, Any], reason: str, database: Database, epoch: Epoch
) -> None:
    study = Growing(database, epoch, **sections)
    with pytest.raises(DefinitionMismatchError, match=reason):
        study.give(4)


def test_fewer_epochs_are_refused(study: Growing) -> None:
    study.give(4)
    with pytest.raises(DefinitionMismatchError, match="the number of epochs can only be raised"):
        study.give(2)


def test_a_search_in_rounds_goes_on_from_the_new_values(database: Database, epoch: Epoch) -> None:
    study = Growing(database, epoch, search={"strategy": "coarse-to-fine", "learning_rate": {"log10": [-1, -2]}})
    for claim in study.ledger.claim(5):
        study.train(claim, 2, 0.2)
    with database.engine.begin() as connection:
        connection.exec_driver_sql(
            f"INSERT INTO hpsearch_rounds VALUES ({study.ledger.study_id}, 1, 0, '{{}}', 'the end', now())"
        )
    assert study.summary.search_ended == "the end"
    study.give(4)
    assert study.summary.search_ended is None


def test_small_budget_is_told_with_the_command_that_continues(study: Growing, monkeypatch: pytest.MonkeyPatch) -> None:
    assert study.summary.describe_small_budget() == ""  # two epochs say nothing
    monkeypatch.setattr("hpsearch.results.summary._FEWEST_EPOCHS", 2)
    summary = study.summary
    assert [trial.number for trial in summary.still_improving] == [1, 0]
    told = "2 of the best 3 trials were still improving when max_epochs = 2 ended them"
    assert summary.describe_small_budget() == f"{told}: run it with --set training.max_epochs=4, and they go on"
    assert read_status(study.database, "growing").as_json()["still_improving"] == [1, 0]
    study.give(4)
    for claim in study.ledger.claim(5):
        study.train(claim, 4, 0.4, "patience-exhausted")
    assert study.summary.describe_small_budget() == ""


def test_damaged_budgets_are_named(study: Growing, execute: Callable[..., Any]) -> None:
    study.give(4)
    execute("UPDATE study_user_attributes SET value_json = '7' WHERE key = 'hpsearch:budgets'")
    with pytest.raises(StorageError, match=r"key hpsearch:budgets\): expected a list of whole numbers"):
        read_summary(study.database, "growing")
    with pytest.raises(StorageError, match="key hpsearch:budgets"):
        study.ledger.claim(1)


def test_deleting_a_study_deletes_what_was_continued(study: Growing, execute: Callable[..., Any]) -> None:
    study.give(4)
    optuna.delete_study(study_name="growing", storage=study.database.storage)
    assert execute("SELECT count(*) FROM hpsearch_continued") == [(0,)]


def test_a_claim_of_a_study_with_one_number_of_epochs_names_none(database: Database, epoch: Epoch) -> None:
    study = Growing(database, epoch)
    (claim, *_) = study.ledger.claim(1)
    assert (claim.is_continued, claim.max_epochs) == (False, None)


def test_listed_points_keep_the_values_that_they_leave_to_the_study(database: Database, epoch: Epoch) -> None:
    points = [{"learning_rate": 0.1}, {"batch_size": 50}]
    study = Growing(database, epoch, search={"strategy": "listed", "points": points})
    for claim in study.ledger.claim(2):
        study.train(claim, 2, 0.2)
    study.give(4)
    expected = [{"learning_rate": 0.1, "batch_size": 20}, {"learning_rate": 0.01, "batch_size": 50}]
    trials = sorted(study.summary.complete, key=lambda trial: trial.number)
    assert [trial.point_parameters for trial in trials] == expected
    assert [trial.settings(study.summary.study.definition).training.max_epochs for trial in trials] == [2, 2]


def test_rungs_stay_for_the_comparison_with_others(study: Growing) -> None:
    trial_id = study.frozen()[0]._trial_id
    with study.database.engine.begin() as connection:
        columns = "(trial_id, key, value_json)"
        connection.exec_driver_sql(
            f"INSERT INTO trial_system_attributes {columns} VALUES ({trial_id}, 'completed_rung_0', '0.3')"
        )
    study.give(4)
    assert study.frozen()[3].system_attrs["completed_rung_0"] == 0.3


def test_the_number_of_a_lost_point_brings_no_result_with_it(study: Growing, execute: Callable[..., Any]) -> None:
    """Another program deletes the trial that goes on; its point is lost, and a new one gets its number."""
    study.give(4)
    its = "WHERE trial_id = (SELECT trial_id FROM trials WHERE number = 3)"
    for table in ("trial_user_attributes", "trial_params", "trials"):
        execute(f"DELETE FROM {table} {its}")
    assert {trial.number for trial in study.summary.complete} == {1, 2}
    study.give(4)  # queues the lost point again
    assert study.ledger.counts() == PointCounts(waiting=2, complete=1)
    assert {trial.number for trial in study.summary.complete} == {1, 2}
    (again,) = [claim for claim in study.ledger.claim(5) if claim.point == 0]
    assert (again.is_continued, again.max_epochs) == (False, 4)
