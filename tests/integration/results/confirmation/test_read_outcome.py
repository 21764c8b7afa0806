"""Planning a confirmation and reading it again, over made-up trials in a real PostgreSQL."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from optuna.study import StudyDirection

from hpsearch.data.files.lookup import DataLocations
from hpsearch.errors import DataError, InputError, NothingCompleteError, StorageError, StudyNotFoundError
from hpsearch.results.choice import choose_point
from hpsearch.results.confirmation import plan as confirm_plan
from hpsearch.results.confirmation.companion_study import CONFIRMS_ATTRIBUTE, SEED, find_companion
from hpsearch.results.confirmation.outcome import Confirmation
from hpsearch.results.confirmation.plan import ConfirmPlan, fresh_seeds, plan_confirmation, prepare_confirmation
from hpsearch.results.export import export_point
from hpsearch.results.selection import Selection
from hpsearch.results.status import read_status
from hpsearch.results.summary import read_summary
from hpsearch.store.claims.claim import Claim, Outcome, Result
from hpsearch.store.claims.ledger import Ledger
from hpsearch.store.connection import database as database_module
from hpsearch.store.connection.database import Database, open_database
from hpsearch.store.studies import load_study
from hpsearch.study.study_file import parse_definition
from hpsearch.worker.preparation import prepare_study

NUM_IMAGES = 200
SEARCH_ERRORS = {0.1: 0.03, 0.01: 0.01, 0.001: 0.02}  # by learning rate
STUDY = {
    "name": "small",
    "seed": 7,
    "data": {"dataset": "digits"},
    "model": {"family": "mlp", "hidden_units": 10},
    "training": {"max_epochs": 3},
    "search": {"learning_rate": [0.1, 0.01, 0.001]},
    "pruning": {"pruner": "median"},
}
Judge = Callable[[dict[str, Any]], float | None]


@pytest.fixture
def locations(tmp_path: Path) -> DataLocations:
    return DataLocations(local=None, cache=tmp_path, allow_download=False)


class Bench:
    """A study, its confirmation, and the one worker that makes up their trials."""

    def __init__(self, database: Database, locations: DataLocations) -> None:
        self.database = database
        self.locations = locations

    def create(self, **changes: Any) -> None:
        prepare_study(self.database, parse_definition({**STUDY, **changes}, source="test"), locations=self.locations)

    def train(self, name: str, error_of: Judge, *, most: int = 1000) -> None:
        """Complete waiting trials; where there is no error they diverge."""
        ledger = Ledger(database=self.database, study_id=load_study(self.database, name).study_id, owner=1)
        for _ in range(most):
            claims = ledger.claim(1)
            if not claims:
                return
            self._end(ledger, claims[0], error_of(dict(claims[0].parameters)))

    def _end(self, ledger: Ledger, claim: Claim, error: float | None) -> None:
        attributes = {"epochs": 3, "best_validation_nll": 3 * (error or 1.0), "stop_detail": "a loss is not finite"}
        outcome = Outcome.PRUNED if error is None else Outcome.COMPLETE
        result = Result(trial_id=claim.trial_id, outcome=outcome, loss=error, attributes=attributes)
        assert ledger.finish([result]) == {claim.trial_id}
        if error is not None:
            self.write_answers(claim.trial_id, error)

    def write_answers(self, trial_id: int, error: float) -> None:
        """Right on all validation images but so many; wrong ones are others in each trial."""
        correct = np.ones(NUM_IMAGES, dtype=bool)
        wrong = np.random.default_rng(trial_id).permutation(NUM_IMAGES)[: round(error * NUM_IMAGES)]
        correct[wrong] = False
        with self.database.engine.begin() as connection:
            connection.exec_driver_sql(
                "INSERT INTO hpsearch_correctness VALUES (%s, %s, %s) ON CONFLICT DO NOTHING",
                (trial_id, NUM_IMAGES, np.packbits(correct).tobytes()),
            )

    def search(self, **changes: Any) -> None:
        self.create(**changes)
        self.train("small", lambda parameters: SEARCH_ERRORS[parameters["learning_rate"]])

    def plan(self, top: int = 2, seeds: int = 3, name: str | None = None) -> ConfirmPlan:
        return plan_confirmation(self.database, "small", top=top, num_seeds=seeds, name=name)

    def prepare(self, top: int = 2, seeds: int = 3, name: str | None = None) -> ConfirmPlan:
        plan = self.plan(top, seeds, name)
        prepare_confirmation(self.database, plan, locations=self.locations)
        return plan

    def read(self) -> Confirmation:
        confirmation = read_status(self.database, "small").confirmation
        assert confirmation is not None
        return confirmation


@pytest.fixture
def bench(database: Database, locations: DataLocations) -> Bench:
    return Bench(database, locations)


def rates(confirmation: Confirmation, indices: Sequence[int]) -> list[Any]:
    return [confirmation.configurations[index].parameters["learning_rate"] for index in indices]


def near(center: dict[float, float]) -> Judge:
    """An error about the configuration's own, which depends on the seed."""
    return lambda p: center[p["learning_rate"]] + (p[SEED] % 3 - 1) * 0.005


