"""Which weights are a network's filters, and what is copied of them: each trial's own, as exact as a picture needs."""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from hpsearch.data.resident import ResidentData
from hpsearch.study.settings import ModelSettings, TrialSettings
from hpsearch.training.filter_series import LARGEST_CODE
from hpsearch.training.lanes.cohort import Cohort
from hpsearch.training.lanes.cohort_shape import CohortShape
from hpsearch.training.networks.build import build_network
from hpsearch.training.networks.first_layer import MOST_FILTERS, FirstLayer

CPU = torch.device("cpu")
SHAPE = (16, 16)
Trial = Callable[..., TrialSettings]


class _Sequence(nn.Sequential):
    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images)


def _layers(kind: str, num_classes: int) -> list[nn.Module]:
    flat = nn.Flatten()
    return {
        "dense": [flat, nn.Linear(256, 70), nn.Tanh(), nn.Linear(70, num_classes)],
        "kernels": [nn.Conv2d(1, 5, (3, 4)), nn.Tanh(), flat, nn.Linear(5 * 14 * 13, num_classes)],
        "points": [nn.Conv2d(1, 2, 1), nn.Tanh(), nn.Conv2d(2, 1, 1), flat, nn.Linear(256, num_classes)],
        "none": [nn.MaxPool2d(2), flat, nn.Linear(64, num_classes)],
    }[kind]


@pytest.fixture(autouse=True)
def _module(monkeypatch: pytest.MonkeyPatch) -> None:
    """A user's own module, importable as `pictured:net`."""
    module: Any = ModuleType("pictured")
    module.net = lambda *, image_shape, num_classes, kind: _Sequence(*_layers(kind, num_classes))
    monkeypatch.setitem(sys.modules, "pictured", module)


def layer_of(family: str, **model: Any) -> FirstLayer | None:
    return FirstLayer.of(build_network(ModelSettings(family=family, **model), SHAPE, 10))


@pytest.mark.parametrize(
    ("family", "model", "name", "number", "shape"),
    [
        ("logistic", {}, "output.weight", 10, SHAPE),
        ("mlp", {"hidden_units": 500}, "hidden.weight", 64, SHAPE),
        ("mlp", {"hidden_units": 64}, "hidden.weight", 64, SHAPE),
        ("mlp", {"hidden_units": 3}, "hidden.weight", 3, SHAPE),
        ("cnn", {"kernels": (20, 50)}, "conv1.weight", 20, (5, 5)),
        ("pictured:net", {"options": {"kind": "dense"}}, "1.weight", 64, SHAPE),
        ("pictured:net", {"options": {"kind": "kernels"}}, "0.weight", 5, (3, 4)),
        # A kernel of one pixel is no picture; the first weight that is one follows two of those.
        ("pictured:net", {"options": {"kind": "points"}}, "4.weight", 10, SHAPE),
    ],
)
def test_the_first_weights_that_are_pictures_are_the_filters(
    family: str, model: dict[str, Any], name: str, number: int, shape: tuple[int, int]
) -> None:
    layer = layer_of(family, **model)
    assert layer is not None
    assert (layer.name, len(layer.units), layer.shape) == (name, number, shape)


@pytest.mark.parametrize(("family", "shape"), [("mlp", (16, 18)), ("logistic", (16, 18)), ("cnn", (5, 5))])
def test_filters_of_images_in_colour_are_means_of_their_channels(family: str, shape: tuple[int, int]) -> None:
    network = build_network(ModelSettings(family=family, hidden_units=8), (3, 16, 18), 10)
    layer = FirstLayer.of(network)
    assert layer is not None
    assert (layer.shape, layer.channels) == (shape, 3)
    weights = torch.randn(2, *network.parameter_shapes[layer.name].shape)
    codes, scales = layer.codes(weights, [1])
    expected = weights[1].reshape(len(layer.units), 3, *shape).mean(dim=1)
    torch.testing.assert_close(
        codes[0] * scales[0, :, None, None], expected, rtol=0, atol=float(scales.max()) / 2 + 1e-6
    )


