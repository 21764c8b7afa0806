"""The pictures of a report, read back with Pillow: the right way up, and in the right colours."""

from __future__ import annotations

import base64
import io

import numpy as np
from PIL import Image

from hpsearch.results.report.images import filters_png, image_png


def pixels(uri: str) -> np.ndarray:
    """[height, width, 3]"""
    content = base64.b64decode(uri.removeprefix("data:image/png;base64,"))
    return np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))


def test_an_image_is_the_right_way_up() -> None:
    image = np.zeros((2, 3), dtype=np.float32)
    image[0, 2], image[1, 0] = 1.0, 0.5
    assert pixels(image_png(image))[..., 0].tolist() == [[0, 0, 255], [128, 0, 0]]


def test_an_image_in_colour_keeps_its_colours() -> None:
    image = np.zeros((2, 3, 3), dtype=np.float32)
    image[0, 2], image[1, 0] = (1.0, 0.5, 0.0), (0.0, 0.0, 1.0)
    expected = np.zeros((2, 3, 3), dtype=np.uint8)
    expected[0, 2], expected[1, 0] = (255, 128, 0), (0, 0, 255)
    np.testing.assert_array_equal(pixels(image_png(image)), expected)


def test_filters_stand_side_by_side_with_positive_weights_orange_and_negative_ones_blue() -> None:
    filters = np.zeros((3, 2, 3), dtype=np.int8)
    filters[0, 0, 2], filters[1, 1, 0] = 127, -127
    sheet = pixels(filters_png(filters))
    assert sheet.shape == (2 * 3 + 1, 2 * 4 + 1, 3)  # two rows and two columns, with lines between
    orange, blue, white = (194, 65, 12), (11, 60, 111), (255, 255, 255)
    assert tuple(sheet[1, 3]) == orange  # the first filter's upper right
    assert tuple(sheet[2, 5]) == blue  # the second one's lower left
    assert tuple(sheet[4, 1]) == tuple(sheet[1, 1]) == white
    assert len({tuple(sheet[row, 0]) for row in range(len(sheet))}) == 1  # the frame
