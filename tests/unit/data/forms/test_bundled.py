"""scikit-learn's small data sets are those that it loads itself, split as tables."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from sklearn import datasets

from hpsearch.data.catalog import load_selection_data
from hpsearch.data.files.lookup import DataLocations
from hpsearch.data.splits import SelectionData
from hpsearch.data.tables.bundled_files import BUNDLED
from hpsearch.data.tables.preparation import Preparation, PreparedNumber, input_names
from hpsearch.data.test_split import load_test_split
from hpsearch.errors import DataError, InputError
from hpsearch.study.settings import DataSettings


def load(tmp_path: Path, stored: object = None, **keys: object) -> SelectionData:
    locations = DataLocations(local=None, cache=tmp_path)
    return load_selection_data(DataSettings(**keys), locations=locations, stored=stored)


@pytest.mark.parametrize("name", BUNDLED)
def test_the_columns_are_those_that_scikit_learn_loads(name: str) -> None:
    options = {"scaled": False} if name == "diabetes" else {}
    expected = getattr(datasets, f"load_{name}")(**options)
    bundled = BUNDLED[name]
    table = bundled.read(bundled.paths, DataSettings(), None).table
    assert list(bundled.features) == list(expected.feature_names)
    for place, feature in enumerate(bundled.features):
        np.testing.assert_array_equal(table.column(feature).to_numpy(), expected.data[:, place])
    target = expected.target if name == "diabetes" else expected.target_names[expected.target]
    assert table.column("target").to_pylist() == target.tolist()


@pytest.mark.parametrize("name", BUNDLED)
def test_all_rows_are_in_one_part_in_their_own_units(tmp_path: Path, name: str) -> None:
    data = load(tmp_path, dataset=f"sklearn:{name}")
    settings = DataSettings(dataset=f"sklearn:{name}")
    locations = DataLocations(local=None, cache=tmp_path)
    test = load_test_split(settings, locations, lambda: True, data.record)
    inputs = np.concatenate([data.train.images, data.validation.images, test.images])
    features = Preparation.from_json(data.record["preparation"]).features
    first = features[0]
    assert isinstance(first, PreparedNumber)
    bundled = BUNDLED[name]
    rows = bundled.read(bundled.paths, settings, None).table.column(first.name).to_numpy()
    np.testing.assert_allclose(np.sort(inputs[:, 0] * first.scale + first.mean), np.sort(rows), rtol=1e-4)
    assert input_names(data.record) == bundled.features
    assert data.num_classes == {"breast_cancer": 2, "wine": 3, "iris": 3, "diabetes": 0}[name]


def test_digits_of_8x8_stay_apart_from_digits(tmp_path: Path) -> None:
    data = load(tmp_path, dataset="sklearn:digits")
    assert data.example_shape == (8, 8)
    assert (len(data.train), len(data.validation)) == (1285, 256)
    assert data.record["split"]["test"] == 256
    locations = DataLocations(local=None, cache=tmp_path)
    test = load_test_split(DataSettings(dataset="sklearn:digits"), locations, lambda: True, data.record)
    expected = datasets.load_digits()
    images = np.concatenate([data.train.images, data.validation.images, test.images])
    assert sorted(map(bytes, (images * 16).astype(np.uint8))) == sorted(map(bytes, expected.data.astype(np.uint8)))
    counts = np.bincount(test.labels)
    assert counts.max() - counts.min() <= 2  # stratified
    assert not set(test.checksums.values()) & set(data.checksums.values())
    enlarged = load(tmp_path, dataset="digits")
    assert not set(enlarged.checksums.values()) & set(data.checksums.values())


def test_digits_without_a_test_part(tmp_path: Path) -> None:
    settings = DataSettings(dataset="sklearn:digits", test=0)
    data = load(tmp_path, dataset="sklearn:digits", test=0)
    assert data.record["has_test"] is False
    with pytest.raises(DataError, match="no test images"):
        load_test_split(settings, DataLocations(local=None, cache=tmp_path), lambda: True, data.record)


def test_another_split_of_the_digits_is_refused(tmp_path: Path) -> None:
    record = load(tmp_path, dataset="sklearn:digits").record
    with pytest.raises(DataError, match="the split cannot be drawn again"):
        load(tmp_path, dataset="sklearn:digits", split_seed=1, stored=record)


@pytest.mark.parametrize("name", ["iris", "digits"])
def test_files_as_parts_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(InputError, match=r"data.test: expected a fraction"):
        load(tmp_path, dataset=f"sklearn:{name}", test="test.csv")


def test_the_names_of_data_sets_need_neither_pyarrow_nor_scikit_learn() -> None:
    """`hpsearch --help` and every command import the registry."""
    code = (
        "import sys, hpsearch.data.registry as r; r.catalog_names(); "
        "print([m for m in ('pyarrow', 'sklearn') if m in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout == "[]\n"
