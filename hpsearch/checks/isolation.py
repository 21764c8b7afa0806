"""A process of its own for the checks of networks: a user's code may hang, or end the process.

The parent passes the definition and the networks; the child loads the data from this machine, and sends each finding as
it comes. A child that dies costs the network that it was checking; another one checks the rest.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Generator, Iterator, Sequence
from contextlib import AbstractContextManager
from multiprocessing import get_context
from multiprocessing.connection import Connection

from hpsearch.checks.finding import Finding, Verdict
from hpsearch.checks.models import MODEL_CHECKS, OUT_OF_TIME, model_name
from hpsearch.errors import HpsearchError
from hpsearch.study.definition import StudyDefinition
from hpsearch.study.settings import TrialSettings

GRACE_SECONDS = 5.0  # after the deadline, for a check that is about to end


class ModelProcess(AbstractContextManager["ModelProcess"]):
    """The process that checks networks. It starts at once, and waits for `findings`. The context ends it."""

    def __init__(self, definition: StudyDefinition, models: Sequence[TrialSettings]) -> None:
        self._definition = definition
        self._models = list(models)
        self._start(0)

    def findings(self, deadline: float) -> Iterator[Finding]:
        """Yield the findings of every network, in order. The data must be on this machine by now.

        Args:
            deadline: on `time.monotonic`.
        Raises:
            HpsearchError: the child's error: its data is not suitable.
        """
        first = 0
        while first < len(self._models):
            if first:
                self._start(first)
            seconds = deadline - time.monotonic()
            self._send(seconds)
            first = yield from self._listen(first, deadline)

    def _listen(self, first: int, deadline: float) -> Generator[Finding, None, int]:
        """Yield findings until all networks are checked, or this child has died; return the network to go on with."""
        place, check = first, "network"
        missing = [*MODEL_CHECKS]
        while True:
            is_over = not self._pipe.poll(max(0.0, deadline + GRACE_SECONDS - time.monotonic()))
            message = None if is_over else _receive(self._pipe)
            match message:
                case (int() as place, str() as check):  # this check begins
                    missing = [*MODEL_CHECKS] if check == "network" else missing
                case Finding():
                    missing = [name for name in missing if name != message.check]
                    yield message
                case HpsearchError():
                    raise message
                case True:
                    return len(self._models)
                case _:
                    yield self._end_of_child(place, check, is_over=is_over)
                    for name in missing:
                        if name != check:
                            reason = OUT_OF_TIME if is_over else "the process of this network has died"
                            yield Finding.skip(name, self._name(place), reason)
                    if is_over:
                        for other in range(place + 1, len(self._models)):
                            yield Finding.skip("network", self._name(other), OUT_OF_TIME)
                        return len(self._models)
                    return place + 1

    def _end_of_child(self, place: int, check: str, *, is_over: bool) -> Finding:
        if is_over:
            return Finding.skip(check, self._name(place), f"stopped while it ran, {OUT_OF_TIME}")
        self._process.join()
        code = self._process.exitcode or 0
        how = f"signal {-code}" if code < 0 else f"exit code {code}"
        return Finding(
            check=check,
            subject=self._name(place),
            verdict=Verdict.FAILED,
            found=f"its process ended ({how})",
            expected="a process that lives",
            look_at=("the network's code, which has ended its process", "memory, if the signal is 9"),
        )

    def _name(self, place: int) -> str:
        return model_name(self._models[place])

    def _start(self, first: int) -> None:
        context = get_context("spawn")  # torch's threads do not survive a fork
        self._pipe, theirs = context.Pipe()
        arguments = theirs, self._definition, self._models, first
        self._process = context.Process(target=_serve, args=arguments, daemon=True)
        self._process.start()
        theirs.close()

    def _send(self, seconds: float) -> None:
        with contextlib.suppress(OSError):  # it has died: `_listen` finds out how
            self._pipe.send(seconds)

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.join()
        self._pipe.close()


def _serve(parent: Connection, definition: StudyDefinition, models: Sequence[TrialSettings], first: int) -> None:
    """The child: import what takes time, wait for the start, and check networks from number `first` on."""
    from hpsearch.checks.network_checks import check_networks
    from hpsearch.data.catalog import load_selection_data
    from hpsearch.data.lookup import DataLocations
    from hpsearch.training.host_memory import keep_freed_memory

    keep_freed_memory()  # as workers do
    seconds = _receive(parent)
    if not isinstance(seconds, float):  # the parent has given up
        return
    try:
        deadline = time.monotonic() + seconds
        data = load_selection_data(definition.data, locations=DataLocations.from_environment())
        for message in check_networks(definition, data, models, first, deadline=deadline):
            parent.send(message)
        parent.send(True)
    except HpsearchError as error:
        parent.send(error)
    except BrokenPipeError:
        pass


def _receive(pipe: Connection) -> object:
    """The next message; None if the other process has died."""
    try:
        return pipe.recv()
    except (EOFError, OSError):
        return None
