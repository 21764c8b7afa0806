"""How many processors this process may use: limited by its CPU affinity and by the time quotas of its cgroups."""

from __future__ import annotations

import math
import os

from hpsearch.cgroups import processor_quotas


def usable_processors() -> int:
    """Return the number of usable processors, at least 1.

    A container's limit (`docker run --cpus`) is a time quota, which the affinity does not show.
    """
    quotas = [math.ceil(quota) for quota in processor_quotas()]
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
