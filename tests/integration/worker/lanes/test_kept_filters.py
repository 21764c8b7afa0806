"""What a worker keeps for pictures: filters at the right epochs, whatever happens, and the models of the five best."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from optuna.trial import TrialState

from hpsearch.artifacts.best_parameters import FILTERS_FILE, Artifacts
from hpsearch.artifacts.record import recorded_id
from hpsearch.artifacts.store import FolderStore
from hpsearch.errors import ArtifactError, InputError
from hpsearch.results.trial_summary import TrialSummary
from hpsearch.store.connection.database import Database
from hpsearch.training.lanes.cohort import Cohort
from tests.integration.picture_studies import PictureBench
from tests.integration.stop_signals import BeforeEpoch

TWO_LAYERS = "examples.two_hidden_layers:TwoHiddenLayers"


@pytest.fixture
def bench(database: Database, tmp_path: Path) -> PictureBench:
    return PictureBench(database, tmp_path)


class Watched(Cohort):
    """Remembers the first layer's weights of each trial after each epoch, from its checkpoint."""

    seen: dict[tuple[float, int], np.ndarray[Any, Any]]

    def train_epoch(self) -> Any:
        reports = super().train_epoch()
        for checkpoint in self.checkpoint(list(reports)).fetch().values():
            progress = checkpoint.progress
            name = next(n for n in checkpoint.arrays if n.startswith("parameters/") and n.endswith("weight"))
            self.seen[progress.settings.training.learning_rate, progress.num_epochs] = checkpoint.arrays[name]
        return reports


@pytest.mark.parametrize(
    ("model", "num_filters", "shape"),
    [
        ({"family": "logistic"}, 10, (28, 28)),
        ({"family": "mlp", "hidden_units": 100}, 64, (28, 28)),
        ({"family": "cnn", "kernels": [3, 4], "hidden_units": 8}, 3, (5, 5)),
        ({"family": TWO_LAYERS, "options": {"width": 6}}, 6, (28, 28)),
    ],
    ids=["logistic", "mlp", "cnn", "custom"],
)
def test_the_filters_are_the_first_weights_at_each_multiple_and_at_the_last_epoch(
    bench: PictureBench,
    monkeypatch: pytest.MonkeyPatch,
    model: dict[str, Any],
    num_filters: int,
    shape: tuple[int, int],
) -> None:
    monkeypatch.setattr(Watched, "seen", {}, raising=False)
    bench.train(bench.prepare(model=model), build_cohort=Watched)
    for trial in bench.ended():
        filters = bench.filters(trial)
        assert filters.epochs == (2, 4, 5)
        assert filters.weights.shape == (3, num_filters, *shape)
        assert np.isfinite(filters.roughness).all()
        for epoch, found in zip(filters.epochs, filters.weights, strict=True):
            weights = Watched.seen[trial.parameters["learning_rate"], epoch][filters.units]
            expected = weights.reshape(num_filters, *shape)
            largest = np.abs(expected).max(axis=(1, 2), keepdims=True)
            assert (np.abs(found - expected) <= 0.004 * largest).all()


def test_what_is_kept_changes_no_number(bench: PictureBench) -> None:
    values = {}
    for name, every in (("with", 1), ("without", None)):
        bench.train(bench.prepare(name, keep_every=every, model={"hidden_units": 8}))
        values[name] = [[(e.value, e.train_nll, e.validation_nll) for e in t.curve] for t in bench.ended(name)]
    assert values["with"] == values["without"]


def test_trials_of_different_widths_side_by_side_keep_their_own_units(bench: PictureBench) -> None:
    bench.train(bench.prepare(search={"hidden_units": [5, 30]}))
    assert [bench.filters(trial).weights.shape[1] for trial in bench.ended()] == [5, 30]


