"""Networks with a planted fault, and healthy ones beside them, for planted_faults.py."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

Size = tuple[int, int]
Layers = Sequence[Callable[[Tensor], Tensor]]


def _layers(
    image_shape: Size, num_classes: int, width: int = 32, activation: type[nn.Module] = nn.Tanh
) -> list[nn.Module]:
    num_inputs = image_shape[0] * image_shape[1]
    return [nn.Flatten(), nn.Linear(num_inputs, width), activation(), nn.Linear(width, num_classes)]


def healthy(*, image_shape: Size, num_classes: int, width: int = 32, depth: int = 1, kind: str = "tanh") -> nn.Module:
    """Fully connected layers with a usual initialisation."""
    activation = {"tanh": nn.Tanh, "relu": nn.ReLU, "sigmoid": nn.Sigmoid, "gelu": nn.GELU}[kind]
    flatten, first, act, last = _layers(image_shape, num_classes, width, activation)
    between = [layer for _ in range(depth - 1) for layer in (nn.Linear(width, width), activation())]
    return nn.Sequential(flatten, first, act, *between, last)


def convolutional(*, image_shape: Size, num_classes: int, maps: int = 8) -> nn.Module:
    """A convolution, normalisation by groups, and pooling."""
    features = maps * (image_shape[0] // 2) * (image_shape[1] // 2)
    layers = nn.Conv2d(1, maps, 3, padding=1), nn.GroupNorm(2, maps), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten()
    return nn.Sequential(*layers, nn.Linear(features, num_classes))


def softmax_twice(*, image_shape: Size, num_classes: int) -> nn.Module:
    """Scores that went through a softmax already."""
    return nn.Sequential(*_layers(image_shape, num_classes), nn.Softmax(dim=1))


class _Reversed(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(inputs: Tensor) -> Tensor:
        return inputs.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        return -gradients[0]


class _Forward(nn.Module):
    """Layers with a forward pass of their own."""

    def __init__(self, layers: list[nn.Module], run: Callable[[Layers, Tensor], Tensor]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self._run = run

    def forward(self, images: Tensor) -> Tensor:
        return self._run(list(self.layers), images)


def wrong_sign(*, image_shape: Size, num_classes: int) -> nn.Module:
    """A backward pass of its own with the wrong sign, behind the first layer."""

    def run(layers: Layers, images: Tensor) -> Tensor:
        hidden: Tensor = _Reversed.apply(layers[1](layers[0](images)))  # type: ignore[no-untyped-call]
        return layers[3](layers[2](hidden))

    return _Forward(_layers(image_shape, num_classes), run)


def detached(*, image_shape: Size, num_classes: int) -> nn.Module:
    """Two branches, of which one hands its hidden units on without their gradient for half of the units."""

    def run(layers: Layers, images: Tensor) -> Tensor:
        hidden = layers[2](layers[1](layers[0](images)))
        half = hidden.shape[1] // 2
        return layers[3](torch.cat([hidden[:, :half].detach(), hidden[:, half:]], dim=1))

    return _Forward(_layers(image_shape, num_classes), run)


def unused_parameter(*, image_shape: Size, num_classes: int) -> nn.Module:
    """A layer that the forward pass leaves out."""

    def run(layers: Layers, images: Tensor) -> Tensor:
        return layers[3](layers[2](layers[1](layers[0](images))))

    return _Forward([*_layers(image_shape, num_classes), nn.Linear(32, 32)], run)


def dead_units(*, image_shape: Size, num_classes: int) -> nn.Module:
    """Relu units whose biases keep them at 0 for every image."""
    layers = _layers(image_shape, num_classes, activation=nn.ReLU)
    nn.init.constant_(layers[1].get_parameter("bias"), -50.0)
    return nn.Sequential(*layers)


def saturated(*, image_shape: Size, num_classes: int) -> nn.Module:
    """Sigmoid units with initial weights a hundred times too large."""
    layers = _layers(image_shape, num_classes, activation=nn.Sigmoid)
    with torch.no_grad():
        layers[1].get_parameter("weight").mul_(100.0)
    return nn.Sequential(*layers)


def large_weights(*, image_shape: Size, num_classes: int) -> nn.Module:
    """A last layer with initial weights thirty times too large."""
    layers = _layers(image_shape, num_classes)
    with torch.no_grad():
        layers[3].get_parameter("weight").mul_(30.0)
    return nn.Sequential(*layers)


def constant_output(*, image_shape: Size, num_classes: int) -> nn.Module:
    """Scores that do not depend on the image."""

    def run(layers: Layers, images: Tensor) -> Tensor:
        return layers[3](layers[2](layers[1](0.0 * layers[0](images))))

    return _Forward(_layers(image_shape, num_classes), run)


def bottleneck(*, image_shape: Size, num_classes: int) -> nn.Module:
    """A single hidden unit: too small for ten classes."""
    return nn.Sequential(*_layers(image_shape, num_classes, width=1))


def needs_digits(*, image_shape: Size, num_classes: int) -> nn.Module:
    """Small differences of large numbers, which bfloat16 loses: its products have 8 bits."""

    def run(layers: Layers, images: Tensor) -> Tensor:
        hidden = layers[2](layers[1](layers[0](images)))
        return layers[3](hidden + 300.0) - layers[3](torch.full_like(hidden, 300.0))

    return _Forward(_layers(image_shape, num_classes), run)
