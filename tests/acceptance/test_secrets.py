"""The password of the study database goes through every command, and comes out nowhere."""

from __future__ import annotations

import hashlib
import html
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote, quote_plus

import pytest
from sqlalchemy import create_engine, make_url, text

from tests.acceptance.in_process import hpsearch_here

pytestmark = pytest.mark.acceptance

PASSWORD = 'Tr0ub"4dor@/:%&x'
SPELLINGS = {
    PASSWORD,
    quote(PASSWORD),
    quote(PASSWORD, safe=""),
    quote_plus(PASSWORD),
    html.escape(PASSWORD),
    json.dumps(PASSWORD)[1:-1],
    re.sub("[:@/]", lambda match: quote(match[0], safe=""), PASSWORD),
    "Tr0ub",  # its beginning, where a part of it was taken for the whole
    "4dor",
}

# A network that writes down what its process was given, in every process that builds it.
NETWORK = """
import hashlib, json, os, pathlib, torch
folder = pathlib.Path(os.environ["SEEN"])
from hpsearch.store.connection.database import parse_url, with_password_of_file
own = pathlib.Path("/proc/self")
given = {"cmdline": (own / "cmdline").read_text(), "environ": (own / "environ").read_text()}
password = parse_url(with_password_of_file(os.environ["HPSEARCH_STORAGE"])).password
given["password"] = hashlib.sha256(password.encode()).hexdigest()
(folder / f"{os.getpid()}.json").write_text(json.dumps(given))
class Seen(torch.nn.Module):
    def __init__(self, image_shape, num_classes):
        super().__init__()
        self.linear = torch.nn.Linear(image_shape[-1] * image_shape[-2], num_classes)
    def forward(self, images):
        return self.linear(images.flatten(1))
"""
STUDY = """
name = "sealed"
[data]
dataset = "digits"
[model]
family = "seen:Seen"
[training]
batch_size = 400
max_epochs = 1
[search]
learning_rate = [0.1, 0.2]
[stopping]
rule = "none"
"""


def assert_sealed(what: str, content: str) -> None:
    found = [spelling for spelling in SPELLINGS if spelling in content]
    assert not found, f"{what}: {found} in {content[:3000]}"


def stored_text(url: str) -> Iterator[str]:
    """All rows of all tables, as text."""
    engine = create_engine(url)
    with engine.connect() as connection:
        names = "SELECT table_name FROM information_schema.tables WHERE table_schema = 'public'"
        for name in connection.execute(text(names)).scalars().all():
            yield from connection.execute(text(f'SELECT t::text FROM "{name}" t')).scalars()
    engine.dispose()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "seen").mkdir()
    (tmp_path / "password").write_text(PASSWORD + "\n")
    (tmp_path / "study.toml").write_text(STUDY)
    (tmp_path / "seen.py").write_text(NETWORK)
    return tmp_path


