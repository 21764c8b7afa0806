"""The two ends of an objective's connection: messages arrive whole, in order, and only in the process that asks."""

from __future__ import annotations

import os
import select
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from hpsearch.scripts.objectives.channels import Channels
from hpsearch.scripts.objectives.connection import WorkerConnection, WorkerGoneError
from hpsearch.scripts.objectives.messages import LONGEST_LINE, Message, MessageError, MessageReader, encode


@pytest.fixture
def channels() -> Iterator[Channels]:
    channels = Channels()
    yield channels
    channels.close()


def connected(channels: Channels, key: int = 1) -> WorkerConnection:
    """The process's end, in this process."""
    return WorkerConnection(channels.open(key).detach())


def served(channels: Channels, answer: Callable[[Message], Message]) -> threading.Thread:
    """Answers one question in a thread."""

    def serve() -> None:
        while not (found := channels.collect()):
            pass
        for key, message in found:
            channels.answer(key, answer(message))

    thread = threading.Thread(target=serve)
    thread.start()
    return thread


def test_messages_are_put_together_from_any_pieces() -> None:
    lines = encode({"ask": "begin"}) + encode({"tell": "attribute", "key": "ü", "value": [1, None]})
    reader = MessageReader()
    found = [message for i in range(len(lines)) for message in reader.feed(lines[i : i + 1])]
    assert found == [{"ask": "begin"}, {"tell": "attribute", "key": "ü", "value": [1, None]}]


@pytest.mark.parametrize("data", [b"no json\n", b"[1]\n", b"\xff\n", b"[" * 100_000 + b"\n", b"x" * (LONGEST_LINE + 1)])
def test_what_is_no_message_is_refused(data: bytes) -> None:
    with pytest.raises(MessageError):
        MessageReader().feed(data)


def test_a_message_that_is_too_long_is_refused_where_it_is_sent() -> None:
    with pytest.raises(MessageError, match="longer than the limit"):
        encode({"tell": "attribute", "key": "a", "value": "x" * LONGEST_LINE})


def test_a_question_gets_its_answer(channels: Channels) -> None:
    connection = connected(channels)
    thread = served(channels, lambda message: {"answer": [message["ask"], message["name"]]})
    assert connection.ask("suggest", name="x") == ["suggest", "x"]
    thread.join()


@pytest.mark.parametrize(("is_value_error", "kind"), [(True, ValueError), (False, RuntimeError)])
def test_a_refusal_is_raised(channels: Channels, is_value_error: bool, kind: type[Exception]) -> None:
    connection = connected(channels)
    thread = served(channels, lambda _: {"error": "no", "is_value_error": is_value_error})
    with pytest.raises(kind, match="no"):
        connection.ask("suggest")
    thread.join()


def test_messages_of_several_processes_keep_their_keys_and_their_order(channels: Channels) -> None:
    connections = {key: connected(channels, key) for key in (1, 2, 3)}
    for number in range(5):
        for connection in connections.values():
            connection.tell("attribute", key=str(number), value=0)
    found = channels.collect()
    for key in connections:
        assert [message["key"] for its, message in found if its == key] == list("01234")


def test_what_a_process_told_before_its_end_is_collected_after_it(channels: Channels) -> None:
    with channels.open(1) as ours:
        ours.sendall(b"".join(encode({"tell": "attribute", "key": str(n), "value": "x" * 18_000}) for n in range(8)))
    channels.finish(1)
    assert [message["key"] for _, message in channels.collect()] == [str(n) for n in range(8)]
    assert channels.collect() == []


def test_a_process_that_breaks_the_protocol_loses_its_connection(channels: Channels) -> None:
    with channels.open(1) as ours:
        ours.sendall(b"nonsense\n")
        assert channels.collect() == []
        assert ours.recv(1) == b""
    channels.answer(1, {"answer": 0})  # nobody is there
    channels.finish(1)


def test_a_process_that_does_not_read_holds_nobody_up_for_long(
    channels: Channels, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hpsearch.scripts.objectives.channels._SEND_SECONDS", 0.01)
    with channels.open(1):
        for _ in range(20):
            channels.answer(1, {"answer": "x" * 100_000})
        assert 1 not in channels._channels


def test_an_answer_that_is_too_long_becomes_an_error(channels: Channels) -> None:
    connection = connected(channels)
    thread = served(channels, lambda _: {"answer": "x" * LONGEST_LINE})
    with pytest.raises(RuntimeError, match="longer than the limit"):
        connection.ask("attributes")
    thread.join()


def test_a_worker_that_has_gone_is_an_error(channels: Channels) -> None:
    connection = connected(channels)
    channels.finish(1)
    with pytest.raises(WorkerGoneError):
        connection.ask("begin")


def test_programs_that_the_process_starts_do_not_inherit_the_connection(channels: Channels) -> None:
    theirs = channels.open(1)
    descriptor = theirs.detach()
    os.set_inheritable(descriptor, True)  # as the keeper passes it
    connection = WorkerConnection(descriptor)
    assert not os.get_inheritable(descriptor)
    assert connection._socket is not None


def test_a_forked_process_has_no_connection(channels: Channels) -> None:
    connection = connected(channels)
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            connection.ask("begin")
        except WorkerGoneError as error:
            os.write(writer, str(error).encode())
        finally:
            os._exit(0)
    os.waitpid(pid, 0)
    assert b"a forked process has no trial" in os.read(reader, 1000)
    os.close(reader)
    os.close(writer)
    connection.tell("pruned")  # that of this process is open still
    assert channels.collect() == [(1, {"tell": "pruned"})]


def test_threads_may_ask_at_the_same_time(channels: Channels) -> None:
    connection = connected(channels)
    answers: dict[int, Any] = {}

    def ask(number: int) -> None:
        answers[number] = connection.ask("suggest", name=number)

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    while len(answers) < 8:
        for key, message in channels.collect():
            channels.answer(key, {"answer": 2 * message["name"]})
    for thread in threads:
        thread.join()
    assert answers == {number: 2 * number for number in range(8)}


def test_the_descriptor_of_all_connections_tells_that_there_is_something(channels: Channels) -> None:
    connection = connected(channels)
    assert select.select([channels], [], [], 0)[0] == []
    connection.tell("pruned")
    assert select.select([channels], [], [], 1)[0] == [channels]
    channels.collect()
    assert select.select([channels], [], [], 0)[0] == []
    assert isinstance(connection._socket, socket.socket)
    connection._socket.close()
    channels.collect()
    assert select.select([channels], [], [], 0)[0] == []  # a closed connection is no news for ever


def test_the_process_loads_nothing_large_before_it_has_found_the_function() -> None:
    code = "import sys, hpsearch.scripts.objectives.process; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"optuna", "numpy", "torch", "pydantic", "sqlalchemy", "psycopg2", "hpsearch.store"} & set(loaded)
