"""What a user's script imports: it reports inside hpsearch, and has no effect outside."""

from __future__ import annotations

import itertools
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hpsearch import trial

Channel = trial._Channel


@dataclass
class Worker:
    """The worker's end of the protocol."""

    fifo: Path
    verdict: Path
    descriptor: int

    def documents(self) -> list[Any]:
        received = b""
        try:
            while chunk := os.read(self.descriptor, 1 << 16):
                received += chunk
        except BlockingIOError:
            pass
        return [json.loads(line) for line in received.split(b"\n") if line]

    def fill(self) -> int:
        """Fill the FIFO. Returns the number of bytes."""
        num_bytes = 0
        try:
            while True:
                num_bytes += os.write(self.descriptor, b"\n" * 4096)
        except BlockingIOError:
            return num_bytes

    def decide(self, step: int, *, stop: bool) -> None:
        temporary = self.verdict.with_name("new")
        temporary.write_text(json.dumps({"step": step, "stop": stop}))
        temporary.replace(self.verdict)


@pytest.fixture
def channel(monkeypatch: pytest.MonkeyPatch) -> trial._Channel:
    """As if the module had just been imported."""
    fresh = Channel()
    monkeypatch.setattr(trial, "_OWN_CHANNEL", fresh)
    return fresh


@pytest.fixture
def worker(tmp_path: Path, channel: trial._Channel, monkeypatch: pytest.MonkeyPatch) -> Iterator[Worker]:
    fifo = tmp_path / "reports"
    os.mkfifo(fifo)
    worker = Worker(fifo, tmp_path / "verdict", os.open(fifo, os.O_RDWR | os.O_NONBLOCK))
    monkeypatch.setenv("HPSEARCH_REPORTS", str(fifo))
    monkeypatch.setenv("HPSEARCH_VERDICT", str(worker.verdict))
    yield worker
    os.close(worker.descriptor)


def in_forked_child(action: Callable[[], bool]) -> bool:
    pid = os.fork()
    if pid == 0:
        os._exit(0 if action() else 1)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


@contextmanager
def answering(worker: Worker, *, stop: bool) -> Iterator[None]:
    """A thread that decides at the first request for a verdict."""
    os.set_blocking(worker.descriptor, True)

    def answer() -> None:
        with os.fdopen(os.dup(worker.descriptor), "rb") as lines:
            for line in lines:
                if "ask" in (document := json.loads(line)):
                    worker.decide(document["ask"], stop=stop)
                    return

    thread = threading.Thread(target=answer)
    thread.start()
    yield
    thread.join(10)
    assert not thread.is_alive()


def test_a_report_is_one_json_line(worker: Worker) -> None:
    trial.report(3, 0.25, train=1)
    assert worker.documents() == [{"step": 3, "value": 0.25, "train": 1}]


def test_the_import_loads_nothing_else_of_hpsearch() -> None:
    program = "import sys; before = set(sys.modules); import hpsearch.trial; print(*set(sys.modules) - before)"
    loaded = subprocess.run(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, text=True, check=True, timeout=60
    ).stdout.split()
    assert {name for name in loaded if name.startswith("hpsearch")} == {"hpsearch", "hpsearch.trial"}
    assert {name.partition(".")[0] for name in loaded} - {"hpsearch"} <= sys.stdlib_module_names


def test_outside_hpsearch_nothing_has_an_effect(
    channel: trial._Channel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("REPORTS", "VERDICT", "FOLDER", "SEED", "PARAMETERS"):
        monkeypatch.setenv(f"HPSEARCH_{name}", "")
    trial.report(1, 0.5)
    trial.report("nonsense", None)  # type: ignore[arg-type]
    assert not trial.should_stop()
    assert trial.folder() == tmp_path
    assert (trial.seed(), trial.seed(7)) == (0, 7)
    assert trial.parameters() == {}
    assert capfd.readouterr() == ("", "")


def test_inside_hpsearch_a_script_gets_what_was_chosen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "parameters.json").write_text('{"width": 64}')
    monkeypatch.setenv("HPSEARCH_PARAMETERS", str(tmp_path / "parameters.json"))
    monkeypatch.setenv("HPSEARCH_FOLDER", str(tmp_path))
    monkeypatch.setenv("HPSEARCH_SEED", "12")
    assert (trial.parameters(), trial.folder(), trial.seed()) == ({"width": 64}, tmp_path, 12)


@pytest.mark.parametrize("value", [np.float32(0.5), np.array(0.5), np.array([0.5]), 1, np.int64(1)])
def test_numbers_of_numpy_are_values(worker: Worker, value: Any) -> None:
    trial.report(np.int64(2), value)
    assert worker.documents() == [{"step": 2, "value": float(np.asarray(value).item())}]


def test_a_tensor_is_a_value(worker: Worker) -> None:
    class Tensor:
        def __float__(self) -> float:
            return 0.5

    trial.report(1, Tensor())
    assert worker.documents() == [{"step": 1, "value": 0.5}]


