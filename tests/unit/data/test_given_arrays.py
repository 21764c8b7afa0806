"""Arrays of a notebook are written once, under their checksum, and the definition then names the file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hpsearch.data.given_arrays import with_stored_arrays
from hpsearch.errors import DataError, InputError, SurroundingsError

X, Y = np.arange(48, dtype=np.uint8).reshape(12, 2, 2), np.arange(12) % 3


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HPSEARCH_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def given(arrays: object, **data: Any) -> dict[str, Any]:
    return {"name": "a", "data": {"arrays": arrays, **data}, "search": {"learning_rate": [0.1]}}


def stored(arrays: object) -> Path:
    return Path(with_stored_arrays(given(arrays))["data"]["dataset"])


def test_the_file_has_the_arrays_and_the_other_keys_stay(home: Path) -> None:
    document = given({"x_train": X, "y_train": Y.tolist(), "x_test": X[:3], "y_test": Y[:3]}, validation=0.25)
    found = with_stored_arrays(document)
    assert found.keys() == document.keys()
    assert found["data"].keys() == {"dataset", "validation"}
    path = Path(found["data"]["dataset"])
    assert path.parent == home / "arrays"
    with np.load(path) as arrays:
        assert set(arrays) == {"x_train", "y_train", "x_test", "y_test"}
        np.testing.assert_array_equal(arrays["x_train"], X)
        np.testing.assert_array_equal(arrays["y_train"], Y)
        assert arrays["x_train"].dtype == np.uint8
    assert "arrays" in document["data"]  # the caller's own is untouched


def test_the_same_arrays_are_one_file_and_others_another(home: Path) -> None:
    first = stored({"x_train": X, "y_train": Y})
    written = first.stat().st_mtime_ns
    assert stored({"y_train": Y.copy(), "x_train": X.copy()}) == first
    assert first.stat().st_mtime_ns == written
    others = [{"x_train": X + 1, "y_train": Y}, {"x_train": X, "y_train": Y, "x_test": X, "y_test": Y}]
    assert len({first, *map(stored, others)}) == 3
    assert len(list((home / "arrays").iterdir())) == 3


def test_a_document_without_arrays_is_left_alone(home: Path) -> None:
    for document in ({"data": {"dataset": "digits"}}, {"name": "a"}, {"data": 3}):
        assert with_stored_arrays(document) == document
    assert not home.exists()


@pytest.mark.parametrize(
    ("arrays", "kind", "message"),
    [
        ([X, Y], InputError, "data.arrays must map names to arrays, got list"),
        ({"x_trian": X, "y_train": Y}, InputError, "data.arrays: unknown name 'x_trian'"),
        ({3: X}, InputError, "data.arrays: unknown name 3"),
        ({}, InputError, "data.arrays: x_train is missing"),
        ({"x_train": X}, InputError, "data.arrays: y_train is missing"),
        ({"x_train": X, "y_train": Y, "y_test": Y}, InputError, "data.arrays: x_test is missing"),
        ({"x_train": X, "y_train": Y[:3]}, DataError, "data.arrays, x_train has 12 examples, but y_train has 3"),
        (
            {"x_train": X, "y_train": Y, "x_test": [["a"]], "y_test": [0]},
            DataError,
            "data.arrays, x_test has the type",
        ),
    ],
)
def test_what_is_wrong_is_named_and_nothing_is_written(
    home: Path, arrays: object, kind: type[Exception], message: str
) -> None:
    with pytest.raises(kind) as caught:
        with_stored_arrays(given(arrays))
    assert str(caught.value).startswith(message)
    assert not home.exists()


def test_a_misspelt_name_gets_a_suggestion() -> None:
    with pytest.raises(InputError) as caught:
        stored({"x_trian": X})
    assert str(caught.value.hint).startswith('did you mean "x_train"?')


def test_arrays_and_a_data_set_are_one_too_many() -> None:
    with pytest.raises(InputError, match=r"data\.arrays and data\.dataset are both given"):
        with_stored_arrays(given({"x_train": X, "y_train": Y}, dataset="digits"))


def test_a_home_that_cannot_be_written_is_named(home: Path) -> None:
    home.write_text("a file")
    with pytest.raises(SurroundingsError, match=r"the arrays cannot be written: (Not a directory|File exists)"):
        stored({"x_train": X, "y_train": Y})
