"""Replayed runs of minibatches train as the step itself does, and are captured anew when lanes have moved.

`FrozenReplay` (conftest.py) stands in for the CUDA graph: like a graph it runs the operations again that it has
recorded, and none of the Python around them. What only a GPU can show is in tests/gpu.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from hpsearch.data.resident import ResidentData
from hpsearch.study.settings import ModelSettings, TrainingSettings, TrialSettings
from hpsearch.training.lanes.capture import CapturedStep, CapturedValidation
from hpsearch.training.lanes.cohort import Cohort
from hpsearch.training.lanes.cohort_shape import CohortShape
from hpsearch.training.lanes.stack import LaneKind, LaneStack, TrialTensors
from hpsearch.training.lanes.steps import LaneStep, build_step
from hpsearch.training.networks.build import build_network
from hpsearch.training.networks.network import Network

CPU = torch.device("cpu")
Build = Callable[..., Any]
BATCH = 5


@pytest.fixture
def mlp() -> Network:
    return build_network(ModelSettings(family="mlp", hidden_units=4), (2, 3), 3)


@pytest.fixture
def stack_of(mlp: Network) -> Callable[..., LaneStack]:
    def build(*learning_rates: float) -> LaneStack:
        stack = LaneStack(device=CPU)
        for lane, _ in enumerate(learning_rates):
            stack.insert([(LaneKind(), TrialTensors.fresh(mlp.initial_parameters(seed=lane), {}))])
        set_rates(stack, *learning_rates)
        return stack

    return build


def set_rates(stack: LaneStack, *learning_rates: float) -> None:
    stack.set_rates([TrainingSettings()] * len(learning_rates), learning_rates)


def images_of(num_minibatches: int, seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    num_images = num_minibatches * BATCH
    return torch.rand(num_images, 6, generator=generator), torch.randint(0, 3, (num_images,), generator=generator)


def assert_same(one: LaneStack, other: LaneStack) -> None:
    for name, value in one.parameters.items():
        assert torch.equal(value, other.parameters[name])


@pytest.fixture
def step(mlp: Network) -> LaneStep:
    return build_step(mlp, CPU)


def test_replays_train_on_the_images_and_rates_of_their_call(
    step: LaneStep, stack_of: Callable[..., LaneStack], frozen_replay: Build
) -> None:
    replayed, expected = stack_of(0.5, 0.1), stack_of(0.5, 0.1)
    recorder = frozen_replay(replayed.parameters.values)
    captured = CapturedStep(step=step, capture=recorder)

    for epoch in range(4):
        for stack in (replayed, expected):
            set_rates(stack, 0.5 / (epoch + 1), 0.1)
        run = images_of(6, seed=epoch)
        assert torch.equal(captured.train(replayed, *run, BATCH), step.train(expected, *run, BATCH))

    assert_same(replayed, expected)
    assert (recorder.num_captures, recorder.num_replays) == (1, 3)  # the first call warms up
    assert captured.num_cold == 2


def test_long_stretches_are_cut_into_runs_of_equal_length_and_a_rest(
    step: LaneStep, stack_of: Callable[..., LaneStack], monkeypatch: pytest.MonkeyPatch, frozen_replay: Build
) -> None:
    monkeypatch.setattr("hpsearch.training.lanes.capture.GRAPH_MINIBATCHES", 4)
    replayed, expected = stack_of(0.5), stack_of(0.5)
    recorder = frozen_replay(replayed.parameters.values)
    captured = CapturedStep(step=step, capture=recorder)
    run = images_of(10, seed=1)

    for _ in range(2):
        torch.testing.assert_close(captured.train(replayed, *run, BATCH), step.train(expected, *run, BATCH))

    assert_same(replayed, expected)
    # 4 warms up, 4 is captured, 2 warms up; then 4 and 4 are replayed, 2 is captured.
    assert (recorder.num_captures, recorder.num_replays) == (2, 4)
    assert captured.num_cold == 4


def test_lanes_that_moved_are_captured_anew_and_a_refilled_lane_is_not(
    mlp: Network, step: LaneStep, stack_of: Callable[..., LaneStack], frozen_replay: Build
) -> None:
    stacks = replayed, expected = stack_of(0.5, 0.1), stack_of(0.5, 0.1)
    recorder = frozen_replay(lambda: replayed.parameters.values())
    captured = CapturedStep(step=step, capture=recorder)

    def train() -> None:
        run = images_of(3, seed=recorder.num_replays)
        assert torch.equal(captured.train(replayed, *run, BATCH), step.train(expected, *run, BATCH))
        assert_same(replayed, expected)

    train()
    train()
    assert recorder.num_captures == 1
    for stack in stacks:
        stack.replace(1, mlp.initial_parameters(seed=7), {})
    train()
    assert recorder.num_captures == 1
    for stack in stacks:
        stack.remove([0])
        set_rates(stack, 0.2)
    train()  # warms up again: with other sizes libraries may choose other algorithms
    train()
    assert recorder.num_captures == 2


@pytest.mark.parametrize("penalty", ["lambda_1", "lambda_2"])
def test_a_term_that_no_lane_had_is_captured_when_one_has_it(
    step: LaneStep, stack_of: Callable[..., LaneStack], penalty: str, frozen_replay: Build
) -> None:
    replayed, expected = stack_of(0.5, 0.1), stack_of(0.5, 0.1)
    captured = CapturedStep(step=step, capture=frozen_replay(replayed.parameters.values))

    for index, value in enumerate((0.0, 0.0, 0.01, 0.01)):
        for stack in (replayed, expected):
            stack.set_rates([TrainingSettings(), TrainingSettings(**{penalty: value})], [0.5, 0.1])
        run = images_of(3, seed=index)
        assert torch.equal(captured.train(replayed, *run, BATCH), step.train(expected, *run, BATCH))
        assert_same(replayed, expected)


class Refusal:
    """A `Capture` that fails after it has run the work without effect.

    Args:
        record: another capture.
    """

    def __init__(self, error: Exception, record: Callable[[Callable[[], Tensor]], object]) -> None:
        self.error, self.record, self.num_tried = error, record, 0

    def __call__(self, work: Callable[[], Tensor]) -> Callable[[], Tensor]:
        self.num_tried += 1
        self.record(work)
        raise self.error


def test_what_cannot_be_captured_is_trained_and_validated_without(
    trial: Callable[..., TrialSettings],
    resident: Callable[..., ResidentData],
    frozen_replay: Build,
    stack_tensors: Callable[[LaneStack], list[Tensor]],
    caplog: pytest.LogCaptureFixture,
) -> None:
    refusals: list[Refusal] = []

    def curves(*, is_captured: bool) -> list[Any]:
        cohort = Cohort(CohortShape.of(trial()), resident(), CPU, 4)
        cohort.admit_all({"a": trial(seed=1), "b": trial(seed=2)})
        cohort.train_epoch()  # builds the step
        if is_captured:
            error, record = RuntimeError("planted"), frozen_replay(lambda: stack_tensors(cohort._stack))
            refusals.extend(Refusal(error, record) for _ in range(2))
            cohort._step = CapturedStep(step=cohort._step, capture=refusals[0])
            cohort._captured_validation = CapturedValidation(capture=refusals[1])
        found = [(cohort.train_epoch(), cohort.is_warm) for _ in range(2)]
        cohort.release("a")
        cohort.admit_all({"c": trial(seed=3), "d": trial(seed=4)})  # the lanes move
        found += [(cohort.train_epoch(), cohort.is_warm) for _ in range(2)]
        assert [is_warm for _, is_warm in found] == [not is_captured] * 2 + [True] * 2
        return [{key: report.validations for key, report in reports.items()} for reports, _ in found]

    assert curves(is_captured=True) == curves(is_captured=False)
    assert [refusal.num_tried for refusal in refusals] == [1, 1]
    because = "takes longer, because it cannot be captured as a CUDA graph: planted"
    assert sorted(caplog.messages) == [f"training {because}", f"validation {because}"]


def test_memory_that_runs_out_in_a_capture_is_no_reason_to_do_without(
    step: LaneStep, stack_of: Callable[..., LaneStack], frozen_replay: Build
) -> None:
    stack = stack_of(0.5)
    refusal = Refusal(torch.OutOfMemoryError("CUDA out of memory"), frozen_replay(stack.parameters.values))
    captured = CapturedStep(step=step, capture=refusal)
    captured.train(stack, *images_of(6, seed=1), BATCH)
    for _ in range(2):
        with pytest.raises(torch.OutOfMemoryError):
            captured.train(stack, *images_of(6, seed=1), BATCH)
    assert refusal.num_tried == 2


def test_a_cohort_tells_epochs_that_capture_from_those_that_are_replayed(
    trial: Callable[..., TrialSettings], resident: Callable[..., ResidentData]
) -> None:
    cohort = Cohort(CohortShape.of(trial()), resident(), CPU, 4)
    cohort.admit_all({"a": trial(seed=1), "b": trial(seed=2)})
    cohort.train_epoch()
    cohort._step = CapturedStep(step=cohort._step, capture=lambda work: work)
    cohort._captured_validation = CapturedValidation(capture=lambda work: work)

    def train(num_epochs: int) -> list[bool]:
        found = []
        for _ in range(num_epochs):
            cohort.train_epoch()
            found.append(cohort.is_warm)
        return found

    assert train(4) == [False, False, True, True]
    cohort.release("a")
    cohort.admit("c", trial(seed=3))  # into the free lane
    assert train(1) == [True]
    cohort.release("b")
    assert train(3) == [False, False, True]
