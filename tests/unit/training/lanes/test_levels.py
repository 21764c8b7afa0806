"""Images that are levels of 8 bits on the device: the same bits as with floats, whatever trains on them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from hpsearch.data.resident import ResidentData, as_inputs
from hpsearch.data.splits import SelectionData, Split
from hpsearch.study.settings import TrialSettings
from hpsearch.training.lanes.capture import CapturedStep
from hpsearch.training.lanes.cohort import Cohort
from hpsearch.training.lanes.cohort_shape import CohortShape

CPU = torch.device("cpu")
Trial = Callable[..., TrialSettings]


def levels_of(part: Split) -> Split:
    return replace(part, images=np.rint(part.images * 255).astype(np.uint8))


@pytest.fixture
def data(selection_data: Callable[..., SelectionData]) -> SelectionData:
    floats = selection_data()
    return replace(floats, train=levels_of(floats.train), validation=levels_of(floats.validation))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_every_level_is_scaled_exactly_as_on_the_host(dtype: torch.dtype) -> None:
    levels = np.arange(256, dtype=np.uint8).reshape(2, 128)
    expected = torch.from_numpy(Split(images=levels, labels=np.zeros(2, dtype=np.int64)).floats()).to(dtype)
    found = as_inputs(torch.from_numpy(levels), dtype)
    assert found.dtype == dtype
    assert torch.equal(found, expected)


@pytest.mark.parametrize("max_resident_bytes", [None, 45 * (256 + 8)])
@pytest.mark.parametrize("is_shuffled", [False, True])
@pytest.mark.parametrize("family", ["mlp", "logistic", "cnn"])
def test_a_curve_has_the_same_bits_on_levels_and_on_floats(
    data: SelectionData, trial: Trial, family: str, is_shuffled: bool, max_resident_bytes: int | None
) -> None:
    settings = [
        trial(family, learning_rate=rate, seed=seed, shuffle=is_shuffled) for seed, rate in ((1, 0.1), (2, 0.03))
    ]

    def curves(part: SelectionData, **placed: Any) -> tuple[list[Any], dict[str, np.ndarray]]:
        cohort = Cohort(CohortShape.of(settings[0]), ResidentData.place(part, CPU, **placed), CPU, 3)
        for lane, its in enumerate(settings):
            cohort.admit(lane, its)
        reports = [cohort.train_epoch() for _ in range(3)]
        return [report[lane].validations for report in reports for lane in (0, 1)], cohort.best_parameters(0)

    floats = replace(
        data,
        train=replace(data.train, images=data.train.floats()),
        validation=replace(data.validation, images=data.validation.floats()),
    )
    # As many images per chunk on both sides: where a chunk ends, sums are taken in other portions.
    of_floats = None if max_resident_bytes is None else 45 * (4 * 256 + 8)
    expected, parameters = curves(floats, max_resident_bytes=of_floats)
    found, best = curves(data, keeps_levels=True, max_resident_bytes=max_resident_bytes)
    assert found == expected
    for name, value in parameters.items():
        np.testing.assert_array_equal(best[name], value)


@pytest.mark.parametrize("family", ["mlp", "cnn"])
def test_a_captured_step_scales_levels_when_it_is_replayed(
    data: SelectionData,
    trial: Trial,
    family: str,
    frozen_replay: Any,
    stack_tensors: Callable[..., Any],
) -> None:
    def parameters(*, is_captured: bool) -> dict[str, np.ndarray]:
        resident = ResidentData.place(data, CPU, keeps_levels=True)
        cohort = Cohort(CohortShape.of(trial(family)), resident, CPU, 3)
        cohort.admit("a", trial(family, learning_rate=0.1))
        cohort.train_epoch()  # which builds the step for the lane's width
        if is_captured:
            replay = frozen_replay(lambda: stack_tensors(cohort._stack))
            cohort._step = CapturedStep(step=cohort._step, capture=replay)
        for _ in range(3):
            cohort.train_epoch()
        if is_captured:
            assert replay.num_replays > 0
        return cohort.best_parameters("a")

    expected = parameters(is_captured=False)
    for name, value in parameters(is_captured=True).items():
        np.testing.assert_array_equal(value, expected[name])


def test_levels_stay_levels_only_where_floats_would_take_too_much(
    data: SelectionData, monkeypatch: pytest.MonkeyPatch
) -> None:
    def kept(**options: Any) -> torch.dtype:
        ((images, _),) = ResidentData.place(data, CPU, **options).chunks(1)
        return images.dtype

    floats = 4 * data.train.images.size + data.train.labels.nbytes
    assert kept() == torch.float32
    assert kept(max_resident_bytes=floats) == torch.float32
    assert kept(max_resident_bytes=floats - 1) == torch.uint8
    monkeypatch.setattr("hpsearch.data.resident.MOST_FLOAT_BYTES", floats - 1)
    assert kept() == torch.uint8
