"""The embedded PostgreSQL is shared by processes, survives their deaths, and opens no folder to others."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import signal
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import psycopg2
import pytest
from sqlalchemy import create_engine, make_url, text

from hpsearch.artifacts.best_parameters import open_artifacts
from hpsearch.data.files.lookup import DataLocations
from hpsearch.errors import DataError, InputError, StorageError, SurroundingsError
from hpsearch.home import artifact_folder
from hpsearch.postgres import embedded
from hpsearch.postgres import server as postgres_server
from hpsearch.postgres.embedded import EmbeddedPostgres, default_folder
from hpsearch.postgres.server import PostgresServer
from hpsearch.store.connection.database import open_storage

# Joins the server of argv[1], prints the server's pid, stays until a line arrives, leaves (or simply ends).
CLIENT = """
import sys
from pathlib import Path
from hpsearch.postgres.embedded import EmbeddedPostgres
postgres = EmbeddedPostgres.start(Path(sys.argv[1]))
print(postgres.postmaster_pid, flush=True)
if sys.stdin.readline() == "stop\\n":
    postgres.stop()
"""
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="root alone runs the server as another user")


class Client:
    """Another process that holds the server."""

    def __init__(self, folder: Path, program: str = CLIENT) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", program, str(folder)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def postmaster_pid(self) -> int:
        assert self.process.stdout is not None
        return int(self.process.stdout.readline())

    def leave(self, word: str = "stop\n") -> None:
        self.process.communicate(word, timeout=240)
        assert self.process.returncode == 0

    def kill(self) -> None:
        self.process.kill()
        self.process.communicate(timeout=240)


@pytest.fixture
def new_folder(open_folder: Path) -> Path:
    """Where a server may be made: does not exist yet."""
    return open_folder / f"new-{uuid.uuid4().hex[:8]}"


@pytest.fixture(scope="module")
def made_once(open_folder: Path) -> Path:
    folder = open_folder / "shared"
    EmbeddedPostgres.start(folder).stop()
    return folder


@pytest.fixture
def folder(made_once: Path) -> Iterator[Path]:
    """The folder of a server that has run before and was stopped; each test leaves it so."""
    yield made_once
    pid_file = made_once / "data" / "postmaster.pid"
    if pid_file.exists():  # the test killed it
        EmbeddedPostgres.start(made_once).stop()
    assert not pid_file.exists()


def ask(url: str, question: str) -> object:
    engine = create_engine(url)
    with engine.begin() as connection:
        answer: object = connection.execute(text(question)).scalar()
    engine.dispose()
    return answer


def tell(url: str, statement: str) -> None:
    engine = create_engine(url)
    with engine.begin() as connection:
        connection.execute(text(statement))
    engine.dispose()


def has_ended(pid: int) -> bool:
    """True once the process has ended, reaped by the machine's init or not; waits for that a little."""
    try:
        process = psutil.Process(pid)
        for _ in range(1000):
            if process.status() == psutil.STATUS_ZOMBIE:
                return True
            with contextlib.suppress(psutil.TimeoutExpired):
                process.wait(timeout=0.05)
    except psutil.NoSuchProcess:
        return True
    return False


def kill_server(postgres: EmbeddedPostgres) -> int:
    """SIGKILL the server's first process; its children notice and leave by themselves."""
    pid = postgres.postmaster_pid
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    assert has_ended(pid)
    return pid


def test_starts_keeps_its_data_and_stops(new_folder: Path) -> None:
    with EmbeddedPostgres.start(new_folder) as postgres:
        assert make_url(postgres.url).database == "hpsearch"
        assert make_url(postgres.url).drivername == "postgresql+psycopg2"
        tell(postgres.url, "CREATE TABLE kept AS SELECT 42 AS answer")
        pid = postgres.postmaster_pid
        assert pid is not None
    assert has_ended(pid)
    postgres.stop()  # a second time: nothing to do
    with EmbeddedPostgres.start(new_folder) as postgres:
        assert ask(postgres.url, "SELECT answer FROM kept") == 42


def test_server_is_durable_in_utc_and_has_no_port(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "Asia/Tokyo")  # initdb would take it for the server's default
    with EmbeddedPostgres.start(folder) as postgres:
        expected = {"TimeZone": "UTC", "fsync": "on", "listen_addresses": ""}
        assert {name: ask(postgres.url, f"SHOW {name}") for name in expected} == expected


