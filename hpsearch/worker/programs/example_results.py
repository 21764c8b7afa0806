"""Which validation examples a program got right: files that its reports name, read into the bits that are compared."""

from __future__ import annotations

import contextlib
import io
import os
import stat
from pathlib import Path
from typing import final

import numpy as np

from hpsearch.errors import InputError
from hpsearch.logs import get_logger
from hpsearch.store.rows.correct_images import Correctness
from hpsearch.wording import first_line

_log = get_logger("worker")

CORRECT = "correct"  # the key of a report that names them
MOST_EXAMPLES = 1_000_000
_MOST_BYTES = 8 * MOST_EXAMPLES + 4096  # an array of 64-bit whole numbers and its header
_FORMS = "a .npy file, or a text, of one 0 or 1 for each example"


@final
class ExampleResults:
    """Reads the files that the reports of one attempt name.

    Args:
        trial_number: for messages.
        cwd: the program's working directory, in which it may name its files.
        own: the folder in which `hpsearch.trial` writes copies; `sweep` removes them.
    """

    def __init__(self, trial_number: int, cwd: Path, own: Path) -> None:
        self._trial_number = trial_number
        self._cwd = cwd
        self._own = own
        self._is_told = False

    def take(self, named: object, *, is_wanted: bool) -> Correctness | None:
        """Read the file of one report, if it is wanted. A file that cannot be read is logged, once per attempt."""
        try:
            return self.read(named) if is_wanted or not isinstance(named, str) else None
        except InputError as error:
            if not self._is_told:
                self._is_told = True
                what = "trial %d: its results of single examples are left out: %s"
                _log.warning(what, self._trial_number, error, extra={"trial": self._trial_number})
            return None

    def read(self, named: object) -> Correctness:
        """Read the file that a report names.

        Raises:
            InputError: it cannot be read, or `hpsearch.trial` has reported why it could not be sent.
        """
        if isinstance(named, dict) and isinstance(why := named.get("error"), str):
            raise InputError(why)
        if not isinstance(named, str):
            raise InputError(f"`correct` must be a path, got {named!r:.80}")
        return read_results(self._cwd / named)

    def sweep(self, last_step: int) -> None:
        """Remove the copies that `hpsearch.trial` has made of the results of all steps up to this one."""
        with contextlib.suppress(OSError):
            for path in self._own.glob("correct-*-*"):
                step = path.name.split("-")[1]
                if step.isdecimal() and int(step) <= last_step:
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
        except Exception as error:  # a damaged header is parsed as Python's literals are
            raise InputError(f"{path} cannot be read as .npy: {first_line(error)}") from None
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
        try:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise InputError(f"{path} is no regular file")
            with os.fdopen(descriptor, "rb", closefd=False) as file:
                content = file.read(_MOST_BYTES + 1)
        finally:
            os.close(descriptor)
    except (OSError, ValueError) as error:  # ValueError: NUL, or half a surrogate pair
        raise InputError(f"{path!s:.200}: {first_line(error)}") from None
    if len(content) > _MOST_BYTES:
        raise InputError(f"{path} has more than {MOST_EXAMPLES:,} examples")
    return content
