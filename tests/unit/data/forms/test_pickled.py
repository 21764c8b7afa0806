"""mnist.pkl.gz: training and validation pairs come out checked, the test pair stays unread."""

from __future__ import annotations

import gzip
import hashlib
import os
import pickle
from pathlib import Path

import numpy as np
import pytest

from hpsearch.data.files.lookup import DataLocations
from hpsearch.data.files.restricted_pickle import ArrayRecord
from hpsearch.data.forms.form import DataRequest
from hpsearch.data.forms.pickled import PickledFile
from hpsearch.data.splits import SelectionData
from hpsearch.errors import DataError, InputError
from hpsearch.study.settings import DataSettings

Pair = tuple[np.ndarray, np.ndarray]


def load(path: Path, train_samples: int | None) -> SelectionData:
    settings, locations = DataSettings(train_samples=train_samples), DataLocations(local=None, cache=path.parent)
    return PickledFile(path).load_selection(DataRequest(settings=settings, locations=locations))


def make_pair(num_images: int, seed: int) -> Pair:
    """Random images, labels 0, 1, ... 9, 0, 1, ..."""
    images = np.random.default_rng(seed).random((num_images, 784), dtype=np.float32)
    return images, np.arange(num_images) % 10


TRAIN, VALIDATION, TEST = make_pair(12, 1), make_pair(4, 2), make_pair(3, 3)


def write(folder: Path, content: object, *, name: str = "mnist.pkl.gz") -> Path:
    path = folder / name
    path.write_bytes(gzip.compress(pickle.dumps(content, 2)))
    return path


def test_the_two_pairs_and_the_checksum_of_the_unpacked_pickle_come_out(tmp_path: Path) -> None:
    path = write(tmp_path, (TRAIN, VALIDATION, TEST))
    data = load(path, None)
    for split, (images, labels) in ((data.train, TRAIN), (data.validation, VALIDATION)):
        np.testing.assert_array_equal(split.images, images)
        np.testing.assert_array_equal(split.labels, labels)
        assert (split.images.dtype, split.labels.dtype) == (np.float32, np.int64)
    assert (data.name, data.example_shape, data.num_outputs) == ("mnist.pkl.gz", (28, 28), 10)
    sha256 = hashlib.sha256(gzip.decompress(path.read_bytes())).hexdigest()
    assert data.checksums == {"mnist.pkl": sha256}


def test_an_unpacked_pickle_is_the_same_data(tmp_path: Path) -> None:
    packed = write(tmp_path, (TRAIN, VALIDATION, TEST))
    unpacked = tmp_path / "mnist.pkl"
    unpacked.write_bytes(gzip.decompress(packed.read_bytes()))
    assert load(unpacked, None).checksums == load(packed, None).checksums


