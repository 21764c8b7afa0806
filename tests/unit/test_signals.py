"""How a worker is asked to stop: once for an orderly end, twice for an end at once."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from hpsearch import signals
from hpsearch.signals import StopSignal, WorkerStopped

# Signalled before each instruction of a wait in turn; prints how many there were.
WAITER = """
import signal, sys, threading
from hpsearch import signals
from hpsearch.signals import StopSignal

def signal_at(place):
    stop, seen = StopSignal().install(), 0
    def trace(frame, kind, argument):
        nonlocal seen
        if frame.f_code.co_filename not in (signals.__file__, threading.__file__):
            return None
        if frame.f_code.co_name.startswith("_handle"):
            return None
        frame.f_trace_opcodes = True
        if kind == "opcode":
            seen += 1
            if seen == place:
                signal.raise_signal(signal.SIGTERM)
        return trace
    sys.settrace(trace)
    stop.wait(0.001)
    sys.settrace(None)
    assert stop.is_set() == (place > 0), place
    return seen

places = signal_at(0)
for place in range(1, places + 1):
    signal_at(place)
print(places)
"""
# Trains for ever; when stopped, says so and cleans up for ever.
WORKER = """
import signal, sys
from hpsearch import signals
from hpsearch.signals import StopSignal, WorkerStopped
signals.EPOCH_GRACE_SECONDS = 0.2
stop = StopSignal().install()
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGALRM])  # however slow this machine: "goes on" comes first
try:
    with stop.interruptible(EXPECTED):
        print("ready", flush=True)
        while not stop.is_set():
            signal.sigtimedwait([], 0.01)
        print("goes on", flush=True)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGALRM])
        while True:
            signal.sigtimedwait([], 0.01)  # pause() would miss a signal that comes just before it
except WorkerStopped:
    print("stopped", stop.is_set(), flush=True)
sys.stdin.readline()
print("clean", flush=True)
"""


@contextmanager
def worker(expected_seconds: float | None = None) -> Iterator[subprocess.Popen[str]]:
    program = WORKER.replace("EXPECTED", repr(expected_seconds))
    process = subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert line_of(process) == "ready"
        yield process
    finally:
        process.kill()
        process.communicate(timeout=240)


def line_of(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("expected_seconds", [None, 3600.0])
def test_first_signal_ends_a_long_epoch_at_once_and_lets_the_worker_clean_up(
    number: signal.Signals, expected_seconds: float | None
) -> None:
    with worker(expected_seconds) as process:
        process.send_signal(number)
        assert line_of(process) == "stopped True"
        output, _ = process.communicate("\n", timeout=240)
        assert (output, process.returncode) == ("clean\n", 0)


@pytest.mark.parametrize("second", [signal.SIGTERM, signal.SIGINT])
def test_second_signal_ends_the_process_at_once(second: signal.Signals) -> None:
    with worker() as process:
        process.send_signal(signal.SIGTERM)
        assert line_of(process) == "stopped True"
        process.send_signal(second)
        assert process.wait(timeout=240) == 128 + second
        assert line_of(process) == ""


def test_an_epoch_that_should_be_over_soon_goes_on_for_the_grace_and_is_ended_then() -> None:
    with worker(0.0) as process:
        process.send_signal(signal.SIGTERM)
        assert line_of(process) == "goes on"
        assert line_of(process) == "stopped True"
        output, _ = process.communicate("\n", timeout=240)
        assert (output, process.returncode) == ("clean\n", 0)


def test_the_first_signal_after_another_request_to_stop_lets_the_worker_clean_up(
    stop: StopSignal, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has seen its parent's death, say, a moment before the kernel's signal for that death arrives."""
    ended: list[int] = []
    monkeypatch.setattr(signals.os, "_exit", ended.append)
    stop.set()
    signal.raise_signal(signal.SIGTERM)
    assert ended == []
    signal.raise_signal(signal.SIGTERM)
    assert ended == [128 + signal.SIGTERM]


