"""How many lanes the workers train now: a file for each worker, which it keeps locked. A dead worker leaves it.

On a CPU memory that runs out is no error: the kernel kills the process. The worker that comes next finds its file. The
kernel releases the lock with the process. This tells whether a worker lives also among containers that share the
folder, where process numbers say nothing.
"""

from __future__ import annotations

import contextlib
import os
import time
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from hpsearch.atomic_file import TEMPORARY_PREFIX
from hpsearch.cgroups import memory_groups
from hpsearch.home import make_folder
from hpsearch.logs import get_logger
from hpsearch.postgres.file_lock import close_lock_file, open_lock_file, try_lock

_log = get_logger("lanes")

FOREIGN_SECONDS = 24 * 3600.0  # after which the file of another machine's worker is removed, too


class LanesInUse(BaseModel):
    """The content of a file.

    Args:
        case: words of the `LaneCase`.
        machine, num_kills: the worker's `MemoryGroups` when it noted the number.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    case: str
    lanes: Annotated[int, Field(ge=2)]
    machine: str
    num_kills: dict[int, int]


class WorkersLanes:
    """The files of all workers that share a folder, and this process's own.

    Args:
        folder: need not exist; where it cannot be written or locked, no shortage is noticed.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._own: tuple[Path, int] | None = None  # and its open descriptor, which holds the lock
        self._has_warned = False

    def note(self, case: str, lanes: int) -> None:
        """Note with how many lanes this process trains from now on. A single lane cannot be halved and is not noted."""
        self.end()
        groups = memory_groups()
        if groups is None or lanes == 1:
            return
        used = LanesInUse(case=case, lanes=lanes, machine=groups.machine, num_kills=dict(groups.num_kills))
        name = uuid.uuid4().hex
        temporary, path = self._folder / f"{TEMPORARY_PREFIX}{name}", self._folder / f"{name}.json"
        descriptor = None
        try:
            make_folder(self._folder)
            descriptor = open_lock_file(temporary)
            if try_lock(descriptor):
                os.write(descriptor, used.model_dump_json().encode())
                temporary.rename(path)  # only now the others see it
                self._own, descriptor = (path, descriptor), None
        except OSError as error:
            if not self._has_warned:
                _log.warning("cannot note in %s how many lanes there are: %s", self._folder, error.strerror)
            self._has_warned = True
        if descriptor is not None:
            _remove(temporary, descriptor)

    def end(self) -> None:
        """Remove this process's file: it has trained, and was not killed."""
        if self._own is not None:
            path, descriptor = self._own
            self._own = None
            _remove(path, descriptor)

    def remove_dead(self) -> list[LanesInUse]:
        """Remove the files of this machine's dead workers, and return those of workers that memory may have killed.

        The kernel counts such kills in each control group. A container that was started again has another group than
        before, and of the old one it is known only that its worker was killed. This counts, too. A worker that ended
        together with its machine was not killed for memory.
        """
        groups = memory_groups()
        if groups is None:
            return []
        victims = []
        for path in self._paths():
            with contextlib.suppress(OSError), _opened(path) as descriptor:  # another user's, or removed by another one
                if not try_lock(descriptor):
                    continue  # the worker lives
                left = _read(path)
                if left is not None and left.machine != groups.machine:
                    if time.time() - path.stat().st_mtime < FOREIGN_SECONDS:
                        continue  # that machine's workers are to find it
                elif left is not None and _may_have_run_out(left, groups.num_kills):
                    victims.append(left)
                path.unlink()
        return victims

    def _paths(self) -> list[Path]:
        try:
            return list(self._folder.glob("[!.]*.json"))
        except OSError:  # another user's folder
            return []


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[int]:
    descriptor = open_lock_file(path)
    try:
        yield descriptor
    finally:
        close_lock_file(descriptor)


def _read(path: Path) -> LanesInUse | None:
    """The content of a file; None if it is damaged, or if it was removed and is now empty."""
    try:
        return LanesInUse.model_validate_json(path.read_bytes())
    except ValidationError:
        return None


def _may_have_run_out(left: LanesInUse, num_kills: Mapping[int, int]) -> bool:
    """Whether memory may have killed the worker.

    Args:
        num_kills: of this process's `MemoryGroups`. The nearest group that was the worker's, too, decides.
    """
    for group, number in num_kills.items():
        if group in left.num_kills:
            return number > left.num_kills[group]
    return True


def _remove(path: Path, descriptor: int) -> None:
    with contextlib.suppress(OSError):
        path.unlink()
    with contextlib.suppress(OSError):  # a full disk is told when a file is closed
        close_lock_file(descriptor)
