"""Fault table, row 28: memory runs out on a CPU, where that is no error: the kernel kills the worker."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import tomli_w

from tests.faults.arena import Arena
from tests.faults.processes import wait_until

pytestmark = [pytest.mark.faults, pytest.mark.mnist, pytest.mark.long]

NUM_POINTS = 24
SPARE_BYTES = 60_000_000
HOG = f"""
import time
taken = bytearray(b"x") * {2 * SPARE_BYTES}
time.sleep(3)
"""  # smaller than a worker, so that the kernel takes the worker


class MemoryGroup:
    """A control group of its own, whose memory can be limited; of either version."""

    def __init__(self, folder: Path, *, usage: str, limit: str, unlimited: str) -> None:
        self.folder, self._usage, self._limit, self._unlimited = folder, usage, limit, unlimited

    def leave_only(self, num_bytes: int) -> None:
        used = int((self.folder / self._usage).read_text())
        (self.folder / self._limit).write_text(str(used + num_bytes))

    def leave_all(self) -> None:
        (self.folder / self._limit).write_text(self._unlimited)

    def start(self, *command: str, **options: object) -> subprocess.Popen[bytes]:
        """Start a process that is in the group from its first page on."""
        enter = ["sh", "-c", f'echo $$ > "{self.folder}/cgroup.procs" && exec "$@"', "sh"]
        return subprocess.Popen([*enter, *command], **options)  # type: ignore[call-overload, no-any-return]


@pytest.fixture
def group() -> Iterator[MemoryGroup]:
    """Skips where this process may not make one."""
    own = dict(line.split(":", 2)[1:] for line in Path("/proc/self/cgroup").read_text().splitlines())
    if "memory" in own:
        root, names = Path("/sys/fs/cgroup/memory"), ("memory.usage_in_bytes", "memory.limit_in_bytes", "-1")
    else:
        root, names = Path("/sys/fs/cgroup"), ("memory.current", "memory.max", "max")
    parent = root / own.get("memory", own.get("", "/")).lstrip("/")
    folder = (parent if parent.exists() else root) / f"hpsearch-test-{os.getpid()}"
    try:
        folder.mkdir()
    except OSError as error:
        pytest.skip(f"no control group can be made in {folder.parent}: {error.strerror}")
    if not (folder / names[0]).exists():
        folder.rmdir()
        pytest.skip(f"{folder.parent} does not control memory")
    group = MemoryGroup(folder, usage=names[0], limit=names[1], unlimited=names[2])
    yield group
    group.leave_all()
    for pid in (folder / "cgroup.procs").read_text().split():  # of a test that failed
        with contextlib.suppress(ProcessLookupError):
            os.kill(int(pid), signal.SIGKILL)
    wait_until(lambda: not (folder / "cgroup.procs").read_text(), "no process is left in the group", told=lambda: "")
    folder.rmdir()


def test_row_28_a_worker_that_is_killed_for_memory_comes_back_with_half_the_lanes(
    arena: Arena, group: MemoryGroup, mnist_folder: Path
) -> None:
    study_file = arena.folder / "study.toml"
    sections = {
        "data": {"dataset": "mnist", "train_samples": 20_000},
        "model": {"hidden_units": 100},
        "training": {"batch_size": 5, "max_epochs": 1},
        "search": {"strategy": "random", "num_points": NUM_POINTS, "learning_rate": {"log10": [-3, -1]}},
    }
    document = arena.document(1, max_epochs=1)
    study_file.write_text(tomli_w.dumps({**document, **sections}))
    arena.num_points = NUM_POINTS
    environment = {**arena.environment, "HPSEARCH_STORAGE": arena.storage_url, "HPSEARCH_DATA": str(mnist_folder)}
    words = ["run", str(study_file), "--device", "cpu"]
    with (arena.folder / "output").open("wb") as output:
        run = group.start(
            sys.executable, "-m", "hpsearch", *words, env=environment, stdout=output, stderr=output, cwd=arena.folder
        )
    lanes = arena.folder / "home" / "lanes"

    def noted(pattern: str, name: str) -> list[int]:
        found = []
        for file in lanes.glob(pattern):
            with contextlib.suppress(FileNotFoundError):  # removed meanwhile
                found += [int(number) for key, number in json.loads(file.read_text()).items() if key == name]
        return found

    def output_text() -> str:
        return (arena.folder / "output").read_text()

    (number,) = wait_until(lambda: noted("in-use/*.json", "lanes"), "a worker trains", told=output_text)
    group.leave_only(SPARE_BYTES)
    hog = group.start(sys.executable, "-c", HOG)
    wait_until(lambda: noted("*.json", "most") == [number // 2], "half", told=output_text)
    group.leave_all()
    hog.wait()
    assert run.wait() == 0, output_text()
    assert f"was killed, perhaps because memory ran out: the next ones train at most {number // 2}" in output_text()
    arena.judge()
