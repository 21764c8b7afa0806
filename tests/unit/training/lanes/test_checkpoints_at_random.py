"""Random studies on two workers, whose trials are interrupted, killed and taken up again wherever there is room.

Whatever happens to a trial, its curve and its best parameters are those of the uninterrupted one. All of it in
float64, so that a difference is an error, and with graphs replayed as a GPU would (`FrozenReplay` in conftest.py).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from benchmarks.reference_loop import train_trial
from hpsearch.data.resident import ResidentData
from hpsearch.epoch_report import EpochReport
from hpsearch.search.significance import critical_gains
from hpsearch.study.settings import TrialSettings
from hpsearch.training.correct_images import ReferenceTest
from hpsearch.training.lanes import steps as lane_steps
from hpsearch.training.lanes.capture import CapturedStep, CapturedValidation
from hpsearch.training.lanes.checkpoint import TrialCheckpoint
from hpsearch.training.lanes.cohort import Cohort
from hpsearch.training.lanes.cohort_shape import CohortShape

CPU = torch.device("cpu")
RATES = {"sgd": 0.1, "momentum": 0.03, "adam": 0.01}
NUM_TRIALS = 4
Trial = Callable[..., TrialSettings]

shapes = st.fixed_dictionaries(
    {
        "family": st.sampled_from(["mlp", "mlp", "logistic", "cnn"]),
        "activation": st.sampled_from(["tanh", "sigmoid", "relu"]),
        "shuffle": st.booleans(),
        "batch_size": st.sampled_from([10, 20]),
    }
)
points = st.fixed_dictionaries(
    {
        "optimizer": st.sampled_from(["sgd", "momentum", "adam"]),
        "lambda_1": st.sampled_from([0.0, 1e-4]),
        "lambda_2": st.sampled_from([0.0, 1e-3]),
        "schedule": st.sampled_from(["constant", "inverse-time", "exponential", "step", "plateau"]),
        "hidden_units": st.sampled_from([3, 7, 20, 32]),
        "seed": st.integers(0, 99),
    }
)
# Who does it, what, and to which trial.
events = st.tuples(
    st.integers(0, 1),
    st.sampled_from(["take", "take", "interrupt", "save", "kill", "train", "train"]),
    st.integers(0, 3),
)


class Service:
    """Two workers, and what they have saved of each trial."""

    def __init__(self, trials: list[TrialSettings], workers: list[Cohort]) -> None:
        self.trials = trials
        self.workers = workers
        self.saved: dict[int, bytes] = {}
        self.curves: list[list[EpochReport]] = [[] for _ in trials]
        self.bests: dict[int, tuple[dict[str, np.ndarray], np.ndarray]] = {}

    def happen(self, worker: Cohort, event: str, trial: int) -> None:
        if event == "train":
            for key, report in worker.train_epoch().items():
                self.curves[int(str(key))].append(report)
                self.bests[int(str(key))] = worker.best_parameters(key), worker.best_record(key)
        elif event == "take" and not any(trial in other.keys for other in self.workers):
            self.take(worker, trial)
        elif event in ("interrupt", "save") and trial in worker.keys:
            # All of the worker's trials are saved at once, and the one is given up.
            for key, checkpoint in worker.checkpoint(worker.keys).fetch_each():
                self.saved[int(str(key))] = checkpoint.to_bytes()
            if event == "interrupt":
                worker.release(trial)
        elif event == "kill" and trial in worker.keys:
            worker.release(trial)

    def take(self, worker: Cohort, trial: int) -> None:
        checkpoint = TrialCheckpoint.from_bytes(self.saved[trial]) if trial in self.saved else None
        worker.admit(trial, self.trials[trial], checkpoint)
        # What came after the last checkpoint is trained again.
        del self.curves[trial][0 if checkpoint is None else checkpoint.progress.num_epochs :]


@pytest.fixture(scope="session")
def data(resident: Callable[..., ResidentData]) -> ResidentData:
    return resident()


# The fixtures hold nothing that an example could leave behind.
@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(
    shape=shapes,
    own=st.lists(points, min_size=NUM_TRIALS, max_size=NUM_TRIALS),
    happenings=st.lists(events, min_size=20, max_size=40),
)
def test_every_trial_has_the_curve_of_an_uninterrupted_one(
    data: ResidentData,
    trial: Trial,
    frozen_replay: Callable[..., Any],
    stack_tensors: Callable[..., list[Tensor]],
    shape: dict[str, Any],
    own: list[dict[str, Any]],
    happenings: list[tuple[int, str, int]],
) -> None:
    common = {**shape, "schedule_patience": 1, "schedule_every": 2}
    if shape["family"] == "logistic":  # whose cohorts know no widths
        own = [{**point, "hidden_units": 1} for point in own]
    trials = [trial(**common, **point, learning_rate=RATES[point["optimizer"]]) for point in own]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("hpsearch.training.lanes.capture.GRAPH_MINIBATCHES", 3)
        patch.setattr("hpsearch.training.lanes.dense_step.LEAST_OUTPUTS_PER_ROW", 0)
        patch.setattr("hpsearch.training.lanes.dense_step.LEAST_PIXELS_PER_ROW", 0)
        patch.setitem(lane_steps.BLOCK_ROWS, "cpu", 40)
        service = Service(trials, _captured_cohorts(patch, trials[0], data, frozen_replay, stack_tensors))
        for worker, event, index in happenings:
            service.happen(service.workers[worker], event, index)
        last = service.workers[0]
        for index in range(NUM_TRIALS):  # and at the end, all of them go on together
            for worker in service.workers:
                if index in worker.keys:
                    service.happen(worker, "interrupt", index)
            service.take(last, index)
        service.happen(last, "train", 0)

    for index, curve in enumerate(service.curves):
        _assert_uninterrupted(trials[index], data, curve, service.bests[index])


def _captured_cohorts(
    patch: pytest.MonkeyPatch,
    settings: TrialSettings,
    data: ResidentData,
    frozen_replay: Callable[..., Any],
    stack_tensors: Callable[..., list[Tensor]],
) -> list[Cohort]:
    """Two, whose steps and validations are replayed."""
    cohorts: list[Cohort] = []

    def state() -> list[Tensor]:
        stacks = [cohort._stack for cohort in cohorts]
        return [tensor for stack in stacks for tensor in stack_tensors(stack)]

    def captured(*arguments: Any) -> CapturedStep:
        step = lane_steps.build_step(*arguments)
        if isinstance(step, lane_steps.AutogradStep):  # as on a GPU: all lanes at once
            step = lane_steps.AutogradStep(network=step.network)
        return CapturedStep(step=step, capture=frozen_replay(state))

    patch.setattr("hpsearch.training.lanes.cohort.build_step", captured)
    for _ in range(2):
        cohorts.append(Cohort(CohortShape.of(settings), data, CPU, 4, _reference_test(data), dtype=torch.float64))
        cohorts[-1]._captured_validation = CapturedValidation(capture=frozen_replay(state))
    return cohorts


def _reference_test(data: ResidentData) -> ReferenceTest:
    return ReferenceTest(level=0.05, critical_gains=critical_gains(len(data.validation_labels), 0.05))


def _assert_uninterrupted(
    settings: TrialSettings,
    data: ResidentData,
    curve: list[EpochReport],
    best: tuple[dict[str, np.ndarray], np.ndarray],
) -> None:
    expected = train_trial(
        settings,
        data,
        device=CPU,
        validations_every=4,
        should_stop=lambda report: report.epoch >= len(curve),
        reference_test=_reference_test(data),
        dtype=torch.float64,
    )
    assert [report.epoch for report in curve] == [report.epoch for report in expected.reports]
    for report, other in zip(curve, expected.reports, strict=True):
        assert report.learning_rate == other.learning_rate
        assert report.train_nll == pytest.approx(other.train_nll, rel=1e-6)
        assert [v.iteration for v in report.validations] == [v.iteration for v in other.validations]
        assert [v.loss for v in report.validations] == [v.loss for v in other.validations]
        assert [v.nll for v in report.validations] == pytest.approx([v.nll for v in other.validations], rel=1e-6)
        assert [(v.gained, v.lost) for v in report.validations] == [(v.gained, v.lost) for v in other.validations]
    parameters, correct = best
    assert np.array_equal(correct, expected.best_correct)
    for name, value in parameters.items():
        np.testing.assert_allclose(value, expected.best_parameters[name], rtol=1e-5, atol=1e-8)
