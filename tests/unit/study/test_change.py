"""What may change in a study that exists, and what may not."""

from __future__ import annotations

import tomllib

import pytest

from hpsearch.study.change import compare_definitions
from hpsearch.study.definition import StudyDefinition
from hpsearch.study.study_file import parse_definition


def parsed(text: str) -> StudyDefinition:
    return parse_definition(tomllib.loads(f'name = "a"\n{text}'), source="study.toml")


GRID = "[search]\nlearning_rate = { log10 = [-1, -3] }\nlambda_2 = [0.0, 0.001]"
DRAWN = '[search]\nstrategy = "random"\nnum_points = 5\nlearning_rate = { log10 = [-1, -3] }'
NARROWED = '[search]\nstrategy = "coarse-to-fine"\nlearning_rate = { log10 = [-1, -3] }\nbudget_points = 10'
LISTED = '[search]\nstrategy = "listed"\npoints = [{ learning_rate = 0.1 }, { learning_rate = 0.2, seed = 3 }]'


@pytest.mark.parametrize("text", [GRID, DRAWN, NARROWED, LISTED])
def test_same_definition_is_no_change(text: str) -> None:
    change = compare_definitions(parsed(text), parsed(text))
    assert change.is_none
    assert not change.refused


@pytest.mark.parametrize(
    ("stored", "given"),
    [
        (GRID, GRID.replace("[-1, -3]", "[0, -4]")),
        (GRID, GRID.replace("[-1, -3]", "[-3, -1]")),
        (GRID, GRID.replace("[-1, -3] }", "[-1, -3], per_decade = 2 }")),
        (GRID, GRID.replace("[0.0, 0.001]", "[0.0, 0.01, 0.001]")),
        (GRID, GRID + "\nmax_points = 99"),
        (DRAWN, DRAWN.replace("= 5", "= 8")),
        (NARROWED, NARROWED.replace("= 10", "= 5")),
        (NARROWED, NARROWED.replace("\nbudget_points = 10", "\nbudget_hours = 1.5")),
        (NARROWED, NARROWED.replace("[-1, -3]", "[0, -3]")),
        (LISTED, LISTED.replace("points = [", "points = [{ learning_rate = 0.3 }, ")),
        (GRID, 'keep_parameters = "all"\n' + GRID),
        (GRID, "keep_every = 5\n" + GRID),
        (GRID, GRID + "\n[training]\nmax_epochs = 300"),
        ("keep_every = 5\n" + GRID, GRID),
    ],
)
def test_more_points_or_budget_is_a_change_that_a_study_can_take(stored: str, given: str) -> None:
    change = compare_definitions(parsed(stored), parsed(given))
    assert not change.is_none
    assert change.refused == ()


@pytest.mark.parametrize(
    ("stored", "given", "why"),
    [
        (GRID, GRID.replace("[-1, -3]", "[-2, -3]"), "it lacks 0.1, which the study has"),
        (GRID, GRID.replace("[0.0, 0.001]", "[0.001]"), "it lacks 0.0, which the study has"),
        (GRID, GRID + "\nseed = [1, 2]", "the searched keys cannot change"),
        (
            GRID,
            GRID.replace("[0.0, 0.001]", "{ log10 = [-2, -3], zero = true }"),
            "the kind of its values cannot change",
        ),
        (GRID, GRID + "\n[training]\nmax_epochs = 3", "the number of epochs can only be raised"),
        (
            GRID + '\n[pruning]\npruner = "hyperband"',
            GRID + '\n[pruning]\npruner = "hyperband"\n[training]\nmax_epochs = 300',
            "hyperband has divided the trials by the old number of epochs",
        ),
        (
            GRID + "\nmax_epochs = [2, 3]",
            GRID + "\nmax_epochs = [2, 3]\n[training]\nmax_epochs = 300",
            "max_epochs is searched",
        ),
        (
            LISTED,
            LISTED.replace("points = [", "points = [{ max_epochs = 50 }, ") + "\n[training]\nmax_epochs = 300",
            "max_epochs is searched",
        ),
        (GRID, GRID + "\n[stopping]\npatience = 3", "values of the study would no longer be comparable"),
        (GRID, GRID + '\n[pruning]\npruner = "median"', "values of the study would no longer be comparable"),
        (GRID, "seed = 3\n" + GRID, "values of the study would no longer be comparable"),
        (GRID, NARROWED, "the strategy of a study cannot change"),
        (DRAWN, DRAWN.replace("= 5", "= 4"), "the number of drawn points cannot be lowered"),
        (DRAWN, DRAWN.replace("[-1, -3]", "[0, -3]"), "the range that points are drawn from cannot change"),
        (LISTED, LISTED.replace("{ learning_rate = 0.1 }, ", ""), "1 points of the study are missing"),
    ],
)
def test_change_of_meaning_is_refused_with_the_reason(stored: str, given: str, why: str) -> None:
    change = compare_definitions(parsed(stored), parsed(given))
    assert any(why in line for line in change.refused), change


