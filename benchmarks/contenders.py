"""Training contenders: hpsearch's lanes, and the loops that people write, each in a process of its own.

A process of its own, because threads, the allocator and caches are a process's: what one contender does must not
help or harm another. Parent and children take turns; while one trains the others wait.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

from benchmarks import usual_loop
from hpsearch.data.resident import ResidentData
from hpsearch.data.splits import SelectionData, Split
from hpsearch.study.settings import ModelSettings, Precision, TrainingSettings, TrialSettings
from hpsearch.training.host_memory import keep_freed_memory
from hpsearch.training.lanes.cohort import Cohort
from hpsearch.training.lanes.cohort_shape import CohortShape

NOTES_IMAGES = 50_000  # the notes' training set; validation has a fifth of it
NEVER = 10**9  # validate at the epoch's end only
Kind = Literal["lanes", "eager", "loader", "gemm"]


@dataclass(frozen=True, kw_only=True)
class Contender:
    """What is timed.

    Args:
        kind: `lanes`: hpsearch. `eager`: one trial, torch.nn and autograd, images on the device. `loader`: the same
            with a DataLoader. `gemm`: a large matrix product.
        keeps_memory: `eager`, `loader`: freed memory is kept, as hpsearch's workers do (host_memory.py).
        num_images: training images of an epoch; validation has a fifth.
    """

    kind: Kind
    family: Literal["mlp", "cnn"] = "mlp"
    hidden_units: int = 500
    batch_size: int = 20
    precision: Precision = "float32"
    num_lanes: int = 8
    keeps_memory: bool = False
    num_images: int = 5000
    device: str = "cpu"
    threads: int = 2

    def settings(self, lane: int = 0) -> TrialSettings:
        return TrialSettings(
            model=ModelSettings(family=self.family, hidden_units=self.hidden_units),
            training=TrainingSettings(
                batch_size=self.batch_size,
                learning_rate=0.01 / (lane + 1),
                lambda_2=1e-4 / (lane + 1),
                precision=self.precision,
            ),
        )


@contextlib.contextmanager
def running(contender: Contender) -> Iterator[Callable[[], float]]:
    """Start a process for the contender and warm it up.

    Yields:
        A call that trains one epoch there and returns seconds per trial and epoch of the notes' 50,000 images
        (`gemm`: GFLOP/s).
    """
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_serve, args=(contender, theirs), daemon=True)
    process.start()
    theirs.close()

    def run() -> float:
        ours.send(True)
        return float(ours.recv())

    try:
        run()
        yield run
    finally:
        with contextlib.suppress(BrokenPipeError):
            ours.send(False)
        process.join()


def _serve(contender: Contender, connection: Connection) -> None:
    torch.set_num_threads(contender.threads)
    run = build(contender)
    while connection.recv():
        connection.send(run())


def build(contender: Contender) -> Callable[[], float]:
    """The contender in this process; each call runs it once."""
    match contender.kind:
        case "gemm":
            return lambda: gemm_rate(torch.device(contender.device), contender.precision)
        case "lanes":
            return _lanes(contender)
        case "eager" | "loader":
            return _usual(contender)


def gemm_rate(device: torch.device, precision: Precision = "float32", size: int = 2048) -> float:
    """GFLOP/s of a large square matrix product: what the arithmetic of training is held against."""
    dtype = torch.bfloat16 if precision == "bfloat16" else torch.float32
    one, other = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    repetitions = 3 if device.type == "cpu" else 50
    torch.mm(one, other)
    started = _synchronised(device)
    for _ in range(repetitions):
        torch.mm(one, other)
    return repetitions * 2 * size**3 / (_synchronised(device) - started) / 1e9


def random_images(num_train: int, *, side: int = 28) -> SelectionData:
    """A data set of the notes' proportions with nothing to learn in it: arithmetic takes as long.

    Args:
        side: of the square images, in pixels.
    """
    generator = np.random.default_rng(0)

    def split(num_images: int) -> Split:
        images = generator.random((num_images, side * side), dtype=np.float32)
        return Split(images=images, labels=generator.integers(0, 10, num_images))

    return SelectionData(
        name="random",
        train=split(num_train),
        validation=split(num_train // 5),
        example_shape=(side, side),
        num_classes=10,
        checksums={},
    )


def _lanes(contender: Contender) -> Callable[[], float]:
    keep_freed_memory()  # as workers do
    device = torch.device(contender.device)
    data = ResidentData.place(random_images(contender.num_images), device)
    cohort = Cohort(CohortShape.of(contender.settings()), data, device, NEVER)
    for lane in range(contender.num_lanes):
        cohort.admit(lane, contender.settings(lane))

    def seconds() -> float:
        # Reports share an epoch's seconds out among the lanes; reading the losses has waited for the device.
        of_one_trial = next(iter(cohort.train_epoch().values())).seconds
        return of_one_trial * NOTES_IMAGES / contender.num_images

    return seconds


def _usual(contender: Contender) -> Callable[[], float]:
    if contender.keeps_memory:
        keep_freed_memory()
    device = torch.device(contender.device)
    settings, images = contender.settings(), random_images(contender.num_images)
    data = usual_loop.UsualData.of(images)
    is_lenet = contender.family == "cnn"
    network: nn.Module = UsualLeNet() if is_lenet else usual_loop.build_network(settings, data)
    network.to(device)
    optimizer = usual_loop.build_optimizer(settings, network)
    batches_of = _loaded if contender.kind == "loader" else _resident
    train = batches_of(data.train, contender.batch_size, device)
    validation = batches_of(data.validation, usual_loop.VALIDATION_BATCH_SIZE, device)

    def seconds() -> float:
        started = _synchronised(device)
        usual_loop.train_epoch(network, optimizer, train)
        usual_loop.validation_error(network, validation)
        return (_synchronised(device) - started) * NOTES_IMAGES / contender.num_images

    return seconds


class UsualLeNet(nn.Module):
    """The notes' LeNet as one writes it."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 20, 5)
        self.conv2 = nn.Conv2d(20, 50, 5)
        self.hidden = nn.Linear(800, 500)
        self.output = nn.Linear(500, 10)

    def forward(self, images: Tensor) -> Tensor:
        maps = images.view(-1, 1, 28, 28)  # [B, 784] -> [B, 1, 28, 28]
        maps = torch.tanh(functional.max_pool2d(self.conv1(maps), 2))
        maps = torch.tanh(functional.max_pool2d(self.conv2(maps), 2))
        scores: Tensor = self.output(torch.tanh(self.hidden(maps.flatten(1))))
        return scores


class _OnDevice:
    """A DataLoader's batches, moved to the device one by one, as usual."""

    def __init__(self, batches: usual_loop.Batches, device: torch.device) -> None:
        self._batches = batches
        self._device = device

    def __len__(self) -> int:
        return len(self._batches)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for images, labels in self._batches:
            yield images.to(self._device), labels.to(self._device)


def _loaded(dataset: TensorDataset, batch_size: int, device: torch.device) -> usual_loop.Batches:
    batch_size = min(batch_size, len(dataset))
    return _OnDevice(DataLoader(dataset, batch_size=batch_size, shuffle=False, drop_last=True), device)


def _resident(dataset: TensorDataset, batch_size: int, device: torch.device) -> usual_loop.Batches:
    """Batches that are on the device for good: slices of two tensors."""
    images, labels = (tensor.to(device) for tensor in dataset.tensors)
    num_batches = len(labels) // batch_size or 1
    rows = [slice(index * batch_size, (index + 1) * batch_size) for index in range(num_batches)]
    return [(images[row], labels[row]) for row in rows]


def _synchronised(device: torch.device) -> float:
    """The time once the device has done all that was asked of it."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
