"""A real pgbouncer in front of PostgreSQL: one that pools sessions will do, one that pools transactions is refused."""

from __future__ import annotations

import os
import secrets
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import optuna
import psycopg2
import pytest
from sqlalchemy import text

from hpsearch.errors import StorageError
from hpsearch.store.connection.database import open_database
from tests.faults.postgres import FaultyPostgres, make_template
from tests.faults.processes import wait_until

PORT = 5432


def loopback_address() -> str:
    """One of 16 million: PostgreSQL can keep its usual port, which its socket's name has, too."""
    return ".".join(["127", *(str(secrets.randbelow(200) + 20) for _ in range(3))])


@pytest.fixture(scope="module")
def server_address(open_folder: Path) -> Iterator[str]:
    server = FaultyPostgres(open_folder / "pooled", make_template(open_folder / "pooled-template"))
    address = loopback_address()
    server.configure(listen_addresses=address)
    server.trust("127.0.0.0/8")
    server.start()
    yield address
    server.remove()


@pytest.fixture
def pooled(server_address: str, tmp_path: Path) -> Iterator[Callable[[str], str]]:
    """Starts a pgbouncer in a mode, and gives the URL that goes through it."""
    program = shutil.which("pgbouncer", path=f"{os.environ['PATH']}:/usr/sbin")
    if program is None:
        if os.environ.get("CI"):
            pytest.fail("pgbouncer is not installed")
        pytest.skip("pgbouncer is not installed (Debian: apt-get install pgbouncer)")
    started: list[subprocess.Popen[bytes]] = []

    def start(mode: str) -> str:
        address = loopback_address()
        configuration = tmp_path / "pgbouncer.ini"
        configuration.write_text(
            f"[databases]\nhpsearch = host={server_address} port={PORT} dbname=hpsearch user=postgres\n"
            f"[pgbouncer]\nlisten_addr = {address}\nlisten_port = {PORT}\nunix_socket_dir =\nauth_type = any\n"
            f"pool_mode = {mode}\nserver_reset_query = DISCARD ALL\nignore_startup_parameters = extra_float_digits\n"
        )
        as_user = ["-u", "nobody"] if os.geteuid() == 0 else []
        for folder in (tmp_path, *tmp_path.parents[:2]):
            folder.chmod(folder.stat().st_mode | 0o055)
        with (tmp_path / "pgbouncer.log").open("wb") as log:
            started.append(subprocess.Popen([program, *as_user, str(configuration)], stdout=log, stderr=log))
        url = f"postgresql://postgres@{address}:{PORT}/hpsearch"

        def answers() -> bool:
            try:
                psycopg2.connect(url, connect_timeout=5).close()
            except psycopg2.OperationalError:
                return False
            return True

        wait_until(answers, "pgbouncer answers", told=(tmp_path / "pgbouncer.log").read_text)
        return url

    yield start
    for process in started:
        process.terminate()
        process.wait()


@pytest.mark.parametrize("mode", ["transaction", "statement"])
def test_a_pool_of_transactions_is_refused_with_a_hint(mode: str, pooled: Callable[[str], str]) -> None:
    url = pooled(mode)
    for _ in range(3):
        with pytest.raises(StorageError, match="is behind a pooler that shares sessions between clients") as caught:
            open_database(url, wait_seconds=0.3)
        assert caught.value.hint is not None
        assert "pool_mode = session" in caught.value.hint


def test_a_pool_of_sessions_serves(pooled: Callable[[str], str]) -> None:
    url = pooled("session")
    first = open_database(url)
    second = open_database(url)
    study = optuna.create_study(study_name="a", storage=first.storage)
    study.optimize(lambda trial: trial.suggest_float("x", 0, 1), n_trials=1)
    assert len(second.load_study("a").trials) == 1
    assert second.transaction(lambda connection: connection.execute(text("SHOW timezone")).scalar_one()) == "UTC"
    second.close()
    first.close()
    open_database(url).close()  # in sessions that were reset
