"""Logging: everything that is not a result goes to stderr, one line per event, without passwords.

Lines are text for people, or one JSON object each for a log collector (docs/observability.md lists the fields). Fields
that apply to the whole process (study, worker, device) are bound once; fields of one event are passed with it:

    log.info("trial %d goes on from epoch %d", 7, 3, extra={"trial": 7, "epoch": 3})
"""

from __future__ import annotations

import contextlib
import json
import logging
import math
import os
import sys
import threading
import warnings
from collections.abc import Mapping
from datetime import UTC, datetime
from enum import Enum
from traceback import format_exception
from types import TracebackType
from typing import Any, TextIO

from hpsearch import environment
from hpsearch.errors import HpsearchError, InputError
from hpsearch.safe_text import for_terminal, masked

LOGGER_NAME = "hpsearch"
_LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL")
_ERROR_PREFIX = "error: "
HINT_PREFIX = "hint: "  # of the line after the lines of an error
_RECORD_ATTRIBUTES = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


class LogFormat(Enum):
    """The format of log lines."""

    TEXT = "text"
    JSON = "json"


class _TextFormatter(logging.Formatter):
    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s: %(message)s", "%H:%M:%S")

    def format(self, record: logging.LogRecord) -> str:
        return for_terminal(super().format(record))


class _JsonFormatter(logging.Formatter):
    """One object per line, in ASCII, so that no Unicode line break splits it."""

    def __init__(self, context: Mapping[str, str]) -> None:
        super().__init__()
        self._context = context

    def format(self, record: logging.LogRecord) -> str:
        fields = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")[:-6] + "Z",
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
        }
        own = {key: _plain(value) for key, value in vars(record).items() if key not in _RECORD_ATTRIBUTES}
        line = {**fields, **self._context, **own, **fields}  # the first four stay first, and nothing replaces them
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(masked(line))


class _StderrHandler(logging.StreamHandler[TextIO]):
    """Writes to the current value of sys.stderr: a live progress display replaces it to keep its screen intact."""

    def __init__(self) -> None:
        logging.Handler.__init__(self)
        self.context: dict[str, str] = {}
        self.log_format = LogFormat.TEXT

    @property
    def stream(self) -> TextIO:  # type: ignore[override]  # an attribute in the base class
        return sys.stderr

    def use(self, log_format: LogFormat) -> None:
        self.log_format = log_format
        self.setFormatter(_JsonFormatter(self.context) if log_format is LogFormat.JSON else _TextFormatter())


def get_logger(room: str) -> logging.Logger:
    """Return the logger of one module, below the package's own."""
    return logging.getLogger(f"{LOGGER_NAME}.{room}")


def configure_logging(*, verbose: bool = False, log_format: LogFormat = LogFormat.TEXT) -> None:
    """Send log lines to stderr. Calling it again changes level and format; HPSEARCH_LOG_LEVEL overrides the level.

    In JSON, warnings of Python and log lines of other libraries have the same format.

    Raises:
        InputError: HPSEARCH_LOG_LEVEL is not a level; the error is reported in the requested format.
    """
    logger = logging.getLogger(LOGGER_NAME)
    logger.propagate = False
    handler = _our_handler() or _StderrHandler()
    handler.use(log_format)
    logger.addHandler(handler)  # adding it a second time has no effect
    is_json = log_format is LogFormat.JSON
    logging.captureWarnings(is_json)
    if is_json:
        logging.getLogger().addHandler(handler)
    else:
        logging.getLogger().removeHandler(handler)
    level = os.environ.get(environment.LOG_LEVEL, "DEBUG" if verbose else "INFO").upper()
    if level not in _LEVELS:
        raise InputError(f"HPSEARCH_LOG_LEVEL must be one of {', '.join(_LEVELS)}, got {level!r}")
    logger.setLevel(level)


def bind_log_context(**fields: str) -> None:
    """Add fields to every later JSON line of this process, such as study, worker and device.

    Without `configure_logging` (hpsearch used as a library) it has no effect.
    """
    handler = _our_handler()
    if handler is not None:
        handler.context.update(fields)


def is_json_logging() -> bool:
    """Whether this process's log lines are JSON."""
    handler = _our_handler()
    return handler is not None and handler.log_format is LogFormat.JSON


def take_over_logger(name: str) -> None:
    """Show a library's warnings and errors as log lines of hpsearch, and nothing below.

    Call it after the library's import.

    Optuna installs its own handler and prints a line per study and trial, which hpsearch's progress already shows.
    """
    logger = logging.getLogger(name)
    logger.setLevel(logging.WARNING)
    handler = _our_handler()
    if handler is not None:
        logger.handlers[:] = [handler]
        logger.propagate = False


def show_no_password() -> None:
    """Mask passwords in tracebacks and warnings that Python itself writes to stderr, in all threads.

    For hpsearch's own processes; a program that uses hpsearch as a library keeps its hooks.
    """
    sys.excepthook = _show_exception
    threading.excepthook = lambda ended: _show_exception(ended.exc_type, ended.exc_value, ended.exc_traceback)
    sys.unraisablehook = lambda ended: _show_exception(ended.exc_type, ended.exc_value, ended.exc_traceback)
    warnings.showwarning = _show_warning


def _show_exception(kind: type[BaseException], error: BaseException | None, traceback: TracebackType | None, /) -> None:
    if kind is SystemExit:  # raised in a thread
        return
    if is_json_logging():
        found = error if error is not None else kind()
        get_logger("cli").critical("unexpected error", exc_info=(kind, found, traceback))
        return
    with contextlib.suppress(OSError, ValueError):  # stderr is closed
        sys.stderr.write(for_terminal("".join(format_exception(kind, error, traceback))))


def _show_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    with contextlib.suppress(OSError, ValueError, AttributeError):  # stderr is closed, or there is none
        (file or sys.stderr).write(for_terminal(warnings.formatwarning(message, category, filename, lineno, line)))


def log_final_error(error: HpsearchError) -> None:
    """Log the JSON line with which a command ends, in place of the lines `error: ...` and `hint: ...`."""
    fields: dict[str, Any] = {"exit_code": error.exit_code}
    if error.hint:
        fields["hint"] = error.hint
    get_logger("cli").error("%s", error, extra=fields)


def find_final_error(line: str) -> str | None:
    """Return the message of the error with which a command ended, if this log line (in either format) is one."""
    if line.startswith(_ERROR_PREFIX):
        return line.removeprefix(_ERROR_PREFIX)
    if not line.startswith("{"):
        return None
    try:
        fields = json.loads(line)
    except (ValueError, RecursionError):  # a truncated line, or one of another program
        return None
    return str(fields["message"]) if {"message", "exit_code"} <= fields.keys() else None


def find_message(line: str, room: str) -> str | None:
    """Return the message of a log line, in either format, if the logger of this room wrote it."""
    logger = f"{LOGGER_NAME}.{room}"
    if line.startswith("{"):
        with contextlib.suppress(ValueError, RecursionError):  # a truncated line, or one of another program
            fields = json.loads(line)
            return str(fields["message"]) if fields.get("logger") == logger and "message" in fields else None
        return None
    heading, found, message = line.partition(f" {logger}: ")
    return message if found and len(heading.split()) == 2 else None  # time and level


def _our_handler() -> _StderrHandler | None:
    handlers = logging.getLogger(LOGGER_NAME).handlers
    return next((handler for handler in handlers if isinstance(handler, _StderrHandler)), None)


def _plain(value: object) -> Any:
    """Return a value that JSON can represent: a string instead of NaN, the infinities, collections and other types."""
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    return value if value is None or isinstance(value, (bool, int, str)) else str(value)
