"""Rounds of a coarse-to-fine study: opened once by any number of workers, whoever dies; ended for a reason."""

from __future__ import annotations

import json
import math
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import optuna
import pytest
from optuna.trial import TrialState
from sqlalchemy import Connection

from hpsearch.epoch_report import EpochReport
from hpsearch.errors import StorageError
from hpsearch.results.summary import read_summary
from hpsearch.search.narrowing.closed_round import KnownPoint
from hpsearch.search.proportions import proportions_differ
from hpsearch.store.claims.claim import Outcome, Result
from hpsearch.store.claims.ledger import Ledger
from hpsearch.store.claims.requeue import MAX_CRASHES
from hpsearch.store.connection.database import Database, open_database
from hpsearch.store.progress import is_finished, read_progress
from hpsearch.store.registration import register_study
from hpsearch.store.studies import StoredStudy
from hpsearch.study.settings import TrialSettings
from hpsearch.study.space import Point, without_zero_switches
from hpsearch.study.study_file import parse_definition
from hpsearch.worker.rounds import Advance, TrialComparison, advance, describe_spent_budget

NUM_IMAGES = 10_000
SEARCH: dict[str, Any] = {
    "strategy": "coarse-to-fine",
    "learning_rate": {"log10": [-1, -3]},
    "lambda_2": {"log10": [-2, -3], "zero": True},
}

Execute = Callable[..., Any]
Epoch = Callable[..., EpochReport]


def bowl(point: Point) -> float:
    """An error with its minimum of 2 % at a rate of 0.03 and no regularisation; a decade beside it costs 2 %."""
    return 0.02 + 0.02 * abs(math.log10(float(point["learning_rate"]) / 0.03)) + 0.5 * float(point["lambda_2"])


def bits_of(error: float) -> bytes:
    """The first images are the hard ones: of two trials, the worse is wrong on all that the better is wrong on."""
    return np.packbits(np.arange(NUM_IMAGES) >= round(error * NUM_IMAGES)).tobytes()


@dataclass(kw_only=True)
class Search:
    """One study, trained by a formula in place of a worker."""

    database: Database
    study: StoredStudy
    execute: Execute
    epoch: Epoch
    error_of: Callable[[Point], float] = bowl
    trained: list[dict[str, Any]] = field(default_factory=list)

    @cached_property
    def ledger(self) -> Ledger:
        return Ledger(database=self.database, study_id=self.study.study_id, owner=1)

    def train(self, *, with_bits: bool = True, seconds: float = 1.0) -> int:
        """Train all points that wait, an epoch each."""
        claims = []
        while taken := self.ledger.claim(100):
            claims += taken
        for claim in claims:
            point = without_zero_switches(claim.parameters)
            self.trained.append(point)
            error = round(self.error_of(point) * NUM_IMAGES) / NUM_IMAGES
            report = self.epoch(1, error)
            self.ledger.record({claim.trial_id: report})
            if with_bits:
                self.execute(
                    "INSERT INTO hpsearch_correctness VALUES (:trial, :images, :bits) ON CONFLICT DO NOTHING",
                    trial=claim.trial_id,
                    images=NUM_IMAGES,
                    bits=bits_of(error),
                )
        attributes = {"best_validation_nll": 0.1}
        results = [
            Result(
                trial_id=claim.trial_id,
                outcome=Outcome.COMPLETE,
                loss=round(self.error_of(without_zero_switches(claim.parameters)) * NUM_IMAGES) / NUM_IMAGES,
                attributes=attributes,
            )
            for claim in claims
        ]
        self.ledger.finish(results)
        return len(claims)

    def advance(self, **options: Any) -> Advance:
        return advance(self.database, self.study.study_id, **options)

    def run(self) -> None:
        """To the end."""
        while self.advance() is not Advance.ENDED:
            self.train()

    def rounds(self) -> list[tuple[int, int]]:
        """(number, points) of each row."""
        rows = self.execute("SELECT round, num_points FROM hpsearch_rounds ORDER BY round")
        return [tuple(row) for row in rows]

    def reasons(self) -> list[str]:
        return [row.reason for row in self.execute("SELECT reason FROM hpsearch_rounds ORDER BY round")]

    def trials(self) -> list[optuna.trial.FrozenTrial]:
        return self.database.load_study(self.study.name).get_trials(deepcopy=False)


