"""Keep freed memory in the process instead of returning it to the kernel after each minibatch.

torch frees a minibatch's intermediate results and allocates the same sizes again for the next one. glibc returns
large blocks to the kernel in between, and the kernel then supplies zeroed pages, with a page fault of some
microseconds per 4 KiB. A LeNet epoch spent up to half its time on these faults (docs/performance.md).
"""

from __future__ import annotations

import ctypes
import os
import platform

# <malloc.h>
_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3
_LARGEST_MMAP_THRESHOLD = 32 * 2**20  # glibc's maximum on 64-bit systems; larger blocks always get a new mapping
_TRIM_THRESHOLD = 2**30
_USERS_CHOICES = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "MALLOC_TOP_PAD_", "LD_PRELOAD", "GLIBC_TUNABLES")


def keep_freed_memory() -> bool:
    """Make this process keep up to 1 GiB of freed memory.

    Returns:
        Whether the settings were changed. They are not if the allocator is not glibc's, if the user has set one of its
        environment variables, or if glibc refuses them.
    """
    if platform.libc_ver()[0] != "glibc" or any(name in os.environ for name in _USERS_CHOICES):
        return False
    mallopt = ctypes.CDLL(None).mallopt
    return bool(mallopt(_M_MMAP_THRESHOLD, _LARGEST_MMAP_THRESHOLD) and mallopt(_M_TRIM_THRESHOLD, _TRIM_THRESHOLD))


def return_freed_memory() -> None:
    """Return the freed memory that this process keeps to the kernel. Other allocators than glibc's are left alone."""
    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).malloc_trim(0)
