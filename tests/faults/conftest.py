"""What the rows of the fault table share: a server that may be broken, and processes that may be killed."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.faults.arena import Arena
from tests.faults.postgres import FaultyPostgres, make_template
from tests.faults.processes import ForkServer
from tests.faults.programs import ProgramArena


@pytest.fixture(scope="session")
def fork_server() -> Iterator[ForkServer]:
    server = ForkServer()
    yield server
    server.close()


@pytest.fixture(scope="session")
def postgres_template(open_folder: Path) -> Path:
    return make_template(open_folder / "fault-template")


@pytest.fixture
def stopped_server(open_folder: Path, postgres_template: Path) -> Iterator[FaultyPostgres]:
    """A server of this test's own, not started yet."""
    server = FaultyPostgres(open_folder / f"fault-{uuid.uuid4().hex[:8]}", postgres_template)
    yield server
    server.remove()


@pytest.fixture
def new_arena(
    tmp_path: Path, stopped_server: FaultyPostgres, fork_server: ForkServer
) -> Iterator[Callable[..., Arena]]:
    """Makes arenas of one study each around the server, which the first one starts: it is to be configured before."""
    made: list[Arena] = []

    def make(study: str = "faults") -> Arena:
        if not made:
            stopped_server.start()
        folder = tmp_path / study
        folder.mkdir()
        made.append(Arena(folder, stopped_server, fork_server, study=study))
        return made[-1]

    yield make
    for arena in made:
        arena.close()


@pytest.fixture
def arena(new_arena: Callable[..., Arena]) -> Arena:
    return new_arena()


@pytest.fixture
def programs(
    request: pytest.FixtureRequest, tmp_path: Path, stopped_server: FaultyPostgres, fork_server: ForkServer
) -> Iterator[ProgramArena]:
    """An arena whose study runs a program; a command, but for tests that are marked with `both`."""
    stopped_server.start()
    arena = ProgramArena(tmp_path, stopped_server, fork_server, kind=getattr(request, "param", "command"))
    yield arena
    arena.close()