NewSearch = Callable[..., Search]


@pytest.fixture
def new_search(database: Database, execute: Execute, epoch: Epoch) -> NewSearch:
    def make(search: Mapping[str, Any] = SEARCH, **options: Any) -> Search:
        return Search(
            database=database, study=registered(database, search).study, execute=execute, epoch=epoch, **options
        )

    return make


def registered(database: Database, search: Mapping[str, Any], **sections: Any) -> Any:
    definition = parse_definition({"name": "a", "search": dict(search), **sections}, source="test")
    return register_study(database, definition, dataset_checksums={}, cohort_of=cohort_of)


def cohort_of(settings: TrialSettings) -> str:
    return f"batch {settings.training.batch_size}"


# A round at a time


def test_study_begins_with_the_grid_as_round_0(new_search: NewSearch) -> None:
    search = new_search()
    assert search.rounds() == [(0, 9)]
    assert search.reasons() == ["the grid's 9 points"]
    trials = search.trials()
    assert [trial.user_attrs for trial in trials] == [{"point": i, "attempt": 1, "round": 0} for i in range(9)]
    assert trials[0].params == {"learning_rate": 0.1, "lambda_2_is_zero": True}
    assert trials[1].params == {"learning_rate": 0.1, "lambda_2_is_zero": False, "lambda_2": 0.01}


def test_no_round_is_opened_before_the_last_one_is_trained(new_search: NewSearch) -> None:
    search = new_search()
    assert search.advance() is Advance.UNFINISHED
    claims = search.ledger.claim(100)
    search.ledger.finish([Result(trial_id=c.trial_id, outcome=Outcome.COMPLETE, loss=0.5) for c in claims[:-1]])
    assert search.advance() is Advance.UNFINISHED
    assert search.rounds() == [(0, 9)]
    assert not is_finished(search.database, search.study)


def test_trained_round_is_followed_by_one_of_new_points(new_search: NewSearch, execute: Execute) -> None:
    search = new_search()
    search.train()
    assert search.advance(cohort_of=cohort_of) is Advance.OPENED
    number, num_points = search.rounds()[-1]
    assert number == 1
    assert num_points > 0
    new = search.trials()[9:]
    assert [trial.state for trial in new] == [TrialState.WAITING] * num_points
    assert [t.user_attrs for t in new] == [{"point": 9 + i, "attempt": 1, "round": 1} for i in range(num_points)]
    assert [trial.number for trial in new] == list(range(9, 9 + num_points))
    assert execute("SELECT DISTINCT cohort FROM hpsearch_points WHERE point >= 9") == [("batch 20",)]
    assert "learning_rate" in search.reasons()[-1]


def test_search_ends_at_the_optimum_and_no_point_is_trained_twice(new_search: NewSearch) -> None:
    search = new_search()
    search.run()
    keys = [tuple(sorted(point.items())) for point in search.trained]
    assert len(set(keys)) == len(keys) > 12
    best = search.database.load_study("a").best_trial
    assert float(best.params["learning_rate"]) == pytest.approx(0.03, rel=0.1)
    assert search.rounds()[-1][1] == 0
    assert sum(num for _, num in search.rounds()) == len(keys)
    assert [number for number, _ in search.rounds()] == list(range(len(search.rounds())))
    assert is_finished(search.database, search.study)


