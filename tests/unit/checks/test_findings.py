"""The rule for all findings that warn or fail: what was found and expected, what to look at, the line that mends it.

Every finding that the other tests of this folder see is held to it as well (conftest.py).
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

from benchmarks.planted_faults import FAULTS
from hpsearch.checks import cost, gradients, learning, learning_rates
from hpsearch.checks.batch_sizes import check_batch_sizes
from hpsearch.checks.duplicates import exact_duplicates, near_duplicates
from hpsearch.checks.finding import Finding, Verdict
from hpsearch.checks.gradients import LARGEST_ERROR, _Errors, _likely_cause
from hpsearch.checks.images import check_classes, check_labels, check_values
from hpsearch.checks.isolation import ModelProcess
from hpsearch.checks.models import MODEL_CHECKS, checked_models
from hpsearch.checks.network_checks import check_networks
from hpsearch.checks.samples import CheckedModel
from hpsearch.data.splits import SelectionData, Split
from hpsearch.study.definition import StudyDefinition
from hpsearch.training.networks.dense import Mlp
from tests.unit.checks.rule import broken_rules, with_line

Define = Callable[..., StudyDefinition]
Change = Callable[[SelectionData], SelectionData]
Check = Callable[[StudyDefinition, SelectionData], Iterator[Finding]]
Planted = Callable[[], AbstractContextManager[Any]]
PLANTED = {fault.name: fault for fault in FAULTS}
MODULES = "benchmarks.planted_modules"
DATA_CHECKS = ("batch sizes", "classes", "order", "values", "likeness", "duplicates", "labels", "near duplicates")


def of_data(definition: StudyDefinition, data: SelectionData) -> Iterator[Finding]:
    yield check_batch_sizes(definition, data)
    yield from check_classes(data, definition)
    yield from check_values(data)
    yield exact_duplicates(data)
    yield check_labels(data)
    yield near_duplicates(data, deadline=math.inf)


def of_model(check: Callable[[CheckedModel], Finding]) -> Check:
    def run(definition: StudyDefinition, data: SelectionData) -> Iterator[Finding]:
        settings, *_ = checked_models(definition)[0]
        yield check(CheckedModel(definition=definition, settings=settings, data=data, deadline=math.inf))

    return run


def of_network(definition: StudyDefinition, data: SelectionData) -> Iterator[Finding]:
    models, _ = checked_models(definition)
    yield next(m for m in check_networks(definition, data, models, deadline=time.monotonic()) if isinstance(m, Finding))


def of_dead_process(definition: StudyDefinition, data: SelectionData) -> Iterator[Finding]:
    with ModelProcess(definition, checked_models(definition)[0]) as process:
        process._process.kill()
        process._process.wait()
        for is_over in (True, False):
            yield process._end_of_child(0, "overfit", is_over=is_over)


untrained, units = of_model(learning.check_untrained), of_model(learning.check_units)
overfit, shuffled = of_model(learning.check_overfit), of_model(learning.check_shuffled_labels)
rates, derivatives = of_model(learning_rates.check_learning_rates), of_model(gradients.check_gradients)
costs = of_model(cost.check_cost)


def on_both(change: Callable[[NDArray[np.float32]], NDArray[Any]]) -> Change:
    """Change the images of both parts."""

    def changed(data: SelectionData) -> SelectionData:
        train, validation = (
            replace(part, images=change(part.images).astype(np.float32)) for part in (data.train, data.validation)
        )
        return replace(data, train=train, validation=validation)

    return changed


def without(label: int, *parts: str) -> Change:
    def kept(part: Split) -> Split:
        return Split(images=part.images[part.labels != label], labels=part.labels[part.labels != label])

    return lambda data: replace(data, **{name: kept(getattr(data, name)) for name in parts})


def smaller(data: SelectionData) -> SelectionData:
    """Images of 8x8 pixels."""
    return replace(on_both(lambda images: images[:, :64])(data), example_shape=(8, 8))


def of_class_0(data: SelectionData) -> SelectionData:
    return replace(data, train=replace(data.train, labels=np.zeros_like(data.train.labels)))


def only_one_pixel(images: NDArray[np.float32]) -> NDArray[np.float32]:
    return images * (np.arange(images.shape[1]) == 400)


def knows_class_0(*, image_shape: tuple[int, int], num_classes: int) -> nn.Module:
    layer = nn.Linear(image_shape[0] * image_shape[1], num_classes)
    with torch.no_grad():
        layer.bias[0] = 5.0
    return nn.Sequential(nn.Flatten(), layer)


def fails(*, image_shape: tuple[int, int], num_classes: int) -> nn.Module:
    """A network that lanes accept, and that fails with more than 100 images."""

    class Failing(nn.Linear):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            if len(images) > 100:
                raise ValueError("too many")
            return super().forward(images)

    return nn.Sequential(nn.Flatten(), Failing(image_shape[0] * image_shape[1], num_classes))


def of_failing_check(definition: StudyDefinition, data: SelectionData) -> Iterator[Finding]:
    models, _ = checked_models(definition)
    messages = check_networks(definition, data, models, deadline=time.monotonic() + 300)
    yield next(message for message in messages if isinstance(message, Finding))


def with_weights() -> AbstractContextManager[Any]:
    """The softmax layer of built-in networks begins at 1."""
    initial = Mlp.initial_parameters

    def changed(self: Mlp, **arguments: Any) -> dict[str, torch.Tensor]:
        return {name: value + torch.rand_like(value) for name, value in initial(self, **arguments).items()}

    return mock.patch.object(Mlp, "initial_parameters", changed)


def always_right() -> AbstractContextManager[Any]:
    return mock.patch("hpsearch.training.judge.is_correct", lambda logits, labels: logits[..., 0] < math.inf)


def slow() -> AbstractContextManager[Any]:
    return mock.patch.object(cost, "_measure", return_value=10_000.0)


@dataclass(frozen=True, kw_only=True)
class Case:
    """A fault, and the check that must see it.

    Args:
        sections: of the study file.
        code: plants the fault into hpsearch.
        has_line: a line of the study file mends it, so that the check passes with it.
        has_other_line: a line helps, and the check may still not pass.
    """

    check: str
    run: Check = of_data
    sections: dict[str, Any] = field(default_factory=dict)
    data: Change = lambda data: data
    code: Planted = contextlib.nullcontext
    has_line: bool = False
    has_other_line: bool = False


def search(**keys: Any) -> dict[str, Any]:
    return {"search": {"learning_rate": [0.1, 0.01], **keys}}


def listed(*points: dict[str, Any]) -> dict[str, Any]:
    return {"search": {"strategy": "listed", "points": list(points)}}


def module(name: str, **sections: Any) -> dict[str, Any]:
    return {"model": {"family": name if ":" in name else f"{MODULES}:{name}"}, **sections}


def training(**keys: Any) -> dict[str, Any]:
    return {"training": {"batch_size": 20, "max_epochs": 10, **keys}}


LONG = {**training(max_epochs=1000), "stopping": {"rule": "none"}}
DRAWN = {"strategy": "random", "num_points": 5}
SORTED = PLANTED["data sorted by class"].data
TOO_HIGH, TOO_LOW = [300.0, 1000.0], [1e-7, 1e-6]
CASES = [
    Case(check="batch sizes", sections=training(batch_size=5000), has_line=True),
    Case(check="batch sizes", sections=search(batch_size=[20, 5000]), has_line=True),
    Case(check="batch sizes", sections=search(batch_size={"low": 2000, "high": 5000}, **DRAWN), has_line=True),
    Case(check="batch sizes", sections=listed({"batch_size": 20}, {"batch_size": 5000})),
    Case(check="batch sizes", sections={"data": {"dataset": "digits", "max_resident_bytes": 50_000}}, has_line=True),
    Case(check="classes", data=without(3, "train")),
    Case(
        check="classes",
        data=without(3, "train"),
        sections={"data": {"dataset": "digits", "train_samples": 900}},
        has_other_line=True,
    ),
    Case(check="classes", data=without(3, "validation")),
    Case(check="classes", data=without(0, "train", "validation")),
    Case(check="classes", data=PLANTED["data sorted before the split"].data),
    Case(check="order", data=SORTED, has_line=True),
    Case(check="order", data=SORTED, sections=search(shuffle=[True, False]), has_line=True),
    Case(check="values", data=PLANTED["a NaN among the inputs"].data),
    Case(check="values", data=PLANTED["the same image everywhere"].data),
    Case(check="values", data=PLANTED["inputs of 0 to 255"].data),
    Case(check="values", data=PLANTED["inputs divided by 255 twice"].data),
    Case(check="values", data=on_both(only_one_pixel)),
    Case(check="likeness", data=PLANTED["validation images transposed"].data),
    Case(check="likeness", data=lambda data: replace(data, validation=on_both(lambda x: x / 4)(data).validation)),
    Case(check="duplicates", data=PLANTED["validation rows in training"].data),
    Case(check="near duplicates", data=PLANTED["noisy validation rows in training"].data),
    Case(check="labels", data=PLANTED["training labels shuffled"].data),
    Case(check="labels", data=PLANTED["validation labels shifted by one row"].data),
    Case(check="network", run=of_network, sections={"model": {"family": "cnn"}}, data=smaller, has_other_line=True),
    Case(check="network", run=of_network, sections=search(family=["cnn"]), data=smaller, has_other_line=True),
    Case(
        check="network",
        run=of_network,
        sections={"model": {"family": "cnn"}, **search(kernels=["2x2", "4x4"])},
        data=smaller,
    ),
    Case(check="network", run=of_network, sections=module("unused_parameter")),
    Case(check="untrained loss", run=of_failing_check, sections=module(f"{__name__}:fails")),
    Case(check="overfit", run=of_dead_process),
    Case(check="untrained loss", run=untrained, data=on_both(lambda images: images * np.nan)),
    Case(check="untrained loss", run=untrained, code=with_weights),
    Case(check="untrained loss", run=untrained, sections=module("large_weights")),
    Case(check="untrained loss", run=untrained, sections=module(f"{__name__}:knows_class_0"), data=of_class_0),
    Case(check="hidden units", run=units, sections=module("dead_units")),
    Case(check="hidden units", run=units, sections=module("saturated")),
    Case(
        check="hidden units",
        run=units,
        sections={"model": {"hidden_units": 20, "activation": "relu"}},
        data=on_both(np.zeros_like),
        has_line=True,
    ),
    Case(check="hidden units", run=units, data=on_both(lambda images: 20 * images), has_other_line=True),
    Case(
        check="hidden units",
        run=units,
        sections={"model": {"hidden_units": 20, "initialization": "lecun"}},
        data=on_both(lambda images: 255 * images),
        has_line=True,
    ),
    Case(check="gradients", run=derivatives, sections=module("wrong_sign")),
    Case(check="gradients", run=derivatives, sections=module("detached")),
    Case(check="gradients", run=derivatives, sections=module("healthy"), code=PLANTED["loss summed for mean"].code),
    Case(check="gradients", run=derivatives, sections=module("healthy"), code=PLANTED["regularised biases"].code),
    Case(check="overfit", run=overfit, sections=module("softmax_twice")),
    Case(check="overfit", run=overfit, sections=module("constant_output")),
    Case(check="overfit", run=overfit, sections=module("bottleneck")),
    Case(
        check="overfit", run=overfit, sections=module("needs_digits", **training(precision="bfloat16")), has_line=True
    ),
    Case(check="overfit", run=overfit, sections={"model": {"hidden_units": 1}}, has_other_line=True),
    Case(check="overfit", run=overfit, sections=search(hidden_units=[1, 40]), has_line=True),
    Case(check="shuffled labels", run=shuffled, code=always_right),
    Case(check="learning rates", run=rates, sections=search(learning_rate=TOO_HIGH), has_line=True),
    Case(check="learning rates", run=rates, sections=search(learning_rate=TOO_LOW, **DRAWN), has_line=True),
    Case(check="learning rates", run=rates, sections=search(learning_rate=[1e-7, 300.0]), has_line=True),
    Case(
        check="learning rates",
        run=rates,
        sections={**training(learning_rate=300.0), "search": {"lambda_2": [0.0, 0.001]}},
        has_line=True,
    ),
    Case(check="learning rates", run=rates, sections=listed(*({"learning_rate": rate} for rate in TOO_HIGH))),
    Case(check="learning rates", run=rates, sections=training(lambda_2=30.0), has_line=True),
    Case(check="learning rates", run=rates, sections=search(lambda_2=[30.0, 40.0]), has_line=True),
    Case(check="learning rates", run=rates, sections=listed({"lambda_2": 30.0}, {"lambda_2": 40.0})),
    Case(check="learning rates", run=rates, data=on_both(np.zeros_like)),
    Case(check="cost", run=costs, sections=LONG, code=slow, has_line=True),
    Case(check="cost", run=costs, sections={**LONG, **search(**DRAWN)}, code=slow, has_line=True),
    Case(check="cost", run=costs, sections={**LONG, **search(max_epochs=[500, 900])}, code=slow, has_line=True),
    Case(
        check="cost",
        run=costs,
        sections={**LONG, "search": {"strategy": "coarse-to-fine", "learning_rate": {"log10": [0, -3]}}},
        code=slow,
        has_line=True,
    ),
    Case(check="cost", run=costs, sections={**LONG, **listed({"max_epochs": 500}, {"max_epochs": 900})}, code=slow),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.check)
def test_a_finding_says_what_to_do_and_the_line_that_mends_it(
    case: Case, define: Define, digits: SelectionData
) -> None:
    """What was found and expected, a cause with a remedy, and a line that the study file accepts if one helps."""
    study = define(**case.sections)

    def findings(definition: StudyDefinition) -> list[Finding]:
        with case.code(), np.errstate(invalid="ignore"):
            return [finding for finding in case.run(definition, case.data(digits)) if finding.check == case.check]

    found = findings(study)
    assert found
    for finding in found:
        assert finding.verdict in (Verdict.WARNING, Verdict.FAILED), finding
        assert [*broken_rules(finding)] == []
        assert bool(finding.fix) == (case.has_line or case.has_other_line), finding
        if finding.fix:
            mended = with_line(study, finding.fix)
            assert mended != study
            if case.has_line:
                assert [after.verdict for after in findings(mended)] == [Verdict.PASSED], finding.fix


def test_there_is_a_case_for_every_check() -> None:
    assert {case.check for case in CASES} == {*DATA_CHECKS, "network", *MODEL_CHECKS}


@pytest.mark.parametrize("is_custom", [True, False])
@pytest.mark.parametrize("wrong", [("initial", "a"), ("initial", "ab"), ("regularised", "a"), ("trained", "b")])
def test_every_cause_of_a_wrong_gradient_comes_with_what_to_do(wrong: tuple[str, str], *, is_custom: bool) -> None:
    stages = [
        _Errors(
            stage=stage,
            by_parameter={name: 10 * LARGEST_ERROR if stage == wrong[0] and name in wrong[1] else 0.0 for name in "ab"},
        )
        for stage in ("initial", "regularised", "trained")
    ]
    worst = max(stages, key=lambda stage: stage.largest)
    what, _, remedy = _likely_cause(stages, worst, is_custom=is_custom).partition(": ")
    assert what
    assert remedy
    assert is_custom or "report this as a fault of hpsearch" in remedy