def test_the_best_points_are_trained_again_with_the_same_fresh_seeds(bench: Bench) -> None:
    bench.search()
    plan = bench.prepare(top=2, seeds=3)
    stored = load_study(bench.database, "small-confirm")
    assert stored.definition == plan.definition
    assert plan.num_added == 6
    seeds = fresh_seeds(7, 3)
    points = [dict(point) for point in stored.definition.search.points]
    assert points == [{"learning_rate": rate, SEED: seed} for seed in seeds for rate in (0.01, 0.001)]
    assert stored.definition.pruning.pruner == "none"
    assert stored.definition.keeps_all_parameters
    search = load_study(bench.database, "small").definition
    for section in ("seed", "data", "model", "training", "stopping"):
        assert getattr(stored.definition, section) == getattr(search, section)
    companion = find_companion(bench.database, load_study(bench.database, "small"))
    assert companion is not None
    assert companion.name == "small-confirm"
    assert companion.num_parameters == (7960, 7960)


def test_more_seeds_and_more_points_are_added_to_what_is_there(bench: Bench) -> None:
    bench.search()
    bench.prepare(top=1, seeds=2)
    bench.train("small-confirm", lambda p: 0.01)
    assert bench.prepare(top=1, seeds=4).num_added == 2
    assert bench.prepare(top=3, seeds=3).num_added == 8  # two more points, with the four seeds of the first
    assert bench.prepare(top=1, seeds=1).num_added == 0
    confirmation = bench.read()
    assert rates(confirmation, range(3)) == [0.01, 0.001, 0.1]
    assert confirmation.companion.points.complete == 2
    assert confirmation.companion.points.waiting == 10
    assert all(configuration.num_seeds == 4 for configuration in confirmation.configurations)


def test_a_confirmation_tells_means_ties_and_the_pick(bench: Bench) -> None:
    bench.search()
    bench.prepare(top=3, seeds=5)
    bench.train("small-confirm", near({0.01: 0.055, 0.001: 0.05, 0.1: 0.4}))
    confirmation = bench.read()
    assert confirmation.is_finished
    assert confirmation.notes == []
    assert confirmation.comparison is not None
    assert confirmation.comparison.num_images == NUM_IMAGES
    assert rates(confirmation, confirmation.order()) == [0.001, 0.01, 0.1]
    assert confirmation.winner is not None
    assert rates(confirmation, [confirmation.winner]) == [0.001]
    assert rates(confirmation, confirmation.tied) == [0.01, 0.001]
    chosen = confirmation.chosen
    assert chosen is not None
    assert chosen.configuration.parameters == {"learning_rate": 0.001}
    assert "lowest mean error" in chosen.reason
    errors = [trial.value for trial in chosen.configuration.trials]
    assert chosen.trial.value == min(errors)
    assert chosen.trial in confirmation.companion.trials
    assert chosen.configuration.search_error == 0.02
    mean = confirmation.configurations[confirmation.winner].mean
    assert mean is not None
    assert mean.mean == pytest.approx(np.mean(errors))
    assert mean.deviation == pytest.approx(np.std(errors, ddof=1))
    line = confirmation.conclusion()
    assert line is not None
    assert "tied with it: 2; chosen: point 1 (learning_rate 0.001)" in line


