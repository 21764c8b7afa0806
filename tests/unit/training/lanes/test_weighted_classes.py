"""Lanes whose loss weighs classes: as plain torch and the reference loop do it, for every family and precision."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from benchmarks.reference_loop import train_trial
from hpsearch.data.resident import ResidentData
from hpsearch.data.splits import SelectionData, Split
from hpsearch.epoch_report import EpochReport
from hpsearch.study.settings import ModelSettings, TrainingSettings, TrialSettings
from hpsearch.training.judge import judge_of
from hpsearch.training.lanes.cohort import Cohort
from hpsearch.training.lanes.cohort_shape import CohortShape
from hpsearch.training.lanes.steps import AutogradStep
from hpsearch.training.networks.build import build_network
from hpsearch.worker.cohorts import cohort_name

CPU = torch.device("cpu")
SIDE = 20  # 400 inputs: enough for blocks of minibatches (dense_step.py)
EPOCHS = 2
BATCH = 20
SHARES = (0.75, 0.2, 0.05)
CUSTOM = "examples.two_hidden_layers:TwoHiddenLayers"


@pytest.fixture(scope="module")
def data() -> ResidentData:
    return ResidentData.place(selection(), CPU)


def selection() -> SelectionData:
    random = np.random.default_rng(0)

    def split(number: int) -> Split:
        labels = random.choice(3, size=number, p=SHARES)
        images = random.random(size=(number, SIDE * SIDE)).astype(np.float32) / 2
        images[:, :3] += np.eye(3, dtype=np.float32)[labels] / 2
        return Split(images=images, labels=labels)

    train, validation = split(200), split(60)
    return SelectionData(
        name="rare", train=train, validation=validation, example_shape=(SIDE, SIDE), num_classes=3, checksums={}
    )


def settings(family: str = "mlp", weights: Any = "balanced", **training: Any) -> TrialSettings:
    return TrialSettings(
        model=ModelSettings(family=family, hidden_units=12, kernels=(2, 3)),
        training=TrainingSettings(**{"batch_size": BATCH, "learning_rate": 0.02, "class_weights": weights, **training}),
    )


def train(trials: dict[str, TrialSettings], data: ResidentData, **options: Any) -> dict[str, list[EpochReport]]:
    cohort = Cohort(CohortShape.of(next(iter(trials.values()))), data, CPU, 10**9, **options)
    for key, trial in trials.items():
        cohort.admit(key, trial)
    reports: dict[str, list[EpochReport]] = {key: [] for key in trials}
    for _ in range(EPOCHS):
        for key, report in cohort.train_epoch().items():
            reports[str(key)].append(report)
    return reports


def torch_curve(trial: TrialSettings, data: ResidentData) -> list[float]:
    """Validation NLL after each epoch, by `torch.nn.functional.cross_entropy` and torch's own optimizers."""
    network, its = build_network(trial.model, data.example_shape, data.num_outputs), trial.training
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
    counts = torch.tensor(data.class_counts, dtype=torch.float64)
    weights = counts.sum() / (3 * counts)

    def loss(images: Tensor, labels: Tensor, **options: Any) -> Tensor:
        logits = network.logits(parameters, images.double())
        return torch.nn.functional.cross_entropy(logits, labels, reduction="sum", **options) / len(labels)

    ((images, labels),) = data.chunks(its.batch_size)
    curve = []
    for _ in range(EPOCHS):
        for start in range(0, len(labels), its.batch_size):
            batch = slice(start, start + its.batch_size)
            penalty = sum(its.lambda_2 * parameters[name].square().sum() for name in network.weight_names)
            optimizer.zero_grad()
            (loss(images[batch], labels[batch], weight=weights) + penalty).backward()
            optimizer.step()
        with torch.no_grad():
            curve.append(float(loss(data.validation_images, data.validation_labels)))
    return curve