@pytest.mark.parametrize("way", ["file", "url"])
def test_no_child_and_nothing_written_shows_the_password(way: str, folder: Path, database_url: str) -> None:
    """`run` and `confirm`, which start their workers alike; with a password file they pass on its name."""
    bare = make_url(database_url)
    whole = bare.set(password=PASSWORD).render_as_string(hide_password=False)
    environment = {key: value for key, value in os.environ.items() if not key.startswith("HPSEARCH_")}
    environment |= {"HPSEARCH_HOME": str(folder / "home"), "SEEN": str(folder / "seen"), "PYTHONPATH": str(folder)}
    environment["HPSEARCH_STORAGE"] = bare.render_as_string() if way == "file" else whole
    if way == "file":
        environment["HPSEARCH_STORAGE_PASSWORD_FILE"] = str(folder / "password")
    commands = [["run", "study.toml", "--lanes=2"]]
    if way == "file":
        commands += [["confirm", "sealed", "--top=1", "--seeds=1", "--lanes=1"]]
    parents = []
    for arguments in commands:
        process = subprocess.Popen(
            [sys.executable, "-m", "hpsearch", *arguments],
            env=environment,
            cwd=folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        out, err = process.communicate(timeout=240)
        assert process.returncode == 0, err
        parents.append(process.pid)
        assert_sealed("stdout", out)
        assert_sealed("stderr", err)
    seen = {int(path.stem): json.loads(path.read_text()) for path in (folder / "seen").iterdir()}
    children = {pid: given for pid, given in seen.items() if pid not in parents}
    assert len(children) >= len(commands)
    for given in children.values():
        assert_sealed("a child", given["cmdline"] + given["environ"])
        assert given["password"] == hashlib.sha256(PASSWORD.encode()).hexdigest()
        assert (f"HPSEARCH_STORAGE_PASSWORD_FILE={folder}/password" in given["environ"]) == (way == "file")
    logs = list((folder / "home" / "logs").iterdir())
    assert len(logs) == len(commands)
    for log in logs:
        assert_sealed(str(log), log.read_text())
    for row in stored_text(database_url):
        assert_sealed("the database", row)


BAD_URLS = [
    "postgresql://app:{}@h/db",
    "postgresql://app:{}",
    "postgresql://app:{}%00@h/db",
    "postgresql://app:{}@h:port/db",
    "mysql://app:{}@h/db",
    "postgresql://app@h/db?password={}&sslmode=bogus",
    "host=h password='{}' user=app",
]
# Each command with a URL where none belongs.
MISPLACED = [
    ["status", "sealed", "URL"],
    ["URL"],
    ["run", "URL"],
    ["run", "study.toml", "URL"],
    ["run", "study.toml", "--set", "storage=URL"],
    ["run", "study.toml", "--set", "search.learning_rate=['URL']"],
    ["run", "study.toml", "--set", "name=URL"],
    ["run", "study.toml", "--set", "data.dataset=URL"],
    ["run", "study.toml", "--set", "model.family=URL"],
    ["run", "study.toml", "--workers", "URL"],
    ["run", "study.toml", "--device", "URL"],
    ["run", "study.toml", "--lanes", "URL"],
    ["run", "study.toml", "--metrics", "URL"],
    ["run", "study.toml", "--on", "URL"],
    ["create", "URL"],
    ["create", "study.toml", "--artifacts=URL"],
    ["worker", "sealed", "--artifacts=URL"],
    ["worker", "URL", "--storage", "URL"],
    ["confirm", "sealed", "--top=URL"],
    ["confirm", "sealed", "--name=URL", "--storage", "URL"],
    ["test", "sealed", "--point=URL"],
    ["test", "sealed", "--device=URL"],
    ["report", "sealed", "-o", "URL", "URL"],
    ["export", "sealed", "--format=URL"],
    ["export", "sealed", "-o", "URL"],
    ["dashboard", "--host", "URL"],
    ["dashboard", "--port", "URL"],
    ["data", "fetch", "URL"],
    ["data", "verify", "URL"],
    ["data", "URL"],
    ["health", "--life-sign", "URL"],
    ["--log-format=URL", "health"],
]


@pytest.mark.parametrize("log_format", ["text", "json"])
def test_no_message_shows_a_password(log_format: str, folder: Path, database_url: str) -> None:
    """Bad input in every command; raw, as somebody types it, and percent-encoded."""
    environment = {
        "HPSEARCH_HOME": str(folder / "home"),
        "HPSEARCH_LOG_FORMAT": log_format,
        "SEEN": str(folder / "seen"),
    }
    stored = make_url(database_url).set(username="nobody-of-that-name", password=PASSWORD)
    refused = stored.render_as_string(hide_password=False)
    cases = [(arguments, BAD_URLS[0]) for arguments in MISPLACED]
    cases += [(["status", "--storage", "URL"], url) for url in BAD_URLS[1:]] + [
        (["status", "URL", "URL"], url) for url in BAD_URLS
    ]
    for arguments, form in cases:
        for spelling in (PASSWORD, quote(PASSWORD, safe="")) if arguments[0] == "status" else (PASSWORD,):
            given = [argument.replace("URL", form.format(spelling)) for argument in arguments]
            done = hpsearch_here(*given, folder=folder, environment=environment)
            assert done.returncode in (1, 2, 3), (given, done.stdout)
            assert "Traceback" not in done.stderr, (given, done.stderr)
            assert_sealed(str(given), done.stdout + done.stderr)
    done = hpsearch_here("status", "--storage", refused, folder=folder, environment=environment)
    assert done.returncode == 3
    assert_sealed("a role that is not there", done.stderr)


def test_results_show_no_password(folder: Path, database_url: str) -> None:
    """A study whose trial failed with a message that has the URL in it, told by everything that tells of studies."""
    whole = make_url(database_url).set(password=PASSWORD).render_as_string(hide_password=False)
    environment = {"HPSEARCH_HOME": str(folder / "home"), "HPSEARCH_STORAGE": whole, "SEEN": str(folder / "seen")}
    (folder / "study.toml").write_text(STUDY.replace('family = "seen:Seen"', 'family = "logistic"'))

    def ok(*arguments: str) -> str:
        done = hpsearch_here(*arguments, folder=folder, environment=environment)
        assert done.returncode == 0, done.stderr
        assert_sealed(str(arguments), done.stdout + done.stderr)
        return done.stdout

    ok("create", "study.toml")
    ok("worker", "sealed", "--lanes=2")
    engine = create_engine(database_url)
    with engine.begin() as connection:  # as an older version stored it
        insert = (
            "INSERT INTO trials (number, study_id, state, datetime_start, datetime_complete) "
            "SELECT 99, study_id, 'FAIL', now(), now() FROM studies RETURNING trial_id"
        )
        trial = connection.execute(text(insert)).scalar_one()
        insert = "INSERT INTO trial_user_attributes (trial_id, key, value_json) VALUES (:trial, 'fail_reason', :value)"
        connection.execute(text(insert), {"trial": trial, "value": json.dumps(f"cannot reach {whole}")})
    engine.dispose()
    for arguments in (["status"], ["status", "sealed"], ["status", "--json"], ["status", "sealed", "--json"]):
        ok(*arguments)
    for name in ("json", "toml", "yaml", "env"):
        ok("export", "sealed", f"--format={name}")
    ok("report", "sealed", "-o", "report.html")
    assert_sealed("the report", (folder / "report.html").read_text())
