"""PostgreSQL without an installation: if no storage is named, a private server runs in hpsearch's home folder.

Any number of processes share one server. Each holds a shared lock on a file as long as it lives; a process that leaves
and finds no other holder stops the server. The kernel releases the lock of a killed process, so a SIGKILL leaves no
stale client. If the very last client is killed, the server keeps running, and the next process uses it.

    lock          exclusive, while a process starts or stops the server
    clients       shared, by each client as long as it uses the server
    server.lock   exclusive, by the server's own processes (server.py)
"""

from __future__ import annotations

import atexit
import logging
import os
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hpsearch.errors import StorageError
from hpsearch.home import home_folder, make_passable
from hpsearch.postgres.file_lock import check_excludes, close_lock_file, lock_shared, open_lock_file, try_lock
from hpsearch.postgres.lock_wait import wait_for_lock
from hpsearch.postgres.programs import SERVER_USER, PostgresPrograms
from hpsearch.postgres.server import PostgresServer

_SOCKET_PATH_LIMIT_BYTES = 103  # sockaddr_un: 108 on Linux, 104 on macOS, including the final zero
_LOCK_LIMIT_SECONDS = 180.0
_CHOOSE_FOLDER = "set HPSEARCH_HOME to another folder, or use your own PostgreSQL (--storage URL)"

logger = logging.getLogger(__name__)


class EmbeddedPostgres:
    """This process's use of a folder's server: the server runs at least until `stop`.

    with EmbeddedPostgres.start() as postgres:
        engine = create_engine(postgres.url)
    """

    def __init__(self, server: PostgresServer, clients_lock: int) -> None:
        """Use `start`. `clients_lock` is a file descriptor with a shared lock; this object closes it."""
        self._server = server
        self._clients_lock: int | None = clients_lock
        self._owner_pid = os.getpid()
        atexit.register(self._stop_at_exit)

    @classmethod
    def start(cls, folder: Path | None = None, *, limit_seconds: float = 60.0) -> EmbeddedPostgres:
        """Join the server of `folder`; start it, and create its database, if necessary.

        Any number of processes and threads may call it at once: one starts the server, the others wait.

        Args:
            folder: `default_folder()` if None. Created if missing; otherwise empty, or from an earlier start.
            limit_seconds: how long a start may take, including recovery after a crash.
        Raises:
            StorageError: the folder is not suitable, or the server does not start.
        """
        folder = (default_folder() if folder is None else folder).expanduser().resolve()
        try:
            _check_folder(folder)
            make_passable(folder.parent)
            programs = PostgresPrograms.find(folder.parent)
            _make_private(folder, programs)
            server = PostgresServer(folder=folder, programs=programs)
            with _exclusive(folder):
                clients_lock = open_lock_file(folder / "clients")
                try:
                    server.ensure_running(limit_seconds=limit_seconds)
                    lock_shared(clients_lock)  # does not block: exclusive holders hold the other lock, too
                except BaseException as error:
                    _leave_unstarted(server, clients_lock, error)
                    raise
        except OSError as error:
            raise StorageError(
                f"cannot use {folder} for the embedded PostgreSQL: {error}", hint=_CHOOSE_FOLDER
            ) from error
        return cls(server, clients_lock)

    @property
    def url(self) -> str:
        """The database's URL for SQLAlchemy: a unix socket, without a secret."""
        return self._server.url

    @property
    def folder(self) -> Path:
        return self._server.folder

    @property
    def postmaster_pid(self) -> int | None:
        """The server's process; None if it is not running."""
        return self._server.postmaster_pid

    def stop(self) -> None:
        """Leave; the last client stops the server. Safe to call again; no-op in a forked child.

        Raises:
            StorageError: the server does not stop.
        """
        if self._clients_lock is None or self._owner_pid != os.getpid():
            return
        clients_lock, self._clients_lock = self._clients_lock, None
        atexit.unregister(self._stop_at_exit)
        try:
            with _exclusive(self.folder):
                if try_lock(clients_lock):
                    self._server.stop()
        finally:
            close_lock_file(clients_lock)

    def _stop_at_exit(self) -> None:
        try:
            self.stop()
        except (StorageError, OSError) as error:  # too late to fail; the next start finds the server and uses it
            logger.warning("%s", error)

    def __enter__(self) -> EmbeddedPostgres:
        return self

    def __exit__(self, *error: object) -> None:
        self.stop()


