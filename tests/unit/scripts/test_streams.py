"""One thread drains what all scripts of a worker report and print."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpsearch.errors import InputError
from hpsearch.scripts.pattern_process import PatternProcess
from hpsearch.scripts.report_buffer import Batch, ReportBuffer, SeenSteps
from hpsearch.scripts.report_lines import Ask, Malformed, Report
from hpsearch.scripts.streams import Streams

_SECONDS = 20.0  # that a test waits at most
_FLOOD = "import os\nwhile True: os.write(1, b'x' * 79 + b'\\n' + b'y' * 999_920)"


@pytest.fixture
def streams() -> Iterator[Streams]:
    with PatternProcess(seconds=0.3) as patterns, Streams(patterns=patterns) as streams:
        yield streams


def line(step: int, value: float = 0.5, **more: object) -> bytes:
    return json.dumps({"step": step, "value": value, **more}).encode() + b"\n"


def write(path: Path, content: bytes) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_NONBLOCK)
    os.write(descriptor, content)
    os.close(descriptor)


def script(program: str, output: int, fifo: Path | None = None) -> subprocess.Popen[bytes]:
    """Start a script and close the output pipe here."""
    environment = {**os.environ, "HPSEARCH_REPORTS": str(fifo or "")}
    process = subprocess.Popen([sys.executable, "-c", program], stdout=output, stderr=output, env=environment)
    os.close(output)
    return process


def wait_for_output(streams: Streams, key: int) -> None:
    """No event tells of output without a report."""
    end = time.monotonic() + _SECONDS
    while streams._streams[key].record.num_bytes == 0:
        assert time.monotonic() < end
        time.sleep(0.01)


def collected(streams: Streams, key: int, num_reports: int = 1) -> tuple[Report, ...]:
    """Wait for so many reports."""
    reports: list[Report] = []
    while len(reports) < num_reports:
        assert streams.wait(_SECONDS), f"only {reports} have come"
        reports += streams.collect().get(key, Batch()).reports
    return tuple(reports)


def test_a_script_reports_with_the_module(streams: Streams, tmp_path: Path) -> None:
    fifo = tmp_path / "reports"
    output = streams.open(1, fifo)
    program = "import hpsearch.trial as t; t.report(1, .5, a=1); t.report(3, .25); print('done')"
    assert script(program, output, fifo).wait(_SECONDS) == 0
    record = streams.close(1)
    assert streams.collect()[1].reports == (Report(step=1, value=0.5, more={"a": 1}), Report(step=3, value=0.25))
    assert record.text() == "done\n"


def test_a_shell_script_reports_without_the_module(streams: Streams, tmp_path: Path) -> None:
    output = streams.open(1, tmp_path / "reports")
    command = f"""echo '{{"step": 1, "value": 0.5}}' > {tmp_path}/reports"""
    subprocess.run(["sh", "-c", command], stdout=output, check=True, timeout=_SECONDS)
    os.close(output)
    assert collected(streams, 1) == (Report(step=1, value=0.5),)


def test_the_fifo_is_for_this_user_only(streams: Streams, tmp_path: Path) -> None:
    os.close(streams.open(1, tmp_path / "reports"))
    mode = (tmp_path / "reports").stat().st_mode
    assert stat.S_ISFIFO(mode)
    assert stat.S_IMODE(mode) == 0o600


def test_writers_come_and_go(streams: Streams, tmp_path: Path) -> None:
    os.close(streams.open(1, tmp_path / "reports"))
    for step in (1, 2):
        write(tmp_path / "reports", line(step))
        assert collected(streams, 1) == (Report(step=step, value=0.5),)


def test_the_first_report_of_a_step_wins_over_the_whole_attempt(streams: Streams, tmp_path: Path) -> None:
    output = streams.open(1, tmp_path / "reports")
    write(tmp_path / "reports", line(1, 0.1) + line(1, 0.2))
    assert collected(streams, 1) == (Report(step=1, value=0.1),)
    write(tmp_path / "reports", line(1, 0.3) + line(2, 0.4))
    os.close(output)
    streams.close(1)
    assert streams.collect()[1].reports == (Report(step=2, value=0.4),)


def test_a_request_for_a_verdict_comes_with_the_reports_before_it(streams: Streams, tmp_path: Path) -> None:
    os.close(streams.open(1, tmp_path / "reports"))
    write(tmp_path / "reports", line(1) + line(2) + b'{"ask": 2}\n')
    streams.close(1)
    batch = streams.collect()[1]
    assert (len(batch.reports), batch.ask) == (2, 2)


def test_lines_that_are_no_reports_are_counted_and_one_is_shown(streams: Streams, tmp_path: Path) -> None:
    os.close(streams.open(1, tmp_path / "reports"))
    write(tmp_path / "reports", b"first\nsecond\n" + line(1))
    streams.close(1)
    batch = streams.collect()[1]
    assert (len(batch.reports), batch.num_malformed, batch.malformed) == (1, 2, "first")


def test_attempts_are_kept_apart(streams: Streams, tmp_path: Path) -> None:
    for key in (1, 2):
        os.close(streams.open(key, tmp_path / f"{key}"))
        write(tmp_path / f"{key}", line(key))
    for key in (1, 2):
        streams.close(key)
    steps = {key: [report.step for report in batch.reports] for key, batch in streams.collect().items()}
    assert steps == {1: [1], 2: [2]}


def test_the_end_of_the_output_is_news(streams: Streams, tmp_path: Path) -> None:
    output = streams.open(1, tmp_path / "reports")
    assert not streams.wait(0)
    os.close(output)
    assert streams.wait(_SECONDS)
    assert streams.collect()[1].is_output_ended
    assert streams.collect() == {}


def test_news_can_be_shared_with_other_sources(tmp_path: Path) -> None:
    news = threading.Event()
    with Streams(news=news) as streams:
        os.close(streams.open(1, tmp_path / "reports"))
        write(tmp_path / "reports", line(1))
        assert news.wait(_SECONDS)


def test_without_news_nothing_is_collected(streams: Streams, tmp_path: Path) -> None:
    output = streams.open(1, tmp_path / "reports")
    assert streams.collect() == {}
    os.close(output)


def test_the_last_line_needs_no_end(streams: Streams, tmp_path: Path) -> None:
    output = streams.open(1, tmp_path / "reports", pattern="err=(.)")
    write(tmp_path / "reports", line(7).rstrip())
    os.write(output, b"err=1\nerr=2")
    os.close(output)
    streams.close(1)
    assert sorted(report.step for report in streams.collect()[1].reports) == [1, 2, 7]


def test_closing_reads_what_was_written_and_removes_the_fifo(streams: Streams, tmp_path: Path) -> None:
    output = streams.open(1, tmp_path / "reports")
    os.write(output, b"x" * 60_000)
    os.close(output)
    assert streams.close(1).num_bytes == 60_000
    assert not (tmp_path / "reports").exists()


def test_closing_does_not_wait_for_a_process_that_still_prints(streams: Streams, tmp_path: Path) -> None:
    process = script(_FLOOD, streams.open(1, tmp_path / "reports"))
    wait_for_output(streams, 1)
    start = time.monotonic()
    assert streams.close(1).num_bytes > 0
    assert time.monotonic() - start < 5
    assert process.wait(_SECONDS) != 0  # its pipe is closed


def test_a_closed_attempt_leaves_no_descriptor(streams: Streams, tmp_path: Path) -> None:
    def num_open() -> int:
        return len(list(Path("/proc/self/fd").iterdir()))

    before = num_open()
    for key in range(20):
        os.close(streams.open(key, tmp_path / "reports"))
        streams.close(key)
    assert num_open() == before


def test_a_fifo_that_cannot_be_created_leaves_nothing(streams: Streams, tmp_path: Path) -> None:
    before = len(list(Path("/proc/self/fd").iterdir()))
    with pytest.raises(FileNotFoundError):
        streams.open(1, tmp_path / "missing" / "reports")
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_a_pattern_that_cannot_be_used_is_refused_before_anything_is_created(streams: Streams, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="must have a group"):
        streams.open(1, tmp_path / "reports", pattern="err=")
    assert not (tmp_path / "reports").exists()


def test_leaving_the_context_removes_all_fifos(tmp_path: Path) -> None:
    with Streams() as streams:
        output = streams.open(1, tmp_path / "reports")
    os.close(output)
    assert not (tmp_path / "reports").exists()


def test_a_folder_that_was_removed_is_no_failure(streams: Streams, tmp_path: Path) -> None:
    output = streams.open(1, tmp_path / "reports")
    (tmp_path / "reports").unlink()
    os.write(output, b"text")
    os.close(output)
    assert streams.close(1).text() == "text"


def test_the_output_pipe_blocks_for_the_script(streams: Streams, tmp_path: Path) -> None:
    output = streams.open(1, tmp_path / "reports")
    assert os.get_blocking(output)
    assert not os.get_inheritable(output)
    os.close(output)


def test_secrets_are_not_in_the_record(streams: Streams, tmp_path: Path) -> None:
    output = streams.open(1, tmp_path / "reports", secrets={"hunter2"})
    os.write(output, b"it is hunter2\n")
    os.close(output)
    assert streams.close(1).text() == "it is ***\n"


def test_a_pattern_finds_reports_in_the_output(streams: Streams, tmp_path: Path) -> None:
    output = streams.open(1, tmp_path / "reports", pattern=r"epoch (?P<step>\d+) err (\S+)")
    os.write(output, b"epoch 2 err 0.5\repoch 3 e")
    os.write(output, b"rr 0.25\n")
    reports = collected(streams, 1, 2)
    assert reports == (Report(step=2, value=0.5), Report(step=3, value=0.25))
    os.close(output)


def test_matches_are_counted_over_the_whole_output(streams: Streams, tmp_path: Path) -> None:
    output = streams.open(1, tmp_path / "reports", pattern="err=(.*)")
    for number in range(500):
        os.write(output, b"err=%d\n" % number)
    os.close(output)
    streams.close(1)
    reports = streams.collect()[1].reports
    assert reports == tuple(Report(step=number + 1, value=number) for number in range(500))


def test_no_line_of_an_output_that_is_faster_than_its_pattern_is_lost(streams: Streams, tmp_path: Path) -> None:
    output = streams.open(1, tmp_path / "reports", pattern="err=(.*)")
    program = "print('some text that does not match\\n' * 100_000 + 'err=1\\n' * 20_000, end='')"
    assert script(program, output).wait(_SECONDS) == 0
    record = streams.close(1)
    assert len(streams.collect()[1].reports) == 20_000
    assert record.num_bytes == 30 * 100_000 + 6 * 20_000


def test_a_pattern_that_is_too_slow_is_given_up_and_the_output_is_still_read(streams: Streams, tmp_path: Path) -> None:
    output = streams.open(1, tmp_path / "reports", pattern="^(a+)+$")
    os.write(output, b"a" * 60 + b"!\n")
    assert streams.wait(_SECONDS)
    assert streams.collect()[1].is_too_slow
    os.write(output, b"a" * 60 + b"!\n" + b"x" * 10_000)
    os.close(output)
    assert streams.close(1).num_bytes == 10_124
    assert not streams.collect().get(1, Batch()).is_too_slow


def test_a_slow_pattern_does_not_take_part_in_the_reports_of_others(streams: Streams, tmp_path: Path) -> None:
    slow = streams.open(1, tmp_path / "slow", pattern="^(a+)+$")
    os.close(streams.open(2, tmp_path / "other"))
    os.write(slow, b"a" * 60 + b"!\n")
    write(tmp_path / "other", line(1))
    reports: list[Report] = []
    while not reports and streams.wait(_SECONDS):  # the end of an output is news, too
        batches = streams.collect()
        assert not batches.get(1, Batch()).reports
        reports += batches.get(2, Batch()).reports
    assert reports
    os.close(slow)


def test_a_failed_thread_is_an_error_of_all_later_calls(
    streams: Streams, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(threading, "excepthook", lambda _: None)
    monkeypatch.setattr(streams, "_register", lambda _: 1 / 0)
    with pytest.raises(RuntimeError, match="has ended"):
        streams.open(1, tmp_path / "reports")
    with pytest.raises(RuntimeError, match="has failed"):
        streams.collect()
    with pytest.raises(RuntimeError, match="has ended"):
        streams.open(2, tmp_path / "reports")


def test_a_flood_of_output_does_not_delay_the_reports_of_others(streams: Streams, tmp_path: Path) -> None:
    flood = script(_FLOOD, streams.open(1, tmp_path / "flood"))
    os.close(streams.open(2, tmp_path / "other"))
    wait_for_output(streams, 1)
    delays: list[float] = []
    while len(delays) < 40 or streams._streams[1].record.num_bytes < 50_000_000:
        start = time.monotonic()
        write(tmp_path / "other", line(len(delays) + 1))
        while not streams.collect().get(2, Batch()).reports:
            assert streams.wait(_SECONDS)
        delays.append(time.monotonic() - start)
    flood.kill()
    flood.wait()
    assert sorted(delays)[len(delays) // 2] < 0.2  # the machine may be busy once


def test_a_flood_of_text_on_the_fifo_does_not_delay_the_reports_of_others(streams: Streams, tmp_path: Path) -> None:
    output = streams.open(1, tmp_path / "flood")
    flood = script("import os\nwhile True: os.write(1, b'x\\n' * 30_000)", os.open(tmp_path / "flood", os.O_WRONLY))
    os.close(output)
    os.close(streams.open(2, tmp_path / "other"))
    delays: list[float] = []
    num_malformed = 0
    while len(delays) < 10 or num_malformed < 100_000:
        start = time.monotonic()
        write(tmp_path / "other", line(len(delays) + 1))
        while 2 not in (batches := streams.collect()):
            num_malformed += batches.get(1, Batch()).num_malformed
            assert streams.wait(_SECONDS)
        delays.append(time.monotonic() - start)
    flood.kill()
    flood.wait()
    assert sorted(delays)[len(delays) // 2] < 0.5  # far less on a machine that is not busy


@given(st.lists(st.integers(1, 12)))
def test_the_seen_steps_are_a_set(steps: list[int]) -> None:
    seen, reference = SeenSteps(), set[int]()
    for step in steps:
        assert (step in seen) == (step in reference)
        if step not in seen:
            assert seen.add(step)
        reference.add(step)
    assert all((step in seen) == (step in reference) for step in range(14))


def test_consecutive_steps_take_the_memory_of_one() -> None:
    seen = SeenSteps(max_ranges=2)
    assert all(seen.add(step) for step in (2, 1, 3, 9))
    assert not seen.add(20)


def test_reports_that_nobody_takes_are_dropped_and_counted() -> None:
    buffer = ReportBuffer(max_reports=3)
    buffer.add(Report(step=step, value=0.5) for step in range(1, 6))
    batch = buffer.take()
    assert (len(batch.reports), batch.num_dropped) == (3, 2)


def test_a_dropped_report_may_come_again() -> None:
    buffer = ReportBuffer(max_reports=1)
    buffer.add([Report(step=1, value=0.5), Report(step=2, value=0.5)])
    buffer.take()
    buffer.add([Report(step=2, value=0.5)])
    assert [report.step for report in buffer.take().reports] == [2]


def test_more_is_dropped_when_too_much_waits() -> None:
    buffer = ReportBuffer()
    buffer.add([Report(step=1, value=0.5, more={"a": 1})], num_bytes=1 << 20)
    buffer.add([Report(step=2, value=0.5, more={"a": 1})], num_bytes=100)
    assert [bool(report.more) for report in buffer.take().reports] == [True, False]


def test_the_last_request_for_a_verdict_counts() -> None:
    buffer = ReportBuffer()
    buffer.add([Ask(step=3), Ask(step=2), Malformed(text="a")])
    assert buffer.take() == Batch(ask=3, num_malformed=1, malformed="a")
