"""Logging: everything that is not a result goes to stderr, one line per event, never a password."""

from __future__ import annotations

import logging
import os
import sys
from typing import TextIO

import optuna

from hpsearch.errors import InputError

LOGGER_NAME = "hpsearch"
_LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL")


class _StderrHandler(logging.StreamHandler[TextIO]):
    """Writes to whatever sys.stderr is at the moment: a live progress display puts itself there to keep whole."""

    def __init__(self) -> None:
        logging.Handler.__init__(self)

    @property
    def stream(self) -> TextIO:  # type: ignore[override]  # an attribute in the base class
        return sys.stderr


def get_logger(room: str) -> logging.Logger:
    """The logger of one module, below the package's own."""
    return logging.getLogger(f"{LOGGER_NAME}.{room}")


def configure_logging(*, verbose: bool = False) -> None:
    """Send the package's log lines to stderr; HPSEARCH_LOG_LEVEL names another level. Safe to call twice."""
    logger = logging.getLogger(LOGGER_NAME)
    level = os.environ.get("HPSEARCH_LOG_LEVEL", "DEBUG" if verbose else "INFO").upper()
    if level not in _LEVELS:
        raise InputError(f"HPSEARCH_LOG_LEVEL must be one of {', '.join(_LEVELS)}, got {level!r}")
    logger.setLevel(level)
    logger.propagate = False
    if not logger.handlers:
        handler = _StderrHandler()
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s", "%H:%M:%S"))
        logger.addHandler(handler)
    # Optuna prints a line per study and trial, which our own progress already tells.
    optuna.logging.set_verbosity(optuna.logging.WARNING)