def default_folder() -> Path:
    """Return the folder of the server if no other is named."""
    return home_folder() / "postgres"


def _check_folder(folder: Path) -> None:
    """Refuse a folder that cannot or must not be used, before anything is created or changed."""
    _check_name(folder)
    num_bytes = len(os.fsencode(folder / ".s.PGSQL.5432"))
    if num_bytes > _SOCKET_PATH_LIMIT_BYTES:
        raise StorageError(
            f"{folder} is too long for a socket's path: {num_bytes} bytes with the socket's name, "
            f"at most {_SOCKET_PATH_LIMIT_BYTES}",
            hint="set HPSEARCH_HOME to a folder with a shorter path",
        )
    if os.geteuid() == 0:
        for parent in folder.parents:
            if parent.exists() and not parent.stat().st_mode & 0o001:
                raise StorageError(
                    f"{parent} cannot be entered by the user {SERVER_USER}, which runs PostgreSQL "
                    f"(it refuses to run as root), so {folder} cannot be used",
                    hint=f"chmod o+x {parent}, or set HPSEARCH_HOME to a folder that every user can enter",
                )
    if not folder.exists():
        return
    names = {path.name for path in folder.iterdir()} if folder.is_dir() else {"(no folder)"}
    if names and "lock" not in names:  # the lock is the first file in a new folder
        raise StorageError(f"{folder} contains something other than a database of hpsearch", hint=_CHOOSE_FOLDER)
    mode = folder.stat().st_mode & 0o777
    if mode != 0o700:
        raise StorageError(
            f"{folder} has mode {mode:04o}, expected 0700: every user who can enter it has full access to the database",
            hint=f"chmod 700 {folder}",
        )


def _check_name(folder: Path) -> None:
    """Refuse a path that a connection string or PostgreSQL's own files cannot contain."""
    shown = os.fsencode(folder).decode(errors="backslashreplace")
    if "," in shown:
        fault = "has a comma, which separates servers in a connection string"
    elif shown != str(folder):
        fault = "is not valid UTF-8"
    elif any(unicodedata.category(character) == "Cc" for character in shown):
        fault = "has a control character"
    else:
        return
    raise StorageError(f"{shown!r} {fault}: the embedded PostgreSQL cannot use it", hint=_CHOOSE_FOLDER)


def _make_private(folder: Path, programs: PostgresPrograms) -> None:
    """Create the folder with mode 0700, owned by the server's user."""
    folder.mkdir(mode=0o700, exist_ok=True)
    owner = os.geteuid() if programs.user is None else programs.user.pw_uid
    found = folder.stat().st_uid
    if found not in (os.geteuid(), owner):
        raise StorageError(f"{folder} belongs to another user (id {found})", hint=_CHOOSE_FOLDER)
    if programs.user is not None:
        os.chown(folder, programs.user.pw_uid, programs.user.pw_gid)


def _leave_unstarted(server: PostgresServer, clients_lock: int, error: BaseException) -> None:
    """After an interruption (Ctrl-C, SIGTERM), stop the server that was being started, unless it has other clients.

    After an error the server is left alone: a long recovery continues, and the next start finds it.
    """
    try:
        if not isinstance(error, Exception) and try_lock(clients_lock):
            server.stop()
    except StorageError as failure:
        logger.warning("%s", failure)
    finally:
        close_lock_file(clients_lock)


@contextmanager
def _exclusive(folder: Path) -> Iterator[None]:
    """Hold the folder's lock: one process (and one thread) at a time starts or stops its server."""
    path = folder / "lock"
    lock = open_lock_file(path)
    try:
        wait_for_lock(
            lambda: try_lock(lock),
            seconds=_LOCK_LIMIT_SECONDS,
            activity=f"starting or stopping the PostgreSQL in {folder}",
            hint=f"find it with: fuser {path}",
        )
        check_excludes(lock, path)
        yield
    finally:
        close_lock_file(lock)
