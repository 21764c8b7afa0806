"""Confirmations of studies of programs: the same command over fresh seeds, compared seed by seed."""

from __future__ import annotations

from pathlib import Path
from random import Random
from typing import Any

import pytest
from sqlalchemy import text

from hpsearch.data.files.lookup import DataLocations
from hpsearch.errors import DataError, InputError
from hpsearch.results.confirmation.outcome import Confirmation
from hpsearch.results.confirmation.plan import ConfirmPlan, plan_confirmation, prepare_confirmation
from hpsearch.results.report.page import render_report
from hpsearch.results.selection import Selection
from hpsearch.results.view_tables import configurations_table
from hpsearch.store.connection.database import Database
from hpsearch.study.study_file import parse_definition
from hpsearch.worker.programs.preparation import prepare_program
from tests.integration.results.programs.conftest import MadeUpPrograms, ProgramsMaker

LOSSES = {0.1: 3.0, 0.01: 1.0, 0.001: 2.0}


def plan_of(programs: MadeUpPrograms, *, top: int = 2, seeds: int = 4) -> ConfirmPlan:
    plan = plan_confirmation(programs.database, programs.name, top=top, num_seeds=seeds)
    nowhere = DataLocations(local=None, cache=Path("/nonexistent"), allow_download=False)
    return prepare_confirmation(programs.database, plan, locations=nowhere)


def near(point: dict[str, Any]) -> float:
    """A loss about the point's own; how far from it depends on the point and on the seed."""
    return LOSSES[point["lr"]] + Random(f"{point['lr']} {point['seed']}").random() / 20


@pytest.fixture
def searched(make_programs: ProgramsMaker) -> MadeUpPrograms:
    programs = make_programs()
    programs.complete_all(lambda point: LOSSES[point["lr"]])
    return programs


def confirmed(programs: MadeUpPrograms, value_of: Any = near, **numbers: int) -> Confirmation:
    plan = plan_of(programs, **numbers)
    MadeUpPrograms(database=programs.database, name=plan.definition.name).complete_all(value_of)
    confirmation = programs.status.confirmation
    assert confirmation is not None
    return confirmation


def test_the_companion_runs_the_same_program(searched: MadeUpPrograms) -> None:
    plan = plan_of(searched)
    search = searched.study.definition
    assert plan.definition.program == search.program
    assert plan.definition.program is not None
    assert plan.definition.program == search.program
    assert plan.definition.num_points == 8
    assert plan.definition.pruning.pruner == "none"


def test_a_program_that_asks_for_its_seed_needs_no_placeholder(make_programs: ProgramsMaker) -> None:
    programs = make_programs(run=["train", "{lr}"])
    programs.complete_all(lambda point: LOSSES[point["lr"]])
    assert plan_of(programs).definition.num_points == 8


def test_clear_differences_are_found_over_the_seeds(searched: MadeUpPrograms) -> None:
    confirmation = confirmed(searched, seeds=10)
    assert confirmation.comparison is not None
    assert confirmation.comparison.num_images is None
    assert confirmation.chosen is not None
    assert confirmation.chosen.configuration.parameters == {"lr": 0.01}
    assert confirmation.chosen.reason == "no other point is tied with it"
    assert confirmation.notes == []


def test_of_tied_points_the_best_mean_is_chosen(searched: MadeUpPrograms) -> None:
    def noisy(point: dict[str, Any]) -> float:
        return float(hash((point["lr"], point["seed"])) % 1000)

    confirmation = confirmed(searched, noisy, top=3)
    assert confirmation.chosen is not None
    assert confirmation.configurations.index(confirmation.chosen.configuration) == confirmation.winner


def test_of_a_metric_to_be_maximised_the_highest_mean_wins(make_programs: ProgramsMaker) -> None:
    programs = make_programs(metric="score", direction="maximize")
    programs.complete_all(lambda point: LOSSES[point["lr"]])
    confirmation = confirmed(programs, seeds=6)
    assert confirmation.chosen is not None
    assert confirmation.chosen.configuration.parameters == {"lr": 0.1}
    mean = confirmation.as_json()["configurations"][0]
    assert mean["interval"][0] < mean["mean"] < mean["interval"][1]
    assert mean["mean"] > 3.0


