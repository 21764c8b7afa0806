"""Checks of networks: healthy ones pass, and planted faults fail where they should."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any
from unittest import mock

import pytest
from torch import Tensor, nn

from hpsearch.checks import learning_rates
from hpsearch.checks.cost import check_cost
from hpsearch.checks.finding import Finding, Verdict
from hpsearch.checks.gradients import check_gradients
from hpsearch.checks.learning import check_overfit, check_shuffled_labels, check_units, check_untrained
from hpsearch.checks.learning_rates import check_learning_rates
from hpsearch.checks.models import MODEL_CHECKS, checked_models, model_name
from hpsearch.checks.network_checks import check_networks
from hpsearch.checks.samples import CheckedModel, OutOfTimeError
from hpsearch.data.splits import SelectionData, Split
from hpsearch.study.definition import StudyDefinition
from hpsearch.training import losses
from hpsearch.training.lanes import steps
from hpsearch.training.networks import custom

Define = Callable[..., StudyDefinition]
Model = Callable[..., CheckedModel]
PLANTED = "benchmarks.planted_modules"


def run(study: StudyDefinition, data: SelectionData, deadline: float | None = None) -> Iterator[Finding]:
    models, _ = checked_models(study)
    until = time.monotonic() + 300 if deadline is None else deadline
    for message in check_networks(study, data, models, deadline=until):
        if isinstance(message, Finding):
            yield message


@pytest.mark.parametrize("family", ["logistic", "mlp", f"{PLANTED}:healthy", f"{PLANTED}:convolutional"])
def test_a_healthy_network_passes_every_check(family: str, define: Define, digits: SelectionData) -> None:
    found = list(run(define(model={"family": family}), digits))
    assert [finding.check for finding in found] == [*MODEL_CHECKS]
    no_units = {"hidden units"} if family == "logistic" else set()
    assert {finding.check for finding in found if finding.verdict is not Verdict.PASSED} == no_units


@pytest.mark.parametrize(
    ("name", "check", "verdict", "words"),
    [
        ("softmax_twice", check_overfit, "failed", "softmax already"),
        ("constant_output", check_overfit, "failed", "do not depend on the images"),
        ("bottleneck", check_overfit, "failed", "too small"),
        ("wrong_sign", check_gradients, "failed", "backward pass of its own"),
        ("detached", check_gradients, "failed", "a detached value"),
        ("dead_units", check_units, "failed", "dead unit"),
        ("saturated", check_units, "warning", "saturated"),
        ("large_weights", check_untrained, "failed", "initial weights that are too large"),
    ],
)
def test_a_fault_of_a_module_is_found_and_its_cause_is_named(
    name: str, check: Callable[[CheckedModel], Finding], verdict: str, words: str, model: Model
) -> None:
    finding = check(model(f"{PLANTED}:{name}"))
    assert finding.verdict.value == verdict
    assert words in finding.look_at[0]


def test_a_module_that_lanes_refuse_fails_before_the_other_checks(define: Define, digits: SelectionData) -> None:
    refused, *others = run(define(model={"family": f"{PLANTED}:unused_parameter"}), digits)
    assert (refused.check, refused.verdict) == ("network", Verdict.FAILED)
    assert "has no influence" in refused.found
    assert [(finding.check, finding.verdict) for finding in others] == [(n, Verdict.SKIPPED) for n in MODEL_CHECKS]


def test_a_loss_that_is_summed_shows_in_every_gradient(model: Model) -> None:
    mean = losses.mean_loss
    with mock.patch.object(steps, "mean_loss", lambda logits, labels: mean(logits, labels) * labels.shape[-1]):
        finding = check_gradients(model(f"{PLANTED}:healthy"))
    assert finding.verdict is Verdict.FAILED
    assert finding.look_at[0].startswith("the loss, or what the network does to its scores")


@pytest.mark.parametrize("family", ["mlp", f"{PLANTED}:healthy"])
def test_weights_of_classes_are_part_of_the_gradient_and_not_of_the_untrained_loss(family: str, model: Model) -> None:
    plain = model(family)
    weighed = replace(plain, settings=plain.training(class_weights=[1.0] * 9 + [20.0]))
    assert check_gradients(weighed).verdict is Verdict.PASSED
    assert check_untrained(weighed).numbers == check_untrained(plain).numbers
    with mock.patch(
        "hpsearch.checks.samples.build_step", lambda network, device, **_: steps.build_step(network, device)
    ):
        assert check_gradients(weighed).verdict is Verdict.FAILED


def test_a_regularised_bias_shows_with_regularisation_only(model: Model) -> None:
    with mock.patch.object(custom, "weight_names", list):
        finding = check_gradients(model(f"{PLANTED}:healthy"))
    assert finding.verdict is Verdict.FAILED
    assert finding.look_at[0].startswith("the regularisation of")
    assert "bias: report this" in finding.look_at[0]


def only_float32(*, image_shape: tuple[int, int], num_classes: int) -> nn.Module:
    """A module that turns everything into float32."""

    class OnlyFloat32(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(image_shape[0] * image_shape[1], num_classes)

        def forward(self, images: Tensor) -> Tensor:
            scores: Tensor = self.layer(images.flatten(1).float())
            return scores

    return OnlyFloat32()


def test_gradients_of_a_module_that_needs_float32_are_skipped(model: Model) -> None:
    finding = check_gradients(model(f"{__name__}:only_float32"))
    assert finding.verdict is Verdict.SKIPPED
    assert finding.found.startswith("the network needs float32: RuntimeError")


def test_the_untrained_loss_of_built_in_networks_is_exact(model: Model) -> None:
    finding = check_untrained(model())
    assert finding.numbers["highest"] == pytest.approx(math.log(10), abs=1e-6)
    assert finding.numbers["lowest"] == pytest.approx(math.log(10), abs=1e-6)


def test_too_few_images_to_learn_overfit(model: Model, digits: SelectionData) -> None:
    few = Split(images=digits.train.images[:1].repeat(100, axis=0), labels=digits.train.labels[:100])
    finding = check_overfit(model(data=replace(digits, train=few)))
    assert (finding.verdict, finding.found) == (Verdict.SKIPPED, "only 1 different training images")


def test_labels_that_reach_the_network_by_another_way_are_found(model: Model) -> None:
    """Every validation image counts as right, whatever was trained: as if the labels came with the images."""
    with mock.patch("hpsearch.training.judge.is_correct", lambda logits, labels: logits[..., 0] < math.inf):
        finding = check_shuffled_labels(model())
    assert finding.verdict is Verdict.FAILED
    assert check_shuffled_labels(model()).verdict is Verdict.PASSED


@pytest.mark.parametrize(
    ("rates", "words", "fix"),
    [
        ([300.0, 1000.0], "all too high", "learning_rate = { log10 = [-1, -2] }  # in [search]"),
        ([1e-6, 1e-7], "all too low", "learning_rate = { log10 = [-1, -2] }  # in [search]"),
    ],
)
def test_learning_rates_outside_of_those_that_train(
    rates: list[float], words: str, fix: str, define: Define, digits: SelectionData
) -> None:
    study = define(search={"learning_rate": rates})
    (settings,), _ = checked_models(study)
    finding = check_learning_rates(
        CheckedModel(definition=study, settings=settings, data=digits, deadline=time.monotonic() + 300)
    )
    assert finding.verdict is Verdict.WARNING
    assert words in finding.look_at[0]
    assert finding.fix == fix


def test_where_nothing_trains_the_penalties_are_looked_at(model: Model) -> None:
    finding = check_learning_rates(model(lambda_2=30.0))
    assert finding.verdict is Verdict.WARNING
    assert "lambda_2" in finding.look_at[0]


def test_a_penalty_without_which_nothing_trains_either_is_not_blamed(
    model: Model, digits: SelectionData, monkeypatch: pytest.MonkeyPatch
) -> None:
    blank = Split(images=0 * digits.train.images, labels=digits.train.labels)
    finding = check_learning_rates(model(data=replace(digits, train=blank), lambda_2=0.001))
    assert (finding.verdict, finding.fix) == (Verdict.WARNING, "")
    assert "lambda" not in "".join(finding.look_at)

    # Nor is one for which no time is left.
    probe = learning_rates._probe

    def first_only(its: CheckedModel, **changes: float) -> dict[float, float]:
        if changes:
            raise OutOfTimeError
        return probe(its)

    monkeypatch.setattr(learning_rates, "_probe", first_only)
    finding = check_learning_rates(model(lambda_2=30.0))
    assert (finding.verdict, finding.fix) == (Verdict.WARNING, "")


def test_the_cost_is_points_times_epochs_times_seconds(model: Model) -> None:
    numbers: Any = check_cost(model()).numbers
    assert numbers["most_hours"] == pytest.approx(2 * 10 * numbers["seconds_per_trial_epoch"] / 3600)
    assert numbers["least_hours"] == numbers["most_hours"]  # the patience of 10,000 minibatches lasts for all 10 epochs
    assert 1 <= numbers["lanes"] <= 2 <= numbers["fitting_lanes"]


def test_a_study_of_more_than_a_week_is_warned_about(define: Define, digits: SelectionData) -> None:
    training = {"batch_size": 20, "max_epochs": 10**9}
    study = define(training=training, stopping={"rule": "none"})
    (settings,), _ = checked_models(study)
    finding = check_cost(
        CheckedModel(definition=study, settings=settings, data=digits, deadline=time.monotonic() + 300)
    )
    assert finding.verdict is Verdict.WARNING


def test_checks_out_of_time_are_skipped(define: Define, digits: SelectionData) -> None:
    found = list(run(define(), digits, deadline=0.0))
    assert [finding.verdict for finding in found] == [Verdict.SKIPPED] * len(MODEL_CHECKS)
    assert "--seconds" in found[0].found


def test_at_most_four_networks_are_checked_and_the_others_are_named(define: Define) -> None:
    study = define(search={"hidden_units": [10, 20, 30, 40, 50, 60], "learning_rate": [0.1, 0.01, 0.001]})
    models, others = checked_models(study)
    assert [settings.model.hidden_units for settings in models] == [10, 30, 40, 60]
    assert others == [f"mlp (hidden_units {width}, activation tanh)" for width in (20, 50)]
    assert {settings.training.learning_rate for settings in models} == {0.01}  # the middle one


def test_the_middle_of_ranges_and_of_listed_points(define: Define) -> None:
    search = {
        "strategy": "random",
        "num_points": 5,
        "learning_rate": {"log10": [-1, -3]},
        "lambda_2": {"log10": [-2, -4], "zero": True},
        "momentum": {"low": 0.5, "high": 0.9},
    }
    (settings,), _ = checked_models(define(training={"optimizer": "momentum"}, search=search))
    training = settings.training
    assert (training.learning_rate, training.lambda_2, training.momentum) == (0.01, 0.001, 0.7)
    points = [{"learning_rate": rate, "hidden_units": 10} for rate in (0.1, 0.2, 0.3)]
    (settings,), _ = checked_models(define(search={"strategy": "listed", "points": points}))
    assert (settings.training.learning_rate, settings.model.hidden_units) == (0.2, 10)


def test_networks_are_named_by_what_decides_their_shape(define: Define) -> None:
    names = {
        "logistic": "logistic",
        "cnn": "cnn (hidden_units 500, activation tanh, kernels 20x50)",
        f"{PLANTED}:healthy": f"{PLANTED}:healthy",
    }
    for family, name in names.items():
        (settings,), _ = checked_models(define(model={"family": family}))
        assert model_name(settings) == name


def test_rates_of_the_probe_keep_their_results_whatever_the_order_of_the_lanes(
    define: Define, digits: SelectionData, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With this L2 factor low rates train in blocks, and lie before high ones in the lanes."""
    model = CheckedModel(
        definition=define(),
        settings=checked_models(define(training={"batch_size": 20, "lambda_2": 0.01}))[0][0],
        data=digits,
        deadline=time.monotonic() + 300,
    )
    together = check_learning_rates(model).numbers
    monkeypatch.setattr(CheckedModel, "fitting_lanes", lambda self, batch_size: 1)
    alone = check_learning_rates(model).numbers
    # At the edge of divergence, the last bit decides on which side a rate is.
    assert together.keys() ^ alone.keys() <= {"nll_gain_1"}
    for name in together.keys() & alone.keys():
        assert together[name] == pytest.approx(alone[name], rel=1e-3, abs=1e-3)


