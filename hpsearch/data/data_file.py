"""One data file, gzip'd or not, read into memory once: what is verified is exactly what is parsed.

`idx` and `pickled` parse what this module read; `published` compares its checksums.
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
MAX_UNPACKED_BYTES = 2**30  # twenty times MNIST; a gzip bomb of a few kilobytes unpacks to far more
DOWNLOAD_AGAIN = "download the file again"
_BLOCK_BYTES = 2**20
_NUM_FIRST_BYTES = 16  # of a wrong file, shown in the error


@dataclass(frozen=True, kw_only=True, slots=True)
class DataFile:
    """A data file's content and its checksums.

    Args:
        source: what errors call it: its path, or the address that it was downloaded from.
        content: the unpacked bytes.
        sha256: of the unpacked bytes, so it holds however the file was compressed.
        packed_md5: of the gzip'd bytes; None where the file is not gzip'd.
    """

    source: str
    content: bytes = field(repr=False)
    sha256: str
    packed_md5: str | None

    @property
    def first_bytes(self) -> str:
        return show_first_bytes(self.content)


def read_data_file(path: Path, *, source: str | None = None, max_unpacked_bytes: int = MAX_UNPACKED_BYTES) -> DataFile:
    """Read, unpack (by content, not by name) and hash one file.

    Args:
        source: what errors call the file; its path by default.
    Raises:
        DataError: the file is missing or unreadable, is an HTML page, ends in ".gz" and is not gzip'd, is cut
            short or damaged, or unpacks to more than `max_unpacked_bytes`.
    """
    source = str(path) if source is None else source
    packed = _read_bytes(path, source, max_unpacked_bytes)
    is_packed = packed.startswith(GZIP_MAGIC)
    if not is_packed:
        _refuse_what_is_no_data(packed, source, must_be_packed=path.suffix == ".gz")
    content = _unpack(packed, source, max_unpacked_bytes) if is_packed else packed
    return DataFile(
        source=source,
        content=content,
        sha256=hashlib.sha256(content).hexdigest(),
        # MD5 is what the publishers list; it tells a wrong file, not a forged one.
        packed_md5=hashlib.md5(packed, usedforsecurity=False).hexdigest() if is_packed else None,
    )


def show_first_bytes(content: bytes) -> str:
    """The first bytes as a Python literal, safe to print whatever they are."""
    return repr(content[:_NUM_FIRST_BYTES])


def _read_bytes(path: Path, source: str, max_bytes: int) -> bytes:
    try:
        if path.exists() and not path.is_file():  # a folder, or a device or pipe that might never end
            raise DataError(f"{source}: not a file", hint="name a file, or the folder that holds the IDX files")
        with path.open("rb") as stream:
            packed = stream.read(max_bytes + 1)
    except OSError as error:
        raise DataError(
            f"{source}: cannot be read: {error.strerror or error}", hint="check the path and its permissions"
        ) from error
    if len(packed) > max_bytes:
        raise _too_large(source, max_bytes)
    return packed


def _refuse_what_is_no_data(content: bytes, source: str, *, must_be_packed: bool) -> None:
    first = show_first_bytes(content)
    if content.removeprefix(b"\xef\xbb\xbf").lstrip().startswith(b"<"):  # a UTF-8 mark may stand before the page
        raise DataError(
            f"{source}: an HTML page in place of the data file: it begins with {first}", hint=DOWNLOAD_AGAIN
        )
    if must_be_packed:
        raise DataError(f"{source}: not a gzip file: it begins with {first}", hint=DOWNLOAD_AGAIN)


def _unpack(packed: bytes, source: str, max_bytes: int) -> bytes:
    unpacked = io.BytesIO()
    first = show_first_bytes(packed)
    try:
        with gzip.GzipFile(fileobj=io.BytesIO(packed)) as stream:
            while block := stream.read(_BLOCK_BYTES):  # in blocks, so that a bomb stops at the limit
                unpacked.write(block)
                if unpacked.tell() > max_bytes:
                    raise _too_large(source, max_bytes)
    except EOFError as error:
        raise DataError(
            f"{source}: the gzip file is cut short: {len(packed)} bytes, beginning with {first}, "
            f"unpack to {unpacked.tell()} bytes and end too early",
            hint=DOWNLOAD_AGAIN,
        ) from error
    except (gzip.BadGzipFile, zlib.error) as error:
        raise DataError(
            f"{source}: the gzip file is damaged ({error}); it begins with {first}", hint=DOWNLOAD_AGAIN
        ) from error
    return unpacked.getvalue()


def _too_large(source: str, max_bytes: int) -> DataError:
    return DataError(
        f"{source}: more than {max_bytes} bytes when unpacked, which is the limit",
        hint="no data set of the catalogue is that large: " + DOWNLOAD_AGAIN,
    )
