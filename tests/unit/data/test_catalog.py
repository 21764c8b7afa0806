"""Every kind of data set loads in its two parts, and what is no data set is refused with the choices."""

from __future__ import annotations

import gzip
import hashlib
import json
import logging
import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from hpsearch.data.catalog import fetch_dataset, load_selection_data, verify_dataset
from hpsearch.data.files.file_check import FileState
from hpsearch.data.files.lookup import DataLocations
from hpsearch.data.files.published import FILE_NAMES, TRAIN_IMAGES, TRAIN_LABELS
from hpsearch.data.registry import FORMS, catalog_names
from hpsearch.data.splits import SelectionData
from hpsearch.errors import DataError, InputError
from hpsearch.study.settings import DataSettings


def assert_is_selection_of(data: SelectionData, synthetic_set, num_train: int = 50) -> None:
    images, labels = (synthetic_set.arrays[name] for name in (TRAIN_IMAGES, TRAIN_LABELS))
    pixels = images.reshape(60, 20).astype(np.float32) / np.float32(255)
    np.testing.assert_array_equal(data.train.floats(), pixels[:num_train])
    np.testing.assert_array_equal(data.train.labels, labels[:num_train])
    np.testing.assert_array_equal(data.validation.floats(), pixels[50:])
    np.testing.assert_array_equal(data.validation.labels, labels[50:])
    assert (data.example_shape, data.num_classes) == ((5, 4), 10)
    assert data.checksums == {
        name: hashlib.sha256(synthetic_set.content(name)).hexdigest() for name in (TRAIN_IMAGES, TRAIN_LABELS)
    }


@pytest.mark.parametrize("is_packed", [True, False])
def test_a_folder_of_idx_files_is_split_in_file_order(
    tmp_path: Path, locations: DataLocations, synthetic_set, is_packed: bool
) -> None:
    folder = synthetic_set.write(tmp_path / "my-images", packed=is_packed)
    data = load_selection_data(DataSettings(dataset=str(folder)), locations=locations)
    assert_is_selection_of(data, synthetic_set)
    assert data.name == "my-images"


def test_a_folder_may_be_named_from_the_working_directory(
    tmp_path: Path, locations: DataLocations, synthetic_set, monkeypatch: pytest.MonkeyPatch
) -> None:
    synthetic_set.write(tmp_path / "my-images")
    monkeypatch.chdir(tmp_path)
    data = load_selection_data(DataSettings(dataset="my-images"), locations=locations)
    assert_is_selection_of(data, synthetic_set)


def test_train_samples_keeps_the_first_images_and_all_of_validation(
    tmp_path: Path, locations: DataLocations, synthetic_set
) -> None:
    folder = str(synthetic_set.write(tmp_path / "my-images"))
    data = load_selection_data(DataSettings(dataset=folder, train_samples=7), locations=locations)
    assert_is_selection_of(data, synthetic_set, num_train=7)
    with pytest.raises(InputError, match=r"data\.train_samples must be in 1\.\.50, got 51"):
        load_selection_data(DataSettings(dataset=folder, train_samples=51), locations=locations)


def test_a_published_set_is_found_verified_and_split(locations: DataLocations, synthetic_set, publish) -> None:
    publish(synthetic_set.publish("mnist"))
    synthetic_set.write(locations.cache / "mnist")
    data = load_selection_data(DataSettings(dataset="mnist"), locations=locations)
    assert_is_selection_of(data, synthetic_set)
    assert data.name == "mnist"


def test_a_published_set_never_trains_on_files_of_another(
    locations: DataLocations, synthetic_set, other_set, publish
) -> None:
    publish(synthetic_set.publish("mnist"), other_set.publish("kmnist"))
    other_set.write(locations.cache / "mnist")
    with pytest.raises(DataError, match="wrong SHA-256") as caught:
        load_selection_data(DataSettings(dataset="mnist"), locations=locations)
    assert f"{TRAIN_IMAGES} of kmnist" in str(caught.value.hint)


def test_only_the_training_files_are_downloaded(tmp_path: Path, synthetic_set, publish, mirror) -> None:
    """With progress, for both files."""
    publish(synthetic_set.publish("mnist", mirrors=(mirror.address,)))
    mirror.files |= {f"/{name}.gz": synthetic_set.packed(name) for name in FILE_NAMES}
    calls: list[tuple[str, int, int | None]] = []
    data = load_selection_data(
        DataSettings(dataset="mnist"),
        locations=DataLocations(local=None, cache=tmp_path, progress=lambda *call: calls.append(call)),
    )
    assert_is_selection_of(data, synthetic_set)
    assert mirror.requests == [f"/{TRAIN_IMAGES}.gz", f"/{TRAIN_LABELS}.gz"]
    assert {name for name, _, _ in calls} == {f"{TRAIN_IMAGES}.gz", f"{TRAIN_LABELS}.gz"}


