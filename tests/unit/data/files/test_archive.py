"""Files come out of archives and unpacked folders by their names, and nothing else of an archive is decoded."""

from __future__ import annotations

import gzip
import io
import tarfile
import zipfile
from pathlib import Path

import pytest

from hpsearch.data.files import archive, data_file
from hpsearch.data.files.archive import md5_of, member_names, read_members
from hpsearch.errors import DataError

FILES = {"top/a": b"first", "top/b.gz": gzip.compress(b"second"), "top/deeper/c": b"third"}


def write_tar(path: Path, files: dict[str, bytes] = FILES, mode: str = "w:gz") -> Path:
    with tarfile.open(path, mode) as target:
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            target.addfile(entry, io.BytesIO(content))
    return path


def write_zip(path: Path, files: dict[str, bytes] = FILES) -> Path:
    with zipfile.ZipFile(path, "w") as target:
        for name, content in files.items():
            target.writestr(name, content)
    return path


def write_folder(path: Path) -> Path:
    (path / "top").mkdir(parents=True)
    (path / "top" / "a").write_bytes(b"first")
    (path / "b.gz").write_bytes(FILES["top/b.gz"])
    return path


@pytest.mark.parametrize("place", ["x.tar.gz", "x.tar", "x.zip", "folder"])
def test_files_are_found_wherever_they_lie_and_unpacked(tmp_path: Path, place: str) -> None:
    writers = {"x.tar.gz": write_tar, "x.tar": lambda p: write_tar(p, mode="w"), "x.zip": write_zip}
    path = writers.get(place, write_folder)(tmp_path / place)
    files = read_members(path, ["a", "b", "missing"], folder="top")
    assert {name: file.content for name, file in files.items()} == {"a": b"first", "b": b"second"}
    assert str(path) in files["a"].source
    assert files["a"].source.endswith("a")


def test_the_names_in_a_zip_or_a_folder_are_told_without_reading(tmp_path: Path) -> None:
    assert member_names(write_zip(tmp_path / "x.zip")) == {"a", "b", "c"}
    assert member_names(write_folder(tmp_path / "folder")) == {"top", "b"}


def test_a_name_that_leads_out_of_the_archive_is_only_a_name(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "x.tar.gz", {"../../etc/a": b"content"})
    assert read_members(path, ["a"])["a"].content == b"content"
    assert sorted(tmp_path.iterdir()) == [path]


def test_a_link_in_an_archive_is_not_followed(tmp_path: Path) -> None:
    path = tmp_path / "x.tar"
    with tarfile.open(path, "w") as target:
        entry = tarfile.TarInfo("a")
        entry.type, entry.linkname = tarfile.SYMTYPE, "/etc/hostname"
        target.addfile(entry)
    assert read_members(path, ["a"]) == {}


@pytest.mark.parametrize("name", ["x.tar.gz", "x.zip"])
def test_a_damaged_archive_is_named(tmp_path: Path, name: str) -> None:
    path = (write_tar if name.endswith("gz") else write_zip)(tmp_path / name, {"a": bytes(range(256)) * 400})
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match=f"{path}: no archive, or a damaged one"):
        read_members(path, ["a"])
    path.write_bytes(b"<html>")
    with pytest.raises(DataError, match="no archive, or a damaged one"):
        read_members(path, ["a"])


def test_an_archive_that_is_missing_or_may_not_be_read_says_so(tmp_path: Path) -> None:
    for call in (lambda path: read_members(path, ["a"]), md5_of, member_names):
        with pytest.raises(DataError, match="cannot be read: No such file"):
            call(tmp_path / "x.zip")


def test_a_file_that_unpacks_to_too_much_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archive, "MAX_UNPACKED_BYTES", 1000)
    large = {"a": bytes(1001)}
    for path in (write_tar(tmp_path / "x.tar.gz", large), write_zip(tmp_path / "x.zip", large)):
        with pytest.raises(DataError, match="more than 1000 bytes when unpacked"):
            read_members(path, ["a"])
    assert data_file.MAX_UNPACKED_BYTES == 2**30


def test_an_endless_archive_is_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archive, "_MAX_ENTRIES", 5)
    path = write_tar(tmp_path / "x.tar", {f"{number}": b"" for number in range(10)}, "w")
    with pytest.raises(DataError, match="more than 5 files"):
        read_members(path, ["a"])
