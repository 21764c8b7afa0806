"""Files are replaced whole or not at all."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from hpsearch import atomic_file
from hpsearch.atomic_file import replaced_file, write_file
from hpsearch.errors import ArtifactError
from tests.full_disk import files_no_larger_than


@pytest.fixture
def old_file(tmp_path: Path) -> Path:
    path = tmp_path / "result.json"
    path.write_text("old")
    return path


def test_a_new_file_has_the_content_and_the_rights_that_the_umask_leaves(tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    before = os.umask(0o027)
    try:
        write_file(path, "Grüße\n")
    finally:
        os.umask(before)
    assert path.read_bytes() == "Grüße\n".encode()
    assert path.stat().st_mode & 0o777 == 0o640


def test_an_old_file_is_replaced_and_nothing_else_is_left(old_file: Path) -> None:
    write_file(old_file, "new")
    assert old_file.read_text() == "new"
    assert _names_in(old_file.parent) == ["result.json"]


def test_the_old_file_stays_while_the_new_one_is_written(old_file: Path) -> None:
    with replaced_file(old_file) as file:
        file.write(b"new")
        file.flush()
        assert old_file.read_text() == "old"


def test_the_old_file_stays_when_the_writer_fails(old_file: Path) -> None:
    def write_half() -> None:
        with replaced_file(old_file) as file:
            file.write(b"ne")
            raise ValueError("half way")

    with pytest.raises(ValueError, match="half way"):
        write_half()
    assert old_file.read_text() == "old"
    assert _names_in(old_file.parent) == ["result.json"]


def test_the_old_file_stays_when_the_writer_is_killed_before_the_rename(old_file: Path) -> None:
    program = (
        "import os, pathlib, signal, sys\n"
        "from hpsearch.atomic_file import write_file\n"
        "pathlib.Path.replace = lambda *paths: os.kill(os.getpid(), signal.SIGKILL)\n"
        "write_file(pathlib.Path(sys.argv[1]), 'new')\n"
    )
    ended = subprocess.run([sys.executable, "-c", program, str(old_file)], check=False, timeout=240)
    assert ended.returncode == -signal.SIGKILL
    assert old_file.read_text() == "old"


def test_a_full_disk_is_an_error_that_names_the_file_and_leaves_the_old_one(old_file: Path) -> None:
    with (
        pytest.raises(ArtifactError, match=f"cannot write {old_file}: File too large") as caught,
        files_no_larger_than(100),
    ):
        write_file(old_file, "x" * 1000)
    assert caught.value.exit_code == 3
    assert old_file.read_text() == "old"
    assert _names_in(old_file.parent) == ["result.json"]


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    path = tmp_path / "missing" / "result.json"
    with pytest.raises(ArtifactError, match=f"cannot write {path}: No such file or directory"):
        write_file(path, "new")


@pytest.mark.parametrize("kind", ["folder", "pipe"])
def test_what_is_not_a_regular_file_is_not_replaced(tmp_path: Path, kind: str) -> None:
    path = tmp_path / kind
    if kind == "folder":
        path.mkdir()
    else:
        os.mkfifo(path)
    mode = path.stat().st_mode
    with pytest.raises(ArtifactError, match="not a regular file"):
        write_file(path, "new")
    assert path.stat().st_mode == mode
    assert _names_in(tmp_path) == [kind]


def test_a_link_stays_and_the_file_behind_it_is_replaced(old_file: Path, tmp_path: Path) -> None:
    link = tmp_path / "latest"
    link.symlink_to(old_file)
    write_file(link, "new")
    assert link.is_symlink()
    assert old_file.read_text() == "new"


def _names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize(
    ("link_owner", "folder_mode", "folder_owner", "is_followed"),
    [
        (1001, 0o1777, 0, False),  # somebody else's link in /tmp
        (os.geteuid(), 0o1777, 4711, True),  # our own
        (4711, 0o1777, 4711, True),  # of the folder's owner
        (1001, 0o755, 4711, True),  # nobody else can have put it there
        (1001, 0o1775, 4711, True),
    ],
)
def test_links_in_folders_of_everybody_are_followed_as_linux_follows_them(
    link_owner: int, folder_mode: int, folder_owner: int, is_followed: bool
) -> None:
    folder_owner = 4711 if folder_owner == os.geteuid() else folder_owner
    assert atomic_file._is_followed(link_owner, folder_mode, folder_owner) is is_followed


@pytest.mark.parametrize("place", ["the file", "its folder", "behind another link"])
def test_a_link_of_somebody_else_in_a_sticky_folder_is_refused_and_its_target_untouched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    """Another user's link: as far as the rule goes it has another owner than we and the folder."""
    sticky, home = tmp_path / "tmp", tmp_path / "home"
    sticky.mkdir()
    sticky.chmod(0o1777)
    home.mkdir()
    target = home / "best.json"
    target.write_text("old")
    link = sticky / "link"
    link.symlink_to(home if place == "its folder" else target)
    path = {"the file": link, "its folder": link / "best.json", "behind another link": home / "mine"}[place]
    if place == "behind another link":
        path.symlink_to("../tmp/link")
    write_file(path, "mine")  # our own link
    monkeypatch.setattr(atomic_file, "_is_followed", lambda owner, mode, folder: not mode & 0o1000)
    with pytest.raises(ArtifactError, match="is a link that another user has put into") as caught:
        write_file(path, "new")
    assert caught.value.exit_code == 3
    assert str(link) in str(caught.value)
    assert target.read_text() == "mine"
    assert _names_in(sticky) == ["link"]


def test_links_in_a_circle_are_an_error(tmp_path: Path) -> None:
    (tmp_path / "one").symlink_to("two")
    (tmp_path / "two").symlink_to("one")
    with pytest.raises(ArtifactError, match="Too many levels of symbolic links"):
        write_file(tmp_path / "one", "new")


def test_a_way_with_dots_and_links_ends_where_the_kernel_ends(tmp_path: Path) -> None:
    (tmp_path / "far" / "deep").mkdir(parents=True)
    (tmp_path / "near").symlink_to("far/deep")
    write_file(tmp_path / "near" / ".." / "file", "new")  # beside "deep", not beside "near"
    assert (tmp_path / "far" / "file").read_text() == "new"
