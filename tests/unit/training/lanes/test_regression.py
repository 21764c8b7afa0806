"""Lanes that learn a number: as plain torch does it, for every optimizer and family, judged in the target's unit."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from hpsearch.data.resident import ResidentData
from hpsearch.data.splits import SelectionData, Split
from hpsearch.study.settings import ModelSettings, TrainingSettings, TrialSettings
from hpsearch.training.judge import judge_of
from hpsearch.training.lanes.cohort import Cohort
from hpsearch.training.lanes.cohort_shape import CohortShape
from hpsearch.training.networks.build import build_network

CPU = torch.device("cpu")
DEVIATION = 40.0
NUM_FEATURES = 320  # enough for blocks of minibatches (dense_step.py)
EPOCHS = 3


@pytest.fixture(scope="module")
def data() -> ResidentData:
    random = np.random.default_rng(0)
    weights = random.normal(size=NUM_FEATURES) / np.sqrt(NUM_FEATURES)

    def split(number: int) -> Split:
        rows = random.normal(size=(number, NUM_FEATURES)).astype(np.float32)
        return Split(images=rows, labels=np.tanh(rows @ weights).astype(np.float32))

    record = {"target": {"name": "price", "task": "regression", "mean": 100.0, "deviation": DEVIATION}}
    selection = SelectionData(
        name="rows",
        train=split(200),
        validation=split(60),
        example_shape=(NUM_FEATURES,),
        num_classes=0,
        checksums={},
        record=record,
    )
    return ResidentData.place(selection, CPU)


def settings(family: str, optimizer: str, **training: Any) -> TrialSettings:
    return TrialSettings(
        model=ModelSettings(family=family, hidden_units=12),
        training=TrainingSettings(batch_size=20, optimizer=optimizer, learning_rate=0.02, **training),
    )


def plain_curve(trial: TrialSettings, data: ResidentData) -> list[float]:
    """Validation MSE after each epoch, by a loop with torch's own optimizers."""
    network = build_network(trial.model, data.example_shape, data.num_outputs)
    its = trial.training
    parameters = {
        name: value.requires_grad_()
        for name, value in network.initial_parameters(seed=trial.training_seed, dtype=torch.float64).items()
    }
    make: dict[str, Any] = {
        "sgd": partial(torch.optim.SGD, lr=its.learning_rate),
        "momentum": partial(torch.optim.SGD, lr=its.learning_rate, momentum=its.momentum),
        "adam": partial(torch.optim.Adam, lr=its.learning_rate),
    }
    optimizer = make[its.optimizer](list(parameters.values()))

    def loss(rows: Tensor, targets: Tensor) -> Tensor:
        return (network.logits(parameters, rows.double()).squeeze(1) - targets).square().mean()

    ((rows, targets),) = data.chunks(its.batch_size)
    curve = []
    for _ in range(EPOCHS):
        for start in range(0, len(targets), its.batch_size):
            batch = slice(start, start + its.batch_size)
            penalty = sum(its.lambda_2 * parameters[name].square().sum() for name in network.weight_names)
            optimizer.zero_grad()
            (loss(rows[batch], targets[batch]) + penalty).backward()
            optimizer.step()
        with torch.no_grad():
            curve.append(float(loss(data.validation_images, data.validation_labels)))
    return curve


@pytest.mark.parametrize("family", ["mlp", "logistic"])
def test_lanes_learn_a_number_as_plain_torch_does(family: str, data: ResidentData) -> None:
    trials = {
        "sgd": settings(family, "sgd"),
        "sgd with L2": settings(family, "sgd", lambda_2=0.01),
        "sgd again": settings(family, "sgd", seed=3),
        "momentum": settings(family, "momentum"),
        "adam": settings(family, "adam", lambda_2=0.01),
    }
    judge = partial(judge_of, "rmse", num_classes=0, deviation=data.target_deviation)
    shape = CohortShape.of(trials["sgd"])
    cohort = Cohort(shape, data, CPU, 10**9, judge=judge, is_diagnosed=True, dtype=torch.float64)
    for key, trial in trials.items():
        cohort.admit(key, trial)
    curves: dict[str, list[float]] = {key: [] for key in trials}
    for _ in range(EPOCHS):
        for key, report in cohort.train_epoch().items():
            validation = report.best
            curves[str(key)].append(validation.nll)
            assert validation.loss == pytest.approx(DEVIATION * validation.nll**0.5, rel=1e-9)
            assert report.diagnosis is not None
    for key, trial in trials.items():
        assert curves[key] == pytest.approx(plain_curve(trial, data), rel=1e-6), key
        best = cohort.best(key)
        assert best is not None
        record = cohort.best_record(key)
        assert record.shape == (60,)
        assert record.mean(dtype=np.float64) == pytest.approx(best.loss, rel=1e-5)


def test_a_checkpoint_of_a_regression_goes_on_as_if_it_had_not_been_interrupted(data: ResidentData) -> None:
    trial = settings("mlp", "adam")
    judge = partial(judge_of, "mae", num_classes=0, deviation=data.target_deviation)

    def cohort() -> Cohort:
        return Cohort(CohortShape.of(trial), data, CPU, 10**9, judge=judge)

    whole, first = cohort(), cohort()
    for each in (whole, first):
        each.admit("it", trial)
        each.train_epoch()
    copied = first.checkpoint(["it"]).fetch()["it"]
    restored, second = type(copied).from_bytes(copied.to_bytes()), cohort()
    second.admit("it", trial, restored)
    assert second.train_epoch()["it"].validations == whole.train_epoch()["it"].validations
    assert np.array_equal(second.best_record("it"), whole.best_record("it"))