def test_without_memory_for_a_lane_checks_are_skipped(
    define: Define, digits: SelectionData, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hpsearch.checks.samples.bytes_per_lane", lambda network, batch_size: 2**60)
    found = {finding.check: finding for finding in run(define(), digits)}
    for name in ("overfit", "learning rates", "shuffled labels", "cost"):
        assert (found[name].verdict, found[name].found) == (Verdict.SKIPPED, "there is not enough memory for one lane")


@pytest.mark.parametrize(
    ("stopping", "pruning", "share"),
    [
        ({"rule": "none"}, {}, 1.0),
        ({"rule": "no-improvement-in-n", "n": 3}, {}, 0.4),
        ({"rule": "geometric-patience", "patience": 128}, {}, 0.2),  # two epochs of 64 minibatches
        ({"rule": "none"}, {"pruner": "median", "warmup_epochs": 5}, 0.6),
    ],
)
def test_the_fewest_epochs_are_those_before_a_rule_may_end_a_trial(
    stopping: dict[str, Any], pruning: dict[str, Any], share: float, define: Define, digits: SelectionData
) -> None:
    study = define(stopping=stopping, pruning=pruning)
    (settings,), _ = checked_models(study)
    model = CheckedModel(definition=study, settings=settings, data=digits, deadline=time.monotonic() + 300)
    numbers: Any = check_cost(model).numbers
    assert numbers["least_hours"] == pytest.approx(share * numbers["most_hours"])


def test_each_of_several_networks_has_its_part_of_the_points(define: Define, digits: SelectionData) -> None:
    study = define(search={"learning_rate": [0.1, 0.01], "hidden_units": [10, 20]})
    settings, _ = checked_models(study)
    model = CheckedModel(definition=study, settings=settings[0], data=digits, deadline=time.monotonic() + 300)
    assert "2 points with this network" in check_cost(model).found
