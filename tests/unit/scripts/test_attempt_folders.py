"""Folders of attempts: what the next attempt begins with, here and on another machine, and what is removed."""

from __future__ import annotations

import contextlib
import io
import itertools
import json
import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tarfile
import tempfile
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest
from moto import mock_aws

from hpsearch.artifacts.store import ArtifactStore, FolderStore, open_store
from hpsearch.atomic_file import TEMPORARY_PREFIX
from hpsearch.errors import ArtifactError, InputError
from hpsearch.scripts.attempt_folders import AttemptFolder, AttemptFolders
from hpsearch.scripts.folder_files import discard_folder, temporary_name
from hpsearch.scripts.packed_folder import pack, unpack
from hpsearch.scripts.stored_folders import StoredFolders
from hpsearch.study.command_line import Value
from tests.full_disk import files_no_larger_than


@pytest.fixture
def folders(tmp_path: Path) -> AttemptFolders:
    """The folders of a study on this machine alone."""
    return AttemptFolders(tmp_path / "root", "study-1")


@pytest.fixture
def store(tmp_path: Path) -> FolderStore:
    (tmp_path / "store").mkdir()
    return FolderStore(tmp_path / "store")


@pytest.fixture
def machines(tmp_path: Path, store: FolderStore) -> list[AttemptFolders]:
    """The same study on three machines that share a store."""
    return [_machine(tmp_path / f"machine-{number}", store) for number in range(3)]


def _machine(root: Path, store: ArtifactStore, limit_bytes: int = 10**6) -> AttemptFolders:
    return AttemptFolders(root, "study-1", stored=StoredFolders(store, "study-1", limit_bytes=limit_bytes))


def save(attempt: AttemptFolder, text: str) -> None:
    (attempt.folder / "state").write_text(text)


def state_of(attempt: AttemptFolder) -> str | None:
    path = attempt.folder / "state"
    return path.read_text() if path.exists() else None


def content_of(folder: Path) -> dict[str, bytes | None]:
    """The files and folders (None) below a folder, without following links."""
    found: dict[str, bytes | None] = {}
    for path in folder.rglob("*"):
        found[str(path.relative_to(folder))] = None if path.is_dir() else path.read_bytes()
    return found


def packed(folder: Path) -> io.BytesIO:
    archive = io.BytesIO()
    pack(folder, archive)
    archive.seek(0)
    return archive


# One machine


def test_the_first_attempt_begins_with_an_empty_folder(folders: AttemptFolders) -> None:
    assert content_of(folders.begin(12, 1).folder) == {}


def test_the_folders_are_below_the_root_by_study_point_and_attempt(folders: AttemptFolders, tmp_path: Path) -> None:
    assert folders.begin(12, 1).folder == tmp_path / "root" / "study-1" / "point-000012" / "attempt-1"


def test_only_the_owner_may_look_into_the_folders(folders: AttemptFolders) -> None:
    old = os.umask(0)
    try:
        found = folders.begin(0, 1)
    finally:
        os.umask(old)
    for folder in (found.folder.parents[1], found.folder.parent, found.folder, found.control, found.temporary):
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700


def test_the_control_folder_is_outside_the_scripts_folder(folders: AttemptFolders) -> None:
    found = folders.begin(0, 1)
    for path in (found.reports, found.verdict, found.parameters, found.temporary):
        assert found.folder not in path.parents
    assert content_of(found.control) == {"tmp": None}


def test_the_parameters_are_a_json_file(folders: AttemptFolders) -> None:
    values: dict[str, Value] = {"learning_rate": 1e-5, "width": 64, "nesterov": True, "name": "größe"}
    assert json.loads(folders.begin(0, 1).write_parameters(values).read_text()) == values


def test_the_next_attempt_begins_with_a_copy(folders: AttemptFolders) -> None:
    save(folders.begin(0, 1), "epoch 3")
    assert state_of(folders.begin(0, 2)) == "epoch 3"