def test_optuna_sees_one_distribution_per_parameter_in_all_rounds(new_search: NewSearch) -> None:
    search = new_search()
    search.run()
    study = search.database.load_study("a")
    for name in ("learning_rate", "lambda_2_is_zero"):
        assert len({repr(trial.distributions[name]) for trial in study.trials}) == 1
    importances = optuna.importance.get_param_importances(study, params=["learning_rate", "lambda_2_is_zero"])
    assert importances["learning_rate"] > importances["lambda_2_is_zero"]


def test_ended_search_stays_ended(new_search: NewSearch) -> None:
    search = new_search()
    search.run()
    before = search.rounds()
    assert search.advance() is Advance.ENDED
    assert search.rounds() == before


def test_no_result_ends_the_search(new_search: NewSearch) -> None:
    search = new_search({"strategy": "coarse-to-fine", "learning_rate": {"log10": [-1, -2]}})
    claims = search.ledger.claim(100)
    search.ledger.finish([Result(trial_id=c.trial_id, outcome=Outcome.PRUNED, loss=0.01) for c in claims])
    assert search.advance() is Advance.ENDED
    assert search.reasons()[-1] == "no point has a result"


def test_given_up_point_does_not_hold_the_next_round_up(new_search: NewSearch) -> None:
    search = new_search({"strategy": "coarse-to-fine", "learning_rate": {"log10": [-1, -3]}}, error_of=rate_only)
    poisoned, *others = search.ledger.claim(100)
    search.ledger.finish(
        [Result(trial_id=c.trial_id, outcome=Outcome.COMPLETE, loss=rate_only(c.parameters)) for c in others]
    )
    for _ in range(MAX_CRASHES):
        search.ledger.claim(1)
        search.ledger.release("died", is_crash=True)
    assert (poisoned.point, search.ledger.counts().failed) == (0, 1)
    assert search.advance() is Advance.OPENED
    search.run()
    assert is_finished(search.database, search.study)


def rate_only(point: Point) -> float:
    return 0.02 + 0.02 * abs(math.log10(float(point["learning_rate"]) / 0.03))


def test_attempt_that_takes_a_dead_ones_place_is_of_the_same_round(new_search: NewSearch) -> None:
    search = new_search()
    search.train()
    search.advance()
    search.ledger.claim(1)
    search.ledger.release("its worker was stopped")
    assert search.trials()[-1].user_attrs == {"point": 9, "attempt": 2, "round": 1}


def test_points_that_the_data_cannot_take_are_left_out(new_search: NewSearch) -> None:
    """The best batch size lies on the edge of the grid; what lies beyond it is more than there are images."""
    search = new_search(
        {"strategy": "coarse-to-fine", "batch_size": {"log10": [1, 2]}},
        error_of=lambda point: 0.5 - 0.1 * math.log10(float(point["batch_size"])),
    )
    search.train()
    search.advance(is_trainable=lambda settings: settings.training.batch_size <= 200)
    sizes = [trial.params["batch_size"] for trial in search.trials()]
    assert max(sizes) <= 200
    assert len(sizes) > 2


def test_points_that_are_known_are_not_looked_at_again(new_search: NewSearch) -> None:
    """Every idle worker decides on its own at each boundary: it must not take seconds with thousands of points."""
    search = new_search()
    search.train()
    looked_at: list[float] = []

    def is_trainable(settings: TrialSettings) -> bool:
        looked_at.append(settings.training.learning_rate)
        return True

    assert search.advance(is_trainable=is_trainable) is Advance.OPENED
    assert looked_at
    assert not set(looked_at) & {point["learning_rate"] for point in search.trained}


def test_grid_has_no_rounds_and_ends_with_its_points(new_search: NewSearch) -> None:
    search = new_search({"learning_rate": [0.1, 0.2]}, error_of=rate_only)
    assert search.advance() is Advance.UNFINISHED
    search.train()
    assert search.advance() is Advance.ENDED
    assert search.rounds() == []
    assert is_finished(search.database, search.study)


def test_deleted_study_needs_nobody(new_search: NewSearch) -> None:
    search = new_search()
    optuna.delete_study(study_name="a", storage=search.database.storage)
    assert search.advance() is Advance.ENDED
    assert is_finished(search.database, search.study)


