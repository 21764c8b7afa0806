"""Columns of every type that Arrow's files and text files have."""

from __future__ import annotations

from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest

from hpsearch.data.tables.preparation import Preparation, input_names
from hpsearch.errors import DataError
from tests.unit.data.tables.conftest import Load

NUM_ROWS = 84
_HALF = ["a", "b"] * (NUM_ROWS // 2)


def values_of(load: Load, path: Path, name: str = "x") -> list[float]:
    """The training values of a number in its own unit, sorted."""
    data = load(path, target="y")
    feature = Preparation.from_json(data.record["preparation"]).features[0]
    assert feature.name == name
    return sorted(np.round(data.train.images[:, 0] * feature.scale + feature.mean).tolist())


@pytest.mark.parametrize(
    "kind",
    [pa.int8(), pa.uint16(), pa.int64(), pa.float16(), pa.float32(), pa.float64(), pa.decimal128(10, 2)],
    ids=str,
)
def test_all_numbers_are_numbers(load: Load, tmp_path: Path, kind: pa.DataType) -> None:
    values: list[Any] = [row % 40 for row in range(NUM_ROWS)]
    if pa.types.is_decimal(kind):
        values = list(map(Decimal, values))
    if kind == pa.float16():
        values = list(map(np.float16, values))
    pa.parquet.write_table(pa.table({"x": pa.array(values, kind), "y": _HALF}), tmp_path / "t.parquet")
    found = values_of(load, tmp_path / "t.parquet")
    assert len(found) == 60
    assert set(found) <= set(range(40))


@pytest.mark.parametrize(
    "kind", [pa.string(), pa.large_string(), pa.string_view(), pa.dictionary(pa.int16(), pa.string())], ids=str
)
def test_all_texts_are_categories(load: Load, tmp_path: Path, kind: pa.DataType) -> None:
    values = pa.array([None if row % 10 == 9 else "uvw"[row % 3] for row in range(NUM_ROWS)])
    array = values.cast(kind) if kind != pa.string_view() else pa.array(values.to_pylist(), kind)
    with pa.OSFile(str(tmp_path / "t.arrow"), "wb") as sink:
        table = pa.table({"x": array, "y": _HALF})
        with pa.ipc.new_file(sink, table.schema) as writer:
            writer.write_table(table)
    data = load(tmp_path / "t.arrow", target="y")
    assert input_names(data.record) == ("x = u", "x = v", "x = w", "x is missing")
    one_hot = data.train.images[:, :3]
    assert set(one_hot.sum(axis=1).tolist()) == {1.0}


def test_chunks_with_dictionaries_of_their_own_are_one_column(load: Load, tmp_path: Path) -> None:
    chunks = [pa.array(list("uv") * 21).dictionary_encode(), pa.array(list("vw") * 21).dictionary_encode()]
    pa.parquet.write_table(pa.table({"x": pa.chunked_array(chunks), "y": _HALF}), tmp_path / "t.parquet")
    assert input_names(load(tmp_path / "t.parquet", target="y").record) == ("x = u", "x = v", "x = w")


def test_nan_in_a_column_of_floats_is_missing(load: Load, tmp_path: Path) -> None:
    values = [float("nan") if row % 7 == 0 else 1.5 * row for row in range(NUM_ROWS)]
    pa.parquet.write_table(pa.table({"x": values, "y": _HALF}), tmp_path / "t.parquet")
    assert input_names(load(tmp_path / "t.parquet", target="y").record) == ("x", "x is missing")


def test_truth_values_may_be_missing(load: Load, tmp_path: Path) -> None:
    values = [None if row % 7 == 0 else row % 2 == 0 for row in range(NUM_ROWS)]
    pa.parquet.write_table(pa.table({"x": values, "y": _HALF}), tmp_path / "t.parquet")
    assert input_names(load(tmp_path / "t.parquet", target="y").record) == ("x", "x is missing")


@pytest.mark.parametrize(
    ("array", "told"),
    [
        (pa.array([[1, 2]] * NUM_ROWS), "values of another type"),
        (pa.array([{"a": 1}] * NUM_ROWS), "values of another type"),
        (pa.array([b"bytes"] * NUM_ROWS), "values of another type"),
        (pa.array([0] * NUM_ROWS, pa.timestamp("us")), "dates or times"),
        (pa.array([0] * NUM_ROWS, pa.duration("s")), "dates or times"),
    ],
    ids=["list", "struct", "bytes", "timestamp", "duration"],
)
def test_other_types_are_named_unless_they_are_excluded(load: Load, tmp_path: Path, array: pa.Array, told: str) -> None:
    table = pa.table({"x": [0.5 * row for row in range(NUM_ROWS)], "odd": array, "y": _HALF})
    pa.parquet.write_table(table, tmp_path / "t.parquet")
    with pytest.raises(DataError, match=rf"1 column cannot be features: 'odd' \({told}\)") as caught:
        load(tmp_path / "t.parquet", target="y")
    assert 'data.exclude = ["odd"]' in str(caught.value.hint)
    assert input_names(load(tmp_path / "t.parquet", target="y", exclude=("odd",)).record) == ("x",)


def test_a_column_without_a_value_is_left_out(load: Load, tmp_path: Path) -> None:
    table = pa.table({"x": [0.5 * row for row in range(NUM_ROWS)], "empty": pa.nulls(NUM_ROWS), "y": _HALF})
    pa.parquet.write_table(table, tmp_path / "t.parquet")
    data = load(tmp_path / "t.parquet", target="y")
    assert data.record["left_out"] == {"empty": "no training row has a value"}


def test_a_column_that_is_empty_in_a_validation_file_is_missing_there(load: Load, tmp_path: Path) -> None:
    rows = {"x": [0.5 * row for row in range(NUM_ROWS)], "z": list("uvw") * (NUM_ROWS // 3), "y": _HALF}
    pa.parquet.write_table(pa.table(rows), tmp_path / "t.parquet")
    few = {"x": pa.nulls(4), "z": pa.nulls(4), "y": _HALF[:4]}
    pa.parquet.write_table(pa.table(few), tmp_path / "v.parquet")
    data = load(tmp_path / "t.parquet", target="y", validation="v.parquet")
    assert np.ptp(data.validation.images, axis=0).tolist() == [0, 0, 0, 0]


@pytest.mark.parametrize(
    "content",
    [
        b"\xef\xbb\xbf" + b"x,y\n" + b"1.5,a\n2.5,b\n" * 42,
        b"x,y\r\n" + b"1.5,a\r\n2.5,b\r\n" * 42,
        b'"x","y"\n' + b'"1.5","a"\n2.5,"b"\n' * 42,
        b"x;y\n" + b"1.5;a\n2.5;b\n" * 42,
        b"x|y\n" + b"1.5|a\n2.5|b\n" * 42,
    ],
    ids=["byte order mark", "CRLF", "quotes", "semicolon", "bar"],
)
def test_text_files_of_many_programs_are_the_same_table(load: Load, tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "t.csv"
    path.write_bytes(content)
    data = load(path, target="y")
    assert input_names(data.record) == ("x",)
    assert data.class_names == ("a", "b")
    assert (data.train.images[:, 0] > 0).tolist() == (data.train.labels == 1).tolist()


def test_values_with_line_breaks_and_separators_stay_in_their_column(load: Load, tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("place,x,y\n" + '"Bonn,\nRhein",1.5,a\nKiel,2.5,b\n' * 42)
    assert input_names(load(path, target="y").record) == ("place = Bonn,\nRhein", "place = Kiel", "x")


def test_another_file_with_utf_16_is_read(load: Load, tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("ä,y\n" + "1.5,a\n2.5,b\n" * 42, encoding="utf-16")
    assert input_names(load(path, target="y", encoding="utf-16").record) == ("ä",)


def test_a_damaged_gzip_file_is_named(load: Load, tmp_path: Path) -> None:
    path = tmp_path / "t.csv.gz"
    path.write_bytes(b"\x1f\x8b\x08\x00 and no more")
    with pytest.raises(DataError, match=r"t.csv.gz: cannot be read"):
        load(path, target="y")


def test_class_labels_of_hugging_face_are_categories_as_features(load: Load, tmp_path: Path) -> None:
    labels = {"names": ["red", "green"], "_type": "ClassLabel"}
    table = pa.table({"colour": [row % 2 for row in range(NUM_ROWS)], "y": _HALF})
    metadata = f'{{"info": {{"features": {{"colour": {labels}}}}}}}'.replace("'", '"')
    pa.parquet.write_table(table.replace_schema_metadata({"huggingface": metadata}), tmp_path / "t.parquet")
    assert input_names(load(tmp_path / "t.parquet", target="y").record) == ("colour = green", "colour = red")
    wrong = pa.table({"colour": [5] * NUM_ROWS, "y": _HALF}).replace_schema_metadata({"huggingface": metadata})
    pa.parquet.write_table(wrong, tmp_path / "w.parquet")
    with pytest.raises(DataError, match=r"column 'colour' has labels above 1 in 84 rows: 1, 2, 3, 4, 5 and 79 more"):
        load(tmp_path / "w.parquet", target="y")
