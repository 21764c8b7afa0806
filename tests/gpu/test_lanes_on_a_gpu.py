"""What only a GPU can show of lanes: captured graphs, blocks, TF32, and every GPU of several."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from hpsearch.data.resident import ResidentData
from hpsearch.data.splits import SelectionData, Split
from hpsearch.settings import ModelSettings, TrainingSettings, TrialSettings
from hpsearch.training.captured_step import CapturedStep
from hpsearch.training.lanes import Cohort, CohortShape
from hpsearch.training.reference import train_trial

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
        name="random", train=split(2000), validation=split(500), image_shape=(28, 28), num_classes=10, checksums={}
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
