"""Ends what a dead keeper has left to its worker. What a script leaves is ended by its guardian (guardian.py)."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from hpsearch.scripts.keeper.processes import Process, read_process, read_processes

KEEPER_TOKEN: Final = "HPSEARCH_KEEPER_TOKEN"  # in the environment of the keeper, its guardians and all scripts
_EXECVE_SECONDS = 1.0  # that a process may take to get its environment


class Leftovers:
    """Children of the worker that came from a dead keeper: its guardians, and what killed guardians have left.

    The worker may have children of its own and, as a subreaper, adopt what those have left. So a child counts as left
    by the keeper only if its session is the keeper's or that of a script, or if its initial environment has the
    keeper's token. The worker's other children fulfil none of these.
    """

    def __init__(
        self, keeper_pid: int, sessions: set[int], token: str, is_own_child: Callable[[int], bool] | None
    ) -> None:
        self._keeper_pid = keeper_pid
        self._sessions = sessions
        self._mark = f"{KEEPER_TOKEN}={token}".encode()
        self._is_own_child = is_own_child
        self._killed: dict[int, int] = {}  # pidfds by process id; zombies could not be recognised again

    def end(self, guardian_seconds: float) -> None:
        """Reap and kill until none is left.

        Args:
            guardian_seconds: that guardians have for ending their scripts; then they are killed.
        """
        guardians_end_at = time.monotonic() + guardian_seconds
        self._is_clear_at = time.monotonic() + _EXECVE_SECONDS
        pause = 0.002
        own = os.getpid()
        while children := [one.pid for one in read_processes() if one.parent == own]:
            kills_guardians = time.monotonic() >= guardians_end_at
            if not sum(self._end_child(pid, kills_guardians) for pid in children):  # any() would not look at all
                return
            time.sleep(pause)
            pause = min(2 * pause, 0.1)

    def _end_child(self, pid: int, kills_guardians: bool) -> bool:
        """Reap a child that the keeper left, or kill it; returns False for other children."""
        if pid == self._keeper_pid:
            return False
        if pid in self._killed:
            if os.waitid(os.P_PIDFD, self._killed[pid], os.WEXITED | os.WNOHANG) is not None:
                os.close(self._killed.pop(pid))
            return True
        try:
            descriptor = os.pidfd_open(pid)
        except ProcessLookupError:
            return True  # look again
        try:
            # The look comes after the descriptor, which stays that of the process looked at.
            process = read_process(pid)
            if process is None or process.parent != os.getpid():
                return True
            if not self._is_left_by_keeper(process):
                return self._may_be_in_execve(pid, descriptor)
            if process.session != self._keeper_pid or kills_guardians:
                signal.pidfd_send_signal(descriptor, signal.SIGKILL)
            if os.waitid(os.P_PIDFD, descriptor, os.WEXITED | os.WNOHANG) is None:
                self._killed[pid] = os.dup(descriptor)
        except (ProcessLookupError, ChildProcessError, PermissionError):
            pass
        finally:
            os.close(descriptor)
        return True

    def _may_be_in_execve(self, pid: int, descriptor: int) -> bool:
        """Whether a living child has no environment, for a moment: it has to be looked at again."""
        if time.monotonic() >= self._is_clear_at:
            return False  # it was given none
        if os.waitid(os.P_PIDFD, descriptor, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None:
            return False
        with contextlib.suppress(OSError):
            return not Path(f"/proc/{pid}/environ").read_bytes()
        return True

    def _is_left_by_keeper(self, process: Process) -> bool:
        if process.session == self._keeper_pid or process.session in self._sessions:
            return True
        with contextlib.suppress(OSError):
            if self._mark in Path(f"/proc/{process.pid}/environ").read_bytes().split(b"\0"):
                return True
        return self._is_own_child is not None and not self._is_own_child(process.pid)
