"""Waiting for a lock that another process holds: on a file, or in a database."""

from __future__ import annotations

import time
from collections.abc import Callable

from hpsearch.errors import StorageError

_POLL_SECONDS = 0.05


def wait_for_lock(try_lock: Callable[[], bool], *, seconds: float, activity: str, hint: str) -> None:
    """Ask for a lock until it is free.

    A request that waits by itself would have no time limit (flock), or would look like a server that does not answer.

    Args:
        try_lock: takes the lock and returns True, or returns False at once.
        activity: what the holder does: "creating the tables".
    Raises:
        StorageError: the lock was not free within `seconds`.
    """
    deadline = time.monotonic() + seconds
    while not try_lock():
        if time.monotonic() > deadline:
            raise StorageError(f"another process has been {activity} for {seconds:.0f} s", hint=hint)
        time.sleep(_POLL_SECONDS)
