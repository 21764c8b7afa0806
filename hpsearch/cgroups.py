"""The control groups of this process (Linux), which limit its processor time and its memory.

A container's limits apply to its group and to all parents of it. Both versions of control groups are read; on a machine
with both, memory may be in the first and other controllers in the second.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TypeVar

_GROUPS = Path("/sys/fs/cgroup")
_OWN_GROUPS = Path("/proc/self/cgroup")
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_UNLIMITED = 2**60  # of the first version: no limit is a number near 2**63
T = TypeVar("T")


def usable_processors() -> int:
    """Return how many processors this process may use, at least 1: by its CPU affinity and its groups' time quotas.

    A container's limit (`docker run --cpus`) is a time quota, which the affinity does not show.
    """
    quotas = [math.ceil(quota) for quota in processor_quotas()]
    return max(1, min([_num_in_affinity(), *quotas]))


def processor_quotas() -> Iterator[float]:
    """Yield the quotas, in processors, of this process's groups and their parents."""
    yield from _read_each("cpu", _quota, _quota_of_first_version)


def free_memory() -> int | None:
    """Return the bytes that this process may still use within its groups' limits; None if there is no limit."""
    return min(_read_each("memory", _free, _free_of_first_version), default=None)


@dataclass(frozen=True, kw_only=True)
class MemoryGroups:
    """The groups that this process's memory counts in, from its own upwards, as far as it sees them.

    Args:
        machine: identifies the machine, from one start of it to the next.
        num_kills: number of the group -> how many processes of it the kernel has killed because memory ran out. A later
            group does not get the number again. In the second version, a parent counts those of its children, too.
    """

    machine: str
    num_kills: Mapping[int, int]


def memory_groups() -> MemoryGroups | None:
    """Return this process's groups; None if there is none that counts kills, as on systems other than Linux."""
    counts = dict(_read_each("memory", _kills_of("memory.events"), _kills_of("memory.oom_control")))
    try:
        return MemoryGroups(machine=_BOOT_ID.read_text().strip(), num_kills=counts) if counts else None
    except OSError:  # a container may hide it
        return None


def _read_each(
    controller: str, read: Callable[[Path], T | None], read_first_version: Callable[[Path], T | None]
) -> Iterator[T]:
    """Yield what is read in the folder of each group with this controller, from the process's own group upwards."""
    try:
        lines = _OWN_GROUPS.read_text().splitlines()
    except OSError:  # not Linux
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if not controllers:
            yield from _read_group_and_parents(_GROUPS, path, read)
        elif controller in controllers.split(","):
            yield from _read_group_and_parents(_GROUPS / controller, path, read_first_version)


def _read_group_and_parents(root: Path, path: str, read: Callable[[Path], T | None]) -> Iterator[T]:
    # A container may see its own group as the root, whatever its path is outside: missing folders are skipped.
    relative = PurePosixPath(path.lstrip("/"))
    for group in (relative, *relative.parents):
        try:
            value = read(root / group)
        except (OSError, ValueError):
            continue
        if value is not None:
            yield value


def _num_in_affinity() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1  # macOS


def _quota(group: Path) -> float | None:
    quota, period = (group / "cpu.max").read_text().split()
    return None if quota == "max" else int(quota) / int(period)


def _quota_of_first_version(group: Path) -> float | None:
    quota = int((group / "cpu.cfs_quota_us").read_text())
    return None if quota < 0 else quota / int((group / "cpu.cfs_period_us").read_text())


def _free(group: Path) -> int | None:
    limit = (group / "memory.max").read_text().strip()
    return None if limit == "max" else max(0, int(limit) - _used(group, "memory.current", "inactive_file"))


def _free_of_first_version(group: Path) -> int | None:
    limit = int((group / "memory.limit_in_bytes").read_text())
    used = "memory.usage_in_bytes", "total_inactive_file"
    return None if limit >= _UNLIMITED else max(0, limit - _used(group, *used))


def _used(group: Path, file_name: str, reclaimable: str) -> int:
    """Bytes in use, without the files that the kernel keeps in memory as long as nobody else needs it."""
    return int((group / file_name).read_text()) - _counts(group / "memory.stat").get(reclaimable, 0)


def _counts(file: Path) -> dict[str, int]:
    """Lines of a name and a number; none if there is no such file."""
    try:
        lines = file.read_text().splitlines()
    except FileNotFoundError:
        return {}
    return {name: int(number) for name, number in (line.split() for line in lines)}


def _kills_of(file_name: str) -> Callable[[Path], tuple[int, int] | None]:
    def read(group: Path) -> tuple[int, int] | None:
        num_kills = _counts(group / file_name).get("oom_kill")
        return None if num_kills is None else (group.stat().st_ino, num_kills)

    return read