def test_two_attempts_never_write_to_the_same_files(folders: AttemptFolders) -> None:
    first = folders.begin(0, 1)
    save(first, "epoch 3")
    second = folders.begin(0, 2)
    with (first.folder / "state").open("a") as file:  # an attempt that is not quite dead
        file.write(", epoch 4")
    save(second, "epoch 5")
    assert (state_of(first), state_of(second)) == ("epoch 3, epoch 4", "epoch 5")


def test_other_points_and_studies_give_nothing(folders: AttemptFolders, tmp_path: Path) -> None:
    save(folders.begin(0, 1), "epoch 3")
    assert state_of(folders.begin(1, 2)) is None
    assert state_of(AttemptFolders(tmp_path / "root", "study-2").begin(0, 2)) is None


def test_the_copy_is_of_the_last_attempt_and_older_ones_are_removed(folders: AttemptFolders) -> None:
    for number in range(1, 11):  # as numbers, 10 comes after 9
        save(folders.begin(0, number), f"attempt {number}")
    found = folders.begin(0, 11)
    assert state_of(found) == "attempt 10"
    assert {path.name for path in found.folder.parent.glob("attempt-*")} == {"attempt-10", "attempt-11"}


def test_an_attempt_never_begins_with_a_later_one(folders: AttemptFolders) -> None:
    save(folders.begin(0, 1), "first")
    save(folders.begin(0, 3), "third")
    assert state_of(folders.begin(0, 2)) == "first"


def test_a_folder_that_is_there_stays_as_it_is(folders: AttemptFolders) -> None:
    save(folders.begin(0, 1), "epoch 3")
    found = folders.begin(0, 1)
    assert state_of(found) == "epoch 3"
    assert content_of(found.control) == {"tmp": None}


def test_permissions_and_times_are_copied(folders: AttemptFolders) -> None:
    first = folders.begin(0, 1)
    script = first.folder / "run.sh"
    script.write_text("#!/bin/sh")
    script.chmod(0o755)
    os.utime(script, ns=(10**18, 10**18 + 1))
    copy = (folders.begin(0, 2).folder / "run.sh").stat()
    assert (stat.S_IMODE(copy.st_mode), copy.st_mtime_ns) == (0o755, 10**18 + 1)


def test_links_and_special_files_are_not_copied(folders: AttemptFolders, tmp_path: Path) -> None:
    _fill_with_everything(folders.begin(0, 1).folder, tmp_path)
    assert content_of(folders.begin(0, 2).folder) == {"sub": None, "sub/empty": None, "sub/file": b"kept"}


def test_a_large_sparse_file_is_copied_as_a_sparse_file(folders: AttemptFolders) -> None:
    path = folders.begin(0, 1).folder / "map"
    with path.open("wb") as file:
        file.truncate(2**40)
        file.seek(2**39)
        file.write(b"middle")
    copy = folders.begin(0, 2).folder / "map"
    with copy.open("rb") as file:
        file.seek(2**39)
        assert file.read(8) == b"middle\0\0"
    assert copy.stat().st_size == 2**40
    assert copy.stat().st_blocks * 512 < 2**24


def test_a_folder_is_copied_while_its_files_change(folders: AttemptFolders) -> None:
    first = folders.begin(0, 1)
    with _BusyWriter(first.folder):
        for number in range(2, 22):
            _check_whole(folders.begin(0, number).folder)
            discard_folder(folders.of(0, number).folder)


