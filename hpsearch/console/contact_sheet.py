"""Training images of each class: as a PNG file, and as text in a terminal."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from hpsearch.atomic_file import replaced_file
from hpsearch.data.example_shape import maps_shape
from hpsearch.data.splits import SelectionData

MOST_CLASSES: Final = 20  # rows of a sheet
NUM_EACH: Final = 10  # images of a class
_TILE = 64  # pixels: small images are enlarged to about this size
_MARGIN, _NAME_WIDTH = 4, 120  # pixels
_RAMP = " .:-=+*#%@"
_MOST_COLUMNS = 32  # characters of one image in text


def write_contact_sheet(data: SelectionData, path: Path) -> None:
    """Write a PNG with a row of training images for each class; without classes, rows of the first images.

    Raises:
        ArtifactError: the file cannot be written.
        ValueError: the examples are no images.
    """
    from PIL import Image, ImageDraw  # a quarter of a second, which `describe` without a sheet does not need

    channels, height, width = maps_shape(data.example_shape)
    scale = max(1, _TILE // max(height, width))
    rows = _rows_of_sheet(data)
    left = _NAME_WIDTH if data.num_classes else _MARGIN
    size = (
        left + NUM_EACH * (width * scale + _MARGIN),
        _MARGIN + len(rows) * (height * scale + _MARGIN),
    )
    sheet = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(sheet)
    for place, (name, chosen) in enumerate(rows):
        top = _MARGIN + place * (height * scale + _MARGIN)
        shown = name[:18].encode("latin-1", "replace").decode("latin-1")  # all that Pillow's oldest font has
        draw.text((_MARGIN, top), shown, fill="black")
        for number, levels in enumerate(_levels(data.train.images[chosen])):
            maps = levels.reshape(channels, height, width)
            pixels = np.ascontiguousarray(np.broadcast_to(maps, (3, height, width)).transpose(1, 2, 0))
            tile = Image.fromarray(pixels).resize((width * scale, height * scale), Image.Resampling.NEAREST)
            sheet.paste(tile, (left + number * (width * scale + _MARGIN), top))
    with replaced_file(path) as file:
        sheet.save(file, format="PNG")


def text_sheet(data: SelectionData, columns: int) -> list[str]:
    """Lines with the first training image of as many classes as fit into a row; colour images as grey.

    Args:
        columns: width of the terminal.
    """
    channels, height, width = maps_shape(data.example_shape)
    across = -(-width // _MOST_COLUMNS)
    down = max(1, 2 * across if height > 16 else across)  # a character is twice as high as wide
    shown_width = -(-width // across)
    rows = _rows_of_sheet(data)[: max(1, (columns - 2) // (shown_width + 2))]
    lines = ["  " + "  ".join(f"{name[:shown_width]:<{shown_width}}" for name, _ in rows)]
    firsts = (_levels(data.train.images[chosen[:1]]) for _, chosen in rows)
    images = [first.reshape(channels, height, width).mean(axis=0) for first in firsts]
    for row in range(0, height, down):
        lines.append("  " + "  ".join("".join(map(_character, image[row, ::across])) for image in images))
    return [line.rstrip() for line in lines]


def _character(level: float) -> str:
    return _RAMP[int(level * (len(_RAMP) - 1) / 255)]


def _rows_of_sheet(data: SelectionData) -> list[tuple[str, NDArray[np.intp]]]:
    """The name of each row, and the places of its images."""
    if not data.num_classes:
        starts = range(0, min(len(data.train), MOST_CLASSES * NUM_EACH), NUM_EACH)
        return [("", np.arange(start, min(start + NUM_EACH, len(data.train)))) for start in starts]
    names = data.class_names or tuple(map(str, range(data.num_classes)))
    rows = []
    for label, name in enumerate(names[:MOST_CLASSES]):
        places = np.flatnonzero(data.train.labels == label)[:NUM_EACH]
        if len(places):
            rows.append((name, places))
    return rows


def _levels(images: NDArray[Any]) -> NDArray[np.uint8]:
    """[N, inputs] uint8 levels of images that are levels already, or in [0, 1]."""
    if images.dtype == np.uint8:
        return np.asarray(images, dtype=np.uint8)
    return np.rint(images * np.float32(255)).astype(np.uint8)
