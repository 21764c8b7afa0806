"""What a device has left of memory, and how to tell that it had too little.

A CPU hardly ever refuses: Linux grants what it does not have and then kills the process. So what fits there has to
be foreseen; on a GPU the attempt does no harm.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Protocol, final

import psutil
import torch

GIB = 2**30
# What we may take of what is there. A GPU is ours; on a CPU others live, and a mistake kills the process.
_GPU_SHARE = 0.9
_CPU_SHARE = 0.5
_SHORTAGES = (
    "DefaultCPUAllocator: can't allocate memory",
    "DefaultCPUAllocator: not enough memory",
    "CUDA error: out of memory",
    "CUDA out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUBLAS_STATUS_NOT_INITIALIZED",  # how cuBLAS says that its handle found no memory
    "CUDNN_STATUS_ALLOC_FAILED",
    "std::bad_alloc",
)
_REQUEST = re.compile(r"tried to allocate ([\d.]+ ?\w+)", re.I)
_NO_CGROUP_LIMIT = "max"


def is_out_of_memory(error: BaseException) -> bool:
    """Whether this is how torch or Python say that memory does not suffice."""
    seen: set[int] = set()  # a chain of causes may be a circle
    earlier: BaseException | None = error
    while earlier is not None and id(earlier) not in seen:
        if isinstance(earlier, torch.OutOfMemoryError | MemoryError):
            return True
        if isinstance(earlier, RuntimeError) and any(words in str(earlier) for words in _SHORTAGES):
            return True
        seen.add(id(earlier))
        # Ending the capture of a graph that broke for want of memory fails in its own words.
        earlier = earlier.__cause__ or earlier.__context__
    return False


def describe_shortage(error: BaseException) -> str:
    """What was asked for, as in `tried to allocate 2.50 GiB`; without a number where none is told."""
    match = _REQUEST.search(str(error))
    if match is None:
        return "an allocation was refused"
    size = match.group(1)
    if size.endswith(" bytes"):
        size = f"{int(size.removesuffix(' bytes')) / GIB:.2f} GiB"
    return f"tried to allocate {size}"


class DeviceMemory(Protocol):
    """One device's memory, as far as this process is concerned; in bytes."""

    def available(self) -> int:
        """What this process may still take."""

    def start(self) -> None:
        """Count `growth` from here."""

    def growth(self) -> int:
        """What this process holds, or has held at once, beyond what it held at the start."""


def memory_of(device: torch.device, *, num_sharing: int = 1) -> DeviceMemory:
    """The memory of a device.

    Args:
        num_sharing: processes like this one on this machine, which share its main memory; each has a GPU of its own.
    """
    return CudaMemory(device) if device.type == "cuda" else MainMemory(num_sharing=num_sharing)


@final
class MainMemory:
    """Main memory, or what a container may have of it.

    Args:
        cgroup: where the container's limits are read (control groups, version 2); tests have their own.
    """

    def __init__(self, *, num_sharing: int = 1, cgroup: Path = Path("/sys/fs/cgroup")) -> None:
        self._share = _CPU_SHARE / num_sharing
        self._cgroup = cgroup
        self._process = psutil.Process()
        self._before = 0

    def available(self) -> int:
        free = int(psutil.virtual_memory().available)
        limit = self._free_in_container()
        return int(self._share * (free if limit is None else min(free, limit)))

    def start(self) -> None:
        self._before = self._process.memory_info().rss

    def growth(self) -> int:
        return max(0, int(self._process.memory_info().rss) - self._before)

    def _free_in_container(self) -> int | None:
        try:
            limit = (self._cgroup / "memory.max").read_text().strip()
            used = int((self._cgroup / "memory.current").read_text())
            return None if limit == _NO_CGROUP_LIMIT else max(0, int(limit) - used)
        except (OSError, ValueError):  # no container, or control groups of another version
            return None


@final
class CudaMemory:
    """A GPU's memory. `growth` is the peak of what torch has reserved, pools of captured graphs included."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._before = 0

    def available(self) -> int:
        free, _ = torch.cuda.mem_get_info(self._device)
        cached = torch.cuda.memory_reserved(self._device) - torch.cuda.memory_allocated(self._device)
        return int(_GPU_SHARE * (free + cached))

    def start(self) -> None:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(self._device)
        self._before = torch.cuda.memory_reserved(self._device)

    def growth(self) -> int:
        return max(0, torch.cuda.max_memory_reserved(self._device) - self._before)


def release_cached_memory(device: torch.device) -> None:
    """Give back to the device what torch keeps for later; other processes may want it, and so may larger blocks."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
