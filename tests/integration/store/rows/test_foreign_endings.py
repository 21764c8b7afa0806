"""What other programs do to a study of ours: they tell, add and delete trials, and copy and rename studies."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterator
from typing import Any

import optuna
import pytest
from optuna.trial import TrialState
from rich.console import Console
from sqlalchemy import text

from hpsearch.console.tables import status_view
from hpsearch.epoch_report import EpochReport
from hpsearch.errors import InputError, NothingCompleteError, StudyNotFoundError
from hpsearch.results.confirmation.companion_study import CONFIRMS_ATTRIBUTE, confirmations
from hpsearch.results.data_frame import trials_frame
from hpsearch.results.status import StudyStatus, read_status
from hpsearch.results.summary import read_summary
from hpsearch.store.claims.claim import Claim, Outcome, Result
from hpsearch.store.claims.ledger import Ledger
from hpsearch.store.connection.database import Database
from hpsearch.store.progress import is_finished, read_progress
from hpsearch.store.registration import find_study, register_study
from hpsearch.store.rows.counts import PointCounts
from hpsearch.store.rows.curves import CurveReader
from hpsearch.store.rows.points import read_points
from hpsearch.store.rows.trial_state import StoredState
from hpsearch.store.studies import StoredStudy, copied_study_names, load_study, study_names
from hpsearch.worker.rounds import Advance, advance
from tests.integration.conftest import cohort_by_batch_size

HONEST = 0.25
TOLD: list[tuple[TrialState, float | None, dict[str, Any]]] = [
    (TrialState.COMPLETE, -5.0, {"foreign_state": "COMPLETE", "foreign_values": [-5.0]}),
    (TrialState.COMPLETE, 0.1, {"foreign_state": "COMPLETE", "foreign_values": [0.1]}),
    (TrialState.COMPLETE, -math.inf, {"foreign_state": "COMPLETE", "foreign_values": ["INF_NEG"]}),
    (TrialState.PRUNED, 0.0, {"foreign_state": "PRUNED", "foreign_values": [0.0]}),
    (TrialState.PRUNED, None, {"foreign_state": "PRUNED"}),
    (TrialState.FAIL, None, {"foreign_state": "FAIL"}),
]


@pytest.fixture
def study(new_study: Callable[..., StoredStudy]) -> StoredStudy:
    return new_study(2)


@pytest.fixture
def ledger(database: Database, study: StoredStudy) -> Ledger:
    return Ledger(database=database, study_id=study.study_id, owner=1)


@pytest.fixture
def plain(tables_url: str, database: Database) -> Iterator[optuna.storages.RDBStorage]:
    """Another program's access to the database: Optuna's own storage."""
    storage = optuna.storages.RDBStorage(tables_url)
    yield storage
    storage.remove_session()
    storage.engine.dispose()


def complete(claim: Claim, value: float = HONEST) -> Result:
    attributes = {"best_validation_nll": 0.7, "best_epoch": 1}
    return Result(trial_id=claim.trial_id, outcome=Outcome.COMPLETE, loss=value, attributes=attributes)


def tell(storage: optuna.storages.BaseStorage, trial_id: int, state: TrialState, value: float | None) -> None:
    storage.set_trial_state_values(trial_id, state, None if value is None else [value])


def nothing_is_counted(ledger: Ledger, study: StoredStudy) -> None:
    """No reader takes what was told for a result."""
    database = ledger.database
    summary = read_summary(database, study.name)
    assert ledger.counts() == summary.points == read_progress(database, study.study_id).counts
    assert (summary.points.counted, summary.points.failed) == (0, 0)
    assert summary.best is None
    assert ledger.best_loss() is None
    assert read_progress(database, study.study_id).best_value is None
    assert not any(trial.state.is_finished() for trial in CurveReader(database, study.study_id).read())
    points = database.transaction(lambda connection: read_points(connection, study.study_id))
    unfinished = (StoredState.WAITING, StoredState.RUNNING)
    assert [(point.state in unfinished, point.loss) for point in points] == [(True, None)] * 2
    assert not summary.is_finished
    assert not is_finished(database, study)
    assert advance(database, study.study_id) is Advance.UNFINISHED
    with pytest.raises(NothingCompleteError):
        summary.require_best()


@pytest.mark.parametrize("held_by", ["nobody", "a worker", "another worker", "a dead worker"])
@pytest.mark.parametrize(("state", "value", "kept"), TOLD)
def test_a_point_whose_trial_another_program_has_ended_is_given_back(
    ledger: Ledger,
    study: StoredStudy,
    plain: optuna.storages.RDBStorage,
    epoch: Callable[..., EpochReport],
    held_by: str,
    state: TrialState,
    value: float | None,
    kept: dict[str, Any],
) -> None:
    holder = ledger if held_by == "a worker" else Ledger(database=ledger.database, study_id=study.study_id, owner=7)
    claims = [] if held_by == "nobody" else holder.claim(1)
    if claims:
        holder.record({claims[0].trial_id: epoch(1)})
    told_id = claims[0].trial_id if claims else plain.get_all_trials(study.study_id)[0]._trial_id
    tell(plain, told_id, state, value)
    nothing_is_counted(ledger, study)  # before any worker has looked
    if held_by != "a dead worker" and claims:
        assert holder.finish([complete(claims[0])]) == set(), "the worker's result goes nowhere"
    assert ledger.give_back_ended_outside() == 1
    assert ledger.give_back_ended_outside() == 0
    nothing_is_counted(ledger, study)
    if claims:
        assert holder.record({told_id: epoch(2)}) == set(), "its worker is told to drop it"
    trial = plain.get_trial(told_id)
    assert (trial.state, trial.values) == (TrialState.FAIL, None)
    assert trial.user_attrs.items() >= {"fail_reason": "ended outside hpsearch", **kept}.items()
    # The study goes on and ends as if nothing had been told.
    again = ledger.claim(2)
    assert [(claim.point, claim.attempt) for claim in again] == [(0, 2), (1, 1)]
    assert ledger.finish([complete(claim) for claim in again]) == {claim.trial_id for claim in again}
    summary = read_summary(ledger.database, study.name)
    assert (summary.points, summary.is_finished) == (PointCounts(complete=2), True)
    assert summary.best is not None
    assert summary.best.value == ledger.best_loss() == plain.get_best_trial(study.study_id).value == HONEST
    assert summary.as_json()["ended_outside"] == 1


def test_crashes_are_not_counted_and_a_point_that_was_given_up_stays_so(
    database: Database, new_study: Callable[..., StoredStudy], plain: optuna.storages.RDBStorage
) -> None:
    ledger = Ledger(database=database, study_id=new_study(1).study_id, owner=1)
    for _ in range(4):  # more often than a point may crash
        (claim,) = ledger.claim(1)
        tell(plain, claim.trial_id, TrialState.FAIL, None)
        assert ledger.give_back_ended_outside() == 1
    for _ in range(3):
        assert len(ledger.claim(1)) == 1
        ledger.release("it broke", is_crash=True)
    assert ledger.counts() == PointCounts(failed=1)
    assert ledger.give_back_ended_outside() == 0


def test_a_trial_that_we_have_ended_can_be_told_nothing(ledger: Ledger, plain: optuna.storages.RDBStorage) -> None:
    (claim,) = ledger.claim(1)
    assert ledger.finish([complete(claim)]) == {claim.trial_id}
    with pytest.raises(optuna.exceptions.UpdateFinishedTrialError):
        tell(plain, claim.trial_id, TrialState.COMPLETE, -5.0)
    assert ledger.best_loss() == HONEST


@pytest.mark.parametrize("we", ["finish", "release"])
def test_at_the_same_moment_they_come_first(
    ledger: Ledger, study: StoredStudy, plain: optuna.storages.RDBStorage, we: str
) -> None:
    """Ours waits for their lock on the trial's row, and then finds that the trial has ended."""
    (claim,) = ledger.claim(1)
    works: dict[str, Callable[[], object]] = {
        "finish": lambda: ledger.finish([complete(claim)]),
        "release": lambda: ledger.release("it broke"),
    }
    done: list[object] = []
    worker = threading.Thread(target=lambda: done.append(works[we]()))
    with ledger.database.engine.begin() as theirs:
        theirs.execute(text("UPDATE trials SET state = 'COMPLETE' WHERE trial_id = :id"), {"id": claim.trial_id})
        theirs.execute(
            text("INSERT INTO trial_values (trial_id, objective, value, value_type) VALUES (:id, 0, -5, 'FINITE')"),
            {"id": claim.trial_id},
        )
        worker.start()
        waiting = text("SELECT count(*) FROM pg_locks WHERE NOT granted")
        while not theirs.execute(waiting).scalar_one():
            assert worker.is_alive(), "it did not wait"
    worker.join()
    assert done == [set() if we == "finish" else 1]
    nothing_is_counted(ledger, study)
    assert ledger.give_back_ended_outside() == (1 if we == "finish" else 0)
    told = plain.get_trial(claim.trial_id)
    assert (told.state, told.value) == (TrialState.FAIL, None)
    assert told.user_attrs["fail_reason"] == "ended outside hpsearch"
    assert told.user_attrs["foreign_values"] == [-5.0]


