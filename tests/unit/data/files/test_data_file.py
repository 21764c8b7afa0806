"""Files are read whole, unpacked and hashed; what is no data file is named for what it is."""

from __future__ import annotations

import gzip
import hashlib
import os
from pathlib import Path

import pytest

from hpsearch.data.files.data_file import read_data_file
from hpsearch.errors import DataError

CONTENT = bytes(range(256)) * 40


def test_a_gzip_file_is_unpacked_and_both_checksums_are_taken(tmp_path: Path) -> None:
    packed = gzip.compress(CONTENT)
    path = tmp_path / "data.gz"
    path.write_bytes(packed)
    file = read_data_file(path)
    assert file.content == CONTENT
    assert file.sha256 == hashlib.sha256(CONTENT).hexdigest()
    assert file.packed_md5 == hashlib.md5(packed).hexdigest()
    assert file.source == str(path)


def test_an_unpacked_file_has_no_md5(tmp_path: Path) -> None:
    path = tmp_path / "data"
    path.write_bytes(CONTENT)
    file = read_data_file(path)
    assert (file.content, file.packed_md5) == (CONTENT, None)


def test_the_content_decides_whether_a_file_is_unpacked(tmp_path: Path) -> None:
    """A browser may have dropped the .gz from the name."""
    path = tmp_path / "data"
    path.write_bytes(gzip.compress(CONTENT))
    assert read_data_file(path).content == CONTENT


@pytest.mark.parametrize("kept", [1, 30, 200])
def test_a_truncated_gzip_file_says_so_with_its_first_bytes(tmp_path: Path, kept: int) -> None:
    path = tmp_path / "data.gz"
    packed = gzip.compress(CONTENT)
    path.write_bytes(packed[: 2 + kept])
    with pytest.raises(DataError) as caught:
        read_data_file(path)
    assert f"{path}: the gzip file is truncated" in str(caught.value)
    assert r"b'\x1f\x8b" in str(caught.value)
    assert caught.value.hint == "download the file again"


@pytest.mark.parametrize("position", [20, -8, -1])  # the compressed data, its CRC, its length
def test_a_damaged_gzip_file_says_so(tmp_path: Path, position: int) -> None:
    path = tmp_path / "data.gz"
    packed = bytearray(gzip.compress(CONTENT))
    packed[position] ^= 0xFF
    path.write_bytes(packed)
    with pytest.raises(DataError, match="the gzip file is damaged"):
        read_data_file(path)


@pytest.mark.parametrize("name", ["data.gz", "data"])
@pytest.mark.parametrize("page", [b"<!DOCTYPE html><p>404", b"\r\n <html>", b"\xef\xbb\xbf<html>"])
def test_an_html_page_in_place_of_the_file_is_named_with_its_first_bytes(
    tmp_path: Path, name: str, page: bytes
) -> None:
    path = tmp_path / name
    path.write_bytes(page)
    with pytest.raises(DataError) as caught:
        read_data_file(path)
    assert f"{path}: an HTML page instead of a data file" in str(caught.value)
    assert repr(page[:16]) in str(caught.value)
    assert caught.value.hint == "download the file again"


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 a zip file"])
def test_a_gz_file_that_is_not_gzip_shows_its_first_bytes(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "data.gz"
    path.write_bytes(content)
    with pytest.raises(DataError) as caught:
        read_data_file(path)
    assert f"not a gzip file: it begins with {content[:16]!r}" in str(caught.value)


@pytest.mark.parametrize("is_packed", [True, False])
def test_a_file_beyond_the_limit_is_refused(tmp_path: Path, is_packed: bool) -> None:
    """A gzip bomb of a few kilobytes must not fill the memory."""
    path = tmp_path / "data"
    path.write_bytes(gzip.compress(bytes(5_000_000)) if is_packed else bytes(5_000_000))
    assert not is_packed or path.stat().st_size < 6_000
    with pytest.raises(DataError, match="more than 4999999 bytes when unpacked"):
        read_data_file(path, max_unpacked_bytes=4_999_999)


def test_a_file_at_the_limit_is_read(tmp_path: Path) -> None:
    path = tmp_path / "data"
    path.write_bytes(gzip.compress(bytes(5_000_000)))
    assert len(read_data_file(path, max_unpacked_bytes=5_000_000).content) == 5_000_000


def test_a_missing_file_is_a_data_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot be read: No such file"):
        read_data_file(tmp_path / "data")


def test_a_folder_or_a_pipe_is_no_file(tmp_path: Path) -> None:
    """A pipe would be waited for without end."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    for path in (tmp_path, pipe):
        with pytest.raises(DataError, match="not a file"):
            read_data_file(path)


def test_errors_use_the_given_source(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"^http://mirror/data\.gz: cannot be read"):
        read_data_file(tmp_path / "data", source="http://mirror/data.gz")
