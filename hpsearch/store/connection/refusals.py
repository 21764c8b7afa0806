"""What PostgreSQL, libpq or a pooler answers instead of a result, and the messages that hpsearch makes of it.

One table, which docs/service.md shows: how an answer is recognised (by its SQLSTATE; a refused connection has only a
text), the message, the hint, and whether a later attempt may succeed.
"""

from __future__ import annotations

import re
from dataclasses import KW_ONLY, dataclass, replace

from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError

from hpsearch.wording import first_line

_NAMES = "check user, password and database name in --storage or HPSEARCH_STORAGE"
# What Optuna's storage raises from the driver's error. Named because loading Optuna takes a third of a second.
_OPTUNAS_ERROR = "optuna.exceptions.StorageInternalError"
_RESUMES = "running trials resume when a worker is started after the database is back"


@dataclass(frozen=True)
class Refusal:
    """One kind of answer.

    Args:
        said: message that follows "the database at ADDRESS"; {user} and {database} are those of the URL.
        states: SQLSTATEs, or prefixes of SQLSTATEs.
        pattern: regular expression for the message of an error without a SQLSTATE, or of a pooler.
        is_transient: a later attempt may succeed.
        is_input: the URL is wrong, not the environment.
    """

    said: str
    hint: str
    _: KW_ONLY
    states: tuple[str, ...] = ()
    pattern: str | None = None
    is_transient: bool = False
    is_input: bool = False

    def matches(self, state: str | None, message: str) -> bool:
        """Whether this is the kind of an error with this SQLSTATE (None: it has none) and message."""
        if state is not None and self.states and state.startswith(self.states):
            return True
        has_text_only = state is None or state.startswith("08")  # a pooler's own errors all have state 08P01
        return has_text_only and self.pattern is not None and re.search(self.pattern, message, re.I) is not None


BAD_URL = Refusal(
    "cannot be reached by this URL",
    "the part of the URL after ? has options of libpq, such as sslmode=require; choose a schema with "
    "options=-csearch_path%3DNAME; the environment variables PG... count, too",
    pattern=r"invalid (dsn|connection option|port number|\S+ value)|could not match \d|definition of service|"
    r"service file|unrecognized configuration parameter|invalid value for parameter|invalid command-line argument",
    is_input=True,
)
READ_ONLY = Refusal(
    "is read-only",
    "it is a standby, or default_transaction_read_only is set: name the primary; with several hosts in the URL, "
    "target_session_attrs=read-write finds it",
    states=("25006",),
    pattern=r"session is read-only|server is in hot standby mode",
    is_transient=True,  # during a failover, the next connection may reach the new primary
)
SLOW = Refusal(
    "has not answered a statement in time",
    "the statement may wait for a lock or a slow disk, see pg_stat_activity and pg_locks; or the server hangs",
    pattern=r"has not answered for \S+ s in the middle of a statement",
    is_transient=True,
)
SHARED_SESSIONS = Refusal(
    "is behind a pooler that shares sessions between clients",
    "pgbouncer needs pool_mode = session, or name PostgreSQL itself: workers hold locks in their sessions",
    pattern="transaction blocks not allowed in statement pooling mode",
)
AWAY = Refusal("is away", _RESUMES, states=("08",), is_transient=True)  # or any other lost connection
UNREACHABLE = replace(
    AWAY,
    said="does not answer",
    hint="check that it is running and reachable, and the address in --storage or HPSEARCH_STORAGE",
)
OTHER = Refusal("failed to run the statement", "the server's log may say more")

