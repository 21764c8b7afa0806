"""Where a data set is that is named by its path: as the path says, or below HPSEARCH_DATA. Loads nothing heavy."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from hpsearch import environment

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class FoundPath:
    """The outcome of a search for a path.

    Args:
        path: the first place that exists; None if there is none.
        looked_at: for error messages: all places, in order.
    """

    path: Path | None
    looked_at: tuple[str, ...]


def local_folder() -> Path | None:
    """The user's own folder with data (HPSEARCH_DATA), which may not exist; None if the variable is not set."""
    name = os.environ.get(environment.DATA)
    return Path(name).expanduser() if name else None


def find_path(dataset: str, local: Path | None) -> FoundPath:
    """Look for a path on this machine: as it is (relative to the working directory), then in `local`.

    Args:
        dataset: an absolute path, or a relative one.
        local: HPSEARCH_DATA; None: not set.
    Raises:
        OSError, RuntimeError, ValueError: it cannot be a path, or may not be accessed.
    """
    given = Path(dataset).expanduser()
    places = [given.absolute(), *_places_in(local, given)]
    for path in places:
        if path.exists():
            if given.is_absolute() and path != given:
                _log.info("%s is not on this machine: using %s", given, path)
            return FoundPath(path=path, looked_at=())
    looked_at = [str(place) for place in places]
    if not given.is_absolute():
        looked_at.insert(1, "beside the study file")
    if local is None:
        looked_at.append(f"{environment.DATA} is not set")
    return FoundPath(path=None, looked_at=tuple(looked_at))


def _places_in(local: Path | None, given: Path) -> Iterator[Path]:
    """The places in HPSEARCH_DATA, in order."""
    if local is None or ".." in given.parts:
        return
    if not given.is_absolute():
        yield local / given
        return
    parts = given.parts[1:]
    for start in range(len(parts) - 1, -1, -1):
        yield local.joinpath(*parts[start:])
