"""What only a GPU can show of lanes: captured graphs and validations, blocks, TF32, and every GPU of several."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from benchmarks.reference_loop import TrialResult, train_trial
from hpsearch.data.resident import ResidentData, as_inputs
from hpsearch.data.splits import SelectionData, Split
from hpsearch.epoch_report import EpochReport
from hpsearch.search.significance import critical_gains
from hpsearch.study.settings import ModelSettings, TrainingSettings, TrialSettings
from hpsearch.training.correct_images import ReferenceTest
from hpsearch.training.lanes.capture import CapturedStep, LaneStep
from hpsearch.training.lanes.cohort import Cohort
from hpsearch.training.lanes.cohort_shape import CohortShape

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]
NEVER = 10**9
CPU = torch.device("cpu")


def images() -> SelectionData:
    generator = np.random.default_rng(0)

    def split(num_images: int) -> Split:
        labels = generator.integers(0, 10, num_images)
        noise = generator.random((num_images, 784), dtype=np.float32)
        return Split(images=0.5 * noise + 0.05 * labels[:, None].astype(np.float32), labels=labels)

    return SelectionData(
        name="random", train=split(2000), validation=split(500), example_shape=(28, 28), num_classes=10, checksums={}
    )


def trial(hidden_units: int = 500, **training: object) -> TrialSettings:
    values = {"batch_size": 20, "learning_rate": 0.02, **training}
    return TrialSettings(
        model=ModelSettings(hidden_units=hidden_units), training=TrainingSettings.model_validate(values)
    )


def curves_of_a_changing_cohort(trials: list[TrialSettings], device: torch.device) -> dict[int, list[float]]:
    """Validation NLLs in float64: two lanes, a third one, then a drain, then a refill."""
    cohort = Cohort(CohortShape.of(trials[0]), ResidentData.place(images(), device), device, NEVER, dtype=torch.float64)
    curves: dict[int, list[float]] = {index: [] for index in range(len(trials))}

    def train(num_epochs: int) -> None:
        for _ in range(num_epochs):
            for key, report in cohort.train_epoch().items():
                curves[int(str(key))].append(report.validations[-1].nll)

    cohort.admit(0, trials[0])
    cohort.admit(1, trials[1])
    train(3)
    cohort.admit(2, trials[2])
    train(2)
    cohort.release(0)
    train(2)
    cohort.release(1)
    cohort.admit(3, trials[3])  # into memory that graphs know already
    train(2)
    return curves


@pytest.mark.parametrize("index", range(max(1, torch.cuda.device_count())))
@pytest.mark.parametrize("optimizer", ["sgd", "momentum", "adam"])
def test_captured_graphs_and_blocks_train_as_the_reference_does(optimizer: str, index: int) -> None:
    """With enough units for blocks, widths that differ, and on each GPU, whichever is the current one."""
    rate = {"sgd": 0.02, "momentum": 0.005, "adam": 0.0005}[optimizer]
    common = {"optimizer": optimizer, "learning_rate": rate}
    trials = [
        trial(**common, lambda_2=1e-4),
        trial(450, **common),
        trial(512, **common, lambda_1=1e-5),
        trial(500, **common, lambda_2=1e-3),
    ]

    curves = curves_of_a_changing_cohort(trials, torch.device("cuda", index))

    data = ResidentData.place(images(), CPU)
    for key, curve in curves.items():
        expected = train_trial(
            trials[key],
            data,
            device=CPU,
            validations_every=NEVER,
            should_stop=lambda report, num_epochs=len(curve): report.epoch >= num_epochs,  # noqa: B008
            dtype=torch.float64,
        )
        tolerance = 1e-4 if optimizer == "adam" else 1e-6  # it divides a gradient near 0 by its own size
        assert curve == pytest.approx([report.validations[-1].nll for report in expected.reports], rel=tolerance)


FOUR_PER_EPOCH = 25  # minibatches between validations, of 100
POISON = "poison"


@pytest.mark.parametrize("optimizer", ["sgd", "momentum"])
def test_bits_and_gains_are_those_of_the_reference(optimizer: str) -> None:
    """Validations are captured, too; a lane beside is full of NaN, and then another trial's."""
    rate = {"sgd": 0.05, "momentum": 0.01}[optimizer]
    own = [{"lambda_2": 1e-4}, {"hidden_units": 450}, {"lambda_1": 1e-5, "seed": 3}, {"learning_rate": rate / 2}]
    trials = [trial(**{"optimizer": optimizer, "learning_rate": rate} | one) for one in own]

    curves, bests = compared_curves(trials, torch.device("cuda"))

    for key, curve in curves.items():
        expected = compared_alone(trials[key], num_epochs=len(curve))
        for report, other in zip(curve, expected.reports, strict=True):
            assert [(v.loss, v.gained, v.lost) for v in report.validations] == [
                (v.loss, v.gained, v.lost) for v in other.validations
            ]
        assert expected.best is not None
        best_error, correct = bests[key]
        assert best_error == expected.best.loss == (~correct).mean()
        assert np.array_equal(correct, expected.best_correct)
    gains = [v.gained for curve in curves.values() for report in curve for v in report.validations]
    assert len(set(gains)) > 10  # the references moved, and something was compared


