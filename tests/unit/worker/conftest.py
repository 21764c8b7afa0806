"""Images and trials for what the service decides about training."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch

from hpsearch.data.resident import ResidentData
from hpsearch.data.splits import SelectionData, Split
from hpsearch.study.settings import ModelSettings, TrainingSettings, TrialSettings


@pytest.fixture
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def resident() -> Callable[..., ResidentData]:
    """Build resident data of noise."""

    def build(
        *, num_train: int = 60, image_shape: tuple[int, int] = (8, 8), max_resident_bytes: int | None = None
    ) -> ResidentData:
        generator = np.random.default_rng(3)

        def split(num_images: int) -> Split:
            images = generator.random((num_images, image_shape[0] * image_shape[1]), dtype=np.float32)
            return Split(images=images, labels=generator.integers(0, 10, num_images))

        data = SelectionData(
            name="noise",
            train=split(num_train),
            validation=split(20),
            example_shape=image_shape,
            num_classes=10,
            checksums={},
        )
        return ResidentData.place(data, torch.device("cpu"), max_resident_bytes=max_resident_bytes)

    return build


@pytest.fixture
def trial() -> Callable[..., TrialSettings]:
    """Build a trial of a small network: `trial(hidden_units=3, learning_rate=0.1, ...)`."""

    def build(**settings: Any) -> TrialSettings:
        model = {"family": "mlp", "hidden_units": 12} | {k: v for k, v in settings.items() if k in _MODEL}
        training = {"batch_size": 20} | {k: v for k, v in settings.items() if k not in _MODEL}
        return TrialSettings(model=ModelSettings(**model), training=TrainingSettings(**training))

    return build


_MODEL = set(ModelSettings.model_fields)
