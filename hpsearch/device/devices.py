"""Which devices a worker may train on: the requested device, checked against the existing ones.

A GPU is identified by its UUID, because an index means different GPUs in processes that see different GPUs.
device/pin.py decides which of several GPUs a worker takes.

torch is loaded only where it is needed: the process that launches workers asks for the devices, too.
"""

from __future__ import annotations

import importlib.util
import os
import re
import runpy
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hpsearch.device.cuda_driver import has_driver, read_driver_gpus
from hpsearch.errors import DeviceError, InputError
from hpsearch.logs import get_logger

if TYPE_CHECKING:
    import torch

_log = get_logger("devices")

# The kernel's id, which is the same in every container of a machine; host names differ between containers.
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_DIGITS = "[0-9a-fA-F]"
_UUID = f"{_DIGITS}{{8}}-(?:{_DIGITS}{{4}}-){{3}}{_DIGITS}{{12}}"
# Complete names only: a shortened name would be a second name for the same instance. Older drivers use the other form.
_MIG_NAME = re.compile(rf"MIG-(?:{_UUID}|GPU-{_UUID}/\d+/\d+)")


@dataclass(frozen=True, kw_only=True)
class Gpu:
    """A GPU, or a MIG instance of one, as this process sees it.

    Args:
        index: the index of `cuda:INDEX`.
        uuid: unique identifier: "GPU-...", "MIG-...", or "PCI-..." for a GPU without a UUID; None if there is none.
        name: of its model.
    """

    index: int
    uuid: str | None
    name: str

    @property
    def device(self) -> torch.device:
        import torch

        return torch.device("cuda", self.index)

    @property
    def description(self) -> str:
        """Name for people: `cuda:0 (NVIDIA H200, GPU-5ee1...)`."""
        return f"cuda:{self.index} ({self.name}, {self.uuid or 'without a UUID'})"


@dataclass(frozen=True, kw_only=True)
class VisibleDevices:
    """The devices that this process can train on; injected in tests.

    Args:
        gpus: by index, as filtered by CUDA_VISIBLE_DEVICES.
        has_cuda_build: this torch can use GPUs at all.
    """

    gpus: tuple[Gpu, ...]
    has_cuda_build: bool

    @classmethod
    def detect(cls) -> VisibleDevices:
        """Detect the devices without creating a context on a GPU (except torch's, if the driver cannot be read)."""
        build = torch_build()
        may_have_gpus = build["hip"] or (build["cuda"] and has_driver())
        return cls(gpus=_detect_gpus() if may_have_gpus else (), has_cuda_build=bool(build["cuda"] or build["hip"]))

    def describe(self) -> str:
        gpus = ", ".join(f"cuda:{gpu.index}" for gpu in self.gpus)
        return f"visible: cpu{', ' + gpus if gpus else ' only'}"


def wanted_gpus(wanted: str, visible: VisibleDevices) -> tuple[Gpu, ...]:
    """Return the GPUs of which a worker may take one, for `auto`, `cpu`, `cuda` or `cuda:N`; none means the CPU.

    `auto` means the CPU if there is no GPU; `cuda` and `cuda:N` never fall back to the CPU.

    Raises:
        InputError: not a device name.
        DeviceError: the requested GPU does not exist.
    """
    if wanted == "auto":
        return visible.gpus
    if wanted == "cpu":
        return ()
    match = re.fullmatch(r"cuda(?::(\d{1,9}))?", wanted)
    if not match:
        raise InputError(f"unknown device {wanted!r:.60}", hint=f"auto, cpu or cuda:N; {visible.describe()}")
    if not visible.has_cuda_build:
        raise DeviceError(
            f"device {wanted} was requested, but this torch ({torch_build()['__version__']}) is built for the CPU only",
            hint="install a CUDA build of torch, or --device cpu",
        )
    index = match.group(1)
    gpus = visible.gpus if index is None else visible.gpus[int(index) :][:1]
    if not gpus:
        raise DeviceError(f"device {wanted} does not exist", hint=visible.describe())
    return gpus


