"""Which device a worker trains on: what was asked for or a clear refusal, never a silent fall-back."""

from __future__ import annotations

import logging

import pytest
import torch

from hpsearch.errors import DeviceError, InputError
from hpsearch.service.devices import VisibleDevices, describe_device, resolve_device, worker_devices

CPU_BUILD = VisibleDevices(num_gpus=0, has_cuda_build=False)
NO_GPU = VisibleDevices(num_gpus=0, has_cuda_build=True)
TWO_GPUS = VisibleDevices(num_gpus=2, has_cuda_build=True)


@pytest.mark.parametrize(
    ("wanted", "visible", "device"),
    [
        ("cpu", CPU_BUILD, "cpu"),
        ("cpu", TWO_GPUS, "cpu"),
        ("auto", TWO_GPUS, "cuda:0"),
        ("auto", NO_GPU, "cpu"),
        ("auto", CPU_BUILD, "cpu"),
        ("cuda", TWO_GPUS, "cuda:0"),
        ("cuda:1", TWO_GPUS, "cuda:1"),
    ],
)
def test_device_is_the_one_that_was_asked_for(wanted: str, visible: VisibleDevices, device: str) -> None:
    assert resolve_device(wanted, visible) == torch.device(device)


def test_cpu_for_want_of_a_gpu_is_said(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="hpsearch"):
        resolve_device("auto", NO_GPU)
    assert caplog.messages == ["no GPU is visible: training on the CPU"]


@pytest.mark.parametrize(
    ("wanted", "visible", "message", "hint"),
    [
        ("cuda:2", TWO_GPUS, "device cuda:2 is not there", "visible: cpu, cuda:0, cuda:1"),
        ("cuda", NO_GPU, "device cuda is not there", "visible: cpu only"),
        ("cuda:0", CPU_BUILD, "built for the CPU only", "install a CUDA build of torch, or --device cpu"),
    ],
)
def test_missing_gpu_is_refused_with_what_is_visible(
    wanted: str, visible: VisibleDevices, message: str, hint: str
) -> None:
    with pytest.raises(DeviceError) as caught:
        resolve_device(wanted, visible)
    assert message in str(caught.value)
    assert wanted in str(caught.value)
    assert caught.value.hint == hint
    assert caught.value.exit_code == 3


@pytest.mark.parametrize("wanted", ["gpu", "", "cuda:", "cuda:-1", "cuda:x", "cuda:0 ", "CPU", "mps"])
def test_unknown_device_is_bad_input(wanted: str) -> None:
    with pytest.raises(InputError) as caught:
        resolve_device(wanted, TWO_GPUS)
    assert str(caught.value) == f"unknown device {wanted!r}"
    assert caught.value.hint == "auto, cpu or cuda:N; visible: cpu, cuda:0, cuda:1"


def test_detection_agrees_with_torch() -> None:
    visible = VisibleDevices.detect()
    assert visible.num_gpus == (torch.cuda.device_count() if torch.cuda.is_available() else 0)
    assert resolve_device("auto", visible).type == ("cuda" if visible.num_gpus else "cpu")


def test_cpu_needs_no_further_name() -> None:
    assert describe_device(torch.device("cpu")) == "cpu"


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_gpu_is_described_by_its_model() -> None:
    assert describe_device(torch.device("cuda", 0)) == f"cuda:0 ({torch.cuda.get_device_name(0)})"


@pytest.mark.parametrize(
    ("wanted", "visible", "devices"),
    [
        ("auto", TWO_GPUS, ["cuda:0", "cuda:1"]),
        ("cuda", TWO_GPUS, ["cuda:0", "cuda:1"]),
        ("auto", NO_GPU, ["cpu", "cpu"]),
        ("cpu", TWO_GPUS, ["cpu", "cpu"]),
        ("cuda:1", TWO_GPUS, ["cuda:1", "cuda:1"]),  # asked for in so many words
    ],
)
def test_local_workers_take_a_gpu_each(wanted: str, visible: VisibleDevices, devices: list[str]) -> None:
    assert worker_devices(wanted, 2, visible) == devices


def test_more_workers_than_gpus_never_double_up_silently() -> None:
    with pytest.raises(InputError, match="3 workers were asked for, but 2 GPUs are there") as caught:
        worker_devices("auto", 3, TWO_GPUS)
    assert "--workers 2" in str(caught.value.hint)
