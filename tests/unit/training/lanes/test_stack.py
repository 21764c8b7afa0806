"""The lanes' tensors: inserted, replaced, closed up, and the best of each kept."""

from __future__ import annotations

import math
from bisect import bisect_right

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from hpsearch.search.significance import critical_gains
from hpsearch.study.settings import TrainingSettings
from hpsearch.training.correct_images import ReferenceTest
from hpsearch.training.lanes.stack import LaneKind, LaneStack, TrialTensors

CPU = torch.device("cpu")
INF = math.inf
MOMENTUM = LaneKind("momentum")
KINDS = [LaneKind("adam"), MOMENTUM, LaneKind("momentum", activation="relu"), LaneKind(), LaneKind(is_linear=True)]


def parameters(value: float) -> dict[str, Tensor]:
    return {"weight": torch.full((2, 3), value), "bias": torch.full((3,), value)}


def state(value: float) -> dict[str, Tensor]:
    return {"weight/velocity": torch.full((2, 3), value), "num_steps": torch.tensor(value)}


def earlier(value: float, **correct: list[bool]) -> TrialTensors:
    """What a trial from a checkpoint brings with it."""
    return TrialTensors(
        parameters=parameters(value),
        optimizer_state=state(value),
        best_parameters=parameters(value),
        records={name: torch.tensor(bits) for name, bits in correct.items()},
    )


def fresh(value: float, kind: LaneKind = MOMENTUM) -> TrialTensors:
    return TrialTensors.fresh(parameters(value), state(value) if kind.optimizer != "sgd" else {})


def stack_of(*values: float) -> LaneStack:
    stack = LaneStack(device=CPU)
    for value in values:
        stack.insert([(MOMENTUM, fresh(value))])
    return stack


def doubles(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def keep_best(stack: LaneStack, zero_one: Tensor, nll: Tensor) -> None:
    """Where it does not matter which images are right."""
    stack.keep_best(zero_one, nll, torch.zeros(stack.num_lanes, stack.num_recorded, dtype=torch.bool))


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["insert", "replace", "remove"]),
            st.integers(0, 4),
            st.lists(st.sampled_from(KINDS), min_size=1, max_size=4),
        ),
        max_size=12,
    )
)
def test_lanes_come_and_go_as_in_a_sorted_list(actions: list[tuple[str, int, list[LaneKind]]]) -> None:
    """Every tensor of the stack keeps the same trials in the same order as a plain list would, by kind."""
    stack, expected, next_value = LaneStack(device=CPU), [], 1.0
    for action, lane, kinds in actions:
        if action == "insert":
            values = [next_value + place for place in range(len(kinds))]
            where = stack.insert([(kind, fresh(value, kind)) for kind, value in zip(kinds, values, strict=True)])
            for kind, value in zip(kinds, values, strict=True):  # one after the other
                expected.insert(bisect_right([its for its, _ in expected], kind), (kind, value))
            assert [expected[lane] for lane in where] == list(zip(kinds, values, strict=True))
            next_value = values[-1]
        elif action == "replace" and lane < len(expected):
            keep_best(stack, doubles(*[0.5] * len(expected)), doubles(*[1.0] * len(expected)))
            kind = stack.kinds[lane]
            stack.replace(lane, parameters(next_value), state(next_value) if kind.optimizer != "sgd" else {})
            assert stack.best_losses["loss"][lane].isinf()
            expected[lane] = kind, next_value
        elif action == "remove" and lane < len(expected):
            stack.remove([lane])
            del expected[lane]
        next_value += 1
        assert stack.num_lanes == len(expected)
    values = [value for _, value in expected]
    for group in (stack.parameters, stack.best_parameters):
        assert all(_rows(tensor) == values for tensor in group.values())
    for optimizer, group in stack.optimizer_states.items():
        its = [value for kind, value in expected if kind.optimizer == optimizer]
        assert all(_rows(tensor) == its for tensor in group.values())
        assert bool(group) == (optimizer != "sgd")
    assert all(len(losses) == len(expected) for losses in stack.best_losses.values())
    for lane, copy in enumerate(stack.copied(range(len(expected)))):
        assert {tensor.float().mean().item() for name, tensor in copy.named().items() if "correct" not in name} == {
            values[lane]
        }
    start, stop = len(expected) // 3, len(expected) - len(expected) // 3
    if start < stop:
        part = stack.part(slice(start, stop))
        assert all(_rows(tensor) == values[start:stop] for tensor in part.parameters.values())
        for optimizer, group in part.optimizer_states.items():
            its = [value for kind, value in expected[start:stop] if kind.optimizer == optimizer]
            assert all(_rows(tensor) == its for tensor in group.values())


def _rows(values: Tensor) -> list[float]:
    return [row.float().mean().item() for row in values]


def test_inserting_copies_the_trials_tensors() -> None:
    first = parameters(1.0)
    stack = LaneStack(device=CPU)
    stack.insert([(LaneKind(), TrialTensors.fresh(first, {}))])
    stack.parameters["weight"].zero_()

    assert first["weight"].eq(1.0).all()
    assert stack.best_parameters["weight"].eq(1.0).all()


