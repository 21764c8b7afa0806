"""Small images as text: PNG files inside a page or a figure, without a library for images."""

from __future__ import annotations

import base64
import math
import struct
import zlib

import numpy as np
from numpy.typing import NDArray

from hpsearch.training.filter_series import LARGEST_CODE

_GAP = LARGEST_CODE + 1  # a code that no weight has: the space between filters
_NEGATIVE, _ZERO, _POSITIVE = (11, 60, 111), (255, 255, 255), (194, 65, 12)  # dark blue, white, orange
_BETWEEN = (228, 232, 236)


def filters_png(filters: NDArray[np.int8]) -> str:
    """Filters side by side in a square, as a data URI: positive weights orange, negative ones blue, 0 white.

    Args:
        filters: [filters, height, width], each from -127 to 127.
    """
    number, height, width = filters.shape
    columns = math.ceil(math.sqrt(number))
    rows = math.ceil(number / columns)
    cells = np.full((rows * columns, height + 1, width + 1), _GAP, dtype=np.int16)
    cells[:number, 1:, 1:] = filters
    sheet = cells.reshape(rows, columns, height + 1, width + 1).swapaxes(1, 2).reshape(rows * (height + 1), -1)
    framed = np.pad(sheet, ((0, 1), (0, 1)), constant_values=_GAP)
    return _png((framed + LARGEST_CODE).astype(np.uint8), _weight_colours())


def image_png(image: NDArray[np.float32]) -> str:
    """An image in [0, 1] as a data URI, in grey [height, width] or in colour [height, width, 3]: 0 black, 1 white."""
    return _png(np.rint(np.clip(image, 0.0, 1.0) * 255).astype(np.uint8))


def _weight_colours() -> NDArray[np.uint8]:
    """[256, 3]: the colours of the codes -127 to 127, and of the gaps."""
    shares = np.linspace(0.0, 1.0, LARGEST_CODE + 1)[:, np.newaxis]  # [128, 1]: of the full colour
    positive, negative = (np.add(_ZERO, shares * np.subtract(colour, _ZERO)) for colour in (_POSITIVE, _NEGATIVE))
    colours: NDArray[np.uint8] = np.rint(np.concatenate([negative[:0:-1], positive, [_BETWEEN]])).astype(np.uint8)
    return colours


def _png(pixels: NDArray[np.uint8], palette: NDArray[np.uint8] | None = None) -> str:
    """A PNG as a data URI: 8 bits per channel, grey [height, width], colour [height, width, 3], or of a palette.

    Source: W3C, "Portable Network Graphics (PNG) Specification", sections 5 and 11.
    """
    height, width = pixels.shape[:2]
    kind_of_colour = 2 if pixels.ndim == 3 else 0 if palette is None else 3
    lines = np.pad(pixels.reshape(height, -1), ((0, 0), (1, 0)))  # each line begins with its filter type: 0, none
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, kind_of_colour, 0, 0, 0))]
    if palette is not None:
        chunks.append((b"PLTE", palette.tobytes()))
    chunks += [(b"IDAT", zlib.compress(lines.tobytes(), 9)), (b"IEND", b"")]
    content = b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    )
    return f"data:image/png;base64,{base64.b64encode(content).decode()}"
