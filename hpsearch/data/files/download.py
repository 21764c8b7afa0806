"""Download a file from the first mirror that serves it complete and correct.

A download goes to a temporary file in the target's folder, is verified there and is then renamed to the target. The
target is therefore never partial, and any number of processes can download the same file at the same time.
"""

from __future__ import annotations

import contextlib
import http.client
import logging
import os
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import BinaryIO, Protocol

from hpsearch import __version__
from hpsearch.errors import DataError
from hpsearch.home import user_name

DEFAULT_TIMEOUT_SECONDS = 30.0  # for each network operation, not for the whole download
MAX_DOWNLOAD_BYTES = 2**30  # some mirrors use plain HTTP: an attacker must not be able to fill the disk
_BLOCK_BYTES = 2**16

_logger = logging.getLogger(__name__)


class DownloadProgress(Protocol):
    """A callback for the progress of a download, called before each block and at the end.

    Data that is decoded once reports in the same way; its name then says so ("decoding images of photos").
    """

    def __call__(self, file_name: str, bytes_done: int, bytes_total: int | None) -> None:
        """Report progress; `bytes_total` is None if the mirror does not send the file's length."""


class MirrorsFailedError(DataError):
    """No mirror served the correct file."""


class _MirrorError(Exception):
    """This mirror failed; the next one is tried."""


def download_file(
    file_name: str,
    mirrors: Sequence[str],
    folder: Path,
    *,
    verify: Callable[[Path, str], object],
    progress: DownloadProgress | None = None,
    timeout_seconds: float = DEFAULT_TIMEOUT_SECONDS,
) -> Path:
    """Download `file_name` into `folder`, from the first mirror that has the correct file.

    Args:
        mirrors: addresses of folders, ending in "/".
        verify: called with the downloaded file and its address; raises DataError if the content is wrong.
        progress: called during the download.
        timeout_seconds: for each network operation.
    Returns:
        The file's path; an existing file is replaced.
    Raises:
        MirrorsFailedError: no mirror has the correct file; the message has the reason for each.
        DataError: the folder cannot be written.
    """
    failures: list[str] = []
    for mirror in mirrors:
        address = mirror + file_name
        try:
            path = _download_from(address, folder / file_name, verify, progress, timeout_seconds)
        except _MirrorError as error:
            _logger.warning("download failed: %s", error)
            failures.append(str(error))
        else:
            _logger.info("downloaded %s to %s", address, path)
            return path
    raise MirrorsFailedError(f"mirrors tried: {'; '.join(failures) or 'none'}")


def _download_from(
    address: str,
    target: Path,
    verify: Callable[[Path, str], object],
    progress: DownloadProgress | None,
    timeout_seconds: float,
) -> Path:
    # The name keeps the suffix (.gz) and is unique, so that concurrent downloads never share a file.
    partial = target.with_name(f".{uuid.uuid4().hex}-{target.name}")
    request = urllib.request.Request(address, headers={"User-Agent": f"hpsearch/{__version__}"})
    with _network_errors(address):
        response = urllib.request.urlopen(request, timeout=timeout_seconds)
    with response:
        _make_folder(target.parent)  # not earlier: a failed download leaves no empty folder behind
        try:
            with partial.open("xb") as stream:
                _copy(response, address, stream, target.name, progress)
                os.fsync(stream.fileno())  # before the rename: a power failure leaves the old file or the new one
            verify(partial, address)
            partial.replace(target)
        except OSError as error:
            raise _write_error(target, error) from error
        except DataError as error:
            raise _MirrorError(str(error)) from error
        finally:
            partial.unlink(missing_ok=True)
    return target


def _copy(
    response: http.client.HTTPResponse,
    address: str,
    target: BinaryIO,
    file_name: str,
    progress: DownloadProgress | None,
) -> None:
    length = response.headers.get("Content-Length", "")
    bytes_done, bytes_total = 0, int(length) if length.isdecimal() else None
    while True:
        if progress is not None:
            progress(file_name, bytes_done, bytes_total)
        with _network_errors(address, "the connection broke: "):
            block = response.read(_BLOCK_BYTES)
        if not block:
            break
        target.write(block)
        bytes_done += len(block)
        if bytes_done > MAX_DOWNLOAD_BYTES:
            raise _MirrorError(f"{address}: more than {MAX_DOWNLOAD_BYTES} bytes, which is the limit")
    if bytes_total is not None and bytes_done != bytes_total:  # http.client does not report this
        raise _MirrorError(f"{address}: cut short: {bytes_done} of {bytes_total} bytes")


@contextlib.contextmanager
def _network_errors(address: str, what: str = "") -> Iterator[None]:
    """Raise network errors as `_MirrorError`; `what` says what they interrupted."""
    try:
        yield
    except urllib.error.HTTPError as error:
        error.close()
        raise _MirrorError(f"{address}: HTTP status {error.code} ({error.reason})") from error
    except urllib.error.URLError as error:
        raise _MirrorError(f"{address}: {error.reason}") from error
    except (OSError, http.client.HTTPException) as error:  # a timeout, or an answer that is not HTTP
        raise _MirrorError(f"{address}: {what}{str(error) or type(error).__name__}") from error


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _write_error(folder, error) from error


def _write_error(path: Path, error: OSError) -> DataError:
    return DataError(
        f"{path}: cannot be written by user {user_name()}: {error.strerror or error}",
        hint="free some space or permit writing there, or set XDG_CACHE_HOME to another folder",
    )
