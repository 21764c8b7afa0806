"""A download is whole, right and atomic, or it is an error that says what each mirror did."""

from __future__ import annotations

import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from hpsearch.data.files import download
from hpsearch.data.files.download import MirrorsFailedError, download_file
from hpsearch.errors import DataError

CONTENT = bytes(range(256)) * 1000
NAME = "data.gz"


def accept(path: Path, address: str) -> None:
    """A check that every file passes."""


def expect_content(path: Path, address: str) -> None:
    if path.read_bytes() != CONTENT:
        raise DataError(f"{address}: wrong content")


def names(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir()]


def test_the_file_is_downloaded_verified_and_left_alone_in_its_folder(tmp_path: Path, mirror) -> None:
    mirror.files["/a/data.gz"] = CONTENT
    seen: list[tuple[bytes, str]] = []
    path = download_file(
        NAME,
        [mirror.address + "a/"],
        tmp_path / "new" / "folder",
        verify=lambda path, address: seen.append((path.read_bytes(), address)),
    )
    assert path == tmp_path / "new" / "folder" / NAME
    assert path.read_bytes() == CONTENT
    assert seen == [(CONTENT, mirror.address + "a/data.gz")]
    assert names(path.parent) == [NAME]


@pytest.mark.parametrize("has_length", [True, False])
def test_progress_goes_from_nothing_to_everything(tmp_path: Path, mirror, has_length: bool) -> None:
    mirror.files["/data.gz"] = CONTENT
    mirror.has_length = has_length
    calls: list[tuple[str, int, int | None]] = []
    download_file(NAME, [mirror.address], tmp_path, verify=accept, progress=lambda *call: calls.append(call))
    total = len(CONTENT) if has_length else None
    assert calls[0] == (NAME, 0, total)
    assert calls[-1] == (NAME, len(CONTENT), total)
    assert [done for _, done, _ in calls] == sorted(done for _, done, _ in calls)
    assert len(calls) > 2


def test_the_second_mirror_serves_where_the_first_has_no_such_file(tmp_path: Path, mirror, caplog) -> None:
    mirror.files["/b/data.gz"] = CONTENT
    download_file(NAME, [mirror.address + "a/", mirror.address + "b/"], tmp_path, verify=expect_content)
    assert (tmp_path / NAME).read_bytes() == CONTENT
    assert mirror.requests == ["/a/data.gz", "/b/data.gz"]
    assert "a/data.gz: HTTP status 404 (Not Found)" in caplog.text


def test_mirrors_are_tried_in_order_and_no_further_than_needed(tmp_path: Path, mirror) -> None:
    mirror.files |= {"/a/data.gz": CONTENT, "/b/data.gz": CONTENT}
    download_file(NAME, [mirror.address + "a/", mirror.address + "b/"], tmp_path, verify=accept)
    assert mirror.requests == ["/a/data.gz"]


def test_a_truncated_body_is_refused_and_leaves_nothing(tmp_path: Path, mirror) -> None:
    mirror.files["/data.gz"] = CONTENT
    mirror.cut_short.add("/data.gz")
    with pytest.raises(MirrorsFailedError, match="cut short: 128000 of 256000 bytes"):
        download_file(NAME, [mirror.address], tmp_path, verify=accept)
    assert names(tmp_path) == []


def test_wrong_content_is_refused_and_leaves_the_old_file(tmp_path: Path, mirror) -> None:
    mirror.files["/data.gz"] = b"something else"
    (tmp_path / NAME).write_bytes(b"old")
    with pytest.raises(MirrorsFailedError, match="wrong content"):
        download_file(NAME, [mirror.address], tmp_path, verify=expect_content)
    assert names(tmp_path) == [NAME]
    assert (tmp_path / NAME).read_bytes() == b"old"


def test_the_error_has_the_reason_for_every_mirror(tmp_path: Path, mirror) -> None:
    mirror.files |= {"/b/data.gz": b"something else"}
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))  # bound but not listening: connections are refused
        refused = f"http://127.0.0.1:{unused.getsockname()[1]}/"
        with pytest.raises(MirrorsFailedError) as caught:
            download_file(
                NAME,
                [mirror.address + "a/", mirror.address + "b/", refused],
                tmp_path / "folder",
                verify=expect_content,
            )
    assert str(caught.value) == (
        f"mirrors tried: {mirror.address}a/data.gz: HTTP status 404 (Not Found); "
        f"{mirror.address}b/data.gz: wrong content; "
        f"{refused}data.gz: [Errno 111] Connection refused"
    )


