"""How many programs a worker runs at once."""

from __future__ import annotations

from hpsearch.cgroups import usable_processors
from hpsearch.study.program import ProgramSettings


def num_slots(program: ProgramSettings, lanes: int | None, *, has_gpus: bool, num_workers: int) -> int:
    """Return how many programs a worker of this machine runs at once.

    Args:
        lanes: the value of `--lanes`, which decides; None: `per_gpu` on GPUs, otherwise one per `cpus` processors.
        has_gpus: whether the worker has GPUs.
        num_workers: number of workers on this machine, which share its processors.
    """
    if lanes is not None:
        return lanes
    return program.per_gpu if has_gpus else max(1, usable_processors() // num_workers // program.cpus)
