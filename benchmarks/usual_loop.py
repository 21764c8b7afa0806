"""The training loop that people usually write: one trial, a DataLoader, nn.Sequential, torch.optim.SGD.

It is what whole_study.py compares hpsearch with, under plain Optuna (usual_optuna.py) and under Ray Tune
(usual_ray.py), so it must be neither better nor worse than what one finds in tutorials. It computes what hpsearch
computes (a test holds its curve against hpsearch's reference loop): the same network, initial weights of the same
distribution, the same minibatches in the same order, L2 on weights but not on biases, one validation per epoch.
Nothing in here is hpsearch's but the settings and the images.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from hpsearch.data.splits import SelectionData, Split
from hpsearch.errors import InputError
from hpsearch.study.settings import TrialSettings

VALIDATION_BATCH_SIZE = 1000  # larger than in training, as usual: nothing is learned there


class Batches(Protocol):
    """A DataLoader, or what can stand in for it."""

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[Any]: ...


@dataclass(frozen=True, kw_only=True)
class UsualData:
    """Both parts of a data set as tensors.

    Args:
        train, validation: images [N, pixels] float32 in [0, 1], and labels [N] int64.
    """

    train: TensorDataset
    validation: TensorDataset
    num_pixels: int
    num_classes: int

    @classmethod
    def of(cls, data: SelectionData) -> UsualData:
        return cls(
            train=_as_dataset(data.train),
            validation=_as_dataset(data.validation),
            num_pixels=data.train.images.shape[1],
            num_classes=data.num_classes,
        )


def build_network(settings: TrialSettings, data: UsualData) -> nn.Sequential:
    """The notes' MLP with their initial weights: Glorot's interval, zeros in the softmax layer and the biases."""
    torch.manual_seed(settings.training_seed)
    hidden = nn.Linear(data.num_pixels, settings.model.hidden_units)
    output = nn.Linear(settings.model.hidden_units, data.num_classes)
    nn.init.xavier_uniform_(hidden.weight)
    for zeros in (hidden.bias, output.weight, output.bias):
        nn.init.zeros_(zeros)
    return nn.Sequential(hidden, nn.Tanh(), output)


def build_optimizer(settings: TrialSettings, network: nn.Module) -> torch.optim.SGD:
    """Plain SGD; weight decay is the gradient of lambda_2 * sum w^2, so twice lambda_2."""
    weights = [parameter for name, parameter in network.named_parameters() if name.endswith("weight")]
    biases = [parameter for name, parameter in network.named_parameters() if name.endswith("bias")]
    groups: list[dict[str, Any]] = [
        {"params": weights, "weight_decay": 2 * settings.training.lambda_2},
        {"params": biases},
    ]
    return torch.optim.SGD(groups, lr=settings.training.learning_rate)


def train(settings: TrialSettings, data: UsualData, network: nn.Module) -> Iterator[float]:
    """Train epoch by epoch; yields the validation error (a fraction) after each of them."""
    # shuffle=False as in the notes; drop_last, because they leave an incomplete minibatch out.
    train_batches = DataLoader(data.train, batch_size=settings.training.batch_size, shuffle=False, drop_last=True)
    validation_batches = DataLoader(data.validation, batch_size=VALIDATION_BATCH_SIZE)
    optimizer = build_optimizer(settings, network)
    for _ in range(settings.training.max_epochs):
        train_epoch(network, optimizer, train_batches)
        yield validation_error(network, validation_batches)


def train_epoch(network: nn.Module, optimizer: torch.optim.Optimizer, batches: Batches) -> float:
    """One pass over the training images; returns their mean loss."""
    network.train()
    total_loss = 0.0
    for images, labels in batches:
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(network(images), labels)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        total_loss += loss.item()
    return total_loss / len(batches)


@torch.no_grad()
def validation_error(network: nn.Module, batches: Batches) -> float:
    """The fraction of misclassified images."""
    network.eval()
    num_errors, num_images = 0, 0
    for images, labels in batches:
        num_errors += int((network(images).argmax(dim=1) != labels).sum())
        num_images += len(labels)
    return num_errors / num_images


def check_settings(settings: TrialSettings) -> None:
    """Refuse what this loop cannot train.

    Raises:
        InputError: names the key and the only value that it takes.
    """
    model, training = settings.model, settings.training
    wanted = [
        ("model.family", model.family, "mlp"),
        ("model.activation", model.activation, "tanh"),
        ("model.initialization", model.initialization, "glorot"),
        ("training.optimizer", training.optimizer, "sgd"),
        ("training.schedule", training.schedule, "constant"),
        ("training.lambda_1", training.lambda_1, 0.0),
        ("training.shuffle", training.shuffle, False),
    ]
    for key, found, expected in wanted:
        if found != expected:
            raise InputError(f"the usual loop has {key} = {expected!r} only, got {found!r}")


def _as_dataset(split: Split) -> TensorDataset:
    # Copied: Ray hands out arrays that may not be written to, of which torch would warn.
    return TensorDataset(torch.from_numpy(split.floats()), torch.tensor(split.labels))
