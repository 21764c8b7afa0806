from __future__ import annotations

import pytest

from hpsearch.wording import did_you_mean, first_line, value_label


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
        (None, "none"),
    ],
)
def test_values_read_as_in_a_study_file(value: float | str | None, label: str) -> None:
    assert value_label(value) == label
