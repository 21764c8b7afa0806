"""The vault as a person meets it, and who opens which files of a data set, as the kernel sees it."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import optuna
import pytest

from tests.acceptance.in_process import hpsearch_here

pytestmark = pytest.mark.acceptance

TRAIN_FILES = {"train-images-idx3-ubyte", "train-labels-idx1-ubyte"}
TEST_FILES = {"t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"}
STUDY = """
name = "small"
[data]
dataset = "{dataset}"
[model]
family = "logistic"
[training]
batch_size = 20
max_epochs = 2
[search]
learning_rate = [0.1, 0.2]
[stopping]
rule = "none"
"""
_IN_OPEN = 0x20
_EVENT = struct.Struct("iIII")  # struct inotify_event: watch, mask, cookie, length of the name that follows


class Shell:
    """Runs `hpsearch` with a database, a home and a data folder of its own."""

    def __init__(self, folder: Path, database_url: str) -> None:
        self.folder = folder
        self.data = folder / "data"
        self.data.mkdir()
        for part, number in (("train", 120), ("t10k", 40)):
            write_part(self.data, part, number)
        self.study_file = folder / "small.toml"
        self.study_file.write_text(STUDY.format(dataset=self.data))
        self.environment = {
            "HPSEARCH_HOME": str(folder / "home"),
            "HPSEARCH_STORAGE": database_url,
            "HPSEARCH_COMMIT": "0123abc",
            "XDG_CACHE_HOME": str(folder / "cache"),
            "NO_COLOR": "1",
            "COLUMNS": "160",
        }

    def __call__(self, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
        return hpsearch_here(*arguments, folder=self.folder, environment=self.environment)

    def ok(self, *arguments: str | Path) -> str:
        done = self(*arguments)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def train(self) -> None:
        self.ok("create", self.study_file)
        self.ok("worker", "small", "--lanes", "2")

    def opened_by(self, *arguments: str | Path) -> set[str]:
        """The names of the data files that a command opens, in this process and in those that it starts."""
        with opened_files(self.data) as opened:
            self.ok(*arguments)
        return opened


def write_part(folder: Path, part: str, number: int, *, side: int = 8) -> None:
    generator = np.random.default_rng(number)
    labels = generator.integers(0, 10, number).astype(np.uint8)
    images = generator.integers(0, 90, (number, side, side)).astype(np.uint8)
    images[np.arange(number), labels % side] += 120
    for name, array in ((f"{part}-images-idx3-ubyte", images), (f"{part}-labels-idx1-ubyte", labels)):
        header = bytes([0, 0, 8, array.ndim]) + b"".join(size.to_bytes(4, "big") for size in array.shape)
        (folder / name).write_bytes(header + array.tobytes())


@contextlib.contextmanager
def opened_files(folder: Path) -> Iterator[set[str]]:
    """Collects the names of the files in a folder that anybody opens: any process, in any way."""
    libc = ctypes.CDLL(None, use_errno=True)
    watcher = libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
    assert watcher >= 0, os.strerror(ctypes.get_errno())
    opened: set[str] = set()
    try:
        assert libc.inotify_add_watch(watcher, os.fsencode(folder), _IN_OPEN) >= 0, os.strerror(ctypes.get_errno())
        yield opened
        opened |= set(_read_names(watcher))
    finally:
        os.close(watcher)


def _read_names(watcher: int) -> Iterator[str]:
    while True:
        try:
            events = os.read(watcher, 1 << 16)
        except BlockingIOError:
            return
        while events:
            _, mask, _, length = _EVENT.unpack_from(events)
            name = events[_EVENT.size : _EVENT.size + length].rstrip(b"\0").decode()
            events = events[_EVENT.size + length :]
            if mask & _IN_OPEN and name:  # without a name: the folder itself was listed
                yield name


@pytest.fixture
def shell(tmp_path: Path, database_url: str) -> Shell:
    return Shell(tmp_path, database_url)


def test_nobody_opens_the_test_files_but_the_vault(shell: Shell) -> None:
    """By the kernel's word; the last line shows that it would tell."""
    assert shell.opened_by("create", shell.study_file) == TRAIN_FILES
    assert shell.opened_by("worker", "small", "--lanes", "2") == TRAIN_FILES
    # This one starts a worker process.
    assert shell.opened_by("confirm", "small", "--top", "1", "--seeds", "2") == TRAIN_FILES
    for command in (["status"], ["report", "small"], ["export", "small", "--model", "best.safetensors"]):
        assert shell.opened_by(*command) == set()
    assert shell.opened_by("test", "small", "--retrain") == TRAIN_FILES | TEST_FILES