def test_status_and_export_tell_of_a_finished_confirmation(bench: Bench) -> None:
    bench.search()
    bench.prepare(top=3, seeds=5)
    bench.train("small-confirm", near({0.01: 0.055, 0.001: 0.05, 0.1: 0.4}))
    status = read_status(bench.database, "small")
    assert status.confirmation is not None
    (line,) = status.confirmation.brief()
    assert line == (
        "confirmed over 5 seeds in small-confirm: learning_rate 0.001: 5.10 % +- 0.42, tied with learning_rate 0.01"
    )
    content = status.as_json()["confirmation"]
    assert (content["companion"], content["points"]["complete"]) == ("small-confirm", 15)

    best = export_point(choose_point(status.summary, None), status)
    assert (best["selection"], best["study"], best["parameters"]) == ("best", "small", {"learning_rate": 0.01})
    chosen = status.choose(Selection.CONFIRMED)
    confirmed = export_point(chosen, status)
    assert (confirmed["selection"], confirmed["study"]) == ("confirmed", "small-confirm")
    assert confirmed["trial"] == content["chosen"]["trial"]
    assert confirmed["value"] == chosen.trial.value
    assert confirmed["parameters"]["learning_rate"] == 0.001
    assert confirmed["parameters"][SEED] == confirmed["settings"]["training"]["seed"] in fresh_seeds(7, 5)
    assert parse_definition(confirmed["definition"], source="test").name == "small-confirm"
    for document in (best, confirmed):
        assert document["confirmation"]["configurations"][1]["mean"] == pytest.approx(0.051)


def test_status_tells_how_far_a_confirmation_is(bench: Bench) -> None:
    bench.search()
    assert read_status(bench.database, "small").as_json()["confirmation"] is None
    bench.prepare(top=2, seeds=4)
    status = read_status(bench.database, "small")
    assert status.confirmation is not None
    counts = "8 waiting, 0 running, 0 complete, 0 pruned, 0 given up"
    assert status.confirmation.brief() == [f"its confirmation small-confirm is not finished: {counts}"]
    with pytest.raises(InputError, match="the confirmation of study 'small' is not finished: 8 waiting"):
        status.choose(Selection.CONFIRMED)
    bench.train("small-confirm", lambda p: 0.05, most=5)
    status = read_status(bench.database, "small")
    assert status.confirmation is not None
    first, second = status.confirmation.brief()
    assert "not finished: 3 waiting" in first
    assert second.startswith("confirmed over 2 seeds in small-confirm: learning_rate 0.01: 5.00 % +- 0.00, tied with")


def test_status_tells_of_points_that_were_left_out(bench: Bench) -> None:
    bench.search()
    bench.prepare(top=2, seeds=2)
    lost = {"learning_rate": 0.01, SEED: fresh_seeds(7, 2)[1]}
    bench.train("small-confirm", lambda p: None if p == lost else 0.05)
    (line,) = bench.read().brief()
    assert line.endswith("no other point is tied with it; left out: 1 more")


def test_status_tells_of_a_confirmation_that_has_nothing_to_compare(bench: Bench) -> None:
    bench.search()
    bench.prepare(top=1, seeds=2)
    bench.train("small-confirm", lambda p: None)
    (line,) = bench.read().brief()
    assert line.startswith(
        "its confirmation small-confirm has nothing to compare: left out: learning_rate 0.01: 2 of 2"
    )
    with pytest.raises(InputError, match="could not choose"):
        choose_point(read_status(bench.database, "small").summary, bench.read(), Selection.CONFIRMED)


def test_the_confirmation_of_a_study_that_has_none_is_not_exported(bench: Bench) -> None:
    bench.search()
    status = read_status(bench.database, "small")
    with pytest.raises(InputError, match="study 'small' has not been confirmed") as caught:
        status.choose(Selection.CONFIRMED)
    assert "hpsearch confirm small" in str(caught.value.hint)


