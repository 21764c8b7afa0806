"""Patterns run in another process, within a time limit."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from hpsearch.scripts.pattern_process import PatternProcess, PatternTooSlow
from hpsearch.scripts.report_lines import Malformed, Report

_SLOW = r"^(a+)+$"


@pytest.fixture
def process() -> Iterator[PatternProcess]:
    with PatternProcess(seconds=0.3) as process:
        yield process


def test_reports_are_found_in_the_order_of_the_lines(process: PatternProcess) -> None:
    result = process.search("err=(.*)", b"err=0.5\nelse\nerr=?\nerr=nan\n")
    assert result.found[:2] == (Report(step=1, value=0.5), Malformed(text="err=?"))
    assert isinstance(result.found[2], Report)
    assert result.found[2].has_diverged


def test_matches_are_counted_across_blocks(process: PatternProcess) -> None:
    first = process.search("err=(.*)", b"err=3\n")
    second = process.search("err=(.*)", b"err=2\n", num_matches=first.num_matches)
    assert second.found == (Report(step=2, value=2.0),)


def test_the_process_starts_with_the_first_call_and_stays() -> None:
    with PatternProcess() as process:
        assert process.pid is None
        process.search("(.)", b"1\n")
        pid = process.pid
        process.search("(.)", b"1\n")
        assert process.pid == pid
        assert pid != os.getpid()


def test_a_slow_pattern_ends_at_the_time_limit(process: PatternProcess) -> None:
    with pytest.raises(PatternTooSlow, match=r"over 0\.3 s"):
        process.search(_SLOW, b"a" * 60 + b"!\n")


def test_after_a_slow_pattern_others_are_applied(process: PatternProcess) -> None:
    with pytest.raises(PatternTooSlow):
        process.search(_SLOW, b"a" * 60 + b"!\n")
    assert process.search("(.)", b"1\n").found == (Report(step=1, value=1.0),)


def test_a_process_that_was_killed_is_replaced(process: PatternProcess) -> None:
    process.search("(.)", b"1\n")
    assert process.pid is not None
    os.kill(process.pid, signal.SIGKILL)
    assert process.search("(.)", b"1\n").found == (Report(step=1, value=1.0),)


def test_a_process_that_does_not_answer_is_ended() -> None:
    with PatternProcess(seconds=0.05) as process:
        process.search("(.)", b"1\n")
        assert process.pid is not None
        os.kill(process.pid, signal.SIGSTOP)
        with pytest.raises(PatternTooSlow):
            process.search("(.)", b"1\n" * 500_000)  # more than the socket holds


def test_no_process_is_left_after_closing(process: PatternProcess) -> None:
    process.search("(.)", b"1\n")
    pid = process.pid
    process.close()
    assert not Path(f"/proc/{pid}").exists()


def test_the_process_ends_with_its_worker() -> None:
    program = (
        "import os, signal; from hpsearch.scripts.pattern_process import PatternProcess;"
        "process = PatternProcess(); process.search('(.)', b'1\\n'); print(process.pid, flush=True);"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    # The pipe's write end is the helper's, too, if it were to inherit one: then this would wait for ever.
    done = subprocess.run([sys.executable, "-c", program], stdout=subprocess.PIPE, check=False, timeout=30)
    pid = int(done.stdout)
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    assert select.select([descriptor], [], [], 10)[0]
    os.close(descriptor)


def test_the_process_sees_no_environment(process: PatternProcess, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PGPASSWORD", "hunter2")
    process.search("(.)", b"1\n")
    assert Path(f"/proc/{process.pid}/environ").read_bytes() == b""


def test_a_time_limit_holds_when_the_worker_blocks_signals() -> None:
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGVTALRM])
    try:
        with PatternProcess(seconds=0.2) as process:
            process.search("(.)", b"1\n")
            with pytest.raises(PatternTooSlow):
                process.search(_SLOW, b"a" * 60 + b"!\n")
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
