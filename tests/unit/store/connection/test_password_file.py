"""A password in a file instead of the URL, as containers have it."""

from __future__ import annotations

from pathlib import Path

import pytest
from sqlalchemy import make_url

from hpsearch import environment
from hpsearch.errors import InputError
from hpsearch.store.connection.address import with_password_of_file

URL = "postgresql://user@host:5432/studies"


@pytest.fixture
def password_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "password"
    monkeypatch.setenv(environment.STORAGE_PASSWORD_FILE, str(path))
    return path


def test_the_password_is_the_files_first_line(password_file: Path) -> None:
    password_file.write_text("p@ss: w/o{rd}%41\nanother line\n")
    assert make_url(with_password_of_file(URL)).password == "p@ss: w/o{rd}%41"


def test_a_password_in_the_url_wins(password_file: Path) -> None:
    url = URL.replace("user@", "user:other@")
    assert with_password_of_file(url) == url


def test_without_the_variable_nothing_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(environment.STORAGE_PASSWORD_FILE, raising=False)
    assert with_password_of_file(URL) == URL


@pytest.mark.parametrize(
    ("content", "reason"), [(None, "No such file"), (b"", "is empty"), (b"\xff\xfe", "not UTF-8 text")]
)
def test_a_file_that_holds_no_password_is_an_error_that_names_it(
    password_file: Path, content: bytes | None, reason: str
) -> None:
    if content is not None:
        password_file.write_bytes(content)
    with pytest.raises(InputError, match=reason) as caught:
        with_password_of_file(URL)
    assert str(password_file) in str(caught.value)
    assert caught.value.hint is not None
    assert environment.STORAGE_PASSWORD_FILE in caught.value.hint


def test_an_empty_first_line_is_no_password(password_file: Path) -> None:
    password_file.write_text("\nsecret\n")
    with pytest.raises(InputError, match="is empty") as caught:
        with_password_of_file(URL)
    assert "secret" not in str(caught.value)
