"""How a lane is rounded never depends on a neighbour: on who is there, since when, or with which seed.

Stated tolerance, on the CPU. Beside the same number of lanes (of the same widths and kinds of update) a trial has the
same bits: parameters and validations; its mean training NLL to 1e-12, for float64 sums are taken in other portions.
That holds where a lane's units times the batch size fill whole vectors (32 numbers with AVX-512): torch computes the
sigmoid and tanh of the elements that are left over at a tensor's end by a scalar routine, which differs in the last
bit, so another lane's trial parts from the same trial in the last lane by float32's rounding.
Beside another number of lanes, sums of float32 may be taken in another order, which tips a bfloat16 now and then: NLL
within 1 % after four epochs. Blocks in one world and single minibatches in the other part further.

TF32 does not exist on a CPU, where such a study trains in float32: that the same operations are done beside every
neighbour is what the bits show here.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Hashable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from hpsearch.data.resident import ResidentData
from hpsearch.epoch_report import EpochReport
from hpsearch.study.settings import TrialSettings
from hpsearch.training.lanes import dense_step
from hpsearch.training.lanes.cohort import Cohort
from hpsearch.training.lanes.cohort_shape import CohortShape

CPU = torch.device("cpu")
Trial = Callable[..., TrialSettings]
NUM_EPOCHS = 4
WHOLE_VECTORS = {"hidden_units": 16}  # times 20 images
RATES = {"sgd": 0.1, "momentum": 0.02}


def convolutional(*, image_shape: tuple[int, int], num_classes: int) -> nn.Module:
    """A user's own: by vmap, common images take another convolution than images of each lane's own."""
    features = 4 * (image_shape[0] // 2) * (image_shape[1] // 2)
    layers = nn.Conv2d(1, 4, 5, padding=2), nn.GroupNorm(2, 4), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten()
    return nn.Sequential(*layers, nn.Linear(features, num_classes))


OWN = f"{__name__}:convolutional"


class World:
    """A trial among neighbours that come and go, drawn from a seed; how many there are in each epoch is given."""

    def __init__(self, seed: int, common: dict[str, Any], trial: Trial, data: ResidentData) -> None:
        self._random = random.Random(seed)
        self._common = common
        self._trial = trial
        self.settings = trial(learning_rate=RATES[common["optimizer"]], **common)
        self._cohort = Cohort(CohortShape.of(self.settings), data, CPU, 4)
        self._num_neighbours = 0

    def curve(self, num_lanes: list[int], *, turnover: float, seeds: list[int]) -> list[EpochReport]:
        """Train the trial, named "it", beside `num_lanes - 1` others.

        Args:
            turnover: the probability that a neighbour leaves after an epoch.
            seeds: of the neighbours; the trial's own is 0.
        """
        curve = []
        for epoch, total in enumerate(num_lanes):
            others = [key for key in self._cohort.keys if key != "it"]
            leaving = {key for key in others if self._random.random() < turnover}
            staying = [key for key in others if key not in leaving]
            leaving.update(staying[total - 1 :])
            for key in leaving:
                self._cohort.release(key)
            newcomers: list[Hashable] = ["it"] if epoch == 0 else []
            num_staying = len([key for key in self._cohort.keys if key != "it"])
            for _ in range(total - 1 - num_staying):
                self._num_neighbours += 1
                newcomers.append(self._num_neighbours)
            self._random.shuffle(newcomers)
            for key in newcomers:
                self._cohort.admit(key, self.settings if key == "it" else self._neighbour(seeds))
            curve.append(self._cohort.train_epoch()["it"])
        return curve

    def parameters(self) -> dict[str, np.ndarray]:
        return self._cohort.best_parameters("it")

    def _neighbour(self, seeds: list[int]) -> TrialSettings:
        choose = self._random.choice
        own = {"lambda_2": choose([0.0, 1e-3]), "schedule": choose(["constant", "exponential"])}
        rate = RATES[self._common["optimizer"]] * choose([0.1, 1, 3])
        return self._trial(learning_rate=rate, **(self._common | own), study_seed=choose(seeds))


def bits(curve: list[EpochReport]) -> list[object]:
    return [[(v.loss, v.nll) for v in report.validations] for report in curve]


@pytest.mark.parametrize("precision", ["bfloat16", "tf32"])
@pytest.mark.parametrize("shuffle", [True, False])
@pytest.mark.parametrize("optimizer", ["sgd", "momentum"])
@pytest.mark.parametrize("family", ["mlp", "logistic", "cnn", OWN])
def test_a_trial_has_the_same_bits_whoever_is_beside_it(
    family: str,
    optimizer: str,
    shuffle: bool,
    precision: str,
    resident: Callable[..., ResidentData],
    trial: Trial,
) -> None:
    """In the first world all lanes share their images from beginning to end; in the others they seldom do."""
    common = {"family": family, "optimizer": optimizer, "shuffle": shuffle, "precision": precision, **WHOLE_VECTORS}
    data = resident()
    num_lanes = [random.Random(f"{family} {optimizer}").randrange(2, 6) for _ in range(NUM_EPOCHS)]
    num_lanes.sort(reverse=True)  # none has to be admitted later in the first world
    first = World(0, common, trial, data)
    expected = first.curve(num_lanes, turnover=0.0, seeds=[0])

    for seed in (1, 2):
        world = World(seed, common, trial, data)
        curve = world.curve(num_lanes, turnover=0.5, seeds=[0, 0, 5])

        assert bits(curve) == bits(expected)
        assert [r.train_nll for r in curve] == pytest.approx([r.train_nll for r in expected], rel=1e-12)
        for name, value in first.parameters().items():
            assert np.array_equal(world.parameters()[name], value), name


@pytest.mark.parametrize("shuffle", [True, False])
def test_a_lane_that_fills_no_whole_vectors_moves_by_rounding_alone(
    shuffle: bool, resident: Callable[..., ResidentData], trial: Trial
) -> None:
    common = {"optimizer": "momentum", "shuffle": shuffle, "precision": "tf32", "hidden_units": 13, "batch_size": 7}
    one, other = (
        World(seed, common, trial, resident()).curve([5] * NUM_EPOCHS, turnover=0.5, seeds=[0]) for seed in (0, 1)
    )

    assert [[v.nll for v in report.validations] for report in one] == [
        pytest.approx([v.nll for v in report.validations], rel=1e-5) for report in other
    ]


@pytest.mark.parametrize("shuffle", [True, False])
@pytest.mark.parametrize("family", ["mlp", "logistic", "cnn", OWN])
def test_the_number_of_neighbours_moves_a_bfloat16_trial_within_the_tolerance(
    family: str, shuffle: bool, resident: Callable[..., ResidentData], trial: Trial
) -> None:
    common = {"family": family, "optimizer": "sgd", "shuffle": shuffle, "precision": "bfloat16"}
    alone, beside = (World(seed, common, trial, resident()) for seed in (0, 1))
    expected = alone.curve([1] * NUM_EPOCHS, turnover=0.0, seeds=[0])

    curve = beside.curve([2, 7, 4, 8], turnover=0.3, seeds=[0, 5])

    for report, other in zip(curve, expected, strict=True):
        assert [v.nll for v in report.validations] == pytest.approx([v.nll for v in other.validations], rel=0.01)


@pytest.mark.parametrize("precision", ["bfloat16", "tf32"])
@pytest.mark.parametrize("shuffle", [True, False])
@pytest.mark.parametrize("units", [10, 120])
def test_neighbours_do_not_decide_whether_minibatches_are_gathered_in_blocks(
    units: int,
    shuffle: bool,
    precision: str,
    resident: Callable[..., ResidentData],
    trial: Trial,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """On a GPU in TF32 a block is rounded otherwise than its minibatches one by one."""
    monkeypatch.setattr(dense_step, "LEAST_PIXELS_PER_ROW", 0)  # the images are small
    sizes: list[int] = []
    monkeypatch.setattr(dense_step._LaneGroup, "_block", _recording(dense_step._LaneGroup._block, sizes))
    seen = []
    for num_lanes, neighbour_seed in ((1, 0), (4, 0), (4, 5), (8, 0)):
        common = {"hidden_units": units, "shuffle": shuffle, "precision": precision}
        cohort = Cohort(CohortShape.of(trial(**common)), resident(), CPU, 10**9)
        for lane in range(num_lanes):
            cohort.admit(lane, trial(**common, study_seed=neighbour_seed if lane else 0))
        sizes.clear()
        cohort.train_epoch()
        seen.append(list(sizes))

    assert all(each == seen[0] for each in seen)
    assert max(seen[0]) == (20 if shuffle else 100)


def _recording(block: Callable[..., Any], sizes: list[int]) -> Callable[..., Any]:
    def record(self: Any, images: Any, labels: Any) -> Any:
        sizes.append(labels.shape[-1])
        return block(self, images, labels)

    return record