def test_a_nan_is_sent_as_json_token(worker: Worker) -> None:
    trial.report(1, float("nan"))
    assert os.read(worker.descriptor, 100) == b'{"step": 1, "value": NaN}\n'


@pytest.mark.parametrize("step", [0, -1, 3.0, True, "3", None, np.bool_(True), 2**31])
def test_an_invalid_step_is_ignored_and_said_once(worker: Worker, step: Any, capfd: pytest.CaptureFixture[str]) -> None:
    trial.report(step, 0.5)
    trial.report(step, 0.5)
    assert worker.documents() == []
    assert capfd.readouterr().err.count("whole number >= 1") == 1


@pytest.mark.parametrize("value", ["0.5", None, True, 1j, [0.5], np.bool_(True), np.zeros(2), 10**400])
def test_an_invalid_value_is_ignored_and_said_once(
    worker: Worker, value: Any, capfd: pytest.CaptureFixture[str]
) -> None:
    trial.report(1, value)
    trial.report(2, value)
    assert worker.documents() == []
    assert capfd.readouterr().err.count("is not a number") == 1


def test_what_json_does_not_know_is_sent_as_number_or_text(worker: Worker) -> None:
    trial.report(1, 0.5, count=np.int64(3), rate=np.float64(0.5), path=Path("a/b"))
    assert worker.documents() == [{"step": 1, "value": 0.5, "count": 3, "rate": 0.5, "path": "a/b"}]


def test_more_that_cannot_be_json_is_dropped(worker: Worker, capfd: pytest.CaptureFixture[str]) -> None:
    circle: list[Any] = []
    circle.append(circle)
    trial.report(1, 0.5, circle=circle)
    assert worker.documents() == [{"step": 1, "value": 0.5}]
    assert "dropped" in capfd.readouterr().err


def test_more_of_over_64_kb_is_dropped(worker: Worker, capfd: pytest.CaptureFixture[str]) -> None:
    trial.report(1, 0.5, text="x" * 70_000)
    assert worker.documents() == [{"step": 1, "value": 0.5}]
    assert "64 KB" in capfd.readouterr().err


def test_a_line_that_is_longer_than_the_room_in_the_fifo_arrives(worker: Worker) -> None:
    os.write(worker.descriptor, b"\n" * 32_000)
    received: list[Any] = []
    os.set_blocking(worker.descriptor, True)

    def read_line() -> None:
        with os.fdopen(os.dup(worker.descriptor), "rb") as lines:
            received.append(json.loads(next(line for line in lines if line != b"\n")))

    thread = threading.Thread(target=read_line)
    thread.start()
    trial.report(1, 0.5, text="x" * 60_000)
    thread.join(10)
    assert received == [{"step": 1, "value": 0.5, "text": "x" * 60_000}]


