"""Parameters that an objective asks for, on a real PostgreSQL: drawn, stored and taken over, without any process."""

from __future__ import annotations

import logging
import uuid
from collections.abc import Callable, Mapping
from typing import Any

import pytest
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

from hpsearch.store.claims.claim import Claim, Outcome, Result
from hpsearch.store.claims.ledger import Ledger
from hpsearch.store.connection.database import Database
from hpsearch.store.registration import register_study
from hpsearch.store.studies import StoredStudy
from hpsearch.study.study_file import parse_definition
from hpsearch.worker.programs.asked_parameters import AskedParameters, LostTrialError

STRATEGIES = ["random", "qmc", "tpe", "gp", "cmaes"]
X, Y = FloatDistribution(-5, 5), FloatDistribution(1e-3, 1, log=True)
KIND = CategoricalDistribution(["a", "b", None])
DEPTH = IntDistribution(1, 9, step=2)


def study_of(database: Database, strategy: str, num_points: int = 20) -> StoredStudy:
    document = {
        "name": f"study-{uuid.uuid4().hex[:8]}",
        "seed": 3,
        "objective": {"function": "mine:objective"},
        "search": {"strategy": strategy, "num_points": num_points},
    }
    definition = parse_definition(document, source="test")
    return register_study(database, definition, dataset_checksums={}, cohort_of=lambda _: "").study


class Searcher:
    """One worker, whose objective is a function of this process."""

    def __init__(self, database: Database, study: StoredStudy, owner: int = 1) -> None:
        self.ledger = Ledger(database=database, study_id=study.study_id, owner=owner)
        self.parameters = AskedParameters(study)

    def claim(self) -> Claim:
        (claim,) = self.ledger.claim(1)
        return claim

    def draw(self, claim: Claim, *asked: tuple[str, BaseDistribution]) -> dict[str, Any]:
        """Draw these parameters, and return them."""
        trial = self.parameters.begin(self.ledger, claim)
        for name, distribution in asked:
            self.parameters.suggest(self.ledger, trial, name, distribution)
        return {name: trial.stored.params[name] for name, _ in asked}

    def finish(self, claim: Claim, loss: float) -> None:
        assert self.ledger.finish([Result(trial_id=claim.trial_id, outcome=Outcome.COMPLETE, loss=loss)])

    def search(self, num_trials: int) -> list[dict[str, Any]]:
        """Run so many trials of an objective with a conditional parameter."""
        found = []
        for _ in range(num_trials):
            claim = self.claim()
            trial = self.parameters.begin(self.ledger, claim)
            for name, distribution in (("x", X), ("y", Y), ("kind", KIND)):
                self.parameters.suggest(self.ledger, trial, name, distribution)
            if trial.stored.params["kind"] == "a":
                self.parameters.suggest(self.ledger, trial, "depth", DEPTH)
            values = trial.stored.params
            found.append(values)
            self.finish(claim, values["x"] ** 2 + values["y"])
        return found


def stored_parameters(execute: Callable[..., Any], claim: Claim) -> Mapping[str, float]:
    rows = execute("SELECT param_name, param_value FROM trial_params WHERE trial_id = :id", id=claim.trial_id)
    return {row.param_name: row.param_value for row in rows}


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_the_same_study_draws_the_same_values_in_any_worker(database: Database, strategy: str) -> None:
    one, other = (study_of(database, strategy) for _ in range(2))
    worker = Searcher(database, one)
    first = worker.search(13)
    second = Searcher(database, other).search(6) + Searcher(database, other, owner=2).search(7)
    assert first == second
    assert len({point["x"] for point in first}) == 13
    assert all(-5 <= point["x"] <= 5 and 1e-3 <= point["y"] <= 1 for point in first)
    assert {point.get("depth") for point in first if point["kind"] != "a"} <= {None}
    assert all(point["depth"] in (1, 3, 5, 7, 9) for point in first if point["kind"] == "a")