def test_the_test_pair_is_not_even_built(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A test pair that could not be built does not matter, and only four arrays are made."""
    num_built = 0
    build = ArrayRecord.build

    def count(record: ArrayRecord) -> np.ndarray:
        nonlocal num_built
        num_built += 1
        return build(record)

    monkeypatch.setattr(ArrayRecord, "build", count)
    nonsense = (np.full((2, 3, 4, 5), 7.0), np.full(6, 99))
    load(write(tmp_path, (TRAIN, VALIDATION, nonsense)), None)
    assert num_built == 4


def test_train_samples_keeps_the_first_images(tmp_path: Path) -> None:
    path = write(tmp_path, (TRAIN, VALIDATION, TEST))
    data = load(path, 5)
    np.testing.assert_array_equal(data.train.images, TRAIN[0][:5])
    np.testing.assert_array_equal(data.train.labels, TRAIN[1][:5])
    assert len(data.validation) == 4
    with pytest.raises(InputError, match=r"must be in 1\.\.12, got 13"):
        load(path, 13)


def test_float64_images_and_small_integer_labels_are_converted(tmp_path: Path) -> None:
    train = TRAIN[0].astype(np.float64), TRAIN[1].astype(np.uint8)
    data = load(write(tmp_path, (train, VALIDATION, TEST)), None)
    np.testing.assert_array_equal(data.train.images, TRAIN[0])
    np.testing.assert_array_equal(data.train.labels, TRAIN[1])
    assert (data.train.images.dtype, data.train.labels.dtype) == (np.float32, np.int64)


class Command:
    """A pickle that runs a command when it is loaded."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("place", [0, 1, 2])
def test_a_hostile_pickle_runs_nothing_and_the_error_says_what_was_refused(tmp_path: Path, place: int) -> None:
    """Also in the place of the test pair, which nobody asked for."""
    witness = tmp_path / "witness"
    parts: list[object] = [TRAIN, VALIDATION, TEST]
    parts[place] = (Command(witness), TEST[1])
    path = write(tmp_path, tuple(parts))
    with pytest.raises(DataError) as caught:
        load(path, None)
    assert str(caught.value) == (f"{path}: refused to unpickle the name 'posix.mkdir'; none of its code was run")
    assert caught.value.hint is not None
    assert "only numpy arrays are admitted" in caught.value.hint
    assert not witness.exists()


@pytest.mark.parametrize(
    "content",
    [
        (),
        (TRAIN, VALIDATION),
        (TRAIN, VALIDATION, TEST, TEST),
        (TRAIN, VALIDATION, TEST[0]),
        (TRAIN, VALIDATION, (*TEST, TEST[0])),
        (TRAIN, VALIDATION, (1, 2)),
        TRAIN[0],
        5,
    ],
)
def test_anything_but_three_pairs_is_refused(tmp_path: Path, content: object) -> None:
    with pytest.raises(DataError, match=r"expected three \(images, labels\) pairs of arrays"):
        load(write(tmp_path, content), None)


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (TRAIN[0][:, :700], TRAIN[1], r"images of shape \[N, 784\] and a float type, found \[12, 700\]"),
        (TRAIN[0][0], TRAIN[1], r"images of shape \[N, 784\] and a float type, found \[784\] of float32"),
        ((TRAIN[0] * 255).astype(np.uint8), TRAIN[1], r"found \[12, 784\] of uint8"),
        (TRAIN[0] * 255, TRAIN[1], r"pixels in \[0, 1\], found 0\.\d+ \.\. 25\d\.\d+"),
        (TRAIN[0] - 1, TRAIN[1], r"pixels in \[0, 1\], found -"),
        (np.where(TRAIN[0] > 0.5, np.nan, TRAIN[0]), TRAIN[1], r"pixels in \[0, 1\], found nan"),
        (TRAIN[0], TRAIN[1].astype(np.float32), r"labels of shape \[N\] and an integer type, found \[12\]"),
        (TRAIN[0], np.eye(12, 10, dtype=np.int64), r"an integer type, found \[12, 10\] of int64"),
        (TRAIN[0], TRAIN[1][:11], "12 images, but 11 labels"),
        (TRAIN[0], TRAIN[1] + 1, r"labels in 0\.\.9, found 1 \.\. 10"),
        (TRAIN[0], TRAIN[1] - 1, r"labels in 0\.\.9, found -1 \.\. 8"),
    ],
)
@pytest.mark.parametrize("part", ["train", "valid"])
def test_wrong_images_and_labels_say_what_was_expected_and_found(
    tmp_path: Path, images: np.ndarray, labels: np.ndarray, message: str, part: str
) -> None:
    wrong = images, labels
    path = write(tmp_path, (wrong, VALIDATION, TEST) if part == "train" else (TRAIN, wrong, TEST))
    with pytest.raises(DataError, match=rf"mnist\.pkl\.gz, {part}: .*{message}"):
        load(path, None)


def test_an_array_whose_bytes_are_missing_names_its_part(tmp_path: Path) -> None:
    pickled = pickle.dumps((TRAIN, VALIDATION, TEST), 2)
    shorter = pickled.replace(b"K\x0cM\x10\x03", b"K\x0bM\x10\x03", 1)  # the shape (12, 784) becomes (11, 784)
    assert shorter != pickled
    path = tmp_path / "mnist.pkl"
    path.write_bytes(shorter)
    with pytest.raises(DataError, match=r"train: refused an array of shape \(11, 784\) and type <f4: expected 34496"):
        load(path, None)


def test_a_file_that_is_no_pickle_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "mnist.pkl.gz"
    path.write_bytes(gzip.compress(b"\x00\x00\x08\x03"))
    with pytest.raises(DataError, match="refused to unpickle damaged or no pickle at all"):
        load(path, None)
