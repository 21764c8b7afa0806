"""One PostgreSQL server in one folder: creates its data, starts it, checks that it answers, stops it.

Nothing here is safe for concurrent callers: `embedded` holds a lock around each call that changes something.

    folder/           0700, owned by the user that the server runs as
      data/           PostgreSQL's own
      server.log
      server.lock     locked by the server's processes, and by initdb while it creates the data: the postmaster inherits
                      the descriptor, and its children inherit it from the postmaster. The kernel knows the lock in
                      every PID namespace and container, while a process number is valid only in its own namespace
      host            the machine that started the server last
      .s.PGSQL.5432   the socket, the only way in: any user that can enter the folder is the database's superuser
"""

from __future__ import annotations

import errno
import logging
import re
import shutil
import socket
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil
import psycopg2
import psycopg2.extensions
from sqlalchemy import URL

from hpsearch.errors import StorageError
from hpsearch.postgres.file_lock import LOCAL_FILE_SYSTEMS, close_lock_file, file_system_type, open_lock_file, try_lock
from hpsearch.postgres.libpq import connect_without_variables
from hpsearch.postgres.programs import MAJOR_VERSION, PostgresPrograms

DATABASE = "hpsearch"
_SUPERUSER = "postgres"
_PORT = 5432  # part of the socket's name; the server does not listen on TCP
_START_ATTEMPTS = 5
_STOP_LIMIT_SECONDS = 30
_PAUSE_SECONDS = 0.1
_INITDB_OPTIONS = (
    f"--username={_SUPERUSER}",
    "--auth-local=trust",  # the folder's mode protects the database
    "--auth-host=reject",
    "--encoding=UTF8",
    "--locale=C",  # sorts names the same way on every machine
    "--no-instructions",
)
# Relative to the data folder, which is the server's working folder: no path needs quoting for the shell of pg_ctl.
# A statement of a client that was killed ends too: it would hold its locks, and a processor, to its end.
_SERVER_OPTIONS = (
    f"-h '' -p {_PORT} -k .. -c unix_socket_permissions=0700 -c timezone=UTC -c log_timezone=UTC -c log_checkpoints=off"
    " -c client_connection_check_interval=5s"
)
_COMPLAINT = re.compile(r"(?:PANIC|FATAL|ERROR|error): .*")

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class PostgresServer:
    """The server of `folder`, running or not.

    Args:
        folder: absolute, existing, mode 0700, owned by the programs' user.
    """

    folder: Path
    programs: PostgresPrograms

    @property
    def url(self) -> str:
        """URL for SQLAlchemy; quoted, so any path is possible. It contains no secret."""
        query = {"host": str(self.folder), "port": str(_PORT)}
        url = URL.create("postgresql+psycopg2", username=_SUPERUSER, database=DATABASE, query=query)
        return url.render_as_string(hide_password=False)

    @property
    def postmaster_pid(self) -> int | None:
        """The server's process; None if it is not running."""
        pid = _recorded_pid(self._pid_file)
        return pid if pid is not None and self._works_here(pid) else None

    def ensure_running(self, *, limit_seconds: float) -> None:
        """Start the server unless it already answers; create its data and its database if they are missing.

        Safe to call again. Only a successful SELECT 1 counts: a pid file left by a crash may name any process.

        Raises:
            StorageError: no answer within about `limit_seconds`, or the server cannot start.
            OSError: the file system has no locks.
        """
        self._check_version()
        if self._refusal() is not None:
            self._check_host()
        deadline = time.monotonic() + limit_seconds
        attempts = 0
        while (refusal := self._refusal()) is not None:
            if time.monotonic() > deadline or attempts == _START_ATTEMPTS:
                raise self._failure(f"does not answer: {refusal}{self._holder()}")
            with self._start_lock() as start_lock:
                if start_lock is None:  # it is starting, recovering from a crash, stopping, or hangs
                    time.sleep(_PAUSE_SECONDS)
                    continue
                deadline += self._initialise(start_lock)
                self._clear_remains()
                attempts += 1
                (self.folder / "host").write_text(socket.gethostname())
                options = ("-l", "server.log", "-o", _SERVER_OPTIONS)
                started = self._pg_ctl("start", *options, limit_seconds=limit_seconds, keep_open=[start_lock])
                logger.debug("pg_ctl start: %s", started)
        self._create_database()

    def stop(self) -> None:
        """Stop the server if it runs; open connections are closed. Safe to call again.

        Raises:
            StorageError: it does not stop.
        """
        for mode in ("fast", "immediate"):
            if self.postmaster_pid is None:
                break
            stopped = self._pg_ctl("stop", "-m", mode, limit_seconds=_STOP_LIMIT_SECONDS)
            logger.debug("pg_ctl stop -m %s: %s", mode, stopped)
        if self.postmaster_pid is not None:
            raise self._failure("does not stop")
        if self._listens():
            logger.warning("PostgreSQL in %s is still running, in another container or PID namespace", self.folder)

    def _check_version(self) -> None:
        if self._version_file.exists() and (version := self._version_file.read_text().strip()) != MAJOR_VERSION:
            raise StorageError(
                f"{self._data} was created by PostgreSQL {version}, but this hpsearch uses version {MAJOR_VERSION}",
                hint="set HPSEARCH_HOME to another folder, or convert this one with pg_upgrade",
            )

    def _initialise(self, start_lock: int) -> float:
        """Create the data unless they exist; return the seconds that it took."""
        if self._version_file.exists():
            return 0.0
        started = time.monotonic()
        # Created under another name and renamed, so that a kill in between leaves no incomplete database.
        partial = self.folder / "data.partial"
        shutil.rmtree(partial, ignore_errors=True)
        arguments = (*_INITDB_OPTIONS, "-D", partial.name)
        keep_open = [start_lock]  # initdb may outlive this process
        made = self.programs.run("initdb", *arguments, folder=self.folder, timeout_seconds=300, keep_open=keep_open)
        if made.returncode != 0:
            shutil.rmtree(partial, ignore_errors=True)
            raise StorageError(
                f"cannot create a database in {self.folder} (initdb exited with {made.returncode})",
                hint=f"output of initdb: {_complaints(made.stdout)}",
            )
        partial.rename(self._data)
        return time.monotonic() - started

    @contextmanager
    def _start_lock(self) -> Iterator[int | None]:
        """Yield the lock that a server needs, to be passed on to it; None while any server may be alive.

        Two servers on the same data destroy them. Servers of earlier versions of hpsearch 0.1 do not hold this lock:
        they are recognised by their process, or, from another PID namespace, by the socket that they listen on.
        """
        start_lock = open_lock_file(self.folder / "server.lock")
        try:
            is_free = try_lock(start_lock) and not self._listens() and not self._has_processes()
            yield start_lock if is_free else None
        finally:
            close_lock_file(start_lock)

    def _pg_ctl(self, action: str, *options: str, limit_seconds: float, keep_open: Sequence[int] = ()) -> str:
        # -w waits until it is done; a longer recovery continues in the background, and `ensure_running` keeps asking.
        seconds = max(1, round(limit_seconds))
        arguments = ("-w", "-t", str(seconds), "-D", "data", *options)
        return self.programs.run(
            "pg_ctl", action, *arguments, folder=self.folder, timeout_seconds=seconds + 10, keep_open=keep_open
        ).stdout

    def _clear_remains(self) -> None:
        """Remove the lock files of a server that is gone, if they would keep PostgreSQL from starting.

        PostgreSQL itself removes a lock file whose process is dead. It must respect a lock file that names a live
        process (the number was reused, or a zombie waits to be reaped); the start lock proves that this process is no
        server.
        """
        for lock_file in (self._pid_file, self.folder / f"{self._socket.name}.lock"):
            if not lock_file.exists():
                continue
            pid = _recorded_pid(lock_file)
            if pid is None or psutil.pid_exists(pid):
                logger.warning("removing %s: it names process %s, which is not a server of hpsearch", lock_file, pid)
                lock_file.unlink(missing_ok=True)

    def _check_host(self) -> None:
        """Refuse the data of a server that may be alive on another machine, which this machine's locks do not reach."""
        kind = file_system_type(self.folder)
        if kind in LOCAL_FILE_SYSTEMS:
            return
        message = (
            "%s is on a file system (%s) that other machines may share, and its locks may not exclude them: "
            "set HPSEARCH_HOME to a folder on a local disk"
        )
        logger.warning(message, self.folder, kind)
        host_file = self.folder / "host"
        host = host_file.read_text() if host_file.exists() else ""
        if self._pid_file.exists() and host not in ("", socket.gethostname()):
            raise StorageError(
                f"the database in {self.folder} is in use on host {host}, or was when that host went down",
                hint=f"stop hpsearch there, or set HPSEARCH_HOME to a folder of this host; "
                f"if {host} is gone for good, remove {self._pid_file}",
            )

    def _listens(self) -> bool:
        """Whether a process of any namespace listens on the socket, even one that is stopped and does not answer."""
        with closing(socket.socket(socket.AF_UNIX)) as client:
            client.setblocking(False)
            return client.connect_ex(str(self._socket)) not in (errno.ENOENT, errno.ECONNREFUSED)

    def _has_processes(self) -> bool:
        return any(self._works_here(process.pid) for process in psutil.process_iter())

    def _works_here(self, pid: int) -> bool:
        try:
            process = psutil.Process(pid)
            # Compared as files: seen from outside its container, a process has another path.
            folder = f"/proc/{pid}/cwd" if sys.platform == "linux" else process.cwd()
            return process.name() == "postgres" and self._data.samefile(folder)
        except (psutil.Error, OSError):  # gone, a zombie, or another user's: not our server
            return False

    def _refusal(self) -> str | None:
        """Return why the server does not answer, in one line; None if it does."""
        try:
            with self._connect() as connection, connection.cursor() as cursor:
                cursor.execute("SELECT 1")
        except psycopg2.OperationalError as error:
            return " ".join(str(error).split())
        return None

    def _create_database(self) -> None:
        with self._connect() as connection, connection.cursor() as cursor:
            cursor.execute("SELECT 1 FROM pg_database WHERE datname = %s", (DATABASE,))
            if cursor.fetchone() is None:
                cursor.execute(f'CREATE DATABASE "{DATABASE}"')

    @contextmanager
    def _connect(self) -> Iterator[psycopg2.extensions.connection]:
        connection = connect_without_variables(
            host=str(self.folder), port=_PORT, user=_SUPERUSER, dbname="postgres", connect_timeout=2
        )
        connection.autocommit = True  # CREATE DATABASE cannot run in a transaction
        with closing(connection):
            yield connection

    def _failure(self, what: str) -> StorageError:
        log = self.folder / "server.log"
        tail = _last_lines(log.read_text(errors="replace")) if log.exists() else "(no log yet)"
        return StorageError(f"the PostgreSQL in {self.folder} {what}", hint=f"last lines of {log}: {tail}")

    def _holder(self) -> str:
        """Describe what may prevent the server from starting, for an error message.

        Empty if a server of this PID namespace is there.
        """
        if self.postmaster_pid is not None:
            return ""
        with self._start_lock() as start_lock:
            if start_lock is not None:
                return ""
        return "; a server in another container or PID namespace, or what is left of it, holds the folder"

    @property
    def _data(self) -> Path:
        return self.folder / "data"

    @property
    def _version_file(self) -> Path:
        return self._data / "PG_VERSION"

    @property
    def _socket(self) -> Path:
        return self.folder / f".s.PGSQL.{_PORT}"

    @property
    def _pid_file(self) -> Path:
        return self._data / "postmaster.pid"


def _recorded_pid(lock_file: Path) -> int | None:
    """Return the process that a PostgreSQL lock file names in its first line; None if there is none."""
    try:
        return int(lock_file.read_text().partition("\n")[0])
    except (FileNotFoundError, ValueError):
        return None


def _complaints(text: str) -> str:
    """Return the lines that say what went wrong; the last lines of the output are about cleaning up."""
    return _last_lines("\n".join(_COMPLAINT.findall(text)) or text)


def _last_lines(text: str, *, num_lines: int = 4, num_characters: int = 600) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return " / ".join(lines[-num_lines:])[-num_characters:]
