"""Scratch folders and a scratch PostgreSQL: empty at the start, gone at the end, like nobody's own."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from sqlalchemy import create_engine, text

from hpsearch.postgres.embedded import EmbeddedPostgres


@contextmanager
def scratch_folder() -> Iterator[Path]:
    """A new folder that PostgreSQL's user can enter, too."""
    folder = Path(tempfile.mkdtemp(prefix="hpsearch-bench-"))
    folder.chmod(0o755)
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


@contextmanager
def scratch_postgres(folder: Path, settings: Mapping[str, str | int] | None = None) -> Iterator[EmbeddedPostgres]:
    """An embedded PostgreSQL of its own.

    Args:
        settings: of the server, above those of hpsearch; it is started anew with them.
    """
    if settings:
        with EmbeddedPostgres.start(folder / "postgres") as postgres:
            engine = create_engine(postgres.url, isolation_level="AUTOCOMMIT")
            with engine.connect() as connection:
                for name, value in settings.items():
                    connection.execute(text(f"ALTER SYSTEM SET {name} = '{value}'"))
            engine.dispose()
    with EmbeddedPostgres.start(folder / "postgres") as postgres:
        yield postgres