@pytest.mark.parametrize("first", [signal.SIGHUP, signal.SIGTERM])
def test_a_hang_up_asks_to_stop_and_is_no_second_request(
    stop: StopSignal, monkeypatch: pytest.MonkeyPatch, first: signal.Signals
) -> None:
    """A terminal that is closed sends it once or twice."""
    monkeypatch.setattr(signals.os, "_exit", lambda code: pytest.fail("it ended at once"))
    signal.raise_signal(first)
    signal.raise_signal(signal.SIGHUP)
    assert stop.is_set()


def test_what_nohup_ignores_stays_ignored(stop: StopSignal) -> None:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    assert not stop.install().is_set()
    signals.on_end(signal.default_int_handler)
    signal.raise_signal(signal.SIGHUP)
    assert not stop.is_set()


@pytest.fixture
def stop() -> Iterator[StopSignal]:
    """Installed in this process; the handlers that were there come back afterwards."""
    handled = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGALRM)
    before = {number: signal.getsignal(number) for number in handled}
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # the tests may run under nohup
    yield StopSignal().install()
    for number, handler in before.items():
        signal.signal(number, handler)


def test_signal_outside_of_an_epoch_cuts_nothing_but_the_next_epoch_does_not_begin(stop: StopSignal) -> None:
    signal.raise_signal(signal.SIGTERM)  # in the middle of database work, say: no exception
    assert stop.is_set()
    with pytest.raises(WorkerStopped), stop.interruptible():
        pytest.fail("an epoch began")


def test_the_end_of_the_grace_cuts_nothing_after_the_epoch(stop: StopSignal) -> None:
    with stop.interruptible(0.0):
        signal.raise_signal(signal.SIGTERM)
    signal.raise_signal(signal.SIGALRM)
    assert stop.is_set()


def test_no_alarm_is_left_after_the_epoch(stop: StopSignal) -> None:
    """It would ring while the process ends, when Python's handlers are gone, and kill it."""
    with stop.interruptible(0.0):
        signal.raise_signal(signal.SIGTERM)
        assert signal.getitimer(signal.ITIMER_REAL)[0] > 0
    assert signal.getitimer(signal.ITIMER_REAL)[0] == 0


def test_signal_after_an_epoch_cuts_nothing(stop: StopSignal) -> None:
    with stop.interruptible():
        pass
    signal.raise_signal(signal.SIGINT)
    assert stop.is_set()


def test_error_inside_an_epoch_ends_the_interruptible_part(stop: StopSignal) -> None:
    with pytest.raises(ZeroDivisionError), stop.interruptible():
        raise ZeroDivisionError
    signal.raise_signal(signal.SIGTERM)
    assert stop.is_set()


def test_a_signal_ends_a_wait_at_whatever_instruction_it_comes() -> None:
    """threading.Event would wait for ever for a lock that the interrupted thread holds."""
    run = subprocess.run([sys.executable, "-c", WAITER], capture_output=True, text=True, timeout=240, check=False)
    assert run.returncode == 0, run.stderr
    assert int(run.stdout) > 20


def test_all_who_wait_are_told() -> None:
    stop = StopSignal()
    told: list[bool] = []
    waiters = [threading.Thread(target=lambda: told.append(stop.event.wait(240))) for _ in range(5)]
    for waiter in waiters:
        waiter.start()
    stop.set()
    for waiter in waiters:
        waiter.join(240)
    assert told == [True] * 5
    assert stop.event.wait()


def test_a_request_to_stop_is_not_taken_back() -> None:
    with pytest.raises(NotImplementedError):
        StopSignal().event.clear()


def test_waiting_ends_when_somebody_asks_to_stop() -> None:
    stop = StopSignal()
    assert not stop.wait(0)
    threading.Timer(0.01, stop.set).start()
    assert stop.wait(240)
    assert stop.is_set()


def test_worker_stops_when_its_supervisor_is_gone() -> None:
    assert not StopSignal(parent_pid=os.getppid()).is_set()
    orphan = StopSignal(parent_pid=2**22 + 1)  # larger than any process id
    assert orphan.is_set()
    assert orphan.wait(0)
    with pytest.raises(WorkerStopped), orphan.interruptible():
        pytest.fail("an epoch began")


def test_worker_without_a_supervisor_does_not_mind_its_parent() -> None:
    assert not StopSignal().is_set()
