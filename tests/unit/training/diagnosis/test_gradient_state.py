"""The numbers of a diagnosis: what they are, that they change nothing, and that they depend on the trial alone."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import pytest
import torch
from torch import Tensor

from hpsearch.data.resident import ResidentData
from hpsearch.epoch_report import Diagnosis, EpochReport
from hpsearch.study.settings import TrialSettings
from hpsearch.training.diagnosis import gradient_state
from hpsearch.training.diagnosis.gradient_state import FixedBatch, is_diagnosis_due
from hpsearch.training.lanes.cohort import Cohort
from hpsearch.training.lanes.cohort_shape import CohortShape
from hpsearch.training.networks.build import build_network

CPU = torch.device("cpu")
NEVER = 10**9
Trial = Callable[..., TrialSettings]
Resident = Callable[..., ResidentData]


def trained(
    data: ResidentData, trials: list[TrialSettings], epochs: int = 2, **options: Any
) -> list[list[EpochReport]]:
    """The reports of each of these trials, which share a cohort."""
    cohort = Cohort(CohortShape.of(trials[0]), data, CPU, NEVER, dtype=torch.float64, **options)
    for key, settings in enumerate(trials):
        cohort.admit(key, settings)
    epochs_of = [cohort.train_epoch() for _ in range(epochs)]
    return [[reports[key] for reports in epochs_of] for key in range(len(trials))]


def last(data: ResidentData, trials: list[TrialSettings], **options: Any) -> list[Diagnosis]:
    diagnoses = [reports[-1].diagnosis for reports in trained(data, trials, is_diagnosed=True, **options)]
    assert all(diagnosis is not None for diagnosis in diagnoses)
    return diagnoses  # type: ignore[return-value]


def numbers(diagnosis: Diagnosis) -> dict[str, float]:
    """Them all by name; -1 for those that the network does not have."""
    found = asdict(diagnosis)
    ratios = found.pop("update_ratios")
    return {name: -1.0 if number is None else number for name, number in {**found, **ratios}.items()}


MIXED = [
    {"optimizer": "sgd", "learning_rate": 0.1, "activation": "tanh", "hidden_units": 12},
    {"optimizer": "sgd", "learning_rate": 0.1, "activation": "sigmoid", "hidden_units": 5, "lambda_2": 0.01},
    {"optimizer": "momentum", "learning_rate": 0.03, "activation": "relu", "hidden_units": 20, "lambda_1": 1e-3},
    {"optimizer": "adam", "learning_rate": 0.01, "activation": "relu", "hidden_units": 12},
    {"optimizer": "adam", "learning_rate": 0.001, "activation": "relu", "hidden_units": 12, "seed": 5},
]
FAMILIES = [("mlp", MIXED), ("logistic", [{"learning_rate": 0.1}, {"optimizer": "adam", "learning_rate": 0.01}])]
FAMILIES += [
    ("cnn", [{"activation": "relu", "optimizer": name, "learning_rate": 0.01} for name in ("sgd", "momentum")])
]


@pytest.mark.parametrize(("family", "kinds"), FAMILIES, ids=[family for family, _ in FAMILIES])
def test_a_diagnosis_changes_no_bit_and_depends_on_the_trial_alone(
    family: str, kinds: list[dict[str, Any]], resident: Resident, trial: Trial
) -> None:
    data, trials = resident(), [trial(family, **kind) for kind in kinds]
    diagnosed, plain = trained(data, trials, is_diagnosed=True), trained(data, trials)
    for reports, others in zip(diagnosed, plain, strict=True):
        losses = [[(r.train_nll, r.validations) for r in each] for each in (reports, others)]
        assert losses[0] == losses[1]
        assert all(report.diagnosis is None for report in others)
    for settings, diagnosis in zip(trials, last(data, trials), strict=True):
        (alone,) = last(data, [settings])
        assert numbers(diagnosis) == pytest.approx(numbers(alone), rel=1e-9, abs=1e-12)


def test_lanes_that_are_looked_at_together_have_the_numbers_of_single_ones(
    resident: Resident, trial: Trial, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = resident()
    trials = [trial("mlp", activation="relu", learning_rate=rate, optimizer="momentum") for rate in (0.1, 0.01, 0.001)]
    together = last(data, trials)
    monkeypatch.setitem(gradient_state._CHUNK_FLOATS, "cpu", 1)
    for diagnosis, alone in zip(together, last(data, trials), strict=True):
        assert numbers(diagnosis) == pytest.approx(numbers(alone), rel=1e-9)


@pytest.mark.parametrize("optimizer", ["sgd", "momentum", "adam"])
def test_the_numbers_are_those_of_a_step_by_torch(optimizer: str, resident: Resident, trial: Trial) -> None:
    data = resident()
    settings = trial("mlp", optimizer=optimizer, learning_rate=0.05, lambda_2=0.02, activation="tanh")
    cohort = Cohort(CohortShape.of(settings), data, CPU, NEVER, dtype=torch.float64, is_diagnosed=True)
    cohort.admit("it", settings)
    diagnosis = cohort.train_epoch()["it"].diagnosis
    assert diagnosis is not None
    network = build_network(settings.model, data.example_shape, data.num_outputs)
    batch = FixedBatch.of(data, torch.float64)
    weights = {name: value[0].clone().requires_grad_() for name, value in cohort._stack.parameters.items()}
    per_image = [
        _gradient(network, weights, batch.images[[row]], batch.labels[[row]]) for row in range(len(batch.labels))
    ]
    gradient = torch.stack(per_image).mean(dim=0)
    assert diagnosis.gradient_norm == pytest.approx(float(gradient.norm()), rel=1e-9)
    # Two halves estimate the noise of all images: within a factor, not exactly.
    noise = float((torch.stack(per_image) - gradient).square().sum(dim=1).mean().sqrt())
    assert diagnosis.gradient_noise == pytest.approx(noise, rel=0.3)
    penalties = [2 * 0.02 * value.detach() for name, value in weights.items() if name.endswith("weight")]
    assert diagnosis.penalty_norm == pytest.approx(math.sqrt(sum(float(p.square().sum()) for p in penalties)), rel=1e-9)
    after = _after_a_step(cohort, settings, weights, gradient)
    for name, ratio in diagnosis.update_ratios.items():
        before = weights[name].detach()
        change = (after[name] - before).norm() / before.norm()
        assert ratio == pytest.approx(float(change), rel=1e-6), name


def _gradient(network: Any, weights: dict[str, Tensor], images: Tensor, labels: Tensor) -> Tensor:
    loss = torch.nn.functional.cross_entropy(network.logits(weights, images), labels)
    return torch.cat([gradient.flatten() for gradient in torch.autograd.grad(loss, list(weights.values()))])


def _after_a_step(
    cohort: Cohort, settings: TrialSettings, weights: dict[str, Tensor], gradient: Tensor
) -> dict[str, Tensor]:
    """The weights after one step of torch's own optimizer, from the state that the lane has."""
    its, state = settings.training, cohort._stack.optimizer_states[settings.training.optimizer]
    after = {name: value.detach().clone().requires_grad_() for name, value in weights.items()}
    start = 0
    for name, value in after.items():
        grad = gradient[start : start + value.numel()].reshape(value.shape)
        value.grad = grad + (2 * its.lambda_2 * value.detach() if name.endswith("weight") else 0)
        start += value.numel()
    optimizer: torch.optim.Optimizer
    if its.optimizer == "adam":
        optimizer = torch.optim.Adam(after.values(), lr=its.learning_rate)
        for name, value in after.items():
            optimizer.state[value] = {
                "step": state["num_steps"][0].to(torch.float32),
                "exp_avg": state[f"{name}/mean"][0].clone(),
                "exp_avg_sq": state[f"{name}/square"][0].clone(),
            }
    else:
        momentum = its.momentum if its.optimizer == "momentum" else 0.0
        optimizer = torch.optim.SGD(after.values(), lr=its.learning_rate, momentum=momentum)
        if momentum:
            for name, value in after.items():
                velocity = state[f"{name}/velocity"][0] / -its.learning_rate
                optimizer.state[value] = {"momentum_buffer": velocity.clone()}
    optimizer.step()
    return {name: value.detach() for name, value in after.items()}


