"""What all tests share: a real PostgreSQL, a home of their own, and the real images where they are there."""

from __future__ import annotations

import fcntl
import logging
import os
import shutil
import tarfile
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from sqlalchemy import Engine, create_engine, text

from hpsearch import logs, safe_text
from hpsearch.postgres.embedded import EmbeddedPostgres
from tests.databases import new_database

# Read by torch when it is first imported, here and in the workers that tests start: tests run side by side,
# and a thread per core in each of them only makes them wait for each other.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# No deadline, and no verdict on how long examples take to make: on a busy machine both fail by chance.
settings.register_profile("any", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("ci", settings.get_profile("any"), derandomize=True, print_blob=True)
settings.register_profile("local", settings.get_profile("any"))
settings.load_profile("ci" if os.environ.get("CI") else "local")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Long tests first: at the end, other processes would wait for them."""
    items.sort(key=lambda item: item.get_closest_marker("long") is None)


@pytest.fixture(scope="session")
def open_folder() -> Iterator[Path]:
    """A temporary folder that PostgreSQL's user can enter; pytest's own are closed (0700)."""
    folder = Path(tempfile.mkdtemp(prefix="hpsearch-tests-"))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


@pytest.fixture(autouse=True)
def _no_settings_of_the_user(open_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test sees the studies, caches or storage of the person who runs it."""
    for name, logger in logging.root.manager.loggerDict.items():
        if name.startswith("hpsearch") and isinstance(logger, logging.Logger):
            logger.disabled = False  # Alembic's set-up of logging, run by some test, silences all that are there
    logging.getLogger("hpsearch").setLevel(logging.NOTSET)  # a command that some test ran in this process sets one
    handler = logs._our_handler()
    if handler is not None:
        handler.context.clear()  # what a command that some test ran in this process has bound
    safe_text._secrets.clear()
    monkeypatch.delenv("HPSEARCH_STORAGE", raising=False)
    monkeypatch.setenv("HPSEARCH_HOME", str(open_folder / "home"))


@pytest.fixture(scope="session")
def postgres_server(open_folder: Path) -> Iterator[EmbeddedPostgres]:
    """One server per pytest process. If it does not start, the tests that need it fail."""
    with EmbeddedPostgres.start(open_folder / "postgres") as server:
        # Its data need to survive a kill of the server (they do), not of the machine; it saves half the time.
        engine = create_engine(server.url, isolation_level="AUTOCOMMIT")
        with engine.connect() as connection:
            for setting in ("fsync", "full_page_writes", "autovacuum"):
                connection.execute(text(f"ALTER SYSTEM SET {setting} = off"))
            connection.execute(text("SELECT pg_reload_conf()"))
        engine.dispose()
        yield server


@pytest.fixture(scope="session")
def postgres_admin(postgres_server: EmbeddedPostgres) -> Iterator[Engine]:
    """Connections that create and drop databases: AUTOCOMMIT, for neither works in a transaction."""
    engine = create_engine(postgres_server.url, isolation_level="AUTOCOMMIT", pool_pre_ping=True)
    yield engine
    engine.dispose()


@pytest.fixture
def database_url(postgres_admin: Engine) -> Iterator[str]:
    """A database of its own for one test, empty."""
    with new_database(postgres_admin) as url:
        yield url


@pytest.fixture(scope="session")
def mnist_folder() -> Path:
    """The folder with the real MNIST files."""
    folder = os.environ.get("HPSEARCH_DATA")
    if not folder:
        pytest.skip("real MNIST is not here: set HPSEARCH_DATA to the folder with its four IDX files")
    return Path(folder)


@pytest.fixture(scope="session")
def cifar_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Some of the CIFAR-10 images as JPEG files, 100 per class in train/ and 20 in test/; unpacked once per session."""
    datasets = os.environ.get("HPSEARCH_DATASETS")
    if not datasets:
        pytest.skip("the CIFAR-10 images are not here: set HPSEARCH_DATASETS to the folder with cifar10-jpeg.tar.gz")
    base = tmp_path_factory.getbasetemp()
    shared = base.parent if os.environ.get("PYTEST_XDIST_WORKER") else base  # of all workers of this session
    folder = shared / "cifar10-jpeg"
    with (shared / "cifar10-jpeg.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not folder.exists():
            _unpack_some(Path(datasets) / "cifar10-jpeg.tar.gz", folder)
    return folder


def _unpack_some(archive: Path, folder: Path) -> None:
    wanted, counts = {"train": 100, "test": 20}, Counter[str]()
    unfinished = folder.with_name(f"{folder.name}.unfinished")
    with tarfile.open(archive) as members:
        for member in members:
            path = Path(member.name)
            part = path.parts[-3] if len(path.parts) >= 3 and member.isfile() else ""
            key = f"{part}/{path.parent.name}"
            if counts[key] < wanted.get(part, 0):
                counts[key] += 1
                content = members.extractfile(member)
                assert content is not None
                target = unfinished / part / path.parent.name / path.name
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(content.read())
    unfinished.rename(folder)
