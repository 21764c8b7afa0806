"""Files of arrays: what becomes of each kind of array, how rows are split, and what is refused."""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from hpsearch.data.catalog import load_selection_data
from hpsearch.data.files.lookup import DataLocations
from hpsearch.data.splits import SelectionData
from hpsearch.data.test_file_marks import marks_of_test_files
from hpsearch.data.test_split import HeldOutSplit, load_test_split
from hpsearch.errors import DataError, InputError
from hpsearch.study.settings import DataSettings

Arrays = dict[str, Any]
Load = Callable[..., SelectionData]
LoadTest = Callable[..., HeldOutSplit]
LABELS = np.arange(60) % 3


def levels(number: int = 60, *shape: int, seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (number, *(shape or (5, 4))), dtype=np.uint8)


def write(folder: Path, arrays: Arrays, ending: str = ".npz") -> Path:
    path = folder / f"mine{ending}"
    if ending == ".npz":
        np.savez_compressed(path, **arrays)
    else:
        save_file({name: np.ascontiguousarray(array) for name, array in arrays.items()}, path)
    return path


def both(**more: Any) -> Arrays:
    test = {"x_test": levels(9, seed=2), "y_test": LABELS[:9]}
    return {"x_train": levels(), "y_train": LABELS, **test, **more}


@pytest.fixture
def load(locations: DataLocations) -> Load:
    return lambda path, **settings: load_selection_data(
        DataSettings(dataset=str(path), **settings), locations=locations
    )


@pytest.fixture
def load_test(locations: DataLocations) -> LoadTest:
    def read(path: Path, stored: Any = None, **settings: Any) -> HeldOutSplit:
        return load_test_split(DataSettings(dataset=str(path), **settings), locations, lambda: True, stored)

    return read


def rows_of(pixels: np.ndarray) -> set[bytes]:
    return {np.ascontiguousarray(row).tobytes() for row in pixels}


@pytest.mark.parametrize("ending", [".npz", ".safetensors"])
def test_the_names_of_keras_are_read_and_validation_is_drawn(
    tmp_path: Path, load: Load, load_test: LoadTest, ending: str
) -> None:
    path = write(tmp_path, both(), ending)
    data = load(path)
    assert (data.name, data.example_shape, data.num_classes) == (f"mine{ending}", (5, 4), 3)
    assert (len(data.train), len(data.validation)) == (50, 10)
    assert data.train.images.dtype == np.uint8
    known = {image.tobytes(): label for image, label in zip(levels(), LABELS, strict=True)}
    for part in (data.train, data.validation):
        assert [known[image.tobytes()] for image in np.asarray(part.images)] == part.labels.tolist()
    assert np.bincount(data.validation.labels).max() <= 4  # by class
    held_out = load_test(path, stored=data.record)
    np.testing.assert_array_equal(held_out.images, levels(9, seed=2).reshape(9, -1))
    np.testing.assert_array_equal(held_out.labels, LABELS[:9])


def test_a_validation_part_of_its_own_is_used_whole(tmp_path: Path, load: Load) -> None:
    own = {"x_validation": levels(12, seed=3), "y_validation": LABELS[:12]}
    data = load(write(tmp_path, both(**own)))
    assert (len(data.train), len(data.validation)) == (60, 12)
    assert rows_of(data.validation.images) == rows_of(levels(12, seed=3).reshape(12, -1))
    assert data.record["split"]["validation_from"] == "x_validation"
    with pytest.raises(
        InputError, match=r"data\.validation has no effect: .*mine.npz has a validation part of its own"
    ):
        load(tmp_path / "mine.npz", validation=0.1)


def test_without_a_test_part_it_is_drawn_and_in_no_other_part(
    tmp_path: Path, locations: DataLocations, load: Load, load_test: LoadTest
) -> None:
    path = write(tmp_path, {"x_train": levels(84), "y_train": np.arange(84) % 2})
    data = load(path)
    held_out = load_test(path, stored=data.record)
    assert (len(data.train), len(data.validation), len(held_out)) == (60, 12, 12)
    parts = [rows_of(part.images) for part in (data.train, data.validation, held_out)]
    assert sum(map(len, parts)) == len(set.union(*parts)) == 84
    for file in locations.cache.glob("prepared/*/*_images.npy"):
        assert not rows_of(np.load(file)) & parts[2]
    changed = {**data.record, "split": {**data.record["split"], "sha256": "0"}}
    with pytest.raises(DataError, match="the rows are not those that the study has split"):
        load_test(path, stored=changed)


def test_no_test_part_on_request(tmp_path: Path, load: Load, load_test: LoadTest) -> None:
    path = write(tmp_path, both())
    assert load(path, test=0).record["split"]["test_from"] == "none"
    with pytest.raises(InputError, match=r"data\.test is 0"):
        load_test(path, test=0)
    with pytest.raises(InputError, match=r"data\.test has no effect: .*mine.npz has a test part of its own"):
        load(path, test=5)
    with pytest.raises(InputError, match=r"data\.validation must be a fraction or a number"):
        load(path, validation="other")


