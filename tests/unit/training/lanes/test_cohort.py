"""Lanes compute what the reference computes, whoever their neighbours are and whenever they start.

Stated tolerance. float64: the same zero-one losses, NLL within 1e-9 (relative). float32, over 3 epochs of 15
steps: NLL within 1e-5 and zero-one within 1e-3; with Adam within 1e-3 and 1e-2, for it divides each gradient
by its own size, and so makes the rounding of gradients near 0 as large as a step. Bit for bit: the same lanes
again, and whatever a neighbour does (its NaN included).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.reference_loop import TrialResult, train_trial, validate
from hpsearch.data.resident import ResidentData
from hpsearch.epoch_report import EpochReport
from hpsearch.errors import InputError
from hpsearch.search.significance import critical_gains
from hpsearch.search.stopping import SignificancePatience, stopping_rule
from hpsearch.study.settings import StoppingSettings, TrialSettings
from hpsearch.training.correct_images import ReferenceTest
from hpsearch.training.lanes.cohort import Cohort
from hpsearch.training.lanes.cohort_shape import CohortShape
from hpsearch.training.lanes.dense_step import BLOCK_ROWS
from hpsearch.training.networks.build import build_network

CPU = torch.device("cpu")
Build = Callable[..., ResidentData]
Trial = Callable[..., TrialSettings]
Curves = dict[Hashable, list[EpochReport]]

FAMILIES = ["logistic", "mlp", "cnn"]
OPTIMIZERS = ["sgd", "momentum", "adam"]
SCHEDULES = ["constant", "inverse-time", "step", "exponential", "plateau", "halving"]
RATES = {"sgd": 0.3, "momentum": 0.05, "adam": 0.02}
CHUNK_BYTES = 45 * (256 * 4 + 8)  # room for two minibatches of 20 images of 16x16
VALIDATIONS_EVERY = 4  # of 6 minibatches: two validations per epoch


@pytest.fixture(autouse=True)
def _blocks_of_two_minibatches(monkeypatch: pytest.MonkeyPatch) -> None:
    """Networks of this size would not be trained in blocks otherwise."""
    monkeypatch.setattr("hpsearch.training.lanes.dense_step.LEAST_OUTPUTS_PER_ROW", 0)
    monkeypatch.setitem(BLOCK_ROWS, "cpu", 45)


def reference_test(data: ResidentData, level: float = 0.05) -> ReferenceTest:
    return ReferenceTest(level=level, critical_gains=critical_gains(len(data.validation_labels), level))


def cohort_of(
    settings: dict[str, TrialSettings],
    data: ResidentData,
    *,
    every: int = VALIDATIONS_EVERY,
    **options: object,
) -> Cohort:
    first = next(iter(settings.values()))
    options = {"dtype": torch.float64, "reference_test": reference_test(data)} | options
    cohort = Cohort(CohortShape.of(first), data, data.validation_images.device, every, **options)
    for key, one in settings.items():
        cohort.admit(key, one)
    return cohort


def train(cohort: Cohort, num_epochs: int, curves: Curves | None = None) -> Curves:
    """Train every lane for some epochs, adding its reports to its curve."""
    curves = {} if curves is None else curves
    for _ in range(num_epochs):
        for key, report in cohort.train_epoch().items():
            curves.setdefault(key, []).append(report)
    return curves


def reference(
    settings: TrialSettings,
    data: ResidentData,
    num_epochs: int,
    *,
    every: int = VALIDATIONS_EVERY,
    dtype: torch.dtype = torch.float64,
    test: ReferenceTest | None = None,
) -> TrialResult:
    return train_trial(
        settings,
        data,
        device=data.validation_images.device,
        validations_every=every,
        should_stop=lambda report: report.epoch >= num_epochs,
        reference_test=test or reference_test(data),
        dtype=dtype,
    )


def numbers(curve: list[EpochReport]) -> list[tuple[object, ...]]:
    """All of a curve but its seconds, for comparison bit for bit."""
    return [
        (r.epoch, r.validations, r.train_nll, r.learning_rate, r.is_schedule_exhausted, r.has_diverged) for r in curve
    ]


def assert_same_curve(
    curve: list[EpochReport], expected: list[EpochReport], *, nll: float = 1e-9, zero_one: float = 0.0
) -> None:
    assert len(curve) == len(expected)
    for one, other in zip(curve, expected, strict=True):
        assert one.epoch == other.epoch
        assert one.learning_rate == other.learning_rate
        assert one.is_schedule_exhausted == other.is_schedule_exhausted
        assert one.train_nll == pytest.approx(other.train_nll, rel=nll)
        assert [v.iteration for v in one.validations] == [v.iteration for v in other.validations]
        for mine, its in zip(one.validations, other.validations, strict=True):
            assert mine.loss == pytest.approx(its.loss, rel=0, abs=zero_one)
            assert mine.nll == pytest.approx(its.nll, rel=nll)
            if not zero_one:
                assert (mine.gained, mine.lost) == (its.gained, its.lost)


@pytest.fixture
def three(trial: Trial) -> Callable[..., dict[str, TrialSettings]]:
    """Three trials that differ in everything that lanes of a cohort may differ in."""

    def build(family: str, optimizer: str = "sgd", **settings: object) -> dict[str, TrialSettings]:
        rate = RATES[optimizer]
        own = [
            {"learning_rate": rate, "lambda_2": 1e-3},
            {"learning_rate": rate / 10, "lambda_1": 1e-4, "momentum": 0.5, "beta_1": 0.8, "seed": 5},
            {"learning_rate": rate / 2, "epsilon": 1e-6, "beta_2": 0.99, "study_seed": 2},
        ]
        return {
            key: trial(family, optimizer=optimizer, **(one | settings)) for key, one in zip("abc", own, strict=True)
        }

    return build


Three = Callable[..., dict[str, TrialSettings]]


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("family", FAMILIES)
def test_lanes_equal_the_reference(resident: Build, three: Three, family: str, optimizer: str, schedule: str) -> None:
    data = resident()
    settings = three(
        family,
        optimizer,
        schedule=schedule,
        schedule_every=2,
        schedule_patience=1,
        schedule_decay=0.1,
        schedule_stop_ratio=4.0,
    )
    cohort = cohort_of(settings, data)
    curves = train(cohort, 6)

    for key, one in settings.items():
        expected = reference(one, data, 6)
        num_epochs = len(expected.reports)  # fewer than 6 where the schedule ended the trial
        assert_same_curve(curves[key][:num_epochs], list(expected.reports))
        if num_epochs == 6:
            best = cohort.best(key)
            assert best is not None
            assert expected.best is not None
            assert (best.iteration, best.loss) == (expected.best.iteration, expected.best.loss)
            for name, value in cohort.best_parameters(key).items():
                np.testing.assert_allclose(value, expected.best_parameters[name], rtol=1e-7, atol=1e-9)
            assert np.array_equal(cohort.best_record(key), expected.best_correct)
            assert best.loss == (~cohort.best_record(key)).mean()
    if schedule != "constant":
        assert any(len({report.learning_rate for report in curve}) > 1 for curve in curves.values())


@pytest.mark.parametrize("activation", ["tanh", "sigmoid", "relu"])
@pytest.mark.parametrize("family", ["mlp", "cnn"])
def test_lanes_equal_the_reference_with_every_activation(
    resident: Build, three: Three, family: str, activation: str
) -> None:
    settings = three(family, activation=activation, initialization="lecun")
    curves = train(cohort_of(settings, resident()), 3)

    for key, one in settings.items():
        assert_same_curve(curves[key], list(reference(one, resident(), 3).reports))


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("family", FAMILIES)
def test_lanes_in_float32_equal_the_reference_within_the_stated_tolerance(
    resident: Build, three: Three, family: str, optimizer: str
) -> None:
    data = resident(num_train=300, num_validation=1000, image_shape=(28, 28))
    settings = three(family, optimizer, learning_rate=RATES[optimizer] / 5)
    curves = train(cohort_of(settings, data, every=15, dtype=torch.float32), 3)

    tolerance = {"nll": 1e-3, "zero_one": 1e-2} if optimizer == "adam" else {"nll": 1e-5, "zero_one": 1e-3}
    for key, one in settings.items():
        expected = reference(one, data, 3, every=15, dtype=torch.float32)
        assert_same_curve(curves[key], list(expected.reports), **tolerance)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_curve_depends_neither_on_the_lane_nor_on_the_number_of_lanes(
    resident: Build, three: Three, family: str, dtype: torch.dtype
) -> None:
    data = resident(num_validation=2000)
    settings = three(family)
    in_order = train(cohort_of(settings, data, dtype=dtype), 3)
    reversed_ = train(cohort_of(dict(reversed(settings.items())), data, dtype=dtype), 3)
    tolerance = {"nll": 1e-5, "zero_one": 1e-3} if dtype == torch.float32 else {}

    for key, one in settings.items():
        alone = train(cohort_of({key: one}, data, dtype=dtype), 3)
        assert_same_curve(in_order[key], reversed_[key], **tolerance)
        assert_same_curve(in_order[key], alone[key], **tolerance)


def test_in_bfloat16_as_well_a_curve_depends_on_no_neighbour(
    resident: Build, trial: Trial, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Blocks round otherwise than single minibatches: the number of lanes must not choose between them."""
    monkeypatch.setattr(
        "hpsearch.training.lanes.dense_step.LEAST_OUTPUTS_PER_ROW", 1
    )  # 12 units: blocks from 4 lanes on
    data = resident()
    settings = {lane: trial(learning_rate=0.3 / (lane + 1), precision="bfloat16") for lane in range(8)}

    alone = train(cohort_of({0: settings[0]}, data, dtype=torch.float32), 6)
    together = train(cohort_of(settings, data, dtype=torch.float32), 6)

    assert_same_curve(together[0], alone[0], nll=1e-4, zero_one=1 / 80)


