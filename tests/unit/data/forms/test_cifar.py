"""CIFAR in its authors' form: batches are checked and split in file order, and the test batch stays unread."""

from __future__ import annotations

import hashlib
import io
import pickle
import tarfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from hpsearch.data.catalog import fetch_dataset, load_selection_data, verify_dataset
from hpsearch.data.files.file_check import FileState
from hpsearch.data.files.lookup import DataLocations
from hpsearch.data.files.published_archive import CIFAR10, PublishedArchive
from hpsearch.data.forms import cifar
from hpsearch.data.forms.cifar import CifarFiles
from hpsearch.data.forms.form import DataRequest, OpeningPermit
from hpsearch.data.splits import SelectionData
from hpsearch.data.test_file_marks import marks_of_test_files
from hpsearch.errors import DataError
from hpsearch.study.settings import DataSettings

NAMES = [f"class {number}" for number in range(100)]


def text(value: bytes) -> bytes:
    """A string of Python 2 (SHORT_BINSTRING or BINSTRING)."""
    short = len(value) < 256
    return (b"U" + bytes([len(value)]) if short else b"T" + len(value).to_bytes(4, "little")) + value


def python_2_batch(images: np.ndarray, **labels: list[int]) -> bytes:
    """A dictionary as cPickle of Python 2 writes it in protocol 2."""
    array = b"cnumpy.core.multiarray\n_reconstruct\nq\x02cnumpy\nndarray\nq\x03K\x00\x85" + text(b"b") + b"\x87Rq\x04"
    array += b"(K\x01" + b"".join(b"J" + size.to_bytes(4, "little") for size in images.shape) + b"\x86"
    array += b"cnumpy\ndtype\nq\x05" + text(b"u1") + b"K\x00K\x01\x87Rq\x06(K\x03" + text(b"|")
    array += b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89" + text(images.tobytes()) + b"tb"
    items = text(b"data") + array
    for key, values in labels.items():
        items += text(key.encode()) + b"](" + b"".join(b"K" + bytes([value]) for value in values) + b"e"
    names = b"](" + b"".join(text(f"image_{row}.png".encode()) for row in range(len(images))) + b"e"
    return b"\x80\x02}q\x01(" + items + text(b"filenames") + names + b"u."


class Cifar10:
    """Five batches of 12 images each and a test batch of 10, made of random pixels."""

    def __init__(self) -> None:
        generator = np.random.default_rng(1)
        self.images = generator.integers(0, 256, (70, 3072)).astype(np.uint8)
        self.labels = (np.arange(70) % 10).tolist()
        starts = {**{f"data_batch_{n}": 12 * (n - 1) for n in range(1, 6)}, "test_batch": 60}
        self.files = {
            name: python_2_batch(self.images[start : start + 12], labels=self.labels[start : start + 12])
            for name, start in starts.items()
        }
        self.files["batches.meta"] = pickle.dumps({"label_names": NAMES[:10], "num_vis": 3072}, 2)

    def write_archive(self, path: Path) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(packed(self.files, "cifar-10-batches-py"))
        return path

    def write_folder(self, path: Path) -> Path:
        path.mkdir(parents=True)
        for name, content in self.files.items():
            (path / name).write_bytes(content)
        return path

    def publish(self, mirror: str = "") -> PublishedArchive:
        return replace(
            CIFAR10,
            mirrors=(mirror,) if mirror else (),
            md5=md5(packed(self.files, "cifar-10-batches-py")),
            member_md5={name: md5(content) for name, content in self.files.items()},
        )


def packed(files: dict[str, bytes], folder: str) -> bytes:
    target = io.BytesIO()
    with tarfile.open(fileobj=target, mode="w:gz", compresslevel=1) as archive:
        for name, content in files.items():
            entry = tarfile.TarInfo(f"{folder}/{name}")
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    content = bytearray(target.getvalue())
    content[4:8] = bytes(4)  # the time of gzip's header
    return bytes(content)


def floats(images: np.ndarray) -> np.ndarray:
    """Pixels in [0, 1], of images that are kept as levels or as floats."""
    return images / np.float32(255) if images.dtype == np.uint8 else images


def md5(content: bytes) -> str:
    return hashlib.md5(content, usedforsecurity=False).hexdigest()


