"""A worker uses as many threads as its affinity and its cgroups leave it processors."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import pytest

from hpsearch import cgroups
from hpsearch.device.processors import threads_per_worker


@pytest.mark.parametrize(
    ("own", "files", "expected"),
    [
        ("0::/", {}, 6),
        ("0::/", {"cpu.max": "max 100000"}, 6),
        ("0::/", {"cpu.max": "250000 100000"}, 3),
        ("0::/", {"cpu.max": "10000 100000"}, 1),
        ("0::/", {"cpu.max": "900000 100000"}, 6),
        ("0::/", {"cpu.max": "nonsense"}, 6),
        ("0::/a.slice/b", {"a.slice/cpu.max": "200000 100000", "a.slice/b/cpu.max": "max 100000"}, 2),
        ("0::/../outside", {"cpu.max": "200000 100000"}, 2),
        ("3:cpuset:/\n1:cpu:/\n0::/", {"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, 6),
        ("2:cpu,cpuacct:/docker/1f", {"cpu/cpu.cfs_quota_us": "150000", "cpu/cpu.cfs_period_us": "100000"}, 2),
    ],
)
def test_processors_that_a_worker_may_use(
    own: str, files: Mapping[str, str], expected: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    groups = tmp_path / "groups"
    for name, text in files.items():
        (groups / name).parent.mkdir(parents=True, exist_ok=True)
        (groups / name).write_text(text)
    (tmp_path / "own").write_text(f"{own}\n")
    monkeypatch.setattr(cgroups, "_GROUPS", groups)
    monkeypatch.setattr(cgroups, "_OWN_GROUPS", tmp_path / "own")
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(6)))
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert threads_per_worker(1) == expected
    assert threads_per_worker(2) == max(1, expected // 2)
