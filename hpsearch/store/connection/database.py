"""Opens the study database: address, connection settings, schema, retries, and errors as messages of hpsearch.

Every connection to the study database goes through `open_database`. A user's mistake (address, password, rights,
versions) becomes one clear line here; the password never appears in it.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import sqlalchemy
from sqlalchemy import Executable, Row, event
from tenacity import (
    RetryCallState,
    Retrying,
    retry_if_exception,
    sleep_using_event,
    stop_after_delay,
    stop_any,
    stop_when_event_set,
    wait_random_exponential,
)

from hpsearch.errors import HpsearchError, InputError, StorageError
from hpsearch.logs import get_logger
from hpsearch.postgres.embedded import EmbeddedPostgres
from hpsearch.postgres.libpq import connect_without_variables, keep_from_children, session_arguments
from hpsearch.store.connection.address import describe_address, parse_url, with_password_of_file
from hpsearch.store.connection.answer_limit import ANSWER_SECONDS, answer_limit
from hpsearch.store.connection.pooler import check_sessions
from hpsearch.store.connection.refusals import AWAY, READ_ONLY, SLOW, UNREACHABLE, Refusal, driver_error, refusal_of
from hpsearch.store.connection.schema import prepare_schema
from hpsearch.wording import first_line

if TYPE_CHECKING:
    import optuna

    from hpsearch.store.connection.study_storage import StudyStorage

_log = get_logger("database")
T = TypeVar("T")
DatabaseOperation = Literal["claim", "record", "finish", "renew", "release", "reap", "other"]  # for metrics

CONNECT_TIMEOUT_SECONDS = 5
BRIEF_ANSWER_SECONDS = 3.0
_IDLE_SECONDS = 60.0  # in the middle of a transaction; hpsearch sends its statements without a pause
DEFAULT_OUTAGE_SECONDS = 120.0  # how long a worker waits for a database that is away

_POOL_LOGGER = "sqlalchemy.pool.impl.QueuePool"
READ_ONLY_SECONDS = 10.0  # how long to wait for a database that was read-only when it was opened


class DatabaseAwayError(StorageError):
    """The database did not serve the call in time and may do so later. The message has its answer, or libpq's."""