# Many at once, and deaths


def test_eight_workers_at_a_boundary_open_one_round(new_search: NewSearch, tables_url: str) -> None:
    search = new_search()
    search.train()
    barrier = threading.Barrier(8)

    def look(_: int) -> Advance:
        own = open_database(tables_url)
        barrier.wait(240)
        found = advance(own, search.study.study_id)
        own.close()
        return found

    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(look, range(8)))
    assert found.count(Advance.OPENED) == 1
    assert found.count(Advance.UNFINISHED) == 7
    assert len(search.rounds()) == 2
    points = [json.dumps(trial.params, sort_keys=True) for trial in search.trials()]
    assert len(set(points)) == len(points) == sum(num for _, num in search.rounds())


def test_round_is_there_whole_or_not_at_all(new_search: NewSearch, monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker that dies between the row and the points leaves neither; the next one opens the round."""
    search = new_search()
    search.train()

    def die(*_: Any, **__: Any) -> None:
        raise RuntimeError("died here")

    with monkeypatch.context() as patch:
        patch.setattr("hpsearch.store.rows.points.write_trial_attributes", die)
        with pytest.raises(RuntimeError, match="died here"):
            search.advance()
    assert search.rounds() == [(0, 9)]
    assert len(search.trials()) == 9
    assert not is_finished(search.database, search.study)
    assert search.advance() is Advance.OPENED


def test_round_whose_commit_was_not_acknowledged_is_not_opened_again(new_search: NewSearch) -> None:
    class AnswerLost(Database):
        def transaction(self, work: Callable[[Connection], Any], operation: Any = "other") -> Any:
            super().transaction(work)
            return super().transaction(work)

    search = new_search()
    search.train()
    database = search.database
    unlucky = AnswerLost(engine=database.engine, optuna_storage=database.optuna_storage, url=database.url)
    assert advance(unlucky, search.study.study_id) is Advance.UNFINISHED
    assert len(search.rounds()) == 2
    assert len(search.trials()) == sum(num for _, num in search.rounds())


def test_decision_on_what_has_changed_meanwhile_is_dropped(
    new_search: NewSearch, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another process opens the round between this one's look and its write."""
    search = new_search()
    search.train()
    decide = TrialComparison.__call__
    rivals: list[Advance] = []

    def slowly(self: TrialComparison, one: KnownPoint, other: KnownPoint) -> bool:
        if not rivals:
            rivals.append(Advance.UNFINISHED)  # not again in the rival's own look
            rivals[0] = search.advance()
        return decide(self, one, other)

    monkeypatch.setattr(TrialComparison, "__call__", slowly)
    assert search.advance() is Advance.UNFINISHED
    assert rivals == [Advance.OPENED]
    assert len(search.rounds()) == 2


# Budgets


def test_budget_of_points_cuts_the_last_round_and_ends_the_search(new_search: NewSearch) -> None:
    search = new_search({**SEARCH, "budget_points": 11})
    search.run()
    assert len(search.trained) == 11
    assert search.rounds() == [(0, 9), (1, 2), (2, 0)]
    assert search.reasons()[-1] == "search.budget_points = 11 is spent: there are 11 points"


def test_budget_of_points_below_the_grid_cuts_the_grid(new_search: NewSearch) -> None:
    search = new_search({**SEARCH, "budget_points": 4})
    search.run()
    assert search.rounds() == [(0, 4), (1, 0)]


def test_limit_of_points_holds_for_all_rounds_together(new_search: NewSearch) -> None:
    search = new_search({**SEARCH, "max_points": 10})
    search.run()
    assert len(search.trained) == 10
    assert search.reasons()[-1] == "search.max_points = 10 is reached"


def test_budget_of_epochs_ends_the_search(new_search: NewSearch) -> None:
    search = new_search({**SEARCH, "budget_epochs": 9})
    search.run()
    assert search.rounds() == [(0, 9), (1, 0)]
    assert search.reasons()[-1] == "search.budget_epochs = 9 is spent: 9 epochs were trained"


def test_budget_of_hours_counts_the_lanes_own_seconds(new_search: NewSearch) -> None:
    """Nine epochs of half a second each are 0.00125 hours."""
    search = new_search({**SEARCH, "budget_hours": 0.00125})
    search.run()
    assert search.rounds() == [(0, 9), (1, 0)]
    assert search.reasons()[-1].startswith("search.budget_hours = 0.00125 is spent")


def test_epochs_that_were_taken_over_from_an_earlier_attempt_count_once(
    new_search: NewSearch, execute: Execute
) -> None:
    search = new_search({**SEARCH, "budget_epochs": 10})
    claims = search.ledger.claim(1)
    search.ledger.record({claims[0].trial_id: search.epoch(1, 0.5)})
    search.ledger.release("its worker was stopped")
    again = search.trials()[-1]._trial_id
    execute(
        "INSERT INTO trial_user_attributes (trial_id, key, value_json) VALUES (:trial, 'resumed_at_epoch', '1')",
        trial=again,
    )
    search.train()
    assert search.advance() is Advance.OPENED, "nine epochs were trained, and one of them was copied"


def test_budget_that_is_not_set_is_never_spent() -> None:
    definition = parse_definition({"name": "a", "search": SEARCH}, source="test")
    assert describe_spent_budget(definition.search, num_points=9_999, epochs=10**9, seconds=1e12) is None


# What differs


def test_neighbours_that_do_not_differ_settle_the_search(new_search: NewSearch) -> None:
    """All trials are right on the same images but for a few: nothing is left to narrow."""
    search = new_search(error_of=lambda point: 0.05 + 0.0001 * (float(point["learning_rate"]) < 0.1))
    search.run()
    assert "settled" in search.reasons()[-1]
    assert len(search.rounds()) <= 4


def test_paired_images_tell_more_than_two_error_rates(new_search: NewSearch) -> None:
    """5.0 % and 5.2 % of the same 10,000 images differ; of 10,000 each they would not."""
    search = new_search({"strategy": "coarse-to-fine", "learning_rate": {"log10": [-1, -2]}}, error_of=five_percent)
    search.train()
    one, other = (KnownPoint(trial.params, trial.value, None, trial._trial_id) for trial in search.trials())
    differ = TrialComparison(search.database, search.study.study_id)
    assert differ(one, other)
    assert differ.note == ""
    assert not proportions_differ(0.05, 0.052, NUM_IMAGES)


def five_percent(point: Point) -> float:
    return 0.05 if float(point["learning_rate"]) == 0.1 else 0.052


def test_trials_without_bits_are_compared_as_samples_and_it_is_said(new_search: NewSearch, execute: Execute) -> None:
    search = new_search(
        {"strategy": "coarse-to-fine", "learning_rate": {"log10": [-1, -2]}, "finest_per_decade": 2},
        error_of=five_percent,
    )
    search.train()
    execute("DELETE FROM hpsearch_correctness WHERE trial_id = (SELECT min(trial_id) FROM trials)")
    search.advance()
    one, other = search.trials()[:2]
    differ = TrialComparison(search.database, search.study.study_id)
    points = [KnownPoint(trial.params, trial.value, None, trial._trial_id) for trial in (one, other)]
    assert not differ(points[0], points[1]), "as samples of 10,000 images each they do not differ"
    execute("DELETE FROM hpsearch_correctness")
    assert TrialComparison(search.database, search.study.study_id)(points[0], points[1]), "every difference counts"
    assert "without a record of their images" in differ.note


def test_search_without_bits_says_so_in_its_rounds(new_search: NewSearch) -> None:
    search = new_search()
    search.train(with_bits=False)
    while (found := search.advance()) is Advance.OPENED and "without a record" not in search.reasons()[-1]:
        search.train(with_bits=False)
    assert "without a record of their images" in search.reasons()[-1] or found is Advance.ENDED
    assert any("without a record of their images" in reason for reason in search.reasons())


def test_value_that_is_no_error_rate_differs_from_every_other(new_search: NewSearch, execute: Execute) -> None:
    """Somebody else's program may tell a trial whatever it likes; no worker may break on it."""
    search = new_search()
    search.train(with_bits=False)
    execute("UPDATE trial_values SET value = -3 WHERE trial_id = (SELECT min(trial_id) FROM trials)")
    trial_ids = [trial._trial_id for trial in search.trials()[:2]]
    execute("INSERT INTO hpsearch_correctness VALUES (:trial, 10000, :bits)", trial=trial_ids[1], bits=bits_of(0.1))
    one, other = (KnownPoint({}, value, None, trial_id) for value, trial_id in zip((-3, 0.1), trial_ids, strict=True))
    assert TrialComparison(search.database, search.study.study_id)(one, other)
    assert search.advance() is Advance.OPENED


@pytest.mark.parametrize("num_images", [0, -8, 20_000])
def test_damaged_bits_count_as_none(new_search: NewSearch, execute: Execute, num_images: int) -> None:
    search = new_search()
    search.train()
    execute("UPDATE hpsearch_correctness SET num_images = :number", number=num_images)
    assert search.advance() is Advance.OPENED
    assert "without a record of their images" in search.reasons()[-1]


# What somebody else has written


@pytest.mark.parametrize(
    "state",
    [
        "{",
        "[]",
        "{}",
        '{"round": 1, "levels": [], "settled": [], "given": [], "missing": []}',
        '{"round": 1, "levels": {"learning_rate": "x"}, "settled": [], "given": [], "missing": []}',
        '{"round": 1, "levels": {}, "settled": [], "given": [7], "missing": []}',
    ],
)
def test_damaged_state_of_a_round_is_an_error_that_names_it(
    new_search: NewSearch, execute: Execute, state: str
) -> None:
    search = new_search()
    search.train()
    execute("UPDATE hpsearch_rounds SET state = :state", state=state)
    with pytest.raises(StorageError, match=rf"study number {search.study.study_id} .*hpsearch_rounds"):
        search.advance()
    assert search.rounds() == [(0, 9)]


def test_definition_that_a_newer_version_has_changed_is_an_error_of_the_surroundings(
    new_search: NewSearch, execute: Execute
) -> None:
    search = new_search()
    search.train()
    execute(
        "UPDATE study_user_attributes SET value_json = replace(value_json, 'budget_points', 'budget_of_the_future') "
        "WHERE key = 'hpsearch:definition'"
    )
    with pytest.raises(StorageError, match=r"changed into one that hpsearch .* cannot read"):
        search.advance()


def test_trial_whose_round_is_no_number_is_requeued_all_the_same(new_search: NewSearch, execute: Execute) -> None:
    search = new_search()
    search.ledger.claim(1)
    execute("""UPDATE trial_user_attributes SET value_json = '"first"' WHERE key = 'round'""")
    assert search.ledger.release("its worker was stopped") == 1
    assert search.trials()[-1].user_attrs["round"] == "first"


# As people see it


def test_progress_and_summary_tell_the_rounds(new_search: NewSearch) -> None:
    search = new_search()
    search.train()
    progress = read_progress(search.database, search.study.study_id)
    assert not progress.is_finished, "all points are done, and the next round is due"
    summary = read_summary(search.database, "a").as_json()
    assert (summary["finished"], summary["search_ended"]) == (False, None)
    assert [(r["round"], r["points"]) for r in summary["rounds"]] == [(0, 9)]
    search.run()
    summary = read_summary(search.database, "a").as_json()
    assert summary["finished"]
    assert summary["search_ended"] == search.reasons()[-1]
    assert [r["round"] for r in summary["rounds"]] == list(range(len(search.rounds()) - 1))
    assert read_progress(search.database, search.study.study_id).is_finished
