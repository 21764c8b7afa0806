"""Prepared arrays: made once, checked when they are opened, and never left half written."""

from __future__ import annotations

import errno
import os
import shutil
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hpsearch.data import prepared
from hpsearch.data.prepared import Prepared, open_prepared, source_key
from hpsearch.errors import DataError


class Source:
    """Counts how often it is decoded."""

    def __init__(self, cache: Path) -> None:
        self.cache = cache
        self.num_built = 0

    def build(self, folder: Path) -> Mapping[str, Any]:
        self.num_built += 1
        np.save(folder / "train.npy", np.arange(6, dtype=np.uint8).reshape(2, 3))
        return {"classes": ["a", "b"]}

    def open(self, **key: Any) -> Prepared:
        return open_prepared(self.cache, key, self.build)


@pytest.fixture
def source(tmp_path: Path) -> Source:
    return Source(tmp_path / "cache")


def test_a_source_is_decoded_once_and_mapped_afterwards(source: Source) -> None:
    with ThreadPoolExecutor(4) as pool:
        opened = list(pool.map(lambda _: source.open(name="x"), range(8)))
    assert source.num_built == 1
    for found in opened:
        assert isinstance(found.arrays["train"], np.memmap)
        assert found.record == {"classes": ["a", "b"]}
        np.testing.assert_array_equal(found.arrays["train"], [[0, 1, 2], [3, 4, 5]])
    source.open(name="y")
    assert source.num_built == 2


def test_damage_is_found_and_the_arrays_are_made_again(source: Source) -> None:
    source.open(name="x")
    (file,) = source.cache.glob("prepared/*/train.npy")
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    np.testing.assert_array_equal(source.open(name="x").arrays["train"], [[0, 1, 2], [3, 4, 5]])
    assert source.num_built == 2


def test_a_decoder_that_fails_leaves_nothing(source: Source, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(folder: Path) -> Mapping[str, Any]:
        (folder / "train.npy").write_bytes(b"half")
        raise DataError("no image", hint="add one")

    with pytest.raises(DataError, match="no image"):
        open_prepared(source.cache, {}, fail)
    assert not [path for path in (source.cache / "prepared").iterdir() if path.is_dir()]


def test_what_a_killed_process_left_is_removed_a_day_later(source: Source) -> None:
    folders = {}
    for name, age in (("old", 2 * 86_400), ("new", 3600), ("still-written", 2 * 86_400)):
        folders[name] = source.cache / "prepared" / f".writing-{name}"
        folders[name].mkdir(parents=True)
        (folders[name] / "train.npy").write_bytes(b"half")
        paths = [folders[name]] if name == "still-written" else [folders[name], folders[name] / "train.npy"]
        for path in paths:
            os.utime(path, (time.time() - age,) * 2)
    source.open(name="x")
    assert [name for name, folder in folders.items() if folder.exists()] == ["new", "still-written"]


def removed_at_first(monkeypatch: pytest.MonkeyPatch, times: int) -> None:
    """As another process does, on a file system without locks."""
    make, calls = prepared._make, []

    def make_and_lose(folder: Path, build: Any, source: Any) -> None:
        make(folder, build, source)
        calls.append(folder)
        if len(calls) <= times:
            shutil.rmtree(folder)

    monkeypatch.setattr(prepared, "_make", make_and_lose)


def test_what_another_process_removes_is_built_again(source: Source, monkeypatch: pytest.MonkeyPatch) -> None:
    removed_at_first(monkeypatch, 1)
    np.testing.assert_array_equal(source.open(name="x").arrays["train"], [[0, 1, 2], [3, 4, 5]])
    assert source.num_built == 2


def test_what_is_removed_again_and_again_is_an_error(source: Source, monkeypatch: pytest.MonkeyPatch) -> None:
    removed_at_first(monkeypatch, 99)
    with pytest.raises(DataError, match="cannot be read after it was written 3 times"):
        source.open(name="x")


def test_a_process_that_was_faster_is_no_error(source: Source, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_locks(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    rmtree = shutil.rmtree
    monkeypatch.setattr(prepared.fcntl, "flock", no_locks)
    monkeypatch.setattr(
        prepared.shutil,
        "rmtree",
        lambda path, **_: rmtree(path) if path.name.startswith(".writing-") and path.exists() else None,
    )

    def build(folder: Path) -> Mapping[str, Any]:
        open_prepared(source.cache, {}, source.build)  # the other process
        return source.build(folder)

    assert open_prepared(source.cache, {}, build).record == {"classes": ["a", "b"]}
    assert source.num_built == 2
    assert not list(source.cache.glob("prepared/.writing-*"))


def test_a_cache_that_cannot_be_written_is_a_data_error(source: Source) -> None:
    source.cache.write_text("a file")
    with pytest.raises(DataError, match="prepared data cannot be kept in"):
        source.open()


def test_the_key_changes_with_each_file_and_option(tmp_path: Path) -> None:
    file = tmp_path / "a"
    file.write_text("1")
    keys = [source_key([file], {}), source_key([file], {"size": 2}), source_key([], {})]
    file.write_text("12")
    keys.append(source_key([file], {}))
    assert len({str(key) for key in keys}) == 4
    with pytest.raises(DataError, match="missing: cannot be read: No such file"):
        source_key([tmp_path / "missing"], {})