def test_dead_and_saturated_units_are_counted_in_the_worst_layer(resident: Resident, trial: Trial) -> None:
    data = resident()
    dead, saturated, healthy = (
        last(data, [trial("mlp", activation=name, learning_rate=rate, lambda_2=decay)], epochs=8)[0]
        # So large an L2 factor takes the weights to 0 in a few steps, and with them the outputs of relu.
        for name, rate, decay in (("relu", 0.9, 0.5), ("tanh", 30.0, 0.0), ("relu", 0.01, 0.0))
    )
    assert dead.dead is not None
    assert dead.dead > 0.5
    assert dead.saturated is None
    assert saturated.saturated is not None
    assert saturated.saturated > 0.9
    assert saturated.dead is None
    assert healthy.dead is not None
    assert healthy.dead < 0.5


def test_a_lane_that_diverged_has_no_numbers_and_its_neighbours_have_theirs(resident: Resident, trial: Trial) -> None:
    data = resident()
    trials = [trial("mlp", activation="relu", learning_rate=rate) for rate in (0.01, 1e200, 0.1)]
    reports = trained(data, trials, is_diagnosed=True)
    assert reports[1][-1].has_diverged
    assert reports[1][-1].diagnosis is None
    for index in (0, 2):
        (alone,) = last(data, [trials[index]])
        diagnosis = reports[index][-1].diagnosis
        assert diagnosis is not None
        assert numbers(diagnosis) == pytest.approx(numbers(alone), rel=1e-9)