@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_same_lanes_give_the_same_bits_again(resident: Build, three: Three, family: str, shuffle: bool) -> None:
    first, second = (
        train(cohort_of(three(family, shuffle=shuffle), resident(), dtype=torch.float32), 2) for _ in range(2)
    )

    assert {k: numbers(c) for k, c in first.items()} == {k: numbers(c) for k, c in second.items()}


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_neighbour_that_diverges_changes_no_bit(
    resident: Build, three: Three, trial: Trial, family: str, optimizer: str
) -> None:
    """ReLU and L2, since a rate of 1e6 alone leaves tanh networks large but finite."""
    settings = three(family, optimizer, activation="relu")
    poison = {"learning_rate": 1e6, "lambda_2": 1.0, "momentum": 0.99, "epsilon": 1e-30, "activation": "relu"}
    if optimizer == "adam":  # its steps are at most a rate long: only infinite ones diverge
        poison["learning_rate"] = 1e38
    data = resident()
    healthy = train(cohort_of(settings, data, dtype=torch.float32), 3)

    poisoned_settings = settings | {"b": trial(family, optimizer=optimizer, **poison)}
    cohort = cohort_of(poisoned_settings, data, dtype=torch.float32)
    poisoned = train(cohort, 3)

    assert any(report.has_diverged for report in poisoned["b"])
    assert math.isnan(poisoned["b"][-1].train_nll)
    for key in "ac":
        assert not any(report.has_diverged for report in poisoned[key])
        assert numbers(poisoned[key]) == numbers(healthy[key])


