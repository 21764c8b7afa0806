"""A module of a user's own trains in lanes as it would alone, or is refused in one line that says what to change.

Tolerances are those of test_lanes: float64, the same zero-one losses and NLL within 1e-9 (relative).
"""

from __future__ import annotations

import random
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from benchmarks.reference_loop import train_trial
from hpsearch.data.resident import ResidentData
from hpsearch.epoch_report import EpochReport
from hpsearch.errors import InputError
from hpsearch.study.settings import ModelSettings, TrialSettings
from hpsearch.training.lanes.cohort import Cohort
from hpsearch.training.lanes.cohort_shape import CohortShape
from hpsearch.training.networks.build import build_network
from hpsearch.training.networks.custom import CustomNetwork

Build = Callable[..., ResidentData]
Trial = Callable[..., TrialSettings]
Shape = tuple[int, int]

SHAPE = (16, 16)
RATES = {"sgd": 0.05, "momentum": 0.02, "adam": 0.02}


def own(factory: Any) -> str:
    """The family that names something in this file."""
    return f"{__name__}:{factory.__name__}"


def network(factory: Any, **options: Any) -> CustomNetwork:
    built = build_network(ModelSettings(family=own(factory), options=options), SHAPE, 10)
    assert isinstance(built, CustomNetwork)
    return built


# Networks that lanes can train