def compared_curves(
    trials: list[TrialSettings], device: torch.device
) -> tuple[dict[int, list[EpochReport]], dict[int, tuple[float, np.ndarray]]]:
    """Four trials that come and go beside one that diverges at once: their reports; their best errors and bits."""
    data = ResidentData.place(images(), device)
    cohort = Cohort(CohortShape.of(trials[0]), data, device, FOUR_PER_EPOCH, reference_test(data), dtype=torch.float64)
    curves: dict[int, list[EpochReport]] = {index: [] for index in range(len(trials))}
    bests = {}

    def train(num_epochs: int) -> None:
        for _ in range(num_epochs):
            for key, report in cohort.train_epoch().items():
                assert report.has_diverged == (key == POISON)
                if key != POISON:
                    curves[int(str(key))].append(report)
        for key in cohort.keys:
            if key != POISON:
                best = cohort.best(key)
                assert best is not None
                bests[int(str(key))] = best.loss, cohort.best_record(key)

    training = trials[0].training.model_copy(update={"learning_rate": 1e200, "lambda_2": 1.0})
    cohort.admit(0, trials[0])
    cohort.admit(POISON, trials[0].model_copy(update={"training": training}))
    train(3)
    cohort.admit(1, trials[1])
    train(3)
    cohort.release(POISON)
    cohort.admit(2, trials[2])  # into its lane, in memory that the graphs know already
    train(3)
    cohort.release(0)
    train(2)
    cohort.admit(3, trials[3])
    train(3)
    return curves, bests


def compared_alone(settings: TrialSettings, *, num_epochs: int) -> TrialResult:
    data = ResidentData.place(images(), CPU)
    return train_trial(
        settings,
        data,
        device=CPU,
        validations_every=FOUR_PER_EPOCH,
        should_stop=lambda report: report.epoch >= num_epochs,
        reference_test=reference_test(data),
        dtype=torch.float64,
    )


def reference_test(data: ResidentData) -> ReferenceTest:
    return ReferenceTest(level=0.05, critical_gains=critical_gains(len(data.validation_labels), 0.05))


@pytest.mark.parametrize("precision", ["tf32", "bfloat16"])
def test_rounding_shows_and_stays_small(precision: str) -> None:
    device = torch.device("cuda")
    data = ResidentData.place(images(), device)
    found = {}
    for name in ("float32", precision):
        cohort = Cohort(CohortShape.of(trial(precision=name)), data, device, NEVER)
        for lane in range(4):
            cohort.admit(lane, trial(precision=name, seed=lane))
        for _ in range(3):
            reports = cohort.train_epoch()
        found[name] = [reports[lane].validations[-1].nll for lane in range(4)]

    assert found[precision] != found["float32"]
    assert found[precision] == pytest.approx(found["float32"], rel=0.02)