def test_rows_of_a_table_have_no_filters() -> None:
    assert FirstLayer.of(build_network(ModelSettings(family="mlp"), (13,), 2)) is None


def test_a_network_whose_weights_are_no_pictures_has_none() -> None:
    assert layer_of("pictured:net", options={"kind": "none"}) is None


@pytest.mark.parametrize("width", [1, 63, 64, 65, 100, 500, 2047])
def test_the_units_are_different_evenly_spaced_and_the_same_each_time(width: int) -> None:
    layer = layer_of("mlp", hidden_units=width)
    assert layer is not None
    assert layer == layer_of("mlp", hidden_units=width)
    assert layer.units[0] == 0
    steps = set(np.diff([*layer.units, width]))
    assert len(layer.units) == min(width, MOST_FILTERS)
    assert max(steps) - min(steps) <= 1
    assert min(steps) >= 1


@pytest.mark.parametrize("family", ["logistic", "mlp", "cnn"])
def test_trials_of_different_widths_get_their_own_filters(
    resident: Callable[..., ResidentData], trial: Trial, family: str
) -> None:
    """Side by side in one cohort, in which narrow trials are padded: nothing of the padding, and of no neighbour."""
    data, widths = resident(), [70] if family == "logistic" else [70, 128]
    each_width = [(width, seed) for width in widths for seed in (0, 1)]
    settings = {f"{width} {seed}": trial(family, hidden_units=width, study_seed=seed) for width, seed in each_width}
    cohort = Cohort(CohortShape.of(settings["70 0"]), data, CPU, validations_every=10)
    for key, each in settings.items():
        cohort.admit(key, each)
    cohort.train_epoch()
    copies = cohort.first_filters(settings)
    states = {key: checkpoint.arrays for key, checkpoint in cohort.checkpoint(list(settings)).fetch().items()}
    assert copies.keys() == settings.keys()
    for key, each in settings.items():
        layer = FirstLayer.of(build_network(each.model, data.example_shape, data.num_outputs))
        assert layer is not None
        weights = states[key][f"parameters/{layer.name}"][list(copies[key].units)]
        filters = weights.reshape(len(layer.units), *layer.shape)
        found = copies[key].codes * copies[key].scales[:, None, None]
        largest = np.abs(filters).max(axis=(1, 2))
        np.testing.assert_array_less(np.abs(found - filters).max(axis=(1, 2)), largest / LARGEST_CODE / 2 * 1.001)
        np.testing.assert_array_equal(np.abs(copies[key].codes).max(axis=(1, 2)), LARGEST_CODE)


def test_a_copy_changes_no_bit_of_the_training(resident: Callable[..., ResidentData], trial: Trial) -> None:
    curves = []
    for is_copied in (False, True):
        cohort = Cohort(CohortShape.of(trial()), resident(), CPU, validations_every=10)
        for seed in (0, 1):
            cohort.admit(seed, trial(study_seed=seed))
        reports = []
        for _ in range(3):
            reports.append({key: (r.validations, r.train_nll) for key, r in cohort.train_epoch().items()})
            if is_copied:
                cohort.first_filters([1])
        curves.append(reports)
    assert curves[0] == curves[1]


def test_weights_that_are_not_finite_are_left_out(resident: Callable[..., ResidentData], trial: Trial) -> None:
    cohort = Cohort(CohortShape.of(trial(activation="relu")), resident(), CPU, validations_every=10)
    cohort.admit("sound", trial(activation="relu", learning_rate=0.01))
    cohort.admit("diverges", trial(activation="relu", learning_rate=1e30))
    for _ in range(2):
        cohort.train_epoch()
    assert cohort.first_filters(["sound", "diverges"]).keys() == {"sound"}


def test_filters_of_zeros_are_zeros(resident: Callable[..., ResidentData], trial: Trial) -> None:
    """Such as those of logistic regression before its first step."""
    cohort = Cohort(CohortShape.of(trial("logistic")), resident(), CPU, validations_every=10)
    cohort.admit("fresh", trial("logistic"))
    copy = cohort.first_filters(["fresh"])["fresh"]
    assert not copy.codes.any()
    assert not copy.scales.any()