class TwoLayers(nn.Module):
    """Takes any layer between its two, for the tests below."""

    def __init__(
        self, *, image_shape: Shape, num_classes: int, width: int = 12, between: nn.Module | None = None
    ) -> None:
        super().__init__()
        self.hidden = nn.Linear(image_shape[0] * image_shape[1], width)
        self.between = nn.Identity() if between is None else between
        self.scores = nn.Linear(width, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        return self.scores(self.between(self.hidden(images.flatten(start_dim=1)).tanh()))


def convolutional(*, image_shape: Shape, num_classes: int) -> nn.Module:
    height, width = image_shape
    layers = nn.Sequential(
        nn.Conv2d(1, 4, 5, padding=2),
        nn.GroupNorm(2, 4),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(4, 6, 3),
        nn.Flatten(),
        nn.Linear(6 * (height // 2 - 2) * (width // 2 - 2), num_classes),
    )
    nn.init.zeros_(layers[-1].weight)  # as the notes' softmax layers begin
    return layers


class Tied(TwoLayers):
    """One matrix in two places, a constant buffer, and a frozen parameter."""

    def __init__(self, **sizes: Any) -> None:
        super().__init__(between=nn.Linear(12, 12), **sizes)
        self.third = nn.Linear(12, 12)
        self.third.weight = self.between.weight
        self.register_buffer("importance", torch.linspace(1, 2, 12))
        self.register_buffer("order", torch.arange(11, -1, -1))
        self.shift = nn.Parameter(torch.ones(12), requires_grad=False)

    def forward(self, images: Tensor) -> Tensor:
        hidden = self.between(self.hidden(images.flatten(start_dim=1)).tanh() + self.shift)
        return self.scores(self.third(hidden.tanh() * self.importance)[:, self.order])


FACTORIES = [TwoLayers, convolutional, Tied]


def three(trial: Trial, factory: Any, optimizer: str, **settings: Any) -> dict[str, TrialSettings]:
    rate = RATES[optimizer]
    lanes = {
        "a": {"learning_rate": rate, "lambda_2": 1e-3},
        "b": {"learning_rate": rate / 10, "lambda_1": 1e-4, "momentum": 0.5, "beta_1": 0.8, "seed": 5},
        "c": {"learning_rate": rate / 2, "epsilon": 1e-6, "study_seed": 2},
    }
    return {key: trial(own(factory), optimizer=optimizer, **(lane | settings)) for key, lane in lanes.items()}


def cohort_of(settings: dict[str, TrialSettings], data: ResidentData, dtype: torch.dtype = torch.float64) -> Cohort:
    shape = CohortShape.of(next(iter(settings.values())))
    cohort = Cohort(shape, data, data.validation_images.device, 4, dtype=dtype)
    for key, one in settings.items():
        cohort.admit(key, one)
    return cohort


def train(cohort: Cohort, num_epochs: int = 3) -> dict[str, list[EpochReport]]:
    epochs = [cohort.train_epoch() for _ in range(num_epochs)]
    return {str(key): [epoch[key] for epoch in epochs] for key in epochs[0]}


def reference(settings: TrialSettings, data: ResidentData, num_epochs: int = 3) -> list[EpochReport]:
    result = train_trial(
        settings,
        data,
        device=data.validation_images.device,
        validations_every=4,
        should_stop=lambda report: report.epoch >= num_epochs,
        dtype=torch.float64,
    )
    return list(result.reports)


def assert_same_curve(curve: list[EpochReport], expected: list[EpochReport]) -> None:
    assert len(curve) == len(expected)
    for one, other in zip(curve, expected, strict=True):
        assert one.train_nll == pytest.approx(other.train_nll, rel=1e-9)
        assert [v.iteration for v in one.validations] == [v.iteration for v in other.validations]
        assert [v.loss for v in one.validations] == [v.loss for v in other.validations]
        assert [v.nll for v in one.validations] == pytest.approx([v.nll for v in other.validations], rel=1e-9)


def numbers(curve: list[EpochReport]) -> list[tuple[object, ...]]:
    """All of a curve but its seconds."""
    return [(report.epoch, report.validations, report.train_nll) for report in curve]


@pytest.mark.parametrize("optimizer", RATES)
@pytest.mark.parametrize("factory", FACTORIES)
def test_lanes_equal_one_trial_training(resident: Build, trial: Trial, factory: Any, optimizer: str) -> None:
    data, settings = resident(), three(trial, factory, optimizer)
    curves = train(cohort_of(settings, data))
    for key, one in settings.items():
        assert_same_curve(curves[key], reference(one, data))
    assert curves["a"][-1].train_nll < curves["a"][0].train_nll  # it learns


def test_shuffled_lanes_equal_one_trial_training(resident: Build, trial: Trial) -> None:
    """Every lane has images of its own then."""
    data, settings = resident(), three(trial, convolutional, "sgd", shuffle=True)
    curves = train(cohort_of(settings, data))
    for key, one in settings.items():
        assert_same_curve(curves[key], reference(one, data))


def test_a_lane_depends_on_its_neighbours_in_no_bit(resident: Build, trial: Trial) -> None:
    """Not even on one that becomes NaN."""
    data, settings = resident(), three(trial, convolutional, "sgd")
    diverging = settings | {"b": trial(own(convolutional), learning_rate=1e30)}
    ours, theirs = train(cohort_of(settings, data)), train(cohort_of(diverging, data))
    assert theirs["b"][-1].has_diverged
    assert [numbers(theirs[key]) for key in "ac"] == [numbers(ours[key]) for key in "ac"]


def test_refilled_lane_has_the_curve_of_a_fresh_one(resident: Build, trial: Trial) -> None:
    data, settings = resident(), three(trial, TwoLayers, "adam")
    cohort = cohort_of({key: settings[key] for key in "ab"}, data)
    train(cohort, 2)
    cohort.release("a")
    cohort.admit("c", settings["c"])
    assert_same_curve(train(cohort)["c"], reference(settings["c"], data))


def test_options_are_the_factorys_arguments_and_part_of_the_cohorts_shape(trial: Trial) -> None:
    assert network(TwoLayers, width=7).parameter_shapes["hidden.weight"].shape == (7, 256)
    shapes = [CohortShape.of(trial(own(TwoLayers), options={"width": width})) for width in (7, 8, 7)]
    assert shapes[0] == shapes[2] != shapes[1]


def test_initial_parameters_are_what_the_factory_draws_after_manual_seed() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        expected = TwoLayers(image_shape=SHAPE, num_classes=10).state_dict()
        before = torch.get_rng_state()
        drawn = network(TwoLayers).initial_parameters(seed=3)
        assert torch.equal(before, torch.get_rng_state())  # and nobody else's numbers change
    assert list(drawn) == list(expected)
    assert all(torch.equal(drawn[name], value) for name, value in expected.items())
    assert not torch.equal(network(TwoLayers).initial_parameters(seed=4)["hidden.weight"], drawn["hidden.weight"])


def test_lambdas_regularise_parameters_of_two_or_more_dimensions() -> None:
    assert network(convolutional).weight_names == ("0.weight", "4.weight", "6.weight")


def test_shared_parameters_are_trained_once_and_constants_not_at_all() -> None:
    tied = network(Tied)
    assert [name for name in tied.initial_parameters(seed=0) if "third" in name or "between" in name] == [
        "between.weight",
        "between.bias",
        "third.bias",
    ]
    assert not {"importance", "order", "shift"} & set(tied.parameter_shapes)


def test_exported_parameters_make_the_module_compute_the_same() -> None:
    tied = network(Tied)
    parameters = {name: value + 0.1 for name, value in tied.initial_parameters(seed=1).items()}
    images = torch.rand(5, 256, generator=torch.Generator().manual_seed(0))
    module = Tied(image_shape=SHAPE, num_classes=10)
    keys = module.load_state_dict(parameters, strict=False)
    assert not keys.unexpected_keys
    torch.testing.assert_close(module(images.reshape(5, 1, 16, 16)), tied.logits(parameters, images))


@pytest.mark.parametrize("is_shared", [True, False])
@pytest.mark.parametrize("factory", FACTORIES)
def test_every_lane_computes_what_the_module_would(factory: Any, is_shared: bool) -> None:
    net = network(factory)
    lanes = [net.initial_parameters(seed=seed, dtype=torch.float64) for seed in range(3)]
    images = torch.rand((5, 256) if is_shared else (3, 5, 256), dtype=torch.float64)
    scores = net.lane_logits({name: torch.stack([lane[name] for lane in lanes]) for name in lanes[0]}, images)
    assert scores.shape == (3, 5, 10)
    for lane, parameters in enumerate(lanes):
        expected = net.logits(parameters, images if is_shared else images[lane])
        torch.testing.assert_close(scores[lane], expected, rtol=1e-12, atol=1e-12)


def test_widest_activation_is_measured_even_between_functions() -> None:
    assert network(TwoLayers, width=12).widest_activation == 256  # the images themselves
    assert network(TwoLayers, width=3000).widest_activation == 3000
    assert network(convolutional).widest_activation == 4 * 16 * 16


def test_reduced_precision_trains_in_lanes_too(resident: Build, trial: Trial) -> None:
    data = resident()
    settings = three(trial, convolutional, "sgd")
    exact = train(cohort_of(settings, data, torch.float32))
    rounded = train(cohort_of(three(trial, convolutional, "sgd", precision="bfloat16"), data, torch.float32))
    for key in settings:
        assert rounded[key][-1].train_nll != exact[key][-1].train_nll
        assert rounded[key][-1].train_nll == pytest.approx(exact[key][-1].train_nll, rel=0.05)


def test_best_parameters_bear_the_modules_own_names(resident: Build, trial: Trial) -> None:
    cohort = cohort_of(three(trial, Tied, "sgd"), resident())
    cohort.train_epoch()
    best = cohort.best_parameters("a")
    assert list(best) == list(network(Tied).parameter_shapes)
    assert all(isinstance(value, np.ndarray) for value in best.values())


# Modules that are refused


def refusal(family: str, **options: Any) -> InputError:
    with pytest.raises(InputError) as caught:
        build_network(ModelSettings(family=family, options=options), SHAPE, 10)
    text = str(caught.value)
    assert text.startswith(f"model.family {family}: ")
    assert "\n" not in text
    assert caught.value.hint
    assert caught.value.exit_code == 2
    return caught.value


def with_layer(make: Callable[[], nn.Module]) -> Callable[..., nn.Module]:
    return lambda **sizes: TwoLayers(between=make(), **sizes)


dropout = with_layer(lambda: nn.Dropout(0.5))
batch_norm = with_layer(lambda: nn.BatchNorm1d(12))
unrecorded_batch_norm = with_layer(lambda: nn.BatchNorm1d(12, track_running_stats=False))
float64_layer = with_layer(lambda: nn.Linear(12, 12).double())
lazy_layer = with_layer(lambda: nn.LazyLinear(12))
seeded_shape = with_layer(
    lambda: nn.Sequential(nn.Linear(12, width := int(torch.randint(1, 999, ()))), nn.Linear(width, 12))
)
inert_dropout = with_layer(lambda: nn.Dropout(0.0))


class OnMeta(TwoLayers):
    def __init__(self, **sizes: Any) -> None:
        super().__init__(**sizes)
        self.hidden.to("meta")


class Noisy(TwoLayers):
    def forward(self, images: Tensor) -> Tensor:
        return super().forward(nn.functional.dropout(images, 0.5, self.training))


class SeededBuffer(TwoLayers):
    def __init__(self, **sizes: Any) -> None:
        super().__init__(**sizes)
        self.register_buffer("mask", torch.rand(12))


class Counting(TwoLayers):
    def __init__(self, **sizes: Any) -> None:
        super().__init__(**sizes)
        self.register_buffer("count", torch.zeros(()))

    def forward(self, images: Tensor) -> Tensor:
        self.count += 1
        return super().forward(images)


class PlainTensor(TwoLayers):
    def __init__(self, **sizes: Any) -> None:
        super().__init__(**sizes)
        self.between.scale = torch.ones(12)


class TwoModes(TwoLayers):
    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images) * (2 if self.training else 1)


class TrainingOnly(TwoLayers):
    def forward(self, images: Tensor) -> Tensor:
        if not self.training:
            raise RuntimeError("only in training")
        return super().forward(images)


class Unused(TwoLayers):
    def __init__(self, **sizes: Any) -> None:
        super().__init__(between=nn.Linear(12, 12), **sizes)
        self.spare = nn.Linear(12, 12)


class Detached(TwoLayers):
    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images).detach()


class Branching(TwoLayers):
    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images) if self.hidden.bias.sum() > 0 else -super().forward(images)


