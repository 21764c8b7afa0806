"""Which validation examples a program got right: files that its reports name, read into the bits that are compared."""

from __future__ import annotations

import io
import os
import stat
from pathlib import Path
from typing import final

import numpy as np

from hpsearch.errors import InputError
from hpsearch.logs import get_logger
from hpsearch.store.rows.correct_images import Correctness

_log = get_logger("worker")

MOST_EXAMPLES = 1_000_000
_MOST_BYTES = 8 * MOST_EXAMPLES + 4096  # an array of 64-bit whole numbers and its header
_FORMS = "a .npy file, or a text, of one 0 or 1 for each example"


@final
class ExampleResults:
    """Reads the files that the reports of one attempt name.

    Args:
        trial_number: for messages.
        cwd: the program's working directory, in which it may name its files.
        own: the folder in which `hpsearch.trial` writes copies; these are removed once they have been read.
    """

    def __init__(self, trial_number: int, cwd: Path, own: Path) -> None:
        self._trial_number = trial_number
        self._cwd = cwd
        self._own = own
        self._is_told = False

    def take(self, named: object, *, is_wanted: bool) -> Correctness | None:
        """Read the file of one report, if it is wanted. A file that cannot be read is logged, once per attempt."""
        path = self._cwd / named if isinstance(named, str) and "\0" not in named else None
        try:
            if path is None:
                raise InputError(f"`correct` must be a path, got {named!r:.80}")
            return read_results(path) if is_wanted else None
        except InputError as error:
            if not self._is_told:
                self._is_told = True
                what = "trial %d: its results of single examples are left out: %s"
                _log.warning(what, self._trial_number, error, extra={"trial": self._trial_number})
            return None
        finally:
            if path is not None and path.parent == self._own:
                path.unlink(missing_ok=True)


def read_results(path: Path) -> Correctness:
    """Read which examples are right: a one-dimensional .npy array of truth values or of 0 and 1, or such a text.

    Raises:
        InputError: the file is no regular file, is too large, or holds something else.
    """
    content = _content_of(path)
    if content.startswith(b"\x93NUMPY"):
        try:
            values = np.load(io.BytesIO(content), allow_pickle=False)
        except ValueError as error:
            raise InputError(f"{path}: {error}") from None
        if values.ndim != 1 or values.dtype.kind not in "biuf":
            raise InputError(f"{path} has an array of shape {list(values.shape)} and type {values.dtype}, not {_FORMS}")
    else:
        digits = np.frombuffer(content.translate(None, b" \t\r\n,"), dtype=np.uint8)
        values = digits.astype(np.int16) - ord("0")
    if not np.isin(values, (0, 1)).all():
        raise InputError(f"{path} holds something else than 0 and 1: it must be {_FORMS}")
    if not 1 <= len(values) <= MOST_EXAMPLES:
        raise InputError(f"{path} has {len(values):,} examples: it must have 1 to {MOST_EXAMPLES:,}")
    return Correctness.of(values.astype(bool))


def _content_of(path: Path) -> bytes:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)  # a pipe must not stop the worker
        with os.fdopen(descriptor, "rb") as file:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise InputError(f"{path} is no regular file")
            content = file.read(_MOST_BYTES + 1)
    except OSError as error:
        raise InputError(f"{path}: {error.strerror or error}") from None
    if len(content) > _MOST_BYTES:
        raise InputError(f"{path} has more than {MOST_EXAMPLES:,} examples")
    return content
