"""The messages between the worker, the keeper and the guardians, and the limits of their size."""

from __future__ import annotations

import enum
import marshal
from typing import Any

MESSAGE_BYTES = 65_536  # no message is longer; a start request keeps its long part in a memory file
MAX_DESCRIPTORS = 3  # of one start request: the memory file, the output, the extra one


class Message(enum.Enum):
    """What a message is about; its other values follow in this order."""

    START = 1  # key, grace seconds, number of descriptors, which come with it
    END = 2  # key, grace seconds; None: those of the start request
    STARTED = 3  # key, pid
    NOT_STARTED = 4  # key, errno, text
    ENDED = 5  # key, exit code or None, signal or None
    CUT_OFF = 6  # key: the keeper itself ends


def encode(message: Message, *values: Any) -> bytes:
    """One message. marshal has no import cost, and both ends run the same interpreter."""
    return marshal.dumps((message.value, *values))


def decode(data: bytes) -> tuple[Message, tuple[Any, ...]]:
    number, *values = marshal.loads(data)
    return Message(number), tuple(values)