@pytest.fixture
def cifar10() -> Cifar10:
    return Cifar10()


@pytest.fixture
def published(cifar10: Cifar10, monkeypatch: pytest.MonkeyPatch, mirror) -> PublishedArchive:
    """The small set in the place of the published one, on a mirror that has nothing yet."""
    archive = cifar10.publish(mirror.address)
    monkeypatch.setattr(cifar, "_NAMED", {"cifar10": (cifar._CIFAR10, archive)})
    return archive


def load(dataset: object, locations: DataLocations, **keys: int) -> SelectionData:
    return load_selection_data(DataSettings(dataset=str(dataset), **keys), locations=locations)


def assert_is(data: SelectionData, expected: Cifar10, num_train: int = 50) -> None:
    pixels = expected.images.astype(np.float32) / np.float32(255)
    np.testing.assert_array_equal(floats(data.train.images), pixels[:num_train])
    np.testing.assert_array_equal(floats(data.validation.images), pixels[50:60])
    np.testing.assert_array_equal(data.train.labels, expected.labels[:num_train])
    np.testing.assert_array_equal(data.validation.labels, expected.labels[50:60])
    assert (data.example_shape, data.num_classes, data.class_names) == ((3, 32, 32), 10, tuple(NAMES[:10]))
    assert data.record == {"form": "CIFAR", "classes": NAMES[:10], "shape": [3, 32, 32]}
    batches = [f"data_batch_{number}" for number in range(1, 6)]
    assert data.checksums == {name: hashlib.sha256(expected.files[name]).hexdigest() for name in batches}


@pytest.mark.parametrize("is_packed", [True, False])
def test_a_path_of_the_archive_or_of_the_unpacked_folder(
    tmp_path: Path, locations: DataLocations, cifar10: Cifar10, is_packed: bool
) -> None:
    path = tmp_path / "my-cifar.tar.gz" if is_packed else tmp_path / "my-cifar"
    path = cifar10.write_archive(path) if is_packed else cifar10.write_folder(path)
    data = load(path, locations)
    assert_is(data, cifar10)
    assert data.name == path.name
    assert_is(load(path, locations, train_samples=20), cifar10, num_train=20)


def test_the_test_batch_is_not_read_for_selection(tmp_path: Path, locations: DataLocations, cifar10: Cifar10) -> None:
    """Whatever is in it: the vault alone finds that it is damaged."""
    cifar10.files["test_batch"] = b"damaged"
    for path in (cifar10.write_archive(tmp_path / "x.tar.gz"), cifar10.write_folder(tmp_path / "x")):
        assert_is(load(path, locations), cifar10)
        request = DataRequest(settings=DataSettings(dataset=str(path)), locations=locations)
        with pytest.raises(DataError, match=r"test_batch: refused to unpickle"):
            CifarFiles(path).read_test_part(OpeningPermit(), request)


def test_the_vault_reads_the_test_batch_alone(tmp_path: Path, locations: DataLocations, cifar10: Cifar10) -> None:
    for number in range(1, 6):
        cifar10.files[f"data_batch_{number}"] = b"damaged"
    path = cifar10.write_archive(tmp_path / "x.tar.gz")
    request = DataRequest(settings=DataSettings(dataset=str(path)), locations=locations)
    split, checksums = CifarFiles(path).read_test_part(OpeningPermit(), request)
    np.testing.assert_array_equal(floats(split.images), cifar10.images[60:].astype(np.float32) / np.float32(255))
    assert split.labels.tolist() == cifar10.labels[60:]
    assert checksums == {"test_batch": hashlib.sha256(cifar10.files["test_batch"]).hexdigest()}


def test_cifar_100_has_fine_labels(tmp_path: Path, locations: DataLocations) -> None:
    images = np.zeros((600, 3072), dtype=np.uint8)
    fine, coarse = (np.arange(600) % 100).tolist(), [0] * 600
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "train").write_bytes(python_2_batch(images, coarse_labels=coarse, fine_labels=fine))
    (tmp_path / "x" / "meta").write_bytes(pickle.dumps({"fine_label_names": NAMES, "coarse_label_names": ["a"]}, 2))
    data = load(tmp_path / "x", locations)
    assert data.train.labels.tolist() + data.validation.labels.tolist() == fine
    assert (len(data.train), data.num_classes, data.class_names) == (500, 100, tuple(NAMES))
    assert list(data.checksums) == ["train"]
    (tmp_path / "x" / "meta").unlink()
    without_names = load(tmp_path / "x", locations)
    assert (without_names.class_names, without_names.record) == ((), {})


