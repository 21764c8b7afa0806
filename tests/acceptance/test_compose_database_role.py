"""The database of docker-compose.yml: its role is no superuser, in a new volume and in one of an earlier version."""

from __future__ import annotations

import os
import shutil
import subprocess
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

pytestmark = [pytest.mark.acceptance, pytest.mark.docker, pytest.mark.timeout(600)]

ROOT = Path(__file__).parents[2]
SERVICE = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]["db"]
IMAGE = "postgres:17-bookworm"
PASSWORD = "it's a\\backslash"


def docker(*arguments: str, code: int = 0) -> str:
    done = subprocess.run(["docker", *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == code, f"docker {' '.join(arguments)}: {done.stdout[-2000:]}{done.stderr[-2000:]}"
    return done.stdout + done.stderr


class Database:
    """The service `db` on a volume of its own, one container after the other."""

    def __init__(self) -> None:
        self.name = f"hpsearch-role-{uuid.uuid4().hex[:8]}"
        self.secrets, self.data = f"{self.name}-secrets", f"{self.name}-data"
        write = "printf '%s\\n' \"$0\" >/secrets/database_password && chmod 444 /secrets/database_password"
        volume = f"{self.secrets}:/secrets"
        docker("run", "--rm", "--user=0", f"--volume={volume}", "--entrypoint=sh", IMAGE, "-c", write, PASSWORD)

    def start(self, *, before: bool = False) -> None:
        """Start the service as docker-compose.yml says, or as it said while `hpsearch` was the superuser."""
        environment = {**SERVICE["environment"], **({"POSTGRES_USER": "hpsearch"} if before else {})}
        entrypoint, *first = SERVICE["entrypoint"]
        script = f"{ROOT}/docker/database_role.sh:/docker-entrypoint-initdb.d/database_role.sh:ro"
        ours = [] if before else [f"--volume={script}", f"--entrypoint={entrypoint}"]
        options = [
            *(f"--env={name}={value}" for name, value in environment.items()),
            *(f"--tmpfs={mount}" for mount in SERVICE["tmpfs"]),
            f"--user={SERVICE['user']}",
            f"--volume={self.data}:/var/lib/postgresql/data",
            f"--volume={self.secrets}:/run/secrets:ro",
            *ours,
        ]
        command = ["postgres"] if before else [*first, "postgres"]
        docker("run", "--detach", f"--name={self.name}", "--read-only", "--cap-drop=ALL", *options, IMAGE, *command)
        is_ready = "for i in $(seq 300); do pg_isready -qh 127.0.0.1 && exit; sleep 0.2; done; exit 1"
        docker("exec", self.name, "sh", "-c", is_ready)

    def ask(self, sql: str, *, user: str = "hpsearch", code: int = 0) -> str:
        """What psql prints, over TCP as all services ask."""
        options = ("-h", "127.0.0.1", "-d", "hpsearch", "-U", user, "-v", "ON_ERROR_STOP=1", "-Atqc", sql)
        return docker("exec", f"--env=PGPASSWORD={PASSWORD}", self.name, "psql", *options, code=code).strip()

    def end(self) -> None:
        docker("rm", "--force", self.name)

    def remove(self) -> None:
        self.end()
        docker("volume", "rm", "--force", self.secrets, self.data)


@pytest.fixture
def database() -> Iterator[Database]:
    asked = shutil.which("docker") and subprocess.run(["docker", "version"], capture_output=True, check=False)
    if not asked or asked.returncode != 0:
        if os.environ.get("HPSEARCH_REQUIRE_DOCKER") == "1":
            pytest.fail("no Docker engine answers")
        pytest.skip("no Docker engine answers")
    database = Database()
    yield database
    database.remove()


def judge(database: Database, table: str) -> None:
    """The role does what hpsearch needs, and no more; the superuser comes in through the socket only."""
    assert database.ask("SELECT rolsuper FROM pg_roles WHERE rolname = 'hpsearch'") == "f"
    assert database.ask("SELECT rolname FROM pg_roles WHERE rolsuper") == "postgres"
    database.ask(f"CREATE TABLE {table} (i int); DROP TABLE {table}")
    assert "permission denied" in database.ask("COPY (SELECT 1) TO PROGRAM 'true'", code=1)
    assert "authentication failed" in database.ask("SELECT 1", user="postgres", code=2)
    assert "1\n" in docker("exec", database.name, "psql", "-U", "postgres", "-d", "hpsearch", "-Atc", "SELECT 1")
    assert "backslash" not in docker("logs", database.name)


def test_the_role_of_a_new_database_is_no_superuser(database: Database) -> None:
    database.start()
    judge(database, "made")


def test_the_superuser_of_an_earlier_version_becomes_an_ordinary_role_that_owns_its_tables(database: Database) -> None:
    database.start(before=True)
    database.ask(
        "CREATE TYPE mood AS ENUM ('a'); CREATE TABLE kept (i serial PRIMARY KEY, m mood); "
        "INSERT INTO kept (m) VALUES ('a')"
    )
    assert database.ask("SELECT rolsuper FROM pg_roles WHERE rolname = 'hpsearch'") == "t"
    docker("kill", database.name)
    for change in ("b", "c"):  # the second start changes nothing
        database.end()
        database.start()
        judge(database, "made")
        database.ask(f"ALTER TYPE mood ADD VALUE '{change}'; ALTER TABLE kept ADD COLUMN {change} int")
        database.ask(f"INSERT INTO kept (m) VALUES ('{change}')")
    assert database.ask("SELECT string_agg(m::text, '' ORDER BY i) FROM kept") == "abc"
