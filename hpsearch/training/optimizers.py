"""SGD, momentum and Adam for one trial (0-d rates) or for lanes (rates [L], parameters [L, ...]), in place.

An update has three parts, so that a gradient need not be stored before it is used. `targets_` returns the tensor to
which each parameter's gradient is added (and decays it). The caller adds `gradient_scale` times the gradient, for
example by an accumulating GEMM. `finish_` turns the targets into new parameters. The state is a dict of tensors; with
lanes the first dimension of each is [L].
Source: docs/sources.md, section 4.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, fields
from typing import final

import torch
from torch import Tensor

from hpsearch.study.registry import OPTIMIZERS
from hpsearch.training.losses import lanes_first
from hpsearch.training.tensors import Tensors


@dataclass(frozen=True, kw_only=True)
class Rates:
    """An epoch's learning rate and the optimizer's other settings, float64: 0-d for one trial, [L] for lanes.

    They are float64 because 1 - 0.999 (Adam's first bias correction) keeps only four digits in float32.
    """

    learning_rate: Tensor
    momentum: Tensor
    beta_1: Tensor
    beta_2: Tensor
    epsilon: Tensor

    def part(self, lanes: slice) -> Rates:
        """The rates of some lanes, as views of the same memory."""
        return Rates(**{number.name: getattr(self, number.name)[lanes] for number in fields(self)})


class Optimizer(ABC):
    """Updates parameters from gradients, in place."""

    @abstractmethod
    def initial_state(self, parameters: Tensors) -> dict[str, Tensor]:
        """One trial's state before its first update."""

    @abstractmethod
    def gradient_scale(self, rates: Rates) -> Tensor:
        """The factor by which a gradient is multiplied before it is added to its target, 0-d or [L] float64."""

    @abstractmethod
    def targets_(self, parameters: Tensors, state: Tensors, rates: Rates) -> Tensors:
        """The tensors to which scaled gradients must be added, by parameter name; may be the parameters themselves."""

    @abstractmethod
    def finish_(self, parameters: Tensors, state: Tensors, rates: Rates, targets: Tensors) -> None:
        """Update the parameters after every target has received its gradient."""


def build_optimizer(name: str) -> Optimizer:
    optimizer: Optimizer = OPTIMIZERS[name].implementation()
    return optimizer


@final
class Sgd(Optimizer):
    """w -= learning_rate * gradient. The target is the weight itself: no gradient is ever stored."""

    def initial_state(self, parameters: Tensors) -> dict[str, Tensor]:
        return {}

    def gradient_scale(self, rates: Rates) -> Tensor:
        return -rates.learning_rate

    def targets_(self, parameters: Tensors, state: Tensors, rates: Rates) -> Tensors:
        return parameters

    def finish_(self, parameters: Tensors, state: Tensors, rates: Rates, targets: Tensors) -> None:
        """Nothing to do: the gradients were added to the parameters."""


@final
class Momentum(Optimizer):
    """Classical (heavy-ball) momentum: v = momentum * v - learning_rate * gradient; w += v.

    torch.optim.SGD keeps the learning rate out of v, which is equivalent while the rate is constant. Here a falling
    rate affects later gradients only, not the accumulated velocity (Sutskever et al. 2013).
    """

    def initial_state(self, parameters: Tensors) -> dict[str, Tensor]:
        return {f"{name}/velocity": torch.zeros_like(parameter) for name, parameter in parameters.items()}

    def gradient_scale(self, rates: Rates) -> Tensor:
        return -rates.learning_rate

    def targets_(self, parameters: Tensors, state: Tensors, rates: Rates) -> Tensors:
        targets = {name: state[f"{name}/velocity"] for name in parameters}
        momentum = rates.momentum.to(_dtype_of(parameters))  # once: these calls take longer than small tensors
        for velocity in targets.values():
            velocity.mul_(lanes_first(momentum, velocity))
        return targets

    def finish_(self, parameters: Tensors, state: Tensors, rates: Rates, targets: Tensors) -> None:
        for name, parameter in parameters.items():
            parameter.add_(targets[name])


@final
class Adam(Optimizer):
    """Adam with bias correction, as in torch.optim.Adam (Kingma & Ba 2015, algorithm 1).

    Every lane counts its own steps, so lanes that were admitted later have larger bias corrections.
    """

    def initial_state(self, parameters: Tensors) -> dict[str, Tensor]:
        state = {}
        for name, parameter in parameters.items():
            state[f"{name}/mean"] = torch.zeros_like(parameter)
            state[f"{name}/square"] = torch.zeros_like(parameter)
        device = next(iter(parameters.values())).device
        state["num_steps"] = torch.zeros((), dtype=torch.float64, device=device)
        return state

    def gradient_scale(self, rates: Rates) -> Tensor:
        return torch.ones_like(rates.learning_rate)

    def targets_(self, parameters: Tensors, state: Tensors, rates: Rates) -> Tensors:
        return {name: torch.zeros_like(parameter) for name, parameter in parameters.items()}

    def finish_(self, parameters: Tensors, state: Tensors, rates: Rates, targets: Tensors) -> None:
        num_steps = state["num_steps"].add_(1.0)
        dtype = _dtype_of(parameters)
        step_size = (-rates.learning_rate / (1.0 - rates.beta_1**num_steps)).to(dtype)
        root_correction = (1.0 - rates.beta_2**num_steps).sqrt().to(dtype)
        mean_weight, square_weight = (1.0 - rates.beta_1).to(dtype), (1.0 - rates.beta_2).to(dtype)
        epsilon = rates.epsilon.to(dtype)
        for name, parameter in parameters.items():
            gradient, mean, square = targets[name], state[f"{name}/mean"], state[f"{name}/square"]
            mean.lerp_(gradient, lanes_first(mean_weight, mean))
            square.lerp_(gradient.square(), lanes_first(square_weight, square))
            denominator = square.sqrt().div_(lanes_first(root_correction, square))
            denominator.add_(lanes_first(epsilon, square))
            parameter.addcmul_(mean / denominator, lanes_first(step_size, parameter))


def _dtype_of(parameters: Tensors) -> torch.dtype:
    return next(iter(parameters.values())).dtype
