"""Keeping memory that was freed, rather than giving it back to the system and asking for it again.

torch frees a minibatch's intermediate results and wants the same sizes a moment later. glibc returns large
blocks to the kernel in between, which then hands out zeroed pages, one fault of some microseconds for every
4 KiB: a LeNet epoch spent up to half its time on that (docs/performance.md).
"""

from __future__ import annotations

import ctypes
import os
import platform

# <malloc.h>
_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3
_LARGEST_MMAP_THRESHOLD = 32 * 2**20  # glibc refuses more on 64-bit systems; larger blocks are always mapped afresh
_TRIM_THRESHOLD = 2**30
_USERS_CHOICES = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "MALLOC_TOP_PAD_", "LD_PRELOAD", "GLIBC_TUNABLES")


def keep_freed_memory() -> bool:
    """Make this process keep up to 1 GiB of freed memory. False: another allocator, or the user has chosen."""
    if platform.libc_ver()[0] != "glibc" or any(name in os.environ for name in _USERS_CHOICES):
        return False
    mallopt = ctypes.CDLL(None).mallopt
    return bool(mallopt(_M_MMAP_THRESHOLD, _LARGEST_MMAP_THRESHOLD) and mallopt(_M_TRIM_THRESHOLD, _TRIM_THRESHOLD))
