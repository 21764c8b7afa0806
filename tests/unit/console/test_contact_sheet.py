"""A sheet has a row of training images for each class, in the data's own colours."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hpsearch.console.contact_sheet import NUM_EACH, text_sheet, write_contact_sheet
from hpsearch.data.splits import SelectionData, Split


def selection(images: np.ndarray, labels: list[int], shape: tuple[int, ...], num_classes: int) -> SelectionData:
    split = Split(images=images.reshape(len(labels), -1), labels=np.array(labels))
    return SelectionData(
        name="mine",
        train=split,
        validation=split,
        example_shape=shape,
        num_classes=num_classes,
        checksums={},
        class_names=("кот", "dog") if num_classes else (),
    )


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_colour_images_keep_their_colours_in_the_row_of_their_class(tmp_path: Path, dtype: type) -> None:
    red, blue = np.zeros((3, 8, 8)), np.zeros((3, 8, 8))
    red[0], blue[2] = 255, 255
    images = np.stack([red, blue, blue]) / (255 if dtype is np.float32 else 1)
    data = selection(images.astype(dtype), [0, 1, 1], (3, 8, 8), 2)
    path = tmp_path / "sheet.png"
    write_contact_sheet(data, path)
    sheet = np.asarray(Image.open(path).convert("RGB"))
    is_red, is_blue = ((sheet == colour).all(axis=2) for colour in ((255, 0, 0), (0, 0, 255)))
    assert (is_red.sum(), is_blue.sum()) == (64 * 64, 2 * 64 * 64)  # each image is enlarged eight times
    assert np.flatnonzero(is_red.any(axis=1)).max() < np.flatnonzero(is_blue.any(axis=1)).min()


def test_a_class_has_at_most_ten_images_and_large_ones_are_not_enlarged(tmp_path: Path) -> None:
    data = selection(np.full((30, 100, 100), 7, np.uint8), [0] * 15 + [1] * 15, (100, 100), 2)
    write_contact_sheet(data, tmp_path / "sheet.png")
    sheet = np.asarray(Image.open(tmp_path / "sheet.png").convert("RGB"))
    assert (sheet[:, 120:] == 7).all(axis=2).sum() == 2 * NUM_EACH * 100 * 100


def test_without_classes_the_first_images_fill_rows(tmp_path: Path) -> None:
    data = selection(np.full((13, 64, 64), 7, np.uint8), [0] * 13, (64, 64), 0)
    write_contact_sheet(data, tmp_path / "sheet.png")
    assert (np.asarray(Image.open(tmp_path / "sheet.png").convert("RGB")) == 7).all(axis=2).sum() == 13 * 64 * 64
    assert text_sheet(data, 80)[0].strip() == ""


def test_text_shows_one_image_of_each_class_that_fits() -> None:
    images = np.zeros((2, 4, 6), np.uint8)
    images[0, 1], images[1, :, 2] = 255, 128
    lines = text_sheet(selection(images, [0, 1], (4, 6), 2), 80)
    assert lines == ["  кот     dog", "            =", "  @@@@@@    =", "            =", "            ="]
    assert len(text_sheet(selection(images, [0, 1], (4, 6), 2), 12)[2].strip()) == 6  # a narrow terminal: the first


def test_a_large_image_is_thinned_out_to_fit() -> None:
    lines = text_sheet(selection(np.full((1, 100, 100), 255, np.uint8), [0], (100, 100), 2), 80)
    assert {len(line.strip()) for line in lines[1:]} == {25}
    assert len(lines) == 1 + 13