def test_a_resumed_trial_has_one_series_as_if_it_had_not_been_interrupted(bench: PictureBench) -> None:
    """Stopped after two epochs of five: the second attempt has the first one's filters, and no epoch twice."""
    bench.train(bench.prepare("whole", keep_every=1))
    prepared = bench.prepare("parts", keep_every=1)
    bench.train(prepared, stop=BeforeEpoch(3))
    bench.train(prepared)
    for trial, whole in zip(bench.ended("parts"), bench.ended("whole"), strict=True):
        assert trial.attributes["resumed_at_epoch"] == 2
        filters, expected = bench.filters(trial, "parts"), bench.filters(whole, "whole")
        assert filters.epochs == (1, 2, 3, 4, 5)
        np.testing.assert_array_equal(filters.weights, expected.weights)


@pytest.mark.parametrize("checkpoint_seconds", [0.0, 1e-9], ids=["starts again", "resumes"])
def test_epochs_that_are_trained_again_replace_those_of_the_attempt_before(
    bench: PictureBench, checkpoint_seconds: float
) -> None:
    """A worker fails after three epochs, without checkpoints or with one of an earlier epoch than the last."""

    def fail() -> None:
        raise RuntimeError("made up")

    prepared = bench.prepare(keep_every=1)
    with pytest.raises(RuntimeError, match="made up"):
        bench.train(prepared, stop=BeforeEpoch(4, fail), checkpoint_seconds=checkpoint_seconds)
    bench.train(prepared)
    for trial in bench.ended():
        assert bench.filters(trial).epochs == (1, 2, 3, 4, 5)


def test_a_pruned_trial_keeps_its_filters_and_a_diverged_one_those_before(bench: PictureBench) -> None:
    pruning = {"pruner": "median", "startup_trials": 1, "warmup_epochs": 1}
    search = {"strategy": "listed", "points": [{"learning_rate": 0.1}, {"learning_rate": 1e-6}]}
    bench.train(bench.prepare(keep_every=1, search=search, pruning=pruning), lanes=1)
    winner, loser = bench.ended()
    assert (winner.state, loser.state) == (TrialState.COMPLETE, TrialState.PRUNED)
    assert bench.filters(loser).epochs == tuple(range(1, loser.num_epochs + 1))
    model = {"activation": "relu", "hidden_units": 8}
    bench.train(bench.prepare("b", keep_every=1, search={"learning_rate": [1e9]}, model=model))
    (diverged,) = bench.ended("b")
    assert diverged.attributes["stop_reason"] == "diverged"
    with pytest.raises(InputError, match="no filters of trial 0 of study 'b' are kept"):
        bench.filters(diverged, "b")


class Refusing(FolderStore):
    """Has no room for anything but best parameters."""

    def write(self, artifact_id: str, content_body: Any) -> None:
        if b'"filters"' in content_body.getvalue():
            raise OSError(28, "No space left on device")
        super().write(artifact_id, content_body)


def test_a_store_that_refuses_filters_ends_no_trial_and_is_told_once(
    bench: PictureBench, caplog: pytest.LogCaptureFixture
) -> None:
    bench.train(bench.prepare(), lanes=1, artifacts=Artifacts(Refusing(bench.folder / "artifacts")))
    assert [trial.state for trial in bench.ended()] == [TrialState.COMPLETE] * 2
    told = [message for message in caplog.messages if "filters" in message]
    assert told == [
        f"tester: cannot write filters into {bench.artifacts.place}: No space left on device; "
        "the trials are counted without them"
    ]
    with pytest.raises(InputError, match=r"no filters of trial 0 .* although keep_every is 2") as caught:
        bench.filters(bench.ended()[0])
    assert "refused the file" in str(caught.value.hint)