def test_a_trial_that_ends_between_two_due_epochs_is_looked_at_once_more(resident: Resident, trial: Trial) -> None:
    data, trials = resident(), [trial("mlp", learning_rate=0.1), trial("mlp", learning_rate=0.01)]
    cohort = Cohort(CohortShape.of(trials[0]), data, CPU, NEVER, dtype=torch.float64, is_diagnosed=True)
    for key, settings in enumerate(trials):
        cohort.admit(key, settings)
    reports = [cohort.train_epoch() for _ in range(4)][-1]
    assert all(report.diagnosis is None for report in reports.values())  # 1, 2, 3, 5 ... are due
    found = cohort.diagnose([1])
    assert set(found) == {1}
    (alone,) = last(data, [trial("mlp", learning_rate=0.01, max_epochs=4)], epochs=4)
    assert numbers(found[1]) == pytest.approx(numbers(alone), rel=1e-9)
    assert cohort.diagnose([]) == {}
    assert Cohort(CohortShape.of(trials[0]), data, CPU, NEVER).diagnose(["nobody"]) == {}


def test_chunked_data_give_the_same_batch(resident: Resident) -> None:
    whole, chunked = (FixedBatch.of(resident(max_resident_bytes=b), torch.float32) for b in (None, 45 * (256 * 4 + 8)))
    assert torch.equal(whole.images, chunked.images)
    assert torch.equal(whole.labels, chunked.labels)
    assert len(FixedBatch.of(resident(num_train=1), torch.float32).labels) == 1
    assert len(FixedBatch.of(resident(num_train=7), torch.float32).labels) == 6


def test_due_epochs() -> None:
    short = [epoch for epoch in range(1, 41) if is_diagnosis_due(epoch, num_minibatches=499, max_epochs=40)]
    assert short == [1, 2, 3, 5, 8, 13, 21, 34, 40]
    assert all(is_diagnosis_due(epoch, num_minibatches=500, max_epochs=40) for epoch in range(1, 41))


def test_without_memory_for_a_diagnosis_training_goes_on(
    resident: Resident, trial: Trial, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def measure(*_: object) -> Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB. GPU 0 has ...")

    data, trials = resident(), [trial("mlp", learning_rate=0.1), trial("mlp", learning_rate=0.01, optimizer="adam")]
    expected = trained(data, trials)
    monkeypatch.setattr("hpsearch.training.lanes.lane_diagnosis.measure", measure)
    found = trained(data, trials, is_diagnosed=True)
    assert [[r.train_nll for r in each] for each in found] == [[r.train_nll for r in each] for each in expected]
    assert all(report.diagnosis is None for each in found for report in each)
    assert caplog.messages == ["lanes are no longer diagnosed: the device has no memory for it"]
