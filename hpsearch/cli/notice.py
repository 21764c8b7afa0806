"""Words for the person at the terminal that are no result: on stderr, and in JSON where the log is."""

from __future__ import annotations

import typer

from hpsearch.logs import get_logger, is_json_logging

_log = get_logger("cli")


def say(message: str) -> None:
    """Write one line to stderr, in the format of the log lines."""
    if is_json_logging():
        _log.info(message)
    else:
        typer.echo(message, err=True)