class FewScores(TwoLayers):
    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images)[:, :5]


class TwoResults(TwoLayers):
    def forward(self, images: Tensor) -> Any:
        return super().forward(images), images


class Squeezing(TwoLayers):
    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images).squeeze()


class Raising(TwoLayers):
    def forward(self, images: Tensor) -> Tensor:
        raise RuntimeError("no\nscores today")


class FixedBatch(TwoLayers):
    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images.reshape(11, -1))


class DrawnByNumpy(TwoLayers):
    def __init__(self, **sizes: Any) -> None:
        super().__init__(**sizes)
        self.scores.weight.data[0, 0] = random.random()


class BiasOnly(nn.Module):
    def __init__(self, *, image_shape: Shape, num_classes: int) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(num_classes))

    def forward(self, images: Tensor) -> Tensor:
        return self.bias.expand(len(images), -1)


def without_parameters(*, image_shape: Shape, num_classes: int) -> nn.Module:
    return nn.Flatten()


def no_module(*, image_shape: Shape, num_classes: int) -> int:
    return 5


def raising(*, image_shape: Shape, num_classes: int) -> nn.Module:
    raise ValueError("not\ntoday")


@pytest.mark.parametrize(
    ("name", "message", "hint"),
    [
        ("dropout", "between is a Dropout with p = 0.5, which draws random numbers", "leave dropout out"),
        ("batch_norm", "between is a BatchNorm1d that keeps running statistics", "GroupNorm or LayerNorm"),
        ("unrecorded_batch_norm", "scores depend on the other images of its batch", "GroupNorm or LayerNorm"),
        ("float64_layer", "between.weight is float64, not float32", "keep the module in float32"),
        ("lazy_layer", "between.weight has no shape yet", "layers with sizes"),
        ("seeded_shape", "names and shapes change with the seed", "the same architecture"),
        ("OnMeta", "hidden.weight is on meta", "build the module on the CPU"),
        ("Noisy", "forward draws random numbers in training", "leave dropout and noise out"),
        ("SeededBuffer", "mask is not trained, but changes with the seed", "make it a constant or a parameter"),
        ("Counting", "forward changes count, which is not trained", "GroupNorm or LayerNorm"),
        ("PlainTensor", "between.scale is a tensor that is neither parameter nor buffer", "register_buffer"),
        ("TwoModes", "computes something else in evaluation mode", "trained and validated"),
        (
            "TrainingOnly",
            "forward([11, 1, 16, 16]) failed: RuntimeError: only in training (test_custom.py",
            "--verbose",
        ),
        ("Unused", "parameter spare.weight has no influence on the scores", "requires_grad_(False)"),
        ("Detached", "parameter hidden.weight has no influence on the scores", "requires_grad_(False)"),
        ("Branching", "torch.func.vmap cannot stack it: RuntimeError: ", "--verbose"),
        ("FewScores", "forward([11, 1, 16, 16]) returned [11, 5], expected [11, 10]", "one score per class"),
        ("TwoResults", "forward([11, 1, 16, 16]) returned tuple, expected [11, 10]", "one score per class"),
        ("Squeezing", "forward([1, 1, 16, 16]) returned [10], expected [1, 10]", "one score per class"),
        ("Raising", "forward([11, 1, 16, 16]) failed: RuntimeError: no (test_custom.py:", "--verbose"),
        ("FixedBatch", "forward([2, 1, 16, 16]) failed: RuntimeError: ", "--verbose"),
        ("DrawnByNumpy", "scores.weight is not the same when the factory is called again", "default generator"),
        ("BiasOnly", "no trainable parameter has two or more dimensions", "no weights"),
        ("without_parameters", "the module has no trainable parameters", "nothing to search for"),
        ("no_module", "the factory returned 5, not a torch.nn.Module", "name the module's class"),
        ("raising", "raising(image_shape=(16, 16), num_classes=10) failed: ValueError: not (test_custom", "--verbose"),
        ("TwoLayer", "has no function or class 'TwoLayer'", 'did you mean "TwoLayers"?'),
        ("SHAPE", "has no function or class 'SHAPE'", "it is read from"),
    ],
)
def test_what_lanes_cannot_train_is_refused(name: str, message: str, hint: str) -> None:
    error = refusal(f"{__name__}:{name}")
    assert message in str(error)
    assert hint in str(error.hint)


