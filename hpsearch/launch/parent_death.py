"""A worker must not outlive whoever looks after it: the kernel sends it SIGTERM when its parent dies.

A supervisor or an actor of Ray's that is killed with SIGKILL can no longer end its worker, which would hold on to its
GPU until it looked up between two epochs.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

from hpsearch.logs import get_logger

_log = get_logger("parent_death")
_PR_SET_PDEATHSIG = 1  # linux/prctl.h


def end_with_parent(parent_pid: int) -> None:
    """Ask for SIGTERM at the end of the thread that started this process; end now if the parent is gone already.

    Linux only: elsewhere a worker notices between two epochs (StopSignal).
    """
    if sys.platform == "linux" and ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM) != 0:
        _log.warning("cannot ask for a signal at the end of the parent: %s", os.strerror(ctypes.get_errno()))
    if os.getppid() != parent_pid:  # it ended before we could ask
        raise SystemExit(0)
