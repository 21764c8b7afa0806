"""From bytes to lines, and from lines to reports."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpsearch.errors import InputError
from hpsearch.scripts.report_lines import (
    Ask,
    LineSplitter,
    Malformed,
    PatternMatcher,
    Report,
    check_pattern,
    parse_report_line,
    text_of_line,
)

_streams = st.lists(st.sampled_from([b"a", b"bc", b"\n", b"\r", b"\r\n", b"\xc3", b"\x0b", b"\x85"]), max_size=60).map(
    b"".join
)


def lines_of(*chunks: bytes, max_bytes: int = 100) -> list[bytes]:
    splitter = LineSplitter(max_bytes)
    return [line for chunk in chunks for line in splitter.feed(chunk)] + splitter.finish()


def matches(pattern: str, *lines: bytes) -> list[Report | Malformed | None]:
    matcher = PatternMatcher(pattern)
    return [matcher.read(line) for line in lines]


@given(_streams, st.lists(st.integers(0, 120)), st.integers(1, 5))
def test_any_chunking_gives_the_same_lines(stream: bytes, cuts: list[int], max_bytes: int) -> None:
    ends = sorted({min(cut, len(stream)) for cut in cuts} | {len(stream)})
    chunks = [stream[start:end] for start, end in zip([0, *ends], ends, strict=False)]
    assert lines_of(*chunks, max_bytes=max_bytes) == lines_of(stream, max_bytes=max_bytes)


def test_lines_end_at_all_three_line_ends() -> None:
    assert lines_of(b"a\nb\r\nc\rd") == [b"a", b"b", b"c", b"d"]


def test_a_progress_bar_is_read_while_it_is_written() -> None:
    assert LineSplitter().feed(b" 10%\r") == [b" 10%"]


def test_the_rest_of_a_long_line_is_dropped() -> None:
    assert lines_of(b"abc", b"def", b"g\nhi\n", max_bytes=4) == [b"abcd", b"hi"]


def test_a_line_without_an_end_takes_bounded_memory() -> None:
    splitter = LineSplitter(4)
    for _ in range(10):
        splitter.feed(b"x" * 1000)
    assert splitter.finish() == [b"xxxx"]


def test_bytes_that_are_not_utf_8_are_replaced() -> None:
    assert text_of_line(b"caf\xe9 \xc3\xa9") == "caf\ufffd é"


@pytest.mark.parametrize(
    "line",
    [
        b"\x1b[1;32mval=0.5\x1b[0m",
        b"\x1b]0;a title\x07val=0.5",
        b"\x1b]8;;https://example.org\x1b\\val=0.5",
        b"\x1b[?25lval\x1b[K=0.5\x1b[2A",
        b"\x1b(Bval=0.5\x1b",
        "\x9b31mval=0.5".encode(),
    ],
)
def test_terminal_escapes_are_removed(line: bytes) -> None:
    assert text_of_line(line) == "val=0.5"


def test_a_json_line_is_a_report_with_more() -> None:
    report = parse_report_line(b'{"step": 3, "value": 0.25, "train": [1, null]}')
    assert report == Report(step=3, value=0.25, more={"train": [1, None]})


@pytest.mark.parametrize("token", ["NaN", "Infinity", "-Infinity", "1e999"])
def test_a_value_that_is_not_finite_has_diverged(token: str) -> None:
    report = parse_report_line(f'{{"step": 1, "value": {token}}}'.encode())
    assert isinstance(report, Report)
    assert report.has_diverged


def test_a_script_can_ask_for_a_verdict() -> None:
    assert parse_report_line(b'{"ask": 7}') == Ask(step=7)


@pytest.mark.parametrize("step", ["0", "-1", "3.0", "true", '"3"', "null", "2147483648", "1" * 5000])
def test_a_step_is_a_whole_number_from_1(step: str) -> None:
    assert isinstance(parse_report_line(f'{{"step": {step}, "value": 1}}'.encode()), Malformed)
    assert isinstance(parse_report_line(f'{{"ask": {step}}}'.encode()), Malformed)


@pytest.mark.parametrize("value", ['"0.5"', "true", "null", "[1]", "1" + "0" * 400])
def test_a_value_is_a_number(value: str) -> None:
    assert isinstance(parse_report_line(f'{{"step": 1, "value": {value}}}'.encode()), Malformed)


@given(st.binary(max_size=200))
def test_no_line_makes_the_reader_fail(line: bytes) -> None:
    assert isinstance(parse_report_line(line), (Report, Ask, Malformed))


def test_deep_json_is_malformed_and_shown_in_part() -> None:
    entry = parse_report_line(b"[" * 60_000)
    assert isinstance(entry, Malformed)
    assert entry.text == "[" * 200


def test_matches_are_counted_without_a_step_group() -> None:
    found = matches("val_err=([0-9.eE+-]+)", b"val_err=0.5", b"nothing", b"val_err=2e-1")
    assert found == [Report(step=1, value=0.5), None, Report(step=2, value=0.2)]


def test_a_group_named_step_gives_the_step() -> None:
    assert matches(r"epoch (?P<step>\d+) err (\S+)", b"epoch 5 err 0.5") == [Report(step=5, value=0.5)]


def test_a_group_named_value_gives_the_value() -> None:
    assert matches(r"loss (\S+) err (?P<value>\S+)", b"loss 9 err nan")[0].has_diverged  # type: ignore[union-attr]


def test_a_match_without_a_number_is_malformed_and_counted() -> None:
    found = matches("err=(.*)", b"err=n/a", b"err=1")
    assert found == [Malformed(text="err=n/a"), Report(step=2, value=1.0)]


def test_a_step_of_0_in_the_output_is_malformed() -> None:
    assert matches(r"(?P<step>\d+): (\S+)", b"0: 0.5") == [Malformed(text="0: 0.5")]


def test_the_pattern_sees_no_line_over_4_kb() -> None:
    assert matches("err=(.)", b"err=1" + b" " * 4091, b"err=1" + b" " * 4092) == [Report(step=1, value=1.0), None]


@pytest.mark.parametrize("pattern", ["val=(", "val=.*", r"(?P<step>\d+)", "(" * 2000])
def test_a_pattern_that_cannot_be_used_is_refused(pattern: str) -> None:
    with pytest.raises(InputError, match="pattern"):
        check_pattern(pattern)


def test_a_group_that_took_no_part_is_no_value() -> None:
    assert matches("err(=(?P<value>.))?", b"err") == [Malformed(text="err")]


def test_more_is_kept_as_it_came() -> None:
    report = parse_report_line(b'{"step": 1, "value": 1, "gap": NaN}')
    assert isinstance(report, Report)
    assert math.isnan(report.more["gap"])
