"""How many processors this process may use: limited by its CPU affinity and by the time quotas of its cgroups."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath

_GROUPS = Path("/sys/fs/cgroup")
_OWN_GROUPS = Path("/proc/self/cgroup")


def usable_processors() -> int:
    """Return the number of usable processors, at least 1.

    A container's limit (`docker run --cpus`) is a time quota, which the affinity does not show.
    """
    quotas = [math.ceil(quota) for quota in _quotas()]
    return max(1, min([_num_in_affinity(), *quotas]))


def threads_per_worker(num_workers: int) -> int:
    """Return the CPU threads for each local worker: OMP_NUM_THREADS if set, or an equal share of the cores."""
    named = os.environ.get("OMP_NUM_THREADS", "")
    if named.isdecimal() and len(named) < 5 and int(named) > 0:
        return int(named)
    return max(1, usable_processors() // num_workers)


def _num_in_affinity() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1  # macOS


def _quotas() -> Iterator[float]:
    """Yield the quotas, in processors, of this process's cgroups and their parents."""
    try:
        lines = _OWN_GROUPS.read_text().splitlines()
    except OSError:  # not Linux
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if not controllers:
            yield from _read_each(_GROUPS, path, _read_unified)
        elif "cpu" in controllers.split(","):
            yield from _read_each(_GROUPS / "cpu", path, _read_first_version)


def _read_each(root: Path, path: str, read: Callable[[Path], float | None]) -> Iterator[float]:
    # A container may see its own group as the root, whatever its path is outside: missing folders are skipped.
    relative = PurePosixPath(path.lstrip("/"))
    for group in (relative, *relative.parents):
        try:
            quota = read(root / group)
        except (OSError, ValueError):
            continue
        if quota is not None:
            yield quota


def _read_unified(group: Path) -> float | None:
    quota, period = (group / "cpu.max").read_text().split()
    return None if quota == "max" else int(quota) / int(period)


def _read_first_version(group: Path) -> float | None:
    quota = int((group / "cpu.cfs_quota_us").read_text())
    return None if quota < 0 else quota / int((group / "cpu.cfs_period_us").read_text())
