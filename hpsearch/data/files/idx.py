"""The IDX file format of MNIST and its relatives: a big-endian header, then one byte per pixel or label.

The labels of QMNIST are 32-bit numbers in several columns.

Format: http://yann.lecun.com/exdb/mnist/ ("File formats for the MNIST database"). Parses what `data_file` unpacked.
"""

from __future__ import annotations

import math
import struct
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hpsearch.data.files.data_file import DOWNLOAD_AGAIN, DataFile, show_first_bytes
from hpsearch.errors import DataError

IMAGES_MAGIC = 0x00000803  # unsigned bytes (08), three dimensions (03)
LABELS_MAGIC = 0x00000801  # unsigned bytes (08), one dimension (01)
WIDE_LABELS_MAGIC = 0x00000C02  # 32-bit integers (0C), two dimensions (02)


def parse_images(file: DataFile) -> NDArray[np.uint8]:
    """Parse an image file: [N, rows, columns], grey levels 0..255, read-only.

    Raises:
        DataError: wrong magic number, no images, or a size that differs from the header.
    """
    return _parse(file, IMAGES_MAGIC, "an IDX image file", "{} images of {} x {}", num_dimensions=3)


def parse_labels(file: DataFile) -> NDArray[np.uint8]:
    """Parse a label file: [N], read-only.

    Raises:
        DataError: wrong magic number, no labels, or a size that differs from the header.
    """
    return _parse(file, LABELS_MAGIC, "an IDX label file", "{} labels", num_dimensions=1)


def parse_wide_labels(file: DataFile) -> NDArray[np.uint8]:
    """Parse a label file of 32-bit numbers in several columns: the first column, [N].

    Raises:
        DataError: as `parse_labels`, or a class above 255.
    """
    kind, content = "an IDX label file", "{} labels of {} columns"
    labels = _parse(file, WIDE_LABELS_MAGIC, kind, content, num_dimensions=2, dtype=">i4")[:, 0]
    if labels.min() < 0 or labels.max() > 255:
        raise DataError(
            f"{file.source}: expected classes in 0..255, found {labels.min()} .. {labels.max()}", hint=DOWNLOAD_AGAIN
        )
    return labels.astype(np.uint8)


def check_pair(images: NDArray[Any], labels: NDArray[Any], images_file: DataFile, labels_file: DataFile) -> None:
    """Check that there are as many images as labels.

    Raises:
        DataError: their numbers differ.
    """
    if len(images) != len(labels):
        raise DataError(
            f"{images_file.source} holds {len(images)} images, but {labels_file.source} holds {len(labels)} labels",
            hint="the two files belong to different data sets or parts: download both again",
        )


def _parse(
    file: DataFile, expected_magic: int, kind: str, content: str, *, num_dimensions: int, dtype: str = "u1"
) -> NDArray[Any]:
    """Parse an array with the dimensions that the header says.

    Args:
        kind, content: of the file in messages; `content` has a field for each dimension.
    """
    header_bytes = 4 * (1 + num_dimensions)
    magic = int.from_bytes(file.content[:4], "big")
    if len(file.content) >= 4 and magic != expected_magic:
        raise DataError(
            f"{file.source}: not {kind}: expected magic number {expected_magic}, found {magic} "
            f"(it begins with {show_first_bytes(file.content)})",
            hint="the image and label files may be swapped; otherwise " + DOWNLOAD_AGAIN,
        )
    if len(file.content) < header_bytes:
        raise DataError(
            f"{file.source}: expected at least {header_bytes} bytes of header, found {len(file.content)} "
            f"bytes in all: {show_first_bytes(file.content)}",
            hint=DOWNLOAD_AGAIN,
        )
    dimensions = struct.unpack_from(f">{num_dimensions}I", file.content, offset=4)
    if 0 in dimensions:
        found = " x ".join(map(str, dimensions))
        raise DataError(f"{file.source}: {kind} must not be empty, found {found}", hint=DOWNLOAD_AGAIN)
    item_bytes = np.dtype(dtype).itemsize
    expected = header_bytes + item_bytes * math.prod(dimensions)  # Python integers: a hostile header cannot overflow
    if len(file.content) != expected:
        raise DataError(
            f"{file.source}: its header says {content.format(*dimensions)}: "
            f"expected {expected} bytes, found {len(file.content)}",
            hint=DOWNLOAD_AGAIN,
        )
    return np.frombuffer(file.content, dtype=dtype, offset=header_bytes).reshape(dimensions)