# Each of libpq's variables, with a value that would lead elsewhere, be refused or change the session.
LIBPQ_VARIABLES = {
    "PGHOST": "db.example.org",
    "PGHOSTADDR": "127.0.0.1",
    "PGPORT": "6000",
    "PGDATABASE": "other",
    "PGUSER": "nobody",
    "PGPASSWORD": "x",
    "PGPASSFILE": "/nonexistent",
    "PGSERVICE": "nowhere",
    "PGSERVICEFILE": "/nonexistent",
    "PGSYSCONFDIR": "/nonexistent",
    "PGREQUIREAUTH": "scram-sha-256",
    "PGCHANNELBINDING": "require",
    "PGSSLMODE": "verify-full",
    "PGSSLNEGOTIATION": "direct",
    "PGSSLCERT": "/nonexistent",
    "PGSSLMINPROTOCOLVERSION": "none",
    "PGGSSENCMODE": "require",
    "PGREQUIREPEER": "nobody",
    "PGTARGETSESSIONATTRS": "standby",
    "PGLOADBALANCEHOSTS": "nonsense",
    "PGOPTIONS": "-c default_transaction_read_only=on",
    "PGCLIENTENCODING": "LATIN1",
    "PGCONNECT_TIMEOUT": "nonsense",
    "PGTZ": "Asia/Tokyo",
    "PGDATESTYLE": "German",
    "PGDATA": "/nonexistent",
}


def test_no_variable_of_libpq_has_a_part_in_the_embedded_server(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedded, "default_folder", lambda: folder)
    for name, value in LIBPQ_VARIABLES.items():
        monkeypatch.setenv(name, value)
    with open_storage(None) as database:
        for engine in (database.engine, database.storage.engine):
            with engine.connect() as connection:
                rows = {
                    name: connection.execute(text(f"SHOW {name}")).scalar()
                    for name in ("client_encoding", "default_transaction_read_only", "TimeZone")
                }
                assert rows == {
                    "client_encoding": "UTF8",
                    "default_transaction_read_only": "off",
                    "TimeZone": "UTC",
                }
                assert connection.execute(text("SELECT current_database()")).scalar() == "hpsearch"
        database.engine.dispose()
    assert {name: os.environ[name] for name in LIBPQ_VARIABLES} == LIBPQ_VARIABLES, "the user's own are still there"


def test_any_name_of_the_folder_works(open_folder: Path) -> None:
    with EmbeddedPostgres.start(open_folder / "a b{%41}'\"$(false)`ü+&=?#") as postgres:
        assert ask(postgres.url, "SELECT 1") == 1


@pytest.mark.parametrize(
    ("name", "fault"),
    [("a,b", "has a comma"), (os.fsdecode(b"a\xffb"), "is not valid UTF-8"), ("a\nb", "has a control character")],
)
def test_a_name_that_postgresql_cannot_use_is_refused_at_once(open_folder: Path, name: str, fault: str) -> None:
    with pytest.raises(StorageError, match=fault) as caught:
        EmbeddedPostgres.start(open_folder / name)
    str(caught.value).encode()  # it can be printed
    assert "HPSEARCH_HOME" in str(caught.value.hint)
    assert not (open_folder / name).exists()


def test_folder_and_all_in_it_are_closed_to_others(folder: Path) -> None:
    with EmbeddedPostgres.start(folder):
        assert folder.stat().st_mode & 0o777 == 0o700
        assert (folder / "data").stat().st_mode & 0o777 == 0o700


def test_two_processes_share_a_server_and_the_last_one_stops_it(folder: Path) -> None:
    first, second = Client(folder), Client(folder)
    pid = first.postmaster_pid()
    assert second.postmaster_pid() == pid
    first.leave()
    assert psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    second.leave("")  # ends without a word: the exit handler leaves for it
    assert has_ended(pid)


def test_each_hold_of_one_process_counts(folder: Path) -> None:
    with EmbeddedPostgres.start(folder) as outer:
        with EmbeddedPostgres.start(folder) as inner:
            assert inner.postmaster_pid == outer.postmaster_pid
        assert ask(outer.url, "SELECT 1") == 1


def test_a_killed_client_does_not_keep_the_server_alive(folder: Path) -> None:
    killed, last = Client(folder), Client(folder)
    pid = killed.postmaster_pid()
    assert last.postmaster_pid() == pid
    killed.kill()
    last.leave()
    assert has_ended(pid)