def test_a_seed_without_effect_gives_no_intervals_and_ties(searched: MadeUpPrograms) -> None:
    confirmation = confirmed(searched, lambda point: LOSSES[point["lr"]])
    assert confirmation.tied == (0, 1)
    assert any("the seed had no effect here: all values of a point are the same" in note for note in confirmation.notes)
    assert confirmation.as_json()["configurations"][1]["difference_interval"] is None


def test_a_difference_that_is_the_same_with_all_seeds_is_a_tie(searched: MadeUpPrograms) -> None:
    """Though the seeds matter to both points: a constant difference says nothing of how it varies."""
    confirmation = confirmed(searched, lambda point: LOSSES[point["lr"]] + (point["seed"] % 7) / 100)
    assert confirmation.tied == (0, 1)
    points = confirmation.as_json()["configurations"]
    assert None not in [point["interval"] for point in points]
    assert [point["difference_interval"] for point in points] == [[0.0, 0.0], None]
    assert any("by the same amount with every seed counts as tied" in note for note in confirmation.notes)
    assert "(not known)" in str([list(column.cells) for column in configurations_table(confirmation).columns])


def test_one_seed_tells_no_difference_from_chance(searched: MadeUpPrograms) -> None:
    confirmation = confirmed(searched, seeds=1)
    assert confirmation.tied == (0, 1)
    assert (
        "only one seed: the effect of seeds is unknown, and no difference can be told from chance" in confirmation.notes
    )


def test_its_table_has_steps_and_no_sizes(searched: MadeUpPrograms) -> None:
    headings = [column.heading for column in configurations_table(confirmed(searched)).columns]
    assert "steps" in headings
    assert not {"parameters", "epochs"} & set(headings)


def test_json_has_no_sizes_and_no_images(searched: MadeUpPrograms) -> None:
    document = confirmed(searched).as_json()
    assert (document["num_images"], document["max_epochs"]) == (None, None)
    assert document["configurations"][0]["num_parameters"] is None


def test_the_confirmed_point_is_chosen_with_its_mean(searched: MadeUpPrograms) -> None:
    confirmed(searched)
    status = searched.status
    chosen = status.choose()
    assert chosen.selection is Selection.CONFIRMED
    assert "mean over 4 fresh seeds)" in status.estimate(chosen).describe()


def test_its_report_says_what_the_units_are(searched: MadeUpPrograms) -> None:
    confirmed(searched)
    html = render_report(searched.status)
    assert "the seeds are the units: the intervals are those of paired t tests over the seeds" in html
    assert "over other seeds; faint: single seeds" in html


def test_changed_run_time_keys_keep_the_confirmation(searched: MadeUpPrograms, tmp_path: Path) -> None:
    confirmed(searched)
    document = searched.study.definition.document()
    document["command"] |= {"per_gpu": 3, "max_attempts": 9}
    prepare_program(searched.database, parse_definition(document, source="test"), tmp_path)
    assert searched.status.confirmation is not None


def test_other_files_are_refused(
    database: Database, make_programs: ProgramsMaker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "train.py").write_text("one")
    programs = make_programs(files=["train.py"])
    programs.complete_all(lambda point: LOSSES[point["lr"]])
    (tmp_path / "train.py").write_text("another")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match=r"study 'mine' was created with another train\.py"):
        plan_of(programs)


def test_a_text_that_the_search_does_not_have_is_not_confirmed(make_programs: ProgramsMaker) -> None:
    """Somebody has put it into the database after the consent to the search."""
    programs = make_programs({"tool": ["sgd", "adam"]}, run=["train", "{tool}"])
    programs.complete_all(lambda point: len(point["tool"]))
    change = "UPDATE trial_params SET distribution_json = replace(distribution_json, '\"sgd\"', '\"evil\"') RETURNING 1"
    programs.database.rows(text(change), {})
    with pytest.raises(InputError, match="tool = 'evil', which is none of the study's values"):
        plan_of(programs)
