"""Decode PNG and JPEG files to arrays, in this process or as a helper process that `decoding_pool` starts.

Every image becomes grey [rows, columns] or colour [3, rows, columns], uint8. What counts as grey is the kind of file,
not its pixels: grey PNG and JPEG files, 1-bit files, and palettes of greys alone.

The helper process (`python -m hpsearch.data.images.image_decoding`) reads requests, one JSON document a line, and
answers for each image with a line of JSON and the pixels, if it could be decoded. It has one image in memory at a time.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import math
import signal
import sys
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any, BinaryIO, Final

import numpy as np
import PIL
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError, features

MAX_PIXELS: Final = 64_000_000
FORMATS: Final = ("PNG", "JPEG")
_PNG_SIGNATURE: Final = b"\x89PNG\r\n\x1a\n"
_PNG_DEPTH_AT: Final = 24  # the byte of the IHDR chunk that has the bits per channel
_ORIENTATION: Final = 0x0112  # EXIF tag
_UPRIGHT: Final = 1
_ON_ITS_SIDE: Final = (5, 6, 7, 8)  # rows become columns


class Problem(StrEnum):
    """Why an image cannot be used; the value follows "3 images" in a message."""

    UNREADABLE = "not readable"
    EMPTY = "without content"
    DAMAGED = "damaged, or neither PNG nor JPEG"
    TOO_LARGE = "of more than 64 million pixels"
    SIXTEEN_BITS = "with 16 bits per channel"
    CMYK = "with the colours of a printer (CMYK)"


@dataclass(frozen=True, kw_only=True, slots=True)
class DecodedImage:
    """One file's pixels, or why there are none.

    Args:
        pixels: [rows, columns] or [3, rows, columns] uint8; None if there is a problem.
        sha256: of the file's bytes; empty if it could not be read.
        is_turned: an EXIF note said how to turn it.
        is_on_white: it had transparent pixels, and was laid on white.
        is_resized: it had another size.
        other_size: rows and columns, if they are not the expected ones: it was not decoded.
        detail: of the problem, in a few words.
    """

    pixels: NDArray[np.uint8] | None = field(default=None, repr=False)
    sha256: str = ""
    is_turned: bool = False
    is_on_white: bool = False
    is_resized: bool = False
    other_size: tuple[int, int] | None = None
    problem: Problem | None = None
    detail: str = ""


class _RefusedError(Exception):
    def __init__(self, problem: Problem, detail: str = "") -> None:
        super().__init__(problem)
        self.problem = problem
        self.detail = detail


def decoder_versions() -> dict[str, str]:
    """Versions of what decides the pixels: a JPEG's may differ between two versions of libjpeg."""
    versions = {"Pillow": PIL.__version__}
    for name, feature in (("libjpeg-turbo", "libjpeg_turbo"), ("libjpeg", "jpg"), ("zlib", "zlib")):
        if version := features.version(feature):
            versions[name] = version
    return versions


def decode_files(
    paths: Sequence[Path], image_size: tuple[int, int] | None, expected: tuple[int, int] | None = None
) -> Iterator[DecodedImage]:
    """Decode files one after the other.

    Args:
        image_size: rows and columns to which images are resized; None: each keeps its own.
        expected: without `image_size`, rows and columns that all must have: others are not decoded. None: those of the
            first image.
    """
    for path in paths:
        image = _decode_file(path, image_size, expected)
        if expected is None and image.pixels is not None:
            expected = image.pixels.shape[-2], image.pixels.shape[-1]
        yield image


def decode_content(
    content: bytes, image_size: tuple[int, int] | None, expected: tuple[int, int] | None = None
) -> DecodedImage:
    """Decode the bytes of one file. Whatever is wrong with them is in the answer.

    Args:
        image_size, expected: as for `decode_files`; None: any size.
    """
    sha256 = hashlib.sha256(content).hexdigest()
    try:
        if not content:
            raise _RefusedError(Problem.EMPTY)
        return _decode(content, sha256, image_size, expected)
    except _RefusedError as error:
        return DecodedImage(sha256=sha256, problem=error.problem, detail=error.detail)
    except MemoryError:
        return DecodedImage(sha256=sha256, problem=Problem.DAMAGED, detail="it needs more memory than there is")
    except UnidentifiedImageError:
        return DecodedImage(sha256=sha256, problem=Problem.DAMAGED)
    except Exception as error:  # Pillow raises nearly anything for a damaged file: OSError, SyntaxError, struct.error
        detail = str(error).splitlines()[0] if str(error) else type(error).__name__
        return DecodedImage(sha256=sha256, problem=Problem.DAMAGED, detail=detail)


def _decode_file(path: Path, image_size: tuple[int, int] | None, expected: tuple[int, int] | None) -> DecodedImage:
    try:
        content = _read(path)
    except _RefusedError as error:
        return DecodedImage(problem=error.problem, detail=error.detail)
    except MemoryError:
        return DecodedImage(problem=Problem.DAMAGED, detail="it needs more memory than there is")
    return decode_content(content, image_size, expected)


def _read(path: Path) -> bytes:
    try:
        if not path.is_file():  # a pipe may never end
            raise _RefusedError(Problem.UNREADABLE, "no such file" if not path.exists() else "not a file")
        return path.read_bytes()
    except OSError as error:
        raise _RefusedError(Problem.UNREADABLE, error.strerror or str(error)) from error