def test_the_statement_of_a_killed_client_ends(folder: Path) -> None:
    with EmbeddedPostgres.start(folder) as postgres:
        begin = f"import psycopg2; cursor = psycopg2.connect({postgres.url.replace('+psycopg2', '')!r}).cursor()"
        tell_pid = "cursor.execute('SELECT pg_backend_pid()'); print(cursor.fetchone()[0], flush=True)"
        words = [sys.executable, "-c", f"{begin}; {tell_pid}; cursor.execute('SELECT pg_sleep(600)')"]
        with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as client:
            assert client.stdout is not None
            backend = int(client.stdout.readline())
            client.kill()
        assert has_ended(backend)


def test_server_whose_only_client_was_killed_is_found_and_stopped(folder: Path) -> None:
    client = Client(folder)
    pid = client.postmaster_pid()
    client.kill()
    assert psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    with EmbeddedPostgres.start(folder) as postgres:
        assert postgres.postmaster_pid == pid
    assert has_ended(pid)


def test_client_killed_in_the_middle_of_the_first_start_leaves_nothing_half_made(new_folder: Path) -> None:
    new_folder.mkdir(mode=0o700)
    (new_folder / "lock").touch()
    (new_folder / "data.partial").mkdir()  # what a kill during initdb leaves
    (new_folder / "data.partial" / "PG_VERSION").write_text("18\n")
    with EmbeddedPostgres.start(new_folder) as postgres:
        assert ask(postgres.url, "SELECT 1") == 1


def test_four_first_starts_at_once_make_one_server(new_folder: Path) -> None:
    clients = [Client(new_folder) for _ in range(4)]
    pids = {client.postmaster_pid() for client in clients}
    assert len(pids) == 1
    for client in clients:
        client.leave()
    assert has_ended(pids.pop())


