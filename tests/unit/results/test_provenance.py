"""What the vault writes down about the code and the person: never an error, never control characters."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from hpsearch.results.provenance import code_commit, user_at_host


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository with a package `mine` in it, committed."""
    monkeypatch.delenv("HPSEARCH_COMMIT", raising=False)
    package = tmp_path / "checkout" / "mine"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("")
    _git(package.parent, "init", "-q")
    _git(package.parent, "add", "mine")
    _git(package.parent, "-c", "user.name=a", "-c", "user.email=a@b", "commit", "-q", "-m", "first")
    return package


def _git(folder: Path, *arguments: str) -> str:
    done = subprocess.run(["git", "-C", folder, *arguments], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def test_a_checkout_tells_its_commit_and_whether_the_package_was_changed(checkout: Path) -> None:
    commit = _git(checkout, "rev-parse", "HEAD")
    assert code_commit(checkout) == commit
    (checkout.parent / "notes.txt").write_text("beside the package")
    assert code_commit(checkout) == commit
    (checkout / "__init__.py").write_text("changed = True\n")
    assert code_commit(checkout) == f"{commit}-dirty"


def test_an_installation_inside_of_another_checkout_is_of_no_commit(checkout: Path) -> None:
    installed = checkout.parent / ".venv" / "mine"
    installed.mkdir(parents=True)
    (installed / "__init__.py").write_text("")
    assert code_commit(installed) is None


def test_without_git_or_checkout_there_is_no_commit(
    checkout: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path))
    assert code_commit(tmp_path) is None
    monkeypatch.setenv("PATH", str(tmp_path / "empty"))
    assert code_commit(checkout) is None


def test_an_image_names_its_commit_in_a_variable(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HPSEARCH_COMMIT", " 1234abc\x1b[31m" + 1000 * "x")
    named = code_commit(checkout)
    assert named is not None
    assert named.startswith("1234abc?[31m")
    assert len(named) == 200
    monkeypatch.setenv("HPSEARCH_COMMIT", "  ")
    assert code_commit(checkout) == _git(checkout, "rev-parse", "HEAD")


def test_the_person_is_user_and_host_without_control_characters(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOGNAME", "anna\x07")
    assert user_at_host().startswith("anna?@")


def test_a_user_without_a_name_is_a_number(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("LOGNAME", "USER", "LNAME", "USERNAME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("os.getuid", lambda: 987_654)
    assert user_at_host().startswith("987654@")


def test_a_container_is_told_who_uses_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOGNAME", "hpsearch")
    monkeypatch.setenv("HPSEARCH_USER", " anna ")
    assert user_at_host().startswith("anna@")
    monkeypatch.setenv("HPSEARCH_USER", "")  # Compose, where nobody is named
    assert user_at_host().startswith("hpsearch@")
