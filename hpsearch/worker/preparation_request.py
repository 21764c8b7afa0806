"""The request to prepare a study, and its answer: JSON lines between a launcher and its first worker.

Loading torch takes seconds, so a launcher never does. It starts its first worker before it opens the database, and
sends it the definition once the study turns out to need training. The worker checks the data and the networks,
registers the study, answers, and joins the study:

    launcher -> worker   {"definition": "...", "joins": true}; the end of the stream: nothing is to be done
    worker -> launcher   {"download": ["train-images-idx3-ubyte", 1024, 9912422]} and {"warning": "..."}, as they come
                         {"registration": {"is_new": true, "num_points": 36, ...}}
                         or {"error": {"kind": "DataError", "message": "...", "hint": null}}
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from hpsearch import environment
from hpsearch.data.download import DownloadProgress
from hpsearch.errors import HpsearchError
from hpsearch.logs import get_logger
from hpsearch.study.definition import StudyDefinition

if TYPE_CHECKING:
    from hpsearch.store.studies import Registration


_log = get_logger("launcher")


@dataclass(frozen=True, kw_only=True)
class PreparationRequest:
    """What the worker is asked to prepare.

    Args:
        joins: the worker trains afterwards; otherwise it leaves.
    """

    definition: StudyDefinition
    joins: bool


class LauncherPipe:
    """The launcher's end.

    Args:
        inherited: the worker's descriptors, for it to inherit; closed here once it has started.
    """

    def __init__(self) -> None:
        request, request_end = os.pipe()
        answer_end, answer = os.pipe()
        self.inherited = (request, answer)
        self._request = open(request_end, "w", encoding="utf-8")  # noqa: SIM115, PTH123
        self._answer = open(answer_end, encoding="utf-8")  # noqa: SIM115, PTH123

    def request(self, request: PreparationRequest, progress: DownloadProgress | None) -> dict[str, Any] | None:
        """Send the request and wait for the answer.

        Returns:
            The fields of the `Registration`, without the study; None: the worker has died.
        Raises:
            HpsearchError: the worker's error, of its class.
        """
        document = {"definition": request.definition.canonical_json(), "joins": request.joins}
        with contextlib.suppress(BrokenPipeError):
            print(json.dumps(document), file=self._request, flush=True)
        for line in self._answer:
            if not line.endswith("\n"):  # the worker died in the middle
                return None
            match json.loads(line):
                case {"download": shown} if progress is not None:
                    progress(*shown)
                case {"warning": text}:
                    _log.warning("%s", text)
                case {"error": document}:
                    raise _error_from(document)
                case {"registration": fields}:
                    return {**fields, "changes": tuple(fields["changes"])}
        return None

    def close(self) -> None:
        """Close both ends: a worker that still waits for the request leaves."""
        for stream in (self._request, self._answer):
            with contextlib.suppress(BrokenPipeError):
                stream.close()


class WorkerPipe:
    """The worker's end; created by `from_environment`."""

    def __init__(self, request: int, answer: int) -> None:
        self._request = open(request, encoding="utf-8")  # noqa: SIM115
        self._answer = open(answer, "w", encoding="utf-8")  # noqa: SIM115

    @classmethod
    def from_environment(cls) -> WorkerPipe | None:
        """Return the pipe that a launcher has passed, or None if there is none. No later process inherits it."""
        names = os.environ.pop(environment.PREPARATION_PIPE, None)
        if names is None:
            return None
        request, answer = map(int, names.split(","))
        for descriptor in (request, answer):
            os.set_inheritable(descriptor, False)
        return cls(request, answer)

    def receive(self) -> PreparationRequest | None:
        """Wait for the request. Returns None if nothing is to be prepared."""
        line = self._request.readline()
        if not line.endswith("\n"):
            return None
        message = json.loads(line)
        definition = StudyDefinition.from_canonical_json(message["definition"])
        return PreparationRequest(definition=definition, joins=message["joins"])

    def show_download(self, file_name: str, bytes_done: int, bytes_total: int | None) -> None:
        """Pass on the progress of a download."""
        self._send({"download": [file_name, bytes_done, bytes_total]})

    @contextlib.contextmanager
    def passing_errors(self) -> Iterator[None]:
        """Pass on warnings and an error of this context; the error is raised again."""
        handler = _WarningHandler(lambda text: self._send({"warning": text}))
        logger = logging.getLogger("hpsearch")
        logger.addHandler(handler)
        try:
            yield
        except HpsearchError as error:
            self._send({"error": {"kind": type(error).__name__, "message": str(error), "hint": error.hint}})
            raise
        finally:
            logger.removeHandler(handler)

    def answer(self, registration: Registration) -> None:
        """Answer that the study is prepared."""
        names = ("is_new", "num_points", "num_added", "num_restored", "changes")
        self._send({"registration": {name: getattr(registration, name) for name in names}})

    def close(self) -> None:
        """Close both ends. Safe to call again."""
        self._request.close()
        with contextlib.suppress(BrokenPipeError):
            self._answer.close()

    def _send(self, message: dict[str, Any]) -> None:
        with contextlib.suppress(BrokenPipeError):  # the launcher has died, which the worker notices by itself
            print(json.dumps(message), file=self._answer, flush=True)


class _WarningHandler(logging.Handler):
    def __init__(self, send: Callable[[str], None]) -> None:
        super().__init__(logging.WARNING)
        self._send = send

    def emit(self, record: logging.LogRecord) -> None:
        self._send(record.getMessage())


def _error_from(document: dict[str, Any]) -> HpsearchError:
    kinds = {kind.__name__: kind for kind in _subclasses(HpsearchError)}
    return kinds.get(document["kind"], HpsearchError)(document["message"], hint=document["hint"])


def _subclasses(kind: type[HpsearchError]) -> Iterator[type[HpsearchError]]:
    yield kind
    for subclass in kind.__subclasses__():
        yield from _subclasses(subclass)