def test_digits_need_neither_files_nor_network(locations: DataLocations) -> None:
    data = load_selection_data(DataSettings(dataset="digits", train_samples=100), locations=locations)
    assert (data.name, len(data.train), len(data.validation)) == ("digits", 100, 256)


def test_a_pickle_is_loaded_by_its_path(tmp_path: Path, locations: DataLocations) -> None:
    pair = np.zeros((3, 784), dtype=np.float32), np.arange(3)
    path = tmp_path / "mnist.pkl.gz"
    path.write_bytes(gzip.compress(pickle.dumps((pair, pair, pair), 2)))
    data = load_selection_data(DataSettings(dataset=str(path)), locations=locations)
    assert (data.name, len(data.train), len(data.validation)) == ("mnist.pkl.gz", 3, 3)


@pytest.mark.parametrize(
    ("dataset", "suggestion"),
    [("mnst", "mnist"), ("MNIST", "mnist"), ("fashion_mnist", "fashion-mnist"), ("digit", "digits")],
)
def test_an_unknown_name_gets_the_choices_and_a_suggestion(
    locations: DataLocations, dataset: str, suggestion: str
) -> None:
    with pytest.raises(InputError, match=rf"data\.dataset: unknown data set '{dataset}'") as caught:
        load_selection_data(DataSettings(dataset=dataset), locations=locations)
    assert caught.value.hint == (
        f'did you mean "{suggestion}"? expected {", ".join(catalog_names())}, '
        + ", or ".join(form.path_description for form in FORMS if form.path_description)
    )


@pytest.mark.parametrize(
    ("dataset", "suggestion"),
    [
        ("sklearn:irs", 'did you mean "iris"? '),
        ("sklearn:breast-cancer", 'did you mean "breast_cancer"? '),
        ("sklearn:Wine", 'did you mean "wine"? '),
        ("sklearn:load_digits", 'did you mean "digits"? '),
        ("sklearn:boston", ""),
        ("sklearn:", ""),
    ],
)
def test_an_unknown_name_of_scikit_learn_is_no_loader_and_gets_the_names(
    locations: DataLocations, dataset: str, suggestion: str
) -> None:
    expected = f"{suggestion}expected sklearn: and one of breast_cancer, wine, iris, diabetes, digits"
    with pytest.raises(InputError, match=rf"data\.dataset: unknown data set '{dataset}'") as loaded:
        load_selection_data(DataSettings(dataset=dataset), locations=locations)
    with pytest.raises(InputError, match=rf"data\.dataset: unknown data set '{dataset}'") as fetched:
        fetch_dataset(dataset, locations)
    assert loaded.value.hint == fetched.value.hint == expected


def test_a_loader_in_a_module_of_scikit_learn_is_one(locations: DataLocations) -> None:
    with pytest.raises(InputError, match=r'load_iris: .*load_iris\("train"\) failed'):
        load_selection_data(DataSettings(dataset="sklearn.datasets:load_iris"), locations=locations)


@pytest.mark.parametrize("dataset", ["", " ", "imagenet", "x" * 5000, "a\0b", "~nobody-of-this-name"])
def test_a_name_that_resembles_nothing_gets_the_choices(locations: DataLocations, dataset: str) -> None:
    with pytest.raises(InputError, match="unknown data set") as caught:
        load_selection_data(DataSettings(dataset=dataset), locations=locations)
    assert str(caught.value.hint).startswith("expected mnist, fashion-mnist, kmnist, qmnist")


@pytest.mark.parametrize("dataset", ["no/such/folder", "./mnist", "/no-such-folder", "mnist.pkl.gz"])
def test_a_path_where_nothing_is_names_the_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, locations: DataLocations, dataset: str
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match=f"no file or folder '{dataset}'"):
        load_selection_data(DataSettings(dataset=dataset), locations=locations)


def test_a_path_that_may_not_be_looked_at_says_so(monkeypatch: pytest.MonkeyPatch, locations: DataLocations) -> None:
    def refuse(_: Path) -> bool:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "exists", refuse)
    with pytest.raises(DataError, match="'/locked/data' cannot be accessed: Permission denied"):
        load_selection_data(DataSettings(dataset="/locked/data"), locations=locations)


def test_a_file_of_another_kind_is_refused_with_what_helps(tmp_path: Path, locations: DataLocations) -> None:
    path = tmp_path / f"{TRAIN_IMAGES}.gz"
    path.touch()
    with pytest.raises(InputError, match=r"expected a name that ends in .*\.pkl\.gz, \.pkl") as caught:
        load_selection_data(DataSettings(dataset=str(path)), locations=locations)
    assert caught.value.hint == "for IDX files give the folder that contains them"


