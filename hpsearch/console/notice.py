"""Notices on stderr (in JSON if the log is JSON), and lines of text on stdout."""

from __future__ import annotations

import contextlib

from hpsearch.console.screen import stderr, write_line
from hpsearch.errors import OutputError, ReaderGoneError
from hpsearch.logs import get_logger, is_json_logging
from hpsearch.safe_text import for_terminal

_log = get_logger("cli")


def say(message: str) -> None:
    """Write one line to stderr, in the format of the log lines."""
    if is_json_logging():
        _log.info(message)
    else:
        print(for_terminal(message), file=stderr(), flush=True)


def print_line(line: str) -> None:
    """Write one line to stdout."""
    write_line(for_terminal(line))


def show_line(line: str) -> None:
    """Write one informational line to stdout. It is not a result, so a failure to write it is not an error."""
    with contextlib.suppress(OutputError, ReaderGoneError):
        print_line(line)
