"""The request to prepare a study, and its answer: messages between a launcher and its first worker.

Loading torch takes seconds, so a launcher never does. It starts its first worker before it opens the database, and
sends it the definition once the study turns out to need training. The worker checks the data and the networks,
registers the study, answers, and joins the study:

    launcher -> worker   a `PreparationRequest`; the end of the stream: nothing is to be done
    worker -> launcher   the progress of a download (the arguments of `DownloadProgress`) and warnings (their text), as
                         they come; then the `Registration`, or an `HpsearchError`

Both processes run the same code for the same user, so the pipe carries these objects themselves (`multiprocessing`).
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING, Any

from hpsearch import environment
from hpsearch.data.files.download import DownloadProgress
from hpsearch.errors import HpsearchError
from hpsearch.logs import get_logger
from hpsearch.study.definition import StudyDefinition

if TYPE_CHECKING:
    from hpsearch.store.registration import Registration


_log = get_logger("launcher")


@dataclass(frozen=True, kw_only=True)
class PreparationRequest:
    """What the worker is asked to prepare.

    Args:
        joins: the worker trains afterwards; otherwise it leaves.
        checks: it looks at the data first.
    """

    definition: StudyDefinition
    joins: bool
    checks: bool = True


def request_preparation(
    worker: Connection, request: PreparationRequest, progress: DownloadProgress | None
) -> Registration | None:
    """Send the request and wait for the answer. Returns None if the worker has died.

    Raises:
        HpsearchError: the worker's error, of its class.
    """
    send(worker, request)
    while (message := receive(worker)) is not None:
        match message:
            case tuple():
                if progress is not None:
                    progress(*message)
            case str():
                _log.warning("%s", message)
            case HpsearchError():
                raise message
            case _:
                registration: Registration = message
                return registration
    return None


def inherited_pipe() -> Connection | None:
    """Return the pipe to the launcher that has passed one, or None. No later process inherits it."""
    descriptor = os.environ.pop(environment.PREPARATION_PIPE, None)
    if descriptor is None:
        return None
    os.set_inheritable(int(descriptor), False)
    return Connection(int(descriptor))


def receive(pipe: Connection) -> Any:
    """Wait for a message. Returns None if the other process has closed its end, perhaps in the middle of a message."""
    try:
        return pipe.recv()
    except (EOFError, OSError):
        return None


def send(pipe: Connection, message: object) -> None:
    """Send a message. If the other process has died, nothing happens: both ends notice that in other ways."""
    with contextlib.suppress(OSError):
        pipe.send(message)


@contextlib.contextmanager
def passing_errors(launcher: Connection) -> Iterator[None]:
    """Pass on warnings and an error of this context; the error is raised again."""
    handler = _WarningHandler(launcher)
    logger = logging.getLogger("hpsearch")
    logger.addHandler(handler)
    try:
        yield
    except HpsearchError as error:
        send(launcher, error)
        raise
    finally:
        logger.removeHandler(handler)


class _WarningHandler(logging.Handler):
    def __init__(self, launcher: Connection) -> None:
        super().__init__(logging.WARNING)
        self._launcher = launcher

    def emit(self, record: logging.LogRecord) -> None:
        send(self._launcher, record.getMessage())
