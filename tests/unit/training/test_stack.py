"""The lanes' tensors: appended, closed up, and the best of each kept."""

from __future__ import annotations

import math

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from hpsearch.settings import TrainingSettings
from hpsearch.training.stack import LaneStack

CPU = torch.device("cpu")
INF = math.inf


def parameters(value: float) -> dict[str, Tensor]:
    return {"weight": torch.full((2, 3), value), "bias": torch.full((3,), value)}


def state(value: float) -> dict[str, Tensor]:
    return {"weight/velocity": torch.full((2, 3), value), "num_steps": torch.tensor(value)}


def stack_of(*values: float) -> LaneStack:
    stack = LaneStack(device=CPU)
    for value in values:
        stack.append(parameters(value), state(value))
    return stack


def doubles(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


@given(st.lists(st.one_of(st.just("append"), st.integers(0, 4)), max_size=12))
def test_lanes_come_and_go_as_in_a_list(actions: list[str | int]) -> None:
    """Every tensor of the stack keeps the same trials in the same order as a plain list would."""
    stack, expected, next_value = LaneStack(device=CPU), [], 1.0
    for action in actions:
        if action == "append":
            stack.append(parameters(next_value), state(next_value))
            expected.append(next_value)
            next_value += 1
        elif int(action) < len(expected):
            stack.remove(int(action))
            del expected[int(action)]
    for group in (stack.parameters, stack.best_parameters, stack.optimizer_state):
        for values in group.values():
            assert (
                values.flatten(start_dim=min(1, values.dim() - 1))
                .reshape(len(expected), -1)
                .float()
                .mean(dim=1)
                .tolist()
                == expected
                if expected
                else len(values) == 0
            )
    assert all(len(losses) == len(expected) for losses in stack.best_losses.values())


def test_appending_copies_the_trials_tensors() -> None:
    first = parameters(1.0)
    stack = LaneStack(device=CPU)
    stack.append(first, {})
    stack.parameters["weight"].zero_()

    assert first["weight"].eq(1.0).all()
    assert stack.best_parameters["weight"].eq(1.0).all()


def test_the_best_is_the_lowest_zero_one_loss_and_of_equals_the_lowest_nll() -> None:
    stack = stack_of(1.0, 1.0, 1.0, 1.0)
    stack.keep_best(doubles(0.5, 0.5, 0.5, 0.5), doubles(1.0, 1.0, 1.0, 1.0))
    for value in stack.parameters.values():
        value.fill_(2.0)

    #                       better    worse  tie, better  tie, equal
    stack.keep_best(doubles(0.4, 0.6, 0.5, 0.5), doubles(9.0, 0.1, 0.9, 1.0))

    assert stack.best_parameters["bias"].tolist() == [[2.0] * 3, [1.0] * 3, [2.0] * 3, [1.0] * 3]
    assert stack.best_losses["zero_one"].tolist() == [0.4, 0.5, 0.5, 0.5]
    assert stack.best_losses["nll"].tolist() == [9.0, 1.0, 0.9, 1.0]


def test_a_loss_that_is_not_finite_is_never_the_best_and_spoils_nothing() -> None:
    stack = stack_of(1.0, 1.0, 1.0)
    stack.keep_best(doubles(0.9, 0.9, 0.9), doubles(2.0, 2.0, 2.0))
    for value in stack.parameters.values():
        value[:2] = math.nan
        value[2] = 3.0

    stack.keep_best(doubles(0.1, 0.1, 0.1), doubles(math.nan, INF, 1.0))

    assert stack.best_parameters["weight"][:2].eq(1.0).all()
    assert stack.best_parameters["weight"][2].eq(3.0).all()
    assert stack.best_losses["zero_one"].tolist() == [0.9, 0.9, 0.1]


def test_penalties_are_known_to_be_absent_without_asking_the_device() -> None:
    stack = stack_of(1.0, 1.0)
    stack.set_rates([TrainingSettings(), TrainingSettings(lambda_2=0.5)], [0.1, 0.2])

    assert (stack.penalties.has_l1, stack.penalties.has_l2) == (False, True)
    assert stack.penalties.lambda_2.tolist() == [0.0, 0.5]
    assert stack.rates.learning_rate.tolist() == [0.1, 0.2]