def test_a_folder_without_the_files_names_the_missing_one(
    tmp_path: Path, locations: DataLocations, synthetic_set
) -> None:
    (synthetic_set.write(tmp_path) / f"{TRAIN_IMAGES}.gz").unlink()
    with pytest.raises(DataError, match=rf"{tmp_path}: no {TRAIN_IMAGES}\.gz or {TRAIN_IMAGES}") as caught:
        load_selection_data(DataSettings(dataset=str(tmp_path)), locations=locations)
    assert all(name in str(caught.value.hint) for name in FILE_NAMES)


def test_a_folder_of_no_known_form_says_what_was_looked_for(tmp_path: Path, locations: DataLocations) -> None:
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "a.txt").write_text("")
    with pytest.raises(DataError, match="is a folder without data of a known form") as caught:
        load_selection_data(DataSettings(dataset=str(tmp_path)), locations=locations)
    assert all(form.looked_for in str(caught.value.hint) for form in FORMS)


def test_fetch_downloads_what_is_missing_of_all_four_files(tmp_path: Path, synthetic_set, publish, mirror) -> None:
    """A second call finds them all."""
    publish(synthetic_set.publish("mnist", mirrors=(mirror.address,)))
    mirror.files |= {f"/{name}.gz": synthetic_set.packed(name) for name in FILE_NAMES}
    places = DataLocations(local=synthetic_set.write(tmp_path / "local"), cache=tmp_path / "cache")
    (tmp_path / "local" / f"{TRAIN_LABELS}.gz").unlink()
    for _ in range(2):
        paths = fetch_dataset("mnist", places)
        assert [path.name for path in paths] == [f"{name}.gz" for name in FILE_NAMES]
        assert [path.parent.name for path in paths] == ["local", "mnist", "local", "local"]
    assert mirror.requests == [f"/{TRAIN_LABELS}.gz"]


def test_fetch_replaces_a_wrong_file_in_the_cache(tmp_path: Path, synthetic_set, publish, mirror) -> None:
    publish(synthetic_set.publish("mnist", mirrors=(mirror.address,)))
    mirror.files |= {f"/{name}.gz": synthetic_set.packed(name) for name in FILE_NAMES}
    places = DataLocations(local=None, cache=tmp_path)
    wrong = synthetic_set.write(tmp_path / "mnist") / f"{TRAIN_IMAGES}.gz"
    wrong.write_bytes(b"<html>")
    fetch_dataset("mnist", places)
    assert wrong.read_bytes() == synthetic_set.packed(TRAIN_IMAGES)
    assert mirror.requests == [f"/{TRAIN_IMAGES}.gz"]


def test_fetch_leaves_a_wrong_file_of_the_users_own_alone(tmp_path: Path, synthetic_set, publish, mirror) -> None:
    publish(synthetic_set.publish("mnist", mirrors=(mirror.address,)))
    wrong = synthetic_set.write(tmp_path / "local") / f"{TRAIN_IMAGES}.gz"
    wrong.write_bytes(b"<html>")
    with pytest.raises(DataError, match="an HTML page"):
        fetch_dataset("mnist", DataLocations(local=tmp_path / "local", cache=tmp_path / "cache"))
    assert wrong.read_bytes() == b"<html>"
    assert mirror.requests == []


def test_fetch_has_nothing_to_do_for_digits(locations: DataLocations) -> None:
    assert fetch_dataset("digits", locations) == ()


@pytest.mark.parametrize("command", [fetch_dataset, verify_dataset])
def test_fetch_and_verify_take_names_of_the_catalogue_only(tmp_path: Path, locations: DataLocations, command) -> None:
    for name in ("mnst", str(tmp_path)):
        with pytest.raises(InputError, match="unknown data set"):
            command(name, locations)


def test_verify_reports_each_file_for_itself(locations: DataLocations, synthetic_set, publish) -> None:
    publish(synthetic_set.publish("mnist"))
    folder = synthetic_set.write(locations.cache / "mnist")
    images, labels, test_images, test_labels = (folder / f"{name}.gz" for name in FILE_NAMES)
    images.write_bytes(b"<html>")
    labels.unlink()
    test_images.write_bytes(gzip.compress(b"something else"))
    checks = verify_dataset("mnist", locations)
    assert [check.file_name for check in checks] == list(FILE_NAMES)
    assert [check.state for check in checks] == [
        FileState.WRONG,
        FileState.MISSING,
        FileState.WRONG,
        FileState.VERIFIED,
    ]
    assert [check.path for check in checks] == [images, None, test_images, test_labels]
    assert [check.is_usable for check in checks] == [False, False, False, True]
    assert "an HTML page" in str(checks[0].problem)
    assert checks[1].problem == f"not in {folder}"
    assert "wrong SHA-256" in str(checks[2].problem)
    assert checks[2].sha256 == hashlib.sha256(b"something else").hexdigest()
    assert checks[3].problem is None


