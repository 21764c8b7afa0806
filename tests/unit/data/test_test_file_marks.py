"""Test images are neither trained on under another name nor within reach of what our API hands out."""

from __future__ import annotations

import gc
import gzip
import pickle
import shutil
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
import torch
from numpy.typing import NDArray

import hpsearch
from hpsearch.data.catalog import load_selection_data
from hpsearch.data.files.lookup import DataLocations
from hpsearch.data.files.published import TEST_IMAGES, TEST_LABELS, TRAIN_IMAGES, TRAIN_LABELS
from hpsearch.data.registry import resolve_dataset
from hpsearch.data.test_file_marks import marks_of_content, marks_of_test_files
from hpsearch.errors import DataError
from hpsearch.study.settings import DataSettings
from hpsearch.worker.objective import Objective

MARK = 201  # a grey level that test images alone have


def load(dataset: Path | str, locations: DataLocations) -> Any:
    return load_selection_data(DataSettings(dataset=str(dataset)), locations=locations)


@pytest.mark.parametrize("part", ["images", "labels"])
def test_a_folder_whose_training_file_is_a_published_test_file_is_refused(
    locations: DataLocations, synthetic_set, publish, tmp_path: Path, part: str
) -> None:
    publish(synthetic_set.publish("mnist"))
    folder = synthetic_set.write(tmp_path / "mine")
    load(folder, locations)
    train, test = (TRAIN_IMAGES, TEST_IMAGES) if part == "images" else (TRAIN_LABELS, TEST_LABELS)
    shutil.copy(folder / f"{test}.gz", folder / f"{train}.gz")
    with pytest.raises(DataError, match=f"these are mnist's test images or labels \\({test}\\)") as caught:
        load(folder, locations)
    assert caught.value.exit_code == 3
    assert caught.value.hint


@pytest.fixture(scope="module")
def mnist(mnist_folder: Path) -> dict[str, bytes]:
    return {path.name[:-3]: gzip.decompress(path.read_bytes()) for path in mnist_folder.glob("*-ubyte.gz")}


def pixels(content: bytes) -> NDArray[np.uint8]:
    return np.frombuffer(content, np.uint8, offset=16).reshape(-1, 28, 28)


def write_folder(folder: Path, images: NDArray[np.uint8], labels: NDArray[np.uint8]) -> None:
    folder.mkdir()
    for name, array in ((TRAIN_IMAGES, images), (TRAIN_LABELS, labels)):
        header = bytes([0, 0, 8, array.ndim]) + b"".join(size.to_bytes(4, "big") for size in array.shape)
        (folder / name).write_bytes(header + array.tobytes())


@pytest.mark.mnist
@pytest.mark.parametrize("order", [("train", "test"), ("test", "train"), ("test",)])
def test_test_images_among_the_training_images_are_found(
    locations: DataLocations, mnist: dict[str, bytes], tmp_path: Path, order: tuple[str, ...]
) -> None:
    """All 70,000 in one file, in either order; and the test images with labels of other files."""
    parts = {
        "train": (pixels(mnist[TRAIN_IMAGES])[:12_000], mnist[TRAIN_LABELS][8:12_008]),
        "test": (pixels(mnist[TEST_IMAGES]), mnist[TEST_LABELS][8:]),
    }
    images = np.concatenate([parts[name][0] for name in order])
    labels = np.frombuffer(b"".join(parts[name][1] for name in order), np.uint8).copy()
    labels[0] ^= 1  # not the published file of labels
    write_folder(tmp_path / "mine", images, labels)
    with pytest.raises(DataError, match="mnist's test images"):
        load(tmp_path / "mine", locations)


@pytest.mark.mnist
@pytest.mark.parametrize("scale", [255, 256])
@pytest.mark.parametrize("place", [0, 1])
def test_test_images_in_a_pickle_are_found(
    locations: DataLocations, mnist: dict[str, bytes], tmp_path: Path, scale: int, place: int
) -> None:
    test = pixels(mnist[TEST_IMAGES]).reshape(-1, 784) / np.float32(scale)
    labels = np.frombuffer(mnist[TEST_LABELS], np.uint8, offset=8).astype(np.int64)
    small = (np.zeros((6, 784), np.float32), np.arange(6))
    pairs = [small, small, small]
    pairs[place] = (test, labels)
    path = tmp_path / "mnist.pkl.gz"
    path.write_bytes(gzip.compress(pickle.dumps(tuple(pairs), 2), 1))
    with pytest.raises(DataError, match="mnist's test images"):
        load(path, locations)


def test_no_test_file_is_read_as_a_training_file(locations: DataLocations, synthetic_set, tmp_path: Path) -> None:
    source: Any = resolve_dataset(str(synthetic_set.write(tmp_path / "mine")), None)
    for names in ((TEST_IMAGES, TEST_LABELS), (TRAIN_IMAGES, TEST_LABELS)):
        with pytest.raises(DataError, match="is not a training file"):
            source.read_training_files(names, locations)