def test_a_value_is_in_the_database_before_the_objective_has_it(
    database: Database, execute: Callable[..., Any]
) -> None:
    searcher = Searcher(database, study_of(database, "random"))
    claim = searcher.claim()
    trial = searcher.parameters.begin(searcher.ledger, claim)
    assert stored_parameters(execute, claim) == {}
    x = searcher.parameters.suggest(searcher.ledger, trial, "x", X)
    assert stored_parameters(execute, claim) == {"x": x}
    assert searcher.parameters.suggest(searcher.ledger, trial, "x", X) == x
    kind = searcher.parameters.suggest(searcher.ledger, trial, "kind", KIND)
    assert stored_parameters(execute, claim) == {"x": x, "kind": kind}


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_the_next_attempt_takes_over_what_was_asked_for(
    database: Database, execute: Callable[..., Any], strategy: str
) -> None:
    searcher = Searcher(database, study_of(database, strategy))
    searcher.search(12)  # past the random start
    claim = searcher.claim()
    asked = searcher.draw(claim, ("x", X), ("kind", KIND))
    searcher.ledger.release("its worker was stopped")
    other = Searcher(database, searcher.parameters._study, owner=2)
    again = other.claim()
    assert (again.point, again.attempt) == (claim.point, 2)
    everything = other.draw(again, ("y", Y), ("kind", KIND), ("x", X))
    assert {name: everything[name] for name in asked} == asked
    assert stored_parameters(execute, again).keys() == {"x", "kind", "y"}


def test_a_worker_that_lost_its_trial_stores_nothing(database: Database, execute: Callable[..., Any]) -> None:
    searcher = Searcher(database, study_of(database, "random"))
    claim = searcher.claim()
    trial = searcher.parameters.begin(searcher.ledger, claim)
    execute("UPDATE hpsearch_points SET owner = 99 WHERE trial_id = :id", id=claim.trial_id)
    with pytest.raises(LostTrialError):
        searcher.parameters.suggest(searcher.ledger, trial, "x", X)
    assert stored_parameters(execute, claim) == {}


@pytest.mark.parametrize(
    ("first", "then"),
    [(X, IntDistribution(0, 3)), (KIND, CategoricalDistribution(["a", "c"])), (X, KIND)],
)
def test_another_kind_of_distribution_for_a_name_is_refused_as_in_optuna(
    database: Database, first: BaseDistribution, then: BaseDistribution
) -> None:
    study = study_of(database, "random")
    searcher = Searcher(database, study)
    searcher.draw(searcher.claim(), ("p", first))
    for other in (searcher, Searcher(database, study)):  # one that knows, and one that has to look
        with pytest.raises(ValueError, match="parameter 'p'"):
            other.draw(other.claim(), ("p", then))


def test_another_range_of_a_number_is_accepted_as_in_optuna(database: Database) -> None:
    searcher = Searcher(database, study_of(database, "tpe"))
    for number in range(14):
        claim = searcher.claim()
        values = searcher.draw(claim, ("x", FloatDistribution(number, number + 1)))
        assert number <= values["x"] <= number + 1
        searcher.finish(claim, values["x"])


@pytest.mark.parametrize("strategy", ["qmc", "cmaes"])
def test_a_search_that_begins_anew_says_so_once(
    database: Database, strategy: str, caplog: pytest.LogCaptureFixture
) -> None:
    searcher = Searcher(database, study_of(database, strategy))
    caplog.set_level(logging.INFO, logger="hpsearch")

    def trial(*names: str) -> None:
        claim = searcher.claim()
        searcher.draw(claim, *((name, X) for name in names))
        searcher.finish(claim, 1.0)

    for _ in range(3):
        trial("x", "z")
    for _ in range(3):
        trial("x")
    told = [record.getMessage() for record in caplog.records if "anew" in record.getMessage()]
    assert told == [
        f"{strategy} begins anew: the parameters that all ended trials share are now x, z",
        f"{strategy} begins anew: the parameters that all ended trials share are now x",
    ]


def test_tpe_draws_groups_jointly_and_finds_the_minimum(database: Database) -> None:
    found = Searcher(database, study_of(database, "tpe", 60)).search(60)
    late = sorted(abs(point["x"]) for point in found[40:])
    assert late[len(late) // 2] < 1.5  # at random it is 2.5
