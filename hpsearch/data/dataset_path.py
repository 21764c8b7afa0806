"""Where the path of a data set is looked for: the working directory, beside the study file, and HPSEARCH_DATA.

A study stores the absolute path that was found. A machine that does not have this path looks in HPSEARCH_DATA for its
last component, then for its last two, and so on. Checksums tell whether what is found there is the study's data.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from pathlib import Path

from hpsearch.data.files.named_path import find_path, local_folder
from hpsearch.study.definition import StudyDefinition
from hpsearch.study.study_file import load_definition

_KEY = "data.dataset"


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
            # Not at the top: it loads numpy and all forms of data, which other study files do not need.
            from hpsearch.data.registry import catalog_names

            if dataset not in catalog_names():
                data = definition.data.model_copy(update={"dataset": os.path.normpath(beside)})
                return definition.model_copy(update={"data": data})
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
