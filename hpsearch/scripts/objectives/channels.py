"""The worker's ends of the connections to its objectives' processes."""

from __future__ import annotations

import contextlib
import select
import socket
from dataclasses import dataclass, field
from typing import final

from hpsearch.logs import get_logger
from hpsearch.scripts.objectives.messages import Message, MessageError, MessageReader, encode

_log = get_logger("objectives")
_READ_BYTES = 1 << 18
_SEND_SECONDS = 1.0  # a process that waits for an answer reads it at once


@dataclass(kw_only=True)
class _Channel:
    socket: socket.socket
    reader: MessageReader = field(default_factory=MessageReader)
    is_drained: bool = False  # at the last look


@final
class Channels:
    """The connections of one worker. Its methods are for one thread; none of them waits for longer than a second.

    A process that breaks the protocol loses its connection, and so fails.
    """

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._channels: dict[int, _Channel] = {}
        self._keys: dict[int, int] = {}  # by descriptor
        self._last: list[tuple[int, Message]] = []  # of finished processes, not collected yet

    def fileno(self) -> int:
        """A descriptor that is readable while `collect` has messages."""
        return self._epoll.fileno()

    def open(self, key: int) -> socket.socket:
        """Connect a process. The caller passes the returned end on, and closes it."""
        ours, theirs = socket.socketpair()
        self._channels[key] = _Channel(socket=ours)
        self._keys[ours.fileno()] = key
        self._epoll.register(ours.fileno(), select.EPOLLIN)
        return theirs

    def collect(self) -> list[tuple[int, Message]]:
        """Return (key, message) pairs of what has come, in the order of arrival for each key."""
        found, self._last = self._last, []
        for descriptor, _ in self._epoll.poll(0):
            found += self._read(self._keys[descriptor])
        return found

    def answer(self, key: int, message: Message) -> None:
        """Answer the open question of a process; does nothing if its connection is closed."""
        channel = self._channels.get(key)
        if channel is None:
            return
        try:
            line = encode(message)
        except MessageError as error:
            line = encode({"error": f"hpsearch: {error}"})
        try:
            channel.socket.settimeout(_SEND_SECONDS)
            channel.socket.sendall(line)
        except OSError:
            self._close(key)

    def finish(self, key: int) -> None:
        """Read what a process that has ended has left, for `collect`, and close its connection."""
        self._last += self._read(key)
        while key in self._channels and not self._channels[key].is_drained:
            self._last += self._read(key)
        self._close(key)

    def close(self) -> None:
        for key in list(self._channels):
            self._close(key)
        self._epoll.close()

    def _read(self, key: int) -> list[tuple[int, Message]]:
        """Return the messages of one read. Closes the connection at its end, or if it is of no use any more."""
        channel = self._channels.get(key)
        if channel is None:
            return []
        channel.is_drained = False
        try:
            data = channel.socket.recv(_READ_BYTES, socket.MSG_DONTWAIT)
            if data:
                return [(key, message) for message in channel.reader.feed(data)]
        except BlockingIOError:
            channel.is_drained = True
            return []
        except MessageError as error:
            _log.warning("the process of trial id %d broke the protocol: %s", key, error)
        except OSError:  # it has died
            pass
        self._close(key)
        return []

    def _close(self, key: int) -> None:
        channel = self._channels.pop(key, None)
        if channel is None:
            return
        del self._keys[channel.socket.fileno()]
        with contextlib.suppress(OSError):
            self._epoll.unregister(channel.socket.fileno())
        channel.socket.close()