@dataclass(frozen=True, kw_only=True)
class Database:
    """An open study database.

    Args:
        engine: connections for hpsearch's own statements; sessions run in UTC.
        optuna_storage: the same database as Optuna sees it, opened at the first call.
        outage_seconds: how long workers continue to train, and calls are retried, while the database is away.
        patience_seconds: how long `transaction` retries; None: `outage_seconds`.
        answer_seconds: how long `transaction` waits for one answer before it gives the connection up; the limit
            doubles, up to the patience, each time that a statement is not answered.
        was_read_only: the database was read-only when it was opened.
        abandoned: once it is set, no thread waits for the database any more.
        on_call: called with the seconds and the operation of each attempt.
        on_retry: called before each retry of an attempt that failed because the database was away.
    """

    engine: sqlalchemy.Engine
    optuna_storage: OptunaStorage
    url: sqlalchemy.URL
    outage_seconds: float = DEFAULT_OUTAGE_SECONDS
    patience_seconds: float | None = None
    answer_seconds: float = ANSWER_SECONDS
    was_read_only: bool = False
    on_call: Callable[[float, DatabaseOperation], None] = field(default=lambda seconds, operation: None)
    on_retry: Callable[[], None] = field(default=lambda: None)
    abandoned: threading.Event = field(default_factory=threading.Event)

    def brief(self) -> Database:
        """Return the same database for a caller that must not wait for it.

        `transaction` then raises DatabaseAwayError when the first attempt fails, after BRIEF_ANSWER_SECONDS if the
        server hangs.
        """
        return replace(self, patience_seconds=0.0, answer_seconds=BRIEF_ANSWER_SECONDS)

    @property
    def storage(self) -> StudyStorage:
        """The same database as Optuna sees it, opened at the first use. Raises as `transaction` does."""
        return self.patiently(self.optuna_storage)

    @property
    def address(self) -> str:
        """The address for messages, without user name and password."""
        return describe_address(self.url)

    def transaction(self, work: Callable[[sqlalchemy.Connection], T], operation: DatabaseOperation = "other") -> T:
        """Run `work` in one transaction and return its result; start over when the connection is lost.

        `work` must be safe to run again after a commit whose answer was lost: hpsearch's statements compare before they
        set. Only transient errors are retried, for `patience_seconds` (`outage_seconds` by default).

        Args:
            operation: purpose of the transaction, for metrics.
        Raises:
            DatabaseAwayError: the database did not come back in time.
            StorageError: the database cannot do it (disk full, rights), or has a value that cannot be read.
        """

        def once() -> T:
            with self.engine.begin() as connection:
                return work(connection)

        return self.patiently(once, operation)

    def rows(
        self, statement: Executable, values: Mapping[str, Any], operation: DatabaseOperation = "other"
    ) -> Sequence[Row[Any]]:
        """Run one statement in a transaction of its own and return all its rows. Raises as `transaction`."""
        return self.transaction(lambda connection: connection.execute(statement, values).all(), operation)

    def patiently(self, work: Callable[[], T], operation: DatabaseOperation = "other") -> T:
        """Run `work`, which asks the database in a way of its own, and return its result; retry as `transaction` does.

        `work` must be safe to run again. Raises the errors of `transaction`.
        """
        patience = self.outage_seconds if self.patience_seconds is None else self.patience_seconds
        started, answer_seconds = time.monotonic(), self.answer_seconds

        def attempt() -> T:
            nonlocal answer_seconds
            began = time.perf_counter()
            try:
                with answer_limit(answer_seconds, self.abandoned):
                    return work()
            except Exception as error:
                if refusal_of(error) is SLOW:  # it may be a long statement, which no retry with this limit would end
                    answer_seconds = max(answer_seconds, min(2 * answer_seconds, patience))
                raise
            finally:
                self.on_call(time.perf_counter() - began, operation)

        def is_worth_another(error: BaseException) -> bool:
            refusal = refusal_of(error)
            if refusal is READ_ONLY and self.was_read_only and time.monotonic() - started > READ_ONLY_SECONDS:
                return False
            return refusal is not None and refusal.is_transient

        retrying = Retrying(
            retry=retry_if_exception(is_worth_another),
            stop=stop_any(stop_after_delay(patience), stop_when_event_set(self.abandoned)),
            wait=wait_random_exponential(multiplier=0.1, max=5.0),
            sleep=sleep_using_event(self.abandoned),
            before_sleep=self._note_retry,
            reraise=True,
        )
        try:
            return retrying(attempt)
        except Exception as error:
            refusal, waited = refusal_of(error), min(patience, time.monotonic() - started)
            if refusal is None:  # a bug keeps its own error and traceback
                raise
            if refusal is AWAY and waited >= 1:
                refusal, waited = replace(AWAY, said=f"has been away for {waited:.0f} s"), 0.0
            tried = f"for {waited:.0f} s" if refusal.is_transient and waited >= 1 else ""
            raise _refusal_error(refusal, error, self.url, tried) from error

    def _note_retry(self, state: RetryCallState) -> None:
        self.on_retry()
        error = state.outcome.exception() if state.outcome else None
        refusal = error and refusal_of(error)
        # Frequent at first, then less often: an outage of minutes should not fill the log.
        if error and refusal and (state.attempt_number in (1, 3) or state.attempt_number % 10 == 0):
            _log.warning("%s", _refusal_error(refusal, error, self.url, f"attempt {state.attempt_number}"))

    def load_study(self, name: str) -> optuna.Study:
        """Return the study as plain Optuna reads it. Raises KeyError if there is none."""
        import optuna  # takes a third of a second

        return optuna.load_study(study_name=name, storage=self.storage)

    def close(self) -> None:
        """Close all connections."""
        self.optuna_storage.close()
        self.engine.dispose()


class OptunaStorage:
    """Optuna's storage, opened at the first call: it takes half a second to load, and few commands need it.

    Args:
        options: for its engine.
    """

    def __init__(self, url: sqlalchemy.URL, options: dict[str, Any]) -> None:
        self._url = url
        self._options = options
        self._lock = threading.Lock()
        self._storage: StudyStorage | None = None

    def __call__(self) -> StudyStorage:
        """Return the storage.

        Raises:
            StorageError: the installed Optuna writes other tables than this hpsearch.
        """
        from hpsearch.store.connection.study_storage import open_study_storage

        with self._lock:
            if self._storage is None:
                storage = open_study_storage(self._url, self._options)
                event.listen(storage.engine, "connect", _set_up_session)
                storage.engine.dispose()  # its first connection was made before
                self._storage = storage
            return self._storage

    def close(self) -> None:
        """Close its connections; the next call opens it again."""
        with self._lock:
            if self._storage is not None:
                self._storage.remove_session()
                self._storage.engine.dispose()
                self._storage = None


@contextlib.contextmanager
def open_storage(url: str | None) -> Iterator[Database]:
    """Yield the database of this URL, or the embedded one if there is no URL; that one runs as long as it has users."""
    with contextlib.ExitStack() as stack:
        named = with_password_of_file(url) if url else None
        database = open_database(named or stack.enter_context(EmbeddedPostgres.start()).url, is_embedded=named is None)
        stack.callback(database.close)
        yield database