def test_a_killed_copy_counts_for_nothing(tmp_path: Path) -> None:
    folders = AttemptFolders(tmp_path, "s")
    first = folders.begin(0, 1)
    for number in range(50):
        (first.folder / f"file-{number:02d}").write_bytes(b"x" * 1000)
    program = (
        "import os, signal, sys\n"
        "from pathlib import Path\n"
        "from hpsearch.scripts import folder_files\n"
        "from hpsearch.scripts.attempt_folders import AttemptFolders\n"
        "copy, num_copied = folder_files._copy_file, iter(range(100))\n"
        "def die(*arguments):\n"
        "    copy(*arguments)\n"
        "    next(num_copied) == 25 and os.kill(os.getpid(), signal.SIGKILL)\n"
        "folder_files._copy_file = die\n"
        "AttemptFolders(Path(sys.argv[1]), 's').begin(0, 2)\n"
    )
    assert subprocess.run([sys.executable, "-c", program, tmp_path], check=False).returncode == -signal.SIGKILL
    assert not folders.of(0, 2).folder.exists()
    assert any(entry.name.startswith(TEMPORARY_PREFIX) for entry in first.folder.parent.iterdir())
    assert len(content_of(folders.begin(0, 3).folder)) == 50
    folders.remove_earlier(0, 3)
    assert [entry.name for entry in first.folder.parent.iterdir()] == ["attempt-3"]


def test_a_full_disk_is_an_error_that_names_the_folder_and_leaves_nothing(folders: AttemptFolders) -> None:
    first = folders.begin(0, 1)
    (first.folder / "state").write_bytes(b"x" * 100_000)
    with files_no_larger_than(50_000), pytest.raises(ArtifactError, match="attempt-2") as caught:
        folders.begin(0, 2)
    assert "HPSEARCH_HOME" in str(caught.value.hint)
    assert {entry.name for entry in first.folder.parent.iterdir()} == {"attempt-1", "control-1"}


@pytest.mark.parametrize("key", ["", ".", "..", "a/b", "/etc", ".hidden", "a\0", "x" * 101])
def test_a_study_key_that_leads_elsewhere_is_refused(tmp_path: Path, key: str) -> None:
    with pytest.raises(InputError):
        AttemptFolders(tmp_path, key)


@pytest.mark.parametrize(("point", "attempt"), [(-1, 1), (0, 0), (0, -1)])
def test_numbers_that_no_attempt_has_are_refused(folders: AttemptFolders, point: int, attempt: int) -> None:
    with pytest.raises(InputError):
        folders.begin(point, attempt)


def test_a_link_in_place_of_a_folder_is_refused(folders: AttemptFolders, tmp_path: Path) -> None:
    place = folders.begin(0, 1).folder.parents[1]
    (tmp_path / "elsewhere").mkdir()
    (place / "point-000001").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ArtifactError, match="is a link"):
        folders.begin(1, 1)
    assert content_of(tmp_path / "elsewhere") == {}


def test_a_link_in_place_of_an_attempt_is_not_copied(folders: AttemptFolders, tmp_path: Path) -> None:
    place = folders.begin(0, 1).folder.parent
    (tmp_path / "secret").write_text("x")
    (place / "attempt-2").symlink_to(tmp_path)
    assert content_of(folders.begin(0, 3).folder) == {}


# Removal


def test_earlier_attempts_are_removed_when_a_point_is_counted(folders: AttemptFolders) -> None:
    save(folders.begin(0, 1), "first")
    second = folders.begin(0, 2)
    folders.remove_earlier(0, 2)
    assert content_of(second.folder.parent) == {"attempt-2": None, "attempt-2/state": b"first"}


def test_folders_of_counted_points_are_removed_but_those_to_keep(folders: AttemptFolders) -> None:
    for point in range(4):
        folders.begin(point, 1)
    folders.remove_others({0: 1, 1: 1, 3: 1}, keep=[1])
    names = {path.name for path in folders.of(0, 1).folder.parents[1].iterdir()}
    assert names == {"point-000001", "point-000002"}  # 1 is the best, 2 is not counted yet


def test_removing_twice_or_from_nothing_is_no_error(folders: AttemptFolders) -> None:
    for _ in range(2):
        folders.remove_others({0: 1}, keep=[])
        folders.remove_earlier(0, 1)


