"""The memory that control groups leave, and the processes that they have cost, in both versions."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from hpsearch import cgroups

Write = Callable[[str, Mapping[str, str]], None]


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Write:
    """Write the process's own groups, and files below the folder of all groups."""
    monkeypatch.setattr(cgroups, "_GROUPS", tmp_path / "groups")
    monkeypatch.setattr(cgroups, "_OWN_GROUPS", tmp_path / "own")

    def files(own: str, files: Mapping[str, str]) -> None:
        (tmp_path / "own").write_text(f"{own}\n")
        for name, text in files.items():
            (tmp_path / "groups" / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / "groups" / name).write_text(f"{text}\n")

    return files


@pytest.mark.parametrize(
    ("own", "files", "expected"),
    [
        ("0::/", {}, None),
        ("0::/", {"memory.max": "max", "memory.current": "10"}, None),
        ("0::/", {"memory.max": "100", "memory.current": "30"}, 70),
        ("0::/", {"memory.max": "100", "memory.current": "130"}, 0),
        ("0::/", {"memory.max": "much", "memory.current": "30"}, None),
        ("0::/a/b", {"a/memory.max": "50", "a/memory.current": "1", "a/b/memory.max": "max"}, 49),
        (
            "0::/a/b",
            {"a/memory.max": "50", "a/memory.current": "1", "a/b/memory.max": "9", "a/b/memory.current": "2"},
            7,
        ),
        (
            "0::/",
            {"memory.max": "100", "memory.current": "90", "memory.stat": "anon 40\ninactive_file 50"},
            60,
        ),
        ("4:memory:/x", {"memory/memory.limit_in_bytes": "80", "memory/memory.usage_in_bytes": "30"}, 50),
        ("4:memory:/", {"memory/memory.limit_in_bytes": "9223372036854771712"}, None),
    ],
)
def test_the_tightest_limit_of_a_group_and_its_parents_counts(
    own: str, files: Mapping[str, str], expected: int | None, write: Write
) -> None:
    write(own, files)
    assert cgroups.free_memory() == expected


@pytest.mark.parametrize(
    ("own", "files", "expected"),
    [
        ("0::/", {}, None),
        ("0::/a", {"a/memory.events": "low 0\noom 3\noom_kill 2", "memory.events": "oom_kill 9"}, [2, 9]),
        ("4:memory:/", {"memory/memory.oom_control": "oom_kill_disable 0\nunder_oom 0\noom_kill 5"}, [5]),
        ("4:memory:/", {"memory/memory.oom_control": "oom_kill_disable 0"}, None),
    ],
)
def test_processes_that_were_killed_for_memory_are_counted(
    own: str, files: Mapping[str, str], expected: int | None, write: Write
) -> None:
    write(own, files)
    groups = cgroups.memory_groups()
    assert (groups and list(groups.num_kills.values())) == expected


def test_on_another_system_nothing_is_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cgroups, "_OWN_GROUPS", tmp_path / "absent")
    assert (cgroups.free_memory(), cgroups.memory_groups(), list(cgroups.processor_quotas())) == (None, None, [])


def test_without_the_machines_number_no_group_is_known(
    write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write("0::/a", {"a/memory.events": "oom_kill 0"})
    assert cgroups.memory_groups() is not None
    monkeypatch.setattr(cgroups, "_BOOT_ID", tmp_path / "absent")
    assert cgroups.memory_groups() is None


def test_groups_are_told_apart(write: Write) -> None:
    write("0::/a", {"a/memory.events": "oom_kill 0", "b/memory.events": "oom_kill 0", "memory.events": "oom_kill 1"})
    one, again = cgroups.memory_groups(), cgroups.memory_groups()
    write("0::/b", {})
    other = cgroups.memory_groups()
    assert one is not None
    assert other is not None
    assert one == again
    (own, parent), (others_own, others_parent) = one.num_kills, other.num_kills
    assert own != others_own
    assert parent == others_parent
    assert one.machine == other.machine == Path("/proc/sys/kernel/random/boot_id").read_text().strip()
