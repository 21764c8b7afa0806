"""What the CUDA driver is asked, with a stand-in for its library, and for real where there is a GPU."""

from __future__ import annotations

import ctypes
import subprocess
import sys
import uuid
from typing import Any

import pytest
import torch

from hpsearch.device.cuda_driver import read_driver_gpus

UUIDS = [uuid.UUID(int=7 << 120 | index) for index in range(2)]  # with zero bytes in them, which end a C string


class FakeDriver:
    """Answers like libcuda; the call named `broken` fails."""

    def __init__(self, broken: str | None = None) -> None:
        self.broken = broken

    def cuInit(self, flags: int) -> int:  # noqa: N802
        return self._code("cuInit")

    def cuDeviceGetCount(self, number: Any) -> int:  # noqa: N802
        number._obj.value = len(UUIDS)
        return self._code("cuDeviceGetCount")

    def cuDeviceGet(self, device: Any, ordinal: int) -> int:  # noqa: N802
        device._obj.value = ordinal + 100  # a handle need not be the ordinal
        return self._code("cuDeviceGet")

    def cuDeviceGetUuid_v2(self, octets: Any, device: ctypes.c_int) -> int:  # noqa: N802
        octets[:] = UUIDS[device.value - 100].bytes
        return self._code("cuDeviceGetUuid_v2")

    def cuDeviceGetName(self, name: Any, size: int, device: ctypes.c_int) -> int:  # noqa: N802
        name.value = f"NVIDIA Fake {device.value - 100}".encode()
        return self._code("cuDeviceGetName")

    def _code(self, call: str) -> int:
        return 999 if call == self.broken else 0


class OldDriver:
    """Older than cuDeviceGetUuid_v2."""


def test_gpus_are_told_in_order() -> None:
    assert read_driver_gpus(FakeDriver()) == tuple((str(UUIDS[index]), f"NVIDIA Fake {index}") for index in range(2))


@pytest.mark.parametrize("call", ["cuInit", "cuDeviceGetCount", "cuDeviceGet", "cuDeviceGetUuid_v2", "cuDeviceGetName"])
def test_a_driver_that_fails_tells_nothing(call: str) -> None:
    assert read_driver_gpus(FakeDriver(call)) == ()


def test_an_old_driver_tells_nothing() -> None:
    assert read_driver_gpus(OldDriver()) == ()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_without_a_driver_nothing_is_told() -> None:
    assert read_driver_gpus() == ()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_the_driver_agrees_with_torch_on_whole_gpus() -> None:
    told = [(uuid, name) for uuid, name in read_driver_gpus() if " MIG " not in name]
    seen = [torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count())]
    assert told == [(str(p.uuid), p.name) for p in seen if " MIG " not in p.name]


# The primary context of GPU 0, active or not, after the GPUs were detected: cuDevicePrimaryCtxGetState.
DETECT = """
import ctypes
from hpsearch.device.devices import VisibleDevices
assert VisibleDevices.detect().gpus
flags, is_active = ctypes.c_uint(), ctypes.c_int(-1)
assert ctypes.CDLL("libcuda.so.1").cuDevicePrimaryCtxGetState(0, ctypes.byref(flags), ctypes.byref(is_active)) == 0
print(is_active.value)
"""


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_looking_at_a_gpu_makes_no_context_on_it() -> None:
    assert subprocess.run([sys.executable, "-c", DETECT], capture_output=True, text=True, check=True).stdout == "0\n"