def num_local_workers(asked: int | None, wanted: str, visible: VisibleDevices, *, is_shared: bool = False) -> int:
    """Return how many workers to start on this machine: the requested number, or one per GPU, or one.

    Args:
        asked: the requested number; None if none was given.
        is_shared: workers may share a GPU.
    Raises:
        InputError: not a device name, or more workers than GPUs.
        DeviceError: the requested GPU does not exist.
    """
    gpus = wanted_gpus(wanted, visible)
    if asked is None:
        return max(1, len(gpus))
    if gpus and asked > len(gpus) and not is_shared:
        available = "1 GPU is" if len(gpus) == 1 else f"{len(gpus)} GPUs are"
        raise InputError(
            f"{asked} workers were requested, but {available} available for --device {wanted}, one for each worker",
            hint=f"--workers {len(gpus)}, or --share-gpu to let workers share a GPU",
        )
    return asked


def num_on_device(
    num_workers: int, device: torch.device, wanted: str, visible: VisibleDevices, *, is_shared: bool = False
) -> int:
    """Return how many of this machine's workers share one worker's device, if they are spread evenly.

    Args:
        device: that the worker has taken; the others are as in `num_local_workers`.
    """
    if device.type == "cpu":
        return num_workers
    return -(-num_workers // len(wanted_gpus(wanted, visible))) if is_shared else 1


def make_current(device: torch.device) -> None:
    """Make CUDA calls without a device use this one: otherwise they would create a context on `cuda:0`, too."""
    if device.type == "cuda":
        import torch

        torch.cuda.set_device(device)


def use_full_float32() -> None:
    """Make GPUs compute float32 as float32: cuDNN's default is TF32, with 10 bits of mantissa instead of 23."""
    import torch

    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False


def describe_device(device: torch.device) -> str:
    """Return a name for people: `cpu` or `cuda:0 (NVIDIA H200, GPU-5ee1...)`."""
    if device.type != "cuda":
        return str(device)
    return _detect_gpus()[device.index or 0].description


@cache
def torch_build() -> Mapping[str, Any]:
    """`__version__`, `cuda` and `hip` of the installed torch, from its file torch/version.py, without loading torch."""
    spec = importlib.util.find_spec("torch")
    assert spec is not None, "a dependency"
    return runpy.run_path(str(Path(spec.origin or "").with_name("version.py")))


def _detect_gpus() -> tuple[Gpu, ...]:
    import torch

    number = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if not number:
        return ()
    driver = read_driver_gpus()
    if len(driver) == number:
        return gpus_from_driver(driver)
    names = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    return gpus_from_torch(number, torch.cuda.get_device_properties, names)


def gpus_from_driver(gpus: Iterable[tuple[str, str]]) -> tuple[Gpu, ...]:
    """Convert the driver's list of UUIDs and models.

    A MIG instance is recognised by its name, such as `NVIDIA A100-SXM4-40GB MIG 1g.5gb`.
    """
    return tuple(
        Gpu(index=index, uuid=f"{'MIG' if ' MIG ' in name else 'GPU'}-{uuid}", name=name)
        for index, (uuid, name) in enumerate(gpus)
    )


def gpus_from_torch(number: int, properties_of: Callable[[int], Any], visible_names: str) -> tuple[Gpu, ...]:
    """Return torch's list of GPUs, for machines whose driver cannot be read.

    MIG instances that CUDA_VISIBLE_DEVICES does not name in full may then have the UUID of their parent GPU: they count
    as one GPU, and no two workers use them at the same time.

    Args:
        properties_of: torch.cuda.get_device_properties.
        visible_names: CUDA_VISIBLE_DEVICES: indices, UUIDs or names of MIG instances.
    """
    names = [name.strip() for name in visible_names.split(",")]
    gpus = []
    for index in range(number):
        properties = properties_of(index)
        named = names[index] if index < len(names) else ""
        uuid = named if _MIG_NAME.fullmatch(named) else _uuid_from(properties)
        gpus.append(Gpu(index=index, uuid=uuid, name=properties.name))
    return tuple(gpus)


def _uuid_from(properties: Any) -> str | None:
    if getattr(properties, "uuid", None) is not None:
        return f"GPU-{properties.uuid}"
    address: list[int | None] = [getattr(properties, f"pci_{part}_id", None) for part in ("domain", "bus", "device")]
    if None in address or not _BOOT_ID.exists():
        return None
    place = ":".join(f"{part:x}" for part in address if part is not None)
    _log.warning("%s has no UUID: it is identified by this machine and its place on the PCI bus", properties.name)
    return f"PCI-{_BOOT_ID.read_text().strip()}-{place}"