def test_trials_that_no_point_has_are_ignored_and_counted(
    ledger: Ledger, study: StoredStudy, plain: optuna.storages.RDBStorage
) -> None:
    theirs = optuna.load_study(study_name=study.name, storage=plain)
    ours = theirs.get_trials()[0]
    theirs.add_trial(optuna.trial.create_trial(value=-1.0))
    theirs.add_trial(optuna.trial.create_trial(value=-2.0, user_attrs={"point": 0, "attempt": 1}))
    theirs.add_trial(optuna.trial.create_trial(state=TrialState.PRUNED, value=0.0, intermediate_values={1: 0.0}))
    theirs.add_trial(optuna.trial.create_trial(state=TrialState.FAIL))
    theirs.enqueue_trial({"training.learning_rate": 0.5})
    asked = theirs.ask()  # Optuna's own worker takes the first WAITING trial, which is ours
    assert asked.number == ours.number
    theirs.tell(asked, -3.0)
    database = ledger.database
    assert ledger.give_back_ended_outside() == 1
    claims = ledger.claim(2)
    assert sorted(claim.point for claim in claims) == [0, 1]
    assert {trial._trial_id for trial in CurveReader(database, study.study_id).read()} == {c.trial_id for c in claims}
    assert {trial.number for trial in read_progress(database, study.study_id).running} == {c.number for c in claims}
    ledger.finish([complete(claim) for claim in claims])
    status = read_status(database, study.name)
    summary = status.summary
    assert summary.points == PointCounts(complete=2)
    assert summary.is_finished
    assert summary.best is not None
    assert summary.best.value == ledger.best_loss() == read_progress(database, study.study_id).best_value == HONEST
    assert {trial.value for trial in summary.trials} <= {HONEST, None}
    assert set(trials_frame(summary)["value"].dropna()) == {HONEST}
    assert status.as_json()["foreign_trials"] == 5
    line = "by other programs: 5 trials added (ignored), 1 trial ended (value ignored, point trained again)"
    assert line in rendered(status)


