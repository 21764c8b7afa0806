"""What PostgreSQL answers in place of a result is told as what it is: each kind is provoked on a server of its own."""

from __future__ import annotations

import re
import secrets
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import psycopg2
import pytest
from sqlalchemy import URL, Connection, create_engine, make_url, text

from hpsearch.errors import InputError, StorageError
from hpsearch.store.connection import database as database_module
from hpsearch.store.connection.address import parse_url
from hpsearch.store.connection.database import DatabaseAwayError, open_database
from hpsearch.store.connection.refusals import AWAY, OTHER, REFUSALS
from tests.faults.postgres import FaultyPostgres, make_template

ROOT = Path(__file__).parents[4]
# One of 16 million: the server can keep its usual port, which its socket's name has, too.
ADDRESS = ".".join(["127", *(str(secrets.randbelow(200) + 20) for _ in range(3))])


@pytest.fixture(scope="module")
def template(open_folder: Path) -> Path:
    return make_template(open_folder / "refusals-template")


@pytest.fixture(scope="module")
def server(open_folder: Path, template: Path) -> Iterator[FaultyPostgres]:
    """Has our tables, few connections, and users that lack something."""
    server = FaultyPostgres(open_folder / "refusals", template)
    server.configure(max_connections="12", superuser_reserved_connections="1", listen_addresses=ADDRESS)
    server.trust("127.0.0.0/8")
    server.start()
    run(
        server.url,
        "CREATE ROLE nobody_else LOGIN CONNECTION LIMIT 0",
        "CREATE ROLE reader LOGIN",
        "CREATE ROLE writer_in_vain LOGIN SUPERUSER",
        "ALTER ROLE writer_in_vain SET default_transaction_read_only = on",
        "CREATE ROLE hasty LOGIN SUPERUSER",
        "ALTER ROLE hasty SET statement_timeout = '50ms'",
        "CREATE DATABASE closed CONNECTION LIMIT 0",
        "CREATE DATABASE empty",
    )
    yield server
    server.remove()


@pytest.fixture(scope="module")
def standby(open_folder: Path, template: Path) -> Iterator[FaultyPostgres]:
    server = FaultyPostgres(open_folder / "standby", template)
    (server.folder / "data" / "standby.signal").touch()
    server.start()
    yield server
    server.remove()


@pytest.fixture(scope="module")
def recovering(open_folder: Path, template: Path) -> Iterator[FaultyPostgres]:
    """As long as it recovers it lets nobody in."""
    server = FaultyPostgres(open_folder / "recovering", template)
    server.configure(hot_standby="off")
    (server.folder / "data" / "standby.signal").touch()
    server.start()
    yield server
    server.remove()