def test_a_lane_that_diverges_keeps_its_best(resident: Build, trial: Trial) -> None:
    """As in the reference: under this L2 term weights grow 20-fold per step until float64 overflows."""
    settings = trial("mlp", learning_rate=1e3, lambda_2=1e-2, batch_size=65)
    data = resident()
    cohort = cohort_of({"bad": settings, "good": trial("mlp", batch_size=65)}, data, every=10**9)
    curves: Curves = {}
    while not (curves and curves["bad"][-1].has_diverged):
        train(cohort, 1, curves)
        assert len(curves["bad"]) < 500

    expected = train_trial(
        settings.model_copy(update={"training": settings.training.model_copy(update={"max_epochs": 500})}),
        data,
        device=CPU,
        validations_every=10**9,
        should_stop=lambda report: False,
        dtype=torch.float64,
    )
    assert len(curves["bad"]) == len(expected.reports)
    best = cohort.best("bad")
    assert best is not None
    assert expected.best is not None
    assert (best.iteration, best.loss) == (expected.best.iteration, expected.best.loss)
    for name, value in cohort.best_parameters("bad").items():
        np.testing.assert_allclose(value, expected.best_parameters[name], rtol=1e-7)


def test_a_lane_that_was_never_finite_has_no_best(resident: Build, trial: Trial) -> None:
    cohort = cohort_of({"bad": trial("mlp", learning_rate=1e200, lambda_2=1.0)}, resident())

    assert cohort.train_epoch()["bad"].has_diverged
    assert cohort.best("bad") is None
    with pytest.raises(KeyError, match="no finite validation"):
        cohort.best_parameters("bad")


