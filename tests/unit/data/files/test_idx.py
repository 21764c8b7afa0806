"""IDX files are read as they are written, and anything else is refused with what was expected and found."""

from __future__ import annotations

import gzip
import hashlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from hpsearch.data.files.data_file import DataFile, read_data_file
from hpsearch.data.files.idx import parse_images, parse_labels, parse_wide_labels
from hpsearch.data.files.idx_layout import EMNIST_LAYOUTS, MNIST_LAYOUT, QMNIST_LAYOUT, layouts_in
from hpsearch.errors import DataError

IDX = Callable[[np.ndarray], bytes]
FUNCTION_FIXTURES_ARE_CONSTANT = settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)


def data_file(content: bytes, source: str = "some-file") -> DataFile:
    return DataFile(source=source, content=content, sha256=hashlib.sha256(content).hexdigest(), packed_md5=None)


@FUNCTION_FIXTURES_ARE_CONSTANT
@given(images=arrays(np.uint8, st.tuples(st.integers(1, 5), st.integers(1, 6), st.integers(1, 6))))
def test_images_come_back_as_they_were_written(idx: IDX, images: np.ndarray) -> None:
    parsed = parse_images(data_file(idx(images)))
    assert parsed.dtype == np.uint8
    np.testing.assert_array_equal(parsed, images)


@FUNCTION_FIXTURES_ARE_CONSTANT
@given(labels=arrays(np.uint8, st.integers(1, 30), elements=st.integers(0, 9)))
def test_labels_come_back_as_they_were_written(idx: IDX, labels: np.ndarray) -> None:
    parsed = parse_labels(data_file(idx(labels)))
    assert parsed.dtype == np.uint8
    np.testing.assert_array_equal(parsed, labels)


def test_a_gzipped_file_is_read_from_disk(tmp_path: Path, idx: IDX) -> None:
    images = np.arange(24, dtype=np.uint8).reshape(2, 3, 4)
    path = tmp_path / "images.gz"
    path.write_bytes(gzip.compress(idx(images)))
    np.testing.assert_array_equal(parse_images(read_data_file(path)), images)


def test_a_label_file_in_place_of_an_image_file_names_both_magic_numbers(idx: IDX) -> None:
    labels = data_file(idx(np.zeros(4, dtype=np.uint8)))
    with pytest.raises(DataError, match="some-file: not an IDX image file: expected magic number 2051, found 2049"):
        parse_images(labels)


def test_an_image_file_in_place_of_a_label_file_names_both_magic_numbers(idx: IDX) -> None:
    images = data_file(idx(np.zeros((1, 2, 2), dtype=np.uint8)))
    with pytest.raises(DataError, match="not an IDX label file: expected magic number 2049, found 2051"):
        parse_labels(images)


@pytest.mark.parametrize("content", [b"", b"\x00\x00", b"\x00\x00\x08\x03\x00\x00"])
def test_a_file_shorter_than_its_header_names_both_sizes(content: bytes) -> None:
    with pytest.raises(DataError, match=f"expected at least 16 bytes of header, found {len(content)} bytes in all"):
        parse_images(data_file(content))


@pytest.mark.parametrize("change", [-3, -1, 1])
def test_a_file_of_the_wrong_size_names_count_and_both_sizes(idx: IDX, change: int) -> None:
    content = idx(np.zeros((2, 3, 4), dtype=np.uint8))  # 16 + 24 bytes
    content = content[:change] if change < 0 else content + bytes(change)
    with pytest.raises(DataError, match=f"2 images of 3 x 4: expected 40 bytes, found {40 + change}") as caught:
        parse_images(data_file(content))
    assert caught.value.hint == "download the file again"


def test_a_label_file_of_the_wrong_size_names_count_and_both_sizes(idx: IDX) -> None:
    with pytest.raises(DataError, match="5 labels: expected 13 bytes, found 12"):
        parse_labels(data_file(idx(np.zeros(5, dtype=np.uint8))[:-1]))


def test_a_header_that_promises_more_than_the_memory_holds_is_refused_by_its_size() -> None:
    content = b"\x00\x00\x08\x03" + b"\xff\xff\xff\xff" * 3
    with pytest.raises(DataError, match=f"expected {16 + (2**32 - 1) ** 3} bytes, found 16"):
        parse_images(data_file(content))


