"""How many threads a worker gets of the processors that this process may use."""

from __future__ import annotations

import os

from hpsearch.cgroups import usable_processors


def threads_per_worker(num_workers: int) -> int:
    """Return the CPU threads for each local worker: OMP_NUM_THREADS if set, or an equal share of the cores."""
    named = os.environ.get("OMP_NUM_THREADS", "")
    if named.isdecimal() and len(named) < 5 and int(named) > 0:
        return int(named)
    return max(1, usable_processors() // num_workers)