@pytest.mark.parametrize("interruption", [KeyboardInterrupt, SystemExit])
def test_a_start_that_is_interrupted_leaves_no_server_behind(
    interruption: type[BaseException], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(_: PostgresServer) -> None:
        raise interruption

    monkeypatch.setattr(PostgresServer, "_create_database", interrupt)
    with pytest.raises(interruption):
        EmbeddedPostgres.start(folder)
    assert not (folder / "data" / "postmaster.pid").exists()


def test_a_start_that_is_interrupted_leaves_the_server_to_others(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(_: PostgresServer) -> None:
        raise KeyboardInterrupt

    with EmbeddedPostgres.start(folder) as postgres:
        monkeypatch.setattr(PostgresServer, "_create_database", interrupt)
        with pytest.raises(KeyboardInterrupt):
            EmbeddedPostgres.start(folder)
        assert ask(postgres.url, "SELECT 1") == 1


def test_starts_again_after_a_crash_and_keeps_what_was_committed(folder: Path) -> None:
    with EmbeddedPostgres.start(folder) as postgres:
        tell(postgres.url, "CREATE TABLE committed AS SELECT 42 AS answer")
        kill_server(postgres)
        with EmbeddedPostgres.start(folder) as again:
            assert again.url == postgres.url
            assert ask(again.url, "SELECT answer FROM committed") == 42


def test_stopping_a_server_that_crashed_is_no_error(folder: Path) -> None:
    postgres = EmbeddedPostgres.start(folder)
    kill_server(postgres)
    postgres.stop()
    assert postgres.postmaster_pid is None


@pytest.fixture
def stranger(folder: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A process of the server's user that has nothing to do with PostgreSQL."""
    # Of the same user: lock files that name anybody else's process PostgreSQL ignores by itself.
    with subprocess.Popen(["sleep", "60"], user=folder.stat().st_uid, cwd="/") as process:
        yield process
        process.kill()


@pytest.mark.parametrize("lie", ["a living process", "nothing", "no number"])
@pytest.mark.parametrize("name", ["data/postmaster.pid", ".s.PGSQL.5432.lock"])
def test_stale_lock_file_does_not_stand_in_the_way(
    folder: Path, stranger: subprocess.Popen[bytes], name: str, lie: str
) -> None:
    with EmbeddedPostgres.start(folder) as postgres:
        kill_server(postgres)
        lines = (folder / name).read_text().splitlines()
        first = {"a living process": str(stranger.pid), "nothing": "", "no number": "x"}[lie]
        (folder / name).write_text("" if lie == "nothing" else "\n".join([first, *lines[1:]]) + "\n")
        with EmbeddedPostgres.start(folder) as again:
            assert ask(again.url, "SELECT 1") == 1
    assert stranger.poll() is None  # it was left alone


def test_pid_file_from_another_host_is_respected_where_hosts_may_share_the_folder(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with EmbeddedPostgres.start(folder) as postgres:
        kill_server(postgres)
        (folder / "host").write_text("node17")
        with monkeypatch.context() as on_nfs:
            on_nfs.setattr(postgres_server, "file_system_type", lambda path: "nfs4")
            with pytest.raises(StorageError, match="in use on host node17") as caught:
                EmbeddedPostgres.start(folder)
        assert "postmaster.pid" in str(caught.value.hint)
        assert "(nfs4) that other machines may share" in caplog.text
        assert "HPSEARCH_HOME" in caplog.text
        caplog.clear()
        with EmbeddedPostgres.start(folder) as again:  # a container that was made anew has another host name
            assert ask(again.url, "SELECT 1") == 1
        assert "HPSEARCH_HOME" not in caplog.text


def _refuse_locks(descriptor: int, operation: int) -> None:
    raise OSError(errno.ENOLCK, "No locks available")


@pytest.mark.parametrize(
    ("flock", "said"),
    [(_refuse_locks, "No locks available"), (lambda descriptor, operation: None, "exclude nobody")],
)
def test_a_file_system_without_locks_is_refused(
    flock: Callable[[int, int], None], said: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fcntl, "flock", flock)
    with pytest.raises(StorageError, match=said) as caught:
        EmbeddedPostgres.start(folder)
    assert "HPSEARCH_HOME" in str(caught.value.hint)
    assert not (folder / "data" / "postmaster.pid").exists()


# As CLIENT, with a child of a plain fork (a network of the user's may have one) that lives on.
FORKING_CLIENT = CLIENT.replace(
    "print(",
    """import os, time
child = os.fork()
if child == 0:
    os.closerange(0, 3)
    time.sleep(600)
    os._exit(0)
print(child, """,
)


@pytest.mark.parametrize("end", ["leaves", "is killed"])
def test_a_child_that_a_client_forked_does_not_keep_the_server(folder: Path, end: str) -> None:
    client = Client(folder, FORKING_CLIENT)
    assert client.process.stdout is not None
    child, pid = map(int, client.process.stdout.readline().split())
    try:
        if end == "leaves":
            client.leave()
        else:
            client.kill()
            EmbeddedPostgres.start(folder).stop()
        assert has_ended(pid)
        assert psutil.pid_exists(child)
    finally:
        os.kill(child, signal.SIGKILL)


def test_server_that_hangs_is_an_error_within_the_limit(folder: Path) -> None:
    with EmbeddedPostgres.start(folder) as postgres:
        pid = postgres.postmaster_pid
        assert pid is not None
        os.kill(pid, signal.SIGSTOP)
        try:
            with pytest.raises(StorageError, match="does not answer") as caught:
                EmbeddedPostgres.start(folder, limit_seconds=0)
        finally:
            os.kill(pid, signal.SIGCONT)
        assert "ready to accept connections" in str(caught.value.hint)  # the end of its log


def test_server_that_cannot_start_is_an_error_with_the_end_of_its_log(folder: Path) -> None:
    configuration = folder / "data" / "postgresql.conf"
    sound = configuration.read_text()
    configuration.write_text(sound + "shared_buffers = nonsense\n")
    with pytest.raises(StorageError, match="does not answer") as caught:
        EmbeddedPostgres.start(folder)
    assert "shared_buffers" in str(caught.value.hint)
    configuration.write_text(sound)


def test_data_of_another_postgres_version_is_refused(folder: Path) -> None:
    version = folder / "data" / "PG_VERSION"
    version.write_text("16\n")
    with pytest.raises(StorageError, match="created by PostgreSQL 16, but this hpsearch uses version 18"):
        EmbeddedPostgres.start(folder)
    version.write_text("18\n")


def test_folder_open_to_others_is_refused(new_folder: Path) -> None:
    new_folder.mkdir()
    new_folder.chmod(0o755)
    with pytest.raises(StorageError, match="mode 0755") as caught:
        EmbeddedPostgres.start(new_folder)
    assert caught.value.hint == f"chmod 700 {new_folder}"


def test_folder_with_something_else_in_it_is_left_alone(new_folder: Path) -> None:
    new_folder.mkdir(mode=0o700)
    (new_folder / "thesis.tex").write_text("years of work")
    before = new_folder.stat()
    with pytest.raises(StorageError, match="something other than a database"):
        EmbeddedPostgres.start(new_folder)
    assert [path.name for path in new_folder.iterdir()] == ["thesis.tex"]
    assert (new_folder.stat().st_uid, new_folder.stat().st_mode) == (before.st_uid, before.st_mode)


def test_file_in_place_of_the_folder_is_refused(new_folder: Path) -> None:
    new_folder.touch()
    with pytest.raises(StorageError, match="something other than a database"):
        EmbeddedPostgres.start(new_folder)
    new_folder.unlink()


def test_path_too_long_for_a_socket_is_refused(open_folder: Path) -> None:
    with pytest.raises(StorageError, match="at most 103"):
        EmbeddedPostgres.start(open_folder / ("x" * 100))
    assert not (open_folder / ("x" * 100)).exists()


@as_root
def test_closed_parent_is_refused_and_stays_closed(open_folder: Path) -> None:
    closed = open_folder / "closed"
    closed.mkdir(mode=0o700)
    with pytest.raises(StorageError, match="cannot be entered by the user") as caught:
        EmbeddedPostgres.start(closed / "postgres")
    assert "HPSEARCH_HOME" in str(caught.value.hint)
    assert closed.stat().st_mode & 0o777 == 0o700
    assert not list(closed.iterdir())


@as_root
def test_parents_and_programs_keep_their_modes(folder: Path) -> None:
    watched = [*folder.parents, *Path(sys.executable).resolve().parents, *Path(psycopg2.__file__).parents]
    before = [path.stat().st_mode for path in watched]
    with EmbeddedPostgres.start(folder) as postgres:
        pid = postgres.postmaster_pid
        assert pid is not None
        assert psutil.Process(pid).uids().real != 0
    assert [path.stat().st_mode for path in watched] == before


@as_root
def test_missing_parents_are_made_so_that_the_server_can_pass(open_folder: Path) -> None:
    old = os.umask(0o077)
    try:
        with EmbeddedPostgres.start(open_folder / "made" / "here" / "postgres") as postgres:
            assert ask(postgres.url, "SELECT 1") == 1
    finally:
        os.umask(old)


@as_root
def test_a_home_that_the_first_command_makes_can_be_entered_by_the_server(
    open_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HPSEARCH_HOME", str(open_folder / "umask" / "home"))
    old = os.umask(0o027)
    try:
        open_artifacts(artifact_folder())
        with EmbeddedPostgres.start() as postgres:
            assert ask(postgres.url, "SELECT 1") == 1
    finally:
        os.umask(old)


@as_root
def test_a_disk_that_is_full_is_told(open_folder: Path) -> None:
    disk = open_folder / "small"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16m,mode=755", "tmpfs", str(disk)], check=True)
    try:
        with pytest.raises(StorageError, match="cannot create a database in") as caught:
            EmbeddedPostgres.start(disk / "postgres")
        assert "No space left on device" in str(caught.value.hint)
    finally:
        subprocess.run(["umount", "--lazy", str(disk)], check=True)


class TestDefaultFolder:
    def test_a_user_without_a_home_is_asked_for_one(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv("HPSEARCH_HOME")
        monkeypatch.delenv("HOME")
        monkeypatch.delenv("XDG_DATA_HOME", raising=False)
        monkeypatch.setattr(os, "geteuid", lambda: 54321)
        monkeypatch.setattr(os, "getuid", lambda: 54321)
        with pytest.raises(SurroundingsError, match=r"this user \(id 54321\) has no home folder") as caught:
            default_folder()
        assert "HPSEARCH_HOME" in str(caught.value.hint)
        monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
        with pytest.raises(DataError, match="no home folder for downloaded data"):
            DataLocations.from_environment()
        monkeypatch.setenv("HPSEARCH_HOME", "/srv/searches")
        assert DataLocations.from_environment().cache == Path("/srv/searches/cache/data")

    def test_a_home_of_nobody_is_refused(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("HPSEARCH_HOME", "~nobody-of-this-name/searches")
        with pytest.raises(InputError, match="HPSEARCH_HOME=~nobody-of-this-name"):
            default_folder()

    def test_home_of_hpsearch_comes_first(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("HPSEARCH_HOME", "/srv/searches")
        assert default_folder() == Path("/srv/searches/postgres")

    def test_root_stays_out_of_its_own_home(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv("HPSEARCH_HOME")
        monkeypatch.setattr(os, "geteuid", lambda: 0)
        assert default_folder() == Path("/var/lib/hpsearch/postgres")

    def test_a_user_has_it_among_their_data(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv("HPSEARCH_HOME")
        monkeypatch.setattr(os, "geteuid", lambda: 1000)
        monkeypatch.setenv("XDG_DATA_HOME", "/home/ada/.local/share")
        assert default_folder() == Path("/home/ada/.local/share/hpsearch/postgres")
