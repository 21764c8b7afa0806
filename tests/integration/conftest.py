"""What integration tests share: a database with its tables, studies in it, and a look at what is there."""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import boto3
import pytest
from moto import mock_aws
from sqlalchemy import Engine, event, make_url, text

from hpsearch.epoch_report import EpochReport, Validation
from hpsearch.store.connection.answer_limit import limit_answers
from hpsearch.store.connection.database import Database, open_database
from hpsearch.store.registration import register_study
from hpsearch.store.studies import StoredStudy
from hpsearch.study.definition import StudyDefinition
from hpsearch.study.settings import TrialSettings
from hpsearch.study.study_file import parse_definition
from tests.databases import new_database


@pytest.fixture
def aws_variables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """AWS's variables name somebody, and nothing of the user's."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "an-id")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "a-secret-key")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    for name in ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"):
        monkeypatch.setenv(name, str(tmp_path / "none"))


@pytest.fixture
def bucket(aws_variables: None) -> Iterator[Any]:
    """An empty bucket, as boto3 sees it, that lives in this process only."""
    with mock_aws():
        yield boto3.resource("s3").create_bucket(Bucket=f"bucket-{uuid.uuid4().hex}")


@pytest.fixture(scope="session")
def s3_endpoint() -> Iterator[str]:
    """The address of a server that speaks S3, in a thread of this process."""
    from moto.server import ThreadedMotoServer  # here: it takes a second

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def served_bucket(s3_endpoint: str, aws_variables: None, monkeypatch: pytest.MonkeyPatch) -> Any:
    """An empty bucket that other processes reach too: AWS_ENDPOINT_URL names its server, as for MinIO."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3_endpoint)
    return boto3.resource("s3").create_bucket(Bucket=f"bucket-{uuid.uuid4().hex}")


@pytest.fixture(scope="session")
def template_database(postgres_admin: Engine) -> Iterator[str]:
    """The name of a database with all tables, to be copied: creating them anew takes a second."""
    with new_database(postgres_admin) as url:
        open_database(url).close()
        name = make_url(url).database
        assert name is not None
        yield name


@pytest.fixture
def tables_url(postgres_admin: Engine, template_database: str) -> Iterator[str]:
    """A database of its own for one test, with all tables and no study."""
    with new_database(postgres_admin, template=template_database) as url:
        yield url


@pytest.fixture(scope="session", autouse=True)
def _limited_answers() -> None:
    """These tests open the database as a worker does."""
    limit_answers()


@pytest.fixture
def database(tables_url: str) -> Iterator[Database]:
    database = open_database(tables_url)
    yield database
    database.close()


@pytest.fixture
def execute(database: Database) -> Callable[..., Any]:
    """Runs one statement in a transaction of its own and returns its rows (or None)."""

    def run(sql: str, **values: Any) -> Any:
        with database.engine.begin() as connection:
            result = connection.execute(text(sql), values)
            return result.all() if result.returns_rows else None

    return run


@pytest.fixture
def statements(database: Database) -> Callable[[], AbstractContextManager[list[str]]]:
    """Collects the SQL statements that the database's own engine executes in a `with` block."""

    @contextmanager
    def collect() -> Iterator[list[str]]:
        seen: list[str] = []

        def note(_connection: Any, _cursor: Any, statement: str, *_rest: Any) -> None:
            seen.append(statement)

        event.listen(database.engine, "before_cursor_execute", note)
        try:
            yield seen
        finally:
            event.remove(database.engine, "before_cursor_execute", note)

    return collect


def cohort_by_batch_size(settings: TrialSettings) -> str:
    return f"batch {settings.training.batch_size}"


@pytest.fixture
def new_study(database: Database) -> Callable[..., StoredStudy]:
    """Creates a study of so many points (rates 0.001, 0.002, ...) or of the given [search] section."""

    def create(points: int | dict[str, Any] = 3) -> StoredStudy:
        search = points
        if isinstance(points, int):
            search = {"learning_rate": [round(0.001 * (i + 1), 6) for i in range(points)]}
        definition: StudyDefinition = parse_definition(
            {"name": f"study-{uuid.uuid4().hex[:8]}", "search": search}, source="test"
        )
        registration = register_study(
            database, definition, dataset_checksums={"images": "ab" * 32}, cohort_of=cohort_by_batch_size
        )
        assert registration.is_new
        return registration.study

    return create


@pytest.fixture
def epoch() -> Callable[..., EpochReport]:
    """Makes the report of an epoch."""

    def make(number: int = 1, loss: float = 0.5) -> EpochReport:
        validation = Validation(iteration=100 * number, loss=loss, nll=2 * loss)
        return EpochReport(epoch=number, validations=(validation,), train_nll=0.25, learning_rate=0.125, seconds=0.5)

    return make
