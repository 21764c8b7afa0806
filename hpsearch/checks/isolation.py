"""A separate process for the checks of networks, because a user's code may hang or end its process.

The parent sends the definition and the networks; the child loads the data from this machine, and sends each finding as
it comes. A network that ends the child, or needs more than its share of the time, costs only its own checks: another
child checks the rest.
"""

from __future__ import annotations

import contextlib
import logging
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Final

from hpsearch import environment
from hpsearch.checks.finding import Finding, Verdict, share_of_time
from hpsearch.checks.models import MODEL_CHECKS, OUT_OF_TIME, model_name
from hpsearch.errors import HpsearchError
from hpsearch.logs import LOGGER_NAME, LogFormat, configure_logging
from hpsearch.signals import end_with_parent
from hpsearch.study.definition import StudyDefinition
from hpsearch.study.settings import TrialSettings

GRACE_SECONDS = 5.0  # after a network's time, for a check that is about to end
_END_SECONDS = 10.0  # for a child that has closed its end of the pipe
_START_SECONDS = 60.0  # for importing torch, on a busy machine
# As workers are started: no file of the current folder is imported in place of a module of Python.
_PROGRAM: Final = "import sys; sys.path.append(sys.argv[1]); from hpsearch.checks.isolation import serve; serve()"


class ModelProcess(AbstractContextManager["ModelProcess"]):
    """The process that checks networks. It starts at once, and waits for `findings`. The context ends it."""

    def __init__(self, definition: StudyDefinition, models: Sequence[TrialSettings]) -> None:
        self._definition = definition
        self._models = list(models)
        self._start(0)

    def findings(self, deadline: float) -> Iterator[Finding]:
        """Yield the findings of every network, in order. The data must be on this machine by now.

        Each network may use an equal part of the time that is left when it begins.

        Args:
            deadline: on `time.monotonic`.
        Raises:
            HpsearchError: the child's error: its data is not suitable.
        """
        first = 0
        while first < len(self._models):
            if first:
                self._end()
                self._start(first)
            with contextlib.suppress(OSError):  # it has died: the loop below finds out how
                self._pipe.send(deadline - time.monotonic())
            place, check, missing, until = first, "network", [*MODEL_CHECKS], time.monotonic() + _START_SECONDS
            while (message := self._next(until)) is not None:
                match message:
                    case (int() as place, str() as check):  # this check begins
                        if check == "network":
                            missing = [*MODEL_CHECKS]
                            until = share_of_time(deadline, len(self._models) - place)
                    case Finding():
                        missing = [name for name in missing if name != message.check]
                        yield message
                    case HpsearchError():
                        raise message
                    case _:
                        return
            is_over = self._process.poll() is None
            yield self._end_of_child(place, check, is_over=is_over)
            reason = OUT_OF_TIME if is_over else "the process of this network has ended"
            yield from (Finding.skip(name, self._name(place), reason) for name in missing if name != check)
            first = place + 1

    def _next(self, until: float) -> object:
        """The next message; None if the child has died, or sends nothing until then and a grace."""
        with contextlib.suppress(EOFError, OSError):
            if self._pipe.poll(max(0.0, until + GRACE_SECONDS - time.monotonic())):
                return self._pipe.recv()
            return None
        with contextlib.suppress(subprocess.TimeoutExpired):  # it has closed its end: it ends
            self._process.wait(_END_SECONDS)
        return None

    def _end_of_child(self, place: int, check: str, *, is_over: bool) -> Finding:
        if is_over:
            return Finding(
                check=check,
                subject=self._name(place),
                verdict=Verdict.WARNING,
                found=f"stopped while it ran, {OUT_OF_TIME}",
                expected="an end in this network's share of the time",
                look_at=("an endless loop in the network's code, or too few --seconds for it: mend it, or give more",),
            )
        code = self._process.returncode
        how = f"signal {-code}" if code < 0 else f"exit code {code}"
        return Finding(
            check=check,
            subject=self._name(place),
            verdict=Verdict.FAILED,
            found=f"its process ended ({how})",
            expected="a network that does not end its process",
            look_at=(
                "the network's code: see what in it ends the process",
                "the machine's memory, if the signal is 9: free some, or check on another machine",
            ),
        )

    def _name(self, place: int) -> str:
        return model_name(self._models[place])

    def _start(self, first: int) -> None:
        self._pipe, theirs = Pipe()
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-c", _PROGRAM, str(Path(__file__).parents[2])],
                env={**os.environ, environment.PREPARATION_PIPE: str(theirs.fileno())},
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=2,  # what a network prints must not become part of a document on stdout
                start_new_session=True,  # Ctrl-C reaches only the parent, which ends the child
            )
        is_verbose = logging.getLogger(LOGGER_NAME).isEnabledFor(logging.DEBUG)
        with contextlib.suppress(OSError):
            self._pipe.send((os.getpid(), is_verbose, self._definition, self._models, first))

    def _end(self) -> None:
        self._process.kill()
        self._process.wait()
        self._pipe.close()

    def __exit__(self, *_: object) -> None:
        self._end()


def serve() -> None:
    """The child: import what takes time, wait for the start, and check networks."""
    parent = Connection(int(os.environ.pop(environment.PREPARATION_PIPE)))
    os.set_inheritable(parent.fileno(), False)
    with contextlib.suppress(EOFError, OSError):  # the parent is gone
        parent_pid, is_verbose, definition, models, first = parent.recv()
        end_with_parent(parent_pid)
        log_format = LogFormat(os.environ.get(environment.LOG_FORMAT, LogFormat.TEXT.value))
        configure_logging(verbose=is_verbose, log_format=log_format)

        from hpsearch.checks.network_checks import check_networks
        from hpsearch.data.catalog import load_selection_data
        from hpsearch.data.files.lookup import DataLocations
        from hpsearch.training.host_memory import keep_freed_memory

        keep_freed_memory()  # as workers do
        deadline = parent.recv() + time.monotonic()
        try:
            data = load_selection_data(definition.data, locations=DataLocations.from_environment())
            for message in check_networks(definition, data, models, first, deadline=deadline):
                parent.send(message)
        except HpsearchError as error:
            parent.send(error)
        else:
            parent.send(True)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)  # taking torch down takes seconds