@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("family", FAMILIES)
def test_lanes_are_refilled_in_mid_study(
    resident: Build, three: Three, family: str, optimizer: str, shuffle: bool
) -> None:
    """Trials come and go at different epochs; each has the curve that it would have had alone."""
    data = resident()
    settings = three(family, optimizer, shuffle=shuffle, schedule="inverse-time", schedule_decay=0.3)
    cohort = cohort_of({key: settings[key] for key in "ab"}, data)
    curves = train(cohort, 2)
    cohort.release("a")
    cohort.admit("c", settings["c"])
    train(cohort, 1, curves)
    cohort.release("b")
    cohort.admit("a again", settings["a"])
    train(cohort, 2, curves)

    assert cohort.keys == ("c", "a again")
    assert {key: len(curve) for key, curve in curves.items()} == {"a": 2, "b": 3, "c": 3, "a again": 2}
    for key, curve in curves.items():
        expected = reference(settings[str(key)[0]], data, len(curve))
        assert_same_curve(curve, list(expected.reports))


def test_trials_that_enter_together_take_the_lanes_that_they_take_one_by_one(resident: Build, trial: Trial) -> None:
    """Bit for bit: some into free lanes, others behind the lanes of their kinds; one is wider than all before."""
    data = resident()
    settings = {
        f"{optimizer} {units} {rate}": trial("mlp", optimizer=optimizer, hidden_units=units, learning_rate=rate)
        for rate in (0.1, 0.2, 0.3)
        for optimizer, units in (("adam", 6), ("sgd", 4), ("momentum", 5))
    }
    keys = list(settings)
    reports, orders = [], []
    for enters_together in (False, True):
        cohort = cohort_of({key: settings[key] for key in keys[:4]}, data)
        train(cohort, 1)
        cohort.release(keys[0])
        cohort.release(keys[2])
        if enters_together:
            cohort.admit_all({key: settings[key] for key in keys[4:]})
        else:
            for key in keys[4:]:
                cohort.admit(key, settings[key])
        cohort.release(keys[5])
        cohort.release(keys[7])
        orders.append(cohort.keys)
        reports.append({key: numbers(curve) for key, curve in train(cohort, 2).items()})
    assert orders[0] == orders[1]
    assert reports[0] == reports[1]


@pytest.mark.parametrize("activation", ["tanh", "sigmoid", "relu"])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("family", ["mlp", "cnn"])
def test_hidden_layers_of_different_width_share_a_cohort(
    resident: Build, trial: Trial, family: str, optimizer: str, activation: str
) -> None:
    """Narrow ones are filled up, wider ones come and go, and each has its own network's curve and parameters."""
    data, rate = resident(), RATES[optimizer]
    own = {
        7: {"lambda_2": 1e-3},
        20: {"lambda_1": 1e-4},
        3: {"initialization": "lecun"},
        32: {"learning_rate": rate / 2},
    }
    settings = {
        width: trial(
            family,
            **({"learning_rate": rate, "optimizer": optimizer, "activation": activation, "hidden_units": width} | more),
        )
        for width, more in own.items()
    }
    cohort = cohort_of({width: settings[width] for width in (7, 20)}, data)
    curves = train(cohort, 1)
    cohort.admit(3, settings[3])
    cohort.admit(32, settings[32])  # wider than any so far
    train(cohort, 2, curves)
    widest = cohort.best_parameters(32)["hidden.weight"]
    assert widest.shape[0] == 32
    cohort.release(32)
    cohort.release(20)
    train(cohort, 1, curves)  # narrower again

    assert {width: len(curve) for width, curve in curves.items()} == {7: 4, 20: 3, 3: 3, 32: 2}
    for width, curve in curves.items():
        expected = reference(settings[width], data, len(curve))
        assert_same_curve(curve, list(expected.reports))
        if width in cohort.keys:
            parameters = cohort.best_parameters(width)
            assert parameters.keys() == expected.best_parameters.keys()
            for name, value in parameters.items():
                np.testing.assert_allclose(value, expected.best_parameters[name], rtol=1e-6, atol=1e-9)


