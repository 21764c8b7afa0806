"""Which device a worker trains on: what was asked for, checked against what is there."""

from __future__ import annotations

import re
from dataclasses import dataclass

import torch

from hpsearch.errors import DeviceError, InputError
from hpsearch.logs import get_logger

_log = get_logger("devices")


@dataclass(frozen=True, kw_only=True)
class VisibleDevices:
    """What this process could train on; injected in tests.

    Args:
        num_gpus: CUDA devices visible (CUDA_VISIBLE_DEVICES respected).
        has_cuda_build: this torch can use CUDA at all.
    """

    num_gpus: int
    has_cuda_build: bool

    @classmethod
    def detect(cls) -> VisibleDevices:
        return cls(
            num_gpus=torch.cuda.device_count() if torch.cuda.is_available() else 0,
            has_cuda_build=torch.version.cuda is not None,
        )

    def describe(self) -> str:
        gpus = ", ".join(f"cuda:{index}" for index in range(self.num_gpus))
        return f"visible: cpu{', ' + gpus if gpus else ' only'}"


def resolve_device(wanted: str, visible: VisibleDevices | None = None) -> torch.device:
    """Turn `auto`, `cpu` or `cuda:N` into a device.

    `auto` takes the first GPU, or the CPU where no GPU is there, and says so. `cuda:N` never falls back.

    Raises:
        InputError: not a device name.
        DeviceError: the GPU that was asked for is not there.
    """
    visible = visible or VisibleDevices.detect()
    if wanted == "auto":
        if visible.num_gpus == 0:
            _log.info("no GPU is visible: training on the CPU")
            return torch.device("cpu")
        return torch.device("cuda:0")
    if wanted == "cpu":
        return torch.device("cpu")
    match = re.fullmatch(r"cuda(?::(\d+))?", wanted)
    if not match:
        raise InputError(f"unknown device {wanted!r}", hint=f"auto, cpu or cuda:N; {visible.describe()}")
    if not visible.has_cuda_build:
        raise DeviceError(
            f"device {wanted} was asked for, but this torch ({torch.__version__}) is built for the CPU only",
            hint="install a CUDA build of torch, or --device cpu",
        )
    index = int(match.group(1) or 0)
    if index >= visible.num_gpus:
        raise DeviceError(f"device {wanted} is not there", hint=visible.describe())
    return torch.device("cuda", index)


def worker_devices(wanted: str, num_workers: int, visible: VisibleDevices | None = None) -> list[str]:
    """A device for each of several local workers: a GPU each, the CPU for all, or the one that was named for all.

    Raises:
        InputError: not a device name, or more workers than GPUs to give one each.
        DeviceError: the GPU that was asked for is not there.
    """
    visible = visible or VisibleDevices.detect()
    first = resolve_device(wanted, visible)
    if first.type == "cpu" or wanted not in ("auto", "cuda"):
        return [str(first)] * num_workers
    if num_workers > visible.num_gpus:
        raise InputError(
            f"{num_workers} workers were asked for, but {visible.num_gpus} GPUs are there, one for each",
            hint=f"--workers {visible.num_gpus}, or --device cuda:N to share one GPU",
        )
    return [f"cuda:{index}" for index in range(num_workers)]


def use_full_float32() -> None:
    """Let GPUs compute float32 as float32: cuDNN's default is TF32, with 10 bits of mantissa instead of 23."""
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False


def describe_device(device: torch.device) -> str:
    """A name for people: `cpu` or `cuda:0 (NVIDIA H200)`."""
    if device.type == "cuda":
        return f"{device} ({torch.cuda.get_device_name(device)})"
    return str(device)
