"""EMNIST and QMNIST: by name from the published archive or files, and from folders and archives of one's own."""

from __future__ import annotations

import gzip
import hashlib
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from hpsearch.data.catalog import fetch_dataset, load_selection_data, verify_dataset
from hpsearch.data.files.file_check import FileState
from hpsearch.data.files.idx_layout import EMNIST_LAYOUTS, MNIST_LAYOUT, QMNIST_LAYOUT, IdxLayout
from hpsearch.data.files.lookup import DataLocations
from hpsearch.data.files.published import PublishedFile, PublishedSet
from hpsearch.data.files.published_archive import EMNIST, PublishedArchive
from hpsearch.data.forms import idx_files
from hpsearch.data.test_file_marks import marks_of_test_files
from hpsearch.data.test_split import load_test_split
from hpsearch.errors import DataError
from hpsearch.study.settings import DataSettings

LETTERS, BALANCED = EMNIST_LAYOUTS["letters"], EMNIST_LAYOUTS["balanced"]


def idx_bytes(array: np.ndarray, kind: int = 8) -> bytes:
    header = bytes([0, 0, kind, array.ndim]) + b"".join(size.to_bytes(4, "big") for size in array.shape)
    return header + array.tobytes()


def floats(images: np.ndarray) -> np.ndarray:
    """Pixels in [0, 1], of images that are kept as levels or as floats."""
    return images / np.float32(255) if images.dtype == np.uint8 else images


def upright(num_images: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (num_images, 5, 4)).astype(np.uint8)


def files_of(layout: IdxLayout, num_classes: int) -> dict[str, bytes]:
    """60 training and 10 test images of 5 x 4 pixels, and labels as the publisher writes them."""
    files = {}
    for seed, (num, (images_name, labels_name)) in enumerate([(60, layout.training_files), (10, layout.test_files)]):
        images = upright(num, seed)
        stored = images.transpose(0, 2, 1) if layout.is_transposed else images
        files[images_name] = idx_bytes(np.ascontiguousarray(stored))
        labels = np.arange(num) % num_classes + layout.first_label
        if layout.has_wide_labels:
            columns = np.zeros((num, 8), dtype=">i4")
            columns[:, 0], columns[:, 1:] = labels, -1
            files[labels_name] = idx_bytes(columns, 12)
        else:
            files[labels_name] = idx_bytes(labels.astype(np.uint8))
    return files


