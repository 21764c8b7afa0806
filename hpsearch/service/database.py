"""Open the study database: address, connection settings, schema, and errors in our words.

Everything that connects to PostgreSQL goes through `open_database`. What a user may get wrong (address, password,
rights, versions) becomes one clear line here; the password never appears in it.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import optuna
import sqlalchemy
from optuna.storages import RDBStorage
from sqlalchemy.exc import ArgumentError, DBAPIError, InterfaceError, OperationalError
from tenacity import Retrying, retry_if_exception, stop_after_delay, wait_random_exponential

from hpsearch.errors import InputError, StorageError
from hpsearch.logs import get_logger
from hpsearch.service import tables

_log = get_logger("database")
T = TypeVar("T")

CONNECT_TIMEOUT_SECONDS = 5
DEFAULT_OUTAGE_SECONDS = 120.0  # how long a worker waits for a database that went away
_SCHEMA_LOCK = 0x68707363  # "hpsc": advisory lock that guards the creation of tables

# Answers that no second attempt will change.
_FINAL_REFUSALS = (
    (re.compile(r"password authentication failed|no password supplied", re.I), "refuses the password"),
    (re.compile(r'role "[^"]*" does not exist', re.I), "does not know the user"),
    (re.compile(r'database "[^"]*" does not exist', re.I), "has no such database"),
    (re.compile(r"permission denied|no pg_hba.conf entry", re.I), "denies the right"),
)


@dataclass(frozen=True, kw_only=True)
class Database:
    """An open study database.

    Args:
        engine: connections for our own statements; sessions run in UTC.
        storage: the same database as Optuna sees it.
        outage_seconds: how long `transaction` goes on trying when the connection is lost.
    """

    engine: sqlalchemy.Engine
    storage: RDBStorage
    url: sqlalchemy.URL
    outage_seconds: float = DEFAULT_OUTAGE_SECONDS

    @property
    def address(self) -> str:
        return describe_address(self.url)

    def transaction(self, work: Callable[[sqlalchemy.Connection], T]) -> T:
        """Run `work` in one transaction and return its result; start over when the connection is lost.

        `work` must be safe to run again after a commit whose answer was lost: all our statements compare before
        they set. Only lost connections are retried, for at most `outage_seconds`.

        Raises:
            StorageError: the database did not come back in time.
        """
        retrying = Retrying(
            retry=retry_if_exception(is_connection_lost),
            stop=stop_after_delay(self.outage_seconds),
            wait=wait_random_exponential(multiplier=0.1, max=5.0),
            before_sleep=lambda state: _log.warning("database is away (attempt %d)", state.attempt_number),
            reraise=True,
        )
        try:
            return retrying(self._run_once, work)
        except DBAPIError as error:
            if not is_connection_lost(error):
                raise
            raise StorageError(
                f"the database at {self.address} has been away for {self.outage_seconds:.0f} s",
                hint="running trials are taken up again when a worker is started after it is back",
            ) from error

    def _run_once(self, work: Callable[[sqlalchemy.Connection], T]) -> T:
        with self.engine.begin() as connection:
            return work(connection)

    def load_study(self, name: str) -> optuna.Study:
        """The study as plain Optuna reads it. Raises KeyError when there is none."""
        return optuna.load_study(study_name=name, storage=self.storage)

    def close(self) -> None:
        self.storage.remove_session()
        self.storage.engine.dispose()
        self.engine.dispose()


def parse_url(text: str) -> sqlalchemy.URL:
    """Read a database URL. Raises InputError for anything but PostgreSQL, without showing the password."""
    hint = "postgresql://USER:PASSWORD@HOST:5432/DATABASE (percent-encode @ : / % in the password)"
    try:
        url = sqlalchemy.make_url(text)
    except (ArgumentError, ValueError):
        raise InputError("the storage URL cannot be read", hint=hint) from None
    if url.drivername not in ("postgresql", "postgres", "postgresql+psycopg2"):
        raise InputError(f"storage must be PostgreSQL, got {url.drivername}://", hint=hint)
    return url.set(drivername="postgresql+psycopg2")


def describe_address(url: sqlalchemy.URL) -> str:
    """`host:port/database`, or the socket's folder: never user name and password."""
    host = url.host or url.query.get("host") or "local socket"
    return f"{host}:{url.port or 5432}/{url.database}"