def test_x_test_is_not_unpacked_for_selection(tmp_path: Path, load: Load, load_test: LoadTest) -> None:
    """Its packed bytes are destroyed: whoever unpacks them fails."""
    path = write(tmp_path, both())
    with zipfile.ZipFile(path) as archive:
        places = {name: archive.getinfo(name).header_offset for name in archive.namelist()}
    content = bytearray(path.read_bytes())
    for name in ("x_test.npy", "y_test.npy"):
        start = places[name] + 60 + len(name)
        content[start : start + 20] = bytes(20)
    path.write_bytes(content)
    data = load(path)
    assert len(data.train) == 50
    with pytest.raises(DataError, match=r"mine\.npz, x_test: cannot be read"):
        load_test(path, stored=data.record)


def test_another_x_test_is_the_same_study(tmp_path: Path, load: Load) -> None:
    before = load(write(tmp_path, both(), ".safetensors")).checksums
    other = both(x_test=levels(9, seed=8))
    assert load(write(tmp_path, other, ".safetensors")).checksums == before
    assert load(write(tmp_path, both(x_train=levels(seed=8)), ".safetensors")).checksums != before
    assert any(
        mark.startswith("file:")
        for mark in marks_of_test_files(DataSettings(dataset=f"{tmp_path}/mine.safetensors"), {})
    )