def write_zip(path: Path, *sets: dict[str, bytes]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in (item for files in sets for item in files.items()):
            archive.writestr(f"gzip/{name}.gz", gzip.compress(content, mtime=0))
    return path


def write_folder(folder: Path, *sets: dict[str, bytes]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in (item for files in sets for item in files.items()):
        (folder / f"{name}.gz").write_bytes(gzip.compress(content))
    return folder


@pytest.fixture
def emnist(locations: DataLocations, monkeypatch: pytest.MonkeyPatch) -> PublishedArchive:
    """A small archive with two of EMNIST's parts in the cache, in the place of the published one."""
    path = write_zip(locations.cache / "emnist" / "gzip.zip", files_of(LETTERS, 26), files_of(BALANCED, 10))
    archive = replace(EMNIST, md5=hashlib.md5(path.read_bytes()).hexdigest())
    monkeypatch.setattr(idx_files, "EMNIST", archive)
    return archive


def test_emnist_by_name_is_upright_and_its_letters_have_names(locations: DataLocations, emnist) -> None:
    data = load_selection_data(DataSettings(dataset="emnist-letters"), locations=locations)
    pixels = upright(60, 0).reshape(60, 20).astype(np.float32) / np.float32(255)
    np.testing.assert_array_equal(floats(data.train.images), pixels[:50])
    np.testing.assert_array_equal(floats(data.validation.images), pixels[50:])
    assert data.train.labels.tolist() == [number % 26 for number in range(50)]
    assert (data.name, data.example_shape, data.num_classes) == ("emnist-letters", (5, 4), 26)
    assert data.class_names[:3] == ("a", "b", "c")
    assert data.record == {"form": "IDX files", "classes": list(data.class_names), "shape": [5, 4]}
    assert data.checksums == {
        name: hashlib.sha256(files_of(LETTERS, 26)[name]).hexdigest() for name in LETTERS.training_files
    }
    balanced = load_selection_data(DataSettings(dataset="emnist-balanced"), locations=locations)
    assert (balanced.num_classes, balanced.class_names[10]) == (47, "A")


def test_the_test_part_of_emnist_is_read_from_the_same_archive(locations: DataLocations, emnist) -> None:
    held_out = load_test_split(DataSettings(dataset="emnist-letters"), locations, lambda: True)
    np.testing.assert_array_equal(
        floats(held_out.images), upright(10, 1).reshape(10, 20).astype(np.float32) / np.float32(255)
    )
    assert list(held_out.checksums) == list(LETTERS.test_files)


def test_emnist_is_fetched_and_verified_as_one_archive(locations: DataLocations, emnist) -> None:
    path = locations.cache / "emnist" / "gzip.zip"
    assert fetch_dataset("emnist-letters", locations) == (path,)
    (check,) = verify_dataset("emnist-balanced", locations)
    assert (check.file_name, check.state) == ("gzip.zip", FileState.VERIFIED)
    path.write_bytes(path.read_bytes() + b"x")
    (check,) = verify_dataset("emnist-letters", locations)
    assert check.state is FileState.WRONG
    with pytest.raises(DataError, match=r"gzip\.zip: wrong MD5 for emnist's gzip\.zip"):
        load_selection_data(DataSettings(dataset="emnist-letters"), locations=locations)


def test_unpacked_files_of_emnist_cannot_be_verified_and_are_used_with_a_warning(
    locations: DataLocations, emnist, caplog: pytest.LogCaptureFixture
) -> None:
    (locations.cache / "emnist" / "gzip.zip").unlink()
    write_folder(locations.cache / "emnist" / "gzip", files_of(LETTERS, 26))
    assert load_selection_data(DataSettings(dataset="emnist-letters"), locations=locations).num_classes == 26
    assert "not verified" in caplog.text
    (check,) = verify_dataset("emnist-letters", locations)
    assert (check.state, check.is_usable) == (FileState.UNVERIFIED, True)


@pytest.mark.parametrize("is_packed", [True, False])
@pytest.mark.parametrize("layout", [MNIST_LAYOUT, QMNIST_LAYOUT, BALANCED], ids=["mnist", "qmnist", "emnist"])
def test_a_folder_or_a_zip_of_ones_own_is_told_by_its_file_names(
    tmp_path: Path, locations: DataLocations, layout: IdxLayout, is_packed: bool
) -> None:
    write, name = (write_zip, "mine.zip") if is_packed else (write_folder, "mine")
    path = write(tmp_path / name, files_of(layout, 10))
    settings = DataSettings(dataset=str(path))
    data = load_selection_data(settings, locations=locations)
    np.testing.assert_array_equal(floats(data.train.images)[0], upright(60, 0)[0].reshape(20) / np.float32(255))
    assert data.train.labels.tolist() == [number % 10 for number in range(50)]
    assert load_test_split(settings, locations, lambda: True).labels.tolist() == list(range(10))


def test_qmnist_by_name_uses_its_own_files(tmp_path: Path, publish) -> None:
    files = files_of(QMNIST_LAYOUT, 10)
    sha256 = {
        name: PublishedFile(packed_md5="", sha256=hashlib.sha256(content).hexdigest())
        for name, content in files.items()
    }
    publish(PublishedSet(name="qmnist", mirrors=(), files=sha256, layout=QMNIST_LAYOUT))
    write_folder(tmp_path / "qmnist", files)
    places = DataLocations(local=None, cache=tmp_path, allow_download=False)
    data = load_selection_data(DataSettings(dataset="qmnist"), locations=places)
    assert (len(data.train), list(data.checksums)) == (50, list(QMNIST_LAYOUT.training_files))
    assert [check.file_name for check in verify_dataset("qmnist", places)] == list(QMNIST_LAYOUT.files)
    assert {check.state for check in verify_dataset("qmnist", places)} == {FileState.VERIFIED}


def test_several_sets_in_one_place_are_refused(tmp_path: Path, locations: DataLocations) -> None:
    for path in (
        write_zip(tmp_path / "gzip.zip", files_of(LETTERS, 26), files_of(BALANCED, 10)),
        write_folder(tmp_path / "gzip", files_of(LETTERS, 26), files_of(BALANCED, 10)),
    ):
        with pytest.raises(DataError, match="several data sets in one place: emnist-balanced") as caught:
            load_selection_data(DataSettings(dataset=str(path)), locations=locations)
        assert "name a set of the catalogue" in str(caught.value.hint)


def test_a_zip_without_a_file_names_it(tmp_path: Path, locations: DataLocations) -> None:
    files = files_of(QMNIST_LAYOUT, 10)
    del files[QMNIST_LAYOUT.train_labels]
    path = write_zip(tmp_path / "x.zip", files)
    with pytest.raises(DataError, match=rf"no {QMNIST_LAYOUT.train_labels}\.gz or .* in this archive"):
        load_selection_data(DataSettings(dataset=str(path)), locations=locations)


def test_test_files_of_emnist_are_known_again() -> None:
    letters, balanced = (
        marks_of_test_files(DataSettings(dataset=name), {}) for name in ("emnist-letters", "emnist-balanced")
    )
    assert letters
    assert not letters & balanced