def test_wrong_option_is_told_with_the_call_that_failed() -> None:
    error = refusal(own(TwoLayers), widht=3)
    assert "TwoLayers(image_shape=(16, 16), num_classes=10, widht=3) failed: TypeError: " in str(error)
    assert "'widht'" in str(error)


def test_dropout_that_drops_nothing_is_fine() -> None:
    built = build_network(ModelSettings(family=f"{__name__}:inert_dropout"), SHAPE, 10)
    assert built.weight_names == ("hidden.weight", "scores.weight")


def test_traceback_of_a_failure_is_logged_for_verbose_runs(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("DEBUG", logger="hpsearch"):
        refusal(f"{__name__}:raising")
    assert "Traceback" in caplog.text
    assert 'raise ValueError("not\\ntoday")' in caplog.text


class Fickle(TwoLayers):
    """Builds what the check sees, and something else later."""

    num_calls = 0

    def __init__(self, **sizes: Any) -> None:
        Fickle.num_calls += 1
        super().__init__(width=12 if Fickle.num_calls < 4 else 13, **sizes)


def test_seed_that_builds_another_architecture_is_refused_when_its_trial_begins() -> None:
    fickle = network(Fickle)
    with pytest.raises(InputError, match="names and shapes change with the seed"):
        fickle.initial_parameters(seed=7)


# Where the module is found


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The current folder, which is not on sys.path; the import of what tests write there is forgotten afterwards."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", [entry for entry in sys.path if entry not in ("", str(tmp_path))])
    yield tmp_path
    for name in [name for name in sys.modules if name.startswith("nets_")]:
        del sys.modules[name]