@pytest.mark.parametrize(
    ("x", "shape", "scaled"),
    [
        (levels(60, 5, 4, 1), (5, 4), levels().reshape(60, -1) / np.float32(255)),
        (levels(60, 1, 5, 4), (5, 4), levels().reshape(60, -1) / np.float32(255)),
        (levels(60, 5, 4, 3), (3, 5, 4), None),
        (levels(60, 3, 5, 4), (3, 5, 4), None),
        (levels().astype(np.int64), (5, 4), levels().reshape(60, -1) / np.float32(255)),
        (levels() > 100, (5, 4), (levels() > 100).reshape(60, -1).astype(np.float32)),
        (levels() / 255.0, (5, 4), (levels() / 255.0).reshape(60, -1).astype(np.float32)),
        (levels(60, 7).astype(np.float64) - 90, (7,), levels(60, 7).astype(np.float32) - 90),
        (levels(60, 7), (7,), levels(60, 7).astype(np.float32)),
    ],
    ids=["one channel", "one channel first", "RGB", "RGB first", "int64", "bool", "float64", "rows", "rows of uint8"],
)
def test_kinds_of_arrays(
    tmp_path: Path, load: Load, x: np.ndarray, shape: tuple[int, ...], scaled: np.ndarray | None
) -> None:
    data = load(write(tmp_path, {"x_train": x, "y_train": LABELS[:, np.newaxis]}), test=0)
    assert data.example_shape == shape
    if scaled is None:
        scaled = (x if x.shape[1] == 3 else np.moveaxis(x, 3, 1)).reshape(60, -1).astype(np.float32) / np.float32(255)
    found = {image.tobytes() for part in (data.train, data.validation) for image in part.floats()}
    assert found == rows_of(scaled.astype(np.float32))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"x_train": np.array([[1], [2, 3]], dtype=object)}, "x_train: refused: an array of Python objects"),
        ({"y_train": LABELS.astype(object)}, "y_train: refused: an array of Python objects"),
        ({"x_train": levels().astype(str)}, "x_train has the type <U3, expected numbers"),
        ({"x_train": levels() / 1.0}, r"x_train: expected pixels in \[0, 1\], found 0 .. 255"),
        ({"x_train": np.full((60, 3), np.nan)}, "x_train: 180 values in 60 rows are NaN"),
        ({"x_train": levels(60, 3, 4, 3)}, "either axis may be the channels"),
        ({"x_train": levels(0)}, "x_train is empty"),
        ({"y_train": np.eye(3)[LABELS]}, r"y_train has the shape \[60, 3\], expected \[N\]"),
        ({"y_train": LABELS.astype(str)}, "y_train has the type <U"),
        ({"y_train": LABELS - 1}, r"mine.npz: expected labels in 0..999, found -1"),
        ({"y_train": LABELS[:-1]}, "60 examples, but y_train has 59 targets"),
        ({"y_train": LABELS[:0]}, "y_train is empty"),
        ({"y_train": LABELS * 0}, "all images have class 0"),
        ({"y_train": LABELS * 0.0 + 2.5}, r"all targets of training are 2\.5"),
        ({"x_validation": levels(9)}, "has no y_validation"),
        ({"x_validation": levels(9, 4, 4), "y_validation": LABELS[:9]}, "5x4 of uint8, x_validation 4x4 of uint8"),
        ({"x_validation": levels(9) / 255.0, "y_validation": LABELS[:9]}, "of uint8, x_validation 5x4 of float32"),
        ({"x_validation": levels(9), "y_validation": LABELS[:9] / 2}, "y_validation is float32, y_train int64"),
    ],
)
def test_arrays_that_are_not_read_are_named(tmp_path: Path, load: Load, changes: Arrays, message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        load(write(tmp_path, both(**changes)))
    assert caught.value.hint


def numbers(number: int, seed: int = 4) -> Arrays:
    rows = np.random.default_rng(seed).normal(size=(number, 3))
    return {"x": rows, "y": 100 + 10 * rows.sum(axis=1)}


@pytest.mark.parametrize("ending", [".npz", ".safetensors"])
def test_floats_are_targets_standardised_by_the_training_rows(
    tmp_path: Path, load: Load, load_test: LoadTest, ending: str
) -> None:
    train, test = numbers(60), numbers(9, seed=5)
    arrays = {"x_train": train["x"], "y_train": train["y"], "x_test": test["x"], "y_test": test["y"]}
    path = write(tmp_path, arrays, ending)
    data = load(path)
    assert (data.num_classes, data.num_outputs, data.train.labels.dtype) == (0, 1, np.float32)
    assert (data.train.labels.mean(), data.train.labels.std()) == pytest.approx((0, 1), abs=1e-5)
    mean, deviation = data.record["target"]["mean"], data.target_deviation
    of_row = {row.astype(np.float32).tobytes(): y for row, y in zip(train["x"], train["y"], strict=True)}
    for part in (data.train, data.validation):
        expected = [of_row[np.asarray(row).tobytes()] for row in part.images]
        np.testing.assert_allclose(part.labels * deviation + mean, expected, rtol=1e-5)
    for stored in (data.record, None):
        np.testing.assert_allclose(load_test(path, stored).labels * deviation + mean, test["y"], rtol=1e-5)


def test_drawn_test_rows_have_the_target_of_training(tmp_path: Path, load: Load, load_test: LoadTest) -> None:
    train = numbers(84)
    path = write(tmp_path, {"x_train": train["x"], "y_train": train["y"]})
    data = load(path)
    target = data.record["target"]
    parts = (data.train, data.validation, load_test(path, stored=data.record))
    found = np.concatenate([part.labels for part in parts]) * target["deviation"] + target["mean"]
    np.testing.assert_allclose(np.sort(found), np.sort(train["y"]), rtol=1e-5)


def test_the_task_may_be_set(tmp_path: Path, load: Load) -> None:
    assert load(write(tmp_path, both()), task="regression").num_classes == 0
    assert load(write(tmp_path, both(y_train=LABELS * 1.0)), task="classification").num_classes == 3
    with pytest.raises(InputError, match=r"mine\.npz: classes are whole numbers, but there are targets with fractions"):
        load(write(tmp_path, both(y_train=LABELS / 2)), task="classification")


def test_a_test_part_of_another_shape_is_refused(tmp_path: Path, load: Load, load_test: LoadTest) -> None:
    path = write(tmp_path, both(x_test=levels(9, 4, 4)))
    record = load(path).record
    with pytest.raises(DataError, match=r"mine\.npz: x_test has 4x4, x_train 5x4"):
        load_test(path, stored=record)


def test_data_sets_with_the_same_labels_share_no_mark(tmp_path: Path, load: Load) -> None:
    marks = []
    for seed in (1, 8):
        data = load(write(tmp_path, both(x_train=levels(seed=seed))))
        marks.append(marks_of_test_files(DataSettings(dataset=str(tmp_path / "mine.npz")), data.checksums))
    assert not {mark for mark in marks[0] & marks[1] if mark.startswith("trained-on:")}


def test_a_file_without_training_arrays_says_what_it_has(tmp_path: Path, load: Load) -> None:
    with pytest.raises(DataError, match="no x_train and y_train, found X, y") as caught:
        load(write(tmp_path, {"X": levels(), "y": LABELS}))
    assert "x_train" in str(caught.value.hint)


def test_other_arrays_are_ignored_with_a_line(tmp_path: Path, load: Load, caplog: pytest.LogCaptureFixture) -> None:
    load(write(tmp_path, both(note=np.zeros(1))))
    assert "ignored note: expected x_train" in caplog.text


def test_arrays_that_do_not_fit_into_memory_are_named(
    tmp_path: Path, load: Load, monkeypatch: pytest.MonkeyPatch
) -> None:
    def too_much(*_: object, **__: object) -> None:
        raise MemoryError

    path = write(tmp_path, both())
    monkeypatch.setattr(np.lib.npyio.NpzFile, "__getitem__", too_much)
    with pytest.raises(DataError, match=r"mine\.npz, x_train: more than fits into memory"):
        load(path)


@pytest.mark.parametrize("ending", [".npz", ".safetensors"])
def test_a_damaged_file_is_named(tmp_path: Path, load: Load, ending: str) -> None:
    path = write(tmp_path, both(), ending)
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(DataError, match=f"mine{ending}: cannot be read"):
        load(path)
    path.write_bytes(b"")
    with pytest.raises(DataError, match=f"mine{ending}: cannot be read"):
        load(path)


def test_a_pickle_that_is_named_npz_is_refused(tmp_path: Path, load: Load) -> None:
    np.save(tmp_path / "a.npy", np.array([{}], dtype=object), allow_pickle=True)
    with pytest.raises(DataError, match=r"a\.npz: cannot be read"):
        load((tmp_path / "a.npy").rename(tmp_path / "a.npz"))
