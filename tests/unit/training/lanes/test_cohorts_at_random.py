"""Random studies: whatever comes, goes and is captured, every trial has the curve that it would have had alone.

All of it in float64, so that a difference is an error, and with graphs replayed as a GPU would (`FrozenReplay` in
conftest.py).
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from benchmarks.reference_loop import TrialResult, train_trial
from hpsearch.data.resident import ResidentData
from hpsearch.epoch_report import EpochReport
from hpsearch.search.significance import critical_gains
from hpsearch.study.settings import TrialSettings
from hpsearch.training.correct_images import ReferenceTest
from hpsearch.training.lanes import steps as lane_steps
from hpsearch.training.lanes.capture import CapturedStep, CapturedValidation
from hpsearch.training.lanes.cohort import Cohort
from hpsearch.training.lanes.cohort_shape import CohortShape

CPU = torch.device("cpu")
CHUNK_BYTES = 45 * (256 * 4 + 8)
RATES = {"sgd": 0.1, "momentum": 0.03, "adam": 0.01}
Trial = Callable[..., TrialSettings]


class RandomStudy:
    """What a seed makes of a study: what its trials share, and a trial after the other."""

    def __init__(self, seed: int, trial: Trial) -> None:
        self.random = random.Random(seed)
        self._trial = trial
        choose = self.random.choice
        self.family = choose(["mlp", "mlp", "logistic", "cnn"])
        self._common = {
            "activation": choose(["tanh", "sigmoid", "relu"]),
            "shuffle": choose([False, False, True]),
            "batch_size": choose([1, 5, 10, 20]),
        }
        self.max_resident_bytes = choose([None, None, CHUNK_BYTES])
        self.validations_every = choose([1, 3, 4, 10**9])
        self.graph_minibatches = choose([2, 3, 50])
        self.block_rows = choose([10, 40, 100])

    def next_trial(self) -> TrialSettings:
        choose = self.random.choice
        optimizer = choose(["sgd", "sgd", "sgd", "momentum", "adam"])
        own = {
            "optimizer": optimizer,
            "learning_rate": RATES[optimizer] * choose([1, 0.3]),
            # Adam makes a whole step of a weight's sign, which near 0 hangs on rounding: curves part in the end.
            "lambda_1": choose([0.0, 0.0, 1e-4 if optimizer != "adam" else 0.0]),
            "lambda_2": choose([0.0, 0.0, 1e-3, 0.3]),
            "momentum": choose([0.5, 0.9]),
            "schedule": choose(["constant", "inverse-time", "exponential", "step"]),
            "schedule_every": 1,
            "seed": self.random.randrange(2),  # shuffled lanes of one seed share their minibatches
            "study_seed": self.random.randrange(2),
        }
        if self.family == "mlp":
            own |= {"activation": choose(["tanh", "sigmoid", "relu"])}
        if self.family != "logistic":
            own |= {"hidden_units": choose([3, 7, 20, 32]), "initialization": choose(["glorot", "lecun"])}
        return self._trial(self.family, **{**self._common, **own})


@pytest.mark.parametrize("seed", range(16))
def test_every_trial_of_a_random_study_has_its_own_curve(
    seed: int,
    resident: Callable[..., ResidentData],
    trial: Trial,
    frozen_replay: Callable[..., Any],
    stack_tensors: Callable[..., list[Tensor]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    study = RandomStudy(seed, trial)
    monkeypatch.setattr("hpsearch.training.lanes.capture.GRAPH_MINIBATCHES", study.graph_minibatches)
    monkeypatch.setattr("hpsearch.training.lanes.dense_step.LEAST_OUTPUTS_PER_ROW", 0)
    monkeypatch.setattr("hpsearch.training.lanes.dense_step.LEAST_PIXELS_PER_ROW", 0)
    monkeypatch.setitem(lane_steps.BLOCK_ROWS, "cpu", study.block_rows)
    cohort: Cohort

    def captured(*arguments: object) -> CapturedStep:
        step = lane_steps.build_step(*arguments)
        if isinstance(step, lane_steps.AutogradStep):  # as on a GPU: all lanes at once
            step = lane_steps.AutogradStep(network=step.network)
        return CapturedStep(
            step=step,
            capture=frozen_replay(lambda: stack_tensors(cohort._stack)),
        )

    monkeypatch.setattr("hpsearch.training.lanes.cohort.build_step", captured)
    data = resident(max_resident_bytes=study.max_resident_bytes)
    first = study.next_trial()
    test = _reference_test(data)
    cohort = Cohort(CohortShape.of(first), data, CPU, study.validations_every, test, dtype=torch.float64)
    cohort._captured_validation = CapturedValidation(capture=frozen_replay(lambda: stack_tensors(cohort._stack)))
    trials: list[TrialSettings] = []
    curves: dict[int, list[EpochReport]] = {}
    bests = {}
    for _ in range(6):
        for key in cohort.keys:
            if study.random.random() < 0.25:
                bests[key] = cohort.best_parameters(key), cohort.best_record(key)
                cohort.release(key)
        for _ in range(study.random.choice([0, 1, 1, 2])):
            trials.append(study.next_trial())
            cohort.admit(len(trials) - 1, trials[-1])
        for key, report in cohort.train_epoch().items():
            curves.setdefault(int(str(key)), []).append(report)
    bests |= {key: (cohort.best_parameters(key), cohort.best_record(key)) for key in cohort.keys}

    assert curves
    for key, curve in curves.items():
        expected = _alone(trials[key], data, study.validations_every, num_epochs=len(curve))
        assert [r.train_nll for r in curve] == pytest.approx([r.train_nll for r in expected.reports], rel=1e-6)
        for report, other in zip(curve, expected.reports, strict=True):
            assert [v.nll for v in report.validations] == pytest.approx([v.nll for v in other.validations], rel=1e-6)
            assert [(v.gained, v.lost) for v in report.validations] == [(v.gained, v.lost) for v in other.validations]
        parameters, correct = bests[key]
        assert np.array_equal(correct, expected.best_correct)
        for name, value in parameters.items():
            np.testing.assert_allclose(value, expected.best_parameters[name], rtol=1e-5, atol=1e-8)


def _reference_test(data: ResidentData) -> ReferenceTest:
    return ReferenceTest(level=0.05, critical_gains=critical_gains(len(data.validation_labels), 0.05))


def _alone(settings: TrialSettings, data: ResidentData, validations_every: int, *, num_epochs: int) -> TrialResult:
    return train_trial(
        settings,
        data,
        device=CPU,
        validations_every=validations_every,
        should_stop=lambda report: report.epoch >= num_epochs,
        reference_test=_reference_test(data),
        dtype=torch.float64,
    )
