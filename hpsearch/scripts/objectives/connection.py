"""The connection of an objective's process to its worker. Standard library only."""

from __future__ import annotations

import os
import socket
import threading
from collections import deque
from typing import Any

from hpsearch.scripts.objectives.messages import DESCRIPTOR, Message, MessageError, MessageReader, encode

_READ_BYTES = 1 << 16


class WorkerGoneError(RuntimeError):
    """The worker has closed the connection, or this process has none."""


class WorkerConnection:
    """Asks the worker, and tells it things. Safe for any number of threads.

    Programs that this process starts do not inherit the connection, and processes that it forks close it.

    Args:
        descriptor: of a connected stream socket, which this object takes over.
    """

    def __init__(self, descriptor: int = DESCRIPTOR) -> None:
        os.set_inheritable(descriptor, False)
        self._socket: socket.socket | None = socket.socket(fileno=descriptor)
        self._socket.setblocking(True)
        self._lock = threading.Lock()
        self._reader = MessageReader()
        self._answers: deque[Message] = deque()
        os.register_at_fork(after_in_child=self._leave)

    def ask(self, what: str, **values: Any) -> Any:
        """Send a question and wait for its answer.

        Raises:
            ValueError: what Optuna would refuse in the same words.
            RuntimeError: the worker could not answer.
            WorkerGoneError: the worker has closed the connection, or this is a forked process.
        """
        line = encode({"ask": what, **values})
        with self._lock:
            self._send(line)
            answer = self._receive()
        if "error" in answer:
            raise (ValueError if answer.get("is_value_error") else RuntimeError)(answer["error"])
        return answer["answer"]

    def tell(self, what: str, **values: Any) -> None:
        """Send something that has no answer. Raises WorkerGoneError."""
        line = encode({"tell": what, **values})
        with self._lock:
            self._send(line)

    def _send(self, line: bytes) -> None:
        try:
            self._open_socket().sendall(line)
        except OSError as error:
            raise WorkerGoneError(f"hpsearch: the worker has gone: {error.strerror}") from None

    def _receive(self) -> Message:
        connected = self._open_socket()
        while not self._answers:
            try:
                data = connected.recv(_READ_BYTES)
                self._answers.extend(self._reader.feed(data))
            except (OSError, MessageError) as error:
                raise WorkerGoneError(f"hpsearch: no answer from the worker: {error}") from None
            if not data:
                raise WorkerGoneError("hpsearch: the worker has gone")
        return self._answers.popleft()

    def _open_socket(self) -> socket.socket:
        if self._socket is None:
            raise WorkerGoneError("hpsearch: a forked process has no trial; use it in the process of the objective")
        return self._socket

    def _leave(self) -> None:
        """In a forked process: another thread may have held the lock at the fork."""
        if self._socket is not None:
            self._socket.close()
        self._socket = None
        self._lock = threading.Lock()
