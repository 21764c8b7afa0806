"""Optimizers against torch.optim, for one trial and for lanes with rates of their own."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from benchmarks.reference_loop import rates_of, update_
from hpsearch.study.settings import TrainingSettings
from hpsearch.training.lanes.stack import LaneStack
from hpsearch.training.optimizers import Rates, build_optimizer

CPU = torch.device("cpu")
NUM_STEPS = 12

TorchOptimizer = Callable[[list[Tensor], TrainingSettings], torch.optim.Optimizer]
TORCH_OPTIMIZERS: dict[str, TorchOptimizer] = {
    "sgd": lambda parameters, s: torch.optim.SGD(parameters, lr=s.learning_rate),
    "momentum": lambda parameters, s: torch.optim.SGD(parameters, lr=s.learning_rate, momentum=s.momentum),
    "adam": lambda parameters, s: torch.optim.Adam(
        parameters, lr=s.learning_rate, betas=(s.beta_1, s.beta_2), eps=s.epsilon
    ),
}
LANES = [
    {"learning_rate": 0.1},
    {"learning_rate": 0.003, "momentum": 0.5, "beta_1": 0.8, "beta_2": 0.99, "epsilon": 1e-3},
    {"learning_rate": 1.5, "momentum": 0.0, "beta_1": 0.0, "beta_2": 0.5, "epsilon": 1e-10},
]


def parameters_and_gradients(seed: int, dtype: torch.dtype) -> tuple[dict[str, Tensor], list[dict[str, Tensor]]]:
    generator = torch.Generator().manual_seed(seed)

    def draw() -> dict[str, Tensor]:
        return {
            "weight": torch.randn(4, 3, generator=generator, dtype=dtype),
            "bias": torch.randn(3, generator=generator, dtype=dtype),
        }

    return draw(), [draw() for _ in range(NUM_STEPS)]


def torch_result(
    name: str, settings: TrainingSettings, start: dict[str, Tensor], gradients: list[dict[str, Tensor]]
) -> dict[str, Tensor]:
    parameters = {key: value.clone().requires_grad_() for key, value in start.items()}
    optimizer = TORCH_OPTIMIZERS[name](list(parameters.values()), settings)
    for step in gradients:
        for key, parameter in parameters.items():
            parameter.grad = step[key].clone()
        optimizer.step()
    return {key: value.detach() for key, value in parameters.items()}


def lane_rates(settings: list[TrainingSettings], learning_rates: list[float]) -> Rates:
    stack = LaneStack(device=CPU)
    stack.set_rates(settings, learning_rates)
    return stack.rates


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 2e-6)])
@pytest.mark.parametrize("lane", range(len(LANES)))
@pytest.mark.parametrize("name", list(TORCH_OPTIMIZERS))
def test_one_trial_is_updated_as_by_torch_optim(name: str, lane: int, dtype: torch.dtype, tolerance: float) -> None:
    settings = TrainingSettings(optimizer=name, **LANES[lane])
    start, gradients = parameters_and_gradients(lane, dtype)
    expected = torch_result(name, settings, start, gradients)

    optimizer, rates = build_optimizer(name), rates_of(settings, settings.learning_rate, CPU)
    parameters = {key: value.clone() for key, value in start.items()}
    state = optimizer.initial_state(parameters)
    for step in gradients:
        update_(optimizer, parameters, step, state, rates)

    for key, value in parameters.items():
        torch.testing.assert_close(value, expected[key], rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("name", list(TORCH_OPTIMIZERS))
def test_lanes_are_updated_each_as_by_torch_optim_with_its_own_rates(name: str) -> None:
    settings = [TrainingSettings(optimizer=name, **lane) for lane in LANES]
    starts, gradients = zip(*(parameters_and_gradients(lane, torch.float64) for lane in range(3)), strict=True)
    optimizer = build_optimizer(name)
    rates = lane_rates(settings, [s.learning_rate for s in settings])
    parameters = {key: torch.stack([start[key] for start in starts]) for key in starts[0]}
    states = [optimizer.initial_state(start) for start in starts]
    state = {key: torch.stack([one[key] for one in states]) for key in states[0]}

    for step in range(NUM_STEPS):
        stacked = {key: torch.stack([lane[step][key] for lane in gradients]) for key in parameters}
        update_(optimizer, parameters, stacked, state, rates)

    for lane in range(3):
        expected = torch_result(name, settings[lane], starts[lane], gradients[lane])
        for key, value in parameters.items():
            torch.testing.assert_close(value[lane], expected[key], rtol=1e-12, atol=1e-12)


def test_momentum_keeps_the_velocity_when_the_rate_falls() -> None:
    """v = m v - lr g: gradients that were gathered at the old rate keep it."""
    optimizer = build_optimizer("momentum")
    parameters = {"w": torch.zeros(1, dtype=torch.float64)}
    state = optimizer.initial_state(parameters)
    settings = TrainingSettings(optimizer="momentum", momentum=0.5)
    one = {"w": torch.ones(1, dtype=torch.float64)}

    update_(optimizer, parameters, one, state, rates_of(settings, 1.0, CPU))  # v = -1
    update_(optimizer, parameters, one, state, rates_of(settings, 0.1, CPU))  # v = -0.5 - 0.1

    assert float(parameters["w"]) == pytest.approx(-1.6, rel=1e-15)


def test_adams_lanes_count_their_own_steps() -> None:
    """A lane that joins later has the bias correction of its own first step, not of its neighbours' third."""
    optimizer = build_optimizer("adam")
    settings = TrainingSettings(optimizer="adam")
    start, gradients = parameters_and_gradients(0, torch.float64)
    alone = {key: value.clone() for key, value in start.items()}
    update_(optimizer, alone, gradients[0], optimizer.initial_state(alone), rates_of(settings, 0.01, CPU))

    stacked = {key: torch.stack([value, value]) for key, value in start.items()}
    one_state = optimizer.initial_state(start)
    state = {key: torch.stack([value, value]) for key, value in one_state.items()}
    state["num_steps"][0] = 2.0
    both = {key: torch.stack([value, value]) for key, value in gradients[0].items()}
    update_(optimizer, stacked, both, state, lane_rates([settings] * 2, [0.01] * 2))

    assert state["num_steps"].tolist() == [3.0, 1.0]
    for key, value in stacked.items():
        torch.testing.assert_close(value[1], alone[key], rtol=1e-14, atol=0)
        assert not torch.equal(value[0], value[1])


def test_sgds_target_is_the_weight_itself() -> None:
    """No gradient is ever stored: what makes the lanes' update cheap."""
    parameters = {"w": torch.ones(2, 3)}

    targets = build_optimizer("sgd").targets_(parameters, {}, rates_of(TrainingSettings(), 0.1, CPU))

    assert targets["w"] is parameters["w"]
