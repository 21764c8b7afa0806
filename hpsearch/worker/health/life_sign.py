"""A worker's life sign: its state and its last progress, in a small file for health checks and in its metrics.

The thread that does the work renews it whenever something was done: an epoch (or a part of one) trained, the study
looked at, a deliberate wait started. A device that hangs therefore lets it grow old, although the process and its
leases live. Ages are measured with the machine's monotonic clock, which is affected neither by a wrong clock nor by a
suspended machine.
"""

from __future__ import annotations

import contextlib
import json
import os
import threading
import time
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path

from hpsearch import environment
from hpsearch.atomic_file import replacement_of
from hpsearch.errors import ArtifactError, HpsearchError, InputError
from hpsearch.logs import get_logger
from hpsearch.worker.options import DEFAULT_STALL_SECONDS

_log = get_logger("life_sign")

DEFAULT_MAX_AGE_SECONDS = DEFAULT_STALL_SECONDS  # a smaller one would kill workers that their watchdog finds healthy
_WRITE_EVERY_SECONDS = 1.0


class WorkerState(StrEnum):
    """What a worker is doing."""

    STARTING = "starting"
    TRAINING = "training"
    IDLE = "idle"  # no point is waiting; another worker may still drop one
    WAITING_FOR_GPU = "waiting for a GPU"
    DATABASE_AWAY = "database away"


class UnhealthyError(HpsearchError):
    """The worker is gone, or has made no progress for too long."""


@dataclass(frozen=True, kw_only=True)
class Sign:
    """One renewal of a life sign, as its worker notes it or as another process on the same machine reads it."""

    state: str  # a WorkerState; a newer version may have written another one
    max_age_seconds: float
    detail: str = ""
    pid: int = field(default_factory=os.getpid)
    unix_seconds: float = field(default_factory=lambda: time.time())
    monotonic_seconds: float = field(default_factory=lambda: time.monotonic())

    @property
    def age_seconds(self) -> float:
        return time.monotonic() - self.monotonic_seconds

    @property
    def is_fresh(self) -> bool:
        """Whether the renewal is recent enough for a healthy worker."""
        return self.age_seconds <= self.max_age_seconds

    def describe(self) -> str:
        """Return `training (8 lanes), 2 s ago`."""
        detail = f" ({self.detail})" if self.detail else ""
        return f"{self.state}{detail}, {self.age_seconds:.0f} s ago"


