"""Which devices a worker may train on: what was asked for or a clear refusal, never a silent fall-back."""

from __future__ import annotations

import logging
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from hpsearch.device import devices as module
from hpsearch.device.devices import (
    Gpu,
    VisibleDevices,
    describe_device,
    gpus_from_driver,
    gpus_from_torch,
    num_local_workers,
    num_on_device,
    wanted_gpus,
)
from hpsearch.errors import DeviceError, InputError

UUIDS = [f"5ee1{index:04d}-aaaa-bbbb-cccc-0123456789ab" for index in range(3)]
GPUS = tuple(Gpu(index=index, uuid=f"GPU-{UUIDS[index]}", name="NVIDIA Fake") for index in range(2))
CPU_BUILD = VisibleDevices(gpus=(), has_cuda_build=False)
NO_GPU = VisibleDevices(gpus=(), has_cuda_build=True)
TWO_GPUS = VisibleDevices(gpus=GPUS, has_cuda_build=True)


@pytest.mark.parametrize(
    ("wanted", "visible", "gpus"),
    [
        ("cpu", CPU_BUILD, ()),
        ("cpu", TWO_GPUS, ()),
        ("auto", TWO_GPUS, GPUS),
        ("auto", NO_GPU, ()),
        ("auto", CPU_BUILD, ()),
        ("cuda", TWO_GPUS, GPUS),
        ("cuda:0", TWO_GPUS, GPUS[:1]),
        ("cuda:1", TWO_GPUS, GPUS[1:]),
    ],
)
def test_a_worker_may_take_what_was_asked_for(wanted: str, visible: VisibleDevices, gpus: tuple[Gpu, ...]) -> None:
    assert wanted_gpus(wanted, visible) == gpus


@pytest.mark.parametrize(
    ("wanted", "visible", "message", "hint"),
    [
        ("cuda:2", TWO_GPUS, "device cuda:2 does not exist", "visible: cpu, cuda:0, cuda:1"),
        ("cuda", NO_GPU, "device cuda does not exist", "visible: cpu only"),
        ("cuda:0", CPU_BUILD, "built for the CPU only", "install a CUDA build of torch, or --device cpu"),
    ],
)
def test_missing_gpu_is_refused_with_what_is_visible(
    wanted: str, visible: VisibleDevices, message: str, hint: str
) -> None:
    with pytest.raises(DeviceError) as caught:
        wanted_gpus(wanted, visible)
    assert message in str(caught.value)
    assert wanted in str(caught.value)
    assert caught.value.hint == hint
    assert caught.value.exit_code == 3


@pytest.mark.parametrize("wanted", ["gpu", "", "cuda:", "cuda:-1", "cuda:x", "cuda:0 ", "CPU", "mps"])
def test_unknown_device_is_bad_input(wanted: str) -> None:
    with pytest.raises(InputError) as caught:
        wanted_gpus(wanted, TWO_GPUS)
    assert str(caught.value) == f"unknown device {wanted!r}"
    assert caught.value.hint == "auto, cpu or cuda:N; visible: cpu, cuda:0, cuda:1"


def test_detection_agrees_with_torch() -> None:
    visible = VisibleDevices.detect()
    assert len(visible.gpus) == (torch.cuda.device_count() if torch.cuda.is_available() else 0)


def test_cpu_needs_no_further_name() -> None:
    assert describe_device(torch.device("cpu")) == "cpu"


