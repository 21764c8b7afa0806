"""The schema of the study database: creates missing tables, upgrades older versions, refuses unknown ones.

Optuna's storage is loaded only if a table is missing or has another version. An upgrade only adds tables and drops
constraints. It therefore takes a moment whatever the database holds, and active workers of the older version finish
their study beside newer ones; workers that start after the upgrade must be of the newer version.

`open_database` calls `prepare_schema` once per process. Any number of processes may do so at once, on an empty database
or not.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import TYPE_CHECKING

import sqlalchemy
from sqlalchemy import Connection, Engine, insert, select, text, update

from hpsearch.errors import StorageError
from hpsearch.logs import get_logger
from hpsearch.postgres.lock_wait import wait_for_lock
from hpsearch.store.connection import tables
from hpsearch.store.connection.lock_session import LockSession

if TYPE_CHECKING:
    from hpsearch.store.connection.study_storage import StudyStorage

_log = get_logger("database")
_LOCK_SECONDS = 60.0  # opening takes a quarter of a second at most: enough for hundreds of processes that start at once
_SCHEMA_LOCK = 0x68707363  # "hpsc": advisory lock that guards the creation of tables


def prepare_schema(engine: Engine, address: str, optuna_storage: Callable[[], StudyStorage]) -> None:
    """Create missing tables of Optuna and of hpsearch, and check both versions.

    Args:
        address: name of the database in messages.
        optuna_storage: returns Optuna's storage, which creates Optuna's tables; called unless all tables are there.
    Raises:
        StorageError: one of the schemas has another version, or another process holds the schema lock for too long.
    """
    if _is_current(engine):
        return
    with contextlib.closing(LockSession(engine)) as session:
        # Without this lock, two processes that create tables make each other fail.
        wait_for_lock(
            lambda: bool(session.ask(_TRY_LOCK, {"key": _SCHEMA_LOCK})[0][0]),
            seconds=_LOCK_SECONDS,
            activity=f"creating the tables at {address}",
            hint="find it in pg_stat_activity, or try again",
        )
        optuna_storage().check_revision(address)
        with engine.begin() as connection:
            _create_own_tables(connection, address)


def _is_current(engine: Engine) -> bool:
    """Whether all tables are there, in the versions that this hpsearch writes."""
    with engine.connect() as connection:
        names = ["alembic_version", *tables.OPTUNA_TABLES, *tables.metadata.tables]
        if not connection.execute(_ARE_THERE, {"names": names}).scalar_one():
            return False
        revisions = connection.execute(text("SELECT version_num FROM alembic_version")).scalars().all()
        versions = connection.execute(select(tables.schema.c.version)).scalars().all()
        return (revisions, versions) == ([tables.OPTUNA_REVISION], [tables.SCHEMA_VERSION])


_TRY_LOCK = text("SELECT pg_try_advisory_lock(:key)")
_ARE_THERE = text("SELECT bool_and(to_regclass(name) IS NOT NULL) FROM unnest(CAST(:names AS text[])) AS name")


def _create_own_tables(connection: Connection, address: str) -> None:
    """Bring hpsearch's tables to SCHEMA_VERSION in the caller's transaction; a refusal rolls it back."""
    is_new = not sqlalchemy.inspect(connection).has_table(tables.points.name)
    tables.metadata.create_all(connection)
    if is_new:
        connection.execute(insert(tables.schema).values(version=tables.SCHEMA_VERSION))
    # Tables without a version row are from before the first release.
    stored = connection.execute(select(tables.schema.c.version)).scalar_one_or_none() or 0
    if 1 <= stored < tables.SCHEMA_VERSION:
        # Older versions only lack whole tables, which create_all has just created, and have a constraint too many.
        for name in ("train_nll", "validation_nll", "learning_rate"):
            connection.execute(text(f"ALTER TABLE {tables.epochs.name} ALTER COLUMN {name} DROP NOT NULL"))
        connection.execute(update(tables.schema).values(version=tables.SCHEMA_VERSION))
        _log.info("upgraded the tables in the database at %s from version %d", address, stored)
    elif stored != tables.SCHEMA_VERSION:
        raise StorageError(
            f"the database at {address} has hpsearch's schema version {stored}, "
            f"this hpsearch has {tables.SCHEMA_VERSION}",
            hint="use the version of hpsearch that created it, or another database (--storage URL)",
        )