def test_a_mirror_that_is_not_there_leaves_no_folder_behind(tmp_path: Path, mirror) -> None:
    with pytest.raises(MirrorsFailedError):
        download_file(NAME, [mirror.address], tmp_path / "folder", verify=accept)
    assert names(tmp_path) == []


def test_a_mirror_that_never_answers_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "*")
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"http://127.0.0.1:{silent.getsockname()[1]}/"
        with pytest.raises(MirrorsFailedError, match="timed out"):
            download_file(NAME, [address], tmp_path, verify=accept, timeout_seconds=0.05)


def test_a_server_that_does_not_speak_http_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "*")

    def answer() -> None:
        connection, _ = server.accept()
        with connection:
            connection.recv(1000)
            connection.sendall(b"SSH-2.0-OpenSSH\r\n")

    with socket.create_server(("127.0.0.1", 0)) as server:
        thread = threading.Thread(target=answer)
        thread.start()
        address = f"http://127.0.0.1:{server.getsockname()[1]}/"
        with pytest.raises(MirrorsFailedError, match=r"SSH-2\.0-OpenSSH"):
            download_file(NAME, [address], tmp_path, verify=accept)
        thread.join()


def test_an_endless_mirror_is_stopped(tmp_path: Path, mirror, monkeypatch: pytest.MonkeyPatch) -> None:
    mirror.files["/data.gz"] = CONTENT
    monkeypatch.setattr(download, "MAX_DOWNLOAD_BYTES", 100_000)
    with pytest.raises(MirrorsFailedError, match="more than 100000 bytes"):
        download_file(NAME, [mirror.address], tmp_path, verify=accept)
    assert names(tmp_path) == []


def test_no_mirrors_is_said(tmp_path: Path) -> None:
    with pytest.raises(MirrorsFailedError, match="mirrors tried: none"):
        download_file(NAME, [], tmp_path, verify=accept)


def test_a_folder_that_cannot_be_made_names_path_and_user(tmp_path: Path, mirror) -> None:
    mirror.files["/data.gz"] = CONTENT
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(DataError, match=r"file/cache: cannot be written by user .+: Not a directory"):
        download_file(NAME, [mirror.address], tmp_path / "file" / "cache", verify=accept)


def test_a_full_disk_names_the_path_and_tries_no_other_mirror(tmp_path: Path, mirror, monkeypatch) -> None:
    mirror.files |= {"/a/data.gz": CONTENT, "/b/data.gz": CONTENT}

    def refuse(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(download.os, "fsync", refuse)
    with pytest.raises(DataError, match=r"data\.gz: cannot be written by user .*: No space left on device"):
        download_file(NAME, [mirror.address + "a/", mirror.address + "b/"], tmp_path, verify=accept)
    assert mirror.requests == ["/a/data.gz"]
    assert names(tmp_path) == []


def test_an_interrupt_leaves_nothing(tmp_path: Path, mirror) -> None:
    mirror.files["/data.gz"] = CONTENT

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        download_file(NAME, [mirror.address], tmp_path, verify=accept, progress=interrupt)
    assert names(tmp_path) == []


def test_concurrent_downloads_never_share_a_file(tmp_path: Path, mirror) -> None:
    """All are held before they verify, so that all their files exist at once."""
    num_downloads = 4
    mirror.files["/data.gz"] = CONTENT
    barrier = threading.Barrier(num_downloads, timeout=240)
    verified: list[Path] = []

    def verify(path: Path, address: str) -> None:
        barrier.wait()
        expect_content(path, address)
        verified.append(path)

    with ThreadPoolExecutor(num_downloads) as pool:
        futures = [
            pool.submit(download_file, NAME, [mirror.address], tmp_path, verify=verify) for _ in range(num_downloads)
        ]
        assert {future.result() for future in futures} == {tmp_path / NAME}
    assert len(set(verified)) == num_downloads
    assert names(tmp_path) == [NAME]
    assert (tmp_path / NAME).read_bytes() == CONTENT