def is_connection_lost(error: BaseException) -> bool:
    """True for errors that a new connection may cure (server restarted, connection cut, starting up)."""
    if isinstance(error, InterfaceError):
        return True
    if not isinstance(error, OperationalError):
        return isinstance(error, DBAPIError) and error.connection_invalidated
    return not any(pattern.search(str(error.orig)) for pattern, _ in _FINAL_REFUSALS)


def open_database(
    text: str,
    *,
    wait_seconds: float = 10.0,
    outage_seconds: float = DEFAULT_OUTAGE_SECONDS,
) -> Database:
    """Connect, create what tables are missing, and check versions. Any number of processes may do so at once.

    Args:
        text: a postgresql:// URL.
        wait_seconds: how long to wait for a server that does not answer yet.
    Raises:
        InputError: not a PostgreSQL URL.
        StorageError: unreachable, refused, or another schema version.
    """
    url = parse_url(text)
    engine = sqlalchemy.create_engine(url, **_engine_options())
    _connect(engine, url, wait_seconds)
    try:
        storage = _create_tables(engine, url)
    except RuntimeError as error:  # Optuna's word for a schema of another version
        raise StorageError(
            f"the database at {describe_address(url)} has an Optuna schema other than version "
            f"{tables.OPTUNA_SCHEMA_VERSION}, which Optuna {optuna.__version__} writes: {_first_line(error)}",
            hint="optuna storage upgrade --storage URL",
        ) from error
    except DBAPIError as error:
        raise _refusal(error, url) from error
    return Database(engine=engine, storage=storage, url=url, outage_seconds=outage_seconds)


def _engine_options() -> dict[str, Any]:
    return {
        "pool_pre_ping": True,  # a restarted server costs a reconnect, not an error
        "pool_size": 4,
        "connect_args": {
            "connect_timeout": CONNECT_TIMEOUT_SECONDS,
            # A cut network must be noticed within the lease, not after the kernel's two hours.
            "keepalives": 1,
            "keepalives_idle": 5,
            "keepalives_interval": 5,
            "keepalives_count": 3,
            "tcp_user_timeout": 20_000,  # milliseconds
            "options": "-c timezone=UTC",  # naive times are UTC in Optuna's tables
            "application_name": "hpsearch",
        },
    }


def _connect(engine: sqlalchemy.Engine, url: sqlalchemy.URL, wait_seconds: float) -> None:
    started = time.monotonic()
    attempts = 0
    while True:
        attempts += 1
        try:
            with engine.connect() as connection:
                connection.execute(sqlalchemy.text("SELECT 1"))
            return
        except DBAPIError as error:
            if not is_connection_lost(error):
                raise _refusal(error, url) from error
            waited = time.monotonic() - started
            if waited >= wait_seconds:
                raise StorageError(
                    f"no database answers at {describe_address(url)} "
                    f"({attempts} attempts in {waited:.0f} s): {_first_line(error.orig)}",
                    hint="is it running, and reachable from here? --storage or HPSEARCH_STORAGE name it",
                ) from error
            time.sleep(min(1.0, 0.1 * 2**attempts))


def _refusal(error: DBAPIError, url: sqlalchemy.URL) -> StorageError:
    text = _first_line(error.orig)
    reason = next((word for pattern, word in _FINAL_REFUSALS if pattern.search(text)), "refuses")
    return StorageError(
        f"the database at {describe_address(url)} {reason} for user {url.username or 'of this account'}: {text}",
        hint="check user, password and database name in --storage or HPSEARCH_STORAGE",
    )


def _first_line(error: object) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__


def _create_tables(engine: sqlalchemy.Engine, url: sqlalchemy.URL) -> RDBStorage:
    """Create Optuna's tables and ours under one advisory lock: without it, two creators crash each other."""
    with engine.connect() as connection:
        connection.execute(sqlalchemy.text("SELECT pg_advisory_lock(:key)"), {"key": _SCHEMA_LOCK})
        connection.commit()
        try:
            # RDBStorage runs str.format on the URL: braces in a password must be doubled.
            plain = url.render_as_string(hide_password=False).replace("{", "{{").replace("}", "}}")
            storage = RDBStorage(plain, engine_kwargs=_engine_options())
            tables.metadata.create_all(connection)
            connection.commit()
        finally:
            if not connection.invalidated:
                connection.rollback()
                connection.execute(sqlalchemy.text("SELECT pg_advisory_unlock(:key)"), {"key": _SCHEMA_LOCK})
                connection.commit()
    return storage
