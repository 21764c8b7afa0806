"""Imports that take time, without Python's search for garbage."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator


@contextlib.contextmanager
def loading() -> Iterator[None]:
    """Open while modules are imported.

    They create some hundred thousand objects, all of which stay. Looking for garbage among them again and again takes
    a tenth of the time; later collections need not look at them either.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()
