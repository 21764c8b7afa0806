"""Images in a table's column, as Hugging Face's `datasets` stores them: the bytes of PNG or JPEG files."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from hpsearch.data.example_shape import ExampleShape, maps_shape
from hpsearch.data.images.image_decoding import Problem, decode_content, decoder_versions
from hpsearch.errors import DataError


def decode_column(
    column: pa.ChunkedArray,
    rows: NDArray[np.int64],
    *,
    name: str,
    source: str,
    size: tuple[int, int] | None,
    shape: ExampleShape | None = None,
    allocate: Callable[[tuple[int, int]], NDArray[np.uint8]] = lambda shape: np.empty(shape, dtype=np.uint8),
) -> tuple[NDArray[np.uint8], ExampleShape]:
    """Decode the images of some rows into one array [rows, pixels], and return their common shape.

    Args:
        size: rows and columns to which images are resized; None: each keeps its own.
        shape: that all of them must have; None: that of the first one, or of a colour image if there is one.
    Raises:
        DataError: an image is missing, broken, or of another size.
    """
    ends = np.cumsum([len(chunk) for chunk in column.chunks])

    def decoded(row: int) -> NDArray[np.uint8]:
        # The chunks stay apart: as one array, they would have to be below 2 GiB, and would be copied.
        place = int(np.searchsorted(ends, row, side="right"))
        chunk = column.chunk(place)
        stored = chunk[row - (int(ends[place]) - len(chunk))]
        content = stored["bytes"].as_py() if stored.is_valid else None
        if content is None:
            raise DataError(
                f"{source}: column {name!r} has no image in row {row + 1}",
                hint="only images that are stored in the file are read, no paths or addresses",
            )
        image = decode_content(content, size)
        if image.pixels is None:
            detail = f" ({image.detail})" if image.detail else ""
            raise DataError(
                f"{source}: column {name!r}, row {row + 1}: an image {image.problem or Problem.DAMAGED}{detail}",
                hint="remove the row, or replace the image by an 8-bit PNG or JPEG",
            )
        return image.pixels

    if shape is None:
        shape = _common_shape(decoded(row).shape for row in rows[:100].tolist())
    channels, height, width = maps_shape(shape)
    pixels = allocate((len(rows), channels * height * width))
    for place, row in enumerate(rows.tolist()):
        image = decoded(row)
        if image.shape[-2:] != (height, width):
            raise DataError(
                f"{source}: column {name!r}, row {row + 1}: {image.shape[-2]}x{image.shape[-1]} pixels, others have "
                f"{height}x{width}",
                hint=f"give all one size: data.image_size = [{height}, {width}]",
            )
        if channels == 1 and image.ndim == 3:
            raise DataError(
                f"{source}: column {name!r}, row {row + 1}: in colour, but the first images are grey",
                hint="make all images grey, or all of them coloured",
            )
        pixels[place] = np.broadcast_to(image, (channels, height, width)).reshape(-1)
    return pixels, shape


def decoder_of(preparation: Mapping[str, Any]) -> dict[str, Any]:
    """{"decoder": its versions here} for a preparation of images, which another version may decode to other pixels."""
    return {"decoder": decoder_versions()} if "image" in preparation else {}


def _common_shape(shapes: Iterable[tuple[int, ...]]) -> ExampleShape:
    """Colour, if one of the images is in colour; the size of the first one."""
    found = list(shapes)
    first = found[0]
    return (3, *first[-2:]) if any(len(shape) == 3 for shape in found) else first
