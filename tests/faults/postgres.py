"""A PostgreSQL of a test's own, to be stopped, restarted and hung at will.

Its data are copied from a template that has all tables, which saves each test the second that making them takes.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
from pathlib import Path

import psutil
from sqlalchemy import URL, NullPool, create_engine, text

from hpsearch.postgres.programs import PostgresPrograms
from hpsearch.postgres.server import PostgresServer
from hpsearch.store.connection.database import open_database

_SECONDS = 120
# Data need to survive the kills of the server that the tests bring about, not those of the machine. The unix socket
# lies in the server's folder.
_SETTINGS = """
listen_addresses = ''
port = 5432
unix_socket_directories = '..'
unix_socket_permissions = 0700
timezone = 'UTC'
log_timezone = 'UTC'
fsync = off
log_checkpoints = off
# What is committed asynchronously stays in memory for as long as PostgreSQL allows.
wal_writer_delay = 10s
wal_writer_flush_after = 1GB
wal_buffers = 16MB
"""


# SQL's own spelling (CURRENT_TIMESTAMP) cannot be led astray so; nobody writes it here.
_SHIFT = "coalesce(nullif(current_setting('test.clock_shift', true), ''), '0')::interval"
_CLOCK = (
    *(
        f"CREATE OR REPLACE FUNCTION public.{name}() RETURNS timestamptz {volatility} LANGUAGE sql "
        f"AS $$ SELECT pg_catalog.{name}() + {_SHIFT} $$"
        for name, volatility in (("now", "STABLE"), ("clock_timestamp", "VOLATILE"))
    ),
    "ALTER DATABASE hpsearch SET search_path = public, pg_catalog",
)


def make_template(folder: Path) -> Path:
    """Data with hpsearch's tables in them, in a folder that is made here and that PostgreSQL's user can reach."""
    programs = PostgresPrograms.find(folder.parent)
    _make_folder(folder, programs)
    server = PostgresServer(folder=folder, programs=programs)
    server.ensure_running(limit_seconds=_SECONDS)
    open_database(server.url).close()
    server.stop()
    with (folder / "data" / "postgresql.conf").open("a") as settings:
        settings.write(_SETTINGS)
    return folder


class FaultyPostgres:
    """One server. Its folder goes with `remove`."""

    def __init__(self, folder: Path, template: Path) -> None:
        self.folder = folder
        self._data = folder / "data"
        self._copy = folder / "copy"
        self._has_clock = False
        self._programs = PostgresPrograms.find(folder.parent)
        _make_folder(folder, self._programs)
        subprocess.run(["cp", "--archive", str(template / "data"), str(self._data)], check=True)
        self._server = PostgresServer(folder=folder, programs=self._programs)

    @property
    def url(self) -> str:
        """Through its unix socket."""
        return self._server.url

    def tcp_url(self, host: str, **query: str) -> str:
        url = URL.create("postgresql+psycopg2", username="postgres", host=host, port=5432, database="hpsearch")
        return url.update_query_dict(query).render_as_string(hide_password=False)

    def configure(self, **settings: str) -> None:
        """Settings for its next start, or its next reload."""
        with (self._data / "postgresql.conf").open("a") as file:
            for name, value in settings.items():
                file.write(f"{name} = '{value}'\n")

    def trust(self, network: str) -> None:
        """Let in everybody who comes from there by TCP."""
        rules = self._data / "pg_hba.conf"
        rules.write_text(f"host all all {network} trust\n" + rules.read_text())

    def start(self) -> None:
        """Start it and wait until it answers."""
        self._pg_ctl("start", "-l", "server.log")

    def stop(self) -> None:
        """Stop it as a crash would: no checkpoint, every connection cut."""
        self._pg_ctl("stop", "-m", "immediate")

    def restart(self) -> None:
        """Stop and start again: well below a second."""
        self.stop()
        self.start()

    def keep_copy(self) -> None:
        """Keep its data as they are on the disk, as a backup or a standby has them. It restarts for that."""
        self.stop()
        shutil.rmtree(self._copy, ignore_errors=True)
        subprocess.run(["cp", "--archive", str(self._data), str(self._copy)], check=True)
        self.start()

    def put_copy_back(self) -> None:
        """Start again with the data of `keep_copy`: all that was committed since is lost."""
        self.stop()
        shutil.rmtree(self._data)
        subprocess.run(["cp", "--archive", str(self._copy), str(self._data)], check=True)
        self.start()

    def commit_asynchronously(self, is_on: bool) -> None:
        """From now on, commits are acknowledged before they are on the disk; or no longer."""
        self.configure(synchronous_commit="off" if is_on else "on")
        if self._server.postmaster_pid is not None:
            self._pg_ctl("reload")

    def shift_clock(self, seconds: float) -> None:
        """Put its clock forward or back, for all sessions at once, as far as SQL can tell.

        `now` and `clock_timestamp` are functions of the database then, which a session of it finds before those of
        PostgreSQL: to be called for the first time before the sessions are opened. The machine's clock stays as it is.
        """
        self.configure(**{"test.clock_shift": f"{seconds} seconds"})
        self._pg_ctl("reload")
        if self._has_clock:
            return
        engine = create_engine(self.url, isolation_level="AUTOCOMMIT", poolclass=NullPool)
        for statement in _CLOCK:
            with engine.connect() as connection:
                connection.execute(text(statement))
        engine.dispose()
        self._has_clock = True

    def remove(self) -> None:
        if self._server.postmaster_pid is not None:
            self.resume()
            self.stop()
        shutil.rmtree(self.folder)

    def hang(self) -> None:
        """SIGSTOP to the whole server: connections stay open, new ones are accepted by the kernel, nothing answers."""
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        self._signal(signal.SIGCONT)

    def create_database(self, name: str) -> str:
        """An empty database on the same server; returns its address."""
        engine = create_engine(self.url, isolation_level="AUTOCOMMIT")
        with engine.connect() as connection:
            connection.execute(text(f"CREATE DATABASE {name}"))
        engine.dispose()
        return engine.url.set(database=name).render_as_string(hide_password=False)

    def _signal(self, number: signal.Signals) -> None:
        for process in self._processes():
            with contextlib.suppress(psutil.NoSuchProcess):  # a session that has just ended
                process.send_signal(number)

    def _processes(self) -> list[psutil.Process]:
        """The postmaster first: it starts no other ones meanwhile."""
        pid = self._server.postmaster_pid
        if pid is None:
            return []
        postmaster = psutil.Process(pid)
        return [postmaster, *postmaster.children()]

    def _pg_ctl(self, action: str, *options: str) -> None:
        waiting = () if action == "reload" else ("-w", "-t", str(_SECONDS))
        arguments = (action, *waiting, "-D", "data", *options)
        done = self._programs.run("pg_ctl", *arguments, folder=self.folder, timeout_seconds=_SECONDS + 10)
        log = self.folder / "server.log"
        assert done.returncode == 0, f"pg_ctl {action}: {done.stdout}\n{log.read_text() if log.exists() else ''}"


def _make_folder(folder: Path, programs: PostgresPrograms) -> None:
    folder.mkdir(mode=0o700)
    if programs.user is not None:
        os.chown(folder, programs.user.pw_uid, programs.user.pw_gid)