def test_test_files_are_known_again_without_being_opened(
    locations: DataLocations, synthetic_set, other_set, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the published checksum, by the training files beside them, by their path, size and time."""
    folder = synthetic_set.write(tmp_path / "mine")
    copy = shutil.copytree(folder, tmp_path / "copy")
    other = other_set.write(tmp_path / "other")
    monkeypatch.setattr(Path, "open", lambda *_: pytest.fail("it was opened"))
    marks = {
        name: marks_of_test_files(DataSettings(dataset=str(name)), {TRAIN_IMAGES: sha, TRAIN_LABELS: "same"})
        for name, sha in ((folder, "1"), (copy, "1"), (other, "2"), ("mnist", "3"))
    }
    assert marks[folder] & marks[copy]
    assert not marks[folder] & marks[other]
    assert marks_of_test_files(DataSettings(dataset=str(folder)), {}) < marks[folder]  # trained on other images
    published = "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7"
    assert marks["mnist"] & marks_of_content({TEST_IMAGES: published, TEST_LABELS: "same"})
    (folder / f"{TEST_IMAGES}.gz").unlink()
    with pytest.raises(DataError, match=f"no {TEST_IMAGES}"):
        marks_of_test_files(DataSettings(dataset=str(folder)), {})


# What is within reach of an objective


def reachable(start: object) -> Iterator[bytes]:
    """The memory of every array, tensor and string of bytes that one gets at from an object by its attributes."""
    seen: dict[int, object] = {}
    waiting = [start]
    while waiting:
        found = waiting.pop()
        if id(found) in seen or isinstance(found, types.ModuleType | types.FunctionType | type):
            continue
        seen[id(found)] = found  # kept: an id is good as long as its object lives
        waiting += gc.get_referents(found)
        if isinstance(found, np.ndarray):
            waiting.append(found.base)
            if found.dtype != object:
                yield np.ascontiguousarray(found).tobytes()
        elif isinstance(found, torch.Tensor):
            storage = found.detach().cpu().untyped_storage()
            yield torch.empty(0, dtype=torch.uint8).set_(storage).numpy().tobytes()
        elif isinstance(found, bytes | bytearray | memoryview):
            yield bytes(found)


class Subclassed(Objective):
    """A user's own, which keeps all that it is given."""

    def __call__(self, trial: optuna.Trial) -> float:
        self.kept = self._data()
        return super().__call__(trial)


@pytest.mark.parametrize("form", ["folder", "pickle", "digits"])
@pytest.mark.parametrize("kind", [Objective, Subclassed])
def test_no_test_image_is_within_reach_of_an_objective(form: str, kind: Any, tmp_path: Path) -> None:
    dataset, test_bytes = made_up(form, tmp_path)
    definition = hpsearch.objective(
        {
            "name": "reach",
            "data": {"dataset": str(dataset)},
            "model": {"family": "logistic"},
            "training": {"batch_size": 20, "max_epochs": 1},
            "search": {"learning_rate": [0.1]},
        },
        device="cpu",
    ).definition
    objective = kind(definition, device="cpu")
    study = optuna.create_study()
    study.optimize(objective, n_trials=1)
    memory = list(reachable([objective, study]))
    train = objective._selection.train.images[0].tobytes()
    assert any(train in block for block in memory)  # the search would find them
    assert not any(each in block for each in test_bytes for block in memory)


def made_up(form: str, folder: Path) -> tuple[Path | str, list[bytes]]:
    """A data set, and its first test image as the bytes that it may have in memory."""
    if form == "digits":
        from sklearn.datasets import load_digits

        images = load_digits().images[-256:]
        return "digits", [images[0].astype(kind).tobytes() for kind in (np.uint8, np.float32, np.float64)]
    generator = np.random.default_rng(0)
    parts = {}
    for part, number in (("train", 120), ("valid", 30), ("t10k", 40)):
        images = generator.integers(0, MARK, (number, 28, 28)).astype(np.uint8)
        parts[part] = (images, generator.integers(0, 10, number).astype(np.uint8))
    parts["t10k"][0][:] = MARK
    test = [(np.full(784, MARK, np.uint8)).tobytes(), (np.full(784, MARK, np.float32) / np.float32(255)).tobytes()]
    if form == "pickle":
        pairs = [
            (images.reshape(-1, 784) / np.float32(255), labels.astype(np.int64)) for images, labels in parts.values()
        ]
        path = folder / "mnist.pkl.gz"
        path.write_bytes(gzip.compress(pickle.dumps(tuple(pairs), 2)))
        return path, test
    write_folder(folder / "mine", *parts["train"])
    for name, array in ((TEST_IMAGES, parts["t10k"][0]), (TEST_LABELS, parts["t10k"][1])):
        header = bytes([0, 0, 8, array.ndim]) + b"".join(size.to_bytes(4, "big") for size in array.shape)
        (folder / "mine" / name).write_bytes(header + array.tobytes())
    return folder / "mine", test