class Shortage(TorchDispatchMode):
    """Memory runs out at one of the tensors that are made: the first has number 0."""

    def __init__(self, at: int) -> None:
        super().__init__()
        self.num_left = at

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        known = {tensor.untyped_storage().data_ptr() for tensor in pytree.tree_leaves(args) if torch.is_tensor(tensor)}
        if torch.is_tensor(result) and result.numel() > 1 and result.untyped_storage().data_ptr() not in known:
            if self.num_left == 0:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
            self.num_left -= 1
        return result


@pytest.mark.parametrize("has_free_lane", [False, True])
@pytest.mark.parametrize("newcomer", [{}, {"hidden_units": 20}, {"optimizer": "adam", "learning_rate": 0.02}])
def test_a_shortage_of_memory_in_an_admission_leaves_the_trials_in_lanes_as_they_were(
    resident: Build, trial: Trial, newcomer: dict[str, Any], has_free_lane: bool
) -> None:
    data, others = resident(), {"c": trial(seed=3, **newcomer), "d": trial(seed=4)}
    trials = {key: trial(seed=seed) for seed, key in enumerate("abe")}

    def cohort_in_training() -> tuple[Cohort, Curves]:
        cohort = cohort_of(trials, data)
        curves = train(cohort, 1)
        cohort.release("e")
        if not has_free_lane:
            train(cohort, 1, curves)
        return cohort, curves

    undisturbed, expected = cohort_in_training()
    train(undisturbed, 2, expected)
    num_shortages = 0
    while True:
        cohort, curves = cohort_in_training()
        try:
            with Shortage(num_shortages):
                cohort.admit_all(others)
        except torch.OutOfMemoryError:
            num_shortages += 1
        else:
            break
        assert set(cohort.keys) >= {"a", "b"}
        train(cohort, 2, curves)
        for key in ("a", "b"):
            assert_same_curve(curves[key], expected[key])
    assert num_shortages > 10


def test_releasing_a_lane_in_the_middle_leaves_its_neighbours_as_they_were(resident: Build, three: Three) -> None:
    data, settings = resident(), three("mlp", "adam")
    cohort = cohort_of(settings, data)
    curves = train(cohort, 2)
    best = {key: cohort.best_parameters(key) for key in "ac"}
    cohort.release("b")

    assert cohort.keys == ("a", "c")
    for key in "ac":
        kept = cohort.best_parameters(key)
        assert all(np.array_equal(kept[name], value) for name, value in best[key].items())
    train(cohort, 2, curves)
    for key in "ac":
        assert_same_curve(curves[key], list(reference(settings[key], data, 4).reports))


def test_best_parameters_reproduce_the_best_validation(resident: Build, trial: Trial) -> None:
    """Rates that are too high make curves jump, so that the best is not the last."""
    data = resident()
    settings = {rate: trial("mlp", learning_rate=rate) for rate in (3.0, 4.0, 6.0)}
    cohort = cohort_of(settings, data, every=2)
    curves = train(cohort, 10)

    assert any(cohort.best(key) != curve[-1].validations[-1] for key, curve in curves.items())
    for key, curve in curves.items():
        best = cohort.best(key)
        validations = [v for report in curve for v in report.validations]
        assert best == min(validations, key=lambda v: (v.loss, v.nll))
        network = build_network(settings[key].model, data.example_shape, data.num_outputs)
        parameters = {n: torch.from_numpy(value) for n, value in cohort.best_parameters(key).items()}
        again, _ = validate(network, parameters, data, iteration=best.iteration)
        assert again.loss == best.loss
        assert again.nll == pytest.approx(best.nll, rel=1e-12)


def test_best_parameters_are_a_copy_of_their_own(resident: Build, trial: Trial) -> None:
    cohort = cohort_of({"a": trial("mlp", learning_rate=0.3)}, resident())
    cohort.train_epoch()
    before = cohort.best_parameters("a")
    kept = {name: value.copy() for name, value in before.items()}
    first_best = cohort.best("a")
    train(cohort, 5)

    assert cohort.best("a") != first_best
    assert all(np.array_equal(before[name], value) for name, value in kept.items())


