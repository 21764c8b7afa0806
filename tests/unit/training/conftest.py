"""Small images that a network can learn, and trials to train on them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils import _pytree
from torch.utils._python_dispatch import TorchDispatchMode

from hpsearch.data.resident import ResidentData
from hpsearch.data.splits import SelectionData, Split
from hpsearch.study.settings import ModelSettings, TrainingSettings, TrialSettings
from hpsearch.training.lanes.stack import LaneStack

CPU = torch.device("cpu")
NUM_CLASSES = 10


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> Iterator[None]:
    """Tests share their machine: these tensors are too small to be worth a second thread."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def _split(generator: np.random.Generator, prototypes: np.ndarray, num_images: int) -> Split:
    """Noisy pictures of each class's prototype, in [0, 1]."""
    labels = generator.integers(0, NUM_CLASSES, num_images)
    noise = generator.normal(0, 0.4, (num_images, prototypes.shape[1]))
    images = np.clip(prototypes[labels] + noise, 0, 1).astype(np.float32)
    return Split(images=images, labels=labels.astype(np.int64))


@pytest.fixture(scope="session")
def selection_data() -> Callable[..., SelectionData]:
    def build(
        *, num_train: int = 130, num_validation: int = 80, image_shape: tuple[int, int] = (16, 16)
    ) -> SelectionData:
        generator = np.random.default_rng(7)
        # Blocks of 4x4 pixels rather than single ones: something for a 5x5 convolution to see.
        blocks = generator.random((NUM_CLASSES, image_shape[0] // 4 + 1, image_shape[1] // 4 + 1))
        pixels = blocks.repeat(4, axis=1).repeat(4, axis=2)[:, : image_shape[0], : image_shape[1]]
        prototypes = pixels.reshape(NUM_CLASSES, -1)
        return SelectionData(
            name="prototypes",
            train=_split(generator, prototypes, num_train),
            validation=_split(generator, prototypes, num_validation),
            example_shape=image_shape,
            num_classes=NUM_CLASSES,
            checksums={},
        )

    return build


@pytest.fixture(scope="session")
def resident(selection_data: Callable[..., SelectionData]) -> Callable[..., ResidentData]:
    """Build resident data: `resident(num_train=..., num_validation=..., image_shape=..., ...)`."""

    def place(*, device: torch.device = CPU, max_resident_bytes: int | None = None, **sizes: Any) -> ResidentData:
        return ResidentData.place(selection_data(**sizes), device, max_resident_bytes=max_resident_bytes)

    return place


@pytest.fixture(scope="session")
def trial() -> Callable[..., TrialSettings]:
    """Build a trial of a small network: `trial("mlp", activation="relu", learning_rate=0.1, ...)`."""

    def build(family: str = "mlp", *, study_seed: int = 0, **settings: Any) -> TrialSettings:
        model_settings = {"hidden_units": 12, "kernels": (3, 4)}
        model_settings |= {k: settings.pop(k) for k in set(ModelSettings.model_fields) & set(settings)}
        training_settings = {"batch_size": 20} | settings
        return TrialSettings(
            model=ModelSettings(family=family, **model_settings),
            training=TrainingSettings(**training_settings),
            seed=study_seed,
        )

    return build


class _Recorder(TorchDispatchMode):
    """Notes every operation below autograd, with its arguments and results."""

    def __init__(self) -> None:
        super().__init__()
        self.operations: list[tuple[Any, tuple[Any, ...], dict[str, Any], Any]] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = function(*args, **kwargs)
        self.operations.append((function, args, kwargs, result))
        return result


class FrozenReplay:
    """A `Capture` that does what a CUDA graph does, on a CPU: run the recorded operations on the same tensors again.

    A graph replays kernels; nothing of the Python that launched them runs again. So operations that depend on
    something that has changed since the recording are stale here as they would be there.

    Args:
        state: the tensors that recorded work changes; they are put back after the recording, which must run nothing.
    """

    def __init__(self, state: Callable[[], Iterable[Tensor]]) -> None:
        self._state = state
        self.num_captures = 0
        self.num_replays = 0

    def __call__(self, work: Callable[[], Tensor]) -> Callable[[], Tensor]:
        before = [(tensor, tensor.clone()) for tensor in self._state()]
        with _Recorder() as recorder:
            result = work()
        for tensor, value in before:
            tensor.copy_(value)
        self.num_captures += 1

        @torch.no_grad()
        def replay() -> Tensor:
            self.num_replays += 1
            for function, args, kwargs, recorded in recorder.operations:
                for old, new in zip(_tensors(recorded), _tensors(function(*args, **kwargs)), strict=True):
                    if old.data_ptr() != new.data_ptr():  # a result of its own, not a view or an argument
                        old.detach().copy_(new)
            return result

        return replay


def _tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in _pytree.tree_leaves(tree) if isinstance(leaf, Tensor)]


@pytest.fixture
def frozen_replay() -> type[FrozenReplay]:
    return FrozenReplay


@pytest.fixture(scope="session")
def stack_tensors() -> Callable[[LaneStack], list[Tensor]]:
    def tensors(stack: LaneStack) -> list[Tensor]:
        shared = (stack.parameters, stack.best_parameters, stack.best_losses, stack.records)
        return [tensor for group in (*shared, *stack.optimizer_states.values()) for tensor in group.values()]

    return tensors
