"""The address of a study database: parses a postgresql:// URL and shows it in messages without its password."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote

import psycopg2
import sqlalchemy
from psycopg2.extensions import parse_dsn
from sqlalchemy.exc import ArgumentError

from hpsearch import environment
from hpsearch.errors import InputError
from hpsearch.safe_text import remember_password, remember_passwords
from hpsearch.store.connection.refusals import BAD_URL

_NOT_IN_URL = re.compile("[\x00-\x1f\x7f\ud800-\udfff]")


def parse_url(text: str) -> sqlalchemy.URL:
    """Parse a database URL. Whitespace and line breaks around it are ignored.

    Raises:
        InputError: it is not a PostgreSQL URL, or has an option that libpq does not know. Never shows the password.
    """
    hint = "postgresql://USER:PASSWORD@HOST:5432/DATABASE (percent-encode @ : / % in the password)"
    text = text.strip()
    try:
        url = _with_whole_password(sqlalchemy.make_url(text), text)
        query = dict(url.query)
        if isinstance(given := query.pop("password", None), str):
            url = url.set(password=given, query=query)
        # libpq is written in C, where a NUL ends a text; half a surrogate pair stands for a byte that is not UTF-8.
        is_unfit = any(_NOT_IN_URL.search(part) for part in _decoded_parts(url))
    except (ArgumentError, ValueError):
        raise InputError("the storage URL cannot be read", hint=hint) from None
    finally:
        remember_passwords(text)
    remember_password(url.password or "")
    if url.drivername not in ("postgresql", "postgres", "postgresql+psycopg2"):
        raise InputError(f"storage must be PostgreSQL, got {url.drivername}://", hint=hint)
    if is_unfit:
        raise InputError("the storage URL has a control character, or a byte that is not UTF-8", hint=hint)
    for name in url.query:
        try:
            parse_dsn(f"{name}=''")
        except psycopg2.ProgrammingError:
            message = f"the storage URL has an option that libpq does not know: {name}"
            raise InputError(message, hint=BAD_URL.hint) from None
    return url.set(drivername="postgresql+psycopg2")


def with_password_of_file(text: str) -> str:
    """Return the URL, with the password from the file that environment.STORAGE_PASSWORD_FILE names if it has none.

    Raises:
        InputError: the URL or the file cannot be read, or the file is empty.
    """
    named = os.environ.get(environment.STORAGE_PASSWORD_FILE)
    url = parse_url(text)
    if not named or url.password is not None:
        return text
    hint = f"{environment.STORAGE_PASSWORD_FILE} names a file whose first line is the password"
    password = read_password(Path(named).expanduser(), hint)
    return url.set(password=password).render_as_string(hide_password=False)


def read_password(path: Path, hint: str) -> str:
    """Return the first line of a password file.

    Args:
        hint: of the error.
    Raises:
        InputError: the file cannot be read, is empty, or has a control character in its first line.
    """
    try:
        password = path.read_text(encoding="utf-8").partition("\n")[0].removesuffix("\r")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise InputError(f"cannot read the password file {path}: {reason}", hint=hint) from error
    if not password:
        raise InputError(f"the password file {path} is empty", hint=hint)
    if _NOT_IN_URL.search(password):
        raise InputError(f"the first line of the password file {path} has a control character", hint=hint)
    remember_password(password)
    return password


def without_password(url: sqlalchemy.URL) -> sqlalchemy.URL:
    """Return the URL without its password; `URL.set` cannot do this because it takes None for "unchanged"."""
    return sqlalchemy.URL.create(url.drivername, url.username, None, url.host, url.port, url.database, url.query)


def _decoded_parts(url: sqlalchemy.URL) -> Iterator[str]:
    yield from (part for part in (url.username, url.password, url.host, url.database) if part is not None)
    for name, value in url.query.items():
        yield from (name, value) if isinstance(value, str) else (name, *value)


def _with_whole_password(url: sqlalchemy.URL, text: str) -> sqlalchemy.URL:
    """Correct a password that contains an @: SQLAlchemy ends it at the first @ and would show the rest as the host.

    Raises:
        ValueError: an @ is ambiguous: it may belong to the password or end it.
    """
    if url.password is not None and url.host is not None and "@" in url.host:
        rest, _, host = url.host.rpartition("@")
        url = url.set(password=f"{url.password}@{unquote(rest)}", host=host)
    if text.count("@") > 1 and not text.rpartition("@")[2].startswith((url.host or "/", "[")):
        raise ValueError("an @ that is not percent-encoded")
    return url


def describe_address(url: sqlalchemy.URL) -> str:
    """Return `host:port/database`, or the socket's folder instead of the host; never user name and password."""
    host = url.host or url.query.get("host") or "local socket"
    return f"{host}:{url.port or url.query.get('port') or 5432}/{url.database or ''}"