def test_the_best_is_the_lowest_zero_one_loss_and_of_equals_the_lowest_nll() -> None:
    stack = stack_of(1.0, 1.0, 1.0, 1.0)
    keep_best(stack, doubles(0.5, 0.5, 0.5, 0.5), doubles(1.0, 1.0, 1.0, 1.0))
    for value in stack.parameters.values():
        value.fill_(2.0)

    #                       better    worse  tie, better  tie, equal
    keep_best(stack, doubles(0.4, 0.6, 0.5, 0.5), doubles(9.0, 0.1, 0.9, 1.0))

    assert stack.best_parameters["bias"].tolist() == [[2.0] * 3, [1.0] * 3, [2.0] * 3, [1.0] * 3]
    assert stack.best_losses["loss"].tolist() == [0.4, 0.5, 0.5, 0.5]
    assert stack.best_losses["nll"].tolist() == [9.0, 1.0, 0.9, 1.0]


def test_a_loss_that_is_not_finite_is_never_the_best_and_spoils_nothing() -> None:
    stack = stack_of(1.0, 1.0, 1.0)
    keep_best(stack, doubles(0.9, 0.9, 0.9), doubles(2.0, 2.0, 2.0))
    for value in stack.parameters.values():
        value[:2] = math.nan
        value[2] = 3.0

    keep_best(stack, doubles(0.1, 0.1, 0.1), doubles(math.nan, INF, 1.0))

    assert stack.best_parameters["weight"][:2].eq(1.0).all()
    assert stack.best_parameters["weight"][2].eq(3.0).all()
    assert stack.best_losses["loss"].tolist() == [0.9, 0.9, 0.1]


def test_penalties_are_known_to_be_absent_without_asking_the_device() -> None:
    stack = stack_of(1.0, 1.0)
    stack.set_rates([TrainingSettings(), TrainingSettings(lambda_2=0.5)], [0.1, 0.2])

    assert (stack.penalties.has_l1, stack.penalties.has_l2) == (False, True)
    assert stack.penalties.lambda_2.tolist() == [0.0, 0.5]
    assert stack.rates.learning_rate.tolist() == [0.1, 0.2]


def test_a_part_is_the_same_memory() -> None:
    stack = LaneStack(device=CPU)
    for value, kind in ((1.0, LaneKind()), (2.0, LaneKind(is_linear=True)), (3.0, LaneKind(is_linear=True))):
        stack.insert([(kind, TrialTensors.fresh(parameters(value), {}))])
    stack.set_rates([TrainingSettings(lambda_1=value) for value in (0.5, 0.0, 0.0)], [0.1, 0.2, 0.3])

    part = stack.part(slice(0, 2))
    part.parameters["weight"].zero_()

    assert stack.parameters["weight"].amax(dim=(1, 2)).tolist() == [0.0, 0.0, 3.0]
    assert (part.num_lanes, part.linear) == (2, slice(1, 2))
    assert part.rates.learning_rate.tolist() == [0.1, 0.2]
    assert part.penalties.lambda_1.tolist() == [0.5, 0.0]
    assert stack.part(slice(1, 3)).penalties.has_l1 is False  # known without asking the device


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
    stack.remove([0])
    assert stack.version > version


def test_a_best_from_earlier_is_beaten_by_a_better_one_only() -> None:
    stack = stack_of(1.0, 2.0)
    version, place = stack.version, stack.best_parameters["weight"].data_ptr()
    stack.set_best(1, earlier(9.0), loss=0.25, nll=0.5)

    assert (stack.version, stack.best_parameters["weight"].data_ptr()) == (version, place)
    assert stack.best_parameters["weight"].amax(dim=(1, 2)).tolist() == [1.0, 9.0]
    assert stack.parameters["weight"].amax(dim=(1, 2)).tolist() == [1.0, 2.0]
    keep_best(stack, doubles(0.5, 0.25), doubles(1.0, 0.5))
    assert stack.best_parameters["weight"].amax(dim=(1, 2)).tolist() == [1.0, 9.0]
    assert (stack.best_losses["loss"].tolist(), stack.best_losses["nll"].tolist()) == ([0.5, 0.25], [1.0, 0.5])
    keep_best(stack, doubles(0.5, 0.25), doubles(1.0, 0.25))
    assert stack.best_parameters["weight"].amax(dim=(1, 2)).tolist() == [1.0, 2.0]


def test_a_copy_of_lanes_stands_in_the_order_asked_for_and_in_memory_of_its_own() -> None:
    stack = stack_of(1.0, 2.0, 3.0)
    copies = stack.copied([2, 0])
    for tensors in (stack.parameters, stack.optimizer_states["momentum"], stack.best_parameters):
        for tensor in tensors.values():
            tensor.zero_()

    named = copies[0].named()
    assert named.keys() == {
        "parameters/weight",
        "parameters/bias",
        "optimizer/weight/velocity",
        "optimizer/num_steps",
        "best/weight",
        "best/bias",
        "correct/best",
    }
    assert named.pop("correct/best").shape == (0,)
    assert all(tensor.amax().item() == 3.0 for tensor in named.values())
    assert all(tensor.eq(1.0).all() for name, tensor in copies[1].named().items())
    assert stack.copied([]) == []


