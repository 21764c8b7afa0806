"""Safetensors files with a checksum over all arrays and a text, in the metadata.

Checkpoints and stored parameters are such files. Any safetensors reader can read them.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load, save

Array = NDArray[np.generic]
CHECKSUM = "crc32"  # its key in the metadata


def save_arrays(arrays: Mapping[str, Array], metadata: Mapping[str, str]) -> bytes:
    """Serialise arrays as a safetensors file. The caller may include a checksum in the metadata (`checksum`)."""
    # safetensors writes an array's memory as it is: a transposed view would be read back with another order.
    return save({name: np.asarray(array, order="C") for name, array in arrays.items()}, metadata=dict(metadata))


def load_arrays(content: bytes) -> tuple[dict[str, Array], dict[str, str]]:
    """The arrays and the metadata of a safetensors file. Does not verify the checksum.

    Raises:
        SafetensorError: the content is not a safetensors file, or is truncated.
    """
    arrays = load(content)
    # `load` has checked the header: its length in 8 bytes, then JSON. The metadata are strings, or null.
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    return arrays, header.get("__metadata__") or {}


def checksum(text: str, arrays: Mapping[str, Array]) -> str:
    """CRC-32 of a text and of each array's name, type, shape and bytes; 8 hexadecimal digits."""
    value = zlib.crc32(text.encode())
    for name, array in sorted(arrays.items()):
        value = zlib.crc32(f"{name} {array.dtype} {array.shape}".encode(), value)
        value = zlib.crc32(np.asarray(array, order="C").reshape(-1).view(np.uint8).data, value)
    return f"{value:08x}"


def with_checksum(arrays: Mapping[str, Array], metadata: Mapping[str, str]) -> dict[str, str]:
    """The metadata with a checksum of the other metadata and of the arrays added."""
    others = {name: value for name, value in metadata.items() if name != CHECKSUM}
    return {**others, CHECKSUM: checksum(json.dumps(others, sort_keys=True), arrays)}