def test_a_removal_does_not_follow_links(folders: AttemptFolders, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir(mode=0o750)
    (outside / "file").write_text("x")
    found = folders.begin(0, 1).folder
    (found / "link").symlink_to(outside)
    (found.parent / "stray-link").symlink_to(outside)
    folders.remove_earlier(0, 2)
    assert list(found.parent.iterdir()) == []
    assert (outside / "file").read_text() == "x"
    assert stat.S_IMODE(outside.stat().st_mode) == 0o750


def test_folders_without_permissions_are_removed() -> None:
    with _as_nobody() as root:
        folders = AttemptFolders(root, "s")
        found = folders.begin(0, 1).folder
        (found / "sealed" / "inner").mkdir(parents=True)
        (found / "sealed").chmod(0)
        folders.remove_others({0: 1}, keep=[])
        assert list(found.parents[1].iterdir()) == []


def test_files_without_permissions_are_left_out_with_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    with _as_nobody() as root:
        folders = AttemptFolders(root, "s")
        first = folders.begin(0, 1)
        save(first, "epoch 3")
        for name in ("sealed-folder", "sealed-file"):
            (first.folder / name).mkdir() if name == "sealed-folder" else (first.folder / name).touch()
            (first.folder / name).chmod(0)
        assert content_of(folders.begin(0, 2).folder) == {"state": b"epoch 3"}
    assert "sealed-file is left out: Permission denied" in caplog.text
    assert "sealed-folder is left out: Permission denied" in caplog.text


def test_what_a_killed_removal_has_left_is_removed_by_the_next_one(folders: AttemptFolders) -> None:
    found = folders.begin(0, 1).folder.parent
    found.rename(found.with_name(temporary_name()))
    folders.remove_others({}, keep=[])
    assert list(found.parent.iterdir()) == []


# Archives


def test_an_archive_gives_the_folder_back(tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    for folder in (source / "sub" / "empty", target):
        folder.mkdir(parents=True)
    names = ["a", "sub/größe", "sub/" + "x" * 200, os.fsdecode(b"sub/not-utf8-\xff")]
    for name in names:
        (source / name).write_bytes(os.urandom(3000))
    unpack(packed(source), target)
    assert content_of(target) == content_of(source)


def test_links_and_special_files_are_not_packed(tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    _fill_with_everything(tmp_path / "source", tmp_path)
    with tarfile.open(fileobj=packed(tmp_path / "source")) as archive:
        assert sorted(archive.getnames()) == ["sub", "sub/empty", "sub/file"]


def test_packing_does_not_wake_a_script_that_waits_for_a_pipes_reader(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    pack(tmp_path, io.BytesIO())
    with pytest.raises(OSError, match="No such device"):  # there is still no reader
        os.open(tmp_path / "pipe", os.O_WRONLY | os.O_NONBLOCK)


def test_a_folder_over_the_limit_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    with (tmp_path / "large").open("wb") as file:
        file.truncate(3 * 10**9)  # sparse
    archive = io.BytesIO()
    with pytest.raises(
        ArtifactError, match=r"has 3,000,000,000 bytes or more, and the limit is 2,000,000,000"
    ) as caught:
        pack(tmp_path, archive)
    assert str(tmp_path) in str(caught.value)
    assert "folder_limit" in str(caught.value.hint)
    assert archive.getvalue() == b""


def test_a_folder_at_the_limit_is_packed(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"x" * 1000)
    assert pack(tmp_path, io.BytesIO(), 1000) == 1000


@pytest.mark.parametrize("change", [b"", b"x" * 50_000])
def test_a_file_that_shrinks_or_grows_while_it_is_packed_keeps_its_first_size(tmp_path: Path, change: bytes) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    source.mkdir()
    target.mkdir()
    (source / "file").write_bytes(b"y" * 20_000)
    (source / "later").write_bytes(b"z")
    archive = _ChangingFile(source / "file", change)
    pack(source, archive)
    archive.seek(0)
    unpack(archive, target)
    assert (target / "file").stat().st_size == 20_000
    assert (target / "later").read_bytes() == b"z"


def test_a_folder_is_packed_while_its_files_change(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    with _BusyWriter(source):
        for number in range(20):
            target = tmp_path / f"target-{number}"
            target.mkdir()
            unpack(packed(source), target)
            _check_whole(target)


@pytest.mark.parametrize("name", ["../outside", "/outside", "sub/../../outside"])
def test_an_archive_writes_nothing_outside_its_folder(tmp_path: Path, name: str) -> None:
    target = tmp_path / "target"
    target.mkdir()
    with pytest.raises(ArtifactError, match="damaged") if ".." in name else contextlib.nullcontext():
        unpack(_archive_with(tarfile.TarInfo(name)), target)
    assert [entry.name for entry in tmp_path.iterdir()] == ["target"]
    assert not Path("/outside").exists()


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE])
def test_links_and_special_files_in_an_archive_are_skipped(tmp_path: Path, kind: bytes) -> None:
    entry = tarfile.TarInfo("entry")
    entry.type, entry.linkname = kind, "/etc/passwd"
    unpack(_archive_with(entry), tmp_path)
    assert content_of(tmp_path) == {}


def test_an_archive_over_the_limit_is_refused(tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    source.mkdir()
    target.mkdir()
    (source / "file").write_bytes(bytes(1001))
    with pytest.raises(ArtifactError, match="1,001 bytes"):
        unpack(packed(source), target, 1000)
    assert content_of(target) == {}


@pytest.mark.parametrize("size", [0, 100, 700, 5000])
def test_a_damaged_archive_is_an_error(tmp_path: Path, size: int) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    source.mkdir()
    target.mkdir()
    (source / "file").write_bytes(bytes(range(256)) * 40)
    with pytest.raises(ArtifactError):
        unpack(io.BytesIO(packed(source).getvalue()[:size]), target)


# Several machines


def test_an_attempt_on_another_machine_begins_with_what_was_uploaded(machines: list[AttemptFolders]) -> None:
    save(machines[0].begin(0, 1), "epoch 3")
    machines[0].upload(0, 1)
    save(machines[0].of(0, 1), "epoch 4")  # after the last upload: lost
    assert state_of(machines[1].begin(0, 2)) == "epoch 3"


def test_the_last_upload_counts(machines: list[AttemptFolders]) -> None:
    first = machines[0].begin(0, 1)
    for epoch in range(3):
        save(first, f"epoch {epoch}")
        machines[0].upload(0, 1)
    assert state_of(machines[1].begin(0, 2)) == "epoch 2"


def test_the_store_is_used_if_it_has_a_later_attempt_than_this_machine(machines: list[AttemptFolders]) -> None:
    save(machines[0].begin(0, 1), "epoch 1")
    machines[0].upload(0, 1)
    save(machines[1].begin(0, 2), "epoch 2")
    machines[1].upload(0, 2)
    assert state_of(machines[0].begin(0, 3)) == "epoch 2"


def test_this_machines_folder_is_used_if_the_store_has_none_later(machines: list[AttemptFolders]) -> None:
    first = machines[0].begin(0, 1)
    save(first, "epoch 1")
    machines[0].upload(0, 1)
    save(first, "epoch 2")
    machines[1].begin(0, 2)  # crashed before its first upload
    assert state_of(machines[0].begin(0, 3)) == "epoch 2"


def test_an_upload_replaces_those_of_earlier_attempts(machines: list[AttemptFolders], store: FolderStore) -> None:
    for number in range(1, 4):
        machines[number - 1].begin(0, number)
        machines[number - 1].upload(0, number)
    assert _stored(store) == ["trial-folder-study-1-point-000000-attempt-3.tar"]


def test_a_late_upload_of_an_earlier_attempt_changes_nothing(machines: list[AttemptFolders]) -> None:
    save(machines[0].begin(0, 1), "epoch 1")
    machines[0].upload(0, 1)
    save(machines[1].begin(0, 2), "epoch 2")
    machines[1].upload(0, 2)
    machines[0].upload(0, 1)
    assert state_of(machines[2].begin(0, 3)) == "epoch 2"


def test_a_damaged_upload_costs_its_files_but_not_the_attempt(
    machines: list[AttemptFolders], store: FolderStore, caplog: pytest.LogCaptureFixture
) -> None:
    for number in (1, 2):
        save(machines[0].begin(0, number), f"epoch {number}")
        (machines[0].of(0, number).folder / "more").write_bytes(bytes(20_000))
        machines[0].upload(0, number)
    machines[0].upload(0, 1)  # late
    name = "trial-folder-study-1-point-000000-attempt-2.tar"
    store.write(name, io.BytesIO(store.read(name)[:9000]))
    found = machines[1].begin(0, 3)
    assert content_of(found.folder) == {"state": b"epoch 1", "more": bytes(20_000)}
    assert "begins without the files of attempt 2" in caplog.text


def test_a_full_disk_does_not_let_an_attempt_begin_without_its_files(machines: list[AttemptFolders]) -> None:
    save(machines[0].begin(0, 1), "x" * 100_000)
    machines[0].upload(0, 1)
    with files_no_larger_than(50_000), pytest.raises(ArtifactError, match="too large"):
        machines[1].begin(0, 2)
    assert len(state_of(machines[1].begin(0, 2)) or "") == 100_000


def test_a_folder_over_the_limit_is_not_uploaded(tmp_path: Path, store: FolderStore) -> None:
    folders = _machine(tmp_path / "machine", store, limit_bytes=100)
    save(folders.begin(0, 1), "x" * 100)
    folders.upload(0, 1)
    save(folders.of(0, 1), "y" * 101)
    with pytest.raises(ArtifactError, match="attempt-1 has 101 bytes"):
        folders.upload(0, 1)
    assert state_of(_machine(tmp_path / "other", store).begin(0, 2)) == "x" * 100


def test_a_store_that_refuses_is_an_error_that_names_it(tmp_path: Path) -> None:
    folders = _machine(tmp_path / "machine", FolderStore(tmp_path / "missing"))
    folders.begin(0, 1)
    with pytest.raises(ArtifactError, match="missing"):
        folders.upload(0, 1)
    assert {entry.name for entry in folders.of(0, 1).folder.parent.iterdir()} == {"attempt-1", "control-1"}


def test_uploads_of_counted_points_are_removed_but_those_to_keep(
    machines: list[AttemptFolders], store: FolderStore
) -> None:
    for point, attempt in itertools.product(range(3), (1, 2)):
        machines[0].begin(point, attempt)
        machines[0].upload(point, attempt)
    machines[0].upload(0, 1)  # late
    machines[0].remove_others({0: 2, 1: 2}, keep=[1])
    assert _stored(store) == [f"trial-folder-study-1-point-00000{point}-attempt-2.tar" for point in (1, 2)]
    machines[0].remove_others({0: 2, 1: 2, 2: 2}, keep=[2])  # there is a new best one
    assert _stored(store) == ["trial-folder-study-1-point-000002-attempt-2.tar"]


def test_a_bucket_is_used_as_a_folder_is(tmp_path: Path, bucket: Any) -> None:
    store = open_store(f"s3://{bucket.name}/folders")
    first, second = (_machine(tmp_path / name, store, 10**8) for name in ("a", "b"))
    assert content_of(first.begin(0, 2).folder) == {}  # attempt 1 has left nothing
    content = os.urandom(20 * 10**6)  # several parts
    (first.of(0, 2).folder / "state").write_bytes(content)
    for _ in range(2):
        first.upload(0, 2)
    assert (second.begin(0, 4).folder / "state").read_bytes() == content
    second.remove_others({0: 4}, keep=[])
    assert not [item.key for item in bucket.objects.all()]


def test_a_bucket_that_is_gone_costs_the_files_but_not_the_attempt(
    tmp_path: Path, bucket: Any, caplog: pytest.LogCaptureFixture
) -> None:
    folders = _machine(tmp_path / "a", open_store(f"s3://{bucket.name}"))
    save(folders.begin(0, 1), "epoch 1")
    bucket.delete()
    with pytest.raises(ArtifactError, match="cannot store folder"):
        folders.upload(0, 1)
    assert state_of(folders.begin(0, 3)) == "epoch 1"


@pytest.fixture
def bucket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """An empty bucket that lives in this process only."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "an-id")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "a-secret-key")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    for name in ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"):
        monkeypatch.setenv(name, str(tmp_path / "none"))
    with mock_aws():
        yield boto3.resource("s3").create_bucket(Bucket=f"bucket-{uuid.uuid4().hex}")


def _stored(store: FolderStore) -> list[str]:
    return sorted(path.name for path in store.folder.iterdir())


def _fill_with_everything(folder: Path, outside: Path) -> None:
    """Files, folders, links of every kind, a pipe, a socket and, for root, a device."""
    (outside / "secret").write_text("secret")
    (folder / "sub" / "empty").mkdir(parents=True)
    (folder / "sub" / "file").write_bytes(b"kept")
    (folder / "link").symlink_to(outside / "secret")
    (folder / "link-to-folder").symlink_to(outside)
    (folder / "dangling").symlink_to("nowhere")
    (folder / "loop").symlink_to(".")
    os.mkfifo(folder / "pipe")
    with socket.socket(socket.AF_UNIX) as listener:
        handle = os.open(folder, os.O_RDONLY)  # a socket's path is short
        listener.bind(f"/proc/self/fd/{handle}/socket")
        os.close(handle)
    if os.geteuid() == 0:
        os.mknod(folder / "device", stat.S_IFCHR | 0o600, os.makedev(1, 3))


def _archive_with(entry: tarfile.TarInfo) -> io.BytesIO:
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as tar:
        tar.addfile(entry)
    archive.seek(0)
    return archive


@contextlib.contextmanager
def _as_nobody() -> Iterator[Path]:
    """Yield an empty folder, without the rights of root, who may read and write everything."""
    user = os.geteuid()
    root = Path(tempfile.mkdtemp())
    if user == 0:
        os.chown(root, 65534, 65534)
        os.seteuid(65534)
    try:
        yield root
    finally:
        os.seteuid(user)
        shutil.rmtree(root, ignore_errors=True)


class _ChangingFile(io.BytesIO):
    """An archive's target that changes a file of the folder as soon as the first byte is written."""

    def __init__(self, path: Path, content: bytes) -> None:
        super().__init__()
        self._path, self._content = path, content

    def write(self, data: Any) -> int:
        self._path.write_bytes(self._content)
        return super().write(data)


class _BusyWriter:
    """A thread that replaces, shortens, removes and creates files in a folder, as a running script does."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._has_ended = folder, threading.Event()
        self._num_turns = 0
        self._thread = threading.Thread(target=self._write)

    def __enter__(self) -> None:
        self._thread.start()
        while self._num_turns < 3:
            time.sleep(0.001)

    def __exit__(self, *_: object) -> None:
        self._has_ended.set()
        self._thread.join()

    def _write(self) -> None:
        for turn in itertools.count():
            if self._has_ended.is_set():
                return
            new = self._folder / "new"
            version = turn % 250
            new.write_bytes(bytes([version]) * (1 + version % 7 * 10_000))
            new.rename(self._folder / "state")
            (self._folder / "log").write_bytes(b"x" * (turn % 5 * 30_000))
            sub = self._folder / f"sub-{turn % 3}"
            sub.mkdir(exist_ok=True)
            (sub / "file").write_bytes(b"x")
            (sub / "file").unlink()
            sub.rmdir()
            self._num_turns = turn


def _check_whole(folder: Path) -> None:
    """The file that is replaced by renaming is one of its versions, and not a part of two."""
    content = (folder / "state").read_bytes()
    assert content == content[:1] * (1 + content[0] % 7 * 10_000)
