"""What is kept of a script's output."""

from __future__ import annotations

import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpsearch.safe_text import remember_password
from hpsearch.scripts.output import OutputRecord

_SECRET = "Tr0ub4dor&3<>x"


def record_of(*chunks: bytes, kept_bytes: int = 100, secrets: set[str] | None = None) -> OutputRecord:
    record = OutputRecord(kept_bytes=kept_bytes, secrets=secrets or set())
    for chunk in chunks:
        record.append(chunk)
    return record


def test_a_short_output_is_kept_whole() -> None:
    assert record_of(b"one\n", b"two", b"\n").text() == "one\ntwo\n"


@given(st.lists(st.binary(max_size=40)), st.integers(1, 60))
def test_an_output_that_fits_is_the_same_text_in_any_chunks(chunks: list[bytes], kept_bytes: int) -> None:
    whole = b"".join(chunks)
    text = record_of(*chunks, kept_bytes=kept_bytes).text()
    assert text == record_of(whole, kept_bytes=kept_bytes).text()
    if len(whole) <= 2 * kept_bytes:
        assert text == whole.decode(errors="replace")


def test_the_first_and_the_last_lines_of_a_long_output_are_kept() -> None:
    text = record_of(*(b"line %d\n" % number for number in range(1000))).text()
    assert text.startswith("line 0\nline 1\n")
    assert text.endswith("\nline 998\nline 999\n")
    assert "bytes left out ..." in text


def test_what_is_left_out_is_counted() -> None:
    record = record_of(b"a" * 100, b"b" * 50, b"c" * 100)
    assert record.text() == f"{'a' * 100}\n... 50 bytes left out ...\n{'c' * 100}"
    assert record.num_bytes == 250


def test_incomplete_lines_beside_the_gap_are_left_out() -> None:
    text = record_of(b"whole\n", b"cut" * 100, b"\nlast\n").text()
    assert text == "whole\n... 301 bytes left out ...\nlast\n"


def test_invalid_utf_8_is_replaced() -> None:
    assert record_of(b"caf\xe9\n").text() == "caf\ufffd\n"


def test_ten_gigabytes_cost_constant_memory() -> None:
    chunk = memoryview(b"x" * 65_535)
    record = OutputRecord()
    for _ in range(20):
        record.append(chunk)
    tracemalloc.start()
    for _ in range(10_000):
        record.append(chunk)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1 << 20


def test_many_small_writes_cost_constant_memory() -> None:
    record = record_of(*[b"."] * 5000, kept_bytes=100)
    assert len(record._first) + len(record._last) <= 300


@pytest.mark.parametrize("text", ["postgresql://app:hunter2@host/d", "password=hunter2", "{'password': 'hunter2'}"])
def test_a_password_is_recognised_by_its_form(text: str) -> None:
    record = record_of(f"{'a ' * 2000}\n{text}\n".encode(), kept_bytes=10_000)
    assert "hunter2" not in record.text() + "".join(record.tail())


def test_a_password_of_this_process_is_masked() -> None:
    remember_password("Abcdefgh12345678")
    record = record_of(b"x Abcdefgh12345678 y\n")
    assert record.text() == "x *** y\n"
    assert record.tail() == ("x *** y",)


@pytest.mark.parametrize("shown", [_SECRET, "Tr0ub4dor%263%3C%3Ex", "Tr0ub4dor&amp;3&lt;&gt;x"])
def test_a_secret_is_masked_in_all_spellings(shown: str) -> None:
    record = record_of(f"key {shown}.\n".encode(), secrets={_SECRET})
    assert record.text() == "key ***.\n"
    assert record.tail() == ("key ***.",)


def test_a_secret_in_pieces_of_the_stream_is_masked() -> None:
    assert record_of(b"key Tr0ub", b"4dor&3<>x.", secrets={_SECRET}).text() == "key ***."


@pytest.mark.parametrize("offset", range(85, 101))
def test_no_half_of_a_secret_is_left_at_the_gap(offset: int) -> None:
    printed = b"a" * offset + _SECRET.encode() + b"b" * 500 + _SECRET.encode() + b"c" * offset
    text = record_of(printed, secrets={_SECRET}).text()
    assert "Tr0u" not in text
    assert "3<>x" not in text


def test_a_secret_of_several_lines_is_masked() -> None:
    secret = "-----BEGIN\nabcd\n-----END"
    record = record_of(f"{secret}\nend\n".encode(), secrets={secret})
    assert record.text() == "***\nend\n"
    assert record.tail() == ("***", "end")


def test_the_tail_is_the_last_lines_that_are_not_empty() -> None:
    record = record_of(*(b"line %d\n\n" % number for number in range(100)))
    assert record.tail(2) == ("line 98", "line 99")


def test_the_tail_shows_each_state_of_a_progress_bar() -> None:
    assert record_of(b"10%\r20%\r").tail() == ("10%", "20%")


def test_the_tail_has_nothing_that_a_terminal_would_obey() -> None:
    assert record_of(b"\x1b[31mred\x1b[0m\x00\n").tail() == ("red\\x00",)


def test_the_tail_of_a_short_output_reaches_over_both_parts() -> None:
    assert record_of(b"a" * 90 + b"\nfirst\nsecond\nthird\n").tail(3) == ("first", "second", "third")


def test_long_lines_are_shortened_in_the_tail() -> None:
    (line,) = record_of(b"x" * 5000, kept_bytes=10_000).tail()
    assert line == "x" * 497 + "..."


def test_no_lines_are_no_tail() -> None:
    assert record_of().tail() == ()
    assert record_of(b"a\n").tail(0) == ()