# Which images are right

FIVE_OF_FIVE = ReferenceTest(level=1 / 32, critical_gains=critical_gains(8, 1 / 32))


def with_reference(num_lanes: int = 1, num_images: int = 8) -> LaneStack:
    stack = LaneStack(device=CPU, num_recorded=num_images, critical_gains=FIVE_OF_FIVE.table(CPU))
    for _ in range(num_lanes):
        stack.insert([(LaneKind(), TrialTensors.fresh(parameters(1.0), {}))])
    return stack


def bits(*rows: str) -> Tensor:
    return torch.tensor([[bit == "1" for bit in row] for row in rows])


def look(stack: LaneStack, *rows: str, nll: float = 1.0) -> tuple[list[float], list[float]]:
    """Validate with these images right; returns what each lane has gained and lost."""
    correct = bits(*rows)
    zero_one = 1 - correct.double().mean(dim=1)
    gained, lost = stack.keep_best(zero_one, torch.full_like(zero_one, nll), correct)
    return gained.tolist(), lost.tolist()


def test_what_is_right_at_the_best_validation_is_kept_with_it() -> None:
    stack = LaneStack(device=CPU, num_recorded=4)
    for _ in range(3):
        stack.insert([(LaneKind(), TrialTensors.fresh(parameters(1.0), {}))])
    assert stack.keep_best(doubles(0.5, 0.5, 0.5), doubles(1, 1, 1), bits("1100", "1100", "1100")) == ()
    stack.keep_best(doubles(0.25, 0.5, 0.5), doubles(9, 0.5, 1), bits("0111", "1010", "0011"))

    assert torch.equal(stack.records["best"], bits("0111", "1010", "1100"))
    assert stack.records.keys() == {"best"}  # no rule asks for a reference, and nobody pays for it
    stack.remove([0])
    assert torch.equal(stack.records["best"], bits("1010", "1100"))
    stack.replace(1, parameters(2.0), {})
    assert torch.equal(stack.records["best"], bits("1010", "0000"))


def test_the_reference_is_the_last_best_that_was_significantly_better_than_the_one_before() -> None:
    stack = with_reference()
    assert look(stack, "10000000") == ([1.0], [0.0])  # the first is the reference in any case
    assert look(stack, "11110000") == ([3.0], [0.0])  # a new best, but 3 of 3 may be chance
    assert torch.equal(stack.records["best"], bits("11110000"))
    assert look(stack, "01111110") == ([6.0], [1.0])  # against the first: 6 of 7 is 0.0625, and not enough
    assert look(stack, "11111110") == ([6.0], [0.0])  # 6 of 6 is
    assert look(stack, "11111111") == ([1.0], [0.0])  # against the new one
    assert look(stack, "00000000") == ([0.0], [7.0])


def test_a_tie_moves_no_reference_and_a_loss_that_is_not_finite_neither() -> None:
    stack = with_reference()
    look(stack, "10000000")
    assert look(stack, "11111110", nll=INF) == ([6.0], [0.0])
    assert look(stack, "11111110", nll=1.0) == ([6.0], [0.0])  # so the reference is still the first
    assert look(stack, "11111110", nll=0.5) == ([0.0], [0.0])
    assert look(stack, "01111111", nll=0.25) == ([1.0], [1.0])  # the best by its NLL, but no new best to the rule
    assert torch.equal(stack.records["best"], bits("01111111"))
    assert torch.equal(stack.records["reference"], bits("11111110"))


def test_each_lane_has_a_reference_of_its_own_wherever_it_moves() -> None:
    stack = with_reference(num_lanes=3)
    version, place = stack.version, stack.records["reference"].data_ptr()
    look(stack, "10000000", "00000001", "11000000")
    stack.replace(0, parameters(2.0), {})
    stack.set_best(1, earlier(9.0, best=[True] * 8, reference=[False, True] * 4), loss=0.0, nll=0.5)

    assert (stack.version, stack.records["reference"].data_ptr()) == (version, place)
    assert look(stack, "00000001", "10101010", "11111111") == ([1.0, 4.0, 6.0], [0.0, 4.0, 0.0])
    stack.remove([0])
    assert look(stack, "01010101", "11111111") == ([0.0, 0.0], [0.0, 0.0])
    part = stack.part(slice(1, 2))
    assert torch.equal(part.records["reference"], bits("11111111"))
    assert torch.equal(stack.copied([1])[0].records["reference"], bits("11111111")[0])


def test_an_optimizer_without_lanes_holds_no_memory() -> None:
    stack = stack_of(1.0, 2.0)
    stack.insert([(LaneKind(), fresh(3.0, LaneKind()))])
    stack.remove([lane for lane, kind in enumerate(stack.kinds) if kind == MOMENTUM])
    assert [value.untyped_storage().nbytes() for value in stack.optimizer_states["momentum"].values()] == [0, 0]
    stack.insert([(MOMENTUM, fresh(4.0))])
    assert [len(value) for value in stack.optimizer_states["momentum"].values()] == [1, 1]