def test_a_study_without_a_confirmation_costs_two_statements_more(bench: Bench, statements: Callable[[], Any]) -> None:
    bench.search()
    with statements() as alone:
        read_summary(bench.database, "small")
    with statements() as seen:
        read_status(bench.database, "small")
    assert len(seen) == len(alone) + 2  # is there a confirmation, and how many validation images


def test_a_configuration_that_diverges_is_left_out_and_said(bench: Bench) -> None:
    bench.search()
    bench.prepare(top=2, seeds=3)
    lost = {"learning_rate": 0.01, SEED: fresh_seeds(7, 3)[1]}
    bench.train("small-confirm", lambda p: None if p == lost else 0.05)
    confirmation = bench.read()
    assert rates(confirmation, [i for i, c in enumerate(confirmation.configurations) if c.left_out is None]) == [0.001]
    (note,) = [note for note in confirmation.notes if note.startswith("left out")]
    assert "learning_rate 0.01: 1 of 3 seeds gave no result" in note
    assert "a loss is not finite" in note
    assert confirmation.as_json()["configurations"][0]["mean"] is None


def test_given_up_seeds_leave_their_configuration_out(bench: Bench, execute: Callable[..., Any]) -> None:
    bench.search()
    bench.prepare(top=2, seeds=3)
    bench.train("small-confirm", lambda p: 0.05)
    lost = bench.read().configurations[1].trials[0].trial_id
    execute("UPDATE trials SET state = 'FAIL' WHERE trial_id = :trial", trial=lost)
    (note,) = bench.read().notes
    assert "left out: learning_rate 0.001: 1 of 3 seeds were given up" in note


def test_while_some_seeds_are_missing_the_common_ones_are_compared(bench: Bench) -> None:
    bench.search()
    bench.prepare(top=2, seeds=4)
    bench.train("small-confirm", lambda p: 0.05, most=5)  # seed by seed: two for both, and one alone
    confirmation = bench.read()
    assert not confirmation.is_finished
    assert confirmation.comparison is not None
    assert list(confirmation.seeds) == fresh_seeds(7, 2)
    assert any("not finished: 3 waiting" in note for note in confirmation.notes)
    assert "compared on 2 of 4 seeds, which have ended for all points" in confirmation.notes


def test_before_any_seed_has_ended_there_is_no_comparison(bench: Bench) -> None:
    bench.search()
    bench.prepare(top=2, seeds=2)
    confirmation = bench.read()
    assert confirmation.comparison is None
    assert confirmation.chosen is None
    assert confirmation.conclusion() is None
    assert any(note.startswith("no comparison yet") for note in confirmation.notes)
    content = confirmation.as_json()
    assert content["chosen"] is None
    assert content["winner"] is None
    assert content["configurations"][0]["left_out"] == "no seed has ended yet"


def test_a_trial_without_a_record_of_its_answers_leaves_its_configuration_out(
    bench: Bench, execute: Callable[..., Any]
) -> None:
    bench.search()
    bench.prepare(top=2, seeds=2)
    bench.train("small-confirm", lambda p: 0.05)
    silent = bench.read().configurations[0].trials[0]
    execute("DELETE FROM hpsearch_correctness WHERE trial_id = :trial", trial=silent.trial_id)
    (note,) = bench.read().notes
    assert f"trial {silent.number} has no record of its correct images" in note


def test_one_seed_says_what_it_cannot_tell(bench: Bench) -> None:
    bench.search()
    bench.prepare(top=2, seeds=1)
    bench.train("small-confirm", lambda p: 0.05)
    (note,) = bench.read().notes
    assert note.startswith("only one seed")


def test_seeds_that_make_no_difference_are_told_of(bench: Bench, execute: Callable[..., Any]) -> None:
    bench.search()
    bench.prepare(top=1, seeds=3)
    bench.train("small-confirm", lambda p: 0.05)
    execute("UPDATE hpsearch_correctness SET bits = (SELECT bits FROM hpsearch_correctness ORDER BY trial_id LIMIT 1)")
    (note,) = bench.read().notes
    assert note.startswith("the seed had no effect here")