@pytest.mark.parametrize("shape", [(0, 3, 4), (2, 0, 4), (2, 3, 0)])
def test_an_empty_file_is_refused(idx: IDX, shape: tuple[int, int, int]) -> None:
    with pytest.raises(DataError, match=f"must not be empty, found {' x '.join(map(str, shape))}"):
        parse_images(data_file(idx(np.zeros(shape, dtype=np.uint8))))


def test_different_numbers_of_images_and_labels_are_refused_with_both(idx: IDX) -> None:
    images = data_file(idx(np.zeros((3, 2, 2), dtype=np.uint8)), "images")
    labels = data_file(idx(np.zeros(4, dtype=np.uint8)), "labels")
    with pytest.raises(DataError, match="images holds 3 images, but labels holds 4 labels"):
        MNIST_LAYOUT.parse(images, labels)


def wide_labels(rows: list[list[int]]) -> bytes:
    array = np.array(rows, dtype=">i4")
    header = bytes([0, 0, 12, 2]) + b"".join(size.to_bytes(4, "big") for size in array.shape)
    return header + array.tobytes()


def test_the_class_is_the_first_of_qmnists_columns(idx: IDX) -> None:
    """The others are the writer, the form and the place in NIST's set."""
    labels = data_file(wide_labels([[7, 4, 2049, 31, 0, 0, 0, -1], [255, 70_000, 1, 2, 3, 4, 5, 6]]))
    np.testing.assert_array_equal(parse_wide_labels(labels), [7, 255])
    assert parse_wide_labels(labels).dtype == np.uint8
    images = data_file(idx(np.zeros((2, 3, 3), dtype=np.uint8)))
    assert QMNIST_LAYOUT.parse(images, labels)[1].tolist() == [7, 255]


@pytest.mark.parametrize("label", [-1, 256])
def test_a_class_that_is_no_byte_is_refused(label: int) -> None:
    with pytest.raises(DataError, match=r"expected classes in 0\.\.255"):
        parse_wide_labels(data_file(wide_labels([[0] * 8, [label] * 8])))


def test_a_file_of_one_column_is_not_taken_for_one_of_several(idx: IDX) -> None:
    narrow, wide = data_file(idx(np.zeros(4, dtype=np.uint8))), data_file(wide_labels([[0] * 8]))
    with pytest.raises(DataError, match="expected magic number 3074, found 2049"):
        parse_wide_labels(narrow)
    with pytest.raises(DataError, match="expected magic number 2049, found 3074"):
        parse_labels(wide)
    with pytest.raises(DataError, match=r"its header says 1 labels of 8 columns: expected 44 bytes, found 43"):
        parse_wide_labels(data_file(wide.content[:-1]))


def test_emnists_images_are_turned_upright_and_its_letters_counted_from_0(idx: IDX) -> None:
    upright = np.arange(2 * 3 * 4, dtype=np.uint8).reshape(2, 3, 4)
    images, labels = data_file(idx(upright.transpose(0, 2, 1))), data_file(idx(np.array([1, 26], dtype=np.uint8)))
    found, numbers = EMNIST_LAYOUTS["letters"].parse(images, labels)
    np.testing.assert_array_equal(found, upright)
    names = EMNIST_LAYOUTS["letters"].class_names
    assert [names[number] for number in numbers] == ["a", "z"]


@pytest.mark.parametrize(
    ("label", "message"), [(0, "expected labels from 1, found 0"), (27, r"expected labels in 0\.\.25")]
)
def test_labels_that_are_no_letters_are_refused(idx: IDX, label: int, message: str) -> None:
    images = data_file(idx(np.zeros((2, 3, 3), dtype=np.uint8)))
    with pytest.raises(DataError, match=message):
        EMNIST_LAYOUTS["letters"].parse(images, data_file(idx(np.array([5, label], dtype=np.uint8))))


def test_emnists_class_names_are_as_many_as_its_classes() -> None:
    counts = {split: len(layout.class_names) for split, layout in EMNIST_LAYOUTS.items()}
    assert counts == {"balanced": 47, "letters": 26, "byclass": 62, "bymerge": 47, "digits": 10, "mnist": 10}


def test_the_layout_is_told_by_the_names_of_the_training_files() -> None:
    assert layouts_in(["x", *QMNIST_LAYOUT.training_files]) == (QMNIST_LAYOUT,)
    assert layouts_in([MNIST_LAYOUT.train_labels]) == (MNIST_LAYOUT,)
    assert layouts_in(MNIST_LAYOUT.test_files) == ()