def test_a_folder_with_a_folder_named_train_is_another_form(tmp_path: Path) -> None:
    (tmp_path / "train").mkdir()
    assert CifarFiles.at(tmp_path) is None


def test_a_published_set_is_found_in_every_place_and_verified(
    tmp_path: Path, cifar10: Cifar10, published: PublishedArchive, mirror
) -> None:
    places = DataLocations(local=tmp_path / "local", cache=tmp_path / "cache")
    (tmp_path / "local").mkdir()
    cifar10.write_archive(tmp_path / "cache" / "cifar10" / "cifar-10-python.tar.gz")
    assert_is(load("cifar10", places), cifar10)
    cifar10.write_folder(tmp_path / "local" / "cifar-10-batches-py")
    (tmp_path / "cache" / "cifar10" / "cifar-10-python.tar.gz").unlink()
    data = load("cifar10", places)
    assert_is(data, cifar10)
    assert data.name == "cifar10"
    assert mirror.requests == []
    (check,) = verify_dataset("cifar10", places)
    assert (check.state, check.path) == (FileState.VERIFIED, tmp_path / "local")
    assert fetch_dataset("cifar10", places) == (tmp_path / "local",)


def test_a_published_set_never_trains_on_other_batches(
    tmp_path: Path, locations: DataLocations, cifar10: Cifar10, published: PublishedArchive
) -> None:
    cifar10.files["data_batch_3"] = cifar10.files["data_batch_2"]
    cifar10.write_archive(locations.cache / "cifar10" / "cifar-10-python.tar.gz")
    with pytest.raises(DataError, match="wrong MD5 for cifar10's data_batch_3") as caught:
        load("cifar10", locations)
    assert caught.value.hint == "delete the file, then run: hpsearch data fetch cifar10"


def test_a_missing_archive_is_downloaded_once_and_verified(
    tmp_path: Path, cifar10: Cifar10, published: PublishedArchive, mirror
) -> None:
    places = DataLocations(local=None, cache=tmp_path)
    mirror.files["/cifar-10-python.tar.gz"] = b"something else"
    with pytest.raises(DataError, match=r"wrong MD5 for cifar10's cifar-10-python\.tar\.gz"):
        load("cifar10", places)
    assert list((tmp_path / "cifar10").iterdir()) == []
    mirror.files["/cifar-10-python.tar.gz"] = packed(cifar10.files, "cifar-10-batches-py")
    for _ in range(2):
        assert_is(load("cifar10", places), cifar10)
        assert fetch_dataset("cifar10", places) == (tmp_path / "cifar10" / "cifar-10-python.tar.gz",)
    assert len(mirror.requests) == 2


def test_fetch_replaces_a_wrong_archive_in_the_cache_and_leaves_the_users_own_alone(
    tmp_path: Path, cifar10: Cifar10, published: PublishedArchive, mirror
) -> None:
    mirror.files["/cifar-10-python.tar.gz"] = packed(cifar10.files, "cifar-10-batches-py")
    cached = tmp_path / "cache" / "cifar10" / "cifar-10-python.tar.gz"
    cached.parent.mkdir(parents=True)
    cached.write_bytes(b"wrong")
    fetch_dataset("cifar10", DataLocations(local=None, cache=tmp_path / "cache"))
    assert cached.read_bytes() == mirror.files["/cifar-10-python.tar.gz"]
    own = tmp_path / "cifar-10-python.tar.gz"
    own.write_bytes(b"wrong")
    places = DataLocations(local=tmp_path, cache=tmp_path / "cache")
    with pytest.raises(DataError, match="wrong MD5"):
        fetch_dataset("cifar10", places)
    assert own.read_bytes() == b"wrong"
    (check,) = verify_dataset("cifar10", places)
    assert (check.state, check.is_usable, check.path) == (FileState.WRONG, False, own)