def run(url: str, *statements: str) -> None:
    engine = create_engine(url, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        for statement in statements:
            connection.execute(text(statement))
    engine.dispose()


def url_of(server: FaultyPostgres, user: str = "postgres", database: str | None = None, **query: str) -> str:
    url = make_url(server.url)
    url = URL.create("postgresql", username=user, database=database or url.database, query={**url.query, **query})
    return url.render_as_string(hide_password=False)


def refused(url: str, **options: float) -> StorageError:
    with pytest.raises(StorageError) as caught:
        open_database(url, wait_seconds=0.3, **options)
    assert "\n" not in str(caught.value)
    assert caught.value.hint
    return caught.value


def test_a_user_without_the_rights(server: FaultyPostgres) -> None:
    for database in (None, "empty"):  # where the tables are, and where they are to be made
        error = refused(url_of(server, "reader", database))
        assert "denies user reader a permission: " in str(error)
        assert error.hint is not None
        assert "CREATE" in error.hint


@pytest.mark.parametrize(("user", "database"), [("nobody_else", None), ("reader", "closed")])
def test_a_connection_limit_of_a_role_or_database(user: str, database: str | None, server: FaultyPostgres) -> None:
    error = refused(url_of(server, user, database))
    assert f"has no connection left for user {user} (" in str(error)
    assert "too many connections for" in str(error)
    assert error.hint is not None
    assert "CONNECTION LIMIT" in error.hint


def test_too_many_clients(server: FaultyPostgres) -> None:
    url = server.url.replace("+psycopg2", "")
    database = open_database(server.url)
    database.engine.dispose()
    database.storage.engine.dispose()
    held = []
    try:
        while True:
            held.append(psycopg2.connect(url))
    except psycopg2.OperationalError:
        pass
    try:
        assert "has no connection left for user postgres (" in str(refused(server.url))
        with pytest.raises(DatabaseAwayError, match="has no connection left for user postgres: ") as caught:
            database.brief().transaction(lambda connection: connection.execute(text("SELECT 1")))
        assert "away" not in str(caught.value)
    finally:
        for connection in held:
            connection.close()
    database.close()


@pytest.mark.parametrize("kind", ["standby", "default_transaction_read_only"])
def test_a_read_only_database_is_read_and_refuses_changes_at_once(
    kind: str, request: pytest.FixtureRequest, server: FaultyPostgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database_module, "READ_ONLY_SECONDS", 0.1)
    url = request.getfixturevalue("standby").url if kind == "standby" else url_of(server, "writer_in_vain")
    database = open_database(url)
    assert (
        database.transaction(lambda connection: connection.execute(text("SELECT count(*) FROM studies")).scalar()) == 0
    )
    started = time.monotonic()
    with pytest.raises(DatabaseAwayError, match=r"is read-only.*cannot execute INSERT in a read-only") as caught:
        database.transaction(lambda connection: connection.execute(text("INSERT INTO studies VALUES (1, 'x')")))
    assert time.monotonic() - started < 60  # of 120 for one that is away
    assert caught.value.hint is not None
    assert "standby" in caught.value.hint
    database.close()


def test_a_standby_without_our_tables(server: FaultyPostgres) -> None:
    error = refused(url_of(server, "writer_in_vain", "empty"))
    assert "is read-only (" in str(error)


def test_a_server_in_recovery(recovering: FaultyPostgres) -> None:
    assert "is starting up or shutting down (" in str(refused(recovering.url))


def test_a_statement_timeout(server: FaultyPostgres) -> None:
    database = open_database(url_of(server, "hasty"))
    with pytest.raises(StorageError, match="canceled a statement: canceling statement due to") as caught:
        database.transaction(lambda connection: connection.execute(text("SELECT pg_sleep(60)")))
    assert not isinstance(caught.value, DatabaseAwayError)
    assert caught.value.hint is not None
    assert "statement_timeout" in caught.value.hint
    database.close()


@pytest.fixture
def locked(server: FaultyPostgres) -> Iterator[Callable[[Connection], None]]:
    """Work that waits for a lock that somebody holds meanwhile."""
    holder = create_engine(server.url)
    with holder.connect() as connection:
        connection.execute(text("LOCK TABLE trials IN ACCESS EXCLUSIVE MODE"))
        yield lambda other: other.execute(text("SELECT count(*) FROM trials")).close()
    holder.dispose()


def test_a_lock_that_somebody_keeps_is_not_away(server: FaultyPostgres, locked: Callable[[Connection], None]) -> None:
    database = replace(open_database(server.url), answer_seconds=0.2, outage_seconds=1.0)
    with pytest.raises(DatabaseAwayError, match="has not answered a statement in time") as caught:
        database.transaction(locked)
    assert "away" not in str(caught.value)
    assert caught.value.hint is not None
    assert "lock" in caught.value.hint
    database.close()


def test_a_statement_that_takes_longer_than_the_limit_ends_when_it_is_tried_again(server: FaultyPostgres) -> None:
    database = replace(open_database(server.url), answer_seconds=0.3)
    assert database.transaction(lambda c: c.execute(text("SELECT 42 FROM pg_sleep(1)")).scalar_one()) == 42
    database.close()


@pytest.mark.parametrize(
    ("query", "said"),
    [
        ({"sslmode": "bogus"}, 'invalid sslmode value: "bogus"'),
        ({"target_session_attrs": "x"}, 'invalid target_session_attrs value: "x"'),
        ({"port": "99999"}, 'invalid port number: "99999"'),
        ({"options": "-c nonsense=1"}, 'unrecognized configuration parameter "nonsense"'),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else None,
)
def test_a_wrong_option_of_the_url_is_bad_input(query: dict[str, str], said: str, server: FaultyPostgres) -> None:
    with pytest.raises(InputError, match="the storage URL cannot be used: ") as caught:
        open_database(url_of(server, **query), wait_seconds=0.3)
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("variables", "said"),
    [
        ({"PGSERVICE": "nowhere"}, 'definition of service "nowhere" not found'),
        ({"PGSERVICE": "nowhere", "PGSERVICEFILE": "/nonexistent"}, 'service file "/nonexistent" not found'),
    ],
    ids=["no entry", "no file"],
)
def test_a_service_that_does_not_exist_is_bad_input_and_not_tried_again(
    variables: dict[str, str], said: str, server: FaultyPostgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(InputError, match=said):
        open_database(url_of(server), wait_seconds=3600)


def test_an_option_that_libpq_does_not_know_is_bad_input() -> None:
    with pytest.raises(InputError, match="an option that libpq does not know: schema") as caught:
        parse_url("postgresql://u:secret@h/d?schema=public")
    assert caught.value.hint is not None
    assert "search_path" in caught.value.hint


def test_a_line_break_after_the_url_is_no_part_of_it(server: FaultyPostgres) -> None:
    assert parse_url(f" {server.url}\r\n") == parse_url(server.url)


def test_encryption_that_the_server_does_not_have(server: FaultyPostgres) -> None:
    error = refused(f"postgresql://postgres@{ADDRESS}/hpsearch?sslmode=require")
    assert "does not accept the encryption settings: " in str(error)


def test_a_host_name_that_nobody_knows() -> None:
    assert "has a host name that cannot be resolved (" in str(refused("postgresql://u@nowhere.invalid/d"))


def test_an_outage_keeps_its_cause(open_folder: Path, template: Path) -> None:
    server = FaultyPostgres(open_folder / "outage", template)
    server.start()
    database = open_database(server.url)
    server.stop()
    with pytest.raises(DatabaseAwayError, match=r"is away: .*(closed|No such file|terminating)"):
        database.brief().transaction(lambda connection: connection.execute(text("SELECT 1")))
    database.close()
    server.remove()


def test_the_document_shows_the_table() -> None:
    told = (ROOT / "docs" / "service.md").read_text()
    rows = re.findall(r"^\| (.+?) \| (yes|no|-) \|", told, flags=re.MULTILINE)
    documented = [(said.replace("USER", "{user}").replace("DATABASE", "{database}"), again) for said, again in rows]
    assert documented == [
        (refusal.said, "yes" if refusal.is_transient else "no") for refusal in (*REFUSALS, AWAY, OTHER)
    ]
