from __future__ import annotations

import pytest

from hpsearch.wording import counted, did_you_mean, first_line, format_seconds, parameters_label, times, value_label


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (ValueError(""), "ValueError"),
        (ValueError(" \n "), "ValueError"),
        (OSError("no route\nto host"), "no route"),
        (RuntimeError("\n  late\n"), "late"),
        ("a plain text\r\nof two lines", "a plain text"),
    ],
)
def test_an_error_has_one_line_even_if_it_has_no_text(error: object, line: str) -> None:
    assert first_line(error) == line


def test_a_similar_name_is_suggested_and_no_other() -> None:
    assert did_you_mean("momemtum", ["momentum", "rho"]) == 'did you mean "momentum"?'
    assert did_you_mean("x", ["momentum", "rho"]) is None


@pytest.mark.parametrize(
    ("value", "label"),
    [
        (0.1, "0.1"),
        (0.0, "0"),
        (1e-4, "0.0001"),
        (1e-5, "1e-5"),
        (0.0464158883361, "0.04642"),
        (1e16, "1e16"),
        (500, "500"),
        (123456, "123456"),
        (True, "true"),
        ("tanh", "tanh"),
        (None, "-"),
    ],
)
def test_values_read_as_in_a_study_file(value: float | str | None, label: str) -> None:
    assert value_label(value) == label


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.04, "0.04 s"), (3.21, "3.2 s"), (42.4, "42 s"), (59.99, "1 min 0 s"), (200, "3 min 20 s"), (7500, "2 h 5 min")],
)
def test_durations_are_written_for_people(seconds: float, text: str) -> None:
    assert format_seconds(seconds) == text


def test_points_and_numbers_are_written_for_people() -> None:
    assert parameters_label({"learning_rate": 0.1, "lambda_2": 1e-5, "shuffle": True}) == (
        "learning_rate 0.1, lambda_2 1e-5, shuffle true"
    )
    assert parameters_label({}) == "the only point"
    assert [counted(1, "point"), counted(3, "point")] == ["1 point", "3 points"]
    assert [times(1), times(2)] == ["once", "2 times"]
