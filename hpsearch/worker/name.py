"""The name of this worker."""

from __future__ import annotations

import os
import platform


def worker_name() -> str:
    """`host:pid`: the name of this worker in trials and logs."""
    return f"{platform.node()}:{os.getpid()}"
