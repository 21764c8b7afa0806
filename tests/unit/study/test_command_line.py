"""Placeholders of a command: what is replaced, how values are written, and what is refused before the first trial."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping, Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpsearch.errors import InputError
from hpsearch.study.command_line import (
    LARGEST_ARGUMENT_BYTES,
    OWN_PLACEHOLDERS,
    Value,
    as_line,
    as_text,
    check_command,
    names_seed,
    parameter_variable,
    placeholders_in,
    render,
    render_command,
    render_environment,
)

NAMES = st.from_regex(r"[A-Za-z0-9_.-]+", fullmatch=True)
PLAIN = ["{python}", "train.py", "--lr={learning_rate}"]


def refusal(
    run: Sequence[str], dimensions: Sequence[str] = (), environment: Mapping[str, str] | None = None
) -> tuple[str, str]:
    """The message and the hint with which a command is refused."""
    with pytest.raises(InputError) as caught:
        check_command(run, environment or {}, dimensions)
    return str(caught.value), caught.value.hint or ""


@given(st.text())
def test_escaped_text_is_rendered_as_the_text(text: str) -> None:
    assert render(text.replace("{", "{{").replace("}", "}}"), {}) == text


@given(st.lists(st.tuples(st.text(), NAMES)), st.text())
def test_each_placeholder_is_replaced_where_it_stands(parts: list[tuple[str, str]], value: str) -> None:
    escaped = [(text.replace("{", "{{").replace("}", "}}"), name) for text, name in parts]
    template = "".join(f"{text}{{{name}}}" for text, name in escaped)
    values = {name: value for _, name in parts}
    assert render(template, values) == "".join(text + value for text, _ in parts)
    assert placeholders_in(template) == [name for _, name in parts]


@given(st.floats(allow_nan=False))
def test_a_float_is_written_so_that_a_program_reads_the_same_one(value: float) -> None:
    assert float(as_text(value)) == value


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (True, "true"),
        (False, "false"),
        (64, "64"),
        (0.001, "0.001"),
        (1e-5, "1e-05"),
        (0.1 + 0.2, "0.30000000000000004"),
        (100.0, "100.0"),
        (np.float64(0.1), "0.1"),
        ("{re lu}", "{re lu}"),
        ("", ""),
    ],
)
def test_values_are_written_as_programs_read_them(value: Value, text: str) -> None:
    assert render("{x}", {"x": value}) == text


def test_braces_around_a_placeholder_stay() -> None:
    assert render('{{"lr": {lr}}}', {"lr": 0.1}) == '{"lr": 0.1}'


@pytest.mark.parametrize("text", ["{", "}", "a{b", "{{}", "{lr}}", "{{lr}", "{a{lr}}"])
def test_a_lone_brace_is_refused(text: str) -> None:
    with pytest.raises(InputError, match=r"a lone [{}]") as caught:
        render(text, {"lr": 1, "a": 1})
    assert "{{" in str(caught.value.hint)


@pytest.mark.parametrize("text", ["{}", "{ lr }", '{"lr": 1}', "{lr:.3f}", "{lr!r}"])
def test_what_cannot_be_a_name_is_refused(text: str) -> None:
    with pytest.raises(InputError, match="is no placeholder"):
        render(text, {"lr": 1})


def test_an_unknown_name_is_refused_with_argument_and_choices() -> None:
    message, hint = refusal(["train", "--lr={learning_rat}"], ["learning_rate"])
    assert "command.run, argument 1," in message
    assert "'--lr={learning_rat}'" in message
    assert "unknown placeholder {learning_rat}" in message
    assert 'did you mean "learning_rate"?' in hint
    assert all(name in hint for name in OWN_PLACEHOLDERS)


def test_the_hint_for_a_variable_of_a_shell_shows_how_to_write_it() -> None:
    _, hint = refusal(["bash", "-c", "cd ${HOME}"])
    assert "${{HOME}}" in hint


def test_the_values_of_the_studys_variables_have_placeholders_too() -> None:
    check_command(["train"], {"LR": "{learning_rate}"}, ["learning_rate"])
    assert render_environment({"LR": "{learning_rate}"}, {"learning_rate": 0.1}) == {"LR": "0.1"}
    assert "command.env.LR" in refusal(["train"], (), {"LR": "{rate}"})[0]


def test_each_own_placeholder_is_accepted() -> None:
    check_command([f"{{{name}}}" for name in OWN_PLACEHOLDERS], {}, [])


def test_a_dimension_that_is_used_nowhere_is_refused_with_the_ways_to_use_it() -> None:
    message, hint = refusal(PLAIN, ["learning_rate", "width"])
    assert "'width' is used nowhere" in message
    assert "{width}" in hint
    assert "HPSEARCH_PARAM_WIDTH" in hint
    assert "{parameters}" in hint


@pytest.mark.parametrize(
    "run",
    [
        ["bash", "-c", "train $HPSEARCH_PARAM_WIDTH"],
        ["bash", "-c", "train ${{HPSEARCH_PARAM_WIDTH}}x"],
        ["train", "--config={parameters}"],
        ["bash", "-c", "train < $HPSEARCH_PARAMETERS"],
        ["bash", "-c", "env | grep ^HPSEARCH_PARAM_ | train"],
    ],
)
def test_a_dimension_is_used_by_its_variable_or_with_all_parameters(run: list[str]) -> None:
    check_command(run, {}, ["width"])


def test_the_variable_of_a_longer_name_is_no_use_of_the_shorter_one() -> None:
    assert "'width' is used nowhere" in refusal(["sh", "-c", "$HPSEARCH_PARAM_WIDTH_2"], ["width", "width_2"])[0]


def test_a_misspelt_variable_is_refused() -> None:
    message, hint = refusal(["sh", "-c", "train $HPSEARCH_PARAM_WITDH"], ["width"])
    assert "HPSEARCH_PARAM_WITDH belongs to no dimension" in message
    assert "HPSEARCH_PARAM_WIDTH" in hint


def test_a_program_may_read_its_parameters_by_itself() -> None:
    check_command(["./train"], {}, ["width"], reads_parameters=True)


@pytest.mark.parametrize(
    ("name", "variable"),
    [
        ("learning_rate", "HPSEARCH_PARAM_LEARNING_RATE"),
        ("optimizer.lr-2", "HPSEARCH_PARAM_OPTIMIZER_LR_2"),
        ("größe", "HPSEARCH_PARAM_GR_SSE"),
    ],
)
def test_the_name_of_a_dimensions_variable(name: str, variable: str) -> None:
    assert parameter_variable(name) == variable


def test_dimensions_with_the_same_variable_are_refused() -> None:
    message, _ = refusal(["{a.b}", "{a-b}"], ["a.b", "a-b"])
    assert "'a.b' and 'a-b'" in message
    assert "HPSEARCH_PARAM_A_B" in message


@pytest.mark.parametrize("name", ["trial", "attempt", "folder", "parameters", "python"])
def test_a_dimension_cannot_take_the_name_of_an_own_placeholder(name: str) -> None:
    assert "has another meaning" in refusal([f"{{{name}}}"], [name])[0]


def test_a_dimension_may_be_the_seed() -> None:
    check_command(["train", "{seed}"], {}, ["seed"])


def test_a_dimension_whose_name_is_no_placeholder_is_refused() -> None:
    assert "cannot be a placeholder" in refusal(["{parameters}"], ["learning rate"])[0]


@pytest.mark.parametrize("run", [[], ["", "train.py"]])
def test_an_empty_command_is_refused(run: list[str]) -> None:
    assert "command.run is empty" in refusal(run)[0]


def test_a_nul_character_is_refused() -> None:
    assert "NUL" in refusal(["train", "a\0b"])[0]
    with pytest.raises(InputError, match="NUL"):
        render_command(["train", "{x}"], {"x": "a\0b"})


def test_the_longest_accepted_argument_is_the_longest_that_linux_takes() -> None:
    longest = "x" * (LARGEST_ARGUMENT_BYTES - 1)
    check_command(["true", longest], {}, [])
    assert subprocess.run([sys.executable, "-c", "", longest], check=False).returncode == 0
    with pytest.raises(OSError, match="too long"):
        subprocess.run([sys.executable, "-c", "", longest + "x"], check=False)
    assert "more than the 131,072" in refusal(["true", longest + "x"])[0]


def test_an_argument_that_its_values_make_too_long_is_refused() -> None:
    with pytest.raises(InputError, match="argument 1"):
        render_command(["true", "{x}{x}"], {"x": "x" * (LARGEST_ARGUMENT_BYTES // 2)})


@pytest.mark.parametrize("name", ["", "A=B", "A\0", "HPSEARCH_SEED", "CUDA_VISIBLE_DEVICES"])
def test_variables_that_a_study_cannot_set_are_refused(name: str) -> None:
    assert "command.env" in refusal(["train"], (), {name: "x"})[0]


def test_a_rendered_command() -> None:
    values: dict[str, Value] = {"python": "/usr/bin/python3", "learning_rate": 1e-5}
    assert render_command(PLAIN, values) == ["/usr/bin/python3", "train.py", "--lr=1e-05"]


def test_a_seed_is_used_by_its_own_variable() -> None:
    check_command(["train", "{a}"], {}, ["a", "seed"])


@pytest.mark.parametrize("text", ["--seed={seed}", "$HPSEARCH_SEED", "$HPSEARCH_PARAM_SEED", "{parameters}"])
def test_a_command_that_takes_its_seed(text: str) -> None:
    assert names_seed(["sh", text], {})
    assert names_seed(["sh"], {"A": text})


@pytest.mark.parametrize("text", ["--seed=3", "{{seed}}", "$HPSEARCH_PARAM_SEEDS"])
def test_a_command_that_does_not_name_its_seed(text: str) -> None:
    assert not names_seed(["sh", text], {})


def test_a_command_is_one_line_in_which_placeholders_stay_readable() -> None:
    assert as_line(["{python}", "a b.py", "--lr={lr}", "x;y"]) == "{python} 'a b.py' --lr={lr} 'x;y'"