def test_the_number_is_told_once_and_then_shown_to_everybody(shell: Shell) -> None:
    shell.train()
    document = json.loads(shell.ok("test", "small", "--json"))
    assert document["study"] == "small"
    assert document["num_images"] == 40
    assert document["test_error"] == document["num_errors"] / 40
    low, high = document["test_error_interval"]
    assert low < document["test_error"] < high
    assert document["code_commit"] == "0123abc"
    assert set(document["test_checksums"]) == TEST_FILES

    with opened_files(shell.data) as opened:
        second = shell("test", "small")
    assert second.returncode == 2
    assert second.stdout == ""
    number = f"{100 * document['test_error']:.2f} % ({document['num_errors']} of 40 images"
    assert number in second.stderr
    assert document["opened_by"] in second.stderr
    assert document["opened_at"].replace("T", " ").removesuffix("Z") in second.stderr
    assert '--again "reason"' in second.stderr
    assert opened == set()

    assert shell("test", "small", "--again", " ").returncode == 2
    again = shell.ok("test", "small", "--again", "a reviewer asked")
    assert "the test set was opened 2 times:" in again
    status = json.loads(shell.ok("status", "small", "--json"))
    assert [opening["reason"] for opening in status["test_openings"]] == [None, "a reviewer asked"]
    assert "again: a reviewer asked" in shell.ok("status", "small")
    shell.ok("report", "small", "-o", "report.html")
    assert "The test set was opened 2 times." in (shell.folder / "report.html").read_text()
    assert len(json.loads(shell.ok("export", "small"))["test_openings"]) == 2


def test_a_new_study_of_a_deleted_ones_name_is_told_of_it(shell: Shell) -> None:
    shell.train()
    shell.ok("test", "small")
    optuna.delete_study(study_name="small", storage=shell.environment["HPSEARCH_STORAGE"])
    shell.train()
    told = shell.ok("test", "small")
    assert "an earlier study of this name, which was deleted, opened the test set:" in told


def test_damaged_test_files_are_an_error_of_the_surroundings_and_leave_an_opening_without_a_number(
    shell: Shell,
) -> None:
    shell.train()
    path = shell.data / "t10k-labels-idx1-ubyte"
    content = path.read_bytes()
    path.write_bytes(b"<html>")
    done = shell("test", "small")
    assert done.returncode == 3
    assert done.stdout == ""
    assert "an HTML page instead of a data file" in done.stderr
    status = json.loads(shell.ok("status", "small", "--json"))
    assert (status["test_openings"], len(status["test_intents"])) == ([], 1)
    path.write_bytes(content)
    assert json.loads(shell.ok("test", "small", "--json"))["test_intents"] == []


def test_what_cannot_be_tested_is_refused_in_one_line(shell: Shell) -> None:
    shell.ok("create", shell.study_file)
    nothing = shell("test", "small")
    assert (nothing.returncode, nothing.stdout) == (1, "")
    assert "no complete trial yet: 2 waiting" in nothing.stderr
    assert shell("test", "other").returncode == 2
    assert shell("test", "small", "--point", "worst").returncode == 2
    away = shell("test", "small", "--storage", "postgresql://nobody@127.0.0.1:9/nothing")
    assert away.returncode == 3
    assert "Traceback" not in nothing.stderr + away.stderr
