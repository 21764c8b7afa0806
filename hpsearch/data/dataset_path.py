"""Where the path of a data set is looked for: the working directory, beside the study file, and HPSEARCH_DATA.

A study stores the absolute path that was found. A machine that does not have this path looks in HPSEARCH_DATA for its
last component, then for its last two, and so on. Checksums tell whether what is found there is the study's data.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from hpsearch import environment
from hpsearch.study.definition import StudyDefinition
from hpsearch.study.study_file import load_definition

_KEY = "data.dataset"

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


def load_study_file(path: Path, overrides: Sequence[str] = ()) -> StudyDefinition:
    """As `load_definition`; a relative path of data that lies beside the study file becomes absolute.

    The working directory comes first. A path that is given by an override is relative to the working directory alone.

    Raises:
        InputError: as `load_definition`.
    """
    definition = load_definition(path, overrides)
    dataset = definition.data.dataset
    if not dataset.strip() or any(override.partition("=")[0].strip() == _KEY for override in overrides):
        return definition
    with contextlib.suppress(OSError, RuntimeError, ValueError):  # not a path: reported where it is resolved
        beside = path.absolute().parent / dataset
        if beside.exists() and not Path(dataset).expanduser().exists():
            return _with_path(definition, beside)
    return definition


def at_stored_place(definition: StudyDefinition, stored: StudyDefinition) -> StudyDefinition:
    """The definition with the stored study's path, if that leads to the same data on this machine.

    A study that was created elsewhere stores a path that is not on this machine; a study file that names the data here
    is then no change.
    """
    given, known = definition.data.dataset, stored.data.dataset
    if given == known or not Path(known).is_absolute():
        return definition
    with contextlib.suppress(OSError, RuntimeError, ValueError):
        found = find_path(known, local_folder()).path
        if found is not None and Path(given).exists() and found.samefile(given):
            return definition.model_copy(update={"data": definition.data.model_copy(update={"dataset": known})})
    return definition


def _with_path(definition: StudyDefinition, path: Path) -> StudyDefinition:
    # Not at the top: it loads numpy and all forms of data, which a study file without such a path does not need.
    from hpsearch.data.registry import catalog_names

    if definition.data.dataset in catalog_names():
        return definition
    data = definition.data.model_copy(update={"dataset": os.path.normpath(path)})
    return definition.model_copy(update={"data": data})


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
