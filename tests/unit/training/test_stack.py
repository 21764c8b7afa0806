"""The lanes' tensors: inserted, replaced, closed up, and the best of each kept."""

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
        stack.insert(stack.num_lanes, parameters(value), state(value))
    return stack


def doubles(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


@given(st.lists(st.tuples(st.sampled_from(["insert", "replace", "remove"]), st.integers(0, 4)), max_size=12))
def test_lanes_come_and_go_as_in_a_list(actions: list[tuple[str, int]]) -> None:
    """Every tensor of the stack keeps the same trials in the same order as a plain list would."""
    stack, expected, next_value = LaneStack(device=CPU), [], 1.0
    for action, lane in actions:
        if action == "insert" and lane <= len(expected):
            stack.insert(lane, parameters(next_value), state(next_value))
            expected.insert(lane, next_value)
        elif action == "replace" and lane < len(expected):
            stack.keep_best(doubles(*[0.5] * len(expected)), doubles(*[1.0] * len(expected)))
            stack.replace(lane, parameters(next_value), state(next_value))
            assert stack.best_losses["zero_one"][lane].isinf()
            expected[lane] = next_value
        elif action == "remove" and lane < len(expected):
            stack.remove(lane)
            del expected[lane]
        next_value += 1
        assert stack.num_lanes == len(expected)
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


def test_inserting_copies_the_trials_tensors() -> None:
    first = parameters(1.0)
    stack = LaneStack(device=CPU)
    stack.insert(0, first, {})
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


def test_a_part_is_the_same_memory() -> None:
    stack = stack_of(1.0, 2.0, 3.0)
    stack.num_linear = 2
    stack.set_rates([TrainingSettings(lambda_1=value) for value in (0.0, 0.0, 0.5)], [0.1, 0.2, 0.3])

    part = stack.part(1, 3)
    part.parameters["weight"].zero_()

    assert stack.parameters["weight"].amax(dim=(1, 2)).tolist() == [1.0, 0.0, 0.0]
    assert (part.num_lanes, part.num_linear) == (2, 1)
    assert part.rates.learning_rate.tolist() == [0.2, 0.3]
    assert part.penalties.lambda_1.tolist() == [0.0, 0.5]


def test_tensors_stay_where_they_are_while_the_number_of_lanes_does() -> None:
    """What a captured graph relies on: the version tells of every move."""
    stack = stack_of(1.0, 2.0)
    stack.set_rates([TrainingSettings()] * 2, [0.1, 0.2])
    before = stack.version, stack.rates.learning_rate.data_ptr(), stack.parameters["weight"].data_ptr()

    stack.replace(0, parameters(5.0), state(5.0))
    stack.set_rates([TrainingSettings()] * 2, [0.3, 0.2])

    assert (stack.version, stack.rates.learning_rate.data_ptr(), stack.parameters["weight"].data_ptr()) == before
    stack.set_rates([TrainingSettings(lambda_2=0.1)] * 2, [0.3, 0.2])
    assert stack.version > before[0]  # another operation: a captured step would leave it out
    version = stack.version
    stack.remove(0)
    assert stack.version > version


def test_a_best_from_earlier_is_beaten_by_a_better_one_only() -> None:
    stack = stack_of(1.0, 2.0)
    version, place = stack.version, stack.best_parameters["weight"].data_ptr()
    stack.set_best(1, parameters(9.0), zero_one=0.25, nll=0.5)

    assert (stack.version, stack.best_parameters["weight"].data_ptr()) == (version, place)
    assert stack.best_parameters["weight"].amax(dim=(1, 2)).tolist() == [1.0, 9.0]
    assert stack.parameters["weight"].amax(dim=(1, 2)).tolist() == [1.0, 2.0]
    stack.keep_best(doubles(0.5, 0.25), doubles(1.0, 0.5))
    assert stack.best_parameters["weight"].amax(dim=(1, 2)).tolist() == [1.0, 9.0]
    assert (stack.best_losses["zero_one"].tolist(), stack.best_losses["nll"].tolist()) == ([0.5, 0.25], [1.0, 0.5])
    stack.keep_best(doubles(0.5, 0.25), doubles(1.0, 0.25))
    assert stack.best_parameters["weight"].amax(dim=(1, 2)).tolist() == [1.0, 2.0]


def test_a_copy_of_lanes_stands_in_the_order_asked_for_and_in_memory_of_its_own() -> None:
    stack = stack_of(1.0, 2.0, 3.0)
    copies = stack.copied([2, 0])
    for tensors in (stack.parameters, stack.optimizer_state, stack.best_parameters):
        for tensor in tensors.values():
            tensor.zero_()

    named = copies.named()
    assert named.keys() == {
        "parameters/weight",
        "parameters/bias",
        "optimizer/weight/velocity",
        "optimizer/num_steps",
        "best/weight",
        "best/bias",
    }
    assert all(tensor.reshape(2, -1).amax(dim=1).tolist() == [3.0, 1.0] for tensor in named.values())
    assert named["optimizer/num_steps"].shape == (2,)
    assert stack.copied([]).named() == {}
