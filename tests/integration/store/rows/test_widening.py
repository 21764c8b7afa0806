"""A study that goes on: a wider grid, more draws, a greater budget; what is known stays and is not run again."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import optuna
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution
from optuna.trial import TrialState

from hpsearch.epoch_report import EpochReport
from hpsearch.errors import DefinitionMismatchError
from hpsearch.results.summary import read_summary
from hpsearch.store.claims.claim import Claim, Outcome, Result
from hpsearch.store.claims.ledger import Ledger
from hpsearch.store.connection.database import Database, open_database
from hpsearch.store.progress import is_finished
from hpsearch.store.registration import Registration, find_study, register_study
from hpsearch.store.studies import load_study
from hpsearch.study.definition import StudyDefinition
from hpsearch.study.settings import TrialSettings
from hpsearch.study.study_file import parse_definition
from hpsearch.worker.rounds import Advance, advance

GRID: dict[str, Any] = {
    "learning_rate": {"log10": [-1, -2]},
    "lambda_2": {"log10": [-2, -3], "zero": True},
    "activation": ["tanh", "relu"],
}
# Another order of the lists, and values in front of those that are there: a category is stored as its place.
WIDER: dict[str, Any] = {
    "learning_rate": {"log10": [-1, -3]},
    "lambda_2": {"log10": [-1, -3], "zero": True},
    "activation": ["sigmoid", "relu", "tanh"],
}

Execute = Callable[..., Any]
Epoch = Callable[..., EpochReport]


def definition(search: dict[str, Any], **document: Any) -> StudyDefinition:
    return parse_definition({"name": "a", "search": search, **document}, source="test")


def cohort_of(settings: TrialSettings) -> str:
    return settings.model.activation


def register(database: Database, search: dict[str, Any], **document: Any) -> Registration:
    wanted = definition(search, **document)
    return register_study(database, wanted, dataset_checksums={}, cohort_of=cohort_of)


def ledger_of(database: Database, owner: int = 1) -> Ledger:
    return Ledger(database=database, study_id=load_study(database, "a").study_id, owner=owner)


def error_of(claim: Claim) -> float:
    return float(claim.parameters.get("learning_rate", 0.1)) / 10 + 0.001 * claim.point


def train(database: Database) -> int:
    """Finish all points that wait; returns how many."""
    ledger, number = ledger_of(database), 0
    while claims := ledger.claim(100):
        results = [Result(trial_id=c.trial_id, outcome=Outcome.COMPLETE, loss=error_of(c)) for c in claims]
        number += len(ledger.finish(results))
    return number


def trials(database: Database) -> list[optuna.trial.FrozenTrial]:
    return database.load_study("a").get_trials(deepcopy=False)


# A grid


def test_wider_grid_adds_the_points_that_are_not_known(database: Database, execute: Execute) -> None:
    register(database, GRID)
    train(database)
    before = [(t.number, t.params, t.value, t.datetime_complete) for t in trials(database)]
    widened = register(database, WIDER)
    num_all = 3 * 4 * 3
    assert (widened.is_new, widened.num_added, widened.num_points) == (False, num_all - 12, num_all)
    assert widened.changes == (
        'search.activation: ["tanh", "relu"] in the study, ["sigmoid", "relu", "tanh"] given',
        "search.lambda_2: { log10 = [-2, -3], zero = true } in the study, { log10 = [-1, -3], zero = true } given",
        "search.learning_rate: { log10 = [-1, -2] } in the study, { log10 = [-1, -3] } given",
    )
    assert [(t.number, t.params, t.value, t.datetime_complete) for t in trials(database)[:12]] == before
    assert train(database) == num_all - 12
    everything = [tuple(sorted(trial.params.items())) for trial in trials(database)]
    assert len(set(everything)) == num_all
    wanted = definition(WIDER)
    assert set(everything) == {tuple(sorted(point.items())) for point in wanted.points()}
    assert load_study(database, "a").definition == wanted
    assert execute("SELECT point FROM hpsearch_points ORDER BY 1") == [(i,) for i in range(num_all)]


def test_added_points_come_in_the_order_of_the_grid_with_their_round_and_cohort(
    database: Database, execute: Execute
) -> None:
    register(database, {"activation": ["tanh"], "learning_rate": [0.1]})
    register(database, {"activation": ["tanh", "relu"], "learning_rate": [0.2, 0.1]})
    added = trials(database)[1:]
    assert [trial.params for trial in added] == [
        {"activation": "tanh", "learning_rate": 0.2},
        {"activation": "relu", "learning_rate": 0.2},
        {"activation": "relu", "learning_rate": 0.1},
    ]
    assert [t.user_attrs for t in added] == [{"point": i, "attempt": 1, "round": 1} for i in (1, 2, 3)]
    assert execute("SELECT cohort FROM hpsearch_points ORDER BY point") == [("tanh",), ("tanh",), ("relu",), ("relu",)]
    rounds = read_summary(database, "a").as_json()["rounds"]
    assert [(r["round"], r["points"], r["reason"]) for r in rounds] == [(1, 3, "more points were asked for")]


def test_optuna_reads_one_distribution_per_parameter_after_widening(database: Database, tables_url: str) -> None:
    register(database, GRID)
    train(database)
    register(database, WIDER)
    train(database)
    study = optuna.load_study(study_name="a", storage=tables_url)
    expected = {
        "learning_rate": FloatDistribution(0.001, 0.1, log=True),
        "lambda_2": CategoricalDistribution((0.0, 0.1, 0.01, 0.001)),
        "activation": CategoricalDistribution(("sigmoid", "relu", "tanh")),
    }
    assert [trial.distributions for trial in study.trials] == [expected] * 36
    importances = optuna.importance.get_param_importances(study)
    assert set(importances) == set(expected)
    assert importances["learning_rate"] > importances["activation"]
    frame = study.trials_dataframe()
    assert len(frame) == 36
    assert set(frame["params_activation"]) == {"sigmoid", "relu", "tanh"}


def test_failed_attempts_are_told_of_the_wider_distributions_too(database: Database) -> None:
    register(database, GRID)
    ledger_of(database).claim(1)
    ledger_of(database).release("died")
    params = trials(database)[0].params
    register(database, WIDER)
    failed, again = trials(database)[0], trials(database)[12]
    assert (failed.state, failed.params, again.params) == (TrialState.FAIL, params, params)
    assert failed.distributions == again.distributions


def test_running_trials_go_on_and_their_worker_takes_up_the_new_points(database: Database, epoch: Epoch) -> None:
    """The worker has the old definition in memory: claims carry their values, and leases are as they were."""
    register(database, GRID)
    worker = ledger_of(database)
    claims = [*worker.claim(12), *worker.claim(12)]  # a cohort each
    assert register(database, WIDER).num_added == 24
    assert worker.record({claim.trial_id: epoch() for claim in claims}) == {claim.trial_id for claim in claims}
    worker.finish([Result(trial_id=c.trial_id, outcome=Outcome.COMPLETE, loss=error_of(c)) for c in claims])
    old = definition(GRID)
    new = [claim for _ in range(3) for claim in worker.claim(100)]
    resolved = [old.resolve(claim.parameters) for claim in new]
    assert len(new) == 24
    assert {settings.model.activation for settings in resolved} == {"sigmoid", "relu", "tanh"}
    by_number = {trial.number: trial.params for trial in trials(database)}
    assert all(by_number[claim.number] == claim.parameters for claim in (*claims, *new))


def test_two_who_widen_at_once_add_the_points_once(database: Database, tables_url: str) -> None:
    register(database, GRID)
    barrier = threading.Barrier(4)

    def widen(_: int) -> int:
        own = open_database(tables_url)
        barrier.wait(240)
        num_added = register(own, WIDER).num_added
        own.close()
        return num_added

    with ThreadPoolExecutor(4) as pool:
        assert sorted(pool.map(widen, range(4))) == [0, 0, 0, 24]
    assert len(trials(database)) == 36


def test_workers_train_while_the_study_is_widened(database: Database, tables_url: str) -> None:
    """Claims, ends, dead attempts and a widening at the same time: each point is counted once, with its own values."""
    register(database, GRID)
    barrier = threading.Barrier(4)

    def work(owner: int) -> None:
        own = open_database(tables_url)
        ledger = ledger_of(own, owner)
        barrier.wait(240)
        while ledger.counts().counted < 36:
            claims = ledger.claim(2)
            if claims and claims[0].attempt == 1 and claims[0].point % 5 == 0:
                ledger.release("died")
                continue
            ledger.finish([Result(trial_id=c.trial_id, outcome=Outcome.COMPLETE, loss=error_of(c)) for c in claims])
        own.close()

    def widen() -> None:
        own = open_database(tables_url)
        barrier.wait(240)
        register(own, WIDER)
        own.close()

    with ThreadPoolExecutor(4) as pool:
        for done in [*(pool.submit(work, owner) for owner in (1, 2, 3)), pool.submit(widen)]:
            done.result()
    complete = database.load_study("a").get_trials(states=(TrialState.COMPLETE,))
    assert sorted(trial.user_attrs["point"] for trial in complete) == list(range(36))
    assert {tuple(sorted(t.params.items())) for t in complete} == {
        tuple(sorted(point.items())) for point in definition(WIDER).points()
    }


def test_widening_is_all_or_nothing(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    register(database, GRID)
    before = [(trial.params, trial.distributions) for trial in trials(database)]

    def die(*_: Any, **__: Any) -> None:
        raise RuntimeError("died here")

    with monkeypatch.context() as patch:
        patch.setattr("hpsearch.store.rows.points.write_trial_attributes", die)
        with pytest.raises(RuntimeError, match="died here"):
            register(database, WIDER)
    assert [(trial.params, trial.distributions) for trial in trials(database)] == before
    assert load_study(database, "a").definition == definition(GRID)


def test_what_would_change_the_meaning_of_a_value_is_refused_with_all_differences(database: Database) -> None:
    register(database, GRID)
    changed = definition({**WIDER, "learning_rate": {"log10": [-2, -3]}}, training={"max_epochs": 3})
    for refuse in (
        lambda: find_study(database, changed),
        lambda: register(database, WIDER, training={"max_epochs": 3}),
    ):
        with pytest.raises(
            DefinitionMismatchError, match=r"max_epochs: 200 in .* 3 given \(the number of epochs can only be raised"
        ):
            refuse()
    with pytest.raises(DefinitionMismatchError) as caught:
        find_study(database, changed)
    lines = str(caught.value).splitlines()
    assert len(lines) == 5
    assert any(line.endswith("{ log10 = [-2, -3] } given (it lacks 0.1, which the study has)") for line in lines)
    assert any(line.endswith('["sigmoid", "relu", "tanh"] given') for line in lines)
    assert load_study(database, "a").definition == definition(GRID)
    assert len(trials(database)) == 12


def test_study_to_be_changed_is_not_found_as_it_is(database: Database) -> None:
    register(database, GRID)
    assert find_study(database, definition(WIDER)) is None
    register(database, WIDER)
    assert find_study(database, definition(WIDER)) is not None


def test_change_without_points_changes_the_definition_only(database: Database) -> None:
    register(database, GRID)
    changed = register(database, GRID, keep_parameters="all")
    assert (changed.num_added, changed.num_points) == (0, 12)
    assert changed.changes == ('keep_parameters: "best" in the study, "all" given',)
    assert changed.study.definition.keeps_all_parameters
    assert read_summary(database, "a").as_json()["rounds"] == []


# Lists and draws


def test_longer_list_adds_its_points_whatever_their_order(database: Database) -> None:
    points: list[dict[str, Any]] = [{"learning_rate": 0.1}, {"learning_rate": 0.01, "seed": 1}]
    register(database, {"strategy": "listed", "points": points})
    train(database)
    more = [{"learning_rate": 0.3, "seed": 2}, *points[::-1]]
    assert register(database, {"strategy": "listed", "points": more}).num_added == 1
    assert [trial.params for trial in trials(database)] == [*points, more[0]]
    assert train(database) == 1


def test_more_draws_are_points_without_parameters(database: Database) -> None:
    search = {"strategy": "random", "num_points": 2, "learning_rate": {"low": 0.01, "high": 0.1}}
    register(database, search)
    assert register(database, {**search, "num_points": 5}).num_added == 3
    assert [trial.user_attrs["point"] for trial in trials(database)] == list(range(5))
    assert [trial.params for trial in trials(database)] == [{}] * 5
    assert len(ledger_of(database).claim(100)) == 5


# Coarse to fine

NARROWED: dict[str, Any] = {"strategy": "coarse-to-fine", "learning_rate": {"log10": [-1, -3]}}


def to_the_end(database: Database) -> None:
    study_id = load_study(database, "a").study_id
    while advance(database, study_id) is not Advance.ENDED:
        train(database)


def test_ended_search_goes_on_with_a_greater_budget(database: Database) -> None:
    study = register(database, {**NARROWED, "budget_points": 3}).study
    to_the_end(database)
    assert read_summary(database, "a").search_ended is not None
    changed = register(database, {**NARROWED, "budget_points": 5})
    assert (changed.num_added, changed.num_points) == (0, 3)
    assert not is_finished(database, study)
    assert advance(database, study.study_id) is Advance.OPENED
    to_the_end(database)
    assert len(trials(database)) == 5
    assert is_finished(database, study)


def test_ended_search_whose_budget_did_not_help_ends_again(database: Database) -> None:
    register(database, NARROWED)
    to_the_end(database)
    num_points, reason = len(trials(database)), read_summary(database, "a").search_ended
    register(database, {**NARROWED, "budget_points": 5_000})
    to_the_end(database)
    assert (len(trials(database)), read_summary(database, "a").search_ended) == (num_points, reason)


def test_wider_first_grid_is_a_round_of_its_own(database: Database) -> None:
    study = register(database, NARROWED).study
    to_the_end(database)
    before = read_summary(database, "a").rounds
    known = {tuple(sorted(trial.params.items())) for trial in trials(database)}
    wider = {**NARROWED, "learning_rate": {"log10": [-1, -5]}}
    num_added = register(database, wider).num_added
    added = trials(database)[-num_added:]
    assert num_added >= 1
    assert not known & {tuple(sorted(trial.params.items())) for trial in added}
    rounds = read_summary(database, "a").rounds
    assert [row.number for row in rounds] == [*(row.number for row in before), before[-1].number + 1]
    assert rounds[-1].reason == "more points were asked for"
    assert {trial.user_attrs["round"] for trial in added} == {rounds[-1].number}
    to_the_end(database)
    assert is_finished(database, study)
    distributions = {repr(trial.distributions["learning_rate"]) for trial in trials(database)}
    assert len(distributions) == 1
    everything = [tuple(sorted(trial.params.items())) for trial in trials(database)]
    assert len(set(everything)) == len(everything)


def test_budget_bounds_a_widening_too(database: Database) -> None:
    register(database, {**NARROWED, "budget_points": 4})
    train(database)
    wider = {**NARROWED, "budget_points": 4, "learning_rate": {"log10": [1, -5]}}
    assert register(database, wider).num_added == 1