# The first match counts.
REFUSALS = (
    BAD_URL,
    Refusal(
        "refuses the password of user {user}",
        _NAMES,
        states=("28P01",),
        pattern=r"authentication failed|no password supplied",
    ),
    Refusal("does not know user {user}", _NAMES, pattern=r'role "[^"]*" does not exist|no such user'),
    Refusal(
        "has no database {database} for user {user}",
        _NAMES,
        states=("3D000",),
        pattern=r'database "[^"]*" does not exist|no such database',
    ),
    Refusal(
        "does not accept the encryption settings",
        "set sslmode, sslrootcert, sslcert and sslkey in the URL as the server requires",
        pattern=r"does not support SSL|certificate|SSL error: (tlsv1|sslv3) alert|private key file",
    ),
    Refusal(
        "does not allow user {user} to connect",
        f"{_NAMES}; the server's pg_hba.conf and GRANT CONNECT ON DATABASE decide who may connect",
        states=("28000",),
        pattern=r"permission denied for database|pg_hba\.conf (entry|rejects)|not permitted to log in",
    ),
    Refusal(
        "denies user {user} a permission",
        "the user needs CREATE and USAGE on the schema for the first start, and SELECT, INSERT, UPDATE and DELETE "
        "on all tables in it; a schema of its own (CREATE SCHEMA AUTHORIZATION) gives all of them",
        states=("42501", "3F000"),
        pattern="permission denied",
    ),
    Refusal(
        "is behind a pooler that rejects a startup option",
        "list the option under ignore_startup_parameters in pgbouncer.ini",
        pattern="unsupported startup parameter",
    ),
    Refusal(
        "has no connection left for user {user}",
        "count six for each worker. The limit is the one that the message names: max_connections of the server, "
        "CONNECTION LIMIT of the role or the database, or the pooler's",
        states=("53300",),
        pattern=r"too many (clients|connections)|remaining connection slots|no more connections allowed",
        is_transient=True,
    ),
    READ_ONLY,
    Refusal(
        "is starting up or shutting down",
        "wait until it accepts connections; one that stays in recovery is a standby: name the primary",
        states=("57P03",),
        pattern=r"starting up|shutting down|in recovery mode|not (yet )?accepting connections|recovery state",
        is_transient=True,
    ),
    Refusal("closed the connection", _RESUMES, states=("57P",), is_transient=True),
    Refusal(
        "canceled a statement",
        "statement_timeout of the role or the database is too short, or somebody called pg_cancel_backend",
        states=("57014",),
    ),
    Refusal(
        "has rows or tables that other sessions keep locked",
        "pg_stat_activity and pg_locks show which ones; lock_timeout limits the wait",
        states=("40001", "40P01", "55P03"),
        is_transient=True,
    ),
    Refusal("has no disk space left", "free space on its disk: committed data is kept", states=("53100",)),
    Refusal(
        "has a value that cannot be read",
        "another program has changed it: restore it from a backup of the database",
        states=("22P02",),
    ),
    SLOW,
    SHARED_SESSIONS,
    Refusal(
        "has a host name that cannot be resolved",
        "check the host in --storage or HPSEARCH_STORAGE",
        pattern="could not translate host name",
        is_transient=True,
    ),
)


def refusal_of(error: BaseException) -> Refusal | None:
    """Return what an error of the driver, or of Optuna's storage around it, means.

    None if the error is a bug and not an answer of the database.
    """
    cause = driver_error(error)
    if cause is None:
        return None
    state = getattr(cause.orig, "pgcode", None)
    found = next((refusal for refusal in REFUSALS if refusal.matches(state, first_line(cause.orig))), None)
    if found is not None:
        return found
    if cause.connection_invalidated or isinstance(cause, InterfaceError):
        return AWAY
    if not isinstance(cause, OperationalError):
        return None
    return AWAY if state is None or AWAY.matches(state, "") else OTHER


def driver_error(error: BaseException | None) -> DBAPIError | None:
    """Return the driver's error, even if Optuna has wrapped it; None if there is none."""
    if error is not None and f"{type(error).__module__}.{type(error).__name__}" == _OPTUNAS_ERROR:
        error = error.__cause__
    return error if isinstance(error, DBAPIError) else None