@pytest.mark.parametrize("family", ["logistic", "mlp", "cnn"])
def test_lanes_weigh_classes_as_torchs_cross_entropy_does(family: str, data: ResidentData) -> None:
    trials = {
        "sgd": settings(family),
        "sgd with L2": settings(family, lambda_2=0.01),
        "sgd again": settings(family, seed=3),
        "momentum": settings(family, optimizer="momentum"),
        "adam": settings(family, optimizer="adam", lambda_2=0.01),
    }
    reports = train(trials, data, dtype=torch.float64, is_diagnosed=True)
    for key, trial in trials.items():
        curve = [report.validations[-1].nll for report in reports[key]]
        assert curve == pytest.approx(torch_curve(trial, data), rel=1e-6), key
        assert reports[key][-1].diagnosis is not None


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("family", ["logistic", "mlp", "cnn", CUSTOM])
@pytest.mark.parametrize("shuffle", [False, True], ids=["file order", "shuffled"])
def test_lanes_weigh_classes_as_the_reference_loop_does(
    family: str, precision: str, shuffle: bool, data: ResidentData
) -> None:
    trials = {
        str(seed): settings(family, (1.0, 2.0, 8.0), seed=seed, precision=precision, shuffle=shuffle) for seed in (1, 2)
    }
    # A network of one's own rounds its layers together in lanes: without weights, too, curves differ by 0.4 %.
    tolerance = 1e-6 if precision == "float32" else 3e-2 if family == CUSTOM else 1e-3
    reports = train(trials, data)
    for key, trial in trials.items():
        limited = trial.model_copy(update={"training": trial.training.model_copy(update={"max_epochs": EPOCHS})})
        expected = train_trial(limited, data, device=CPU, validations_every=10**9, should_stop=lambda _: False)
        for found, one in zip(reports[key], expected.reports, strict=True):
            assert found.train_nll == pytest.approx(one.train_nll, rel=tolerance)
            assert found.validations[-1].nll == pytest.approx(one.validations[-1].nll, rel=tolerance)


def test_lanes_one_after_the_other_weigh_classes_alike(data: ResidentData, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a CPU with convolutions: in slices of a minibatch; all at once elsewhere."""
    trial = settings("cnn")
    curves = []
    for is_sliced in (True, False):

        def step(*arguments: Any, is_sliced: bool = is_sliced) -> AutogradStep:
            return AutogradStep(network=arguments[0], class_weights=arguments[5], is_sliced=is_sliced)

        monkeypatch.setattr("hpsearch.training.lanes.cohort.build_step", step)
        monkeypatch.setattr("hpsearch.training.lanes.steps.TRAINING_SLICE_FLOATS", 2000)
        curves.append([report.train_nll for report in train({"it": trial}, data, dtype=torch.float64)["it"]])
    assert curves[0] == pytest.approx(curves[1], rel=1e-9)


def test_the_training_loss_that_is_reported_begins_at_ln_of_classes(data: ResidentData) -> None:
    reports = train({"it": settings("logistic", (1.0, 50.0, 3.0), learning_rate=1e-9)}, data)
    assert reports["it"][0].train_nll == pytest.approx(math.log(3), rel=1e-5)


def test_weights_of_one_size_change_nothing_to_the_bit(data: ResidentData) -> None:
    plain, weighed = (train({"it": settings("mlp", weights)}, data)["it"] for weights in ("none", (2.0, 2.0, 2.0)))
    assert [report.validations for report in plain] == [report.validations for report in weighed]


def test_trials_with_other_class_weights_do_not_share_lanes() -> None:
    trials = [settings("mlp", weights) for weights in ("none", "balanced", (1.0, 2.0, 3.0))]
    assert len({CohortShape.of(trial) for trial in trials}) == 3
    assert len({cohort_name(trial) for trial in trials}) == 3


def test_with_weights_the_rare_class_is_found_more_often() -> None:
    random = np.random.default_rng(1)

    def split(number: int) -> Split:
        labels = (random.random(number) < 0.05).astype(np.int64)
        return Split(images=random.normal(size=(number, 5)).astype(np.float32) + labels[:, None], labels=labels)

    train_rows, validation = split(1000), split(1000)
    rare = SelectionData(
        name="rare", train=train_rows, validation=validation, example_shape=(5,), num_classes=2, checksums={}
    )
    data, judge = ResidentData.place(rare, CPU), partial(judge_of, "balanced-error", num_classes=2)
    plain, weighed = (
        train({"it": settings("logistic", weights)}, data, judge=judge)["it"][-1].validations[-1]
        for weights in ("none", "balanced")
    )
    assert weighed.loss < plain.loss - 0.1
    assert weighed.nll > plain.nll  # probabilities are those of balanced classes
