"""The cache of prepared data: what is in it, and that only what nobody uses is removed."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hpsearch.cli.main import run_command_line
from hpsearch.data import prepared_cache
from hpsearch.data.prepared import Prepared, lock_of, open_prepared, source_key
from hpsearch.data.prepared_cache import cache_entries, remove_unused
from hpsearch.errors import DataError

HOLD = """
import sys
from pathlib import Path
from hpsearch.data.prepared import open_prepared, source_key
arrays = open_prepared(Path(sys.argv[1]), source_key([Path(sys.argv[2])], {}), None).arrays
print("open", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "hpsearch" / "data"


def build(folder: Path) -> Mapping[str, Any]:
    np.save(folder / "train.npy", np.arange(1000))
    return {"classes": ["a"]}


def prepare(cache: Path, *names: str) -> Prepared:
    paths = [cache.parent / name for name in names]
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            path.touch()
    return open_prepared(cache, source_key(paths, {}), build)


def test_entries_say_what_they_are_of_and_the_last_used_comes_first(cache: Path) -> None:
    prepare(cache, "one.csv")
    prepare(cache, "cats/1.png", "dogs/2.png")
    now = 1_700_000_000
    for entry in cache_entries(cache):
        age = 100 if entry.num_files == 1 else 200
        os.utime(entry.folder / "record.json", (now - age, now - age))
    first, second = cache_entries(cache)
    assert (first.source, first.num_files) == (str(cache.parent / "one.csv"), 1)
    assert (second.source, second.num_files) == (str(cache.parent), 2)
    assert first.num_bytes > 8000
    prepare(cache, "cats/1.png", "dogs/2.png")
    assert [entry.num_files for entry in cache_entries(cache)] == [2, 1]


def test_an_empty_cache_and_folders_that_are_being_written_have_no_entries(cache: Path) -> None:
    assert cache_entries(cache) == []
    (cache / "prepared" / ".writing-1").mkdir(parents=True)
    assert cache_entries(cache) == []


def test_an_entry_of_an_older_version_has_no_source(cache: Path) -> None:
    prepare(cache, "one.csv")
    (entry,) = cache_entries(cache)
    for text in ('{"record": {}, "checksums": {}}', "[]", "no json"):
        (entry.folder / "record.json").write_text(text)
        assert [(each.source, each.num_files) for each in cache_entries(cache)] == [(None, 0)]


def test_what_this_process_has_open_stays_until_it_is_let_go(cache: Path) -> None:
    found = prepare(cache, "one.csv")
    (entry,) = cache_entries(cache)
    assert entry.is_open
    assert remove_unused([entry]) == []
    view = found.arrays["train"][10:]
    del found
    assert remove_unused(cache_entries(cache)) == []
    assert view[0] == 10
    del view
    (entry,) = cache_entries(cache)
    assert not entry.is_open
    assert remove_unused([entry]) == [entry]
    assert list((cache / "prepared").iterdir()) == [lock_of(entry.folder)]  # another process may hold it
    assert len(prepare(cache, "one.csv").arrays["train"]) == 1000


def test_what_another_process_has_open_stays(cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    prepare(cache, "one.csv")
    prepare(cache, "two.csv")
    command = [sys.executable, "-c", HOLD, str(cache), str(cache.parent / "one.csv")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "open\n"
        assert run_command_line(["data", "cache"]) == 0
        listed = capsys.readouterr().out
        assert [("open" in line.split(), line.split()[-1].endswith("one.csv")) for line in listed.splitlines()] in (
            [(True, True), (False, False)],
            [(False, False), (True, True)],
        )
        assert run_command_line(["data", "cache", "--clear", "--json"]) == 0
        told = capsys.readouterr()
        assert [Path(each["source"]).name for each in json.loads(told.out)] == ["two.csv"]
        assert "removed 1 folder of prepared data, 0.0 MB" in told.err
        assert "1 folder stayed: a process has the data open" in told.err
        process.communicate()
    assert run_command_line(["data", "cache", "--clear"]) == 0
    assert "one.csv" in capsys.readouterr().out
    assert run_command_line(["data", "cache"]) == 0
    assert "no prepared data in" in capsys.readouterr().err


def test_a_folder_that_another_process_has_removed_is_no_error(cache: Path) -> None:
    prepare(cache, "one.csv")
    entries = cache_entries(cache)
    shutil.rmtree(entries[0].folder)
    assert remove_unused(entries) == []


def test_a_cache_that_cannot_be_read_or_cleared_is_named(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prepare(cache, "one.csv")
    entries = cache_entries(cache)

    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(prepared_cache.shutil, "rmtree", refuse)
    with pytest.raises(DataError, match="cannot be removed: Permission denied"):
        remove_unused(entries)
    monkeypatch.setattr(Path, "iterdir", refuse)
    with pytest.raises(DataError, match="prepared: cannot be read: Permission denied"):
        cache_entries(cache)