def rendered(status: StudyStatus) -> str:
    console = Console(width=200)
    with console.capture() as capture:
        console.print(status_view(status))
    return capture.get()


SEARCHES: list[dict[str, Any]] = [
    {"learning_rate": [0.1, 0.2, 0.3]},
    {"strategy": "random", "num_points": 3, "learning_rate": {"low": 0.01, "high": 1.0}},
    {"strategy": "listed", "points": [{"learning_rate": 0.1}, {"learning_rate": 0.2}, {"learning_rate": 0.3}]},
]


def delete_trials(execute: Callable[..., Any], trial_ids: list[int]) -> None:
    """Optuna itself has no such function: what a person does with SQL."""
    parts = ["params", "values", "intermediate_values", "user_attributes", "system_attributes", "heartbeats"]
    for table in (*(f"trial_{part}" for part in parts), "trials"):
        execute(f"DELETE FROM {table} WHERE trial_id = ANY(:ids)", ids=trial_ids)


@pytest.mark.parametrize("found_by", ["run", "a worker"])
@pytest.mark.parametrize("search", SEARCHES, ids=["grid", "random", "listed"])
def test_a_point_whose_trial_was_deleted_is_queued_again(
    database: Database,
    new_study: Callable[..., StoredStudy],
    execute: Callable[..., Any],
    search: dict[str, Any],
    found_by: str,
) -> None:
    study = new_study(search)
    ledger = Ledger(database=database, study_id=study.study_id, owner=1)
    claims = ledger.claim(3)
    before = {claim.point: claim.parameters for claim in claims}
    ledger.finish([complete(claim) for claim in claims[1:2]])
    delete_trials(execute, [claims[0].trial_id, claims[1].trial_id])
    assert ledger.finish([complete(claim) for claim in (claims[0], claims[2])]) == {claims[2].trial_id}
    summary = read_summary(database, study.name)
    assert (summary.num_lost_points, summary.is_finished, is_finished(database, study)) == (2, False, False)
    assert "2 trials deleted" in rendered(read_status(database, study.name))
    if found_by == "run":
        options: dict[str, Any] = {"dataset_checksums": study.dataset_checksums, "cohort_of": cohort_by_batch_size}
        assert register_study(database, study.definition, **options).num_restored == 2
        assert register_study(database, study.definition, **options).num_restored == 0
    else:
        assert advance(database, study.study_id, cohort_of=cohort_by_batch_size) is Advance.OPENED
    assert advance(database, study.study_id) is Advance.UNFINISHED
    again = ledger.claim(3)
    assert {claim.point: claim.parameters for claim in again} == {point: before[point] for point in (0, 1)}
    numbers = [trial.number for trial in read_summary(database, study.name).trials]
    assert len(set(numbers)) == len(numbers)
    ledger.finish([complete(claim) for claim in again])
    assert advance(database, study.study_id) is Advance.ENDED
    summary = read_summary(database, study.name)
    assert (summary.points, summary.num_lost_points) == (PointCounts(complete=3), 0)