def test_points_that_no_seed_can_change_are_trained_with_one(bench: Bench) -> None:
    bench.search(model={"family": "logistic"})
    plan = bench.prepare(top=2, seeds=10)
    assert not plan.can_seeds_matter
    assert (plan.num_configurations, plan.num_seeds, plan.num_added) == (2, 1, 2)
    assert bench.prepare(top=3, seeds=10).num_added == 1
    bench.train("small-confirm", lambda p: 0.05)
    confirmation = bench.read()
    assert confirmation.chosen is not None
    (note,) = confirmation.notes
    assert note == "the seed has no effect: all initial weights are 0, and nothing is shuffled"


def test_one_point_that_a_seed_can_change_gives_all_of_them_all_seeds(bench: Bench) -> None:
    bench.create(model={}, search={"family": ["logistic", "mlp"]})
    bench.train("small", lambda p: 0.01 if p["family"] == "logistic" else 0.02)
    assert bench.prepare(top=1, seeds=3).num_added == 1
    plan = bench.prepare(top=2, seeds=3)
    assert plan.can_seeds_matter
    assert (plan.num_configurations, plan.num_seeds, plan.num_added) == (2, 3, 5)


def test_plan_knows_whether_it_creates_the_companion(bench: Bench) -> None:
    bench.search()
    assert bench.prepare(top=1, seeds=2).is_created
    assert not bench.prepare(top=1, seeds=2).is_created
    assert not bench.prepare(top=2, seeds=2).is_created


def test_a_searched_seed_does_not_tell_two_points_apart(bench: Bench) -> None:
    bench.create(search={"learning_rate": [0.1, 0.01], "seed": [1, 2, 3]})
    bench.train("small", lambda p: SEARCH_ERRORS[p["learning_rate"]] + p[SEED] / 1000)
    plan = bench.prepare(top=3, seeds=2)
    assert plan.num_configurations == 2
    assert rates(bench.read(), [0, 1]) == [0.01, 0.1]
    assert bench.read().configurations[0].search_error == pytest.approx(0.011)


def test_a_confirmation_from_before_the_study_was_given_more_epochs_stays_and_goes_on(bench: Bench) -> None:
    bench.search()
    bench.prepare(top=2, seeds=2)
    bench.train("small-confirm", near({0.01: 0.02, 0.001: 0.03}))
    before = bench.read()
    epochs = before.max_epochs
    bench.create(training={**STUDY.get("training", {}), "max_epochs": 2 * epochs})
    after = bench.read()
    note = f"trained with max_epochs {epochs}, and the search has {2 * epochs} now: "
    assert after.notes == [f"{note}hpsearch confirm small lets the trials go on", *before.notes]
    assert [c.mean for c in after.configurations] == [c.mean for c in before.configurations]
    bench.prepare(top=2, seeds=2)
    assert bench.read().max_epochs == 2 * epochs
    assert bench.read().companion.name == "small-confirm"


def test_conditional_parameters_stay_with_their_points(bench: Bench) -> None:
    bench.create(search={"optimizer": ["sgd", "momentum"], "momentum": [0.5, 0.9]})
    bench.train("small", lambda p: 0.01 + p.get("momentum", 0) / 100)
    bench.prepare(top=3, seeds=1)
    found = [dict(configuration.parameters) for configuration in bench.read().configurations]
    assert found == [
        {"optimizer": "sgd"},
        {"optimizer": "momentum", "momentum": 0.5},
        {"optimizer": "momentum", "momentum": 0.9},
    ]
    assert [c.search_error for c in bench.read().configurations] == pytest.approx([0.01, 0.015, 0.019])


def test_values_that_listed_points_leave_to_the_study_are_shown(bench: Bench) -> None:
    bench.create(search={"strategy": "listed", "points": [{"learning_rate": 0.1}, {"hidden_units": 5, "seed": 4}]})
    bench.train("small", lambda p: 0.01 if "learning_rate" in p else 0.02)
    bench.prepare(top=2, seeds=1)
    found = bench.read().configurations
    assert [dict(configuration.parameters) for configuration in found] == [
        {"learning_rate": 0.1, "hidden_units": 10},
        {"learning_rate": 0.01, "hidden_units": 5},
    ]
    assert [c.search_error for c in found] == [0.01, 0.02]
    assert bench.prepare(top=2, seeds=1).num_added == 0