def test_verify_says_where_nothing_can_be_verified(
    locations: DataLocations, synthetic_set, publish, caplog: pytest.LogCaptureFixture
) -> None:
    publish(synthetic_set.publish("kmnist", has_sha256=False))
    synthetic_set.write(locations.cache / "kmnist", packed=False)
    with caplog.at_level(logging.WARNING):
        checks = verify_dataset("kmnist", locations)
    assert {check.state for check in checks} == {FileState.UNVERIFIED}
    assert all(check.is_usable for check in checks)
    assert caplog.text.count("not verified") == 4


def test_verify_gives_the_checksum_of_the_bundled_digits(locations: DataLocations) -> None:
    (check,) = verify_dataset("digits", locations)
    data = load_selection_data(DataSettings(dataset="digits"), locations=locations)
    assert (check.file_name, check.path, check.state) == ("digits", None, FileState.UNVERIFIED)
    assert {"digits": check.sha256} == data.checksums


def test_the_catalogue_has_these_names() -> None:
    images = {"mnist", "fashion-mnist", "kmnist", "qmnist", "emnist-balanced", "emnist-letters", "cifar10", "cifar100"}
    assert images | {"digits"} <= set(catalog_names())
    assert len(set(catalog_names())) == len(catalog_names())


# Prints every path that is opened from the moment on when the data are asked for. An audit hook sees all of
# Python's ways to open a file, and cannot be taken out again, hence a process of its own.
TRACED_LOAD = """
import json, sys
from pathlib import Path
from hpsearch.data.files import published
from hpsearch.data.catalog import load_selection_data
from hpsearch.data.files.file_check import FileState
from hpsearch.data.files.lookup import DataLocations
from hpsearch.data.files.data_file import read_data_file
from hpsearch.data.test_split import load_test_split
from hpsearch.study.settings import DataSettings

function, dataset, cache = sys.argv[1:]
folder = Path(cache) / "traced"
published.PUBLISHED_SETS = {"traced": published.PublishedSet(name="traced", mirrors=(), files={
    name: published.PublishedFile(packed_md5="", sha256=read_data_file(folder / f"{name}.gz").sha256)
    for name in published.FILE_NAMES
})}
opened = []
sys.addaudithook(lambda event, arguments: event == "open" and opened.append(str(arguments[0])))
settings = DataSettings(dataset=dataset)
locations = DataLocations(local=None, cache=Path(cache), allow_download=False)
if function == "load_selection_data":
    load_selection_data(settings, locations=locations)
else:
    load_test_split(settings, locations, lambda: True)
print(json.dumps(opened))
"""


def trace_data_files(function: str, dataset: str, cache: Path) -> list[str]:
    """The names of the data files that `function` opens."""
    finished = subprocess.run(
        [sys.executable, "-c", TRACED_LOAD, function, dataset, str(cache)],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ,
    )
    return [Path(path).name for path in json.loads(finished.stdout) if path.startswith(str(cache))]


@pytest.mark.parametrize("is_folder", [True, False])
def test_test_files_are_opened_by_the_vaults_reader_only(tmp_path: Path, synthetic_set, is_folder: bool) -> None:
    """The whole folder is there to be opened; the second half shows that the trace would see it."""
    folder = synthetic_set.write(tmp_path / "traced")
    dataset = str(folder) if is_folder else "traced"
    train_files, test_files = (
        [f"{part}-images-idx3-ubyte.gz", f"{part}-labels-idx1-ubyte.gz"] for part in ("train", "t10k")
    )
    assert trace_data_files("load_selection_data", dataset, tmp_path) == train_files
    assert trace_data_files("load_test_split", dataset, tmp_path) == test_files


@pytest.mark.mnist
@pytest.mark.skipif("HPSEARCH_DATA" not in os.environ, reason="HPSEARCH_DATA names no folder with MNIST")
def test_the_real_mnist_has_its_known_parts() -> None:
    data = load_selection_data(DataSettings(dataset="mnist"), locations=DataLocations.from_environment())
    assert data.train.images.shape == (50_000, 784)
    assert data.validation.images.shape == (10_000, 784)
    assert data.example_shape == (28, 28)
    assert data.checksums[TRAIN_IMAGES].startswith("ba891046")
    np.testing.assert_array_equal(data.train.labels[:10], [5, 0, 4, 1, 9, 2, 1, 3, 1, 4])
    # The mean grey level of all 60,000 is 0.1307 (known from every tutorial that normalises by it).
    mean = (5 * data.train.floats().mean(dtype=np.float64) + data.validation.floats().mean(dtype=np.float64)) / 6
    assert mean == pytest.approx(0.1307, abs=5e-5)
    assert (data.train.images.min(), data.train.images.max()) == (0, 255)
