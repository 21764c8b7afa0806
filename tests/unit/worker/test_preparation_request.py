"""What travels between a launcher and its first worker."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Iterator
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from typing import Any

import pytest

from hpsearch import environment, errors
from hpsearch.errors import HpsearchError, InputError
from hpsearch.store.registration import Registration
from hpsearch.store.studies import StoredStudy
from hpsearch.study.study_file import parse_definition
from hpsearch.worker.preparation_request import (
    PreparationRequest,
    inherited_pipe,
    passing_errors,
    receive,
    request_preparation,
    send,
)

DEFINITION = parse_definition({"name": "a", "search": {"learning_rate": {"log10": [-1, -3]}}}, source="test")
KINDS = [
    kind
    for kind in vars(errors).values()
    if isinstance(kind, type) and issubclass(kind, HpsearchError) and kind.__init__ is HpsearchError.__init__
]


REQUEST = PreparationRequest(definition=DEFINITION, joins=True)


@pytest.fixture
def pipe() -> Iterator[tuple[Connection, Connection]]:
    """The ends of the launcher and of the worker."""
    launchers, workers = Pipe()
    with launchers, workers:
        yield launchers, workers


@pytest.fixture
def launchers(pipe: tuple[Connection, Connection]) -> Connection:
    return pipe[0]


@pytest.fixture
def workers(pipe: tuple[Connection, Connection]) -> Connection:
    return pipe[1]


def test_the_definition_and_the_registration_arrive_and_downloads_are_shown(
    launchers: Connection, workers: Connection
) -> None:
    received, shown = [], []
    study = StoredStudy(study_id=1, definition=DEFINITION, dataset_checksums={"images": "ab"}, versions={"numpy": "2"})
    registration = Registration(study=study, is_new=False, num_points=6, num_added=3, changes=("one", "two"))

    def work() -> None:
        received.append(receive(workers))
        send(workers, ("train-images", 512, None))
        send(workers, ("train-images", 1024, 1024))
        send(workers, registration)

    thread = threading.Thread(target=work)
    thread.start()
    answer = request_preparation(launchers, REQUEST, lambda *progress: shown.append(progress))
    thread.join()
    assert received == [REQUEST]
    assert shown == [("train-images", 512, None), ("train-images", 1024, 1024)]
    assert answer == registration


@pytest.mark.parametrize("kind", KINDS)
def test_an_error_keeps_its_class_its_hint_and_its_exit_code(
    kind: type[HpsearchError], launchers: Connection, workers: Connection
) -> None:
    with pytest.raises(kind), passing_errors(workers):
        raise kind("two\nlines", hint="do this") from OSError("not sent")
    with pytest.raises(kind) as caught:
        request_preparation(launchers, REQUEST, None)
    assert type(caught.value) is kind
    assert (str(caught.value), caught.value.hint, caught.value.exit_code) == ("two\nlines", "do this", kind.exit_code)
    assert caught.value.__notes__ == ["hint: do this"]


def test_no_later_process_inherits_the_pipe(workers: Connection, monkeypatch: pytest.MonkeyPatch) -> None:
    descriptor = os.dup(workers.fileno())
    os.set_inheritable(descriptor, True)
    monkeypatch.setenv(environment.PREPARATION_PIPE, str(descriptor))
    inherited: Any = inherited_pipe()
    with inherited:
        assert environment.PREPARATION_PIPE not in os.environ
        assert inherited.fileno() == descriptor
        assert not os.get_inheritable(descriptor)
        assert inherited_pipe() is None


def test_a_launcher_that_closes_its_end_asks_for_nothing(launchers: Connection, workers: Connection) -> None:
    launchers.close()
    assert receive(workers) is None
    send(workers, ("train-images", 1, 2))  # nobody reads it


def test_warnings_of_the_preparation_are_shown_where_it_was_requested(
    launchers: Connection, workers: Connection, caplog: pytest.LogCaptureFixture
) -> None:
    with passing_errors(workers):
        logging.getLogger("hpsearch.data").info("nothing of interest")
        logging.getLogger("hpsearch.data").warning("%s is not verified", "train-images")
    with pytest.raises(InputError), passing_errors(workers):
        raise InputError("wrong")
    caplog.clear()
    with pytest.raises(InputError, match="wrong"):
        request_preparation(launchers, REQUEST, None)
    assert caplog.messages == ["train-images is not verified"]


def test_half_an_answer_is_none(launchers: Connection, workers: Connection) -> None:
    os.write(workers.fileno(), b"\0\0\0\x20half")
    workers.close()
    assert request_preparation(launchers, REQUEST, None) is None
