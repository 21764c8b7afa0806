"""How many lanes the workers train now: a file for each worker, which it keeps locked. A dead worker leaves it.

On a CPU memory that runs out is no error: the kernel kills the process. The worker that comes next finds its file. The
kernel releases the lock with the process, so that dead workers are told from live ones also among containers that share
the folder, where process numbers say nothing.
"""

from __future__ import annotations

import contextlib
import os
import uuid
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from hpsearch.atomic_file import TEMPORARY_PREFIX
from hpsearch.cgroups import memory_group
from hpsearch.home import make_folder
from hpsearch.logs import get_logger
from hpsearch.postgres.file_lock import close_lock_file, open_lock_file, try_lock

_log = get_logger("lanes")


class LanesInUse(BaseModel):
    """The content of a file.

    Args:
        case: words of the `LaneCase`.
        machine, group, num_kills: the worker's `MemoryGroup` when it noted the number.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    case: str
    lanes: Annotated[int, Field(ge=2)]
    machine: str
    group: int
    num_kills: int


class WorkersLanes:
    """The files of all workers that share a folder, and this process's own.

    Args:
        folder: need not exist; where it cannot be written or locked, no shortage is noticed.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._own: tuple[Path, int] | None = None  # and its open descriptor, which holds the lock

    def note(self, case: str, lanes: int) -> None:
        """Note with how many lanes this process trains from now on. A single lane cannot be halved and is not noted."""
        self.end()
        group = memory_group()
        if group is None or lanes == 1:
            return
        used = LanesInUse(case=case, lanes=lanes, machine=group.machine, group=group.number, num_kills=group.num_kills)
        name = uuid.uuid4().hex
        temporary, path = self._folder / f"{TEMPORARY_PREFIX}{name}", self._folder / f"{name}.json"
        try:
            make_folder(self._folder)
            descriptor = open_lock_file(temporary)
        except OSError as error:
            _log.warning("cannot note in %s how many lanes there are: %s", self._folder, error.strerror)
            return
        try:
            if try_lock(descriptor):
                os.write(descriptor, used.model_dump_json().encode())
                temporary.rename(path)  # the others look only at locked files
                self._own = path, descriptor
                return
        except OSError as error:
            _log.warning("cannot note in %s how many lanes there are: %s", self._folder, error.strerror)
        _remove(temporary)
        close_lock_file(descriptor)

    def end(self) -> None:
        """Remove this process's file: it has trained, and was not killed."""
        if self._own is not None:
            path, descriptor = self._own
            self._own = None
            _remove(path)
            close_lock_file(descriptor)

    def take_victims(self) -> list[LanesInUse]:
        """Remove the files of dead workers, and return those of workers that memory, as far as is known, has killed.

        In this worker's own group the kernel counts such kills. Of a container that was replaced nothing is known but
        that its worker was killed: that counts, too. A worker that ended with its machine was not killed for memory.
        """
        victims = []
        for path in self._folder.glob("[!.]*.json"):
            with contextlib.suppress(OSError):  # another user's, or taken meanwhile
                descriptor = open_lock_file(path)
                try:
                    if try_lock(descriptor):
                        with contextlib.suppress(ValidationError):
                            left = LanesInUse.model_validate_json(path.read_bytes())
                            if (how := _how_it_was_killed(left)) is not None:
                                _log.warning("a worker with %d lanes was killed %s: half as many", left.lanes, how)
                                victims.append(left)
                        _remove(path)
                finally:
                    close_lock_file(descriptor)
        return victims


def _how_it_was_killed(left: LanesInUse) -> str | None:
    """How memory killed the worker; None if it did not."""
    group = memory_group()
    if group is None or group.machine != left.machine:
        return None
    if group.number != left.group:
        return "with its container, perhaps because memory ran out"
    return "because memory ran out" if group.num_kills > left.num_kills else None


def _remove(path: Path) -> None:
    with contextlib.suppress(OSError):
        path.unlink()
