"""Reads from the CUDA driver which GPUs this process sees: their UUIDs and names.

torch's own properties are sufficient for whole GPUs. For a MIG instance they may give the UUID of the parent GPU, which
all instances of that GPU share, while the driver gives the instance's own UUID. None of these calls creates a context,
which would cost several hundred megabytes on every GPU.
"""

from __future__ import annotations

import ctypes
import uuid
from typing import Any

_LIBRARY = "libcuda.so.1"
_NAME_BYTES = 256


def has_driver() -> bool:
    """Whether this machine has a CUDA driver."""
    try:
        ctypes.CDLL(_LIBRARY)
    except OSError:
        return False
    return True


def read_driver_gpus(driver: Any = None) -> tuple[tuple[str, str], ...]:
    """Return the UUIDs and models of the GPUs in the order of `cuda:0`, `cuda:1` ..., filtered by CUDA_VISIBLE_DEVICES.

    Args:
        driver: the loaded driver library; injected in tests.
    Returns:
        A UUID has 8-4-4-4-12 hexadecimal digits; a MIG instance has its own.
        Empty if there is no driver, no GPU, or a driver older than CUDA 11.4, which gives no instance's UUID.
    Source: CUDA driver API, "Device Management".
    """
    try:
        driver = driver or ctypes.CDLL(_LIBRARY)
        uuid_of = driver.cuDeviceGetUuid_v2
        number = ctypes.c_int()
        if driver.cuInit(0) or driver.cuDeviceGetCount(ctypes.byref(number)):
            return ()
    except (OSError, AttributeError):
        return ()
    gpus = []
    for ordinal in range(number.value):
        device, octets = ctypes.c_int(), (ctypes.c_ubyte * 16)()
        name = ctypes.create_string_buffer(_NAME_BYTES)
        if (
            driver.cuDeviceGet(ctypes.byref(device), ordinal)
            or uuid_of(octets, device)
            or driver.cuDeviceGetName(name, _NAME_BYTES, device)
        ):
            return ()
        gpus.append((str(uuid.UUID(bytes=bytes(octets))), name.value.decode(errors="replace")))
    return tuple(gpus)
