"""Read a data file, gzipped or not, into memory once, so that the verified bytes are exactly the parsed bytes.

`archive` reads files in archives. `idx` and the forms parse its content; `published` compares its checksums.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import zlib
from dataclasses import dataclass, field
from pathlib import Path

from hpsearch.errors import DataError

GZIP_MAGIC = b"\x1f\x8b"
MAX_UNPACKED_BYTES = 2**30  # twenty times MNIST; a small gzip bomb could unpack to far more
DOWNLOAD_AGAIN = "download the file again"
_BLOCK_BYTES = 2**20
_NUM_FIRST_BYTES = 16  # shown in error messages about a wrong file


@dataclass(frozen=True, kw_only=True, slots=True)
class DataFile:
    """A data file's content and its checksums.

    Args:
        source: name in error messages: its path, or the address from which it was downloaded.
        content: the unpacked bytes.
        sha256: SHA-256 of the unpacked bytes, independent of the compression.
        packed_md5: MD5 of the gzipped bytes; None if the file is not gzipped.
    """

    source: str
    content: bytes = field(repr=False)
    sha256: str
    packed_md5: str | None


def read_data_file(path: Path, *, source: str | None = None, max_unpacked_bytes: int = MAX_UNPACKED_BYTES) -> DataFile:
    """Read, unpack and hash one file. Its content, not its name, decides whether it is unpacked.

    Args:
        source: name of the file in error messages; its path by default.
    Raises:
        DataError: the file is missing or unreadable, is an HTML page, ends in ".gz" but is not gzipped, is truncated
            or damaged, or unpacks to more than `max_unpacked_bytes`.
    """
    source = str(path) if source is None else source
    packed = _read_bytes(path, source, max_unpacked_bytes)
    if not packed.startswith(GZIP_MAGIC):
        _refuse_what_is_no_data(packed, source, must_be_packed=path.suffix == ".gz")
    return unpacked_file(packed, source, max_unpacked_bytes=max_unpacked_bytes)


def unpacked_file(packed: bytes, source: str, *, max_unpacked_bytes: int = MAX_UNPACKED_BYTES) -> DataFile:
    """Unpack and hash the bytes of a file. Its content decides whether it is gzipped.

    Raises:
        DataError: it is truncated or damaged, or unpacks to more than `max_unpacked_bytes`.
    """
    is_packed = packed.startswith(GZIP_MAGIC)
    content = _unpack(packed, source, max_unpacked_bytes) if is_packed else packed
    return DataFile(
        source=source,
        content=content,
        sha256=hashlib.sha256(content).hexdigest(),
        # The publishers list MD5 checksums. They detect a wrong file, but not a forged one.
        packed_md5=hashlib.md5(packed, usedforsecurity=False).hexdigest() if is_packed else None,
    )


def show_first_bytes(content: bytes) -> str:
    """The first bytes as a Python literal, which is always safe to print."""
    return repr(content[:_NUM_FIRST_BYTES])


def _read_bytes(path: Path, source: str, max_bytes: int) -> bytes:
    try:
        if path.exists() and not path.is_file():  # a folder, or a device or pipe that may never end
            raise DataError(f"{source}: not a file", hint="name a file, or the folder that holds the IDX files")
        with path.open("rb") as stream:
            packed = stream.read(max_bytes + 1)
    except OSError as error:
        raise DataError(
            f"{source}: cannot be read: {error.strerror or error}", hint="check the path and its permissions"
        ) from error
    if len(packed) > max_bytes:
        raise too_large(source, max_bytes)
    return packed


def _refuse_what_is_no_data(content: bytes, source: str, *, must_be_packed: bool) -> None:
    first = show_first_bytes(content)
    if content.removeprefix(b"\xef\xbb\xbf").lstrip().startswith(b"<"):  # maybe after a UTF-8 byte order mark
        raise DataError(f"{source}: an HTML page instead of a data file: it begins with {first}", hint=DOWNLOAD_AGAIN)
    if must_be_packed:
        raise DataError(f"{source}: not a gzip file: it begins with {first}", hint=DOWNLOAD_AGAIN)


def _unpack(packed: bytes, source: str, max_bytes: int) -> bytes:
    unpacked = io.BytesIO()
    first = show_first_bytes(packed)
    try:
        with gzip.GzipFile(fileobj=io.BytesIO(packed)) as stream:
            while block := stream.read(_BLOCK_BYTES):  # in blocks, so that a gzip bomb stops at the limit
                unpacked.write(block)
                if unpacked.tell() > max_bytes:
                    raise too_large(source, max_bytes)
    except EOFError as error:
        raise DataError(
            f"{source}: the gzip file is truncated: {len(packed)} bytes, beginning with {first}, "
            f"unpack to {unpacked.tell()} bytes and end too early",
            hint=DOWNLOAD_AGAIN,
        ) from error
    except (gzip.BadGzipFile, zlib.error) as error:
        raise DataError(
            f"{source}: the gzip file is damaged ({error}); it begins with {first}", hint=DOWNLOAD_AGAIN
        ) from error
    return unpacked.getvalue()


def too_large(source: str, max_bytes: int) -> DataError:
    """The error for a file that unpacks to more than the limit."""
    return DataError(
        f"{source}: more than {max_bytes} bytes when unpacked, which is the limit",
        hint="no data set of the catalogue is that large: " + DOWNLOAD_AGAIN,
    )