def test_a_full_store_is_told_once_until_it_has_room_again(
    bench: PictureBench, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Full for the filters of the first two and the last two of five trials, each of which is tried."""

    class Changing(Refusing):
        num_tried = 0

        def write(self, artifact_id: str, content_body: Any) -> None:
            if b'"filters"' in content_body.getvalue():
                self.num_tried += 1
                if self.num_tried == 3:
                    return FolderStore.write(self, artifact_id, content_body)
            return super().write(artifact_id, content_body)

    monkeypatch.setattr("hpsearch.worker.lanes.epoch_writer.FILTER_PAUSE_SECONDS", 0.0)
    caplog.set_level("INFO", "hpsearch")
    store = Changing(bench.folder / "artifacts")
    rates = [0.5, 0.4, 0.3, 0.2, 0.1]
    bench.train(bench.prepare(search={"learning_rate": rates}), lanes=1, artifacts=Artifacts(store))
    assert store.num_tried == 5
    told = [message.rpartition("; ")[2] for message in caplog.messages if "filters" in message]
    refused = "the trials are counted without them"
    assert told == [refused, "tester: filters are stored again", refused]


def test_a_model_that_is_kept_for_pictures_alone_ends_no_trial_if_it_cannot_be_stored(
    bench: PictureBench, caplog: pytest.LogCaptureFixture
) -> None:
    class Full(FolderStore):
        """Has room for the first file."""

        num_files = 0

        def write(self, artifact_id: str, content_body: Any) -> None:
            if b'"filters"' not in content_body.getvalue():
                self.num_files += 1
                if self.num_files > 1:
                    raise OSError(28, "No space left on device")
            super().write(artifact_id, content_body)

    points = [{"learning_rate": rate} for rate in (0.3, 0.001)]  # the best trial comes first
    prepared = bench.prepare(search={"strategy": "listed", "points": points})
    bench.train(prepared, lanes=1, artifacts=Artifacts(Full(bench.folder / "artifacts")))
    best, other = bench.ended()
    assert best.value < other.value
    assert bench.artifacts.parameters_id(best.frozen()) is not None
    assert bench.artifacts.parameters_id(other.frozen()) is None
    assert "the trial is counted without them" in caplog.text


def test_a_trial_that_goes_on_continues_its_series(bench: PictureBench) -> None:
    bench.train(bench.prepare())
    bench.train(bench.prepare(training={"batch_size": 257, "max_epochs": 8}))
    for trial in bench.ended():
        assert trial.attributes["continues_trial"] in (0, 1)
        assert bench.filters(trial).epochs == (2, 4, 5, 6, 8)  # 5 ended the trial before
    before = [trial for trial in bench.summary().trials if trial.is_superseded]
    assert [bench.filters(trial).epochs for trial in before] == [(2, 4, 5)] * 2


def test_a_device_without_room_for_a_copy_costs_the_picture_only(
    bench: PictureBench, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In epochs 2, 4 and 5; told once, and again after it had room in between."""

    class NoRoom(Cohort):
        epochs: ClassVar[list[int]] = []
        full: ClassVar[set[int]] = set()

        def first_filters(self, keys: Any) -> Any:
            copied = super().first_filters(keys)
            self.epochs += [1] if copied else []
            if copied and len(self.epochs) in self.full:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
            return copied

    caplog.set_level("INFO", "hpsearch")
    for name, full, expected in (("a", {1, 2, 3}, ["no"]), ("b", {1, 3}, ["no", "again", "no"])):
        caplog.clear()
        monkeypatch.setattr(NoRoom, "epochs", [])
        monkeypatch.setattr(NoRoom, "full", full)
        bench.train(bench.prepare(name), build_cohort=NoRoom)
        assert [trial.state for trial in bench.ended(name)] == [TrialState.COMPLETE] * 2
        told = [message for message in caplog.messages if "memory for a copy" in message]
        assert ["again" if "again" in message else "no" for message in told] == expected


@pytest.mark.parametrize(("every", "lanes", "expected"), [(3, 1, 5), (3, 4, 5), (None, 1, 1)])
def test_the_models_of_the_five_best_are_kept(
    bench: PictureBench, every: int | None, lanes: int, expected: int
) -> None:
    """The best trial comes first, so that no other would be kept without keep_every."""
    rates = [0.3, 0.2, 0.1, 0.05, 0.02, 0.01, 0.003, 0.001]
    points = [{"learning_rate": rate} for rate in rates]
    bench.train(bench.prepare(keep_every=every, search={"strategy": "listed", "points": points}), lanes=lanes)
    complete = bench.summary().complete
    kept = [trial.number for trial in complete if bench.artifacts.parameters_id(trial.frozen()) is not None]
    best = complete[:expected]
    assert {trial.number for trial in best} <= set(kept)
    # Trials that are as good as the last of the best are kept, too: their NLL decides between them.
    assert all(trial.value == best[-1].value for trial in complete[expected:] if trial.number in kept)


def test_keep_every_can_be_set_later_and_counts_for_the_trials_from_then_on(bench: PictureBench) -> None:
    bench.train(bench.prepare(keep_every=None, search={"learning_rate": [0.1]}))
    bench.train(bench.prepare(keep_every=2, search={"learning_rate": [0.1, 0.05]}))
    by_rate = {trial.parameters["learning_rate"]: trial for trial in bench.ended()}
    assert bench.filters(by_rate[0.05]).epochs == (2, 4, 5)
    with pytest.raises(InputError, match="although keep_every is 2"):
        bench.filters(by_rate[0.1])


def _filters_path(bench: PictureBench, trial: TrialSummary) -> Path:
    artifact_id = recorded_id(trial.artifact_records, FILTERS_FILE, trial.number)
    assert artifact_id is not None
    return Path(bench.artifacts.place) / artifact_id


def test_a_missing_damaged_or_wrong_file_is_named(bench: PictureBench) -> None:
    bench.train(bench.prepare())
    one, other = bench.ended()
    path, content = _filters_path(bench, one), _filters_path(bench, one).read_bytes()
    wrongs = {
        "is damaged": content[: len(content) // 2],
        "is damaged: its checksum is wrong": content[:-1] + bytes([content[-1] ^ 1]),
        "says that it belongs to trial 1": _filters_path(bench, other).read_bytes(),
    }
    for what, wrong in wrongs.items():
        path.write_bytes(wrong)
        with pytest.raises(ArtifactError, match=what):
            bench.filters(one)
    path.unlink()
    with pytest.raises(ArtifactError, match=r"filters.safetensors of trial 0\) is not in") as caught:
        bench.filters(one)
    assert "--artifacts" in str(caught.value.hint)
    assert bench.filters(other).epochs == (2, 4, 5)


def test_a_running_trial_says_that_it_has_not_ended(bench: PictureBench) -> None:
    prepared = bench.prepare(keep_every=1)
    found: list[str] = []

    def look() -> None:
        with pytest.raises(InputError, match="it has not ended") as caught:
            bench.filters(bench.ended()[0])
        found.append(str(caught.value))

    bench.train(prepared, stop=BeforeEpoch(3, look))
    assert len(found) == 1


def test_an_end_takes_two_more_statements_for_any_number_of_trials(
    bench: PictureBench, statements: Callable[[], contextlib.AbstractContextManager[list[str]]]
) -> None:
    """One renews the leases, and one records the files. The five best are looked up as the best is otherwise."""
    numbers = {}
    for lanes in (2, 6):
        for every in (None, 1):
            rates = [round(1e-9 * (i + 1), 12) for i in range(lanes)]  # no better than a guess: all are equals
            name = f"{lanes}-{every}"
            prepared = bench.prepare(name, keep_every=every, search={"learning_rate": rates}, keep_parameters="best")
            with statements() as seen:
                bench.train(prepared, lanes=lanes)
            numbers[name] = len([sql for sql in seen if "trial_system_attributes" in sql and "INSERT" in sql])
    assert numbers["2-1"] - numbers["2-None"] == numbers["6-1"] - numbers["6-None"] == 1


def test_custom_network_without_pictures_is_trained_without_filters(
    bench: PictureBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hpsearch.training.networks.first_layer.FirstLayer.of", classmethod(lambda cls, network: None))
    bench.train(bench.prepare())
    assert all(trial.is_complete for trial in bench.ended())
    with pytest.raises(InputError) as caught:
        bench.filters(bench.ended()[0])
    assert "your own networks" in str(caught.value.hint)