@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_chunked_residence_gives_the_same_curves(resident: Build, three: Three, family: str, shuffle: bool) -> None:
    settings = three(family, shuffle=shuffle)
    whole = train(cohort_of(settings, resident()), 3)
    chunked_data = resident(max_resident_bytes=CHUNK_BYTES)
    assert chunked_data.is_chunked
    chunked = train(cohort_of(settings, chunked_data), 3)

    for key in settings:
        assert_same_curve(chunked[key], whole[key], nll=1e-12)


def test_validations_are_due_within_the_epoch_and_at_its_end(resident: Build, trial: Trial) -> None:
    cohort = cohort_of({"a": trial()}, resident(num_train=145), every=3)
    (curve,) = train(cohort, 2).values()

    assert [[v.iteration for v in report.validations] for report in curve] == [[3, 6, 7], [10, 13, 14]]


def test_the_report_says_when_the_schedule_is_exhausted(resident: Build, trial: Trial) -> None:
    """A rate too small to change any validation label, beside a lane whose schedule never ends."""
    halving = {"schedule": "halving", "schedule_patience": 1, "schedule_stop_ratio": 4.0}
    settings = {"a": trial(learning_rate=1e-9, **halving), "b": trial()}
    curves = train(cohort_of(settings, resident()), 4)

    assert [report.is_schedule_exhausted for report in curves["a"]] == [False, False, False, True]
    assert not any(report.is_schedule_exhausted for report in curves["b"])


def test_seconds_are_shared_out_among_the_lanes(resident: Build, three: Three) -> None:
    reports = cohort_of(three("mlp"), resident()).train_epoch()

    assert len({report.seconds for report in reports.values()}) == 1
    assert all(0 < report.seconds < 5 for report in reports.values())


def test_an_empty_cohort_trains_nothing(resident: Build, trial: Trial) -> None:
    cohort = cohort_of({"a": trial()}, resident())
    cohort.release("a")

    assert cohort.keys == ()
    assert cohort.train_epoch() == {}
    cohort.admit("b", trial())
    assert cohort.train_epoch()["b"].epoch == 1


def test_trials_of_one_shape_share_a_cohort_and_others_do_not(trial: Trial) -> None:
    shape = CohortShape.of(trial())
    same = [
        {"learning_rate": 0.5},
        {"lambda_1": 0.1},
        {"schedule": "step"},
        {"seed": 3},
        {"study_seed": 4},
        {"momentum": 0.1},
        {"max_epochs": 3},
        {"hidden_units": 32},
        {"initialization": "lecun"},
        {"activation": "relu"},
        {"optimizer": "adam"},
    ]
    other = [{"hidden_units": 33}, {"batch_size": 21}, {"shuffle": True}, {"precision": "bfloat16"}]

    assert all(CohortShape.of(trial(**settings)) == shape for settings in same)
    assert {shape: 1}[CohortShape.of(trial(seed=1))] == 1
    assert all(CohortShape.of(trial(**settings)) != shape for settings in other)


def test_a_trial_of_another_shape_or_twice_is_refused(resident: Build, trial: Trial) -> None:
    cohort = cohort_of({"a": trial()}, resident())

    with pytest.raises(ValueError, match="another shape"):
        cohort.admit("b", trial(hidden_units=33))
    with pytest.raises(ValueError, match="in a lane already"):
        cohort.admit("a", trial())
    with pytest.raises(ValueError, match="another shape"):
        cohort.admit_all({"c": trial(), "b": trial(hidden_units=33)})
    with pytest.raises(KeyError, match="in no lane"):
        cohort.release("b")
    cohort.admit_all({})
    assert cohort.keys == ("a",)


def test_what_does_not_fit_the_data_is_an_input_error(resident: Build, trial: Trial) -> None:
    with pytest.raises(InputError, match=r"batch_size must be in 1\.\.130 .*got 131"):
        cohort_of({"a": trial(batch_size=131)}, resident(num_train=130))
    with pytest.raises(InputError, match="at least 16x16 pixels, got 8x8"):
        cohort_of({"a": trial("cnn")}, resident(image_shape=(8, 8)))
    with pytest.raises(ValueError, match="validations_every"):
        cohort_of({"a": trial()}, resident(), every=0)


