"""The single-trial loop: what it validates, keeps and when it ends."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from benchmarks.reference_loop import TrialResult, train_trial, validate
from hpsearch.data.resident import ResidentData
from hpsearch.data.splits import SelectionData
from hpsearch.epoch_report import EpochReport
from hpsearch.errors import InputError
from hpsearch.study.settings import TrialSettings
from hpsearch.training.minibatches import minibatch_order
from hpsearch.training.networks.build import build_network

CPU = torch.device("cpu")
Build = Callable[..., ResidentData]
Trial = Callable[..., TrialSettings]


def never(report: EpochReport) -> bool:
    return False


def run(settings: TrialSettings, data: ResidentData, **options: object) -> TrialResult:
    defaults = {"device": CPU, "validations_every": 10**9, "should_stop": never, "dtype": torch.float64}
    return train_trial(settings, data, **(defaults | options))


def test_logistic_regression_follows_a_plain_numpy_loop(
    resident: Build, trial: Trial, selection_data: Callable[..., SelectionData]
) -> None:
    """Written out without torch: softmax, its gradient, L1 and L2 on weights only, in file order."""
    settings = trial("logistic", learning_rate=0.2, lambda_1=1e-3, lambda_2=1e-2, max_epochs=2)
    train, validation = selection_data().train, selection_data().validation
    weight, bias = np.zeros((256, 10)), np.zeros(10)

    def probabilities(images: np.ndarray) -> np.ndarray:
        scores = np.exp(images.astype(float) @ weight + bias)
        return scores / scores.sum(axis=1, keepdims=True)

    result = run(settings, resident())

    for report in result.reports:
        train_nll = []
        for start in range(0, 120, 20):
            images, labels = train.images[start : start + 20], train.labels[start : start + 20]
            p = probabilities(images)
            train_nll.append(-np.log(p[np.arange(20), labels]).mean())
            delta = (p - np.eye(10)[labels]) / 20
            weight -= 0.2 * (images.T.astype(float) @ delta + 1e-3 * np.sign(weight) + 2 * 1e-2 * weight)
            bias -= 0.2 * delta.sum(axis=0)
        p = probabilities(validation.images)
        nll = -np.log(p[np.arange(80), validation.labels]).mean()
        assert report.train_nll == pytest.approx(np.mean(train_nll), rel=1e-10)
        assert report.validations[-1].nll == pytest.approx(nll, rel=1e-10)
        assert report.validations[-1].loss == (p.argmax(axis=1) != validation.labels).mean()


@pytest.mark.parametrize("family", ["logistic", "mlp", "cnn"])
@pytest.mark.parametrize("optimizer", ["sgd", "momentum", "adam"])
def test_every_model_learns_with_every_optimizer(resident: Build, trial: Trial, family: str, optimizer: str) -> None:
    rate = {"sgd": 0.1, "momentum": 0.02, "adam": 0.01}[optimizer]
    settings = trial(family, optimizer=optimizer, learning_rate=rate, max_epochs=40, kernels=(8, 16))
    result = run(settings, resident())

    assert result.reports[0].train_nll == pytest.approx(np.log(10), abs=0.8)
    assert result.reports[-1].train_nll < 0.5 * np.log(10)
    assert result.best is not None
    assert result.best.loss < 0.45  # guessing: 0.9


def test_validations_within_an_epoch_count_minibatches_of_the_whole_trial(resident: Build, trial: Trial) -> None:
    result = run(trial(max_epochs=2), resident(num_train=145), validations_every=3)

    iterations = [[v.iteration for v in report.validations] for report in result.reports]
    assert iterations == [[3, 6, 7], [10, 13, 14]]  # 7 minibatches of 20


def test_best_parameters_reproduce_the_best_validation(resident: Build, trial: Trial) -> None:
    """A rate that is too high makes the curve jump, so that the best is not the last."""
    settings = trial("mlp", learning_rate=3.0, max_epochs=12)
    data = resident()
    result = run(settings, data, validations_every=2)

    validations = [v for report in result.reports for v in report.validations]
    assert result.best == min(validations, key=lambda v: (v.loss, v.nll))
    assert result.best != validations[-1]
    network = build_network(settings.model, data.example_shape, data.num_outputs)
    parameters = {name: torch.from_numpy(value) for name, value in result.best_parameters.items()}
    assert validate(network, parameters, data, iteration=result.best.iteration)[0] == result.best


def test_it_stops_when_told_to(resident: Build, trial: Trial) -> None:
    seen = []

    def at_third(report: EpochReport) -> bool:
        seen.append(report)
        return report.epoch == 3

    result = run(trial(max_epochs=50), resident(), should_stop=at_third)

    assert [report.epoch for report in result.reports] == [1, 2, 3]
    assert list(result.reports) == seen


def test_it_stops_at_its_last_epoch(resident: Build, trial: Trial) -> None:
    assert len(run(trial(max_epochs=4), resident()).reports) == 4


def test_it_stops_when_the_schedule_is_exhausted(resident: Build, trial: Trial) -> None:
    """A rate too small to change any validation label: every epoch after the first is without a new best."""
    settings = trial(
        learning_rate=1e-9,
        schedule="halving",
        schedule_patience=1,
        schedule_stop_ratio=4.0,
        max_epochs=50,
    )
    result = run(settings, resident())

    assert [report.learning_rate / 1e-9 for report in result.reports] == pytest.approx([1, 1, 0.5, 0.25])
    assert [report.is_schedule_exhausted for report in result.reports] == [False, False, False, True]


def test_a_trial_that_diverges_ends_and_keeps_its_best(resident: Build, trial: Trial) -> None:
    """Under this L2 term weights grow 20-fold per step until float64 overflows, after the first epoch."""
    settings = trial("mlp", learning_rate=1e3, lambda_2=1e-2, batch_size=65, max_epochs=500)
    result = run(settings, resident(), should_stop=never)

    *healthy, last = result.reports
    assert 1 <= len(healthy) < 499
    assert last.has_diverged
    assert not any(report.has_diverged for report in healthy)
    assert result.best == min((r.best for r in healthy), key=lambda v: (v.loss, v.nll))
    assert all(np.isfinite(value).all() for value in result.best_parameters.values())


def test_a_trial_that_diverges_at_once_has_no_best(resident: Build, trial: Trial) -> None:
    result = run(trial("mlp", learning_rate=1e200, lambda_2=1.0), resident())

    assert len(result.reports) == 1
    assert result.reports[0].has_diverged
    assert result.best is None
    assert result.best_parameters == {}


def test_the_study_seed_draws_the_weights_unless_the_trial_has_its_own(resident: Build, trial: Trial) -> None:
    def nll(**settings: int) -> float:
        return run(trial("mlp", max_epochs=1, **settings), resident()).reports[0].train_nll

    assert nll(study_seed=1) == nll(study_seed=2, seed=1)
    assert nll(study_seed=1) != nll(study_seed=2)


def test_shuffling_follows_the_seed_and_the_epoch(resident: Build, trial: Trial) -> None:
    """A logistic regression starts at zero, so nothing but the order can tell two seeds apart."""
    data = resident()

    def curve(study_seed: int, *, shuffle: bool = True, **own: int) -> list[float]:
        settings = trial("logistic", study_seed=study_seed, shuffle=shuffle, max_epochs=2, **own)
        return [report.train_nll for report in run(settings, data).reports]

    assert curve(1) == curve(1)
    assert curve(1) != curve(2)
    assert curve(1, seed=7) == curve(2, seed=7)  # its own goes before the study's
    assert curve(1, seed=7) != curve(1, seed=8)
    assert curve(1) != curve(1, shuffle=False)
    assert curve(1, shuffle=False) == curve(2, shuffle=False)
    assert not torch.equal(minibatch_order(1, 1, 130), minibatch_order(1, 2, 130))


@pytest.mark.parametrize("shuffle", [False, True])
def test_chunked_residence_gives_the_same_curve_to_the_last_bit(resident: Build, trial: Trial, shuffle: bool) -> None:
    settings = trial("mlp", shuffle=shuffle, max_epochs=3)
    whole = run(settings, resident())
    chunked = run(settings, resident(max_resident_bytes=45 * (256 * 4 + 8)))

    assert [r.validations for r in chunked.reports] == [r.validations for r in whole.reports]
    assert [r.train_nll for r in chunked.reports] == [r.train_nll for r in whole.reports]


def test_float32_stays_close_to_float64(resident: Build, trial: Trial) -> None:
    settings = trial("mlp", learning_rate=0.1, max_epochs=3)
    precise, fast = (run(settings, resident(), dtype=dtype) for dtype in (torch.float64, torch.float32))

    for one, other in zip(precise.reports, fast.reports, strict=True):
        assert one.train_nll == pytest.approx(other.train_nll, rel=1e-5)


def test_a_batch_larger_than_the_training_set_is_an_input_error(resident: Build, trial: Trial) -> None:
    with pytest.raises(InputError, match=r"batch_size must be in 1\.\.130 .*got 131"):
        run(trial(batch_size=131), resident(num_train=130))
