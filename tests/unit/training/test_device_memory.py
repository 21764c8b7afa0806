"""Memory: what is left of it, and how torch says that it is not enough."""

from __future__ import annotations

import psutil
import pytest
import torch

from hpsearch.training.device_memory import MainMemory, describe_shortage, is_out_of_memory, memory_of
from hpsearch.wording import first_line


def test_the_cpus_own_refusal_is_recognised_with_its_size() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**50)
    assert is_out_of_memory(caught.value)
    assert describe_shortage(caught.value) == "tried to allocate 4194304.00 GiB"


def test_a_gpus_refusal_is_recognised_with_its_size() -> None:
    error = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.50 GiB. GPU 0 has a total capacity of ...")
    assert is_out_of_memory(error)
    assert describe_shortage(error) == "tried to allocate 2.50 GiB"


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED"),
        RuntimeError("GET was unable to find an engine to execute this computation"),
        RuntimeError('NVML_SUCCESS == r INTERNAL ASSERT FAILED at "CUDACachingAllocator.cpp":1154, please report ...'),
    ],
)
def test_other_refusals_are_recognised(error: Exception) -> None:
    assert is_out_of_memory(error)
    assert describe_shortage(error) == f"an allocation was refused: {first_line(error)}"


@pytest.mark.parametrize(
    "error",
    [RuntimeError("CUDA error: an illegal memory access was encountered"), ValueError("out of memory"), OSError(12)],
)
def test_other_errors_are_none(error: Exception) -> None:
    assert not is_out_of_memory(error)


def test_half_of_the_free_main_memory_is_ours_and_that_is_shared(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hpsearch.training.device_memory.free_memory", lambda: None)
    free = psutil.virtual_memory().available
    assert MainMemory().available() == pytest.approx(free / 2, rel=0.2)
    assert MainMemory(num_sharing=4).available() == pytest.approx(free / 8, rel=0.2)


def test_a_containers_limit_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    for free, expected in ((2000, 1000), (0, 0)):
        monkeypatch.setattr("hpsearch.training.device_memory.free_memory", lambda free=free: free)
        assert MainMemory().available() == expected


def test_a_gpus_free_memory_and_what_torch_has_freed_are_shared_by_its_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = torch.device("cuda", 0)
    for name, value in (("mem_get_info", (1000, 5000)), ("memory_reserved", 300), ("memory_allocated", 100)):
        monkeypatch.setattr(torch.cuda, name, lambda device, value=value: value)
    assert memory_of(gpu).available() == 1080
    assert memory_of(gpu, num_sharing=2).available() == 540


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_what_torch_keeps_of_a_gpu_is_available() -> None:
    memory = memory_of(torch.device("cuda", 0))
    before = memory.available()
    del (_ := [torch.ones(2**28, device="cuda")])[:]
    assert 0.9 * before < memory.available() <= before


def test_a_shortage_behind_another_error_is_found() -> None:
    """Ending the capture of a CUDA graph that broke fails in words of its own."""
    masked = RuntimeError("CUDA error: operation failed due to a previous error during capture")
    masked.__context__ = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
    assert is_out_of_memory(masked)
    assert not is_out_of_memory(RuntimeError("CUDA error: operation failed due to a previous error during capture"))


def test_a_circle_of_causes_ends() -> None:
    first, second = ValueError("first"), ValueError("second")
    first.__cause__, second.__cause__ = second, first
    assert not is_out_of_memory(first)
