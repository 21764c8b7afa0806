"""What travels between a launcher and its first worker."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from hpsearch import environment, errors
from hpsearch.errors import HpsearchError, InputError
from hpsearch.study.definition import parse_definition
from hpsearch.worker.preparation_request import LauncherPipe, PreparationRequest, WorkerPipe

DEFINITION = parse_definition({"name": "a", "search": {"learning_rate": {"log10": [-1, -3]}}}, source="test")
KINDS = [
    kind
    for kind in vars(errors).values()
    if isinstance(kind, type) and issubclass(kind, HpsearchError) and kind.__init__ is HpsearchError.__init__
]


@pytest.fixture
def launcher() -> Iterator[LauncherPipe]:
    pipe = LauncherPipe()
    yield pipe
    pipe.close()
    pipe.close()


@pytest.fixture
def worker(launcher: LauncherPipe, monkeypatch: pytest.MonkeyPatch) -> Iterator[WorkerPipe]:
    for descriptor in launcher.inherited:
        os.set_inheritable(descriptor, True)
    monkeypatch.setenv(environment.PREPARATION_PIPE, "{},{}".format(*launcher.inherited))
    pipe = WorkerPipe.from_environment()
    assert pipe is not None
    yield pipe
    pipe.close()


def test_the_definition_arrives_and_downloads_are_shown(launcher: LauncherPipe, worker: WorkerPipe) -> None:
    received, shown = [], []

    def work() -> None:
        received.append(worker.receive())
        worker.show_download("train-images", 512, None)
        worker.show_download("train-images", 1024, 1024)
        registration: Any = type("Registration", (), {})()
        registration.is_new, registration.num_points, registration.changes = False, 6, ("one", "two")
        registration.num_added, registration.num_restored = 3, 1
        worker.answer(registration)

    thread = threading.Thread(target=work)
    thread.start()
    request = PreparationRequest(definition=DEFINITION, joins=True)
    answer = launcher.request(request, lambda *progress: shown.append(progress))
    thread.join()
    assert received == [request]
    assert shown == [("train-images", 512, None), ("train-images", 1024, 1024)]
    assert answer == {"is_new": False, "num_points": 6, "num_added": 3, "num_restored": 1, "changes": ("one", "two")}


@pytest.mark.parametrize("kind", KINDS)
def test_an_error_keeps_its_class_its_hint_and_its_exit_code(
    kind: type[HpsearchError], launcher: LauncherPipe, worker: WorkerPipe
) -> None:
    with pytest.raises(kind), worker.passing_errors():
        raise kind("two\nlines", hint="do this")
    with pytest.raises(kind) as caught:
        launcher.request(PreparationRequest(definition=DEFINITION, joins=True), None)
    assert type(caught.value) is kind
    assert (str(caught.value), caught.value.hint, caught.value.exit_code) == ("two\nlines", "do this", kind.exit_code)


def test_no_later_process_inherits_the_pipe(launcher: LauncherPipe, worker: WorkerPipe) -> None:
    assert environment.PREPARATION_PIPE not in os.environ
    assert not any(os.get_inheritable(descriptor) for descriptor in launcher.inherited)
    assert WorkerPipe.from_environment() is None


def test_a_launcher_that_closes_its_end_asks_for_nothing(launcher: LauncherPipe, worker: WorkerPipe) -> None:
    launcher.close()
    assert worker.receive() is None
    worker.show_download("train-images", 1, 2)  # nobody reads it


def test_warnings_of_the_preparation_are_shown_where_it_was_requested(
    launcher: LauncherPipe, worker: WorkerPipe, caplog: pytest.LogCaptureFixture
) -> None:
    with worker.passing_errors():
        logging.getLogger("hpsearch.data").info("nothing of interest")
        logging.getLogger("hpsearch.data").warning("%s is not verified", "train-images")
    with pytest.raises(InputError), worker.passing_errors():
        raise InputError("wrong")
    caplog.clear()
    with pytest.raises(InputError, match="wrong"):
        launcher.request(PreparationRequest(definition=DEFINITION, joins=True), None)
    assert caplog.messages == ["train-images is not verified"]


def test_half_an_answer_is_none(launcher: LauncherPipe, worker: WorkerPipe) -> None:
    os.write(launcher.inherited[1], b'{"registration": {"is_new": tr')
    worker.close()
    assert launcher.request(PreparationRequest(definition=DEFINITION, joins=True), None) is None
