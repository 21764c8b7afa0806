"""Small synthetic data sets, in the same files and on the same kind of mirrors as the real ones."""

from __future__ import annotations

import gzip
import hashlib
import http.server
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType

import numpy as np
import pytest

from hpsearch.data.files import published
from hpsearch.data.files.lookup import DataLocations
from hpsearch.data.files.published import (
    FILE_NAMES,
    TEST_IMAGES,
    TEST_LABELS,
    TRAIN_IMAGES,
    TRAIN_LABELS,
    PublishedFile,
    PublishedSet,
)


def idx_bytes(array: np.ndarray) -> bytes:
    """An uint8 array in the IDX format."""
    header = bytes([0, 0, 8, array.ndim]) + b"".join(size.to_bytes(4, "big") for size in array.shape)
    return header + array.astype(np.uint8).tobytes()


@dataclass(frozen=True)
class SyntheticSet:
    """60 training and 10 test images of 5 x 4 pixels; `seed` makes different sets."""

    seed: int
    arrays: dict[str, np.ndarray] = field(init=False)

    def __post_init__(self) -> None:
        generator = np.random.default_rng(self.seed)
        arrays = {
            TRAIN_IMAGES: generator.integers(0, 256, (60, 5, 4)),
            TRAIN_LABELS: generator.integers(0, 10, 60),
            TEST_IMAGES: generator.integers(0, 256, (10, 5, 4)),
            TEST_LABELS: generator.integers(0, 10, 10),
        }
        object.__setattr__(self, "arrays", {name: array.astype(np.uint8) for name, array in arrays.items()})

    def content(self, file_name: str) -> bytes:
        return idx_bytes(self.arrays[file_name])

    def packed(self, file_name: str) -> bytes:
        return gzip.compress(self.content(file_name), mtime=0)

    def write(self, folder: Path, *, packed: bool = True) -> Path:
        """Write all four files."""
        folder.mkdir(parents=True, exist_ok=True)
        for name in FILE_NAMES:
            if packed:
                (folder / f"{name}.gz").write_bytes(self.packed(name))
            else:
                (folder / name).write_bytes(self.content(name))
        return folder

    def publish(self, name: str, *, mirrors: tuple[str, ...] = (), has_sha256: bool = True) -> PublishedSet:
        files = {
            file_name: PublishedFile(
                packed_md5=hashlib.md5(self.packed(file_name), usedforsecurity=False).hexdigest(),
                sha256=hashlib.sha256(self.content(file_name)).hexdigest() if has_sha256 else None,
            )
            for file_name in FILE_NAMES
        }
        return PublishedSet(name=name, mirrors=mirrors, files=MappingProxyType(files))


@pytest.fixture
def idx() -> Callable[[np.ndarray], bytes]:
    return idx_bytes


@pytest.fixture
def synthetic_set() -> SyntheticSet:
    return SyntheticSet(seed=1)


@pytest.fixture
def other_set() -> SyntheticSet:
    return SyntheticSet(seed=2)


@pytest.fixture
def publish(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Put other sets in the place of the catalogue's."""

    def replace(*sets: PublishedSet) -> None:
        monkeypatch.setattr(published, "PUBLISHED_SETS", {entry.name: entry for entry in sets})

    return replace


@pytest.fixture
def locations(tmp_path: Path) -> DataLocations:
    """An empty cache, no local folder and no network."""
    return DataLocations(local=None, cache=tmp_path / "cache", allow_download=False)


@dataclass
class Mirror:
    """A local HTTP server: what it serves, and which paths it was asked for.

    Args:
        files: path -> content; any other path is a 404.
        cut_short: paths of which only half is sent, though the whole length is announced.
    """

    address: str
    files: dict[str, bytes] = field(default_factory=dict)
    cut_short: set[str] = field(default_factory=set)
    has_length: bool = True
    requests: list[str] = field(default_factory=list)


@pytest.fixture
def mirror(monkeypatch: pytest.MonkeyPatch) -> Iterator[Mirror]:
    """A server on the loopback address that stands in for a mirror."""
    monkeypatch.setenv("no_proxy", "*")  # a proxy of the surroundings must not see the requests

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            mirror.requests.append(self.path)
            content = mirror.files.get(self.path)
            if content is None:
                self.send_error(404)
                return
            self.send_response(200)
            if mirror.has_length:
                self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content[: len(content) // 2] if self.path in mirror.cut_short else content)

        def log_message(self, *_: object) -> None:
            """Keep the tests' output quiet."""

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        mirror = Mirror(address=f"http://127.0.0.1:{server.server_address[1]}/")
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield mirror
        server.shutdown()
        thread.join()
