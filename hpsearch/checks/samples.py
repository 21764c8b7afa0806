"""What the checks of one network work with: its settings, a few images, and one step of the lanes."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hpsearch.checks.models import model_name
from hpsearch.data.resident import ResidentData
from hpsearch.data.splits import SelectionData, Split
from hpsearch.study.definition import StudyDefinition
from hpsearch.study.settings import TrainingSettings, TrialSettings, is_custom_family
from hpsearch.training.class_weights import class_weights_of
from hpsearch.training.device_memory import memory_of
from hpsearch.training.lanes.device_model import bytes_per_lane
from hpsearch.training.lanes.stack import LaneKind, LaneStack, TrialTensors
from hpsearch.training.lanes.steps import build_step
from hpsearch.training.networks.build import build_network
from hpsearch.training.networks.network import Network
from hpsearch.training.optimizers import build_optimizer
from hpsearch.training.tensors import Tensors

NEVER = 10**9  # minibatches between validations within an epoch
CPU = torch.device("cpu")


class NoMemoryError(Exception):
    """There is no memory for one lane. On a CPU an allocation would not fail: the process would be killed."""


class OutOfTimeError(Exception):
    """The seconds for the checks are over."""


@dataclass(frozen=True, kw_only=True)
class CheckedModel:
    """One network of a study, with the data that it would be trained on.

    Args:
        definition: of the study.
        settings: of a trial in the middle of the search space.
        deadline: on `time.monotonic`.
    """

    definition: StudyDefinition
    settings: TrialSettings
    data: SelectionData
    deadline: float

    @cached_property
    def network(self) -> Network:
        """The network. Raises InputError if it cannot be built or trained."""
        return build_network(self.settings.model, self.data.example_shape, self.data.num_outputs)

    @property
    def is_custom(self) -> bool:
        return is_custom_family(self.settings.model.family)

    @cached_property
    def class_weights(self) -> Tensor | None:
        """The weight of each class in the loss, [classes]; None: all are weighed alike."""
        counts = self.data.train.class_counts(self.data.num_classes)
        return class_weights_of(self.settings.training.class_weights, counts)

    @property
    def name(self) -> str:
        """The family with the keys that its shape depends on."""
        return model_name(self.settings)

    def training(self, **changes: object) -> TrialSettings:
        """The settings with other values in [training]."""
        training = TrainingSettings.model_validate({**self.settings.training.model_dump(), **changes})
        return self.settings.model_copy(update={"training": training})

    def fitting_lanes(self, batch_size: int) -> int:
        """How many lanes fit into the memory that is available now. Raises NoMemoryError if not even one does."""
        number = int(memory_of(CPU).available() // bytes_per_lane(self.network, batch_size))
        if number < 1:
            raise NoMemoryError
        return number

    def check_time(self) -> None:
        """Raises OutOfTimeError."""
        if time.monotonic() > self.deadline:
            raise OutOfTimeError


def distinct_images(part: Split, number: int, *, seed: int = 0) -> NDArray[np.intp]:
    """Indices of images that all differ, from as many classes as possible; fewer if there are not so many."""
    order = np.random.default_rng(seed).permutation(len(part))[: 50 * number]
    _, first = np.unique(part.images[order], axis=0, return_index=True)
    order = order[np.sort(first)]
    rank = np.empty(len(order), dtype=np.intp)  # of an image within its class: all first ones come before second ones
    for label in np.unique(part.labels[order]):
        of_class = np.flatnonzero(part.labels[order] == label)
        rank[of_class] = np.arange(len(of_class))
    return order[np.argsort(rank, kind="stable")][:number]


def resident(data: SelectionData, train: NDArray[np.intp], validation: Split) -> ResidentData:
    """Some of the training images, and these validation images, as training needs them."""
    part = Split(images=data.train.images[train], labels=data.train.labels[train])
    some = SelectionData(
        name=data.name,
        train=part,
        validation=validation,
        example_shape=data.example_shape,
        num_classes=data.num_classes,
        checksums={},
    )
    return ResidentData.place(some, CPU)


def lane_step(
    network: Network,
    settings: Sequence[TrialSettings],
    parameters: Sequence[Tensors],
    images: Tensor,
    labels: Tensor,
    rate: float,
    class_weights: Tensor | None = None,
) -> list[dict[str, Tensor]]:
    """Train lanes with these parameters by one minibatch, with the step that a study uses; return the new parameters.

    Args:
        settings: of each lane, all with the same optimizer.
        images: [B, pixels], in the precision of the parameters.
        class_weights: [classes] (`class_weights_of`).
    """
    stack = LaneStack(device=CPU)
    for its, values in zip(settings, parameters, strict=True):
        state = build_optimizer(its.training.optimizer).initial_state(values)
        stack.insert([(LaneKind.of(its), TrialTensors.fresh(values, state))])
    stack.set_rates([its.training for its in settings], [rate] * len(settings))
    build_step(network, CPU, class_weights=class_weights).train(stack, images, labels, len(labels))
    return [{name: value[lane].clone() for name, value in stack.parameters.items()} for lane in range(len(settings))]