def test_without_a_confirmation_there_is_nothing_to_read(bench: Bench) -> None:
    bench.search()
    assert read_status(bench.database, "small").confirmation is None


def test_a_command_that_was_killed_before_it_could_mark_its_study_is_taken_up(
    bench: Bench, execute: Callable[..., Any]
) -> None:
    bench.search()
    bench.prepare()
    execute("DELETE FROM study_user_attributes WHERE key = :key", key=CONFIRMS_ATTRIBUTE)
    assert read_status(bench.database, "small").confirmation is None
    bench.prepare()
    assert bench.read().companion.name == "small-confirm"


def test_damaged_mark_is_told_with_the_companions_name(bench: Bench, execute: Callable[..., Any]) -> None:
    bench.search()
    bench.prepare(top=1, seeds=1)
    execute("UPDATE study_user_attributes SET value_json = :text WHERE key = :key", text="{}", key=CONFIRMS_ATTRIBUTE)
    with pytest.raises(StorageError, match=r"study 'small-confirm' cannot be .*hpsearch:confirms\): study is missing"):
        read_status(bench.database, "small")


def test_an_unknown_study_is_an_error(bench: Bench) -> None:
    with pytest.raises(StudyNotFoundError, match="no study 'small'"):
        bench.plan()


def test_nothing_complete_is_an_error_with_the_counts(bench: Bench) -> None:
    bench.create()
    with pytest.raises(NothingCompleteError, match="3 waiting, 0 running, 0 complete"):
        bench.plan()


@pytest.mark.parametrize(("top", "seeds"), [(0, 3), (3, 0)])
def test_numbers_below_one_are_refused(bench: Bench, top: int, seeds: int) -> None:
    bench.search()
    with pytest.raises(InputError, match="--top and --seeds must be at least 1"):
        bench.plan(top=top, seeds=seeds)


def test_the_name_of_another_study_is_refused(bench: Bench) -> None:
    bench.search()
    bench.create(name="other")
    with pytest.raises(InputError, match="cannot be confirmed as 'other': that study exists already"):
        bench.plan(name="other")


def test_a_list_of_other_seeds_is_no_confirmation(bench: Bench) -> None:
    bench.search()
    points = [{"learning_rate": 0.01, "seed": 5}]
    bench.create(
        name="small-confirm",
        keep_parameters="all",
        pruning={},
        search={"strategy": "listed", "points": points},
    )
    with pytest.raises(InputError, match="cannot be confirmed as 'small-confirm'"):
        bench.plan()


def test_a_study_of_plain_optuna_is_refused(bench: Bench) -> None:
    bench.search()
    bench.database.storage.create_new_study([StudyDirection.MINIMIZE], "small-confirm")
    with pytest.raises(InputError, match="hpsearch did not create it"):
        bench.plan()


def test_a_name_that_is_no_study_name_is_refused(bench: Bench) -> None:
    bench.search()
    with pytest.raises(InputError, match="must be 1 to 100 letters"):
        bench.plan(name="../up")


def test_a_second_name_is_refused(bench: Bench) -> None:
    bench.search()
    bench.prepare()
    with pytest.raises(InputError, match="is already confirmed in study 'small-confirm'"):
        bench.plan(name="again")


def test_a_confirmation_is_not_confirmed_itself(bench: Bench) -> None:
    bench.search()
    bench.prepare()
    with pytest.raises(InputError, match="'small-confirm' is itself the confirmation of study 'small'"):
        plan_confirmation(bench.database, "small-confirm", top=1, num_seeds=1)


@pytest.mark.parametrize("what", ["definition", "data"])
def test_the_confirmation_of_a_deleted_namesake_is_none_of_this_one(
    bench: Bench, execute: Callable[..., Any], what: str
) -> None:
    bench.search()
    bench.prepare()
    bench.database.storage.delete_study(load_study(bench.database, "small").study_id)
    bench.search(**({"training": {"max_epochs": 9}} if what == "definition" else {}))
    if what == "data":
        execute(
            "UPDATE study_user_attributes a SET value_json = :json FROM studies s "
            "WHERE a.study_id = s.study_id AND study_name = 'small' AND key = 'hpsearch:dataset_checksums'",
            json='{"digits": "other"}',
        )
    assert read_status(bench.database, "small").confirmation is None
    with pytest.raises(InputError, match="confirms a deleted study of this name, which had another definition"):
        bench.plan()