def test_what_is_not_there_is_told_without_a_network(
    locations: DataLocations, cifar10: Cifar10, published: PublishedArchive
) -> None:
    (check,) = verify_dataset("cifar10", locations)
    assert (check.file_name, check.state) == ("cifar-10-python.tar.gz", FileState.MISSING)
    with pytest.raises(DataError, match="downloading is switched off") as caught:
        load("cifar10", locations)
    assert "hpsearch data fetch cifar10" in str(caught.value.hint)


def test_an_unpacked_folder_without_a_batch_names_it(
    locations: DataLocations, cifar10: Cifar10, published: PublishedArchive
) -> None:
    folder = cifar10.write_folder(locations.cache / "cifar10" / "cifar-10-batches-py")
    (folder / "data_batch_4").unlink()
    with pytest.raises(DataError, match="no data_batch_4 in it"):
        load("cifar10", locations)
    with pytest.raises(DataError, match="no data_batch_4 in it"):
        load(folder, locations)
    (check,) = verify_dataset("cifar10", locations)
    assert (check.state, "no data_batch_4" in str(check.problem)) == (FileState.WRONG, True)


def test_another_archive_is_named_with_what_was_expected(tmp_path: Path, locations: DataLocations) -> None:
    path = tmp_path / "x.tar.gz"
    path.write_bytes(packed({"a": b"b"}, "c"))
    with pytest.raises(DataError, match=r"x\.tar\.gz: no data_batch_1 or train in it") as caught:
        load(path, locations)
    assert "cifar-10-python.tar.gz" in str(caught.value.hint)


WHITE = np.full((12, 3072), 255, dtype=np.uint8)
ZEROS = [0] * 12


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (pickle.dumps([1], 2), "expected a dictionary"),
        (pickle.dumps({"data": 1, "labels": ZEROS}, 2), r"expected `data` of shape \[N, 3072\].*found none"),
        (python_2_batch(WHITE[:, :3], labels=ZEROS), r".*found \[12, 3\] of uint8"),
        (pickle.dumps({"data": WHITE.astype(np.float32), "labels": ZEROS}, 2), r".*found \[12, 3072\] of float32"),
        (pickle.dumps({"data": WHITE, "labels": "text"}, 2), "expected `labels`, a list of whole numbers"),
        (pickle.dumps({"data": WHITE, "labels": [0.5] * 12}, 2), "refused to unpickle the opcode BINFLOAT"),
        (pickle.dumps({"data": WHITE, "labels": [None] * 12}, 2), "expected `labels`, a list of whole numbers"),
        (python_2_batch(WHITE, fine_labels=ZEROS), "expected `labels`, a list of whole numbers"),
        (python_2_batch(WHITE, labels=[0, 1]), "12 images, but 2 labels"),
        (python_2_batch(WHITE, labels=[*ZEROS[1:], 10]), r"expected labels in 0\.\.9"),
        (pickle.dumps({"data": WHITE, "labels": [*ZEROS[1:], 2**70]}, 2), "a label beyond 32 bits"),
        (
            python_2_batch(WHITE, labels=ZEROS).replace(b"\x00\x0c\x00\x00\x86", b"\x01\x0c\x00\x00\x86"),
            "refused an array",
        ),
        (b"cos\nsystem\n.", r"refused to unpickle the name 'os\.system'; none of its code was run"),
    ],
)
def test_a_wrong_batch_is_named_with_what_is_wrong(
    tmp_path: Path, locations: DataLocations, cifar10: Cifar10, content: bytes, message: str
) -> None:
    cifar10.files["data_batch_2"] = content
    with pytest.raises(DataError, match=f"data_batch_2: {message}"):
        load(cifar10.write_folder(tmp_path / "x"), locations)


@pytest.mark.parametrize("names", [["a"], [1] * 10, None])
def test_wrong_class_names_are_refused(
    tmp_path: Path, locations: DataLocations, cifar10: Cifar10, names: object
) -> None:
    cifar10.files["batches.meta"] = pickle.dumps({"label_names": names}, 2)
    with pytest.raises(DataError, match=r"batches\.meta: expected `label_names`, 10 names of classes"):
        load(cifar10.write_folder(tmp_path / "x"), locations)


def test_the_test_batch_is_known_again_without_being_opened() -> None:
    marks = marks_of_test_files(DataSettings(dataset="cifar10"), {"data_batch_1": "1"})
    assert marks == {"trained-on:1", f"md5:{CIFAR10.member_md5['test_batch']}"}