class LifeSign(AbstractContextManager["LifeSign"]):
    """Context manager: one worker's life sign. Its file exists while the context is open.

    Any thread may renew it if it knows that the training thread makes progress; any thread may read `latest`.

    Args:
        path: of the file, on this machine; None: kept in memory only, for the metrics.
        max_age_seconds: how old it may become while the worker is healthy.
    """

    def __init__(self, path: Path | None = None, *, max_age_seconds: float = DEFAULT_MAX_AGE_SECONDS) -> None:
        self.latest = Sign(state=WorkerState.STARTING, max_age_seconds=max_age_seconds)
        self._max_age_seconds = max_age_seconds
        self._path = path
        self._lock = threading.Lock()
        self._written = ("", 0.0)  # the state that is in the file, and when it was written
        self._is_writable = True

    @classmethod
    def from_environment(cls) -> LifeSign:
        """Read HPSEARCH_LIFE_SIGN (the file) and HPSEARCH_LIFE_SIGN_MAX_AGE (seconds).

        Raises:
            InputError: the age is not a finite number above 0.
        """
        named = os.environ.get(environment.LIFE_SIGN)
        seconds = os.environ.get(environment.LIFE_SIGN_MAX_AGE)
        return cls(
            Path(named).expanduser().absolute() if named else None,
            max_age_seconds=_parse_seconds(seconds) if seconds else DEFAULT_MAX_AGE_SECONDS,
        )

    def __enter__(self) -> LifeSign:
        """Write the file for the first time.

        Raises:
            ArtifactError: it cannot be written.
        """
        try:
            self._write(self.latest)
        except OSError as error:
            raise ArtifactError(
                f"cannot write the life sign {self._path}: {error.strerror}",
                hint=f"{environment.LIFE_SIGN} names a file in a folder that this user may write to",
            ) from error
        return self

    def __exit__(self, *_: object) -> None:
        if self._path is not None:
            with contextlib.suppress(OSError):
                self._path.unlink()

    def renew(self, state: WorkerState, detail: str = "", *, allowed_seconds: float = 0.0) -> None:
        """Report that something was done, or that a wait in this state starts.

        Writes the file at most once a second, unless the state has changed.

        Args:
            detail: shown beside the state.
            allowed_seconds: until the next renewal, if that may take longer than `max_age_seconds`.
        """
        sign = Sign(state=state, detail=detail, max_age_seconds=max(self._max_age_seconds, allowed_seconds))
        with self._lock:
            self.latest = sign
            written_state, written_at = self._written
            if state == written_state and sign.monotonic_seconds - written_at < _WRITE_EVERY_SECONDS:
                return
            try:
                self._write(sign)
                self._is_writable = True
            except OSError as error:
                if self._is_writable:
                    _log.warning("cannot write the life sign %s: %s", self._path, error.strerror)
                self._is_writable = False

    def renew_unchanged(self) -> None:
        """Report, from another thread, that the worker still makes progress in its last state."""
        sign = self.latest
        self.renew(WorkerState(sign.state), sign.detail, allowed_seconds=sign.max_age_seconds)

    def _write(self, sign: Sign) -> None:
        if self._path is None:
            return
        # Set even if writing fails, so that a full disk is not tried more than once a second.
        self._written = sign.state, sign.monotonic_seconds
        document = asdict(sign)
        when = datetime.fromtimestamp(document.pop("unix_seconds"), UTC)
        document["time"] = when.isoformat(timespec="milliseconds").replace("+00:00", "Z")
        with replacement_of(self._path, is_synced=False) as file:
            file.write(json.dumps(document).encode() + b"\n")


def check_life_sign(path: Path, *, max_age_seconds: float | None = None) -> Sign:
    """Read a worker's life sign and require that it is fresh and that its process exists.

    Args:
        max_age_seconds: None: the limit that the worker has written.
    Raises:
        UnhealthyError: missing, unreadable, stale, or its process is gone.
    """
    seen = _read(path)
    if not _is_process_there(seen.pid):
        raise UnhealthyError(f"the worker is gone (pid {seen.pid}); it was last {seen.describe()}")
    limit = seen.max_age_seconds if max_age_seconds is None else max_age_seconds
    if seen.age_seconds > limit:
        raise UnhealthyError(
            f"the worker has made no progress for {seen.age_seconds:.0f} s (the limit is {limit:.0f} s); "
            f"it was last {seen.describe()}",
            hint=f"if its epochs take that long, set {environment.LIFE_SIGN_MAX_AGE}",
        )
    return seen


def _read(path: Path) -> Sign:
    try:
        document = json.loads(path.read_bytes())
        seen = Sign(
            state=str(document["state"]),
            detail=str(document["detail"]),
            pid=int(document["pid"]),
            monotonic_seconds=float(document["monotonic_seconds"]),
            max_age_seconds=float(document["max_age_seconds"]),
        )
    except FileNotFoundError as error:
        raise UnhealthyError(f"there is no life sign {path}: no worker is running, or it does not write one") from error
    except OSError as error:
        raise UnhealthyError(f"cannot read the life sign {path}: {error.strerror}") from error
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
        raise UnhealthyError(f"{path} is not a worker's life sign") from error
    if seen.age_seconds < 0:  # the monotonic clock was reset
        raise UnhealthyError(f"the life sign {path} was written before this machine was started")
    return seen


def _is_process_there(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except OSError as error:
        return isinstance(error, PermissionError)  # it is another user's
    return True


def _parse_seconds(text: str) -> float:
    with contextlib.suppress(ValueError):
        seconds = float(text)
        if 0 < seconds < float("inf"):
            return seconds
    raise InputError(f"{environment.LIFE_SIGN_MAX_AGE} must be a number of seconds above 0, got {text!r}")