def test_a_gpu_is_given_captured_steps() -> None:
    device = torch.device("cuda")
    cohort = Cohort(CohortShape.of(trial()), ResidentData.place(images(), device), device, NEVER)

    assert isinstance(cohort._step, CapturedStep)


@pytest.mark.parametrize("refused", [lambda: torch.ones(1).cuda(), torch.cuda.synchronize], ids=["copy", "wait"])
def test_what_cannot_be_captured_trains_eagerly_and_spoils_no_later_capture(refused: Callable[[], object]) -> None:
    device = torch.device("cuda")
    data = ResidentData.place(images(), device)

    class Refused:
        def __init__(self, step: LaneStep) -> None:
            self.step = step

        def train(self, *arguments: Any) -> Tensor:
            result = self.step.train(*arguments)
            refused()
            return result

    curves = []
    for is_refused in (False, True, False):
        cohort = Cohort(CohortShape.of(trial()), data, device, NEVER)
        cohort.admit(0, trial())
        cohort.train_epoch()  # builds the step
        assert isinstance(cohort._step, CapturedStep)
        if is_refused:
            cohort._step.step = Refused(cohort._step.step)
        cohort._step.drop()
        curves.append([cohort.train_epoch()[0].validations for _ in range(3)])
        assert cohort._step._is_eager == is_refused
        del cohort  # its streams are the next one's
        torch.cuda.empty_cache()  # raises if the allocator believes that a capture goes on
    assert curves[0] == curves[1] == curves[2]


def test_copies_of_filters_between_captured_epochs_change_no_bit_and_are_the_weights() -> None:
    device = torch.device("cuda")
    data = ResidentData.place(images(), device)
    curves = []
    for is_copied in (False, True):
        trials = [trial(hidden_units=width) for width in (300, 500)]
        cohort = Cohort(CohortShape.of(trials[0]), data, device, NEVER)
        for key, each in enumerate(trials):
            cohort.admit(key, each)
        numbers = []
        for _ in range(3):
            numbers.append({key: report.validations for key, report in cohort.train_epoch().items()})
            if is_copied:
                copies = cohort.first_filters([0, 1])
                for key, checkpoint in cohort.checkpoint([0, 1]).fetch().items():
                    rows = checkpoint.arrays["parameters/hidden.weight"][copies[key].units].reshape(-1, 28, 28)
                    steps = copies[key].scales[:, None, None]
                    assert (np.abs(copies[key].codes * steps - rows) <= 0.501 * steps).all()
        curves.append(numbers)
    assert curves[0] == curves[1]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_levels_are_scaled_on_the_device_exactly_as_on_the_host(dtype: torch.dtype) -> None:
    levels = torch.arange(256, dtype=torch.uint8).reshape(2, 128)
    assert torch.equal(as_inputs(levels.cuda(), dtype).cpu(), as_inputs(levels, dtype))


@pytest.mark.parametrize(("family", "is_shuffled"), [("mlp", False), ("mlp", True), ("cnn", True)])
def test_curves_on_levels_have_the_bits_of_those_on_floats(family: str, is_shuffled: bool) -> None:
    """Also where graphs are captured: they scale what the next minibatches bring."""
    data, device = images(), torch.device("cuda")
    levels = [replace(part, images=(part.images * 255).astype(np.uint8)) for part in (data.train, data.validation)]
    data = replace(data, train=levels[0], validation=levels[1])
    settings = trial(20, shuffle=is_shuffled)
    settings = settings.model_copy(update={"model": settings.model.model_copy(update={"family": family})})

    def curve(*, keeps_levels: bool) -> list[EpochReport]:
        resident = ResidentData.place(data, device, keeps_levels=keeps_levels)
        cohort = Cohort(CohortShape.of(settings), resident, device, NEVER)
        cohort.admit("a", settings)
        return [cohort.train_epoch()["a"] for _ in range(4)]

    pairs = zip(curve(keeps_levels=True), curve(keeps_levels=False), strict=True)
    assert all(one.validations == other.validations for one, other in pairs)