def test_points_of_rounds_that_were_deleted_are_told(
    database: Database, new_study: Callable[..., StoredStudy], execute: Callable[..., Any]
) -> None:
    study = new_study({"strategy": "coarse-to-fine", "learning_rate": {"log10": [-1, -3]}, "budget_points": 3})
    (trial_id,) = execute("SELECT max(trial_id) AS id FROM trials")[0]
    delete_trials(execute, [trial_id])
    assert read_summary(database, study.name).as_json()["lost_points"] == 1


# Copies and renamings


def rename_as_the_dashboard_does(storage: optuna.storages.BaseStorage, old: str, new: str) -> None:
    optuna.copy_study(from_study_name=old, from_storage=storage, to_storage=storage, to_study_name=new)
    optuna.delete_study(study_name=old, storage=storage)


def again(database: Database, study: StoredStudy, **changes: Any) -> Any:
    definition = study.definition.model_copy(update=changes)
    return register_study(
        database, definition, dataset_checksums=study.dataset_checksums, cohort_of=cohort_by_batch_size
    )


def test_a_copy_is_never_a_finished_study(
    database: Database, study: StoredStudy, plain: optuna.storages.RDBStorage
) -> None:
    optuna.copy_study(from_study_name=study.name, from_storage=plain, to_storage=plain, to_study_name="copy")
    for use in (
        lambda: load_study(database, "copy"),
        lambda: read_status(database, "copy"),
        lambda: find_study(database, study.definition.model_copy(update={"name": "copy"})),
        lambda: again(database, study, name="copy"),
    ):
        with pytest.raises(InputError, match="'copy' has trials but no points: another program has copied") as caught:
            use()
        assert caught.value.hint is not None
    assert study_names(database) == [study.name]
    assert copied_study_names(database) == ["copy"]
    # The original is as it was.
    assert load_study(database, study.name) == study
    assert not again(database, study).is_new


def test_a_study_that_was_renamed_is_not_trained_anew_unsaid(
    database: Database, study: StoredStudy, plain: optuna.storages.RDBStorage
) -> None:
    rename_as_the_dashboard_does(plain, study.name, "other")
    for use in (lambda: again(database, study), lambda: find_study(database, study.definition)):
        with pytest.raises(InputError, match="no longer exists, only 'other', a copy without points") as caught:
            use()
        assert "--set name=" in str(caught.value.hint)
    with pytest.raises(StudyNotFoundError):
        load_study(database, study.name)
    assert again(database, study, name="anew").is_new
    optuna.delete_study(study_name="other", storage=plain)
    assert again(database, study).is_new


def test_a_row_that_was_renamed_is_the_study_under_its_new_name(
    database: Database, study: StoredStudy, execute: Callable[..., Any]
) -> None:
    execute("UPDATE studies SET study_name = 'other' WHERE study_id = :id", id=study.study_id)
    renamed = load_study(database, "other")
    assert (renamed.study_id, renamed.name, renamed.is_renamed) == (study.study_id, "other", True)
    assert read_summary(database, "other").name == "other"
    with pytest.raises(InputError, match="another program has renamed it to 'other'") as caught:
        again(database, study)
    assert caught.value.hint == "continue it: --set name=other"
    assert not again(database, study, name="other").is_new
    assert not load_study(database, "other").is_renamed
    assert again(database, study).is_new, "the old name is free"
    execute("UPDATE studies SET study_name = '../x y' WHERE study_id = :id", id=study.study_id)
    with pytest.raises(InputError, match="renamed from 'other' by another program"):
        load_study(database, "../x y")


def test_a_copy_of_a_confirmation_confirms_nothing(
    database: Database, study: StoredStudy, plain: optuna.storages.RDBStorage
) -> None:
    mark = {"study": "x", "value_sha256": "", "dataset_checksums": {}, "num_parameters": [1]}
    optuna.load_study(study_name=study.name, storage=plain).set_user_attr(CONFIRMS_ATTRIBUTE, mark)
    optuna.copy_study(from_study_name=study.name, from_storage=plain, to_storage=plain, to_study_name="copy")
    assert list(confirmations(database)) == [study.name]
