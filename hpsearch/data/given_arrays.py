"""Arrays of a notebook, written once into a file that workers read: `data = {"arrays": {"x_train": ..., ...}}`."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from hpsearch.atomic_file import replacement_of
from hpsearch.data.arrays import NAMES, PARTS, examples_of
from hpsearch.data.prepared import checksum_of
from hpsearch.errors import InputError, SurroundingsError
from hpsearch.home import array_folder, make_folder
from hpsearch.wording import did_you_mean

_KEY: Final = "data.arrays"


def with_stored_arrays(document: Mapping[str, Any]) -> dict[str, Any]:
    """The content of a study file, with the path of a file in place of `data.arrays`.

    The file is in HPSEARCH_HOME/arrays; its name is a checksum of the arrays, so that the same arrays have the same
    path. A document without arrays is returned as it is.

    Raises:
        InputError: arrays are missing, have other names, or come with `data.dataset`.
        DataError: as `examples_of`.
        SurroundingsError: the file cannot be written.
    """
    data = document.get("data")
    if not isinstance(data, Mapping) or "arrays" not in data:
        return dict(document)
    settings = {key: value for key, value in data.items() if key != "arrays"}
    if "dataset" in settings:
        raise InputError(f"{_KEY} and data.dataset are both given", hint="leave one of them out")
    path = store_arrays(data["arrays"])
    return {**document, "data": {**settings, "dataset": str(path)}}


def store_arrays(arrays: object) -> Path:
    """Write the arrays into their file, unless it is there, and return its path.

    Raises:
        InputError, DataError, SurroundingsError: as `with_stored_arrays`.
    """
    checked = _checked(arrays)
    digest = hashlib.sha256()
    for name in NAMES:
        if name in checked:
            digest.update(f"{name} {checksum_of(checked[name])}\n".encode())
    path = array_folder() / f"{digest.hexdigest()}.npz"
    if not path.exists():
        try:
            make_folder(path.parent)
            with replacement_of(path) as file:
                np.savez(file, **checked)  # type: ignore[arg-type]  # its stub takes them for `allow_pickle`
        except OSError as error:
            raise SurroundingsError(
                f"{path}: the arrays cannot be written: {error.strerror or error}",
                hint="free some space, or set HPSEARCH_HOME to another folder",
            ) from error
    return path


def _checked(arrays: object) -> dict[str, NDArray[Any]]:
    """The arrays by name; each part is complete and has examples that can be trained on."""
    if not isinstance(arrays, Mapping):
        raise InputError(f"{_KEY} must map names to arrays, got {type(arrays).__name__}", hint=f"{', '.join(NAMES)}")
    for name in arrays:
        if name not in NAMES:
            meant = did_you_mean(str(name), NAMES)
            raise InputError(f"{_KEY}: unknown name {name!r}", hint=f"{f'{meant} ' if meant else ''}{', '.join(NAMES)}")
    for part in PARTS:
        pair = [name for name in (f"x_{part}", f"y_{part}") if name in arrays]
        if len(pair) == 1 or (part == "train" and not pair):
            missing = next(name for name in (f"x_{part}", f"y_{part}") if name not in arrays)
            raise InputError(f"{_KEY}: {missing} is missing", hint=f"give both x_{part} and y_{part}")
        if pair:
            examples_of(arrays[pair[0]], arrays[pair[1]], _KEY, part)
    return {name: np.asarray(arrays[name]) for name in NAMES if name in arrays}