def test_hash_of_the_meaning_of_a_value_knows_nothing_of_the_search() -> None:
    grid = parsed(GRID)
    assert grid.value_sha256 == parsed(DRAWN).value_sha256
    assert grid.value_sha256 != parsed(GRID + "\n[training]\nmax_epochs = 3").value_sha256
    assert grid.value_sha256 != parsed("seed = 3\n" + GRID).value_sha256


PROGRAM = """[command]
run = ["train", "{a}"]
metric = "loss"
[search]
"""
PROGRAM_GRID = PROGRAM + "a = [1, 2]"
PROGRAM_LISTED = PROGRAM + 'strategy = "listed"\npoints = [{ a = 1 }, { a = 2 }]'
PROGRAM_DRAWN = PROGRAM + 'strategy = "tpe"\nnum_points = 5\na = { low = 0.0, high = 1.0 }'


@pytest.mark.parametrize(
    ("stored", "given"),
    [
        (PROGRAM_GRID, PROGRAM_GRID.replace("[1, 2]", "[1, 2, 3]")),
        (PROGRAM_LISTED, PROGRAM_LISTED.replace("points = [", "points = [{ a = 3 }, ")),
        (PROGRAM_DRAWN, PROGRAM_DRAWN.replace("num_points = 5", "num_points = 9")),
        *(
            (PROGRAM_GRID, PROGRAM_GRID.replace("[search]", f"{line}\n[search]"))
            for line in (
                "gpus = 0",
                "per_gpu = 2",
                "cpus = 4",
                "grace_seconds = 9.0",
                "max_attempts = 5",
                'keep_folders = "all"',
                "folder_limit = 10",
                'pass_environment = ["AWS_PROFILE"]',
                "reads_parameters = true",
            )
        ),
    ],
)
def test_a_study_of_programs_takes_more_points_and_how_they_are_run(stored: str, given: str) -> None:
    change = compare_definitions(parsed(stored), parsed(given))
    assert not change.is_none
    assert change.refused == ()
    assert parsed(stored).value_sha256 == parsed(given).value_sha256


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ('run = ["train", "--a={a}"]', "values of the study would no longer be comparable"),
        ('metric = "accuracy"', "values of the study would no longer be comparable"),
        ('direction = "maximize"', "values of the study would no longer be comparable"),
        ('value = "last"', "values of the study would no longer be comparable"),
        ('env = { A = "1" }', "values of the study would no longer be comparable"),
        ("max_steps = 5", "a program that was ended there cannot go on"),
        ("timeout_minutes = 5.0", "a program that was ended by it cannot go on"),
    ],
)
def test_what_a_program_is_cannot_change(line: str, why: str) -> None:
    key = line.partition(" ")[0]
    lines = [each for each in PROGRAM_GRID.splitlines() if not each.startswith(f"{key} ")]
    given = "\n".join([lines[0], line, *lines[1:]])
    change = compare_definitions(parsed(PROGRAM_GRID), parsed(given))
    assert change.refused == tuple(f"{each} ({why})" for each in change.lines)
    assert change.lines[0].startswith(f"command.{key}: ")
    assert parsed(PROGRAM_GRID).value_sha256 != parsed(given).value_sha256


def test_programs_instead_of_networks_are_one_line() -> None:
    change = compare_definitions(parsed(GRID), parsed(PROGRAM_GRID))
    (line,) = change.refused
    assert line.startswith("trials: hpsearch's own networks in the study, programs, [command] given (")