def test_a_full_fifo_is_given_up_and_said_once(
    worker: Worker, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(trial, "_SEND_SECONDS", 0.02)
    worker.fill()
    trial.report(1, 0.5)
    trial.report(2, 0.5)
    assert capfd.readouterr().err.count("nobody has read reports") == 1


def test_reports_are_not_waited_for_again_until_one_could_be_sent(
    worker: Worker, channel: trial._Channel, monkeypatch: pytest.MonkeyPatch
) -> None:
    patience: list[float] = []
    repeat = trial._repeat

    def watched(is_done: Callable[[], bool], *, seconds: float) -> bool:
        patience.append(seconds)
        return repeat(is_done, seconds=min(seconds, 0.01))

    monkeypatch.setattr(trial, "_repeat", watched)
    worker.fill()
    trial.report(1, 0.5)
    trial.report(2, 0.5)
    worker.documents()
    trial.report(3, 0.5)
    trial.report(4, 0.5)
    assert patience == [5.0, 0.0, 0.0, 5.0]
    assert [document["step"] for document in worker.documents()] == [3, 4]


def test_a_line_that_was_cut_does_not_spoil_the_next(worker: Worker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trial, "_SEND_SECONDS", 0.02)
    worker.fill()
    os.read(worker.descriptor, 8192)  # room for a part
    trial.report(1, 0.5, text="x" * 20_000)
    received = os.read(worker.descriptor, 1 << 20)
    trial.report(2, 0.5)
    received += os.read(worker.descriptor, 1 << 20)
    cut, following = received.lstrip(b"\n").splitlines()
    assert cut.startswith(b'{"step": 1')
    assert json.loads(following) == {"step": 2, "value": 0.5}


def test_without_a_reader_the_script_goes_on(
    tmp_path: Path, channel: trial._Channel, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    os.mkfifo(tmp_path / "reports")
    monkeypatch.setenv("HPSEARCH_REPORTS", str(tmp_path / "reports"))
    monkeypatch.setenv("HPSEARCH_VERDICT", str(tmp_path / "verdict"))
    trial.report(1, 0.5)
    trial.report(2, 0.5)
    assert not trial.should_stop()
    assert capfd.readouterr().err.count("cannot report") == 1


def test_a_closed_standard_error_does_no_harm(worker: Worker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", None)
    trial.report(0, 0.5)
    trial.report(1, "x")  # type: ignore[arg-type]
    trial.report(1, 0.5)
    assert len(worker.documents()) == 1


def test_a_forked_child_does_not_report(worker: Worker) -> None:
    def report_in_child() -> bool:
        trial.report(2, 0.5)
        return trial.should_stop() is False

    trial.report(1, 0.5)
    assert in_forked_child(report_in_child)
    assert [document["step"] for document in worker.documents()] == [1]


def test_a_forked_child_does_not_wait_for_a_lock_of_its_parent(worker: Worker, channel: trial._Channel) -> None:
    with channel._lock:
        assert in_forked_child(lambda: trial.report(1, 0.5) is None)


def test_another_process_that_imports_the_module_reports(worker: Worker) -> None:
    program = "import hpsearch.trial; hpsearch.trial.report(5, 0.5)"
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)
    assert worker.documents() == [{"step": 5, "value": 0.5}]


def test_a_signal_handler_may_report_during_a_report(
    worker: Worker, channel: trial._Channel, monkeypatch: pytest.MonkeyPatch
) -> None:
    previous = signal.signal(signal.SIGUSR1, lambda *_: trial.report(2, 0.5))
    try:
        with channel._lock:
            signal.raise_signal(signal.SIGUSR1)
    finally:
        signal.signal(signal.SIGUSR1, previous)
    assert [document["step"] for document in worker.documents()] == [2]


@pytest.mark.parametrize("stop", [False, True])
def test_should_stop_waits_for_the_verdict_on_the_last_report(worker: Worker, stop: bool) -> None:
    worker.decide(2, stop=False)
    trial.report(3, 0.5)
    with answering(worker, stop=stop):
        assert trial.should_stop() is stop


@pytest.mark.parametrize("stop", [False, True])
def test_before_the_first_report_the_verdict_is_taken_as_it_is(worker: Worker, stop: bool) -> None:
    assert not trial.should_stop()
    worker.decide(1, stop=stop)
    assert trial.should_stop() is stop
    assert worker.documents() == []


def test_without_a_verdict_the_script_goes_on(
    worker: Worker, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(trial, "_VERDICT_SECONDS", 0.02)
    trial.report(1, 0.5)
    assert not trial.should_stop()
    assert worker.documents() == [{"step": 1, "value": 0.5}, {"ask": 1}]
    assert "no verdict" in capfd.readouterr().err


@pytest.mark.parametrize("content", ["", "{", "[]", '{"step": null, "stop": true}'])
def test_a_spoilt_verdict_is_none(worker: Worker, content: str) -> None:
    worker.verdict.write_text(content)
    assert not trial.should_stop()


def test_a_trial_that_was_stopped_does_not_wait_again(worker: Worker) -> None:
    worker.decide(1, stop=True)
    trial.report(5, 0.5)
    assert trial.should_stop()


class Tensor:
    def tolist(self) -> list[bool]:
        return [True, False]


@pytest.mark.parametrize(
    "correct", [[1, 0], [True, False], (1.0, 0.0), np.array([True, False]), np.array([1, 0]), Tensor(), "results.txt"]
)
def test_results_of_single_examples_are_written_for_the_worker(worker: Worker, tmp_path: Path, correct: Any) -> None:
    if isinstance(correct, str):
        correct = tmp_path / correct
        correct.write_text("10")
    trial.report(3, 0.5, correct=correct)
    if isinstance(correct, Path):
        correct.write_text("its next epoch")
    (document,) = worker.documents()
    assert Path(document["correct"]).read_text() == "10"
    assert Path(document["correct"]).parent == worker.fifo.parent


def test_a_fifo_of_results_does_not_block(worker: Worker, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    os.mkfifo(tmp_path / "results")
    trial.report(2, 0.5, correct=tmp_path / "results")
    assert "is no regular file" in capfd.readouterr().err
    (document,) = worker.documents()
    assert (document["step"], document["value"]) == (2, 0.5)


@pytest.mark.parametrize(
    "correct",
    [
        12,
        [1, 2],
        [[1, 0]],
        "no-such-file",
        ["yes"],
        np.zeros((2, 2)),
        np.zeros(1_000_001),
        itertools.repeat(1),
        "/dev/zero",
    ],
)
def test_wrong_results_of_single_examples_are_said_once_and_leave_the_report(
    worker: Worker, capfd: pytest.CaptureFixture[str], correct: Any
) -> None:
    trial.report(2, 0.5, correct=correct)
    trial.report(3, 0.25, correct=correct)
    assert capfd.readouterr().err.count("the results of single examples of step 2 are left out") == 1
    documents = worker.documents()
    assert [(document["step"], document["value"]) for document in documents] == [(2, 0.5), (3, 0.25)]
    assert all(set(document["correct"]) == {"error"} for document in documents), "the worker tells it, too"
