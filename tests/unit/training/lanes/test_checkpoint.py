"""A trial that was interrupted at the end of an epoch has the curve of one that was not, bit for bit.

So it is on the CPU with the same number of lanes. With other neighbours the lanes' own tolerance holds (test_lanes):
in float64 the same zero-one losses, NLL within 1e-9 (relative).
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Hashable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from hpsearch.data.resident import ResidentData
from hpsearch.epoch_report import EpochReport
from hpsearch.errors import ArtifactError
from hpsearch.search.significance import critical_gains
from hpsearch.study.settings import TrialSettings
from hpsearch.training.correct_images import ReferenceTest
from hpsearch.training.lanes.checkpoint import CudaToHost, TrialCheckpoint
from hpsearch.training.lanes.cohort import Cohort
from hpsearch.training.lanes.cohort_shape import CohortShape
from hpsearch.training.lanes.dense_step import BLOCK_ROWS

CPU = torch.device("cpu")
Build = Callable[..., ResidentData]
Trial = Callable[..., TrialSettings]
Curves = dict[Hashable, list[EpochReport]]

NUM_EPOCHS = 4
VALIDATIONS_EVERY = 4  # of 6 minibatches: two validations per epoch
RATES = {"sgd": 0.3, "momentum": 0.05, "adam": 0.02}
SCHEDULES = ["constant", "inverse-time", "step", "exponential", "plateau", "halving"]


class Residual(nn.Module):
    """A module of a user's own; its parameters' names have dots, its convolution's weights an odd memory layout."""

    def __init__(self, *, image_shape: tuple[int, int], num_classes: int) -> None:
        super().__init__()
        self.maps = nn.Conv2d(1, 3, 3, padding=1).to(memory_format=torch.channels_last)
        self.layers = nn.Sequential(nn.GroupNorm(1, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten())
        self.scores = nn.Linear(3 * (image_shape[0] // 2) * (image_shape[1] // 2), num_classes)

    def forward(self, images: Tensor) -> Tensor:
        scores: Tensor = self.scores(self.layers(images + self.maps(images)))
        return scores


MODELS: dict[str, dict[str, Any]] = {
    "logistic": {},
    "mlp tanh": {"activation": "tanh"},
    "mlp sigmoid": {"activation": "sigmoid"},
    "mlp relu": {"activation": "relu"},
    "cnn": {"activation": "relu"},
    "own": {},
}
optimizers = pytest.mark.parametrize("optimizer", RATES)
models = pytest.mark.parametrize("model", MODELS)
shuffles = pytest.mark.parametrize("shuffle", [False, True], ids=["in file order", "shuffled"])


@pytest.fixture(autouse=True)
def _blocks_of_two_minibatches(monkeypatch: pytest.MonkeyPatch) -> None:
    """Networks of this size would not be trained in blocks otherwise."""
    monkeypatch.setattr("hpsearch.training.lanes.dense_step.LEAST_OUTPUTS_PER_ROW", 0)
    monkeypatch.setitem(BLOCK_ROWS, "cpu", 45)


def trial_of(trial: Trial, model: str, optimizer: str, **settings: Any) -> TrialSettings:
    family = f"{__name__}:Residual" if model == "own" else model.split()[0]
    common = {"learning_rate": RATES[optimizer], "schedule_every": 2, "schedule_patience": 1, "schedule_decay": 0.1}
    common |= {"optimizer": optimizer, "schedule_stop_ratio": 8.0}
    return trial(family, **(common | MODELS.get(model, {}) | settings))


def neighbours(trial: Trial, model: str, optimizer: str, **settings: Any) -> dict[Hashable, TrialSettings]:
    """A lane for each schedule; the others of a dense network's lanes cannot be trained in blocks."""
    own: dict[str, dict[str, Any]] = {
        "constant": {"lambda_2": 1e-3},
        "inverse-time": {"lambda_1": 1e-4, "momentum": 0.5, "seed": 5},
        "step": {"epsilon": 1e-6, "beta_2": 0.99, "study_seed": 2},
        "exponential": {"learning_rate": RATES[optimizer] / 10, "lambda_1": 1e-4},
        "plateau": {"learning_rate": RATES[optimizer] * 3, "beta_1": 0.8},
        "halving": {"learning_rate": RATES[optimizer] * 2},
    }
    if model not in ("logistic", "own"):
        for name, width in zip(own, (12, 7, 20, 12, 3, 15), strict=True):
            own[name]["hidden_units"] = width
    return {name: trial_of(trial, model, optimizer, schedule=name, **(more | settings)) for name, more in own.items()}


def reference_test(data: ResidentData, level: float = 0.05) -> ReferenceTest:
    return ReferenceTest(level=level, critical_gains=critical_gains(len(data.validation_labels), level))


def cohort_of(
    settings: dict[Hashable, TrialSettings],
    data: ResidentData,
    *,
    checkpoints: dict[Hashable, TrialCheckpoint] | None = None,
    every: int = VALIDATIONS_EVERY,
    level: float | None = 0.05,
    dtype: torch.dtype = torch.float32,
) -> Cohort:
    test = None if level is None else reference_test(data, level)
    cohort = Cohort(CohortShape.of(next(iter(settings.values()))), data, CPU, every, test, dtype=dtype)
    for key, one in settings.items():
        cohort.admit(key, one, (checkpoints or {}).get(key))
    return cohort


def train(cohort: Cohort, num_epochs: int, curves: Curves | None = None) -> Curves:
    curves = {} if curves is None else curves
    for _ in range(num_epochs):
        for key, report in cohort.train_epoch().items():
            curves.setdefault(key, []).append(report)
    return curves


def taken(cohort: Cohort, keys: Iterable[Hashable] | None = None) -> dict[Hashable, TrialCheckpoint]:
    """Checkpoints, by way of their files."""
    checkpoints = cohort.checkpoint(cohort.keys if keys is None else keys).fetch()
    return {key: TrialCheckpoint.from_bytes(one.to_bytes()) for key, one in checkpoints.items()}


def numbers(curve: list[EpochReport]) -> list[EpochReport]:
    """All of a curve but its seconds, for comparison bit for bit."""
    return [replace(report, seconds=0.0) for report in curve]


def bits(checkpoint: TrialCheckpoint) -> dict[str, tuple[object, ...]]:
    return {name: (array.shape, array.dtype, array.tobytes()) for name, array in checkpoint.arrays.items()}


def assert_same_trial(one: TrialCheckpoint, other: TrialCheckpoint) -> None:
    assert one.progress == other.progress
    assert bits(one) == bits(other)


def assert_goes_on_bit_for_bit(settings: dict[Hashable, TrialSettings], data: ResidentData) -> None:
    """Interrupted after each epoch but the last, every trial ends where the uninterrupted one does."""
    whole = cohort_of(settings, data)
    whole_curves: Curves = {}
    checkpoints = [taken(whole)]
    for _ in range(NUM_EPOCHS):
        train(whole, 1, whole_curves)
        checkpoints.append(taken(whole))
    assert not any(report.has_diverged for curve in whole_curves.values() for report in curve)
    for num_epochs in range(NUM_EPOCHS):
        order = {key: settings[key] for key in whole.keys}
        resumed = cohort_of(order, data, checkpoints=checkpoints[num_epochs])
        assert resumed.keys == whole.keys
        curves = train(resumed, NUM_EPOCHS - num_epochs)
        last = taken(resumed)
        for key in settings:
            assert numbers(curves[key]) == numbers(whole_curves[key][num_epochs:])
            assert_same_trial(last[key], checkpoints[-1][key])
            assert resumed.best(key) == whole.best(key)
            kept, expected = resumed.best_parameters(key), whole.best_parameters(key)
            assert all(np.array_equal(kept[name], value) for name, value in expected.items())
            assert np.array_equal(resumed.best_record(key), whole.best_record(key))


@shuffles
@optimizers
@models
def test_trials_of_every_schedule_go_on_bit_for_bit_beside_each_other(
    resident: Build, trial: Trial, model: str, optimizer: str, shuffle: bool
) -> None:
    settings = neighbours(trial, model, optimizer, shuffle=shuffle)

    assert_goes_on_bit_for_bit(settings, resident())


# Each schedule with one model, and each model and optimizer with some schedule: the test above has all of each.
ALONE = {("mlp tanh", "sgd", schedule) for schedule in SCHEDULES}
ALONE |= {(*pair, schedule) for pair, schedule in zip(itertools.product(MODELS, RATES), itertools.cycle(SCHEDULES))}


@pytest.mark.parametrize(("model", "optimizer", "schedule"), sorted(ALONE))
def test_a_trial_alone_goes_on_bit_for_bit(
    resident: Build, trial: Trial, model: str, optimizer: str, schedule: str
) -> None:
    settings = neighbours(trial, model, optimizer, shuffle=schedule in ("inverse-time", "plateau"))

    assert_goes_on_bit_for_bit({schedule: settings[schedule]}, resident())


@pytest.mark.parametrize("schedule", ["plateau", "halving"])
def test_a_schedule_goes_on_from_what_it_has_seen(resident: Build, trial: Trial, schedule: str) -> None:
    """The rate is too small to change a label: it falls after each epoch without a new best, and then ends."""
    settings: dict[Hashable, TrialSettings] = {
        "a": trial_of(trial, "mlp", "sgd", schedule=schedule, learning_rate=1e-9)
    }
    data = resident()
    cohort = cohort_of(settings, data)
    curve = train(cohort, 2)["a"]
    for _ in range(4):
        cohort = cohort_of(settings, data, checkpoints=taken(cohort))
        curve += train(cohort, 1)["a"]

    assert [report.learning_rate for report in curve[:5]] == [1e-9, 1e-9, 5e-10, 2.5e-10, 1.25e-10]
    assert numbers(curve) == numbers(train(cohort_of(settings, data), 6)["a"])
    assert curve[-1].is_schedule_exhausted == (schedule == "halving")


# Other neighbours, other widths


@optimizers
@pytest.mark.parametrize("model", ["logistic", "mlp sigmoid", "cnn"])
def test_a_trial_goes_on_beside_other_neighbours_in_a_cohort_of_another_width(
    resident: Build, trial: Trial, model: str, optimizer: str
) -> None:
    """From wide to narrow and back: out of a lane between others, alone, and into a lane that fell free."""
    settings = neighbours(trial, model, optimizer)
    data = resident()
    expected = {key: train(cohort_of({key: one}, data, dtype=torch.float64), 5)[key] for key, one in settings.items()}

    cohort = cohort_of(settings, data, dtype=torch.float64)
    curves = train(cohort, 2)
    checkpoints = taken(cohort)
    curves = {"inverse-time": curves["inverse-time"], "plateau": curves["plateau"]}
    for key in curves:
        alone = cohort_of({key: settings[key]}, data, checkpoints=checkpoints, dtype=torch.float64)
        train(alone, 1, curves)
        checkpoints |= taken(alone)
    cohort.release("inverse-time")
    cohort.release("plateau")
    for key in curves:
        cohort.admit(key, settings[key], checkpoints[key])
    train(cohort, 2, curves)

    for key in ("inverse-time", "plateau"):
        assert len(curves[key]) == 5
        for report, other in zip(curves[key], expected[key], strict=True):
            assert report.epoch == other.epoch
            assert report.train_nll == pytest.approx(other.train_nll, rel=1e-9)
            assert [v.iteration for v in report.validations] == [v.iteration for v in other.validations]
            assert [v.loss for v in report.validations] == [v.loss for v in other.validations]
            assert [v.nll for v in report.validations] == pytest.approx([v.nll for v in other.validations], rel=1e-9)
            assert [(v.gained, v.lost) for v in report.validations] == [(v.gained, v.lost) for v in other.validations]
        assert cohort.best(key) == min((v for r in curves[key] for v in r.validations), key=lambda v: (v.loss, v.nll))


@pytest.mark.parametrize("model", ["mlp sigmoid", "cnn"])
def test_a_checkpoint_has_the_widths_of_its_own_network(resident: Build, trial: Trial, model: str) -> None:
    settings = neighbours(trial, model, "adam")
    data = resident()
    checkpoints = taken(cohort_of(settings, data))

    for key, one in settings.items():
        alone = taken(cohort_of({key: one}, data))[key]
        assert alone.arrays["optimizer/hidden.bias/mean"].shape == (one.model.hidden_units,)
        assert_same_trial(checkpoints[key], alone)


def test_a_neighbour_that_diverges_changes_no_bit_of_a_trial_that_goes_on(resident: Build, trial: Trial) -> None:
    data = resident()
    settings = neighbours(trial, "mlp relu", "sgd", hidden_units=12)
    order = {key: settings[key] for key in cohort_of(settings, data).keys}
    cohort = cohort_of(order, data)
    train(cohort, 1)
    checkpoints = taken(cohort)
    healthy = train(cohort_of(order, data, checkpoints=checkpoints), 3)

    poison = trial_of(trial, "mlp relu", "sgd", learning_rate=1e30, lambda_1=1e-4, hidden_units=12)
    cohort = cohort_of(
        order | {"exponential": poison}, data, checkpoints={k: checkpoints[k] for k in order if k != "exponential"}
    )
    poisoned = train(cohort, 2)
    assert poisoned["exponential"][-1].has_diverged
    rest = {key: one for key, one in taken(cohort).items() if key != "exponential"}
    train(cohort_of(order | {"exponential": poison}, data, checkpoints=rest), 1, poisoned)

    for key in rest:
        assert numbers(poisoned[key]) == numbers(healthy[key])


# Taking and fetching


def test_taking_a_checkpoint_changes_no_bit_of_the_training(resident: Build, trial: Trial) -> None:
    data, settings = resident(), neighbours(trial, "mlp tanh", "adam")
    plain, watched = cohort_of(settings, data), cohort_of(settings, data)
    pending, curves = [], {}
    for _ in range(3):
        pending.append(watched.checkpoint(watched.keys))
        train(watched, 1, curves)

    expected = train(plain, 3)
    assert {key: numbers(curve) for key, curve in curves.items()} == {k: numbers(c) for k, c in expected.items()}
    for key, one in taken(watched).items():
        assert_same_trial(one, taken(plain)[key])


@pytest.mark.parametrize("num_lanes", [1, 6])
def test_what_happens_later_does_not_change_a_checkpoint(resident: Build, trial: Trial, num_lanes: int) -> None:
    """Not training on, nor an admission into the lane, nor other widths, nor changes to what was fetched."""
    settings = dict(list(neighbours(trial, "mlp tanh", "momentum").items())[:num_lanes])
    cohort = cohort_of(settings, resident())
    train(cohort, 1)
    first = taken(cohort)
    pending = cohort.checkpoint(cohort.keys)
    for array in pending.fetch()["constant"].arrays.values():
        array[...] = 7
    train(cohort, 1)
    cohort.release("constant")
    cohort.admit("wide", trial_of(trial, "mlp tanh", "momentum", hidden_units=32))
    train(cohort, 1)

    for key, one in pending.fetch().items():
        assert_same_trial(one, first[key])


def test_only_the_trials_that_are_asked_for_are_copied(resident: Build, trial: Trial) -> None:
    cohort = cohort_of(neighbours(trial, "mlp tanh", "momentum"), resident())
    all_of_them = taken(cohort)
    pending = cohort.checkpoint(["plateau", "step"])

    assert pending.trials.keys() == {"plateau", "step"}
    fetched = pending.fetch()
    assert list(fetched) == ["plateau", "step"]
    for key, one in fetched.items():
        assert_same_trial(one, all_of_them[key])
    assert cohort.checkpoint([]).fetch() == {}
    with pytest.raises(KeyError, match="'nobody' is in no lane"):
        cohort.checkpoint(["plateau", "nobody"])


class _Operations(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.append(str(function))
        return function(*args, **(kwargs or {}))


def test_nothing_waits_for_the_device_before_a_checkpoint_is_fetched(resident: Build, trial: Trial) -> None:
    """Copying is all that is asked of the device, in one operation per stacked tensor; the host reads nothing."""
    cohort = cohort_of(neighbours(trial, "mlp tanh", "sgd"), resident())
    train(cohort, 1)
    with _Operations() as operations:
        pending = cohort.checkpoint(cohort.keys)

    assert set(operations.names) == {"aten.select.int", "aten.stack.default"}
    # Weights and biases of two layers, and the best ones; the images that are right at the best and the reference.
    assert operations.names.count("aten.stack.default") == 10
    fetched_on: list[str] = []

    def to_host(tensor: Tensor) -> Tensor:
        fetched_on.append(threading.current_thread().name)
        return tensor.clone()

    thread = threading.Thread(target=replace(pending, to_host=to_host).fetch, name="writer")
    thread.start()
    thread.join()
    assert set(fetched_on) == {"writer"}


def test_on_a_gpu_a_copy_waits_for_the_training_before_it_and_for_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    """Which stream waits for what; that it does so is shown in tests/gpu."""
    log: list[tuple[str, object]] = []

    class Stream:
        def __init__(self, name: object = "copies", *, priority: int = 0) -> None:
            self.name = "copies" if isinstance(name, torch.device) else name
            self.priority = priority

        def record_event(self) -> str:
            log.append((f"{self.name} record", self.priority))
            return "written"

        def wait_event(self, event: object) -> None:
            log.append((f"{self.name} wait", event))

    @contextmanager
    def stream(entered: Stream) -> Iterator[None]:
        log.append((f"enter {entered.name}", entered.priority))
        yield
        log.append((f"leave {entered.name}", entered.priority))

    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: Stream("training"))
    monkeypatch.setattr(torch.cuda, "stream", stream)
    tensor = torch.ones(3)
    to_host = CudaToHost(torch.device("cuda", 1))
    assert log == [("training record", 0)]
    copy = to_host(tensor)
    tensor.zero_()

    # Not of the default priority, whose streams captures take (CudaToHost).
    assert log[1:] == [("enter copies", -1), ("copies wait", "written"), ("leave copies", -1)]
    assert copy.tolist() == [1, 1, 1]


def test_a_checkpoint_can_be_fetched_while_training_goes_on(resident: Build, trial: Trial) -> None:
    data, settings = resident(), neighbours(trial, "mlp tanh", "adam")
    cohort, calm = cohort_of(settings, data), cohort_of(settings, data)
    fetched: list[dict[Hashable, TrialCheckpoint]] = []
    curves: Curves = {}
    threads = []
    for _ in range(3):
        pending = cohort.checkpoint(cohort.keys)
        threads.append(threading.Thread(target=lambda pending=pending: fetched.append(pending.fetch())))
        threads[-1].start()
        train(cohort, 1, curves)
    for thread in threads:
        thread.join()

    by_epoch = {one["step"].progress.num_epochs: one for one in fetched}
    for num_epochs in range(3):
        for key, one in taken(calm).items():
            assert_same_trial(by_epoch[num_epochs][key], one)
        train(calm, 1)


def test_a_refilled_lane_keeps_its_place_in_memory_and_a_new_one_moves_the_others(
    resident: Build, trial: Trial, stack_tensors: Callable[..., list[Tensor]]
) -> None:
    """Graphs that were captured stay valid exactly where nothing has moved."""
    settings: dict[Hashable, TrialSettings] = {k: trial_of(trial, "mlp tanh", "adam", seed=k) for k in range(3)}
    cohort = cohort_of(settings, resident())
    train(cohort, 1)
    checkpoints = taken(cohort)
    train(cohort, 1)
    version = cohort._stack.version
    places = [tensor.data_ptr() for tensor in stack_tensors(cohort._stack)]
    cohort.checkpoint(cohort.keys)
    cohort.release(1)
    cohort.admit("again", settings[1], checkpoints[1])

    assert cohort._stack.version == version
    assert [tensor.data_ptr() for tensor in stack_tensors(cohort._stack)] == places
    cohort.admit(1, settings[1], checkpoints[1])
    assert cohort._stack.version > version
    now = taken(cohort)
    assert_same_trial(now["again"], checkpoints[1])
    assert_same_trial(now[1], checkpoints[1])


def test_best_losses_on_the_device_come_back_exactly(resident: Build, trial: Trial) -> None:
    settings = neighbours(trial, "mlp tanh", "sgd")
    cohort = cohort_of(settings, resident())
    train(cohort, 3)
    resumed = cohort_of({key: settings[key] for key in cohort.keys}, resident(), checkpoints=taken(cohort))

    for name in ("loss", "nll"):
        assert resumed._stack.best_losses[name].tolist() == cohort._stack.best_losses[name].tolist()


def test_a_trial_without_a_finite_validation_has_no_best_afterwards_either(resident: Build, trial: Trial) -> None:
    settings: dict[Hashable, TrialSettings] = {"a": trial()}
    checkpoint = taken(cohort_of(settings, resident()))["a"]
    assert checkpoint.progress.best is None
    cohort = cohort_of(settings, resident(), checkpoints={"a": checkpoint})

    with pytest.raises(KeyError, match="no finite validation"):
        cohort.best_parameters("a")
    assert numbers(train(cohort, 2)["a"]) == numbers(train(cohort_of(settings, resident()), 2)["a"])


# Checkpoints that do not fit


@pytest.fixture
def checkpoint(resident: Build, trial: Trial) -> TrialCheckpoint:
    """Of `trial()` in float32 after one epoch."""
    cohort = cohort_of({"a": trial()}, resident())
    train(cohort, 1)
    return taken(cohort)["a"]


@pytest.mark.parametrize(
    ("settings", "what"),
    [
        ({"optimizer": "adam"}, "training.optimizer is 'sgd' there and 'adam' here"),
        ({"learning_rate": 0.5}, "training.learning_rate is 0.01 there and 0.5 here"),
        ({"hidden_units": 13}, "model.hidden_units is 12 there and 13 here"),
        ({"activation": "relu"}, "model.activation is 'tanh' there and 'relu' here"),
        ({"study_seed": 1}, "seed is 0 there and 1 here"),
        ({"seed": 1, "lambda_1": 0.1}, "training.lambda_1 is 0.0 there and 0.1 here; training.seed is None"),
    ],
)
def test_a_checkpoint_of_another_trial_is_refused(
    resident: Build, trial: Trial, checkpoint: TrialCheckpoint, settings: dict[str, Any], what: str
) -> None:
    with pytest.raises(ArtifactError) as caught:
        cohort_of({"a": trial(**settings)}, resident(), checkpoints={"a": checkpoint})

    assert str(caught.value).startswith(
        "the checkpoint after epoch 1 does not fit the trial: it belongs to another trial: "
    )
    assert what in str(caught.value)
    assert "start the trial again" in str(caught.value.hint)


def test_a_checkpoint_of_other_data_or_another_rule_is_refused(
    resident: Build, trial: Trial, checkpoint: TrialCheckpoint
) -> None:
    checkpoints: dict[Hashable, TrialCheckpoint] = {"a": checkpoint}
    with pytest.raises(ArtifactError, match="number of training images is 130 there and 131 here"):
        cohort_of({"a": trial()}, resident(num_train=131), checkpoints=checkpoints)
    with pytest.raises(ArtifactError, match="minibatches between validations is 4 there and 3 here"):
        cohort_of({"a": trial()}, resident(), checkpoints=checkpoints, every=3)
    with pytest.raises(ArtifactError, match=r"hidden.weight is \[12, 256\] float32, expected \[12, 256\] float64"):
        cohort_of({"a": trial()}, resident(), checkpoints=checkpoints, dtype=torch.float64)
    with pytest.raises(ArtifactError, match=r"is \[12, 256\] float32, expected \[12, 324\] float32"):
        cohort_of({"a": trial()}, resident(image_shape=(18, 18)), checkpoints=checkpoints)


@pytest.mark.parametrize(("taken_at", "level"), [(None, 0.05), (0.05, None), (0.05, 0.01)])
def test_a_trial_that_was_compared_with_another_reference_or_none_is_another_trial(
    resident: Build, trial: Trial, taken_at: float | None, level: float | None
) -> None:
    settings: dict[Hashable, TrialSettings] = {"a": trial()}
    cohort = cohort_of(settings, resident(), level=taken_at)
    train(cohort, 1)
    with pytest.raises(ArtifactError, match=f"significance level is {taken_at} there and {level} here"):
        cohort_of(settings, resident(), checkpoints=taken(cohort), level=level)
    cohort_of(settings, resident(), checkpoints=taken(cohort), level=taken_at)


def test_a_trial_may_be_given_more_epochs(resident: Build, trial: Trial, checkpoint: TrialCheckpoint) -> None:
    cohort = cohort_of({"a": trial(max_epochs=500)}, resident(), checkpoints={"a": checkpoint})

    assert cohort.train_epoch()["a"].epoch == 2


def _without(arrays: dict[str, Any]) -> None:
    del arrays["best/hidden.bias"]


def _without_bits(arrays: dict[str, Any]) -> None:
    del arrays["correct/best"]


def _with_another(arrays: dict[str, Any]) -> None:
    arrays["optimizer/hidden.bias/velocity"] = np.zeros(12, np.float32)


def _with_another_shape(arrays: dict[str, Any]) -> None:
    arrays["parameters/hidden.bias"] = np.zeros(13, np.float32)


def _with(name: str, value: float) -> Callable[[dict[str, Any]], None]:
    def change(arrays: dict[str, Any]) -> None:
        arrays[name] = arrays[name].copy()
        arrays[name].reshape(-1)[3] = value

    return change


def _with_other_images_right(arrays: dict[str, Any]) -> None:
    arrays["correct/best"] = np.zeros_like(arrays["correct/best"])


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (_without, "it lacks best/hidden.bias"),
        (_without_bits, "it lacks correct/best"),
        (_with_another, "it has optimizer/hidden.bias/velocity, which the trial does not have"),
        (_with_another_shape, r"parameters/hidden.bias is \[13\] float32, expected \[12\] float32"),
        (
            _with("parameters/hidden.bias", np.nan),
            "parameters/hidden.bias has numbers that are not finite: the trial had diverged",
        ),
        (_with("parameters/hidden.bias", np.inf), "parameters/hidden.bias has numbers that are not finite"),
        (_with("best/hidden.weight", -np.inf), "best/hidden.weight has numbers that are not finite"),
        (_with_other_images_right, "its best validation does not match its correct images"),
    ],
)
def test_wrong_arrays_are_refused_and_change_nothing(
    resident: Build,
    trial: Trial,
    checkpoint: TrialCheckpoint,
    change: Callable[[dict[str, Any]], None],
    what: str,
) -> None:
    arrays = dict(checkpoint.arrays)
    change(arrays)
    wrong = TrialCheckpoint.from_bytes(replace(checkpoint, arrays=arrays).to_bytes())
    others: dict[Hashable, TrialSettings] = {"b": trial(hidden_units=5), "c": trial(hidden_units=6, lambda_1=1e-4)}
    cohort, calm = cohort_of(others, resident()), cohort_of(others, resident())
    train(cohort, 1)
    version = cohort._stack.version
    with pytest.raises(ArtifactError, match=f"after epoch 1 does not fit the trial: .*{what}"):
        cohort.admit("a", trial(), wrong)

    assert set(cohort.keys) == {"b", "c"}
    assert cohort._stack.version == version
    train(calm, 1)
    assert numbers(train(cohort, 1)["b"]) == numbers(train(calm, 1)["b"])
