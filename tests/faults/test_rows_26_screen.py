"""Fault table, row 26: the screen goes away, and training goes on."""

from __future__ import annotations

import contextlib
import os
import pty
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path

import pytest
import tomli_w

from tests.faults.arena import Arena, learning_rates
from tests.faults.driver import Faults
from tests.faults.processes import HpsearchProcess, Screen, wait_until

pytestmark = pytest.mark.faults

FAST = Faults(lease_seconds=600.0, absence_seconds=0.5)
FULL = Path("/dev/full")

# A screen, and what happens to it once the study is there.
Vanishing = AbstractContextManager[tuple[Screen, Callable[[], None]]]


@contextlib.contextmanager
def full_disk(folder: Path) -> Iterator[tuple[Screen, Callable[[], None]]]:
    """`2>/dev/full`"""
    yield Screen(stderr=FULL), lambda: None


@contextlib.contextmanager
def closed_pipe(folder: Path) -> Iterator[tuple[Screen, Callable[[], None]]]:
    """`2>&1 | head -1`"""
    pipe = folder / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)  # else a writer would wait to open it
    yield Screen(stdout=pipe, stderr=pipe), lambda: os.close(reader)


@contextlib.contextmanager
def lost_terminal(folder: Path) -> Iterator[tuple[Screen, Callable[[], None]]]:
    """As under nohup: the terminal is gone, and no signal says so."""
    ours, theirs = pty.openpty()
    path = Path(os.ttyname(theirs))
    try:
        yield Screen(stdout=path, stderr=path), lambda: os.close(ours)
    finally:
        os.close(theirs)


@contextlib.contextmanager
def closed_streams(folder: Path) -> Iterator[tuple[Screen, Callable[[], None]]]:
    """`>&- 2>&-`"""
    yield Screen(are_closed=True), lambda: None


@contextlib.contextmanager
def ascii_only(folder: Path) -> Iterator[tuple[Screen, Callable[[], None]]]:
    """`PYTHONIOENCODING=ascii`"""
    yield Screen(encoding="ascii"), lambda: None


def started_run(arena: Arena, screen: Screen) -> HpsearchProcess:
    study_file = arena.folder / "study.toml"
    study_file.write_text(tomli_w.dumps(arena.document(4, max_epochs=2)))
    arena.num_points = 4
    return arena.start("run", str(study_file), "--lanes", "2", "--device", "cpu", faults=FAST, screen=screen)


@pytest.mark.parametrize(
    "screen",
    [full_disk, closed_pipe, lost_terminal, closed_streams, ascii_only],
    ids=lambda screen: screen.__name__,
)
def test_row_26_screen_goes_away(screen: Callable[[Path], Vanishing], arena: Arena) -> None:
    with screen(arena.folder) as (before, vanish):
        run = started_run(arena, before)
        wait_until(lambda: arena.num_in("WAITING", "RUNNING", "COMPLETE"), "the study is there", told=arena.told)
        vanish()
        assert run.wait() == 0, run.said
    arena.judge()


def test_row_26_exit_code_is_that_of_the_work(arena: Arena) -> None:
    """A point was given up, and nobody reads the table that says so."""
    once = replace(FAST, max_crashes=1)
    arena.create(2, max_epochs=1)
    arena.worker(faults=replace(once, poison_learning_rate=learning_rates(2)[1])).wait()
    assert arena.worker(faults=once).wait() == 0
    study_file = arena.folder / "study.toml"
    study_file.write_text(tomli_w.dumps(arena.document(2, max_epochs=1)))
    with closed_pipe(arena.folder) as (screen, vanish):
        run = arena.start("run", str(study_file), "--device", "cpu", faults=replace(FAST, wait_for="go"), screen=screen)
        wait_until(lambda: Path(f"/proc/{run.pid}/fd/1").readlink() == screen.stdout, "it has opened the pipe")
        vanish()
        (arena.folder / "go").touch()
        assert run.wait() == 1
    arena.judge(given_up=[1])


def test_row_26_data_that_cannot_be_written_is_an_error(arena: Arena) -> None:
    """What nobody wants to read any more is none."""
    arena.create(2, max_epochs=1)
    assert arena.worker(faults=FAST).wait() == 0
    for command in (("export", arena.study_name), ("status", "--json"), ("status",)):
        full = arena.start(*command, faults=FAST, screen=Screen(stdout=FULL))
        assert full.wait() == 3
        assert full.said == "error: cannot write to standard output: No space left on device\n"
    with closed_pipe(arena.folder) as (screen, vanish):
        screen = replace(screen, stderr=None)
        unread = arena.start("status", "--json", faults=replace(FAST, wait_for="go"), screen=screen)
        wait_until(lambda: Path(f"/proc/{unread.pid}/fd/1").readlink() == screen.stdout, "it has opened the pipe")
        vanish()
        (arena.folder / "go").touch()
        assert unread.wait() == 0, unread.said
        assert unread.said == ""
    closed = arena.start("export", arena.study_name, faults=FAST, screen=Screen(are_closed=True))
    assert closed.wait() == 3
