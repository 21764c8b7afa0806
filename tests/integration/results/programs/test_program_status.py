"""What `status` and `run` show of a study of programs."""

from __future__ import annotations

import pytest
from rich.console import Console

from hpsearch.console.tables import status_view
from hpsearch.errors import NothingCompleteError, UncountedPointsError
from hpsearch.store.claims.claim import Outcome
from tests.integration.results.programs.conftest import MadeUpPrograms, ProgramsMaker


def screen(programs: MadeUpPrograms) -> str:
    console = Console(width=160)
    with console.capture() as capture:
        console.print(status_view(programs.status))
    return capture.get()


def test_it_counts_steps_and_names_no_data_set_and_no_checks(trained: MadeUpPrograms) -> None:
    shown = screen(trained)
    assert "2 of 3 points done · 2 complete, 0 pruned · 1 FAILED · 4 steps\n" in shown
    assert "mnist" not in shown
    assert "not checked" not in shown


def test_it_shows_the_command(trained: MadeUpPrograms) -> None:
    assert "\ncommand: {python} train.py --lr={lr} --seed={seed}\n" in screen(trained)


def test_its_table_has_steps_and_no_nll(trained: MadeUpPrograms) -> None:
    heading = next(line for line in screen(trained).splitlines() if "best step" in line)
    assert heading.split() == ["val_loss", "best", "step", "trial", "lr", "ended"]


def test_it_shows_the_last_lines_of_a_point_that_was_given_up(trained: MadeUpPrograms) -> None:
    told = (
        "given up, 1 point: ended with exit code 3; the last lines of trial 2:\n    loading data\n    Error: <script>"
    )
    assert told in screen(trained)


def test_it_shows_the_last_lines_of_an_attempt_that_is_tried_again(make_programs: ProgramsMaker) -> None:
    programs = make_programs()
    programs.fail("no such file", max_attempts=3)
    assert (
        "tried again, 1 failed attempt: ended with exit code 3; the last lines of trial 0:\n    no such file"
        in screen(programs)
    )
    programs.complete_all(lambda point: 0.5)
    assert "1 attempt failed before; the last one: ended with exit code 3\n" in screen(programs)


def test_points_that_fail_for_one_reason_are_counted_together(make_programs: ProgramsMaker) -> None:
    programs = make_programs()
    programs.fail("at 12:00")
    programs.fail("at 12:01")
    assert programs.status.as_json()["given_up"] == {"ended with exit code 3": 2}


def test_json_has_the_command_and_no_data_set(trained: MadeUpPrograms) -> None:
    document = trained.status.as_json()
    assert document["dataset"] is None
    assert document["command"] == "{python} train.py --lr={lr} --seed={seed}"
    assert (document["metric"], document["direction"]) == ("val_loss", "minimize")
    assert document["best"]["validation_nll"] is None
    assert document["budgets"] == []


def test_json_has_the_failures(trained: MadeUpPrograms) -> None:
    assert trained.status.as_json()["failures"] == [
        {
            "trial": 2,
            "point": 2,
            "attempt": 1,
            "given_up": True,
            "reason": "ended with exit code 3",
            "last_lines": ["loading data", "Error: <script>alert(1)</script>"],
        }
    ]


def test_points_that_were_given_up_end_the_run_with_their_programs(trained: MadeUpPrograms) -> None:
    with pytest.raises(UncountedPointsError, match="1 of 3 points were given up, their programs failed each time"):
        trained.status.summary.require_all_counted()


def test_nothing_complete_points_to_what_the_programs_printed(make_programs: ProgramsMaker) -> None:
    programs = make_programs({"lr": [0.1]})
    programs.fail("no such file")
    with pytest.raises(NothingCompleteError) as caught:
        programs.status.choose()
    assert caught.value.hint == "hpsearch status mine shows what its programs printed before they failed"


def test_the_best_of_a_metric_to_be_maximised_is_the_highest(make_programs: ProgramsMaker) -> None:
    programs = make_programs(metric="accuracy", direction="maximize")
    programs.complete([-3.0, -1.5])
    programs.complete([40.0, 97.5])
    programs.prune([99.0])
    answer = programs.status.answer()[0]
    assert "the search's accuracy 97.50 (the highest of many trials, so it tends to be too high)" in answer


def test_a_study_without_a_value_says_how_many_have_diverged(make_programs: ProgramsMaker) -> None:
    programs = make_programs({"lr": [0.1, 0.01]})
    for _ in range(2):
        programs._finish([0.5], Outcome.PRUNED, None, {"stop_reason": "diverged"})
    assert "no trial has a value: 2 trials diverged (a value was not finite)" in screen(programs)