def test_data_that_are_not_the_studys_are_refused_before_anything_is_created(
    bench: Bench, execute: Callable[..., Any]
) -> None:
    bench.search()
    execute("UPDATE study_user_attributes SET value_json = :json WHERE key = 'hpsearch:dataset_checksums'", json="{}")
    with pytest.raises(DataError, match="created with other data"):
        bench.prepare()
    with pytest.raises(StudyNotFoundError):
        load_study(bench.database, "small-confirm")


def test_seeds_are_fresh_distinct_and_the_beginning_of_more() -> None:
    assert fresh_seeds(0, 5) == fresh_seeds(0, 20)[:5]
    assert len(set(fresh_seeds(0, 200))) == 200
    assert set(fresh_seeds(0, 200)).isdisjoint(fresh_seeds(1, 200))
    assert all(0 <= seed < 2**32 for seed in fresh_seeds(2**63 - 1, 10))


# Two at once


def test_two_who_confirm_at_once_get_the_points_of_both(bench: Bench) -> None:
    """Both have planned before either has created the companion; the smaller plan comes last."""
    bench.search()
    small, large = bench.plan(top=1, seeds=3), bench.plan(top=3, seeds=2)
    prepare_confirmation(bench.database, large, locations=bench.locations)
    carried_out = prepare_confirmation(bench.database, small, locations=bench.locations)
    assert carried_out.definition == load_study(bench.database, "small-confirm").definition
    assert (carried_out.num_configurations, carried_out.num_seeds) == (3, 3)
    confirmation = bench.read()
    assert [c.parameters["learning_rate"] for c in confirmation.configurations] == [0.01, 0.001, 0.1]
    assert {c.num_parameters for c in confirmation.configurations} == {7960}


def test_who_is_first_told_that_one_seed_is_enough_gets_all_that_were_asked_for_if_another_adds_a_point(
    bench: Bench,
) -> None:
    bench.create(model={}, search={"family": ["logistic", "mlp"]})
    bench.train("small", lambda p: 0.01 if p["family"] == "logistic" else 0.02)
    plan = bench.plan(top=1, seeds=3)
    bench.prepare(top=2, seeds=2)
    assert prepare_confirmation(bench.database, plan, locations=bench.locations).num_seeds == 3


def test_who_adds_points_holds_the_lock_for_as_long_as_it_takes(
    bench: Bench, tables_url: str, execute: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a session that idles meanwhile."""
    monkeypatch.setattr(database_module, "_IDLE_SECONDS", 0.05)
    monkeypatch.setattr(confirm_plan, "_LOCK_SECONDS", 0.0)
    impatient = open_database(tables_url)
    with confirm_plan._lock(impatient, "small-confirm"):
        execute("SELECT pg_sleep(0.3)")
        with pytest.raises(StorageError, match="another process"), confirm_plan._lock(bench.database, "small-confirm"):
            pytest.fail("it was free")
    impatient.close()


def test_plan_that_is_carried_out_late_takes_no_more_of_the_best_than_were_asked_for(bench: Bench) -> None:
    bench.search()
    bench.prepare(top=1, seeds=2)
    plan = bench.plan(top=1, seeds=3)
    assert prepare_confirmation(bench.database, plan, locations=bench.locations).num_configurations == 1


def test_who_waits_too_long_for_another_that_adds_points_is_told(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    bench.search()
    plan = bench.plan()
    monkeypatch.setattr(confirm_plan, "_LOCK_SECONDS", 0.0)
    with (
        confirm_plan._lock(bench.database, "small-confirm"),
        pytest.raises(StorageError, match="another process has been adding points to study 'small-confirm'"),
    ):
        prepare_confirmation(bench.database, plan, locations=bench.locations)
    assert prepare_confirmation(bench.database, plan, locations=bench.locations).is_there is False