def _decode(
    content: bytes, sha256: str, image_size: tuple[int, int] | None, expected: tuple[int, int] | None
) -> DecodedImage:
    with _bombs_refused(), Image.open(io.BytesIO(content), formats=FORMATS) as opened:
        if math.prod(opened.size) > MAX_PIXELS:  # known from the header: nothing is decoded yet
            raise _RefusedError(Problem.TOO_LARGE, f"{opened.height}x{opened.width}")
        if content.startswith(_PNG_SIGNATURE) and content[_PNG_DEPTH_AT] == 16:  # Pillow may drop eight bits silently
            raise _RefusedError(Problem.SIXTEEN_BITS)
        if opened.mode in ("CMYK", "YCCK", "LAB"):
            raise _RefusedError(Problem.CMYK)
        stored = (opened.height, opened.width)
        if image_size is None and expected not in (None, stored, stored[::-1]):
            return DecodedImage(sha256=sha256, other_size=stored)
        orientation = opened.getexif().get(_ORIENTATION, _UPRIGHT)  # of a PNG, this decodes
        is_turned = orientation != _UPRIGHT
        size = stored[::-1] if orientation in _ON_ITS_SIDE else stored
        if image_size is None and expected not in (None, size):
            return DecodedImage(sha256=sha256, other_size=size)
        image, is_on_white = _without_alpha(ImageOps.exif_transpose(opened) if is_turned else opened)
        is_resized = image_size is not None and (image.height, image.width) != image_size
        if image_size is not None and is_resized:
            rows, columns = image_size
            image = image.resize((columns, rows), Image.Resampling.BILINEAR)
        pixels = np.asarray(image)  # [rows, columns] or [rows, columns, 3]
    return DecodedImage(
        pixels=pixels if pixels.ndim == 2 else pixels.transpose(2, 0, 1),
        sha256=sha256,
        is_turned=is_turned,
        is_on_white=is_on_white,
        is_resized=is_resized,
    )


@contextlib.contextmanager
def _bombs_refused() -> Iterator[None]:
    """Pillow's own check of the header refuses very large images; it warns of large ones, which we refuse, too."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        try:
            yield
        except Image.DecompressionBombError as error:
            raise _RefusedError(Problem.TOO_LARGE) from error


def _without_alpha(image: Image.Image) -> tuple[Image.Image, bool]:
    """The image in mode L or RGB, and whether it had transparent pixels, which become white."""
    is_grey = image.mode in ("1", "L", "LA", "La") or (image.mode == "P" and _has_grey_palette(image))
    wanted = "L" if is_grey else "RGB"
    if image.mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in image.info:
        with_alpha = image.convert("RGBA")
        if with_alpha.getchannel("A").getextrema() != (255, 255):
            white = Image.new("RGBA", image.size, "white")
            return Image.alpha_composite(white, with_alpha).convert(wanted), True
        return with_alpha.convert(wanted), False
    return (image if image.mode == wanted else image.convert(wanted)), False


def _has_grey_palette(image: Image.Image) -> bool:
    colours = np.frombuffer(bytes(image.getpalette("RGB") or ()), dtype=np.uint8).reshape(-1, 3)
    return bool((colours == colours[:, :1]).all())


def answer(request: str, output: BinaryIO) -> None:
    """Decode the files of one request and write the answer."""
    document = json.loads(request)
    size, expected = (tuple(value) if (value := document[key]) else None for key in ("image_size", "expected"))
    for image in decode_files([Path(path) for path in document["paths"]], size, expected):
        output.write(json.dumps(_as_json(image)).encode() + b"\n")
        if image.pixels is not None:
            output.write(np.ascontiguousarray(image.pixels).data)
    output.flush()


def _as_json(image: DecodedImage) -> dict[str, Any]:
    return {
        "shape": None if image.pixels is None else image.pixels.shape,
        "sha256": image.sha256,
        "is_turned": image.is_turned,
        "is_on_white": image.is_on_white,
        "is_resized": image.is_resized,
        "other_size": image.other_size,
        "problem": image.problem,
        "detail": image.detail,
    }


def read_answer(stream: BinaryIO, num_images: int) -> list[DecodedImage]:
    """Read what `answer` has written.

    Raises:
        EOFError: the stream ended before the answer did.
    """
    return [_read_image(stream) for _ in range(num_images)]


def _read_image(stream: BinaryIO) -> DecodedImage:
    line = stream.readline()
    if not line.endswith(b"\n"):
        raise EOFError
    values = json.loads(line)
    shape, problem, other = values.pop("shape"), values.pop("problem"), values.pop("other_size")
    return DecodedImage(
        pixels=None if shape is None else _read_pixels(stream, tuple(shape)),
        problem=None if problem is None else Problem(problem),
        other_size=None if other is None else (other[0], other[1]),
        **values,
    )


def _read_pixels(stream: BinaryIO, shape: tuple[int, ...]) -> NDArray[np.uint8]:
    content = stream.read(math.prod(shape))
    if len(content) != math.prod(shape):
        raise EOFError
    return np.frombuffer(content, dtype=np.uint8).reshape(shape)


def _main() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the end of the input ends this
    for request in sys.stdin:
        answer(request, sys.stdout.buffer)


if __name__ == "__main__":
    _main()