@pytest.mark.gpu
@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_lanes_on_a_gpu_equal_the_reference_on_the_cpu(
    resident: Build, three: Three, family: str, shuffle: bool
) -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    settings = three(family, shuffle=shuffle)
    curves = train(cohort_of(settings, resident(device=torch.device("cuda"))), 3)

    for key, one in settings.items():
        assert_same_curve(curves[key], list(reference(one, resident(), 3).reports))


# Significance


def moves(curve: list[EpochReport], settings: TrialSettings, data: ResidentData, level: float) -> tuple[int, int]:
    """How often a new best was significant and how often it was not, as the rule sees it: with numbers only."""
    stopping = StoppingSettings(rule="significance", significance_level=level, patience=10**9)
    rule = stopping_rule(stopping, num_minibatches=data.num_minibatches(settings.training.batch_size))
    assert isinstance(rule, SignificancePatience)
    num_significant, num_chance = 0, 0
    for report in curve:
        for validation in report.validations:
            best, reference = rule.best, rule.reference_iteration
            rule.observe(replace(report, validations=(validation,)))
            if rule.best != best:
                num_significant += rule.reference_iteration != reference
                num_chance += rule.reference_iteration == reference
    return num_significant, num_chance


@pytest.mark.parametrize("level", [0.2, 0.01])
@pytest.mark.parametrize("family", FAMILIES)
def test_gains_are_counted_against_the_reference_that_the_rule_believes_in(
    resident: Build, three: Three, family: str, level: float
) -> None:
    """Device and rule decide each for itself when the reference moves: the counts would differ if they disagreed."""
    data = resident()
    test = reference_test(data, level)
    settings = three(family, learning_rate=0.03 if family == "logistic" else 0.2)
    cohort = cohort_of(settings, data, reference_test=test)
    curves = train(cohort, 8)

    all_moves = []
    for key, one in settings.items():
        expected = reference(one, data, 8, test=test)
        assert_same_curve(curves[key], list(expected.reports))
        assert_counts_are_of_the_rules_reference(one, curves[key], data, level)
        all_moves.append(moves(curves[key], one, data, level))
    assert any(significant > 1 for significant, _ in all_moves)
    assert any(chance for _, chance in all_moves)


def assert_counts_are_of_the_rules_reference(
    settings: TrialSettings, curve: list[EpochReport], data: ResidentData, level: float
) -> None:
    """Gains less losses are the difference in errors to the reference of the rule."""
    stopping = StoppingSettings(rule="significance", significance_level=level, patience=10**9)
    rule = stopping_rule(stopping, num_minibatches=data.num_minibatches(settings.training.batch_size))
    assert isinstance(rule, SignificancePatience)
    num_images = len(data.validation_labels)
    right = {0: 0}
    for report in curve:
        for validation in report.validations:
            right[validation.iteration] = num_images - round(validation.loss * num_images)
            assert validation.gained is not None
            assert validation.lost is not None
            gain = right[validation.iteration] - right[rule.reference_iteration]
            assert validation.gained - validation.lost == gain
            rule.observe(replace(report, validations=(validation,)))


def test_without_a_test_nothing_is_compared(resident: Build, trial: Trial) -> None:
    data = resident()
    curve = train(cohort_of({"a": trial()}, data, reference_test=None), 1)["a"]

    assert [(v.gained, v.lost) for v in curve[0].validations] == [(None, None)] * 2
    compared = train(cohort_of({"a": trial()}, data), 1)["a"]
    assert [(v.loss, v.nll) for v in compared[0].validations] == [(v.loss, v.nll) for v in curve[0].validations]


def test_what_the_best_is_right_on_is_a_copy_and_needs_a_best(resident: Build, trial: Trial) -> None:
    cohort = cohort_of({"a": trial()}, resident())
    with pytest.raises(KeyError, match="'a' has no finite validation yet"):
        cohort.best_record("a")
    train(cohort, 1)
    cohort.best_record("a")[:] = False
    assert cohort.best_record("a").any()
    with pytest.raises(KeyError, match="'b' is in no lane"):
        cohort.best_record("b")
