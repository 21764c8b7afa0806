"""How much memory a device has free, and how to recognise an out-of-memory error.

On a CPU an allocation hardly ever fails: Linux overcommits memory and later kills the process. Memory use must
therefore be estimated in advance there. On a GPU a failed allocation does no harm.
"""

from __future__ import annotations

import re
from typing import Protocol, final

import psutil
import torch

from hpsearch.cgroups import free_memory
from hpsearch.training.host_memory import return_freed_memory
from hpsearch.wording import first_line

GIB = 2**30
# The share of free memory that the workers of a device may use. Main memory is shared with other processes, and a wrong
# estimate there kills the process.
_GPU_SHARE = 0.9
_CPU_SHARE = 0.5
_SHORTAGES = (
    "DefaultCPUAllocator: can't allocate memory",
    "DefaultCPUAllocator: not enough memory",
    "CUDA error: out of memory",
    "CUDA out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUBLAS_STATUS_NOT_INITIALIZED",  # cuBLAS could not allocate memory for its handle
    "CUDNN_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED",  # the same since cuDNN 9
    "CUDNN_STATUS_INTERNAL_ERROR_HOST_ALLOCATION_FAILED",
    "unable to find an engine to execute this computation",  # torch has tried all, and dropped their shortages
    "NVML_SUCCESS == r INTERNAL ASSERT FAILED",  # on a part of a GPU (MIG), from torch's message about a shortage
    "std::bad_alloc",
)
_REQUEST = re.compile(r"tried to allocate ([\d.]+ ?\w+)", re.I)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether this exception, or one in its chain of causes, is an out-of-memory error of torch or Python."""
    seen: set[int] = set()  # a chain of causes may contain a cycle
    earlier: BaseException | None = error
    while earlier is not None and id(earlier) not in seen:
        if isinstance(earlier, torch.OutOfMemoryError | MemoryError):
            return True
        if isinstance(earlier, RuntimeError) and any(words in str(earlier) for words in _SHORTAGES):
            return True
        seen.add(id(earlier))
        # When a graph capture fails for lack of memory, ending the capture raises another error, whose context it is.
        earlier = earlier.__cause__ or earlier.__context__
    return False


def describe_shortage(error: BaseException) -> str:
    """The size of the failed allocation, as in `tried to allocate 2.50 GiB`; else the first line of the message."""
    match = _REQUEST.search(str(error))
    if match is None:
        return f"an allocation was refused: {first_line(error):.200}"
    size = match.group(1)
    if size.endswith(" bytes"):
        size = f"{int(size.removesuffix(' bytes')) / GIB:.2f} GiB"
    return f"tried to allocate {size}"


class DeviceMemory(Protocol):
    """The memory of one device as this process may use it."""

    def available(self) -> int:
        """The bytes that this process may still allocate."""


def memory_of(device: torch.device, *, num_sharing: int = 1) -> DeviceMemory:
    """The memory of a device.

    Args:
        num_sharing: workers that share it.
    """
    if device.type == "cuda":
        return CudaMemory(device, num_sharing=num_sharing)
    return MainMemory(num_sharing=num_sharing)


@final
class MainMemory:
    """Main memory, or the part of it that the container's limits allow."""

    def __init__(self, *, num_sharing: int = 1) -> None:
        self._share = _CPU_SHARE / num_sharing

    def available(self) -> int:
        free = int(psutil.virtual_memory().available)
        limit = free_memory()
        return int(self._share * (free if limit is None else min(free, limit)))


@final
class CudaMemory:
    """The memory of a GPU. What torch has freed is available, also in captured graphs, which go when lanes change."""

    def __init__(self, device: torch.device, *, num_sharing: int = 1) -> None:
        self._device = device
        self._share = _GPU_SHARE / num_sharing

    def available(self) -> int:
        free, _ = torch.cuda.mem_get_info(self._device)
        cached = torch.cuda.memory_reserved(self._device) - torch.cuda.memory_allocated(self._device)
        return int(self._share * (free + cached))


def release_cached_memory(device: torch.device) -> None:
    """Return freed memory to the device, for other processes and for larger allocations of this one."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
    else:
        return_freed_memory()
