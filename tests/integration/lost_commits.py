"""A database that forgets: its content at one moment, put back under those who believe otherwise."""

from __future__ import annotations

from sqlalchemy import Connection, text
from sqlalchemy.exc import OperationalError

from hpsearch.store.connection.database import Database

_TABLES = text("SELECT tablename FROM pg_tables WHERE schemaname = 'public'")
_SEQUENCES = text("SELECT sequencename, last_value FROM pg_sequences WHERE schemaname = 'public'")


class Backup:
    """All rows and sequences of a database, as they were when this was made."""

    def __init__(self, database: Database) -> None:
        self._database = database
        with database.engine.begin() as connection:
            connection.execute(text("DROP SCHEMA IF EXISTS backup CASCADE"))
            connection.execute(text("CREATE SCHEMA backup"))
            for table in _tables(connection):
                connection.execute(text(f"CREATE TABLE backup.{table} AS TABLE public.{table}"))
            self._sequences = [(row.sequencename, row.last_value) for row in connection.execute(_SEQUENCES)]

    def put_back(self) -> None:
        """Lose what was committed since. Ids are given again, as after a crash."""
        while True:
            try:
                self._put_back()
            except OperationalError:  # a deadlock with a worker that is just writing
                continue
            return

    def _put_back(self) -> None:
        with self._database.engine.begin() as connection:
            connection.execute(text("SET LOCAL session_replication_role = replica"))  # no foreign keys in between
            for table in _tables(connection):
                connection.execute(text(f"DELETE FROM public.{table}"))
                insert = f"INSERT INTO public.{table} OVERRIDING SYSTEM VALUE TABLE backup.{table}"
                connection.execute(text(insert))
            for name, value in self._sequences:
                sql = f"SELECT setval('public.{name}', coalesce(:value, 1), :is_called)"
                connection.execute(text(sql), {"value": value, "is_called": value is not None})


def _tables(connection: Connection) -> list[str]:
    return list(connection.execute(_TABLES).scalars())