def test_a_gpu_is_described_by_its_model_and_its_uuid(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_detect_gpus", lambda: GPUS)
    assert describe_device(torch.device("cuda", 1)) == f"cuda:1 (NVIDIA Fake, GPU-{UUIDS[1]})"
    assert Gpu(index=0, uuid=None, name="Odd").description == "cuda:0 (Odd, without a UUID)"


# Workers of one machine


@pytest.mark.parametrize(
    ("asked", "wanted", "visible", "number"),
    [
        (None, "auto", TWO_GPUS, 2),
        (None, "cuda:1", TWO_GPUS, 1),
        (None, "cpu", TWO_GPUS, 1),
        (None, "auto", NO_GPU, 1),
        (1, "auto", TWO_GPUS, 1),
        (2, "cuda", TWO_GPUS, 2),
        (7, "cpu", TWO_GPUS, 7),
        (7, "auto", NO_GPU, 7),
    ],
)
def test_local_workers_are_as_many_as_asked_for_or_one_per_gpu(
    asked: int | None, wanted: str, visible: VisibleDevices, number: int
) -> None:
    assert num_local_workers(asked, wanted, visible) == number


@pytest.mark.parametrize(
    ("wanted", "message", "hint"),
    [
        ("auto", "3 workers were requested, but 2 GPUs are available for --device auto", "--workers 2"),
        ("cuda:1", "3 workers were requested, but 1 GPU is available for --device cuda:1", "--workers 1"),
    ],
)
def test_more_workers_than_gpus_never_double_up_silently(wanted: str, message: str, hint: str) -> None:
    with pytest.raises(InputError) as caught:
        num_local_workers(3, wanted, TWO_GPUS)
    assert message in str(caught.value)
    assert caught.value.hint == f"{hint}, or --share-gpu to let workers share a GPU"
    assert num_local_workers(3, wanted, TWO_GPUS, is_shared=True) == 3


@pytest.mark.parametrize(
    ("device", "wanted", "is_shared", "number"),
    [
        ("cpu", "auto", False, 5),
        ("cuda:1", "auto", False, 1),
        ("cuda:1", "auto", True, 3),
        ("cuda:1", "cuda:1", True, 5),
    ],
)
def test_workers_share_the_cpu_and_no_gpu_unless_they_may(
    device: str, wanted: str, is_shared: bool, number: int
) -> None:
    assert num_on_device(5, torch.device(device), wanted, TWO_GPUS, is_shared=is_shared) == number


# Identity

MIG = "MIG-0e66aaaa-1111-2222-3333-0123456789ab"


def properties(**known: Any) -> Any:
    """Builds a stand-in for torch.cuda.get_device_properties."""
    return lambda index: SimpleNamespace(name=f"Fake {index}", **{k: v[index] for k, v in known.items()})


def test_the_driver_tells_a_mig_instance_from_its_gpu() -> None:
    told = gpus_from_driver([(UUIDS[0], "NVIDIA H200"), (UUIDS[1], "NVIDIA A100-SXM4-40GB MIG 1g.5gb")])
    assert [gpu.uuid for gpu in told] == [f"GPU-{UUIDS[0]}", f"MIG-{UUIDS[1]}"]
    assert [str(gpu.device) for gpu in told] == ["cuda:0", "cuda:1"]


@pytest.mark.parametrize("names", ["", "0,1", "1,0", f"GPU-{UUIDS[0]},GPU-{UUIDS[1]}", "GPU-5ee10000,GPU-5ee10001"])
def test_torchs_uuids_stand_whatever_cuda_visible_devices_calls_the_gpus(names: str) -> None:
    told = gpus_from_torch(2, properties(uuid=UUIDS), names)
    assert [gpu.uuid for gpu in told] == [f"GPU-{UUIDS[0]}", f"GPU-{UUIDS[1]}"]


@pytest.mark.parametrize("name", [MIG, f"MIG-GPU-{UUIDS[0]}/1/0"])
def test_mig_instances_are_known_by_the_names_in_cuda_visible_devices(name: str) -> None:
    parent = [UUIDS[0], UUIDS[0]]
    told = gpus_from_torch(2, properties(uuid=parent), f"{name}, MIG-{UUIDS[2]}")
    assert [gpu.uuid for gpu in told] == [name, f"MIG-{UUIDS[2]}"]


def test_instances_under_shortened_names_count_as_their_gpu() -> None:
    """Two workers may shorten a name differently: taken for two instances, they would share one."""
    told = gpus_from_torch(1, properties(uuid=UUIDS), MIG[:12])
    assert [gpu.uuid for gpu in told] == [f"GPU-{UUIDS[0]}"]


def test_a_gpu_without_a_uuid_is_known_by_its_machine_and_its_place(caplog: pytest.LogCaptureFixture) -> None:
    places = properties(pci_domain_id=[0, 0], pci_bus_id=[0x1B, 0x43], pci_device_id=[0, 0])
    with caplog.at_level(logging.WARNING, logger="hpsearch"):
        first, second = gpus_from_torch(2, places, "")
    boot_id = module._BOOT_ID.read_text().strip()
    assert (first.uuid, second.uuid) == (f"PCI-{boot_id}-0:1b:0", f"PCI-{boot_id}-0:43:0")
    assert caplog.messages[0] == "Fake 0 has no UUID: it is identified by this machine and its place on the PCI bus"


def test_a_gpu_that_tells_nothing_has_no_identity() -> None:
    assert [gpu.uuid for gpu in gpus_from_torch(1, properties(), "")] == [None]


@pytest.mark.parametrize(("num_told", "uuid"), [(1, f"GPU-{UUIDS[2]}"), (2, f"GPU-{UUIDS[0]}")])
def test_a_driver_that_sees_other_gpus_than_torch_is_not_believed(
    num_told: int, uuid: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "torch_build", lambda: {"__version__": "2.11.0", "cuda": "13.0", "hip": None})
    monkeypatch.setattr(module, "has_driver", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_properties", properties(uuid=UUIDS))
    monkeypatch.setattr(module, "read_driver_gpus", lambda: ((UUIDS[2], "NVIDIA H200"),) * num_told)
    assert [gpu.uuid for gpu in VisibleDevices.detect().gpus] == [uuid]


@pytest.mark.parametrize(
    ("build", "has_driver", "asks_torch"),
    [
        ({"cuda": None, "hip": None}, True, False),
        ({"cuda": "13.0", "hip": None}, False, False),
        ({"cuda": "13.0", "hip": None}, True, True),
        ({"cuda": None, "hip": "6.4"}, False, True),
    ],
)
def test_torch_is_asked_only_where_it_can_have_a_gpu(
    build: dict[str, str | None], has_driver: bool, asks_torch: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Loading it takes seconds."""
    asked: list[bool] = []
    monkeypatch.setattr(module, "torch_build", lambda: build)
    monkeypatch.setattr(module, "has_driver", lambda: has_driver)
    monkeypatch.setattr(module, "_detect_gpus", lambda: asked.append(True) or ())
    assert VisibleDevices.detect().has_cuda_build is any(build.values())
    assert bool(asked) is asks_torch


def test_torchs_build_is_read_without_loading_it() -> None:
    build = module.torch_build()
    assert (build["__version__"], build["cuda"]) == (torch.__version__, torch.version.cuda)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_real_gpu_is_described_by_its_model_and_its_uuid() -> None:
    uuid = torch.cuda.get_device_properties(0).uuid
    assert describe_device(torch.device("cuda", 0)) == f"cuda:0 ({torch.cuda.get_device_name(0)}, GPU-{uuid})"