SOURCE = """
from torch import nn
def build(*, image_shape, num_classes):
    return nn.Sequential(nn.Flatten(), nn.Linear(image_shape[0] * image_shape[1], num_classes))
"""


def test_module_of_the_current_folder_that_another_one_hides_is_told(folder: Path) -> None:
    (folder / "random.py").write_text(SOURCE)
    error = refusal("random:build")
    assert str(error) == "model.family random:build: random has no function or class 'build'"
    assert "which comes before the random.py of this folder: give yours another name" in str(error.hint)


def test_module_in_the_current_folder_is_found(folder: Path) -> None:
    (folder / "nets_of_mine").mkdir()
    (folder / "nets_of_mine" / "linear.py").write_text(SOURCE)
    model = ModelSettings(family="nets_of_mine.linear:build")
    assert build_network(model, SHAPE, 10).weight_names == ("1.weight",)


@pytest.mark.parametrize("module", ["nets_that_are_nowhere", "nets_that_are_nowhere.linear"])
def test_missing_module_is_told_with_the_folder_that_was_searched(folder: Path, module: str) -> None:
    error = refusal(f"{module}:build")
    assert str(error) == f"model.family {module}:build: there is no module 'nets_that_are_nowhere'"
    assert "run hpsearch in the folder that holds nets_that_are_nowhere" in str(error.hint)
    assert str(folder) in str(error.hint)
    assert "PYTHONPATH" in str(error.hint)


def test_module_that_does_not_import_is_told_with_its_line(folder: Path) -> None:
    (folder / "nets_without_torchh.py").write_text("import numpy\nimport torchh\n")
    error = refusal("nets_without_torchh:build")
    assert str(error).endswith(
        "importing nets_without_torchh failed: ModuleNotFoundError: No module named 'torchh' (nets_without_torchh.py:2)"
    )


def test_module_with_a_syntax_error_is_told(folder: Path) -> None:
    (folder / "nets_half_written.py").write_text("def build(\n")
    assert "importing nets_half_written failed: SyntaxError: " in str(refusal("nets_half_written:build"))


@pytest.mark.gpu
def test_lanes_on_a_gpu_equal_one_trial_training_on_the_cpu(resident: Build, trial: Trial) -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    settings = three(trial, Tied, "sgd")
    curves = train(cohort_of(settings, resident(device=torch.device("cuda"))))
    for key, one in settings.items():
        assert_same_curve(curves[key], reference(one, resident()))
