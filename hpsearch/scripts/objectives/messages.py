"""The protocol between the process of an objective and its worker: one JSON object per line, on a stream socket.

The process asks, and waits for the answer; only one question is open at a time:

    {"ask": "begin"}                                            -> {"number": ..., "parameters": [...], ...}
    {"ask": "suggest", "name": ..., "distribution": ...}        -> a number, as Optuna stores it
    {"ask": "best"}, {"ask": "attributes"}                      -> of the study
    answers:  {"answer": ...}  or  {"error": a message, "is_value_error": whether Optuna raises ValueError for it}

It tells, and goes on:

    {"tell": "attribute", "key": ..., "value": ...}             a user attribute of the trial
    {"tell": "returned", "value": 0.25}                         how the objective has ended: one of these four
    {"tell": "pruned"}
    {"tell": "failed", "why": "raised ValueError: ..."}
    {"tell": "cannot start", "why": "there is no module ..."}   before the objective was called

Parameters are [name, number, distribution]: the number and the JSON text that Optuna stores. Reports and pruning use
the way of all programs (hpsearch.trial).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Final

DESCRIPTOR: Final = 3  # of the process's end of the socket
LONGEST_LINE: Final = 1 << 20  # bytes, with the line end

Message = Mapping[str, Any]


class MessageError(ValueError):
    """A line is no message, or a message is too long."""


def encode(message: Message) -> bytes:
    """Return the line of a message.

    Raises:
        MessageError: it is longer than `LONGEST_LINE`.
        TypeError or ValueError: JSON cannot hold it.
    """
    line = json.dumps(message, separators=(",", ":")).encode() + b"\n"
    if len(line) > LONGEST_LINE:
        raise MessageError(f"a message of {len(line):,} bytes is longer than the limit of {LONGEST_LINE:,}")
    return line


class MessageReader:
    """Puts messages together from the pieces in which a socket delivers them."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, data: bytes) -> list[Message]:
        """Return the messages that are complete with these bytes.

        Raises:
            MessageError: a line is too long, or no JSON object.
        """
        *lines, self._rest = (self._rest + data).split(b"\n")
        if len(self._rest) > LONGEST_LINE:
            raise MessageError(f"a line is longer than the limit of {LONGEST_LINE:,} bytes")
        return [_decode(line) for line in lines]


def _decode(line: bytes) -> Message:
    try:
        message = json.loads(line)
    except (ValueError, RecursionError):
        raise MessageError(f"a line is no JSON: {line[:80]!r}") from None
    if not isinstance(message, dict):
        raise MessageError(f"a line is no JSON object: {line[:80]!r}")
    return message
