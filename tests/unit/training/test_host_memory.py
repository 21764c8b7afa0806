"""Freed memory is kept; seen in the number of page faults."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

PROGRAM = """
import resource, sys
import torch
from hpsearch.training.host_memory import keep_freed_memory

torch.set_num_threads(1)
is_kept = keep_freed_memory()
for round in range(22):
    if round == 2:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    blocks = [torch.zeros(6 * 2**20 // 4) for _ in range(4)]  # freed at the end of the round
    del blocks
print(is_kept, resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""
PAGES = 20 * 4 * 6 * 2**20 // 4096  # of all blocks of the counted rounds


def faults(**environment: str) -> tuple[str, int]:
    names = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "MALLOC_TOP_PAD_", "LD_PRELOAD", "GLIBC_TUNABLES")
    inherited = {name: value for name, value in os.environ.items() if name not in names}
    output = subprocess.run(
        [sys.executable, "-c", PROGRAM], env=inherited | environment, capture_output=True, text=True, check=True
    ).stdout.split()
    return output[0], int(output[1])


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="mallopt is glibc's")
def test_freed_memory_is_used_again_without_page_faults() -> None:
    is_kept, num_faults = faults()

    assert is_kept == "True"
    assert num_faults < PAGES / 10


def test_the_users_own_settings_win() -> None:
    is_kept, num_faults = faults(MALLOC_TRIM_THRESHOLD_="65536", MALLOC_MMAP_THRESHOLD_="65536")

    assert is_kept == "False"
    assert num_faults > PAGES / 2  # what it would be otherwise: the test above can fail