def open_database(
    text: str, *, wait_seconds: float = 10.0, outage_seconds: float = DEFAULT_OUTAGE_SECONDS, is_embedded: bool = False
) -> Database:
    """Connect, create missing tables, and check versions. Any number of processes may call it at once.

    Args:
        text: a postgresql:// URL.
        wait_seconds: how long to wait for a server that does not answer yet.
        outage_seconds: see `Database`.
        is_embedded: the server is hpsearch's own; libpq's environment variables are then ignored.
    Raises:
        InputError: not a PostgreSQL URL.
        StorageError: unreachable, refused, or another schema version.
    """
    url = parse_url(text)
    options = _engine_options(url, is_embedded=is_embedded)
    logging.getLogger(_POOL_LOGGER).addFilter(_is_error)  # adding it a second time has no effect
    engine = sqlalchemy.create_engine(url, **options)
    event.listen(engine, "connect", _set_up_session)
    optuna_storage = OptunaStorage(url, options)
    try:
        is_read_only = _connect(engine, optuna_storage, wait_seconds, options)
    except BaseException:
        engine.dispose()
        optuna_storage.close()
        raise
    return Database(
        engine=engine,
        optuna_storage=optuna_storage,
        url=url,
        outage_seconds=outage_seconds,
        was_read_only=is_read_only,
    )


def _engine_options(url: sqlalchemy.URL, *, is_embedded: bool) -> dict[str, Any]:
    own = {
        **session_arguments(url),
        "connect_timeout": CONNECT_TIMEOUT_SECONDS,
        # A cut network must be noticed within the lease, not after the kernel's two hours.
        "keepalives": 1,
        "keepalives_idle": 5,
        "keepalives_interval": 5,
        "keepalives_count": 3,
        "tcp_user_timeout": 20_000,  # milliseconds
        "application_name": "hpsearch",
    }
    arguments = {key: value for key, value in own.items() if key not in url.query}  # options in the URL take precedence
    options: dict[str, Any] = {
        "pool_pre_ping": True,  # a restarted server costs a reconnect, not an error
        "pool_size": 4,
    }
    if not is_embedded:
        return options | {"connect_args": arguments}
    _, from_url = url.get_dialect()().create_connect_args(url)
    return options | {"creator": partial(connect_without_variables, **from_url, **arguments)}


def _is_error(record: logging.LogRecord) -> bool:
    """False for the traceback that SQLAlchemy logs when Ctrl-C interrupts the return of a connection to the pool."""
    error = record.exc_info[1] if record.exc_info else None
    return error is None or isinstance(error, Exception)


def _set_up_session(connection: Any, record: object) -> None:
    """Configure a new session.

    Naive times in Optuna's tables are UTC. A start-up option is not sufficient, because the variable PGTZ takes
    precedence over it. The server must notice within seconds, and not after the kernel's two hours, that a client's
    machine or network is gone, because the session may hold the lock that shows that its worker is alive. (On a unix
    socket these settings have no effect.) A process that was stopped in the middle of a transaction must not keep its
    rows locked against the workers that take them over. Compiling a statement (jit) takes longer than ours do.
    """
    keep_from_children(connection)
    with connection.cursor() as cursor:
        cursor.execute(
            "SET TIME ZONE 'UTC'; SET jit = off; SET tcp_keepalives_idle = 5; SET tcp_keepalives_interval = 5; "
            "SET tcp_keepalives_count = 3; SET tcp_user_timeout = 20000; "
            f"SET idle_in_transaction_session_timeout = {_IDLE_SECONDS * 1000:.0f}"
        )
    connection.commit()


def _connect(
    engine: sqlalchemy.Engine, optuna_storage: OptunaStorage, wait_seconds: float, options: dict[str, Any]
) -> bool:
    """Make the first connection and create the tables; wait for a server that does not answer or is restarting.

    Returns:
        Whether the database is read-only.
    """
    started, attempts, url = time.monotonic(), 0, engine.url
    while True:
        attempts += 1
        try:
            is_read_only = check_sessions(url, options)
            prepare_schema(engine, describe_address(url), optuna_storage)
            return is_read_only
        except Exception as error:
            refusal, waited = refusal_of(error), time.monotonic() - started
            if refusal is None:
                raise
            if not refusal.is_transient:
                raise _refusal_error(refusal, error, url) from error
            if waited >= wait_seconds:
                refusal = UNREACHABLE if refusal is AWAY else refusal
                raise _refusal_error(refusal, error, url, f"{attempts} attempts in {waited:.0f} s") from error
        time.sleep(min(1.0, 0.1 * 2**attempts))


def _refusal_error(refusal: Refusal, error: BaseException, url: sqlalchemy.URL, tried: str = "") -> HpsearchError:
    """Return the error that the user sees: the database's answer, and a hint.

    Args:
        tried: how often and for how long the call was tried, if more than once.
    """
    message = first_line(getattr(driver_error(error), "orig", error))
    if refusal.is_input:
        return InputError(f"the storage URL cannot be used: {message}", hint=refusal.hint)
    said = refusal.said.format(user=url.username or "of this account", database=url.database)
    kind = DatabaseAwayError if refusal.is_transient else StorageError
    return kind(
        f"the database at {describe_address(url)} {said}{tried and f' ({tried})'}: {message}", hint=refusal.hint
    )
