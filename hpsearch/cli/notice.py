"""Words for the person at the terminal: notices on stderr (in JSON where the log is), and lines of text on stdout."""

from __future__ import annotations

import typer

from hpsearch.logs import get_logger, is_json_logging
from hpsearch.safe_text import for_terminal

_log = get_logger("cli")


def say(message: str) -> None:
    """Write one line to stderr, in the format of the log lines."""
    if is_json_logging():
        _log.info(message)
    else:
        typer.echo(for_terminal(message), err=True)


def print_line(line: str) -> None:
    """Write one line to stdout."""
    typer.echo(for_terminal(line))
