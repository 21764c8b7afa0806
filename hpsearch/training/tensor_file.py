"""Safetensors files that vouch for their content: a checksum of every array and of the text beside them.

Checkpoints and kept parameters are such files. Any safetensors reader reads them.
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
    """A safetensors file. The metadata may bring a checksum of their own (`checksum`)."""
    # safetensors writes the memory of an array as it lies: a transposed view would come back scrambled.
    return save({name: np.asarray(array, order="C") for name, array in arrays.items()}, metadata=dict(metadata))


def load_arrays(content: bytes) -> tuple[dict[str, Array], dict[str, str]]:
    """The arrays and the metadata of a safetensors file, whatever their checksum.

    Raises:
        SafetensorError: it is none, or not all of one.
    """
    arrays = load(content)
    # safetensors has checked the header: its length in 8 bytes, then JSON; metadata are strings, or null.
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
    """The metadata with a checksum of themselves and of the arrays."""
    others = {name: value for name, value in metadata.items() if name != CHECKSUM}
    return {**others, CHECKSUM: checksum(json.dumps(others, sort_keys=True), arrays)}
